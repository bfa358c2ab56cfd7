//! The files of one container's checkpoint, wherever they lie: a directory, an archive, an image. They are only read, and
//! of directories through descriptors, without following a link out of them.

use crate::images::{Archive, Hold, ImageError, Images};
use crate::model::Restore;
use crate::sandbox::words::checkpoint_error::CheckpointError;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::{DELETED, IMAGES};
use podwright_sys::path::{open_beneath, open_root, reopen_regular};
use rustix::fs::{Dir, Mode, OFlags};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes of a JSON file of a checkpoint, which takes up to forty times as much while it is looked at. The largest is the
/// OCI configuration, whose arguments and variables the kernel keeps below 2 MiB.
const MAX_JSON: u64 = 4 << 20;
/// Bytes of the list of removed paths.
const MAX_DELETED: u64 = 16 << 20;
/// Files that CRIU may have written: a few for each process.
const MAX_IMAGES: usize = 1 << 20;

/// A plain file of a checkpoint.
pub(in crate::sandbox) struct Opened {
    pub(in crate::sandbox) bytes: u64,
    pub(in crate::sandbox) content: Box<dyn Read + Send>,
}

/// Where they lie.
#[derive(Debug)]
pub(in crate::sandbox) struct Source {
    files: Files,
    /// For errors.
    path: PathBuf,
}

#[derive(Debug)]
enum Files {
    Trees {
        /// The uppermost first.
        dirs: Vec<OwnedFd>,
        /// Keeps an image's layers.
        _hold: Option<Hold>,
    },
    Archive(Archive),
}

impl Source {
    /// Opens a checkpoint. Blocking, as all here.
    pub(in crate::sandbox) fn open(from: &Restore, store: &Images) -> Result<Self, SandboxError> {
        match from {
            Restore::Directory(path) => Self::directory(path, "checkpoint_path"),
            Restore::Archive(path) => {
                let archive = store.archive(path).map_err(|error| match error {
                    ImageError::Io { .. } => {
                        let why = error.to_string();
                        CheckpointError::Request { field: "config.image.image", why }.into()
                    }
                    error => SandboxError::from(error),
                })?;
                Ok(Self { files: Files::Archive(archive), path: path.clone() })
            }
            Restore::Image(id) => {
                let hold = store.hold(id.as_str())?;
                let open = |dir: &PathBuf| open_root(dir).map_err(SandboxError::io("open", dir));
                let dirs = hold.layers().iter().rev().map(open).collect::<Result<_, _>>()?;
                Ok(Self { files: Files::Trees { dirs, _hold: Some(hold) }, path: PathBuf::from(id.as_str()) })
            }
        }
    }

    pub(in crate::sandbox) fn directory(path: &Path, field: &'static str) -> Result<Self, SandboxError> {
        let bad = |e: io::Error| {
            let why = format!("open {}: {e}", path.display());
            CheckpointError::Request { field, why }
        };
        let dirs = vec![open_root(path).map_err(bad)?];
        Ok(Self { files: Files::Trees { dirs, _hold: None }, path: path.to_owned() })
    }

    pub(in crate::sandbox) fn malformed(&self, inside: &Path, why: impl ToString) -> SandboxError {
        CheckpointError::Malformed { path: self.path.join(inside), why: why.to_string() }.into()
    }

    pub(in crate::sandbox) fn mismatch(&self, why: String) -> SandboxError {
        CheckpointError::Mismatch { path: self.path.clone(), why }.into()
    }

    /// How errors call a file of it.
    pub(in crate::sandbox) fn shown(&self, inside: &str) -> String {
        self.path.join(inside).display().to_string()
    }

