//! From the files of a pod's checkpoint to what a new container starts from. The files are only read, through descriptors
//! below their directory, and copied when the container is created: whoever owns them may change them afterwards.

use super::describe::{ConfigDump, POD_VERSION, PodOptions};
use super::error::CheckpointError;
use super::{CHANGES, CONFIG_DUMP, DELETED, IMAGES, POD_OPTIONS, changes};
use crate::images::Images;
use crate::model::ContainerSpec;
use crate::sandbox::error::SandboxError;
use podwright_sys::path::{open_beneath, open_root};
use rustix::fs::{Dir, Mode, OFlags};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where a restored container's copies lie, in its directory for writable layers.
const DIRECTORY: &str = "restore";
/// Bytes of a JSON file of a checkpoint.
const MAX_JSON: u64 = 16 << 20;
/// Files that CRIU may have written: a few for each process.
const MAX_IMAGES: usize = 1 << 20;

/// What a restored container has beside its image.
#[derive(Debug)]
pub(in crate::sandbox) struct Restored {
    /// A layer on top of the image's: the changes of the checkpointed container.
    pub(in crate::sandbox) layer: PathBuf,
}

/// CRIU's images for the start of a restored container.
pub(in crate::sandbox) fn images(writable: &Path) -> PathBuf {
    writable.join(DIRECTORY).join(IMAGES)
}

/// They are needed for one start only, and as large as the memory of the processes.
pub(in crate::sandbox) fn forget_images(writable: &Path) {
    let images = images(writable);
    if let Err(error) = std::fs::remove_dir_all(&images) {
        tracing::debug!(images = %images.display(), %error, "images of a restored container stay until its removal");
    }
}

/// Whether a checkpoint can be written into a directory.
pub(super) fn check_empty(dir: &Path) -> Result<(), SandboxError> {
    let bad = |why: String| CheckpointError::Request { field: "output_path", why };
    let shown = dir.display();
    let mut entries = std::fs::read_dir(dir).map_err(|e| bad(format!("open {shown}: {e}")))?;
    if entries.next().is_some() {
        return Err(bad(format!("{shown} is not empty")).into());
    }
    Ok(())
}

/// Empties the caller's directory again.
pub(super) fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "half a checkpoint stays");
        }
    }
}

struct Source {
    dir: OwnedFd,
    path: PathBuf,
}

impl Source {
    fn open(path: &Path, field: &'static str) -> Result<Self, SandboxError> {
        let bad = |e: std::io::Error| CheckpointError::Request {
            field,
            why: format!("open {}: {e}", path.display()),
        };
        Ok(Self { dir: open_root(path).map_err(bad)?, path: path.to_owned() })
    }

    fn malformed(&self, inside: &Path, why: impl ToString) -> SandboxError {
        CheckpointError::Malformed { path: self.path.join(inside), why: why.to_string() }.into()
    }

    fn file(&self, inside: &Path) -> Result<File, SandboxError> {
        regular(self.dir.as_fd(), inside).map_err(|e| self.malformed(inside, e))
    }

    fn json<T: DeserializeOwned>(&self, inside: &Path) -> Result<T, SandboxError> {
        serde_json::from_reader(self.file(inside)?.take(MAX_JSON)).map_err(|e| self.malformed(inside, e))
    }
}

/// Opens a plain file below `dir`; a link there is followed only to what is below, too.
fn regular(dir: BorrowedFd<'_>, inside: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = File::from(open_beneath(dir, inside, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "is no plain file"));
    }
    Ok(file)
}

/// Whether these containers are those of the checkpoint: the same names, each of the same image. Blocking.
pub(in crate::sandbox) fn check(checkpoint: &Path, containers: &[ContainerSpec]) -> Result<(), SandboxError> {
    let source = Source::open(checkpoint, "checkpoint_path")?;
    let options: PodOptions = source.json(Path::new(POD_OPTIONS))?;
    if options.version != POD_VERSION {
        let why = format!("version {} is not known, only {POD_VERSION}", options.version);
        return Err(source.malformed(Path::new(POD_OPTIONS), why));
    }
    let mismatch = |why| CheckpointError::Mismatch { path: checkpoint.to_owned(), why };
    let asked: BTreeSet<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let there: BTreeSet<&str> = options.containers.iter().map(String::as_str).collect();
    if asked != there || asked.len() != containers.len() {
        let why = format!("it has the containers {there:?}, container_configs {asked:?}");
        return Err(mismatch(why).into());
    }
    for container in containers {
        let dump: ConfigDump = source.json(&Path::new(&container.name).join(CONFIG_DUMP))?;
        if dump.image != container.image.id.as_str() {
            let (name, id) = (&container.name, &container.image.id);
            let why = format!(
                "container {name} was of image {}, not of {id} ({})",
                dump.image, container.image.display
            );
            return Err(mismatch(why).into());
        }
    }
    Ok(())
}

