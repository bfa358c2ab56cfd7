//! Sessions: an exec or an attach whose bytes go between the daemon and the process, or the monitor, over descriptors
//! of their own and never over the connection. The leash reports how a session ended, and dropping it ends one.

use std::io;
use std::os::fd::OwnedFd;

use podwright_monitor_proto::{ExecStdio as StdioFlags, SessionEnd};
use tokio::net::UnixStream;

/// Longest packet on a leash; the longest possible has 60 bytes.
const PACKET_BYTES: usize = 256;

/// The client's ends of a session. Non-blocking; each is closed by its drop.
#[derive(Debug)]
pub struct Session {
    /// Master of the terminal: input and output, instead of the other three.
    pub terminal: Option<OwnedFd>,
    /// Written by us; its drop is the end of the process's input.
    pub stdin: Option<OwnedFd>,
    /// Read by us.
    pub stdout: Option<OwnedFd>,
    /// Read by us.
    pub stderr: Option<OwnedFd>,
    /// Kept for as long as the session lasts.
    pub leash: Leash,
}

/// The end of a session. Dropping it leaves the session: a process without a terminal runs on, and the monitor takes
/// its output.
#[derive(Debug)]
pub struct Leash(UnixStream);

impl Leash {
    /// Waits for the session's end; `None` if the monitor is gone. Answers once. Cancelling it loses nothing.
    pub async fn ended(&self) -> Option<SessionEnd> {
        let mut packet = [0; PACKET_BYTES];
        loop {
            self.0.readable().await.ok()?;
            match self.0.try_read(&mut packet) {
                Ok(length) => return serde_json::from_slice(&packet[..length]).ok(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }
}

impl Session {
    /// Puts names to what came with an answer; `None` when that does not fit.
    pub(super) fn assemble(terminal: bool, stdio: StdioFlags, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let mut next = |there: bool| match there {
            true => fds.next().map(Some),
            false => Some(None),
        };
        let (terminal, stdin) = (next(terminal)?, next(stdio.stdin)?);
        let (stdout, stderr) = (next(stdio.stdout)?, next(stdio.stderr)?);
        let leash = std::os::unix::net::UnixStream::from(next(true)??);
        let leash = UnixStream::from_std(leash).ok().map(Leash)?;
        Some(Self { terminal, stdin, stdout, stderr, leash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    fn leash() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn session(leash: OwnedFd) -> Session {
        Session::assemble(false, StdioFlags::default(), vec![leash]).unwrap()
    }

    #[tokio::test]
    async fn the_end_is_told_also_when_the_first_to_wait_gave_up() {
        let (ours, theirs) = leash();
        let session = session(ours);
        tokio::select! {
            biased;
            end = session.leash.ended() => panic!("{end:?}"),
            () = std::future::ready(()) => {}
        }
        let end = SessionEnd::Exited { exit_code: 3, signal: None };
        send(&theirs, &serde_json::to_vec(&end).unwrap(), SendFlags::empty()).unwrap();
        assert_eq!(session.leash.ended().await, Some(end));
    }

    #[tokio::test]
    async fn the_death_of_the_monitor_is_no_end() {
        let (ours, theirs) = leash();
        let session = session(ours);
        drop(theirs);
        assert_eq!(session.leash.ended().await, None);
    }

    #[tokio::test]
    async fn an_answer_with_too_few_descriptors_is_refused() {
        let flags = StdioFlags { stdout: true, ..StdioFlags::default() };
        assert!(Session::assemble(false, flags, vec![leash().0]).is_none());
        assert!(Session::assemble(true, StdioFlags::default(), vec![]).is_none());
    }
}
