//! A container's output: the read ends of its pipes (or its terminal) and the withheld part of an unfinished line.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::attach::{self, Viewer};
use crate::logfile::{LogFile, StreamName};
use crate::record::{Pause, Records};

/// Bytes per read: a pipe's capacity.
const READ_BYTES: usize = 64 * 1024;

/// Time without more output after which an unfinished line is written: `kubectl logs -f` shows a prompt, while lines
/// written in pieces stay whole.
const TAIL_IDLE: Duration = Duration::from_millis(250);

/// Whether a stream may yield more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Ended,
}

/// Gives the shared read buffer the size that lines of `max` bytes need: a held tail, and a full read.
pub(crate) fn size_buffer(buffer: &mut Vec<u8>, max: usize) {
    let size = max + 1 + READ_BYTES;
    if buffer.len() < size {
        // A fresh allocation consists of untouched zero pages; growing would write them all.
        *buffer = vec![0; size];
    }
}

/// Reads once and discards.
pub(crate) fn discard(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Flow {
    match rustix::io::read(fd, buffer) {
        Ok(0) => Flow::Ended,
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Flow::Open,
        Err(_) => Flow::Ended,
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: StreamName,
    fd: OwnedFd,
    tail: Vec<u8>,
    flush_at: Option<Instant>,
}

impl Stream {
    /// `fd` must be non-blocking.
    pub(crate) fn new(name: StreamName, fd: OwnedFd) -> Self {
        Self { name, fd, tail: Vec::new(), flush_at: None }
    }

    pub(crate) fn flush_at(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Reads once into `buffer`, logs complete lines and shows everything to attached clients.
    pub(crate) fn pump(
        &mut self,
        buffer: &mut [u8],
        log: Option<&mut LogFile>,
        viewers: &mut [Viewer],
        max: usize,
    ) -> Flow {
        let held = self.tail.len();
        buffer[..held].copy_from_slice(&self.tail);
        let read = match rustix::io::read(&self.fd, &mut buffer[held..]) {
            Ok(0) => None,
            Ok(read) => Some(read),
            Err(Errno::AGAIN | Errno::INTR) => return Flow::Open,
            // A terminal's master answers EIO when the last process has left.
            Err(_) => None,
        };
        let Some(read) = read else {
            self.finish(log, max);
            return Flow::Ended;
        };
        attach::show(viewers, self.name, &buffer[held..held + read]);
        if let Some(log) = log {
            let mut records = Records::new(&buffer[..held + read], max, Pause::None);
            log.append(self.name, records.by_ref());
            self.hold(records.rest());
        }
        Flow::Open
    }

    /// Writes an unfinished line when it is due.
    pub(crate) fn expire(&mut self, now: Instant, log: Option<&mut LogFile>, max: usize) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(log, max, Pause::Idle);
            self.flush_at = None;
        }
    }

    /// Writes everything; the stream has ended or is abandoned.
    pub(crate) fn finish(&mut self, log: Option<&mut LogFile>, max: usize) {
        self.flush(log, max, Pause::End);
    }

    fn flush(&mut self, log: Option<&mut LogFile>, max: usize, pause: Pause) {
        let tail = std::mem::take(&mut self.tail);
        if let Some(log) = log {
            let mut records = Records::new(&tail, max, pause);
            log.append(self.name, records.by_ref());
            self.hold(records.rest());
        }
    }

    fn hold(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.tail = Vec::new();
            self.flush_at = None;
        } else {
            self.tail.clear();
            self.tail.extend_from_slice(rest);
            self.flush_at = (rest != b"\r").then(|| Instant::now() + TAIL_IDLE);
        }
    }

    /// Reads once without logging and keeps at most `limit` bytes in `kept`.
    pub(crate) fn capture(&mut self, buffer: &mut [u8], kept: &mut Vec<u8>, limit: usize) -> Flow {
        match rustix::io::read(&self.fd, &mut buffer[..]) {
            Ok(0) => Flow::Ended,
            Ok(read) => {
                let room = limit.saturating_sub(kept.len()).min(read);
                kept.extend_from_slice(&buffer[..room]);
                Flow::Open
            }
            Err(Errno::AGAIN | Errno::INTR) => Flow::Open,
            Err(_) => Flow::Ended,
        }
    }

    /// Whether it is readable or at its end.
    pub(crate) fn is_readable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