/// Copies what a container starts from into `writable`. Blocking.
pub(in crate::sandbox) fn fetch(
    from: &Path,
    writable: &Path,
    store: &Images,
) -> Result<Restored, SandboxError> {
    let source = Source::open(from, "checkpoint_path")?;
    let to = writable.join(DIRECTORY);
    let copies = to.join(IMAGES);
    for dir in [&copies, &to.join("fs"), &to.join("replaced")] {
        std::fs::create_dir_all(dir).map_err(SandboxError::io("make directory", dir))?;
    }
    copy_images(&source, &copies)?;
    let deleted: Vec<String> = match regular(source.dir.as_fd(), Path::new(DELETED)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        _ => source.json(Path::new(DELETED))?,
    };
    let whiteouts = changes::whiteouts(&deleted).map_err(|e| source.malformed(Path::new(DELETED), e))?;
    let changed = source.file(Path::new(CHANGES))?;
    let name = source.path.join(CHANGES).display().to_string();
    store.unpack_changes(BufReader::new(std::io::Cursor::new(whiteouts).chain(changed)), &to, &name)?;
    Ok(Restored { layer: to.join("fs") })
}

fn copy_images(source: &Source, to: &Path) -> Result<(), SandboxError> {
    let bad = |e: std::io::Error| source.malformed(Path::new(IMAGES), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let dir = open_beneath(source.dir.as_fd(), Path::new(IMAGES), flags, Mode::empty()).map_err(bad)?;
    let mut count = 0;
    for entry in Dir::read_from(&dir).map_err(|e| bad(e.into()))? {
        let entry = entry.map_err(|e| bad(e.into()))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        count += 1;
        if count > MAX_IMAGES {
            return Err(source.malformed(Path::new(IMAGES), format!("has more than {MAX_IMAGES} files")));
        }
        let name = Path::new(std::ffi::OsStr::new(
            name.to_str().map_err(|e| source.malformed(Path::new(IMAGES), e))?,
        ));
        let mut from =
            regular(dir.as_fd(), name).map_err(|e| source.malformed(&Path::new(IMAGES).join(name), e))?;
        let copy = to.join(name);
        let copied = File::create_new(&copy).and_then(|mut copy| std::io::copy(&mut from, &mut copy));
        copied.map_err(SandboxError::io("copy a checkpoint to", &copy))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::fixture::fixture;

    fn checkpoint(names: &[&str], image: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let options = serde_json::json!({"version": 1, "containers": names});
        std::fs::write(dir.path().join(POD_OPTIONS), options.to_string()).unwrap();
        for name in names {
            std::fs::create_dir_all(dir.path().join(name).join(IMAGES)).unwrap();
            let dump = serde_json::json!({"id": "x", "rootfsImage": image});
            std::fs::write(dir.path().join(name).join(CONFIG_DUMP), dump.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn names_and_images_must_be_those_of_the_checkpoint() {
        let container = fixture().container;
        let (name, image) = (container.name.clone(), container.image.id.to_string());
        let ok = checkpoint(&[&name], &image);
        check(ok.path(), std::slice::from_ref(&container)).unwrap();
        check(ok.path(), &[container.clone(), container.clone()]).unwrap_err();
        check(ok.path(), &[]).unwrap_err();
        for (names, image, word) in [
            (vec![name.as_str(), "more"], image.as_str(), "more"),
            (vec!["other"], image.as_str(), "other"),
            (vec![name.as_str()], "sha256:ff", "sha256:ff"),
        ] {
            let dir = checkpoint(&names, image);
            let error = check(dir.path(), std::slice::from_ref(&container)).unwrap_err();
            assert!(matches!(error, SandboxError::Checkpoint(CheckpointError::Mismatch { .. })), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        let dir = checkpoint(&[&name], &image);
        std::fs::write(dir.path().join(POD_OPTIONS), r#"{"version": 2, "containers": []}"#).unwrap();
        assert!(check(dir.path(), &[container]).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn links_out_of_the_checkpoint_are_not_read() {
        let (dir, out) = (checkpoint(&["a"], "i"), tempfile::tempdir().unwrap());
        let images = dir.path().join("a").join(IMAGES);
        std::fs::write(images.join("pages-1.img"), "pages").unwrap();
        let source = Source::open(&dir.path().join("a"), "checkpoint_path").unwrap();
        copy_images(&source, out.path()).unwrap();
        assert_eq!(std::fs::read_to_string(out.path().join("pages-1.img")).unwrap(), "pages");
        for (name, target) in [("link.img", "/etc/passwd"), ("up.img", "../config.dump")] {
            std::os::unix::fs::symlink(target, images.join(name)).unwrap();
            let again = tempfile::tempdir().unwrap();
            let error = copy_images(&source, again.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            std::fs::remove_file(images.join(name)).unwrap();
        }
        std::fs::remove_dir_all(&images).unwrap();
        std::os::unix::fs::symlink("/etc", &images).unwrap();
        copy_images(&source, out.path()).unwrap_err();
        // Nor is a fifo waited for.
        let fifo = dir.path().join("a").join(CONFIG_DUMP);
        std::fs::remove_file(&fifo).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(source.file(Path::new(CONFIG_DUMP)).unwrap_err().to_string().contains("no plain file"));
    }
}
