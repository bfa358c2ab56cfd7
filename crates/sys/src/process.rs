//! Forking, a child's preparation for exec, signals as descriptors, and attributes of the calling process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Forks and runs `body` in the child, which ends with the returned exit code without running destructors of the
/// parent's values.
///
/// # Errors
/// `Unsupported` in a process with several threads (locks of the others would stay locked in the child); otherwise the
/// kernel's.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<u32> {
    if crate::proc::own_threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process with several threads"));
    }
    // SAFETY: this is the only thread, so the child gets memory and locks in a consistent state.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => u32::try_from(child.as_raw()).map_err(io::Error::other),
        nix::unistd::ForkResult::Child => {
            let code = body();
            // SAFETY: _exit takes an integer and does not return.
            unsafe { libc::_exit(code) }
        }
    }
}

/// As [`fork_child`], but the child's parent is the caller's parent. Its pid is that in the caller's namespace; after
/// [`crate::namespace::unshare`] of a PID namespace it is the first of that.
///
/// # Errors
/// As [`fork_child`].
pub fn fork_sibling(body: impl FnOnce() -> i32) -> io::Result<u32> {
    if crate::proc::own_threads()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process with several threads"));
    }
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork, and this is the only thread: the child gets memory and locks in a consistent
    // state, and goes on with this stack.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => {
            let code = body();
            // SAFETY: _exit takes an integer and does not return.
            unsafe { libc::_exit(code) }
        }
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => u32::try_from(pid).map_err(io::Error::other),
    }
}

/// As [`fork_sibling`], with a handle of the child (close-on-exec), and without a look at procfs. The child's parent hears
/// of its end as it hears of the caller's.
///
/// # Errors
/// `InvalidInput` in a process with several threads; otherwise the kernel's.
pub fn fork_held_sibling(body: impl FnOnce() -> i32) -> io::Result<OwnedFd> {
    // Changes nothing, and is refused where there is another thread.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD)?;
    let mut handle: libc::c_int = -1;
    let pointer: *mut libc::c_int = &raw mut handle;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    // SAFETY: without CLONE_VM this is a fork, and this is the only thread: the child gets memory and locks in a consistent
    // state, and goes on with this stack. The kernel writes the handle through the pointer, which lives across the call.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, pointer, 0, 0) } {
        0 => {
            let code = body();
            // SAFETY: _exit takes an integer and does not return.
            unsafe { libc::_exit(code) }
        }
        pid if pid < 0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, for nobody else.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(handle) }),
    }
}

/// Closes every descriptor from `first` on.
///
/// # The caller's duty
/// Not memory-unsafe, but every owner of such a descriptor in this process must be gone or never used again: call it
/// first thing in a process, or in a forked child that keeps nothing.
///
/// # Errors
/// The kernel's (before Linux 5.9 there is no close_range).
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes integers; that no live owner is hit is the caller's duty as documented.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes the descriptors from `first` to `last`, as [`close_from`].
///
/// # Errors
/// The kernel's.
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range takes integers; that no live owner is hit is the caller's duty, as for close_from.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Prevents programs that this process runs from inheriting any descriptor from `first` on that is open now.
///
/// # Errors
/// The kernel's (before Linux 5.11 close_range lacks the flag).
pub fn keep_to_ourselves(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes integers, and with this flag closes nothing here.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Prevents core dumps of this process, whatever its limits are. Programs that it runs have the limits unchanged: exec
/// undoes this.
///
/// # Errors
/// None that is known.
pub fn never_dump_core() -> io::Result<()> {
    // SAFETY: prctl takes integers here.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the program of `command` start with an empty signal mask, and with `oom_score_adj` if given (raising it is
/// always allowed; a refusal is ignored).
pub fn clean_before_exec(command: &mut Command, oom_score_adj: Option<i32>) {
    let adjustment = oom_score_adj.map(|value| value.to_string());
    let prepare = move || {
        SigSet::empty().thread_set_mask()?;
        if let Some(value) = &adjustment {
            let _ = write_own_oom_score(value.as_bytes());
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

fn write_own_oom_score(value: &[u8]) -> rustix::io::Result<()> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let file = openat(CWD, c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value)?;
    Ok(())
}

/// Sets the caller's `oom_score_adj`.
///
/// # Errors
/// `PermissionDenied` when lowering it without CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(value: i32) -> io::Result<()> {
    Ok(write_own_oom_score(value.to_string().as_bytes())?)
}

/// The caller's `oom_score_adj`.
///
/// # Errors
/// When procfs is not mounted.
pub fn oom_score_adj() -> io::Result<i32> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Makes the caller the parent of every orphan among its descendants.
///
/// # Errors
/// The kernel's.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Signals of the calling process, blocked and read from a descriptor instead.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that was read: number, and the sender's pid as far as this pid namespace can name it (0 otherwise).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Signal number.
    pub signal: i32,
    /// Sender; 0 for the kernel and for a process outside the reader's pid namespace.
    pub sender: u32,
}

impl Signals {
    /// Blocks SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP and SIGPIPE and collects them here.
    ///
    /// # Errors
    /// The kernel's, if no descriptor is left.
    pub fn collect() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGPIPE,
        ] {
            set.add(signal);
        }
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal, or `None` when none is pending.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&mut self) -> io::Result<Option<Received>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        let signal = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
        Ok(Some(Received { signal, sender: info.ssi_pid }))
    }
}

