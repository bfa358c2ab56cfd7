//! User namespaces that hold a mapping of ids and nothing else, and mounts that show files through one.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, waitpid};

/// One range of a mapping, as a line of `/proc/<pid>/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Makes a user namespace with these mappings. It lives as long as the descriptor, or what is made of it.
///
/// A child that shares nothing but a copy of the caller's memory lives for the length of this call, since a process
/// of several threads cannot enter a user namespace itself.
///
/// # Errors
/// The kernel's: no user namespaces, no room for one more, or a mapping that it does not take.
pub fn with_mappings(uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    // With every signal blocked, the child runs none of our handlers.
    let mut before = SigSet::empty();
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
    let child = clone_into_user_namespace();
    let restored = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let child = Child(child?);
    restored?;
    let proc = format!("/proc/{}", child.0);
    std::fs::write(format!("{proc}/uid_map"), lines(uids))?;
    std::fs::write(format!("{proc}/gid_map"), lines(gids))?;
    Ok(std::fs::File::open(format!("{proc}/ns/user"))?.into())
}

fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
}

/// Killed and reaped when dropped.
struct Child(nix::unistd::Pid);

impl Drop for Child {
    fn drop(&mut self) {
        // A child that is gone already only has to be reaped. It has no exit signal, so it takes __WALL.
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
        while waitpid(self.0, Some(WaitPidFlag::__WALL)) == Err(nix::errno::Errno::EINTR) {}
    }
}

fn clone_into_user_namespace() -> io::Result<nix::unistd::Pid> {
    let parent = rustix::process::getpid();
    // No exit signal: nobody who awaits children by SIGCHLD is to notice this one.
    let flags = libc::c_long::from(libc::CLONE_NEWUSER);
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of the memory and goes on with this stack. It
    // must not take a lock or allocate, which `idle` does not.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => idle(parent.as_raw_pid()),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Ok(nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// The child: waits to be killed, also when the thread that made it ends without doing so.
fn idle(parent: i32) -> ! {
    // SAFETY: prctl takes integers here.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: getppid takes nothing.
        if unsafe { libc::getppid() } != parent {
            // SAFETY: _exit takes an integer and does not return.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: pause takes nothing.
        unsafe { libc::pause() };
    }
}

/// Makes a mount that is attached nowhere show its files with ids mapped: what is inside's on disk is outside's here.
/// The mount becomes private.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12, `EINVAL` for a file system that cannot.
pub fn map_mount(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    let pointer: *const libc::mount_attr = &attributes;
    let size = size_of::<libc::mount_attr>();
    let empty = c"".as_ptr();
    // SAFETY: the path is an empty C string, the pointer is to a mount_attr of that size, both live across the call.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), empty, libc::AT_EMPTY_PATH, pointer, size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Clones the mount below an open directory, without what is mounted inside it; the clone is attached nowhere.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.2.
pub fn clone_mount(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, c"", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: IdRange = IdRange { inside: 0, outside: 200_000, count: 65_536 };

    #[test]
    fn a_namespace_has_its_mapping_and_no_process() {
        let namespace = with_mappings(&[RANGE], &[RANGE]).unwrap();
        let text = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(text.to_string_lossy().starts_with("user:["), "{}", text.display());
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_ne!(text, own);
        let members = std::fs::read_dir("/proc").unwrap().flatten();
        let inside =
            members.filter(|e| std::fs::read_link(e.path().join("ns/user")).is_ok_and(|n| n == text));
        assert_eq!(inside.count(), 0);
    }

    #[test]
    fn a_mapping_that_the_kernel_does_not_take_is_an_error() {
        let twice = [RANGE, RANGE];
        assert!(with_mappings(&twice, &[RANGE]).is_err());
        assert!(with_mappings(&[IdRange { count: 0, ..RANGE }], &[RANGE]).is_err());
    }
}
