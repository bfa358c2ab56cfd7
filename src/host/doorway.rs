//! Connections of a listener that have not proved useful yet. Places are limited, and when all are taken a newcomer
//! pushes out the oldest, so that silent clients never keep out others.
//!
//! Owns the order. Never touches a connection: one that is pushed out is notified and ends itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Time before a connection can be pushed out: a client on this machine sends its request within a millisecond. A
/// longer time would let a flood delay newcomers.
const STAY: Duration = Duration::from_millis(50);
/// Pause after a failed accept: descriptors have run out, and an immediate retry would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The places of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doorway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: usize,
    standing: Mutex<Standing>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Standing {
    next: u64,
    by_age: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

/// A place in the door; its drop gives it back.
#[derive(Debug)]
pub struct Place {
    doorway: Doorway,
    number: u64,
}

/// Notifies the connection that must go.
#[derive(Debug)]
pub struct Pushed(oneshot::Receiver<()>);

impl Doorway {
    /// A door for so many.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Inner { places, standing: Mutex::default(), left: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        // Every section leaves it whole.
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if necessary the oldest's, after [`STAY`] at the latest.
    pub async fn enter(&self) -> (Place, Pushed) {
        loop {
            let wait = {
                let mut standing = self.lock();
                let oldest = match standing.by_age.first_key_value() {
                    Some((_, (since, _))) if standing.by_age.len() >= self.0.places => since.elapsed(),
                    _ => STAY,
                };
                if oldest >= STAY {
                    if standing.by_age.len() >= self.0.places {
                        standing.push_oldest();
                    }
                    let number = standing.next;
                    standing.next += 1;
                    let (push, pushed) = oneshot::channel();
                    standing.by_age.insert(number, (Instant::now(), push));
                    return (Place { doorway: self.clone(), number }, Pushed(pushed));
                }
                STAY - oldest
            };
            // Another may leave before that.
            let _ = tokio::time::timeout(wait, self.0.left.notified()).await;
        }
    }

    /// Whether more than a quarter of the places is taken.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.lock().by_age.len() > self.0.places / 4
    }

    /// Handles a failed accept: logs it, pushes out the oldest, which holds a descriptor, and waits a moment.
    pub async fn after_failed_accept(&self, listener: &'static str, error: &io::Error) {
        failed_accept(listener, error);
        self.lock().push_oldest();
        pause().await;
    }
}

/// The same for a listener without a door.
pub async fn after_failed_accept(listener: &'static str, error: &io::Error) {
    failed_accept(listener, error);
    pause().await;
}

fn failed_accept(listener: &'static str, error: &io::Error) {
    // Log: Mostly no descriptors are left. The oldest connection without a request is closed and the listener tries
    // again.
    // Do: `podwright check`: open files.
    tracing::warn!(listener, %error, "a listener cannot accept a connection");
}

async fn pause() {
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Standing {
    fn push_oldest(&mut self) {
        if let Some((_, (_, push))) = self.by_age.pop_first() {
            // It may have gone by itself.
            let _ = push.send(());
        }
    }
}

impl Place {
    /// Gives the place back and cannot be pushed out any more.
    pub fn leave(&self) {
        self.doorway.lock().by_age.remove(&self.number);
        self.doorway.0.left.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Pushed {
    /// Returns when a newcomer needs the place; never after it was left.
    pub async fn out(self) {
        if self.0.await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newcomer_pushes_out_the_oldest_but_nobody_who_has_left_the_door() {
        let door = Doorway::new(2);
        let (first, first_pushed) = door.enter().await;
        let (second, second_pushed) = door.enter().await;
        let (_third, _) = door.enter().await;
        first_pushed.out().await;
        drop(first);
        second.leave();
        let (_fourth, _) = door.enter().await;
        let (_fifth, _) = door.enter().await;
        let pushed = tokio::time::timeout(Duration::ZERO, second_pushed.out()).await;
        assert!(pushed.is_err(), "it was pushed out after it had left");
        assert_eq!(door.lock().by_age.len(), 2);
    }

    #[tokio::test]
    async fn who_stands_in_the_door_makes_room_when_descriptors_run_out() {
        let door = Doorway::new(9);
        let (_place, pushed) = door.enter().await;
        door.after_failed_accept("a test's", &io::Error::from_raw_os_error(24)).await;
        pushed.out().await;
    }
}
