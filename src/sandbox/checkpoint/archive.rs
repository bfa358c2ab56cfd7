//! A checkpoint's directory as one tar, at the place that the caller named. Readers of that place see a whole archive or
//! none. Never follows a link in its name's last component.

use crate::host::foreign::{Moving, Progress};
use crate::model::ContainerId;
use crate::sandbox::words::checkpoint_error::CheckpointError;
use crate::sandbox::words::error::SandboxError;
use rustix::fs::{Mode, OFlags, openat};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the archive will be. Its directory is opened at once, so that a wrong place is told before anything is frozen.
#[derive(Debug)]
pub(super) struct Target {
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Target {
    pub(super) fn new(path: &Path) -> Result<Self, SandboxError> {
        let bad = |why: String| CheckpointError::Request { field: "location", why };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(bad(format!("{} names no file", path.display())).into());
        };
        if path.is_dir() {
            return Err(bad(format!("{} is a directory", path.display())).into());
        }
        let dir = podwright_sys::path::open_root(parent)
            .map_err(|e| bad(format!("open {}: {e}", parent.display())))?;
        Ok(Self { dir, name: name.to_owned(), path: path.to_owned() })
    }

    /// Packs `from`, then moves the archive into place. Blocking, for as long as its file system does not answer.
    pub(super) fn fill(&self, from: &Path, progress: Option<&Progress>) -> Result<(), SandboxError> {
        let mut unseen = OsString::from(".");
        unseen.push(&self.name);
        unseen.push(format!(".{}", ContainerId::random()?.short()));
        let packed = self.pack(from, &unseen, progress);
        let placed =
            packed.and_then(|()| Ok(rustix::fs::renameat(&self.dir, &unseen, &self.dir, &self.name)?));
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &unseen, rustix::fs::AtFlags::empty());
        }
        placed.map_err(SandboxError::io("write checkpoint", &self.path))
    }

    fn pack(&self, from: &Path, name: &OsString, progress: Option<&Progress>) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))?);
        let mut tar = tar::Builder::new(BufWriter::new(Moving::new(file, progress)));
        tar.follow_symlinks(false);
        tar.append_dir_all("", from)?;
        tar.into_inner()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_at_its_place_is_replaced_and_never_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (from, place, victim) =
            (dir.path().join("from"), dir.path().join("c.tar"), dir.path().join("victim"));
        std::fs::create_dir_all(from.join("checkpoint")).unwrap();
        std::fs::write(from.join("checkpoint/pages.img"), "pages").unwrap();
        std::fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, &place).unwrap();
        Target::new(&place).unwrap().fill(&from, None).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        let mut archive = tar::Archive::new(File::open(&place).unwrap());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert!(names.contains(&"checkpoint/pages.img".to_owned()), "{names:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_place_that_cannot_be_is_told_by_the_fields_name() {
        for place in ["/no/such/directory/c.tar", "/", "/proc"] {
            let error = Target::new(Path::new(place)).unwrap_err().to_string();
            assert!(error.starts_with("location: "), "{place}: {error}");
        }
    }
}
