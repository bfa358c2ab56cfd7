//! A directory for experiments on the file system of a configured directory. Removed when dropped.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A directory that others cannot read.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

/// The nearest existing directory above a path, or the path itself.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

impl Scratch {
    /// Creates one in `wanted`, or in the nearest existing directory above it.
    pub(super) fn near(wanted: &Path) -> io::Result<Self> {
        let path = existing(wanted).join(format!(".podwright-check-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let made = Self(path);
        // As the daemon's own: a container in a user namespace passes through it as nobody on the host.
        std::fs::set_permissions(&made.0, std::fs::Permissions::from_mode(0o711))?;
        Ok(made)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A directory in it.
    pub(super) fn make(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = crate::host::remove::tree(&self.0) {
            // Log: A directory of `podwright check` stays.
            // Do: Delete it.
            tracing::warn!(directory = %self.0.display(), %error, "cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_beside_what_is_there_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::near(&dir.path().join("not/there/yet")).unwrap();
        assert_eq!(scratch.path().parent(), Some(dir.path()));
        assert!(scratch.make("in").unwrap().is_dir());
        drop(scratch);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