    /// A plain file; None: there is none.
    pub(in crate::sandbox) fn file(&self, inside: &Path) -> Result<Option<Opened>, SandboxError> {
        match &self.files {
            Files::Trees { dirs, .. } => {
                for tree in dirs {
                    match regular(tree.as_fd(), inside) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(self.malformed(inside, e)),
                        Ok(file) => {
                            let bytes = file.metadata().map_err(|e| self.malformed(inside, e))?.len();
                            return Ok(Some(Opened { bytes, content: Box::new(file) }));
                        }
                    }
                }
                Ok(None)
            }
            Files::Archive(archive) => {
                let found = archive.file(&inside.to_string_lossy())?;
                Ok(found.map(|(bytes, content)| Opened { bytes, content: Box::new(content) }))
            }
        }
    }

    /// A JSON file; None: there is none.
    pub(in crate::sandbox) fn maybe_json<T: DeserializeOwned>(
        &self,
        inside: &Path,
    ) -> Result<Option<T>, SandboxError> {
        let Some(file) = self.file(inside)? else { return Ok(None) };
        let limit = if inside == Path::new(DELETED) { MAX_DELETED } else { MAX_JSON };
        if file.bytes > limit {
            return Err(self.malformed(inside, format!("is larger than {limit} bytes")));
        }
        let mut text = Vec::new();
        file.content.take(limit).read_to_end(&mut text).map_err(|e| self.malformed(inside, e))?;
        serde_json::from_slice(&text).map(Some).map_err(|e| self.malformed(inside, e))
    }

    /// A JSON file that has to be there.
    pub(in crate::sandbox) fn json<T: DeserializeOwned>(&self, inside: &Path) -> Result<T, SandboxError> {
        self.maybe_json(inside)?.ok_or_else(|| self.malformed(inside, "is missing"))
    }

    /// The names of CRIU's images, at least one.
    pub(in crate::sandbox) fn images(&self) -> Result<BTreeSet<String>, SandboxError> {
        let here = Path::new(IMAGES);
        let names = match &self.files {
            Files::Trees { dirs, .. } => {
                let mut names = BTreeSet::new();
                for tree in dirs {
                    match list(tree.as_fd(), here, &mut names) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        listed => listed.map_err(|e| self.malformed(here, e))?,
                    }
                }
                names
            }
            Files::Archive(archive) => {
                let below = archive.below(IMAGES).into_iter();
                below
                    .filter_map(|path| Some(path.strip_prefix(IMAGES)?.trim_start_matches('/').to_owned()))
                    .collect()
            }
        };
        if names.is_empty() {
            return Err(self.malformed(here, "has no images of CRIU"));
        }
        if names.len() > MAX_IMAGES {
            return Err(self.malformed(here, format!("has more than {MAX_IMAGES} files")));
        }
        match names.iter().find(|name| name.contains('/')) {
            Some(deep) => Err(self.malformed(&here.join(deep), "is below a directory, where CRIU has none")),
            None => Ok(names),
        }
    }
}

/// Opens a plain file below `dir`; a link there is followed only to what is below, too.
fn regular(dir: BorrowedFd<'_>, inside: &Path) -> io::Result<File> {
    let place = open_beneath(dir, inside, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let file = reopen_regular(place.as_fd(), OFlags::RDONLY)?;
    Ok(file.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "is no plain file"))?.into())
}

