//! The connection's entry point of the fuzz target `monitor`.

use super::MonitorEvent;
use super::connection::{Command, start};
use podwright_sys::fdpass;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Callers that wait for an answer, with the numbers from 0 on.
const CALLERS: u64 = 3;
/// Limit of descriptors with the first byte.
const DESCRIPTORS: u8 = 5;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an asynchronous runtime")
});

/// A monitor that sends these bytes and ends. Every caller gets an answer, with as many descriptors as it announces, or
/// an error; the last event is the end.
pub(in crate::host) fn connection(data: &[u8]) {
    let Some((count, data)) = data.split_first() else { return };
    RUNTIME.block_on(async {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket that does not block");
        let (commands, mut events) = start(tokio::net::UnixStream::from_std(ours).expect("a socket"));
        let mut answers = Vec::new();
        for id in 0..CALLERS {
            let (answer, receiver) = oneshot::channel();
            commands.send(Command { id, frame: Vec::new(), answer }).await.expect("a task");
            answers.push(receiver);
        }
        theirs.set_nonblocking(true).expect("a socket that does not block");
        let (other, _) = UnixStream::pair().expect("a pair of sockets");
        let fds = vec![other.as_fd(); usize::from(count % DESCRIPTORS)];
        let sent = if data.is_empty() { Ok(0) } else { fdpass::send(theirs.as_fd(), data, &fds) };
        // What the socket does not take at once is dropped.
        let _ = sent.map(|sent| (&theirs).write(&data[sent..]));
        // It stays open for the connection's further output.
        theirs.shutdown(std::net::Shutdown::Write).expect("end the monitor's side");
        for answer in answers {
            if let Ok((reply, fds)) = answer.await {
                assert_eq!(fds.len(), reply.descriptors());
            }
        }
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        assert_eq!(last, Some(MonitorEvent::Gone));
    });
}
