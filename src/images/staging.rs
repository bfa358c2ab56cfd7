//! Directories in which a layer is built before it is visible. A dropped one is removed, and remains of a crash are
//! swept when the store opens.

use super::error::ImageError;
use super::recipe::REPLACED;
use super::store::trash;
use crate::host::remove;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names within one process; the directory is empty when a process starts.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A staging directory with `fs` (the layer) and `replaced` (what the layer itself replaced).
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    pub(crate) fn new(dir: &Path) -> Result<Self, ImageError> {
        let path = fresh(dir);
        let make = |path: &Path, mode| {
            DirBuilder::new().mode(mode).create(path).map_err(|e| ImageError::io("make directory", path, e))
        };
        if !dir.is_dir() {
            // It was lost while the daemon ran.
            make(dir, 0o700)?;
        }
        make(&path, 0o700)?;
        let staging = Self { path };
        make(&staging.fs(), 0o700)?;
        make(&staging.path.join(REPLACED), 0o700)?;
        // Whatever the umask: users traverse an image's root.
        std::fs::set_permissions(staging.fs(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| ImageError::io("chmod", &staging.fs(), e))?;
        Ok(staging)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Makes the content durable and moves it to `to`, which must not exist.
    pub(crate) fn publish(self, to: &Path) -> Result<(), ImageError> {
        let replaced = self.path.join(REPLACED);
        match rustix::fs::rmdir(&replaced) {
            Ok(()) | Err(Errno::NOTEMPTY) => {}
            Err(e) => return Err(ImageError::io("remove", &replaced, e)),
        }
        let dir = File::open(&self.path).map_err(|e| ImageError::io("open", &self.path, e))?;
        // One sync for the thousands of files of a layer.
        rustix::fs::syncfs(&dir).map_err(|e| ImageError::io("sync", &self.path, e))?;
        std::fs::rename(&self.path, to).map_err(|e| ImageError::io("move layer to", to, e))?;
        let parent = to.parent().unwrap_or(to);
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| ImageError::io("sync", parent, e))
        // The drop finds nothing at the old path.
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let trash = self.path.parent().and_then(Path::parent).map(trash).unwrap_or_default();
        if let Err(error) = remove::soon(&self.path, &trash) {
            // Log: It could not be removed.
            // Do: See `error`.
            tracing::warn!(path = %self.path.display(), %error, "staging directory stays until the next start");
        }
    }
}

/// An unused name in the staging directory.
pub(crate) fn fresh(dir: &Path) -> PathBuf {
    dir.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string())
}

/// A new file in `dir` without a name, to be written and read; the kernel frees it with its last descriptor.
pub(in crate::images) fn nameless(dir: &Path) -> Result<File, ImageError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR);
    file.map(File::from).map_err(|e| ImageError::io("make a temporary file in", dir, e))
}
