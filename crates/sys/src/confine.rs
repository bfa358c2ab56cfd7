//! Removing what the calling process does not need: files, capabilities, being traced.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::userns::{Reach, clone_mount, make_read_only};

/// Inodes of the empty root file system: its root directory. Zero would be no limit.
const NOTHING: &CStr = c"size=4k,nr_inodes=1,mode=0555";

/// Capability numbers are tried up to here; the kernel has 41 of at most 64.
const CAPABILITIES: libc::c_ulong = 64;

/// The calling process's own program, on a read-only mount of its own: whoever reaches it through `/proc/<pid>/exe` of
/// a process that runs it, root of the host included, can only read it.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12, `EINVAL` when the program is not in the caller's mount namespace.
pub fn own_program() -> io::Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let program = openat(CWD, "/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mount = clone_mount(program.as_fd(), Reach::Mount)?;
    make_read_only(mount.as_fd())?;
    Ok(mount)
}

/// Runs a program in place of the calling one, with only its first argument. Returns only on error.
///
/// # Errors
/// The kernel's.
pub fn execute(program: BorrowedFd<'_>, name: &CStr) -> io::Result<std::convert::Infallible> {
    let nothing: [&CStr; 0] = [];
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    Ok(nix::unistd::execveat(program, c"", &[name], &nothing, flags)?)
}

/// Moves the calling thread into a mount namespace with one empty, read-only directory, and nothing below or above it.
///
/// # Errors
/// The kernel's: `PermissionDenied`, or `EINVAL` where the root is the kernel's first file system, from which no OCI
/// runtime can leave either.
pub fn empty_root() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory will do, and this one always exists.
    mount("none", "/proc", "tmpfs", flags, Some(NOTHING))?;
    rustix::process::chdir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies on the new one.
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Moves the calling thread into a cgroup namespace whose root is its current cgroup.
///
/// # Errors
/// The kernel's.
pub fn own_cgroup_namespace() -> io::Result<()> {
    Ok(nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)?)
}

/// Gives up all groups but one's own and every capability, for good: every set is empty, the bounding set included, and
/// no program run brings one back.
///
/// # Errors
/// The kernel's.
pub fn give_up_rights() -> io::Result<()> {
    nix::unistd::setgroups(&[])?;
    drop_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    let none = rustix::thread::CapabilitySet::empty();
    let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

pub(crate) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..CAPABILITIES {
        // SAFETY: prctl takes integers here.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // This kernel does not have it, nor any after it.
            if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Makes the calling process belong to root in procfs, without core dumps, traceable only by those who may trace every
/// process. The kernel resets it when a program is run or ids change.
///
/// # Errors
/// The kernel's.
pub fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Has the kernel kill the calling process when its parent ends, also as process 1 of a PID namespace. The kernel
/// resets it when ids change.
///
/// # Errors
/// The kernel's.
pub fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}
