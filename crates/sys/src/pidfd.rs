//! Process handles that cannot hit a recycled pid.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The signal that cannot be caught (signal(7), the same number on every architecture of Linux).
pub const SIGKILL: i32 = 9;

/// Converts a pid as the kernel prints it.
///
/// # Errors
/// `InvalidInput` for zero, a negative number, or an impossible pid.
pub fn pid(number: u32) -> io::Result<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Opens a handle (close-on-exec); it becomes readable when the process has exited.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn open(number: u32) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid(number)?, PidfdFlags::empty())?)
}

/// Sends a signal by number.
///
/// # Errors
/// `InvalidInput` for an invalid signal, `ESRCH` if the process is gone.
pub fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    Ok(pidfd_send_signal(process, self::signal(signal)?)?)
}

/// Sends a signal to every process of `member`'s group, or to it alone if that is our own group. It need not lead the
/// group: crun's exec forks once more after creating the session, runc's does not.
///
/// # Errors
/// As [`send_signal`]. The caller must know that the member is not yet reaped.
pub fn send_group_signal(member: u32, signal: i32) -> io::Result<()> {
    let (member, signal) = (pid(member)?, self::signal(signal)?);
    let group = rustix::process::getpgid(Some(member))?;
    if group == rustix::process::getpgrp() {
        return Ok(rustix::process::kill_process(member, signal)?);
    }
    Ok(rustix::process::kill_process_group(group, signal)?)
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

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_group_is_reached_through_any_member_and_ours_is_spared() {
        let script = "sleep 1000 & echo $!; exec sleep 1000";
        let mut leader =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let mut line = String::new();
        io::BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
        send_group_signal(line.trim().parse().unwrap(), 9).unwrap();
        assert_eq!(leader.wait().unwrap().signal(), Some(9));

        let mut ours = Command::new("sleep").arg("1000").spawn().unwrap();
        send_group_signal(ours.id(), 9).unwrap();
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
    }
}
