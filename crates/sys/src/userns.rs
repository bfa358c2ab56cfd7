//! User namespaces that only hold a mapping of ids, and mounts that show files through one.

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

/// Creates a user namespace with these mappings. It lives as long as the descriptor, or what is made of it.
///
/// A child that shares only a copy of the caller's memory lives for the length of this call, since a process of several
/// threads cannot enter a user namespace itself.
///
/// # Errors
/// The kernel's: no user namespaces, no room for one more, or an invalid mapping.
pub fn with_mappings(uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    open(&child_with_mappings(0, uids, gids)?, "user")
}

/// The same, and a UTS namespace that belongs to it.
///
/// # Errors
/// As [`with_mappings`].
pub fn with_mappings_and_uts(uids: &[IdRange], gids: &[IdRange]) -> io::Result<(OwnedFd, OwnedFd)> {
    let child = child_with_mappings(libc::CLONE_NEWUTS, uids, gids)?;
    Ok((open(&child, "user")?, open(&child, "uts")?))
}

/// A descriptor of one of its namespaces.
fn open(child: &Child, kind: &str) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/{}/ns/{kind}", child.0))?.into())
}

/// A child in a user namespace with these mappings, and in new namespaces of these kinds (`CLONE_NEW*`).
fn child_with_mappings(kinds: libc::c_int, uids: &[IdRange], gids: &[IdRange]) -> io::Result<Child> {
    // With every signal blocked, the child runs none of our handlers.
    let mut before = SigSet::empty();
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
    let child = owned_by(owner(uids), || clone_into_user_namespace(kinds));
    let restored = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let child = Child(child?);
    restored?;
    let proc = format!("/proc/{}", child.0);
    std::fs::write(format!("{proc}/uid_map"), lines(uids))?;
    std::fs::write(format!("{proc}/gid_map"), lines(gids))?;
    Ok(child)
}

/// Whose the namespace becomes: root's inside. The kernel counts what is made in a user namespace (others, inotify
/// instances) as its owner's, too, within one limit for each user: pods must not use up that of the host's root.
fn owner(uids: &[IdRange]) -> Option<u32> {
    uids.iter().find(|range| range.inside == 0).or(uids.first()).map(|range| range.outside)
}

/// Does something with another effective user and the same capabilities.
fn owned_by<T>(owner: Option<u32>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use rustix::fs::Uid;
    use rustix::process::{geteuid, getuid};
    use rustix::thread::{capabilities, set_capabilities, set_thread_res_uid};
    let own = geteuid();
    let Some(owner) = owner.filter(|_| own.is_root() && getuid().is_root()) else { return act() };
    let rights = capabilities(None)?;
    // Of this thread alone. The saved one is the way back.
    set_thread_res_uid(own, Uid::from_raw(owner), own)?;
    let done = set_capabilities(None, rights).map_err(io::Error::from).and_then(|()| act());
    set_thread_res_uid(own, own, own)?;
    set_capabilities(None, rights)?;
    done
}

fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
}

/// Killed and reaped when dropped.
struct Child(nix::unistd::Pid);

impl Drop for Child {
    fn drop(&mut self) {
        // A child that is already gone only needs reaping. It has no exit signal, hence __WALL.
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
        while waitpid(self.0, Some(WaitPidFlag::__WALL)) == Err(nix::errno::Errno::EINTR) {}
    }
}

fn clone_into_user_namespace(kinds: libc::c_int) -> io::Result<nix::unistd::Pid> {
    let parent = rustix::process::getpid();
    // No exit signal: code that awaits children by SIGCHLD must not notice this one.
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | kinds);
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of the memory and goes on with this stack. It
    // must not take a lock or allocate, which `idle` does not.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => idle(parent.as_raw_pid()),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Ok(nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// The child: waits to be killed, also if the thread that made it ends without doing so. It keeps no descriptor: a
