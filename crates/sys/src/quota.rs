//! Project ids of directories (FS_IOC_FSSETXATTR), and usage and limits of a project on a file system (quotactl_fd). No
//! policy: the caller assigns ids.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// linux/quota.h, PRJQUOTA.
const PRJQUOTA: u32 = 2;
/// linux/quota.h.
const Q_GETQUOTA: u32 = 0x80_0007;
/// linux/quota.h.
const Q_SETQUOTA: u32 = 0x80_0008;
/// linux/dqblk_xfs.h, XQM_CMD(8): what is on, of every file system with quotas, not only XFS.
const Q_XGETQSTATV: u32 = 0x5808;
/// linux/quota.h, QIF_BLIMITS | QIF_ILIMITS: the fields of Q_SETQUOTA that count.
const QIF_LIMITS: u32 = 1 | 4;
/// linux/quota.h, QIF_DQBLKSIZE: the unit of space limits, bytes. Used space is in bytes.
const LIMIT_UNIT: u64 = 1024;
/// linux/dqblk_xfs.h, FS_QUOTA_PDQ_ACCT.
const ACCOUNTED: u16 = 1 << 4;
/// linux/dqblk_xfs.h, FS_QUOTA_PDQ_ENFD.
const ENFORCED: u16 = 1 << 5;
/// linux/fs.h, FS_XFLAG_PROJINHERIT: new entries of the directory get its project id.
const XFLAG_PROJINHERIT: u32 = 0x200;
/// linux/fs.h, _IOR('X', 31, struct fsxattr).
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// linux/fs.h, _IOW('X', 32, struct fsxattr).
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// linux/fs.h, struct fsxattr.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// linux/dqblk_xfs.h, struct fs_quota_statv; only its head is read.
#[repr(C)]
struct QuotaState {
    version: i8,
    pad: u8,
    flags: u16,
    rest: [u32; 39],
}

/// A file system's support of project quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectQuota {
    /// It keeps no usage of projects.
    Off,
    /// It keeps usage, limits have no effect.
    Accounted,
    /// It keeps usage and enforces limits.
    Enforced,
}

/// Usage and limits of a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Hard limit of bytes; 0: none.
    pub bytes_limit: u64,
    /// Hard limit of inodes; 0: none.
    pub inodes_limit: u64,
}

/// The project id of an open file or directory; 0: none.
///
/// # Errors
/// The kernel's; `ENOTTY` where the file system has no project ids.
pub fn project_of(file: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(get_xattr(file)?.projid)
}

/// Gives an open directory a project id, which new entries inherit.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` or `ENOTTY` where the file system has no project ids.
pub fn set_project(directory: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let mut attributes = get_xattr(directory)?;
    attributes.projid = id;
    attributes.xflags |= XFLAG_PROJINHERIT;
    let pointer: *mut FsXattr = &mut attributes;
    // SAFETY: the code takes a pointer to a struct fsxattr, which lives across the call.
    if unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR.into(), pointer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn get_xattr(file: BorrowedFd<'_>) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    let pointer: *mut FsXattr = &mut attributes;
    // SAFETY: the code takes a pointer to a struct fsxattr, which lives across the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR.into(), pointer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes)
}

/// Support of project quotas on the file system of an open file.
///
/// # Errors
/// The kernel's, but not that it has no quotas or no such call (before Linux 5.14): that is [`ProjectQuota::Off`].
pub fn project_quota(file: BorrowedFd<'_>) -> io::Result<ProjectQuota> {
    // FS_QSTATV_VERSION1.
    let mut state = QuotaState { version: 1, pad: 0, flags: 0, rest: [0; 39] };
    let pointer: *mut QuotaState = &mut state;
    match quotactl(file, Q_XGETQSTATV, 0, pointer.cast()) {
        Ok(()) if state.flags & ENFORCED != 0 => Ok(ProjectQuota::Enforced),
        Ok(()) if state.flags & ACCOUNTED != 0 => Ok(ProjectQuota::Accounted),
        Ok(()) => Ok(ProjectQuota::Off),
        Err(error) => match error.raw_os_error() {
            // No such call, a file system without quotas (in kernels of several ages), one without a block device.
            Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ESRCH | libc::EINVAL | libc::ENODEV) => {
                Ok(ProjectQuota::Off)
            }
            _ => Err(error),
        },
    }
}

/// Usage of a project on the file system of an open file. Reads the kernel's own count, never the tree.
///
/// # Errors
/// The kernel's; `ESRCH` where quotas are off.
pub fn project_usage(file: BorrowedFd<'_>, id: u32) -> io::Result<ProjectUsage> {
    let mut quota = empty();
    let pointer: *mut libc::dqblk = &mut quota;
    match quotactl(file, Q_GETQUOTA, id, pointer.cast()) {
        Ok(()) => {}
        // XFS has no entry for a project that never had a file.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(ProjectUsage::default()),
        Err(error) => return Err(error),
    }
    Ok(ProjectUsage {
        bytes: quota.dqb_curspace,
        inodes: quota.dqb_curinodes,
        bytes_limit: quota.dqb_bhardlimit.saturating_mul(LIMIT_UNIT),
        inodes_limit: quota.dqb_ihardlimit,
    })
}

/// Sets a project's hard limits on the file system of an open file; 0: none. Bytes are rounded up to 1 KiB.
///
/// # Errors
/// The kernel's; `ESRCH` where quotas are off.
pub fn set_project_limits(file: BorrowedFd<'_>, id: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let mut quota = empty();
    quota.dqb_bhardlimit = bytes.div_ceil(LIMIT_UNIT);
    quota.dqb_ihardlimit = inodes;
    quota.dqb_valid = QIF_LIMITS;
    let pointer: *mut libc::dqblk = &mut quota;
    quotactl(file, Q_SETQUOTA, id, pointer.cast())
}

fn empty() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// quotactl_fd(2) on project quotas. `argument` must point to what `command` takes; only the functions above call it.
fn quotactl(file: BorrowedFd<'_>, command: u32, id: u32, argument: *mut libc::c_void) -> io::Result<()> {
    // linux/quota.h, QCMD.
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: every caller passes a pointer to the structure of its command, which lives across the call.
    if unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        // The sizes are part of the ioctl codes, and of linux/dqblk_xfs.h.
        assert_eq!(size_of::<FsXattr>(), 28);
        assert_eq!(FS_IOC_FSGETXATTR >> 16 & 0x3fff, 28);
        assert_eq!(size_of::<QuotaState>(), 160);
    }

    #[test]
    fn a_file_system_without_quotas_says_off() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(project_quota(proc.as_fd()).unwrap(), ProjectQuota::Off);
        assert!(project_usage(proc.as_fd(), 1).is_err());
        assert!(set_project(proc.as_fd(), 1).is_err());
    }
}
