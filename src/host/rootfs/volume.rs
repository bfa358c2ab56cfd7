//! Mounts that are volumes: an image, its layers without anything writable on top; a path of the host with mapped ids.

use super::idmap::{IdMap, directory, with_mapped};
use super::{Context, RootfsError, checks_options, lacks_lowerdir_plus, mount_by_page};
use crate::host::mountinfo;
use crate::host::offload::OffThread;
use podwright_sys::userns::{self, Propagation, Reach};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MoveMountFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// For mount(2). Devices and others' rights in an image are nothing that a volume should lend.
pub(super) const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NODEV).union(MountFlags::NOSUID);
/// The same for mount_setattr(2).
const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID);

/// Mounts `lowers` (bottom layer first) on `target`, read-only, with ids mapped if a map is given. overlayfs wants two
/// layers where there is no upper directory: `empty`, an empty directory, lies below a single one. Each option is
/// `key=value`, as of an [`Overlay`](super::Overlay).
///
/// # Errors
/// When there is no layer, a directory is missing or the kernel refuses; nothing is left mounted then.
pub fn mount_read_only(
    _: &OffThread,
    lowers: &[PathBuf],
    empty: &Path,
    target: &Path,
    map: Option<&IdMap>,
    options: &[&str],
) -> Result<(), RootfsError> {
    let padded;
    let lowers = match lowers {
        [] => return Err(RootfsError::NoLayers { target: target.to_owned() }),
        [one] => {
            padded = [empty.to_owned(), one.clone()];
            &padded
        }
        many => many,
    };
    match map {
        Some(map) => with_mapped(lowers, map, target, |lowers| mount_lowers(lowers, target, options)),
        None => mount_lowers(lowers, target, options),
    }
}

fn mount_lowers(lowers: &[PathBuf], target: &Path, options: &[&str]) -> Result<(), RootfsError> {
    if !checks_options() {
        return mount_by_page(lowers, None, target, options);
    }
    match mount_by_fsconfig(lowers, target, options) {
        Err(e) if lacks_lowerdir_plus(&e) => mount_by_page(lowers, None, target, options),
        done => done,
    }
}

fn mount_by_fsconfig(lowers: &[PathBuf], target: &Path, options: &[&str]) -> Result<(), RootfsError> {
    let mut context = Context::open("overlay", target)?;
    context.set("source", "overlay")?;
    for lower in lowers.iter().rev() {
        context.set_path("lowerdir+", lower)?;
    }
    for option in options {
        context.set_option(option)?;
    }
    context.finish(ATTRIBUTES)
}

/// A mount that is attached nowhere, and goes away when it is dropped.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
    /// Whether it is one of a directory, and so goes on one.
    pub is_dir: bool,
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl Detached {
    /// One that another process made.
    #[must_use]
    pub fn of(mount: OwnedFd, is_dir: bool) -> Self {
        Self { mount, is_dir }
    }

    /// Mounts it on `target`, which is of the same kind.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, target: &Path) -> Result<(), RootfsError> {
        rustix::mount::move_mount(&self.mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| directory("mount on", target)(e.into()))
    }
}

/// Copies the mount of `place`, whose path is `source`, a file or a directory with all that is mounted below it, with ids mapped. What is
/// mounted below keeps its own ids where its file system cannot map them. With `follows`, what is mounted in the source
/// later is seen too; nothing that happens to the copy reaches the source. Blocking, for as long as the source's file
/// system does not answer.
///
/// # Errors
/// [`RootfsError::Volume`] when the source's file system cannot map ids.
pub fn clone_mapped(
    place: BorrowedFd<'_>,
    source: &Path,
    map: &IdMap,
    follows: bool,
) -> Result<Detached, RootfsError> {
    let propagation = if follows { Propagation::Slave } else { Propagation::Private };
    let opened = |cause: Errno| RootfsError::Open { path: source.to_owned(), cause: cause.into() };
    let failed = |cause: std::io::Error| volume_error(source, cause);
    let mode = rustix::fs::fstat(place).map_err(opened)?.st_mode;
    let mount = userns::clone_mount(place, Reach::Tree).map_err(failed)?;
    let map = |reach| userns::map_mount(mount.as_fd(), map.namespace().as_fd(), propagation, reach);
    if map(Reach::Tree).is_err() {
        userns::set_propagation(mount.as_fd(), propagation).map_err(failed)?;
        map(Reach::Mount).map_err(failed)?;
    }
    let is_dir = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory;
    Ok(Detached { mount, is_dir })
}

fn volume_error(source: &Path, cause: std::io::Error) -> RootfsError {
    let why = match Errno::from_io_error(&cause) {
        Some(Errno::NOSYS) => "the kernel knows no mounts with mapped ids (Linux 5.12)",
        Some(Errno::INVAL) => "its file system, or this kernel's version of it, does not support mapped ids",
        Some(Errno::PERM) => "it is mounted with mapped ids already, or its file system does not allow it",
        _ => "a mount with mapped ids was refused",
    };
    let mounts = mountinfo::read().unwrap_or_default();
    let file_system = mountinfo::holding(&mounts, source).map_or("unknown", |mount| &mount.fstype).to_owned();
    RootfsError::Volume { source_path: source.to_owned(), file_system, why, cause }
}

/// Tries whether a tmpfs can be mounted with mapped ids (Linux 6.3). Mounts none anywhere.
pub(super) fn supports_tmpfs(map: &IdMap) -> Result<(), RootfsError> {
    let tmpfs = Context::open("tmpfs", Path::new("tmpfs"))?.detached(MountAttrFlags::empty())?;
    userns::map_mount(tmpfs.as_fd(), map.namespace().as_fd(), Propagation::Private, Reach::Mount)
        .map_err(|cause| volume_error(Path::new("tmpfs"), cause))
}

