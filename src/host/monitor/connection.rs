//! The task that owns one connection: requests out, replies to whom they belong, events on. Keeps nothing for a caller
//! that has given up, and holds no buffer while nothing is said.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use podwright_monitor_proto::{Event, FromMonitor, Reply, RequestId, take_frame};
use podwright_sys::fdpass;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::MonitorEvent;

/// Requests that may wait to be sent; more callers wait in their own tasks, under their deadlines.
const COMMANDS: usize = 8;

/// Events that the pod's owner may have waiting.
const EVENTS: usize = 32;

/// Events kept beyond that for an owner that is slow; one that is slower has to look for itself.
const EVENT_BACKLOG: usize = 1024;

/// Bytes per read; most messages are shorter.
const READ_BYTES: usize = 8192;

/// Descriptors of a message whose end has not come yet; a monitor sends no more than [`fdpass::MAX_FDS`] with one.
const UNCLAIMED: usize = 2 * fdpass::MAX_FDS;

/// A reply, and the descriptors that came with it: as many as it says, or the connection is given up.
pub(super) type Answer = (Reply, Vec<OwnedFd>);

/// One request on its way.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) id: RequestId,
    pub(super) frame: Vec<u8>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Starts the task. It ends when the monitor closes the connection or the last sender is dropped.
pub(super) fn start(socket: UnixStream) -> (mpsc::Sender<Command>, mpsc::Receiver<MonitorEvent>) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (sender, events) = mpsc::channel(EVENTS);
    let connection = Connection {
        socket,
        pending: Vec::new(),
        input: Vec::new(),
        fds: VecDeque::new(),
        output: VecDeque::new(),
        backlog: VecDeque::new(),
    };
    tokio::spawn(connection.serve(receiver, sender));
    (commands, events)
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

struct Connection {
    socket: UnixStream,
    pending: Vec<(RequestId, oneshot::Sender<Answer>)>,
    input: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    output: VecDeque<Outgoing>,
    backlog: VecDeque<MonitorEvent>,
}

