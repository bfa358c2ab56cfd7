//! A connection: the state that its halves and streams share, and its reading task.

use super::frame::{self, Away};
use super::headers::Headers;
use super::inbox::{Budget, End, Inbox};
use super::outbound::{Outbound, Writing};
use super::reader::{Reader, Reading};
use super::{SpdyError, Stream};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Limits of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams at once; further ones are refused.
    pub streams: usize,
    /// Bytes held for one stream whose owner does not take them.
    pub stream_bytes: usize,
    /// The same for all streams together.
    pub held_bytes: usize,
    /// Silence in both directions after which the connection ends.
    pub idle: Duration,
}

/// A client's connection, read by a task of its own that ends with this.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    streams: mpsc::Receiver<Stream>,
    task: JoinHandle<Result<(), SpdyError>>,
}

/// Detects whether the client is gone while nothing is read from it.
pub type Hangup = Box<dyn Fn() -> bool + Send + Sync>;

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
    let shared = Arc::new(Shared {
        outbound: Outbound::new(writing.into()),
        budget: Budget::new(limits.held_bytes),
        streams: Mutex::default(),
        last: AtomicU32::new(0),
    });
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

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outbound: Outbound,
    pub(super) budget: Arc<Budget>,
    streams: Mutex<HashMap<u32, Arc<Inbox>>>,
    last: AtomicU32,
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, HashMap<u32, Arc<Inbox>>> {
        // Every section leaves it whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inbox(&self, id: u32) -> Option<Arc<Inbox>> {
        self.table().get(&id).cloned()
    }

    pub(super) fn forget(&self, id: u32) {
        self.table().remove(&id);
    }

    /// The greatest id that the client used.
    pub(super) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    pub(super) fn set_last(&self, id: u32) {
        self.last.store(id, Ordering::Relaxed);
    }
}