#[cfg(test)]
mod tests {
    use super::super::{IdRange, unmount};
    use super::*;
    use crate::host::offload::here;
    use rustix::fs::{Mode, OFlags};
    use std::fs;

    fn bind_mapped(source: &Path, target: &Path, map: &IdMap, follows: bool) -> Result<(), RootfsError> {
        let place = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        clone_mapped(place.as_fd(), source, map, follows)?.attach(target)
    }

    type Mount = fn(&[PathBuf], &Path, &Path) -> Result<(), RootfsError>;

    fn as_they_are(lowers: &[PathBuf], empty: &Path, target: &Path) -> Result<(), RootfsError> {
        mount_read_only(&here(), lowers, empty, target, None, &[])
    }

    fn map() -> IdMap {
        let range = vec![IdRange { inside: 0, outside: 300_000, count: 65_536 }];
        IdMap::new(range.clone(), range).unwrap()
    }

    fn owner(path: &Path) -> u32 {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).unwrap().uid()
    }

    fn by_page(lowers: &[PathBuf], empty: &Path, target: &Path) -> Result<(), RootfsError> {
        let mut lowers = lowers.to_vec();
        if lowers.len() == 1 {
            lowers.insert(0, empty.to_owned());
        }
        mount_by_page(&lowers, None, target, &[])
    }

    #[test]
    fn layers_are_seen_merged_and_nothing_can_be_written() {
        for (layers, mount) in [(1, as_they_are as Mount), (3, as_they_are), (1, by_page), (3, by_page)] {
            let root = tempfile::tempdir().unwrap();
            let lowers: Vec<_> = (0..layers).map(|i| root.path().join(format!("layer{i}"))).collect();
            for (i, lower) in lowers.iter().enumerate() {
                fs::create_dir(lower).unwrap();
                fs::write(lower.join("who"), i.to_string()).unwrap();
            }
            let (empty, target) = (root.path().join("empty"), root.path().join("target"));
            fs::create_dir(&empty).unwrap();
            fs::create_dir(&target).unwrap();
            mount(&lowers, &empty, &target).unwrap();
            let who = fs::read_to_string(target.join("who"));
            let written = fs::write(target.join("new"), "x");
            unmount(&here(), &target).unwrap();
            assert_eq!(who.unwrap(), (layers - 1).to_string());
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
    }

    #[test]
    fn an_image_without_layers_is_no_volume() {
        let error = as_they_are(&[], Path::new("/e"), Path::new("/t")).unwrap_err();
        assert!(matches!(error, RootfsError::NoLayers { .. }));
    }

    #[test]
    fn an_image_volume_shows_mapped_ids() {
        for layers in [1, 3] {
            let root = tempfile::tempdir().unwrap();
            let lowers: Vec<_> = (0..layers).map(|i| root.path().join(format!("layer{i}"))).collect();
            for (i, lower) in (1..).zip(&lowers) {
                fs::create_dir(lower).unwrap();
                fs::write(lower.join("who"), "").unwrap();
                std::os::unix::fs::chown(lower.join("who"), Some(i), Some(i)).unwrap();
            }
            let (empty, target) = (root.path().join("empty"), root.path().join("target"));
            fs::create_dir(&empty).unwrap();
            fs::create_dir(&target).unwrap();
            mount_read_only(&here(), &lowers, &empty, &target, Some(&map()), &[]).unwrap();
            let found = owner(&target.join("who"));
            unmount(&here(), &target).unwrap();
            assert_eq!(found, 300_000 + layers);
        }
    }

    #[test]
    fn a_path_of_the_host_is_bound_with_mapped_ids_and_what_is_below_it() {
        let root = tempfile::tempdir().unwrap();
        let (source, target) = (root.path().join("source"), root.path().join("target"));
        for dir in [source.join("tmpfs"), source.join("proc"), target.clone()] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(source.join("file"), "").unwrap();
        super::super::mount_shm(&here(), &source.join("tmpfs"), 1 << 20, None).unwrap();
        bind_mapped(&source, &target, &map(), false).unwrap();
        let (below, file) = (owner(&target.join("tmpfs")), owner(&target.join("file")));
        unmount(&here(), &target).unwrap();
        assert_eq!((below, file), (300_000, 300_000));
        assert!(super::super::is_mounted(&source.join("tmpfs")).unwrap(), "the source keeps its mounts");
        // procfs cannot: its own ids are seen there, and the rest is mapped.
        rustix::mount::mount_bind("/proc/sys", source.join("proc")).unwrap();
        bind_mapped(&source, &target, &map(), true).unwrap();
        let (below, file) = (owner(&target.join("proc")), owner(&target.join("file")));
        unmount(&here(), &target).unwrap();
        unmount(&here(), &source.join("proc")).unwrap();
        unmount(&here(), &source.join("tmpfs")).unwrap();
        assert_eq!((below, file), (0, 300_000));
        // A file.
        fs::write(root.path().join("place"), "").unwrap();
        bind_mapped(&source.join("file"), &root.path().join("place"), &map(), false).unwrap();
        let found = owner(&root.path().join("place"));
        unmount(&here(), &root.path().join("place")).unwrap();
        assert_eq!(found, 300_000);
    }

    #[test]
    fn a_file_system_that_cannot_map_ids_is_named_with_its_path() {
        let root = tempfile::tempdir().unwrap();
        let error = bind_mapped(Path::new("/proc/sys"), root.path(), &map(), false).unwrap_err();
        assert!(matches!(error, RootfsError::Volume { .. }), "{error}");
        assert!(error.to_string().contains("/proc/sys (proc)"), "{error}");
        supports_tmpfs(&map()).unwrap();
    }
}
