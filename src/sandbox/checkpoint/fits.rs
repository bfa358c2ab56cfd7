//! Whether a request matches a checkpoint. Checked before anything is created: CRIU restores the mounts and image files
//! that the processes had, and anything else in a request would be silently missing.

use super::describe::{ConfigDump, POD_VERSION, PodOptions};
use crate::images::Images;
use crate::model::{ContainerSpec, Mount, Restore};
use crate::sandbox::acts::restore::source::Source;
use crate::sandbox::words::checkpoint_error::CheckpointError;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::{CHANGES, CONFIG_DUMP, IMAGES, POD_OPTIONS, SPEC_DUMP};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What every container gets from its pod.
const OF_POD: [&str; 4] = ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The fields read of `spec.dump`.
#[derive(Debug, Deserialize)]
struct SpecDump {
    #[serde(default)]
    mounts: Vec<DumpedMount>,
}

#[derive(Debug, Deserialize)]
struct DumpedMount {
    destination: PathBuf,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

impl DumpedMount {
    fn has(&self, wanted: &[&str]) -> bool {
        self.options.iter().flatten().any(|option| wanted.contains(&option.as_str()))
    }

    /// What lies outside the container; CRIU creates the rest itself.
    fn is_bind(&self) -> bool {
        self.kind.as_deref() == Some("bind") || self.has(&["bind", "rbind"])
    }
}

/// Whether a container can continue from a checkpoint, and whether `root` has room for it. Blocking.
pub(in crate::sandbox) fn container(
    from: &Restore,
    spec: &ContainerSpec,
    store: &Images,
    root: &Path,
) -> Result<(), SandboxError> {
    let source = Source::open(from, store)?;
    fits(&source, spec)?;
    let mut bytes = 0u64;
    let images = source.images()?.into_iter().map(|name| Path::new(IMAGES).join(name));
    for path in images.chain([PathBuf::from(CHANGES)]) {
        bytes = bytes.saturating_add(source.file(&path)?.map_or(0, |file| file.bytes));
    }
    let disk =
        rustix::fs::statvfs(root).map_err(|e| SandboxError::io("look at the disk of", root)(e.into()))?;
    room(&source, bytes, disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn room(source: &Source, bytes: u64, free: u64) -> Result<(), SandboxError> {
    if bytes <= free {
        return Ok(());
    }
    Err(CheckpointError::NoRoom { path: source.shown("").into(), bytes, free }.into())
}

fn fits(source: &Source, spec: &ContainerSpec) -> Result<(), SandboxError> {
    let dump: ConfigDump = source.json(Path::new(CONFIG_DUMP))?;
    if let Some(id) = dump.id()
        && id != spec.image.id.as_str()
    {
        let (name, asked) = (&spec.name, &spec.image.id);
        let why = format!("container {name} was of image {id}, not of {asked} ({})", spec.image.display);
        return Err(source.mismatch(why));
    }
    let dump: SpecDump = source.json(Path::new(SPEC_DUMP))?;
    match mounts(&dump.mounts, &spec.mounts) {
        Some(why) => Err(source.mismatch(why)),
        None => Ok(()),
    }
}

/// Faults of the requested mounts.
fn mounts(dumped: &[DumpedMount], asked: &[Mount]) -> Option<String> {
    let of_pod = |path: &Path| OF_POD.iter().any(|own| path == Path::new(own));
    let asked: BTreeMap<&Path, &Mount> = asked.iter().map(|m| (m.container_path.as_path(), m)).collect();
    let binds: BTreeMap<&Path, &DumpedMount> =
        dumped.iter().filter(|m| m.is_bind()).map(|m| (m.destination.as_path(), m)).collect();
    let list = |paths: Vec<&Path>| {
        let shown: Vec<_> = paths.into_iter().map(|path| path.display().to_string()).collect();
        shown.join(", ")
    };
    let missing: Vec<_> =
        binds.keys().copied().filter(|path| !asked.contains_key(path) && !of_pod(path)).collect();
    if !missing.is_empty() {
        return Some(format!(
            "config.mounts: the checkpointed container had mounts at {}, too",
            list(missing)
        ));
    }
    let more: Vec<_> =
        asked.keys().copied().filter(|path| !binds.contains_key(path) && !of_pod(path)).collect();
    if !more.is_empty() {
        let more = list(more);
        return Some(format!(
            "config.mounts: the checkpointed container had no mounts at {more}, and gets none"
        ));
    }
    // CRIU sets the flags that the mounts had.
    let looser = asked.iter().find(|(path, mount)| {
        let dumped = binds.get(*path).is_some_and(|dumped| !dumped.has(&["ro", "rro"]));
        dumped && (mount.readonly || mount.recursive_read_only)
    });
    looser.map(|(path, _)| {
        format!(
            "config.mounts: {} is to be read-only, and was writable in the checkpointed container",
            path.display()
        )
    })
}

/// Whether these containers are those of a pod's checkpoint: the same names, each matching. Blocking.
pub(in crate::sandbox) fn pod(
    checkpoint: &Path,
    containers: &[ContainerSpec],
    store: &Images,
    root: &Path,
) -> Result<(), SandboxError> {
    let source = Source::directory(checkpoint, "checkpoint_path")?;
    let options: PodOptions = source.json(Path::new(POD_OPTIONS))?;
    if options.version != POD_VERSION {
        let why = format!("version {} is not known, only {POD_VERSION}", options.version);
        return Err(source.malformed(Path::new(POD_OPTIONS), why));
    }
    let asked: BTreeSet<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let there: BTreeSet<&str> = options.containers.iter().map(String::as_str).collect();
    if asked != there || asked.len() != containers.len() {
        let why = format!("it has the containers {there:?}, container_configs {asked:?}");
        return Err(source.mismatch(why));
    }
    containers
        .iter()
        .try_for_each(|spec| container(&Restore::Directory(checkpoint.join(&spec.name)), spec, store, root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MountSource, Propagation};
    use crate::sandbox::spec::fixture::fixture;
    use serde_json::json;

    fn store(dir: &Path) -> Images {
        Images::open(&dir.join("images"), &crate::config::Images::default()).unwrap()
    }

    fn checkpoint(names: &[&str], image: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let options = json!({"version": 1, "containers": names});
        std::fs::write(dir.path().join(POD_OPTIONS), options.to_string()).unwrap();
        for name in names {
            let images = dir.path().join(name).join(IMAGES);
            std::fs::create_dir_all(&images).unwrap();
            std::fs::write(images.join("inventory.img"), "x").unwrap();
            let dump = json!({"id": "x", "rootfsImage": image, "rootfsImageName": "n"});
            std::fs::write(dir.path().join(name).join(CONFIG_DUMP), dump.to_string()).unwrap();
            let spec = json!({"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}]});
            std::fs::write(dir.path().join(name).join(SPEC_DUMP), spec.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn names_and_images_must_be_those_of_the_checkpoint() {
        let mut container = fixture().container;
        let (full, other) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        container.image.id = crate::model::ImageId::from_digest(&full);
        let name = container.name.clone();
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let check = |dir: &Path, containers: &[ContainerSpec]| pod(dir, containers, &store, root.path());
        let ok = checkpoint(&[&name], &full);
        check(ok.path(), std::slice::from_ref(&container)).unwrap();
        check(ok.path(), &[container.clone(), container.clone()]).unwrap_err();
        check(ok.path(), &[]).unwrap_err();
        for (names, image, word) in [
            (vec![name.as_str(), "more"], full.as_str(), "more"),
            (vec!["other"], full.as_str(), "other"),
            (vec![name.as_str()], other.as_str(), other.as_str()),
        ] {
            let dir = checkpoint(&names, image);
            let error = check(dir.path(), std::slice::from_ref(&container)).unwrap_err();
            assert!(matches!(error, SandboxError::Checkpoint(CheckpointError::Mismatch { .. })), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        // A peer's checkpoint names the image in another way.
        check(checkpoint(&[&name], "docker.io/library/busybox:1").path(), std::slice::from_ref(&container))
            .unwrap();
        let dir = checkpoint(&[&name], &full);
        std::fs::write(dir.path().join(POD_OPTIONS), r#"{"version": 2, "containers": []}"#).unwrap();
        assert!(check(dir.path(), &[container]).unwrap_err().to_string().contains("version 2"));
        let source = Source::directory(dir.path(), "checkpoint_path").unwrap();
        room(&source, 5, 5).unwrap();
        assert!(room(&source, 6, 5).unwrap_err().to_string().contains("needs 6 bytes, 5 are free"));
    }

    #[test]
    fn mounts_must_be_those_of_the_checkpoint() {
        let dumped: SpecDump = serde_json::from_value(json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/run", "type": "tmpfs", "options": ["nosuid"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "rw"]},
            {"destination": "/data", "type": "bind", "source": "/d", "options": ["rbind", "rw"]},
            {"destination": "/token", "source": "/t", "options": ["bind", "ro"]},
        ]}))
        .unwrap();
        let mount = |path: &str, readonly| Mount {
            container_path: path.into(),
            source: MountSource::Host("/elsewhere".into()),
            readonly,
            recursive_read_only: false,
            selinux_relabel: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            options: Vec::new(),
        };
        let wrong = |asked: &[Mount]| mounts(&dumped.mounts, asked);
        let (data, token) = (mount("/data/", false), mount("/token", true));
        assert_eq!(wrong(&[data.clone(), token.clone()]), None);
        assert_eq!(wrong(&[data.clone(), token.clone(), mount("/etc/hosts", false)]), None);
        let missing = wrong(&[]).unwrap();
        assert!(missing.contains("/data, /token") && !missing.contains("hosts"), "{missing}");
        assert!(
            wrong(&[data.clone(), token.clone(), mount("/more", false)])
                .unwrap()
                .contains("no mounts at /more")
        );
        assert!(wrong(&[mount("/data", true), token]).unwrap().contains("/data is to be read-only"));
        // Conversely it stays as strict as before.
        assert_eq!(wrong(&[data, mount("/token", false)]), None);
    }
}
