//! Records on disk: one directory per pod, one per container, each with `spec.json` (written once) and `state.json`.
//!
//! Owns their layout and writes them atomically (temporary file, rename); `words::saved` has their texts. Never decides
//! anything.
//!
//! ```text
//! <root>/pods/<sandbox>/spec.json                        fsynced: a reboot must still find whose network to give back
//! <root>/pods/<sandbox>/state.json
//! <root>/pods/<sandbox>/containers/<container>/spec.json    not fsynced: after a power cut there is no container
//! <root>/pods/<sandbox>/containers/<container>/state.json
//! ```

use crate::model::{ContainerId, ContainerSpec, ImageId, SandboxId, SandboxSpec};
use crate::sandbox::offload::OffThread;
use crate::sandbox::words::record::{
    ContainerRecord, Loaded, PodState, RecordError, StoredContainer, StoredPod, VERSION,
};
use crate::sandbox::words::saved::{self, Saved as _};
use crate::sandbox::words::volumes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    boot_id: String,
    #[serde(flatten)]
    body: T,
}

/// A record that could not be read was moved aside.
#[derive(Debug)]
struct Aside;

/// The records of one root directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
    boot_id: String,
}

impl Records {
    /// Opens `<root>/pods`.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn open(root: &Path, boot_id: &str) -> Result<Self, RecordError> {
        let dir = root.join("pods");
        fs::create_dir_all(&dir).map_err(io("make directory of", &dir))?;
        // The specs contain environments of containers.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(io("change the mode of", &dir))?;
        Ok(Self { dir, boot_id: boot_id.to_owned() })
    }

    fn pod(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn container(&self, pod: &SandboxId, id: &ContainerId) -> PathBuf {
        self.pod(pod).join("containers").join(id.as_str())
    }

    /// Writes a new pod's spec and makes it durable before returning.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_pod(&self, _: &OffThread, spec: &SandboxSpec) -> Result<(), RecordError> {
        let dir = self.pod(&spec.id);
        private_dir(&dir.join("containers")).map_err(io("make directory of", &dir))?;
        self.write(&dir.join("spec.json"), &saved::SandboxSpec::save(spec), Durability::Synced)?;
        sync_dir(&self.dir)
    }

    /// Replaces a pod's state.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_pod_state(
        &self,
        _: &OffThread,
        id: &SandboxId,
        state: &PodState,
    ) -> Result<(), RecordError> {
        self.write(&self.pod(id).join("state.json"), &saved::PodState::save(state), Durability::Renamed)
    }

    /// Writes a new container's spec.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_container(&self, _: &OffThread, spec: &ContainerSpec) -> Result<(), RecordError> {
        let dir = self.container(&spec.sandbox_id, &spec.id);
        private_dir(&dir).map_err(io("make directory of", &dir))?;
        self.write(&dir.join("spec.json"), &saved::ContainerSpec::save(spec), Durability::Renamed)
    }

    /// Replaces a container's state.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_container_state(
        &self,
        _: &OffThread,
        pod: &SandboxId,
        id: &ContainerId,
        record: &ContainerRecord,
    ) -> Result<(), RecordError> {
        let path = self.container(pod, id).join("state.json");
        self.write(&path, &saved::ContainerRecord::save(record), Durability::Renamed)
    }

    /// Removes a container's records; absent is fine.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_container(
        &self,
        _: &OffThread,
        pod: &SandboxId,
        id: &ContainerId,
    ) -> Result<(), RecordError> {
        remove_tree(&self.container(pod, id))
    }

    /// Removes a pod's records; absent is fine.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_pod(&self, _: &OffThread, id: &SandboxId) -> Result<(), RecordError> {
        remove_tree(&self.pod(id))
    }

    /// Reads every pod. What cannot be read, or was written by a newer daemon, stays where it is and is named: what it stands
    /// for may run, and is nobody's to end. A container of a pod that can be read is known all the same, with defaults. What was never written whole is removed.
    ///
    /// # Errors
    /// When the directory itself cannot be listed.
    pub fn load(&self, _: &OffThread) -> Result<Loaded, RecordError> {
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&self.dir).map_err(io("list", &self.dir))? {
            let path = entry.map_err(io("list", &self.dir))?.path();
            let Some(id) = path.file_name().and_then(|n| n.to_str()).filter(|n| SandboxId::parse(n).is_ok())
            else {
                continue;
            };
            match self.load_pod(&path, &mut loaded.broken) {
                Ok(Some(pod)) => loaded.pods.push(pod),
                Ok(None) => {}
                Err(error) => {
                    loaded.unread.insert(id.to_owned());
                    let containers = list(&path.join("containers")).unwrap_or_default();
                    loaded.unread.extend(containers.iter().filter_map(|dir| name(dir)));
                    loaded.broken.push(error);
                }
            }
        }
        Ok(loaded)
    }

    /// The images of all containers below `root` and of their volumes, each as often as it is used. Changes nothing,
    /// unlike [`Self::load`], so a program beside the daemon may call it. An unreadable container is an error, since
    /// none may be missed.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn images_in_use(root: &Path) -> Result<Vec<ImageId>, RecordError> {
        let mut images = Vec::new();
        for pod in list(&root.join("pods"))? {
            for container in list(&pod.join("containers"))? {
                // Without a spec it was never created.
                if let Some(spec) = read_optional::<saved::ContainerSpec>(&container.join("spec.json"))? {
                    let spec = spec.body.live();
                    images.extend(volumes::image_ids(&spec).into_iter().cloned());
                    images.push(spec.image.id);
                }
            }
        }
        Ok(images)
    }

    /// None: it never became a pod.
    fn load_pod(&self, dir: &Path, broken: &mut Vec<RecordError>) -> Result<Option<StoredPod>, RecordError> {
        let containers_dir = dir.join("containers");
        tighten(dir);
        tighten(&containers_dir);
        let Some(spec) = read_optional::<saved::SandboxSpec>(&dir.join("spec.json"))? else {
            if dir.join("state.json").exists() || !list(&containers_dir)?.is_empty() {
                return Err(io("read", &dir.join("spec.json"))(std::io::ErrorKind::NotFound.into()));
            }
            tracing::debug!(dir = %dir.display(), "removing what was to become a pod's record");
            return remove_tree(dir).map(|()| None);
        };
        // The spec says what to give back; the state can be found out.
        let state: Option<Versioned<saved::PodState>> =
            self.readable_or_aside(&dir.join("state.json"), broken)?.ok().flatten();
        let this_boot = state.as_ref().map_or(spec.boot_id == self.boot_id, |s| s.boot_id == self.boot_id);
        let spec = spec.body.live();
        let mut containers = Vec::new();
        for path in list(&containers_dir)? {
            let Some(id) = name(&path).and_then(|name| ContainerId::parse(&name).ok()) else { continue };
            containers.extend(self.load_container(&path, (&spec.id, id), broken)?);
        }
        Ok(Some(StoredPod { spec, state: state.map(|s| s.body.live()), this_boot, containers }))
    }

    /// None: it never became a container.
    fn load_container(
        &self,
        dir: &Path,
        (pod, id): (&SandboxId, ContainerId),
        broken: &mut Vec<RecordError>,
    ) -> Result<Option<StoredContainer>, RecordError> {
        tighten(dir);
        let spec_file = dir.join("spec.json");
        let mut unread = false;
        let spec = match read_optional::<saved::ContainerSpec>(&spec_file) {
            Ok(Some(spec)) => spec.body.live(),
            Ok(None) if !dir.join("state.json").exists() => return remove_tree(dir).map(|()| None),
            unreadable => {
                let missing = || io("read", &spec_file)(std::io::ErrorKind::NotFound.into());
                broken.push(unreadable.err().unwrap_or_else(missing));
                unread = true;
                let text = fs::read(&spec_file).unwrap_or_default();
                saved::salvaged(&text, pod, &id)
                    .map_err(|source| RecordError::Malformed { path: spec_file, source })?
                    .live()
            }
        };
        let state: Result<Result<Option<Versioned<saved::ContainerRecord>>, Aside>, _> =
            self.readable_or_aside(&dir.join("state.json"), broken);
        let state = match state {
            Ok(Ok(None)) if unread => Some(ContainerRecord::unknown(&spec)),
            Ok(Ok(state)) => state.map(|s| s.body.live()),
            Ok(Err(Aside)) => Some(ContainerRecord::unknown(&spec)),
            // Of a newer daemon, or on a disk that does not answer now.
            Err(error) => {
                broken.push(error);
                unread = true;
                Some(ContainerRecord::unknown(&spec))
            }
        };
        Ok(Some(StoredContainer { spec, state, unread }))
    }

    /// Reads a record, or moves one that is damaged aside and tells.
    ///
    /// # Errors
    /// When it may well be whole: of a newer daemon, or on a disk that does not answer now.
    fn readable_or_aside<T: DeserializeOwned>(
        &self,
        path: &Path,
        broken: &mut Vec<RecordError>,
    ) -> Result<Result<Option<Versioned<T>>, Aside>, RecordError> {
        match read_optional(path) {
            Ok(record) => Ok(Ok(record)),
            Err(error @ RecordError::Malformed { .. }) => {
                broken.push(error);
                let owner = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
                self.quarantine_as(path, format!("{owner}.state.json").as_ref());
                Ok(Err(Aside))
            }
            Err(error) => Err(error),
        }
    }

    fn quarantine_as(&self, path: &Path, name: &std::ffi::OsStr) {
        let shelf = self.dir.with_extension("quarantine");
        let moved = fs::create_dir_all(&shelf).and_then(|()| fs::rename(path, shelf.join(name)));
        if let Err(error) = moved {
            // Log: `<root>/pods.quarantine` cannot be written.
            // Do: Free the disk, or mount it writable.
            tracing::error!(path = %path.display(), %error, "cannot move an unreadable record aside");
        }
    }

    fn write<T: Serialize>(&self, path: &Path, body: &T, durability: Durability) -> Result<(), RecordError> {
        let text = serde_json::to_vec(&Versioned { version: VERSION, boot_id: self.boot_id.clone(), body })
            .map_err(|source| RecordError::Malformed { path: path.to_owned(), source })?;
        write_atomic(path, &text, durability).map_err(io("write", path))
    }
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes from others what earlier versions let them read: a directory's records, and the directory itself. They have the
/// environments of containers. What cannot be changed is no reason not to read it; the directory above has mode 0700.
fn tighten(dir: &Path) {
    let records = ["spec.json", "state.json", "spec.tmp", "state.tmp"].map(|name| dir.join(name));
    for path in records.iter().map(PathBuf::as_path).chain([dir]) {
        let Ok(found) = fs::symlink_metadata(path) else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 != 0 && !found.is_symlink() {
            let private = fs::Permissions::from_mode(mode & 0o700);
            if let Err(error) = fs::set_permissions(path, private) {
                tracing::debug!(path = %path.display(), %error, "cannot take a record from others");
            }
        }
    }
}