/// daemon's lock, for one, must be free the moment the daemon is gone.
fn idle(parent: i32) -> ! {
    // SAFETY: prctl takes integers here.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: close_range takes integers; this process uses no descriptor, and its parent's are its parent's own.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
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

/// How far a change of a mount reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The mount itself.
    Mount,
    /// The mount and all that is mounted below it. Either all change or none.
    Tree,
}

/// Propagation between a mount and its clone when something is mounted in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nothing.
    Private,
    /// To the clone.
    Slave,
}

/// Makes a detached mount show its files with mapped ids: inside's on disk are outside's here.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12, `EINVAL` for a file system that cannot.
pub fn map_mount(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    propagation: Propagation,
    reach: Reach,
) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, userns_fd, propagation, reach)
}

/// Sets what passes between a mount with all that is mounted below it and those that they were cloned from.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12.
pub fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> io::Result<()> {
    set_attributes(mount, 0, 0, propagation, Reach::Tree)
}

/// Makes a detached mount read-only, without setuid rights or devices.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12.
pub fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(mount, flags, 0, Propagation::Private, Reach::Mount)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    attr_set: u64,
    userns_fd: u64,
    propagation: Propagation,
    reach: Reach,
) -> io::Result<()> {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
    };
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd };
    let flags = match reach {
        Reach::Mount => libc::AT_EMPTY_PATH,
        Reach::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    let pointer: *const libc::mount_attr = &attributes;
    let size = size_of::<libc::mount_attr>();
    let empty = c"".as_ptr();
    // SAFETY: the path is an empty C string, the pointer is to a mount_attr of that size, both live across the call.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), empty, flags, pointer, size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Clones the mount below an open file or directory, with what is mounted inside it or without; the clone is attached
/// nowhere.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.2.
pub fn clone_mount(place: BorrowedFd<'_>, reach: Reach) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let flags = match reach {
        Reach::Mount => flags,
        Reach::Tree => flags | OpenTreeFlags::AT_RECURSIVE,
    };
    Ok(open_tree(place, c"", flags)?)
}

/// Moves the calling process, which has one thread, into a user namespace. It has every right there and keeps its ids:
/// if they exist only on the host, it is nobody inside.
///
/// # Errors
/// The kernel's; `InvalidInput` for a process of several threads, or what is no user namespace.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))?)
}

/// Makes the calling process root of its user namespace, without other groups.
///
/// # Errors
/// The kernel's, when the namespace maps no such ids.
pub fn become_root() -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// linux/nsfs.h.
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
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
    fn it_is_its_own_roots_and_this_thread_keeps_its_rights() {
        let before = rustix::thread::capabilities(None).unwrap();
        let (user, _) = with_mappings_and_uts(&[RANGE], &[RANGE]).unwrap();
        assert!(rustix::process::geteuid().is_root());
        assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
        let mut owner: libc::uid_t = 0;
        // SAFETY: the ioctl writes one uid.
        assert_eq!(unsafe { libc::ioctl(user.as_raw_fd(), NS_GET_OWNER_UID, &raw mut owner) }, 0);
        assert_eq!(owner, RANGE.outside);
    }

    #[test]
    fn a_uts_namespace_comes_with_it_and_outlives_the_child() {
        let (user, uts) = with_mappings_and_uts(&[RANGE], &[RANGE]).unwrap();
        for (namespace, kind) in [(user, "user"), (uts, "uts")] {
            let text = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
            assert!(text.to_string_lossy().starts_with(&format!("{kind}:[")), "{}", text.display());
            assert_ne!(text, std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
        }
    }

    #[test]
    fn a_mapping_that_the_kernel_does_not_take_is_an_error() {
        let twice = [RANGE, RANGE];
        assert!(with_mappings(&twice, &[RANGE]).is_err());
        assert!(with_mappings(&[IdRange { count: 0, ..RANGE }], &[RANGE]).is_err());
    }
}
