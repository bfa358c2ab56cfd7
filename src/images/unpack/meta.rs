//! Owner, mode, times and extended attributes of a new entry. Works on descriptors; never resolves a path.

use crate::images::error::ImageError;
use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd};
use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::path::Path;

/// The overlay attribute of a directory that hides those below.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Metadata of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether a layer's attribute is set: overlay's own would steer the mount; `trusted` and SELinux labels belong to the
/// host.
fn wanted(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && name != b"security.selinux"
}

/// Whether a failure to set `name` is acceptable: file systems without user attributes or ACLs, and `user.*` on
/// anything but files and directories.
fn tolerable(name: &[u8], error: Errno) -> bool {
    error == Errno::NOTSUP || (error == Errno::PERM && name.starts_with(b"user."))
}

/// Times with only mtime given; atime is the same.
pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets everything but times on an open file or directory: owner first, as chown clears setuid bits and capabilities.
pub(super) fn apply_fd(fd: BorrowedFd<'_>, meta: &Meta, chown: bool, path: &Path) -> Result<(), ImageError> {
    if chown {
        fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(|e| ImageError::io("chown", path, e))?;
    }
    for (name, value) in meta.xattrs.iter().filter(|(name, _)| wanted(name)) {
        match fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
            Err(e) if !tolerable(name, e) => {
                return Err(ImageError::io("set extended attribute of", path, e));
            }
            _ => {}
        }
    }
    fs::fchmod(fd, Mode::from_raw_mode(meta.mode)).map_err(|e| ImageError::io("chmod", path, e))
}

/// Sets everything on a node that cannot be opened. `parent` and `name` are exact: nothing else works in the layer.
pub(super) fn apply_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    meta: &Meta,
    symlink: bool,
    path: &Path,
) -> Result<(), ImageError> {
    fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(meta.uid)),
        Some(Gid::from_raw(meta.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|e| ImageError::io("chown", path, e))?;
    if meta.xattrs.iter().any(|(name, _)| wanted(name)) {
        let mut link = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        link.extend_from_slice(name);
        for (key, value) in meta.xattrs.iter().filter(|(name, _)| wanted(name)) {
            match fs::lsetxattr(&link[..], &key[..], value, XattrFlags::empty()) {
                Err(e) if !tolerable(key, e) => {
                    return Err(ImageError::io("set extended attribute of", path, e));
                }
                _ => {}
            }
        }
    }
    if !symlink {
        fs::chmodat(parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
            .map_err(|e| ImageError::io("chmod", path, e))?;
    }
    fs::utimensat(parent, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| ImageError::io("set times of", path, e))
}

/// Reads a directory's metadata, without the attributes that a layer may not have.
pub(crate) fn read_dir(dir: impl AsFd) -> Result<Meta, Errno> {
    let stat = fs::fstat(&dir)?;
    let mut names = vec![0u8; fs::flistxattr_query(&dir).unwrap_or(0)];
    let length = if names.is_empty() { 0 } else { fs::flistxattr(&dir, &mut names[..])? };
    let mut xattrs = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty() && wanted(n)) {
        let mut value = vec![0u8; fs::fgetxattr_query(&dir, name)?];
        let length = if value.is_empty() { 0 } else { fs::fgetxattr(&dir, name, &mut value[..])? };
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        xattrs,
    })
}

/// Gives an open directory its metadata, times included.
pub(crate) fn apply_dir(dir: impl AsFd, meta: &Meta, path: &Path) -> Result<(), ImageError> {
    apply_fd(dir.as_fd(), meta, true, path)?;
    fs::futimens(&dir, &times(meta.mtime)).map_err(|e| ImageError::io("set times of", path, e))
}