/// Blocks every signal that can be blocked, for [`await_signal`].
///
/// # Errors
/// None that is known.
pub fn block_signals() -> io::Result<()> {
    Ok(SigSet::all().thread_set_mask()?)
}

/// Waits for the next blocked signal, without a descriptor.
///
/// # Errors
/// `EINTR` after the process was stopped or traced.
pub fn await_signal() -> io::Result<i32> {
    let set = SigSet::all();
    let pointer: *const libc::sigset_t = set.as_ref();
    // SAFETY: the set is a valid one that lives across the call; no information is asked for.
    match unsafe { libc::sigwaitinfo(pointer, std::ptr::null_mut()) } {
        signal if signal < 0 => Err(io::Error::last_os_error()),
        signal => Ok(signal),
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It returned this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Ended {
    fn from_status(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self::Signaled(signal),
            None => Self::Exited(status.exit_status().unwrap_or_default()),
        }
    }

    /// Exit code in the shell's convention: 128 + n for signal n.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// The signal, if one ended it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled(signal) => Some(signal),
        }
    }
}

/// Reaps any exited child; `None` if there is none now.
///
/// # Errors
/// Only unexpected ones of the kernel: having no child at all is `Ok(None)`.
pub fn reap_any() -> io::Result<Option<(u32, Ended)>> {
    reaped(rustix::process::wait(WaitOptions::NOHANG))
}

/// Reaps this child if it has exited.
///
/// # Errors
/// `ECHILD` if it is not a child of the caller.
pub fn reap(pid: u32) -> io::Result<Option<Ended>> {
    let found = rustix::process::waitpid(Some(crate::pidfd::pid(pid)?), WaitOptions::NOHANG)?;
    Ok(found.map(|(_, status)| Ended::from_status(status)))
}

/// Waits until this child has exited, and reaps it.
///
/// # Errors
/// `ECHILD` if it is not a child of the caller.
pub fn wait(pid: u32) -> io::Result<Ended> {
    loop {
        match rustix::process::waitpid(Some(crate::pidfd::pid(pid)?), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(Ended::from_status(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn reaped(found: rustix::io::Result<Option<(Pid, WaitStatus)>>) -> io::Result<Option<(u32, Ended)>> {
    match found {
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Ok(Some((pid, status))) => {
            let pid = u32::try_from(pid.as_raw_pid()).map_err(io::Error::other)?;
            Ok(Some((pid, Ended::from_status(status))))
        }
        Err(error) => Err(error.into()),
    }
}

/// Closes one descriptor by number, for a forked child that drops what it inherited from its parent.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn close_one(fd: u32) -> io::Result<()> {
    // SAFETY: close_range takes integers; that no live owner uses the descriptor again is the caller's duty, as for
    // close_from.
    if unsafe { libc::syscall(libc::SYS_close_range, fd, fd, 0u32) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread the lowest priority: the idle class of disk scheduling and the lowest CPU share. Best
/// effort: what the kernel refuses stays unchanged.
pub fn give_way() {
    // linux/ioprio.h: IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT.
    let (who, idle) = (1, 3 << 13);
    // SAFETY: ioprio_set takes integers; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, who, 0, idle) };
    // Of the calling thread only: Linux keeps it per thread.
    let _ = rustix::process::setpriority_process(None, 19);
}
