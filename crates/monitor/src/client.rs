//! One connection: bytes and descriptors in, frames out. Bounded both ways; a peer that does not read is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_monitor_proto::{FromMonitor, HEADER_BYTES, MAX_FRAME_BYTES, encode, take_frame};
use podwright_sys::fdpass;

/// Bytes that may wait for a slow reader: the largest reply, and as much again of events.
const OUTPUT_LIMIT_BYTES: usize = 2 * (MAX_FRAME_BYTES + HEADER_BYTES);

/// Descriptors that may wait for the request that they belong to.
const WAITING_FDS: usize = 16;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) serial: u32,
    socket: OwnedFd,
    state: State,
    input: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    output: VecDeque<Outgoing>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Has not said Hello.
    Stranger,
    Greeted,
    /// To be dropped.
    Gone,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Client {
    pub(crate) fn new(serial: u32, socket: OwnedFd) -> Self {
        let (input, fds, output) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { serial, socket, state: State::Stranger, input, fds, output }
    }

    pub(crate) fn greet(&mut self) {
        if self.state == State::Stranger {
            self.state = State::Greeted;
        }
    }

    pub(crate) fn is_greeted(&self) -> bool {
        self.state == State::Greeted
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    pub(crate) fn give_up(&mut self) {
        self.state = State::Gone;
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads once. [`Client::next_frame`] then returns complete frames.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) {
        let mut fds = Vec::new();
        match fdpass::receive(self.socket.as_fd(), buffer, &mut fds) {
            Ok(0) => self.give_up(),
            Ok(read) => {
                self.input.extend_from_slice(&buffer[..read]);
                self.fds.extend(fds);
                if self.fds.len() > WAITING_FDS {
                    self.give_up();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.give_up(),
        }
    }

    pub(crate) fn next_frame(&mut self) -> Option<Vec<u8>> {
        match take_frame(&mut self.input) {
            Ok(Some(frame)) => Some(frame),
            Ok(None) => {
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                None
            }
            Err(_) => {
                self.give_up();
                None
            }
        }
    }

    /// The next descriptor that came along, in the order sent.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// Queues a message, and the descriptors that go with it, and sends what the socket takes.
    pub(crate) fn push(&mut self, message: &FromMonitor, fds: Vec<OwnedFd>) {
        let Ok(bytes) = encode(message) else {
            // Only a list of thousands of containers could be too long; without an answer the peer must not wait.
            self.give_up();
            return;
        };
        let waiting: usize = self.output.iter().map(|outgoing| outgoing.bytes.len() - outgoing.sent).sum();
        if waiting + bytes.len() > OUTPUT_LIMIT_BYTES {
            self.give_up();
            return;
        }
        self.output.push_back(Outgoing { bytes, sent: 0, fds });
        self.flush();
    }

    pub(crate) fn flush(&mut self) {
        while let Some(front) = self.output.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = front.fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(self.socket.as_fd(), &front.bytes[front.sent..], &fds) {
                Ok(sent) => {
                    drop(fds);
                    front.fds = Vec::new();
                    front.sent += sent;
                    if front.sent == front.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.state = State::Gone;
                    return;
                }
            }
        }
        self.output = VecDeque::new();
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_that_no_request_claims_end_the_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(1, ours.into());
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut buffer = [0; 64];
        for sent in (fdpass::MAX_FDS..).step_by(fdpass::MAX_FDS).take(100) {
            fdpass::send(theirs.as_fd(), b"\0", &[null.as_fd(); fdpass::MAX_FDS]).unwrap();
            client.read(&mut buffer);
            assert!(client.fds.len() <= WAITING_FDS + fdpass::MAX_FDS);
            assert_eq!(client.is_gone(), sent > WAITING_FDS, "{sent}");
            if client.is_gone() {
                return;
            }
        }
        panic!("it takes descriptors without end");
    }
}
