//! Received bytes that a stream's owner has not taken yet: bounded per stream and connection; wakes the owner and tells
//! the sender how much fitted. Joins small pieces, so that many small frames cost no more than their bytes.

use bytes::{Bytes, BytesMut};
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// What all connections may hold together beyond the [`FLOOR`] of each: what clients send ahead, and processes do not take.
/// So many port-forward connections that are full would be some sixty; the usual one holds nothing.
const POOL_BYTES: usize = 256 << 20;
/// What each connection may hold whatever the others do, so that it goes on when the pool is empty.
const FLOOR: usize = 64 << 10;
/// How often a connection that the pool has no room for looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Bytes for all connections.
#[derive(Debug)]
pub(crate) struct Pool(AtomicUsize);

static POOL: Pool = Pool(AtomicUsize::new(POOL_BYTES));

impl Pool {
    fn take(&self, wanted: usize) -> usize {
        let mut granted = 0;
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            granted = wanted.min(left);
            Some(left - granted)
        });
        granted
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// What all inboxes of a connection may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    pool: &'static Pool,
    held: Mutex<Held>,
    room: Notify,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// What of it is the pool's: all beyond [`FLOOR`].
    pooled: usize,
    /// The pool had no more.
    short: bool,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Self::of(bytes, &POOL)
    }

    fn of(bytes: usize, pool: &'static Pool) -> Arc<Self> {
        Arc::new(Self { bytes, pool, held: Mutex::default(), room: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every section leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be room: some inbox was emptied or closed since the last look, here or elsewhere.
    pub(crate) async fn changed(&self) {
        let short = self.lock().short;
        match short {
            true => drop(tokio::time::timeout(LOOK_AGAIN, self.room.notified()).await),
            false => self.room.notified().await,
        }
    }

    fn take(&self, wanted: usize) -> usize {
        let mut held = self.lock();
        let wanted = wanted.min(self.bytes.saturating_sub(held.bytes));
        let beyond = (held.bytes + wanted).saturating_sub(FLOOR) - held.pooled;
        let pooled = self.pool.take(beyond);
        held.short = pooled < beyond;
        let granted = wanted - (beyond - pooled);
        held.bytes += granted;
        held.pooled += pooled;
        granted
    }

    fn give_back(&self, bytes: usize) {
        let mut held = self.lock();
        held.bytes = held.bytes.saturating_sub(bytes);
        let kept = held.bytes.saturating_sub(FLOOR).min(held.pooled);
        self.pool.give_back(held.pooled - kept);
        held.pooled = kept;
        drop(held);
        self.room.notify_one();
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.pool.give_back(self.lock().pooled);
    }
}

/// How the client's half of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client sends no more.
    Finished,
    /// The client reset the stream, or the connection is gone.
    Reset,
}

#[derive(Debug, Default)]
struct State {
    data: BytesMut,
    end: Option<End>,
    waker: Option<Waker>,
    /// The owner will take nothing more: drop what arrives.
    unread: bool,
}

/// The sender's side.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    reset: Notify,
    limit: usize,
    budget: Arc<Budget>,
}

/// The owner's side.
#[derive(Debug)]
pub(crate) struct InboxReader(Arc<Inbox>);

