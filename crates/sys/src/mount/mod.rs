//! Mounts, by the new mount API: a mount is made detached, as a descriptor, set up, and only then put in its place.
//! Never remembers a mount; what is not attached vanishes with its descriptor.

mod attributes;
mod overlay;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

pub use attributes::{Attributes, Propagation, set_attributes};
pub use overlay::{Layer, Overlay, overlay};

/// Whether what is mounted below a directory comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// This mount only.
    One,
    /// All mounts below, too.
    Recursive,
}

/// A detached copy (bind mount) of the tree at `path`, resolved from `at` (the path may be empty: `at` itself).
///
/// # Errors
/// The kernel's.
pub fn clone_tree(at: BorrowedFd<'_>, path: &Path, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if depth == Depth::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(at, path, flags)?)
}

/// A detached tmpfs with the given mode of its root, limited to `size` bytes if given (half of the memory otherwise);
/// nosuid and nodev.
///
/// # Errors
/// The kernel's.
pub fn tmpfs(size: Option<u64>, mode: u32) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(size) = size {
        fsconfig_set_string(context.as_fd(), "size", size.to_string())?;
    }
    fsconfig_set_string(context.as_fd(), "mode", format!("{mode:o}"))?;
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Puts a detached mount at `target`. A symbolic link there is not followed.
///
/// # Errors
/// The kernel's; `NotFound` when there is no target.
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Puts a detached mount over the file or directory that `target` is open on (`O_PATH` is enough).
///
/// # Errors
/// The kernel's.
pub fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Bind mount in one step.
///
/// # Errors
/// As [`clone_tree`] and [`attach`].
pub fn bind(source: &Path, target: &Path, depth: Depth) -> io::Result<()> {
    let tree = clone_tree(CWD, source, depth)?;
    attach(tree.as_fd(), target)
}

/// Takes the topmost mount at `target` out of the tree, at once; it ends when its last user has gone. `false` when
/// nothing is mounted there or the path does not exist, so that tearing down can be repeated.
///
/// # Errors
/// The kernel's others.
pub fn unmount_detach(target: &Path) -> io::Result<bool> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podwright-sys-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn sub(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            for name in ["target", "merged"] {
                let _ = unmount_detach(&self.0.join(name));
            }
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_bind_mount_can_be_made_read_only_before_it_is_seen() {
        let dir = Dir::new("bind");
        let (source, target) = (dir.sub("source"), dir.sub("target"));
        std::fs::write(source.join("file"), "x").unwrap();
        let tree = clone_tree(CWD, &source, Depth::Recursive).unwrap();
        let attributes =
            Attributes { read_only: true, propagation: Some(Propagation::Private), ..Attributes::default() };
        set_attributes(tree.as_fd(), &attributes, Depth::Recursive).unwrap();
        attach(tree.as_fd(), &target).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "x");
        let refused = std::fs::write(target.join("file"), "y").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(unmount_detach(&target).unwrap());
        assert!(!unmount_detach(&target).unwrap());
        assert!(!unmount_detach(&dir.0.join("missing")).unwrap());
    }

    #[test]
    fn a_tmpfs_has_its_size() {
        let dir = Dir::new("tmpfs");
        let target = dir.sub("target");
        let tree = tmpfs(Some(64 * 1024), 0o1777).unwrap();
        let handle = crate::path::open_root(&target).unwrap();
        attach_at(tree.as_fd(), handle.as_fd()).unwrap();
        let full = std::fs::write(target.join("file"), vec![0; 128 * 1024]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn an_overlay_of_more_layers_than_one_option_string_holds() {
        let dir = Dir::new("overlay");
        let layers: Vec<PathBuf> =
            (0..60).map(|number| dir.sub(&format!("{}{number}", "l".repeat(90)))).collect();
        for (number, layer) in layers.iter().enumerate() {
            std::fs::write(layer.join("top"), number.to_string()).unwrap();
            std::fs::write(layer.join(format!("only{number}")), "").unwrap();
        }
        let lower: Vec<Layer<'_>> = layers.iter().map(|path| Layer::Path(path)).collect();
        let (upper, work, merged) = (dir.sub("upper"), dir.sub("work"), dir.sub("merged"));
        let request = Overlay { lower: &lower, upper: Some((&upper, &work)), ..Overlay::default() };
        attach(overlay(&request).unwrap().as_fd(), &merged).unwrap();
        assert_eq!(std::fs::read_to_string(merged.join("top")).unwrap(), "0");
        assert!(merged.join("only59").exists());
        std::fs::write(merged.join("new"), "").unwrap();
        assert!(upper.join("new").exists());
    }
}
