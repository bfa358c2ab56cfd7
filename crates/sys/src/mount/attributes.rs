//! Attributes of mounts that exist, detached or attached: mount_setattr(2), Linux 5.12.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Depth;

/// What is to be set; `false` and `None` leave as is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// No writing through this mount.
    pub read_only: bool,
    /// Set-user-id bits have no effect.
    pub no_suid: bool,
    /// Device files have no effect.
    pub no_dev: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
    /// How mounts below spread.
    pub propagation: Option<Propagation>,
    /// Map owners as this user namespace maps its ids. Only once, on a mount that is still detached.
    pub idmap: Option<BorrowedFd<'a>>,
}

/// Whether mounts made below a mount appear in its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the original only.
    Slave,
    /// Both ways.
    Shared,
}

/// Sets attributes of the mount that `tree` is the root of.
///
/// # Errors
/// The kernel's; `InvalidInput` for an idmap that the filesystem does not support.
pub fn set_attributes(tree: BorrowedFd<'_>, attributes: &Attributes<'_>, depth: Depth) -> io::Result<()> {
    let bits = [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, libc::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, libc::MOUNT_ATTR_NODEV),
        (attributes.no_exec, libc::MOUNT_ATTR_NOEXEC),
        (attributes.idmap.is_some(), libc::MOUNT_ATTR_IDMAP),
    ];
    let propagation = match attributes.propagation {
        None => 0,
        Some(Propagation::Private) => libc::MS_PRIVATE,
        Some(Propagation::Slave) => libc::MS_SLAVE,
        Some(Propagation::Shared) => libc::MS_SHARED,
    };
    let userns = attributes.idmap.map_or(0, |namespace| namespace.as_raw_fd());
    let request = libc::mount_attr {
        attr_set: bits.iter().filter(|(wanted, _)| *wanted).fold(0, |set, (_, bit)| set | bit),
        attr_clr: 0,
        propagation,
        userns_fd: u64::try_from(userns).map_err(io::Error::other)?,
    };
    let flags = match depth {
        Depth::One => libc::AT_EMPTY_PATH,
        Depth::Recursive => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    let (pointer, size) = (&raw const request, size_of::<libc::mount_attr>());
    // SAFETY: the path is an empty C string, and the kernel reads `size` bytes of a request that lives across the call.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, pointer, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
