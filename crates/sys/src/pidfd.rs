//! Process handles that cannot hit a recycled pid.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Converts a pid as the kernel prints it.
///
/// # Errors
/// `InvalidInput` for zero, a negative number, or one that no pid can have.
pub fn pid(number: u32) -> io::Result<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Opens a handle (close-on-exec); it becomes readable when the process has exited.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn open(number: u32) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid(number)?, PidfdFlags::empty())?)
}

/// Sends a signal by number.
///
/// # Errors
/// `InvalidInput` for a number that is no signal, `ESRCH` when the process is gone.
pub fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    Ok(pidfd_send_signal(process, self::signal(signal)?)?)
}

/// Sends a signal to every process of the group that `leader` leads.
///
/// # Errors
/// As [`send_signal`]. The caller must know that the leader is not yet reaped.
pub fn send_group_signal(leader: u32, signal: i32) -> io::Result<()> {
    Ok(rustix::process::kill_process_group(pid(leader)?, self::signal(signal)?)?)
}

fn signal(number: i32) -> io::Result<Signal> {
    if let Some(named) = Signal::from_named_raw(number) {
        return Ok(named);
    }
    let realtime = libc::SIGRTMIN()..=libc::SIGRTMAX();
    if !realtime.contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is in the range that the C library leaves to applications.
    Ok(unsafe { Signal::from_raw_unchecked(number) })
}
