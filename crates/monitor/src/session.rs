//! Exec sessions: the pipes of a process whose other ends a client holds, and the leash that tells the monitor of the
//! client's departure and the client of the process's end.
//!
//! While the client is there, the monitor neither reads nor writes: it only keeps the read ends open, so that the
//! process survives the client. Afterwards it reads and discards until the process ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_monitor_proto::{ErrorKind, ExecStdio, SessionEnd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::pipe::fcntl_setpipe_size;

use crate::output::{Flow, discard};
use crate::pod::{Pod, Setup};
use crate::requests::Refusal;
use crate::runtime::{JobKind, Stdio3};

/// Sessions of a pod at a time, execs and attached clients together. Each takes up to four descriptors here, and with
/// these a soft limit of 1024 is kept.
pub(crate) const MAX_SESSIONS: usize = 240;

/// Of these, as many attached clients: they may not take the place of probes and hooks, which are execs.
pub(crate) const MAX_ATTACHED: usize = 200;

/// Capacity of an exec's output pipe: four times the kernel's default, for fewer switches between writer and reader.
/// The kernel allocates pages only as they fill.
const OUTPUT_PIPE_BYTES: usize = 256 * 1024;

/// Our end of a session's leash.
#[derive(Debug)]
pub(crate) struct Leash(OwnedFd);

impl Leash {
    /// Ours, and the client's.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// Notifies the client. A departed client needs no message.
    pub(crate) fn end(self, how: SessionEnd) {
        if let Ok(packet) = serde_json::to_vec(&how) {
            let _ = send(&self.0, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}

impl AsFd for Leash {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An exec's session.
#[derive(Debug)]
pub(crate) enum Session {
    /// The client reads the outputs.
    Held { leash: Leash, outputs: Vec<OwnedFd> },
    /// The client has left: output is discarded.
    Left { outputs: Vec<OwnedFd> },
}

impl Session {
    pub(crate) fn end(self, how: SessionEnd) {
        match self {
            Self::Held { leash, outputs } => {
                drop(outputs);
                leash.end(how);
            }
            Self::Left { .. } => {}
        }
    }
}

/// A session whose process the runtime is still starting.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) session: Session,
    /// The client's descriptors, in the order of the protocol.
    pub(crate) ends: Vec<OwnedFd>,
    pub(crate) stdio: ExecStdio,
}

impl Offer {
    /// The pipes that `stdio` names (a terminal comes from the runtime), and the process's ends.
    pub(crate) fn make(stdio: ExecStdio, setup: &Setup) -> io::Result<(Self, Stdio3)> {
        let (mut ends, mut outputs, mut process) = (Vec::new(), Vec::new(), Stdio3::default());
        if stdio.stdin {
            let (reader, writer) = client_writes()?;
            setup.give(&reader)?;
            process.stdin = Some(reader);
            ends.push(writer);
        }
        for (wanted, end) in [(stdio.stdout, &mut process.stdout), (stdio.stderr, &mut process.stderr)] {
            if wanted {
                let (reader, writer) = client_reads(OUTPUT_PIPE_BYTES)?;
                setup.give(&writer)?;
                outputs.push(rustix::io::fcntl_dupfd_cloexec(&reader, 3)?);
                ends.push(reader);
                *end = Some(writer);
            }
        }
        let (leash, theirs) = Leash::new()?;
        ends.push(theirs);
        Ok((Self { session: Session::Held { leash, outputs }, ends, stdio }, process))
    }
}

/// A pipe whose write end is the client's and does not block.
pub(crate) fn client_writes() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    fcntl_setfl(&writer, OFlags::WRONLY | OFlags::NONBLOCK)?;
    Ok((reader.into(), writer.into()))
}

/// A pipe whose read end is the client's and does not block, of `size` bytes if the node allows that.
pub(crate) fn client_reads(size: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    fcntl_setfl(&reader, OFlags::RDONLY | OFlags::NONBLOCK)?;
    // Refused beyond /proc/sys/fs/pipe-max-size: then it stays as it is.
    let _ = fcntl_setpipe_size(&reader, size);
    Ok((reader.into(), writer.into()))
}

impl Pod {
    pub(crate) fn refuse_too_many_sessions(&self, most: usize) -> Result<(), Refusal> {
        let starting = |kind: &JobKind| matches!(kind, JobKind::Exec { .. });
        let sessions = self.jobs.iter().filter(|job| starting(&job.kind)).count()
            + self.execs.len()
            + self.containers.iter().map(|container| container.viewers.len()).sum::<usize>();
        if sessions < most {
            return Ok(());
        }
        let message = format!("the pod has {sessions} exec and attach sessions, which is as many as it may");
        Err(Refusal::new(ErrorKind::TooMany, message))
    }

    /// The client has left an exec: nothing else reads its output now.
    pub(crate) fn session_left(&mut self, serial: u32) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.serial == serial)
            && let Session::Held { outputs, .. } = &mut exec.session
        {
            let outputs = std::mem::take(outputs);
            exec.session = Session::Left { outputs };
        }
    }

    /// Output of an exec whose client has left.
    pub(crate) fn discard_output(&mut self, serial: u32, index: usize) {
        let mut buffer = self.take_buffer(0);
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.serial == serial)
            && let Session::Left { outputs } = &mut exec.session
            && let Some(output) = outputs.get(index)
            && discard(output.as_fd(), &mut buffer) == Flow::Ended
        {
            outputs.remove(index);
        }
        self.buffer = buffer;
    }
}
