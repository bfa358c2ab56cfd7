//! Clients attached to a container: each gets the output in its own pipes, and its input goes into the container's
//! stdin. A client never delays the container, its log or another client: one whose pipe is full is dropped.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use podwright_monitor_proto::{ErrorKind, ExecStdio, Reply, RequestId, SessionEnd};
use rustix::io::Errno;

use crate::container::{Container, Stdin};
use crate::logfile::StreamName;
use crate::pod::Pod;
use crate::requests::Refusal;
use crate::session::{Leash, MAX_ATTACHED, client_reads, client_writes};
use rustix::fs::{OFlags, fcntl_setfl};

/// How far a client may lag behind on each stream. The pipe itself is the buffer: the kernel allocates its pages as
/// they fill, and refuses more to a process without CAP_SYS_RESOURCE (pipe-max-size).
const BACKLOG_BYTES: usize = 1 << 20;

/// Most that is read of a client's input at a time: as much as is held when the container does not take it.
const INPUT_BYTES: usize = 16 * 1024;

/// Reads of a departed client's input: together the capacity of its pipe.
const LAST_INPUTS: u32 = 8;

/// An attached client.
#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) serial: u32,
    pub(crate) leash: Leash,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    pub(crate) input: Option<Input>,
    /// Its pipe was full; it is dropped once the stream is finished.
    slow: bool,
}

/// A client's input on its way into the container.
#[derive(Debug)]
pub(crate) struct Input {
    reader: OwnedFd,
    /// Read, but not yet taken by the container.
    pending: Vec<u8>,
}

/// Fate of a piece of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// Everything pending, perhaps nothing.
    All,
    /// The container takes no more for now.
    Stuck,
    /// The client has closed its end, and everything before that was passed.
    ClientEnded,
    /// The container's side is closed.
    ContainerEnded,
}

impl Input {
    /// What to poll: the client, or the container if it must first take something.
    pub(crate) fn waits_for_container(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    fn pass(&mut self, sink: BorrowedFd<'_>, buffer: &mut [u8]) -> Passed {
        if self.pending.is_empty() {
            let room = buffer.len().min(INPUT_BYTES);
            match rustix::io::read(&self.reader, &mut buffer[..room]) {
                Ok(0) => return Passed::ClientEnded,
                Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
                Err(Errno::AGAIN | Errno::INTR) => return Passed::All,
                Err(_) => return Passed::ClientEnded,
            }
        }
        match rustix::io::write(sink, &self.pending) {
            Ok(written) if written == self.pending.len() => {
                self.pending = Vec::new();
                Passed::All
            }
            Ok(written) => {
                self.pending.drain(..written);
                Passed::Stuck
            }
            Err(Errno::AGAIN | Errno::INTR) => Passed::Stuck,
            Err(_) => Passed::ContainerEnded,
        }
    }
}

impl Viewer {
    fn show(&mut self, name: StreamName, bytes: &[u8]) {
        let end = match name {
            StreamName::Stdout => &mut self.stdout,
            StreamName::Stderr => &mut self.stderr,
        };
        let Some(fd) = end else { return };
        match rustix::io::write(&*fd, bytes) {
            Ok(written) if written == bytes.len() => {}
            Ok(_) | Err(Errno::AGAIN) => self.slow = true,
            // It does not want this stream any more.
            Err(_) => *end = None,
        }
    }
}

/// Gives every client what came out of a stream.
pub(crate) fn show(viewers: &mut [Viewer], name: StreamName, bytes: &[u8]) {
    for viewer in viewers.iter_mut().filter(|viewer| !viewer.slow) {
        viewer.show(name, bytes);
    }
}

impl Container {
    /// The write end of the container's stdin.
    pub(crate) fn sink(&self) -> Option<BorrowedFd<'_>> {
        match &self.stdin {
            Stdin::Pipe { writer } => Some(writer.as_fd()),
            Stdin::Terminal(master) => Some(master.as_fd()),
            Stdin::None => None,
        }
    }

    /// Ends the container's stdin, unless that is a terminal, which has no end.
    pub(crate) fn close_stdin(&mut self) {
        match self.stdin {
            Stdin::Pipe { .. } | Stdin::None => {
                self.stdin = Stdin::None;
                for viewer in &mut self.viewers {
                    viewer.input = None;
                }
            }
            Stdin::Terminal(_) => {}
        }
    }

    /// The stream has ended: so it does for its clients.
    pub(crate) fn end_view(&mut self, name: StreamName) {
        for viewer in &mut self.viewers {
            match name {
                StreamName::Stdout => viewer.stdout = None,
                StreamName::Stderr => viewer.stderr = None,
            }
        }
    }

