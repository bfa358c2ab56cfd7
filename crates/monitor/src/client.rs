//! One connection: bytes and descriptors in, frames out. Bounded both ways; a peer that does not read is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podwright_monitor_proto::{
    ErrorKind, FromMonitor, HEADER_BYTES, MAX_FRAME_BYTES, Reply, RequestId, encode, take_frame,
};
use podwright_sys::fdpass;
use rustix::io::Errno;

use crate::rights;

/// Bytes that may wait for a slow reader: the largest reply, and as much again of events.
const OUTPUT_LIMIT_BYTES: usize = 2 * (MAX_FRAME_BYTES + HEADER_BYTES);

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) serial: u32,
    socket: OwnedFd,
    state: State,
    input: Vec<u8>,
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
    /// Whom it answers.
    request: Option<RequestId>,
}

/// What became of descriptors that go with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handed {
    /// They are on their way, or wait for it.
    Over,
    /// The kernel did not take them: they are closed, and an error was sent in place of the message.
    Refused,
}

impl Client {
    pub(crate) fn new(serial: u32, socket: OwnedFd) -> Self {
        Self { serial, socket, state: State::Stranger, input: Vec::new(), output: VecDeque::new() }
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

    /// Reads once. [`Client::next_frame`] then returns complete frames. Descriptors that come along are never received:
    /// no request has any, and the kernel closes them.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) {
        match rustix::io::read(&self.socket, &mut *buffer) {
            Ok(0) => self.give_up(),
            Ok(read) => self.input.extend_from_slice(&buffer[..read]),
            Err(Errno::AGAIN | Errno::INTR) => {}
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

    /// Queues a message, and the descriptors that go with it, and sends what the socket takes.
    pub(crate) fn push(&mut self, message: &FromMonitor, fds: Vec<OwnedFd>) -> Handed {
        let Ok(bytes) = encode(message) else {
            // Only a list of thousands of containers could be too long; without an answer the peer must not wait.
            self.give_up();
            return Handed::Over;
        };
        let waiting: usize = self.output.iter().map(|outgoing| outgoing.bytes.len() - outgoing.sent).sum();
        if waiting + bytes.len() > OUTPUT_LIMIT_BYTES {
            self.give_up();
            return Handed::Over;
        }
        let request = match message {
            FromMonitor::Reply { id, .. } => Some(*id),
            FromMonitor::Event(_) => None,
        };
        self.output.push_back(Outgoing { bytes, sent: 0, fds, request });
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Handed {
        self.flush_by(hand_over)
    }

    fn flush_by(
        &mut self,
        send: impl Fn(BorrowedFd<'_>, &[u8], &[BorrowedFd<'_>]) -> io::Result<usize>,
    ) -> Handed {
        let mut handed = Handed::Over;
        while let Some(front) = self.output.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = front.fds.iter().map(AsFd::as_fd).collect();
            let sent = send(self.socket.as_fd(), &front.bytes[front.sent..], &fds);
            drop(fds);
            match sent {
                Ok(sent) => {
                    front.fds = Vec::new();
                    front.sent += sent;
                    if front.sent == front.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return handed,
                Err(error) => match front.without_descriptors(&error) {
                    Some(instead) => {
                        *front = instead;
                        handed = Handed::Refused;
                    }
                    None => {
                        self.state = State::Gone;
                        return handed;
                    }
                },
            }
        }
        self.output = VecDeque::new();
        handed
    }
}

impl Outgoing {
    /// The error in place of an answer whose descriptors the kernel does not take; none where it is the peer that is gone.
    fn without_descriptors(&self, error: &io::Error) -> Option<Self> {
        let is_gone = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if is_gone || self.fds.is_empty() {
            return None;
        }
        let id = self.request?;
        let message = format!("hand over the streams' descriptors: {error}");
        let reply = FromMonitor::Reply { id, reply: Reply::Error { kind: ErrorKind::Io, message } };
        Some(Self { bytes: encode(&reply).ok()?, sent: 0, fds: Vec::new(), request: None })
    }
}

/// The kernel counts descriptors that are on their way somewhere for each user, all of root's processes together, containers
/// included, and past the limit of open files takes more from administrators only.
fn hand_over(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    match fdpass::send(socket, bytes, fds) {
        Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
            rights::with_all(|| fdpass::send(socket, bytes, fds))
        }
        sent => sent,
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
    fn descriptors_that_a_client_sends_are_not_received() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(1, ours.into());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut buffer = [0; 64];
        for _ in 0..100 {
            fdpass::send(theirs.as_fd(), b"\0", &[writer.as_fd(); fdpass::MAX_FDS]).unwrap();
            client.read(&mut buffer);
        }
        assert_eq!((client.input.len(), client.is_gone()), (100, false));
        // Ours was the last.
        drop(writer);
        assert_eq!(io::Read::read(&mut reader, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn descriptors_that_cannot_be_sent_are_an_error_and_not_the_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(1, ours.into());
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let push = |client: &mut Client, id, fds| {
            let bytes = encode(&FromMonitor::Reply { id, reply: Reply::Done }).unwrap();
            client.output.push_back(Outgoing { bytes, sent: 0, fds, request: Some(id) });
        };
        push(&mut client, 7, vec![null(), null()]);
        push(&mut client, 8, vec![]);
        let handed = client.flush_by(|socket, bytes, fds| match fds {
            [] => fdpass::send(socket, bytes, fds),
            _ => Err(Errno::TOOMANYREFS.into()),
        });
        assert_eq!(handed, Handed::Refused);
        assert!(!client.is_gone() && !client.has_output());
        let (mut input, mut buffer, mut fds) = (Vec::new(), [0; 4096], Vec::new());
        let read = fdpass::receive(theirs.as_fd(), &mut buffer, &mut fds).unwrap();
        input.extend_from_slice(&buffer[..read]);
        let mut next = || serde_json::from_slice(&take_frame(&mut input).unwrap().unwrap()).unwrap();
        let FromMonitor::Reply { id: 7, reply: Reply::Error { kind: ErrorKind::Io, message } } = next()
        else {
            panic!("no error");
        };
        assert!(message.contains("descriptors"), "{message}");
        assert!(matches!(next(), FromMonitor::Reply { id: 8, reply: Reply::Done }));
        // A peer that is gone ends it, as ever.
        push(&mut client, 9, vec![null()]);
        client.flush_by(|_, _, _| Err(Errno::PIPE.into()));
        assert!(client.is_gone());
    }
}