impl Connection {
    async fn serve(mut self, mut commands: mpsc::Receiver<Command>, events: mpsc::Sender<MonitorEvent>) {
        loop {
            let interest = match self.output.is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            tokio::select! {
                command = commands.recv(), if self.output.is_empty() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                ready = self.socket.ready(interest) => if ready.is_err() { break },
                permit = events.reserve(), if !self.backlog.is_empty() => match permit {
                    Ok(permit) => if let Some(event) = self.backlog.pop_front() { permit.send(event) },
                    // Nobody listens.
                    Err(_) => self.backlog.clear(),
                },
            }
            if self.write().is_err() || self.read().is_err() || self.backlog.len() > EVENT_BACKLOG {
                break;
            }
        }
        // Callers learn first, whether or not anybody takes the events.
        drop((commands, self.pending, self.socket));
        for event in self.backlog.into_iter().chain([MonitorEvent::Gone]) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        // Those whose callers ran out of time while the monitor says nothing.
        self.pending.retain(|(_, answer)| !answer.is_closed());
        if !command.answer.is_closed() {
            self.pending.push((command.id, command.answer));
            self.output.push_back(Outgoing { bytes: command.frame, sent: 0 });
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(front) = self.output.front_mut() {
            match self.socket.try_write(&front.bytes[front.sent..]) {
                Ok(sent) => {
                    front.sent += sent;
                    if front.sent == front.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let (mut buffer, mut fds) = ([0; READ_BYTES], Vec::new());
        loop {
            let received = self
                .socket
                .try_io(Interest::READABLE, || fdpass::receive(self.socket.as_fd(), &mut buffer, &mut fds));
            match received {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            self.fds.extend(fds.drain(..));
            while let Some(frame) = take_frame(&mut self.input).map_err(io::Error::other)? {
                self.deliver(serde_json::from_slice(&frame)?)?;
            }
            if self.fds.len() > UNCLAIMED {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(())
    }

    fn deliver(&mut self, message: FromMonitor) -> io::Result<()> {
        match message {
            FromMonitor::Reply { id, reply } => {
                if reply.descriptors() > self.fds.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let fds = self.fds.drain(..reply.descriptors()).collect();
                if let Some(at) = self.pending.iter().position(|(pending, _)| *pending == id) {
                    let (_, answer) = self.pending.swap_remove(at);
                    // A caller that has given up: the answer is nobody's.
                    let _ = answer.send((reply, fds));
                }
            }
            FromMonitor::Event(Event::ContainerExited { container_id, exit }) => {
                self.backlog.push_back(MonitorEvent::ContainerExited { container_id, exit });
            }
            FromMonitor::Event(Event::LogLost { container_id, bytes, reason }) => {
                self.backlog.push_back(MonitorEvent::LogLost { container_id, bytes, reason });
            }
            // Of a monitor of protocol 1; the session's leash reports it, too.
            FromMonitor::Event(Event::ExecExited { .. }) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use podwright_monitor_proto::{ExitRecord, encode};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn event(number: i32) -> FromMonitor {
        let exit = ExitRecord {
            version: 1,
            container_id: "c".into(),
            pid: 9,
            exit_code: number,
            signal: None,
            oom_killed: false,
            finished_at_ns: 0,
        };
        FromMonitor::Event(Event::ContainerExited { container_id: "c".into(), exit })
    }

    fn command(id: RequestId) -> (Command, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        (Command { id, frame: vec![0, 0, 0, 0], answer }, receiver)
    }

    #[tokio::test]
    async fn replies_find_their_callers_in_any_order_whoever_neglects_the_events() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (commands, mut events) = start(ours);
        let ((first, one), (second, two)) = (command(1), command(2));
        commands.send(first).await.unwrap();
        commands.send(second).await.unwrap();
        for number in 0..200 {
            theirs.write_all(&encode(&event(number)).unwrap()).await.unwrap();
        }
        for id in [2, 1] {
            let reply = FromMonitor::Reply { id, reply: Reply::Running { pid: 1, start_time: id } };
            theirs.write_all(&encode(&reply).unwrap()).await.unwrap();
        }
        assert_eq!(two.await.unwrap().0, Reply::Running { pid: 1, start_time: 2 });
        assert_eq!(one.await.unwrap().0, Reply::Running { pid: 1, start_time: 1 });
        drop(theirs);
        for number in 0..200 {
            let MonitorEvent::ContainerExited { exit, .. } = events.recv().await.unwrap() else { panic!() };
            assert_eq!(exit.exit_code, number);
        }
        assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
        assert_eq!(events.recv().await, None);
        assert!(commands.send(command(3).0).await.is_err());
    }

    #[tokio::test]
    async fn a_monitor_that_talks_nonsense_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (commands, mut events) = start(ours);
        let (asked, answer) = command(1);
        commands.send(asked).await.unwrap();
        theirs.write_all(&[0xff; 16]).await.unwrap();
        assert!(answer.await.is_err());
        assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
    }

    #[tokio::test]
    async fn a_monitor_that_sends_descriptors_that_nobody_claims_is_given_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_commands, mut events) = start(ours);
        let (null, frame) = (std::fs::File::open("/dev/null").unwrap(), encode(&event(1)).unwrap());
        let fds = [null.as_fd(); fdpass::MAX_FDS];
        // More than a daemon may have open: it is given up long before.
        for _ in 0..20_000 {
            theirs.writable().await.unwrap();
            match theirs.try_io(Interest::WRITABLE, || fdpass::send(theirs.as_fd(), &frame, &fds)) {
                Ok(_) => while events.try_recv().is_ok() {},
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            tokio::task::yield_now().await;
        }
        panic!("it takes descriptors without end");
    }

    #[tokio::test]
    async fn the_connection_closes_with_the_last_handle() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (commands, mut events) = start(ours);
        drop(commands);
        assert_eq!(events.recv().await, None);
        theirs.readable().await.unwrap();
        assert_eq!(theirs.try_read(&mut [0; 8]).unwrap(), 0);
    }
}
