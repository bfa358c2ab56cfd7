//! Shared work: callers that want the same thing wait for one task. The task outlives each caller and ends when it is
//! done or the last caller is gone. Knows nothing of images.

use super::error::ImageError;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

type Outcome<T> = Option<Result<T, ImageError>>;

/// Work in progress by key.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    running: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

#[derive(Debug)]
struct Flight<T> {
    waiters: usize,
    outcome: watch::Receiver<Outcome<T>>,
    task: AbortHandle,
}

/// How a caller got its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its own work was done.
    Started,
    /// It waited for another's.
    Joined,
}

/// Failed joins of others' work after which a caller works alone: their credentials or manifests may fail repeatedly. More
/// than one, so that many waiters for one failure do not all begin at once.
const MAX_FAILED_JOINS: u32 = 2;

/// A caller's failed joins.
#[derive(Debug, Default)]
pub(crate) struct FailedJoins(u32);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work for `key`, or starts it. `what` names it should it end without a result.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        what: &str,
        work: impl FnOnce() -> F,
    ) -> (Result<T, ImageError>, Role)
    where
        F: Future<Output = Result<T, ImageError>> + Send + 'static,
    {
        let (mut outcome, role) = {
            let mut running = lock(&self.running);
            // A finished flight that is still listed is about to go: its result is not for late comers.
            match running.get_mut(&key).filter(|f| f.outcome.borrow().is_none() && !f.task.is_finished()) {
                Some(flight) => {
                    flight.waiters += 1;
                    (flight.outcome.clone(), Role::Joined)
                }
                None => {
                    let (sender, receiver) = watch::channel(None);
                    let task = tokio::spawn(run(work(), sender)).abort_handle();
                    running.insert(key.clone(), Flight { waiters: 1, outcome: receiver.clone(), task });
                    (receiver, Role::Started)
                }
            }
        };
        // Also dropped with the caller.
        let _waiter = Waiter { flights: Arc::clone(&self.running), key, outcome: outcome.clone() };
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(found) => found.clone(),
            // The task ended without a result: it panicked, or the runtime is going down.
            Err(_) => None,
        };
        (result.unwrap_or_else(|| Err(ImageError::Interrupted { what: what.to_owned() })), role)
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The same for a caller that retries after others' work failed: in the end it works alone, even beside others.
    pub(crate) async fn join_or_alone<F>(
        &self,
        key: K,
        what: &str,
        failed: &mut FailedJoins,
        work: impl FnOnce() -> F,
    ) -> (Result<T, ImageError>, Role)
    where
        F: Future<Output = Result<T, ImageError>> + Send + 'static,
    {
        if failed.0 >= MAX_FAILED_JOINS {
            return (work().await, Role::Started);
        }
        let (result, role) = self.join(key, what, work).await;
        if result.is_err() && role == Role::Joined {
            failed.0 += 1;
        }
        (result, role)
    }
}

async fn run<T>(work: impl Future<Output = Result<T, ImageError>>, sender: watch::Sender<Outcome<T>>) {
    let result = work.await;
    sender.send_replace(Some(result));
}

struct Waiter<K: Eq + Hash, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
    key: K,
    outcome: watch::Receiver<Outcome<T>>,
}

impl<K: Eq + Hash, T> Drop for Waiter<K, T> {
    fn drop(&mut self) {
        let mut running = lock(&self.flights);
        // A later flight may have replaced this one.
        let Some(flight) = running.get_mut(&self.key).filter(|f| f.outcome.same_channel(&self.outcome))
        else {
            return;
        };
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.task.abort();
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::{Notify, oneshot};

    #[tokio::test]
    async fn callers_share_one_run_and_may_leave() {
        let flights = Arc::new(Flights::<&str, u32>::default());
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let call = || {
            let (flights, runs, go) = (Arc::clone(&flights), Arc::clone(&runs), Arc::clone(&go));
            tokio::spawn(async move {
                flights
                    .join("k", "k", || async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        go.notified().await;
                        Ok(7)
                    })
                    .await
            })
        };
        let first = call();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let second = call();
        while lock(&flights.running).get("k").unwrap().waiters < 2 {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go.notify_one();
        let (result, role) = second.await.unwrap();
        assert_eq!((result.unwrap(), role), (7, Role::Joined));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(lock(&flights.running).is_empty());
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_cancelled() {
        struct Told(Option<oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let flights = Flights::<&str, u32>::default();
        let (sender, dropped) = oneshot::channel();
        let told = Told(Some(sender));
        {
            let call = flights.join("k", "k", || async move {
                let _told = told;
                std::future::pending().await
            });
            tokio::select! {
                biased;
                _ = call => panic!("it never ends"),
                () = std::future::ready(()) => {}
            }
        }
        dropped.await.unwrap();
        assert!(lock(&flights.running).is_empty());
    }

    #[tokio::test]
    async fn who_has_waited_for_failures_works_alone() {
        let flights = Arc::new(Flights::<&str, u32>::default());
        let occupy = |fail: oneshot::Receiver<()>| {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move {
                flights
                    .join("k", "k", || async {
                        let _ = fail.await;
                        Err(ImageError::Interrupted { what: "another's".into() })
                    })
                    .await
            })
        };
        let mut failed = FailedJoins::default();
        for _ in 0..MAX_FAILED_JOINS {
            let (fail, told) = oneshot::channel();
            let other = occupy(told);
            while lock(&flights.running).is_empty() {
                tokio::task::yield_now().await;
            }
            let ours = flights.join_or_alone("k", "k", &mut failed, || async { panic!("another is at it") });
            let mut ours = std::pin::pin!(ours);
            assert!(ours.as_mut().now_or_never().is_none());
            fail.send(()).unwrap();
            let (result, role) = ours.await;
            assert!(result.is_err() && role == Role::Joined);
            other.await.unwrap().0.unwrap_err();
        }
        let (_never, told) = oneshot::channel();
        let other = occupy(told);
        while lock(&flights.running).is_empty() {
            tokio::task::yield_now().await;
        }
        let (result, role) = flights.join_or_alone("k", "k", &mut failed, || async { Ok(7) }).await;
        assert_eq!((result.unwrap(), role), (7, Role::Started));
        other.abort();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_not_a_hang() {
        let flights = Flights::<&str, u32>::default();
        let (result, _) = flights.join("k", "the thing", || async { panic!("boom") }).await;
        assert!(result.unwrap_err().to_string().contains("the thing"));
    }
}