/// How durable a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The daemon's death.
    Renamed,
    /// A power cut.
    Synced,
}

fn write_atomic(path: &Path, text: &[u8], durability: Durability) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    if durability == Durability::Synced {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)?;
    match (durability, path.parent()) {
        (Durability::Synced, Some(dir)) => fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<(), RecordError> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync directory of", dir))
}

fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<Versioned<T>, RecordError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let malformed = |source| RecordError::Malformed { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(text).map_err(malformed)?;
    if head.version > VERSION {
        return Err(RecordError::Version { path: path.to_owned(), found: head.version });
    }
    serde_json::from_slice(text).map_err(malformed)
}

/// None: there is no such file.
fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<Versioned<T>>, RecordError> {
    match fs::read(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io("read", path)(source)),
    }
}

fn name(dir: &Path) -> Option<String> {
    Some(dir.file_name()?.to_str()?.to_owned())
}

/// The directories in `dir`; none if it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io("list", dir)(source)),
    };
    let paths: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(io("list", dir))?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}

fn remove_tree(dir: &Path) -> Result<(), RecordError> {
    crate::host::remove::tree(dir).map_err(|error| io("remove", dir)(error.into()))
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { operation, path, source }
}

/// The door of the fuzz target `records`: what is read is written and read back the same.
#[cfg(any(test, fuzzing))]
pub(in crate::sandbox) fn fuzz<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &[u8]) {
    let path = Path::new("record");
    let Ok(record) = parse::<T>(path, text) else { return };
    let again = serde_json::to_vec(&record).expect("a record is written");
    let again = parse::<T>(path, &again).expect("what was written is read back");
    assert_eq!((again.version, again.boot_id), (record.version, record.boot_id));
    assert_eq!(again.body, record.body);
}