impl Inbox {
    /// An inbox of `limit` bytes.
    pub(crate) fn new(limit: usize, budget: Arc<Budget>) -> (Arc<Self>, InboxReader) {
        let inbox = Arc::new(Self { state: Mutex::default(), reset: Notify::new(), limit, budget });
        (inbox.clone(), InboxReader(inbox))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in what fits and returns how much that was.
    pub(crate) fn push(&self, data: &[u8]) -> usize {
        let mut state = self.lock();
        if state.unread || state.end.is_some() {
            return data.len();
        }
        let room = self.limit.saturating_sub(state.data.len()).min(data.len());
        let granted = self.budget.take(room);
        state.data.extend_from_slice(&data[..granted]);
        if granted > 0
            && let Some(waker) = state.waker.take()
        {
            waker.wake();
        }
        granted
    }

    /// Ends it; a reset overtakes what is still held.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end != Some(End::Reset) {
            state.end = Some(end);
        }
        if end == End::Reset {
            let dropped = std::mem::take(&mut state.data).len();
            self.budget.give_back(dropped);
            self.reset.notify_waiters();
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Returns when it was reset.
    pub(crate) async fn until_reset(&self) {
        // Registered before the check, so that no wake-up is lost.
        let mut told = std::pin::pin!(self.reset.notified());
        told.as_mut().enable();
        if self.ended() != Some(End::Reset) {
            told.await;
        }
    }

    pub(crate) fn ended(&self) -> Option<End> {
        self.lock().end
    }
}

impl InboxReader {
    /// Everything that came; None at the end of the client's half.
    ///
    /// # Errors
    /// `End::Reset` when the stream was broken off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, End> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if !state.data.is_empty() {
                let data = std::mem::take(&mut state.data);
                drop(state);
                self.0.budget.give_back(data.len());
                return Poll::Ready(Ok(Some(data.freeze())));
            }
            match state.end {
                Some(End::Finished) => Poll::Ready(Ok(None)),
                Some(End::Reset) => Poll::Ready(Err(End::Reset)),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.unread = true;
        let dropped = std::mem::take(&mut state.data).len();
        drop(state);
        self.0.budget.give_back(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_holds_no_more_than_its_limits_and_gives_room_back() {
        let budget = Budget::new(10);
        let (a, mut a_reader) = Inbox::new(6, budget.clone());
        let (b, b_reader) = Inbox::new(6, budget.clone());
        assert_eq!(a.push(b"12345678"), 6);
        assert_eq!(b.push(b"12345678"), 4, "the connection's limit");
        assert_eq!(a_reader.next().await.unwrap().unwrap(), "123456");
        assert_eq!(a.push(b"1234567"), 6);
        drop(b_reader);
        assert_eq!(b.push(b"12345678"), 8, "nobody reads: dropped");
        assert_eq!(a_reader.next().await.unwrap().unwrap().len(), 6);
        assert_eq!(budget.lock().bytes, 0);
    }

    #[tokio::test]
    async fn all_connections_together_hold_no_more_than_the_pool_and_each_its_floor() {
        static SMALL: Pool = Pool(AtomicUsize::new(FLOOR));
        let connection = || {
            let budget = Budget::of(4 * FLOOR, &SMALL);
            let (inbox, reader) = Inbox::new(4 * FLOOR, budget.clone());
            (budget, inbox, reader)
        };
        let data = vec![b'x'; 4 * FLOOR];
        let (greedy, inbox, mut reader) = connection();
        assert_eq!(inbox.push(&data), 2 * FLOOR);
        // Nothing is left, but for the floor of everybody.
        let (other, others, mut others_reader) = connection();
        assert_eq!((others.push(&data), others.push(&data)), (FLOOR, 0));
        assert!(other.lock().short);
        assert_eq!(others_reader.next().await.unwrap().unwrap().len(), FLOOR);
        assert_eq!(others.push(&data), FLOOR, "it goes on");
        // It looks again although nothing of its own changed after the first time.
        other.changed().await;
        assert_eq!(reader.next().await.unwrap().unwrap().len(), 2 * FLOOR);
        other.changed().await;
        assert_eq!(others.push(&data), FLOOR);
        assert_eq!(SMALL.0.load(Ordering::SeqCst), 0);
        drop((greedy, inbox, reader, other, others, others_reader));
        assert_eq!(SMALL.0.load(Ordering::SeqCst), FLOOR, "everything is given back");
    }

    #[tokio::test]
    async fn an_end_comes_after_the_data_and_a_reset_before() {
        let (inbox, mut reader) = Inbox::new(6, Budget::new(10));
        inbox.push(b"ab");
        inbox.end(End::Finished);
        assert_eq!(inbox.push(b"late"), 4);
        assert_eq!(reader.next().await.unwrap().unwrap(), "ab");
        assert_eq!(reader.next().await.unwrap(), None);
        inbox.end(End::Reset);
        inbox.end(End::Finished);
        assert_eq!(reader.next().await.unwrap_err(), End::Reset);
    }

    #[tokio::test]
    async fn a_waiting_owner_is_woken() {
        let (inbox, mut reader) = Inbox::new(6, Budget::new(10));
        let waiting = tokio::spawn(async move { reader.next().await.unwrap().unwrap() });
        tokio::task::yield_now().await;
        inbox.push(b"x");
        assert_eq!(waiting.await.unwrap(), "x");
    }
}