    /// Drops clients that were too slow.
    pub(crate) fn dismiss_slow(&mut self) {
        while let Some(at) = self.viewers.iter().position(|viewer| viewer.slow) {
            self.dismiss(at).end(SessionEnd::TooSlow);
        }
    }

    /// The container is gone, and its output is in the pipes.
    pub(crate) fn dismiss_all(&mut self) {
        self.dismiss_slow();
        for viewer in std::mem::take(&mut self.viewers) {
            let Viewer { leash, stdout, stderr, input, .. } = viewer;
            drop((stdout, stderr, input));
            leash.end(SessionEnd::ContainerEnded);
        }
    }

    /// Removes a client; the leash remains to report the reason.
    fn dismiss(&mut self, at: usize) -> Leash {
        let Viewer { leash, input, .. } = self.viewers.remove(at);
        if input.is_some() && self.stdin_once {
            self.close_stdin();
        }
        leash
    }

    /// Forwards a client's input.
    fn take_input(&mut self, viewer: u32, buffer: &mut [u8]) -> Option<Passed> {
        let at = self.viewers.iter().position(|candidate| candidate.serial == viewer)?;
        let mut input = self.viewers[at].input.take()?;
        let passed = match self.sink() {
            Some(sink) => input.pass(sink, buffer),
            None => Passed::ContainerEnded,
        };
        match passed {
            Passed::All | Passed::Stuck => self.viewers[at].input = Some(input),
            Passed::ClientEnded if self.stdin_once => self.close_stdin(),
            Passed::ClientEnded => {}
            Passed::ContainerEnded => self.close_stdin(),
        }
        Some(passed)
    }
}

impl Pod {
    pub(crate) fn attach(
        &mut self,
        client: u32,
        request: RequestId,
        container_id: &str,
        wanted: ExecStdio,
    ) -> Result<(), Refusal> {
        self.refuse_while_shutting_down()?;
        self.refuse_too_many_sessions(MAX_ATTACHED)?;
        let serial = self.serial();
        let container = self.running(container_id)?;
        let is_terminal = matches!(container.stdin, Stdin::Terminal(_));
        let stdio = ExecStdio {
            stdin: wanted.stdin && container.sink().is_some(),
            stdout: wanted.stdout,
            stderr: wanted.stderr && !is_terminal,
        };
        let (viewer, ends) = view(serial, stdio).map_err(|error| {
            Refusal::new(ErrorKind::Io, format!("make pipes to attach to {container_id:?}: {error}"))
        })?;
        container.viewers.push(viewer);
        for name in [StreamName::Stdout, StreamName::Stderr] {
            if !container.streams.iter().any(|stream| stream.name == name) {
                container.end_view(name);
            }
        }
        self.reply_with(client, request, Reply::Attached { stdio }, ends);
        Ok(())
    }

    /// A client's input can be passed on, or what was read of it can.
    pub(crate) fn pass_input(&mut self, container: u32, viewer: u32) {
        let mut buffer = self.take_buffer(0);
        if let Some(container) = self.containers.iter_mut().find(|c| c.serial == container) {
            container.take_input(viewer, &mut buffer);
        }
        self.buffer = buffer;
    }

    /// A client has left. Forwards what it wrote before, as far as the container takes it now.
    pub(crate) fn viewer_left(&mut self, container: u32, viewer: u32) {
        let mut buffer = self.take_buffer(0);
        if let Some(container) = self.containers.iter_mut().find(|c| c.serial == container) {
            for _ in 0..LAST_INPUTS {
                if container.take_input(viewer, &mut buffer) != Some(Passed::All) {
                    break;
                }
            }
            if let Some(at) = container.viewers.iter().position(|v| v.serial == viewer) {
                drop(container.dismiss(at));
            }
        }
        self.buffer = buffer;
    }
}

/// A client's pipes, and its ends of them with its leash last.
fn view(serial: u32, stdio: ExecStdio) -> io::Result<(Viewer, Vec<OwnedFd>)> {
    let mut ends = Vec::new();
    let input = match stdio.stdin {
        true => {
            let (reader, writer) = client_writes()?;
            fcntl_setfl(&reader, OFlags::RDONLY | OFlags::NONBLOCK)?;
            ends.push(writer);
            Some(Input { reader, pending: Vec::new() })
        }
        false => None,
    };
    let mut output = |wanted: bool| -> io::Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        let (reader, writer) = client_reads(BACKLOG_BYTES)?;
        fcntl_setfl(&writer, OFlags::WRONLY | OFlags::NONBLOCK)?;
        ends.push(reader);
        Ok(Some(writer))
    };
    let (stdout, stderr) = (output(stdio.stdout)?, output(stdio.stderr)?);
    let (leash, theirs) = Leash::new()?;
    ends.push(theirs);
    Ok((Viewer { serial, leash, stdout, stderr, input, slow: false }, ends))
}