#[cfg(test)]
pub(in crate::sandbox) fn reads<T: DeserializeOwned>(text: &[u8]) -> bool {
    parse::<T>(Path::new("record"), text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn records_are_roots_alone_and_older_ones_become_so_at_start() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        fs::set_permissions(root.path().join("pods"), fs::Permissions::from_mode(0o755)).unwrap();
        let records = Records::open(root.path(), "boot").unwrap();
        assert_eq!(mode(&root.path().join("pods")), 0o700);
        let pod = root.path().join("pods").join(SandboxId::random().unwrap().as_str());
        let container = pod.join("containers").join(ContainerId::random().unwrap().as_str());
        private_dir(&container).unwrap();
        assert_eq!((mode(&pod), mode(&container)), (0o700, 0o700));
        records
            .write(&container.join("state.json"), &serde_json::json!({"a": 1}), Durability::Renamed)
            .unwrap();
        assert_eq!(mode(&container.join("state.json")), 0o600);
        // As version 0.1.0 left them, with a temporary file of a crash, whose mode a rename would keep.
        for dir in [&pod, &pod.join("containers"), &container] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let files = [pod.join("spec.json"), pod.join("state.json"), container.join("state.tmp")];
        for file in &files {
            fs::write(file, "{}").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        tighten(&pod);
        tighten(&pod.join("containers"));
        tighten(&container);
        for dir in [&pod, &pod.join("containers"), &container] {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
    }
}
