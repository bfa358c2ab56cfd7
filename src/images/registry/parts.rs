//! A large blob in parts, fetched side by side and returned in order. Owns the limit on buffering; any fault here only
//! ends the parallel fetching, and the blob continues as one stream.

use super::session::Session;
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Bytes of a part: large enough that a request for each costs little.
pub(super) const PART: u64 = 4 << 20;
/// Parts in transit or waiting to be returned, with the current one: 16 MiB per layer.
const WAYS: usize = 4;

/// The parts after the first one.
#[derive(Debug)]
pub(super) struct Parts {
    session: Arc<Session>,
    descriptor: Descriptor,
    pub(super) host: usize,
    /// First byte that no part covers yet.
    next: u64,
    running: VecDeque<Task>,
    ready: VecDeque<Bytes>,
}

/// Ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<Result<VecDeque<Bytes>, ImageError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Parts {
    /// Begins to fetch the parts after the first.
    pub(super) fn start(session: &Arc<Session>, descriptor: &Descriptor, host: usize) -> Self {
        let mut parts = Self {
            session: Arc::clone(session),
            descriptor: descriptor.clone(),
            host,
            next: PART,
            running: VecDeque::with_capacity(WAYS),
            ready: VecDeque::new(),
        };
        parts.fill();
        parts
    }

    fn fill(&mut self) {
        while self.running.len() + 1 < WAYS && self.next < self.descriptor.size {
            let (from, end) = (self.next, (self.next + PART).min(self.descriptor.size));
            let (session, descriptor, host) = (Arc::clone(&self.session), self.descriptor.clone(), self.host);
            let fetch = async move { session.blob_part(host, &descriptor, from, end).await };
            self.running.push_back(Task(tokio::spawn(fetch)));
            self.next = end;
        }
    }

    /// The next bytes; None at the end of the blob.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            let Some(first) = self.running.front_mut() else { return Ok(None) };
            let result = (&mut first.0).await;
            self.running.pop_front();
            let what = || ImageError::Interrupted { what: self.descriptor.digest.to_string() };
            self.ready = result.unwrap_or_else(|_| Err(what()))?;
            self.fill();
        }
    }
}
