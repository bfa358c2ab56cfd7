//! What the reading task, the writing half and the streams of a connection share.

use super::inbox::{Budget, Inbox};
use super::outbound::{Outbound, Writing};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Detects whether the client is gone while nothing is read from it.
pub type Hangup = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outbound: Outbound,
    pub(super) budget: Arc<Budget>,
    streams: Mutex<HashMap<u32, Arc<Inbox>>>,
    last: AtomicU32,
}

impl Shared {
    pub(super) fn new(writing: Writing, limits: Limits) -> Self {
        Self {
            outbound: Outbound::new(writing),
            budget: Budget::new(limits.held_bytes),
            streams: Mutex::default(),
            last: AtomicU32::new(0),
        }
    }

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