fn list(tree: BorrowedFd<'_>, inside: &Path, names: &mut BTreeSet<String>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let dir = open_beneath(tree, inside, flags, Mode::empty())?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = name.to_str().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        names.insert(name.to_owned());
        if names.len() > MAX_IMAGES {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::monitor::NamespacePaths;
    use crate::sandbox::acts::restore;
    use crate::sandbox::words::layout::{CHANGES, CONFIG_DUMP, SPEC_DUMP};
    use std::io::Write as _;

    fn store(dir: &Path) -> Images {
        Images::open(&dir.join("images"), &crate::config::Images::default()).unwrap()
    }

    fn tar(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = ::tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(u64::try_from(text.len()).unwrap());
            header.set_mode(0o600);
            // As it is: also what the crate refuses to write.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn archives_of_peers_are_read_compressed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let (store, path) = (store(dir.path()), dir.path().join("c.tar"));
        let changes = tar(&[("made", "kept"), (".wh.gone", "")]);
        let write = |changes: Option<&[u8]>, packed: bool| {
            let mut builder = ::tar::Builder::new(Vec::new());
            let mut add = |name: &str, bytes: &[u8]| {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(u64::try_from(bytes.len()).unwrap());
                builder.append_data(&mut header, name, bytes).unwrap();
            };
            add("./config.dump", br#"{"rootfsImageRef": "x", "rootfsImageName": "y"}"#);
            add("checkpoint/inventory.img", b"inventory");
            changes.inspect(|bytes| add("rootfs-diff.tar", bytes));
            let whole = builder.into_inner().unwrap();
            std::fs::write(&path, if packed { gzip(&whole) } else { whole }).unwrap();
        };
        for (packed, changes) in [(false, Some(changes.clone())), (true, Some(gzip(&changes))), (false, None)]
        {
            write(changes.as_deref(), packed);
            let from = Restore::Archive(path.clone());
            let source = Source::open(&from, &store).unwrap();
            let config: serde_json::Value = source.json(Path::new(CONFIG_DUMP)).unwrap();
            assert_eq!(config["rootfsImageRef"], "x");
            assert!(source.maybe_json::<serde_json::Value>(Path::new(SPEC_DUMP)).unwrap().is_none());
            let to = tempfile::tempdir().unwrap();
            let layer =
                restore::fetch(&from, to.path(), &NamespacePaths::default(), &store, None).unwrap().layer;
            assert_eq!(layer.join("made").exists(), changes.is_some());
            assert_eq!(std::fs::symlink_metadata(layer.join("gone")).is_ok(), changes.is_some());
            let image = restore::images(to.path()).join("inventory.img");
            assert_eq!(std::fs::read_to_string(image).unwrap(), "inventory");
        }
    }

    #[test]
    fn hostile_archives_are_refused_and_write_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (store, path) = (store(dir.path()), dir.path().join("c.tar"));
        let fetch = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let to = tempfile::tempdir_in(dir.path()).unwrap();
            let error = restore::fetch(
                &Restore::Archive(path.clone()),
                to.path(),
                &NamespacePaths::default(),
                &store,
                None,
            )
            .unwrap_err();
            assert!(std::fs::read_dir(dir.path()).unwrap().all(|entry| {
                let name = entry.unwrap().file_name();
                name == "images" || name == "c.tar" || name == to.path().file_name().unwrap()
            }));
            error.to_string()
        };
        let image = ("checkpoint/inventory.img", "x");
        // Names that lead out stand for what is below the archive's own root, and that is none of a checkpoint's files.
        assert!(fetch(&tar(&[("checkpoint/../../../evil.img", "x")])).contains("no images"));
        assert!(fetch(&tar(&[("../checkpoint", "x")])).contains("no images"));
        assert!(fetch(&tar(&[image, ("checkpoint/deep/x.img", "x")])).contains("deep/x.img"));
        assert!(fetch(&tar(&[("config.dump", "1"), ("config.dump", "2")])).contains("two entries"));
        let evil = tar(&[("../../evil", "x")]);
        let text = String::from_utf8(evil).unwrap();
        std::fs::write(&path, tar(&[image, (CHANGES, &text)])).unwrap();
        let to = tempfile::tempdir_in(dir.path()).unwrap();
        let made = restore::fetch(
            &Restore::Archive(path.clone()),
            to.path(),
            &NamespacePaths::default(),
            &store,
            None,
        )
        .unwrap();
        assert!(made.layer.join("evil").exists() && !dir.path().join("evil").exists());
        drop(to);
        // Larger than it is, or endless.
        let mut whole = tar(&[image]);
        let mut header = ::tar::Header::new_gnu();
        header.set_path("checkpoint/pages-1.img").unwrap();
        header.set_size(1 << 50);
        header.set_cksum();
        whole.splice(0..0, header.as_bytes().iter().copied());
        assert!(fetch(&whole).contains("cut off"));
        assert!(fetch(b"text, and no tar at all").contains("not a whole tar"));
        let mut link = ::tar::Header::new_gnu();
        link.set_entry_type(::tar::EntryType::Symlink);
        link.set_size(0);
        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_link(&mut link, "checkpoint/inventory.img", "/etc/passwd").unwrap();
        assert!(fetch(&builder.into_inner().unwrap()).contains("inventory.img"));
        let long = "1".repeat(usize::try_from(MAX_DELETED).unwrap() + 1);
        assert!(fetch(&tar(&[image, ("deleted.files", &long)])).contains("larger than"));
        std::fs::write(&path, tar(&[image, (SPEC_DUMP, &long[..=usize::try_from(MAX_JSON).unwrap()])]))
            .unwrap();
        let source = Source::open(&Restore::Archive(path.clone()), &store).unwrap();
        let error = source.json::<serde_json::Value>(Path::new(SPEC_DUMP)).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
        for (place, word) in
            [("/no/such.tar", "config.image.image"), ("/dev/null", "plain file"), ("/", "plain file")]
        {
            let from = Restore::Archive(place.into());
            let error = Source::open(&from, &store).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
