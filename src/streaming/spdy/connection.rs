//! A connection: the state that its halves and streams share, and its reading task.

use super::frame::{self, Away};
use super::headers::Headers;
use super::inbox::End;
use super::outbound::Writing;
use super::reader::{Reader, Reading};
use super::shared::{Hangup, Limits, Shared};
use super::{SpdyError, Stream};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A client's connection, read by a task of its own that ends with this.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    streams: mpsc::Receiver<Stream>,
    task: JoinHandle<Result<(), SpdyError>>,
}

/// Serves a connection. `early` are client bytes already read. A stream whose headers `accept` refuses is reset at once
/// and never returned.
#[must_use]
pub fn open(
    reading: Reading,
    writing: impl Into<Writing>,
    early: Bytes,
    limits: Limits,
    hangup: Option<Hangup>,
    accept: fn(&Headers) -> bool,
) -> Connection {
    let shared = Arc::new(Shared::new(writing.into(), limits));
    let (tell, streams) = mpsc::channel(limits.streams.max(1));
    let reader = Reader::new(reading, early, shared.clone(), limits, tell, hangup, accept);
    let task = tokio::spawn(drive(reader, shared.clone(), limits.idle));
    Connection { shared, streams, task }
}

async fn drive(reader: Reader, shared: Arc<Shared>, idle: Duration) -> Result<(), SpdyError> {
    let _end = EndAll(shared.clone());
    let outcome = tokio::select! {
        outcome = reader.run() => outcome,
        outcome = shared.outbound.send_control() => outcome,
        () = shared.outbound.idle(idle) => Err(SpdyError::Idle(idle)),
    };
    if let Err(SpdyError::Protocol(_) | SpdyError::Headers(_)) = outcome {
        shared.outbound.push(|out| frame::go_away(out, shared.last(), Away::Protocol));
        // Best effort, and brief: the client may be reading nothing.
        let _ = tokio::time::timeout(Duration::from_secs(1), shared.outbound.shut_down()).await;
    }
    outcome
}

/// Breaks all streams off when the connection's task ends, however it ends.
struct EndAll(Arc<Shared>);

impl Drop for EndAll {
    fn drop(&mut self) {
        for inbox in self.0.table().values() {
            inbox.end(End::Reset);
        }
    }
}

impl Connection {
    /// The next stream; None when the connection has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    /// The cause of the end, unless the client ended it.
    pub async fn ended(&mut self) -> Result<(), SpdyError> {
        (&mut self.task).await.unwrap_or(Err(SpdyError::Gone))
    }

    /// Streams that are open or not yet dropped.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.shared.table().len()
    }

    /// Ends the connection: GOAWAY, then waits up to `linger` for the client to close. Closing with unread bytes would
    /// make the kernel discard pending output.
    pub async fn close(mut self, linger: Duration) {
        self.streams.close();
        self.shared.outbound.push(|out| frame::go_away(out, self.shared.last(), Away::Ok));
        let ending = async {
            if self.shared.outbound.shut_down().await.is_ok() {
                let _ = (&mut self.task).await;
            }
        };
        let _ = tokio::time::timeout(linger, ending).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
