//! The monitor's state of one container and of one exec.

use std::os::fd::OwnedFd;
use std::time::Instant;

use podwright_monitor_proto::{ContainerState, ContainerStatus, Event, ExitRecord};

use crate::attach::Viewer;
use crate::logfile::{LogFile, Loss};
use crate::oom::OomCounter;
use crate::output::Stream;
use crate::session::Session;

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) serial: u32,
    pub(crate) state: State,
    pub(crate) streams: Vec<Stream>,
    pub(crate) log: Option<LogFile>,
    /// From the log file already closed.
    pub(crate) lost_bytes: u64,
    pub(crate) max_line: usize,
    pub(crate) stdin: Stdin,
    /// Its stdin ends with the first attached client that has one.
    pub(crate) stdin_once: bool,
    pub(crate) viewers: Vec<Viewer>,
    /// `None` where its memory cgroup is not known, or the host has none.
    pub(crate) oom: Option<OomCounter>,
}

/// A container's life.
///
/// ```text
/// Starting ──► Running ──► Draining ──► Exited ──► (forgotten)
///     └──► (run failed: gone)
/// ```
#[derive(Debug)]
pub(crate) enum State {
    /// The runtime's run is in progress. Output in the pipes may already be the container's, so it stays there until
    /// the runtime has returned.
    Starting,
    /// Init lives.
    Running(Process),
    /// Init is gone; its last output is read until the pipes end or the time is up.
    Draining {
        start_time: u64,
        exit: ExitRecord,
        until: Instant,
    },
    Exited(ExitRecord),
}

/// A process that the monitor will reap.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// 0 when unknown.
    pub(crate) start_time: u64,
    /// `None` if it was gone before it could be opened.
    pub(crate) pidfd: Option<OwnedFd>,
}

/// The container's standard input, as far as the monitor holds it.
#[derive(Debug)]
pub(crate) enum Stdin {
    /// A null device from the start, or closed.
    None,
    /// Write end of its pipe.
    Pipe { writer: OwnedFd },
    /// Master of its terminal, from which the output is read, too.
    Terminal(OwnedFd),
}

impl Container {
    pub(crate) fn status(&self) -> ContainerStatus {
        let state = match &self.state {
            State::Starting => ContainerState::Starting,
            State::Running(process) => {
                ContainerState::Running { pid: process.pid, start_time: process.start_time }
            }
            State::Draining { start_time, exit, .. } => {
                ContainerState::Running { pid: exit.pid, start_time: *start_time }
            }
            State::Exited(exit) => ContainerState::Exited(exit.clone()),
        };
        let log_dropped_bytes = self.log.as_ref().map_or(self.lost_bytes, LogFile::dropped_bytes);
        ContainerStatus { id: self.id.clone(), state, log_dropped_bytes }
    }

    /// What was lost of its output since it was last reported; `last`: nothing more will come.
    pub(crate) fn loss(&mut self, last: bool) -> Option<Event> {
        let Loss { bytes, reason } = self.log.as_mut()?.loss(Instant::now(), last)?;
        Some(Event::LogLost { container_id: self.id.clone(), bytes, reason })
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self.state, State::Exited(_))
    }

    /// Reads everything that the streams hold now, then closes them.
    pub(crate) fn close_streams(&mut self, buffer: &mut [u8]) {
        for mut stream in self.streams.drain(..) {
            // A pipe holds at most a few buffers; a writer that never stops must not keep us here.
            for _ in 0..LAST_READS {
                let flow = if stream.is_readable() {
                    stream.pump(buffer, self.log.as_mut(), &mut self.viewers, self.max_line)
                } else {
                    break;
                };
                if flow == crate::output::Flow::Ended {
                    break;
                }
            }
            stream.finish(self.log.as_mut(), self.max_line);
        }
    }
}

/// Reads of a stream that is closed while another process still holds its other end: more than a 1 MiB pipe holds, the
/// largest that an unprivileged process can create.
const LAST_READS: u32 = 32;

#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) id: String,
    pub(crate) serial: u32,
    pub(crate) container_id: String,
    pub(crate) process: Process,
    pub(crate) session: Session,
    pub(crate) limit: Limit,
}

/// How long an exec may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    At(Instant),
    /// It was killed for it.
    Reached,
}

impl Limit {
    pub(crate) fn at(self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(at),
            Self::None | Self::Reached => None,
        }
    }
}
