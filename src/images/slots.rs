//! Limits parallel layer downloads: in all, and per registry. Knows nothing of what is downloaded.
//!
//! While others wait, a download that is slow or long steps aside: it goes on, but without a slot. Otherwise a few registries
//! that send just enough bytes to be kept would block every other pull on the node. There are only so many places aside,
//! since each download costs threads and processes; when they are taken, a slow one is given up.

use super::error::ImageError;
use crate::config;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Interval between looks at a download: long enough that a pause of a good registry is no verdict.
const LOOK: Duration = Duration::from_secs(10);
/// Bytes a second below which a download is slow. A line that brings less to each of eight is slow itself, and then stepping
/// aside costs it nothing.
const SLOW: u64 = 64 << 10;
/// Looks after which any download steps aside for others: a minute, in which most layers are done.
const LONG: u32 = 6;
/// Downloads aside, each with two processes of some MiB.
pub(super) const MAX_ASIDE: usize = 32;
/// Downloads aside of one registry, as many as it has slots by default: it takes six registries to fill all places.
const MAX_ASIDE_EACH: usize = 6;

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    all: Arc<Semaphore>,
    /// Slots of one registry; 0: no limit of its own.
    each: usize,
    registries: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Downloads that wait for a common slot.
    waiting: AtomicUsize,
    /// Downloads aside, by registry.
    aside: Arc<Mutex<HashMap<String, usize>>>,
    max_aside: usize,
    pub(super) look: Duration,
}

/// One download's right to run, until all copies are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    registry: Arc<str>,
    place: Arc<Mutex<Place>>,
}

#[derive(Debug)]
enum Place {
    InSlot { _own: Option<OwnedSemaphorePermit>, _all: OwnedSemaphorePermit },
    Aside { _place: Aside },
}

/// A place aside, until dropped.
#[derive(Debug)]
struct Aside {
    registry: Arc<str>,
    of: Arc<Mutex<HashMap<String, usize>>>,
}

/// Counts who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let mut aside = lock(&self.of);
        if let Some(count) = aside.get_mut(&*self.registry) {
            *count -= 1;
        }
        aside.retain(|_, count| *count > 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every section leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    pub(crate) fn new(config: &config::Images) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.max_concurrent_downloads.max(1))),
            each: config.max_concurrent_downloads_per_registry,
            registries: Mutex::default(),
            waiting: AtomicUsize::new(0),
            aside: Arc::default(),
            max_aside: MAX_ASIDE,
            look: LOOK,
        }
    }

    /// Waits for a slot of the registry and then for a common one, so that a busy registry's queue holds no common
    /// slot.
    pub(crate) async fn take(&self, registry: &str) -> Result<Slot, ImageError> {
        let closed = || ImageError::Interrupted { what: format!("the queue for {registry}") };
        let own = match self.of(registry) {
            Some(own) => Some(own.acquire_owned().await.map_err(|_| closed())?),
            None => None,
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(|_| closed())?;
        drop(waiting);
        let place = Arc::new(Mutex::new(Place::InSlot { _own: own, _all: all }));
        Ok(Slot { registry: registry.into(), place })
    }

    /// Watches a download that has `received` so many bytes. Has it step aside when others wait for a slot and it is slow or
    /// long; returns when it is slow and there is no place aside: the bytes that it brought in the last look.
    pub(crate) async fn lost(&self, slot: &Slot, received: impl Fn() -> u64) -> u64 {
        let mut before = received();
        for looks in 1u32.. {
            tokio::time::sleep(self.look).await;
            if matches!(&*lock(&slot.place), Place::Aside { .. }) {
                break;
            }
            let now = received();
            let brought = now.saturating_sub(before);
            before = now;
            let is_slow = u128::from(brought) * 1000 < u128::from(SLOW) * self.look.as_millis();
            if self.waiting.load(Ordering::Relaxed) == 0 || !(is_slow || looks >= LONG) {
                continue;
            }
            if let Some(place) = self.step_aside(&slot.registry) {
                tracing::debug!(registry = %slot.registry, brought, "a download steps aside for others");
                *lock(&slot.place) = Place::Aside { _place: place };
                break;
            }
            if is_slow {
                return brought;
            }
        }
        std::future::pending().await
    }

    fn step_aside(&self, registry: &Arc<str>) -> Option<Aside> {
        let mut aside = lock(&self.aside);
        if aside.values().sum::<usize>() >= self.max_aside {
            return None;
        }
        let count = aside.entry(registry.to_string()).or_default();
        if *count >= MAX_ASIDE_EACH {
            return None;
        }
        *count += 1;
        Some(Aside { registry: Arc::clone(registry), of: Arc::clone(&self.aside) })
    }

    fn of(&self, registry: &str) -> Option<Arc<Semaphore>> {
        if self.each == 0 {
            return None;
        }
        let mut registries = lock(&self.registries);
        // Unused registries without waiters can be dropped.
        registries.retain(|name, slots| name == registry || Arc::strong_count(slots) > 1);
        let slots = registries.entry(registry.to_owned());
        Some(Arc::clone(slots.or_insert_with(|| Arc::new(Semaphore::new(self.each)))))
    }

    /// All common slots at once: nothing is downloaded while they are held.
    #[cfg(test)]
    pub(crate) async fn take_all(&self, count: u32) -> OwnedSemaphorePermit {
        Arc::clone(&self.all).acquire_many_owned(count).await.unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_busy_registry_leaves_slots_to_others() {
        let config = config::Images {
            max_concurrent_downloads: 3,
            max_concurrent_downloads_per_registry: 2,
            ..Default::default()
        };
        let slots = Slots::new(&config);
        let (first, _second) = (slots.take("a").await.unwrap(), slots.take("a").await.unwrap());
        let third = slots.take("a");
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none(), "a has its two");
        let other = slots.take("b").now_or_never().expect("b finds a slot").unwrap();
        drop(first);
        let third = third.await.unwrap();
        assert!(slots.take("c").now_or_never().is_none(), "three in all");
        drop((other, third));
        assert!(slots.take("c").now_or_never().is_some());
        assert!(slots.registries.lock().unwrap().len() <= 2, "registries without downloads are forgotten");
    }

    fn few(all: usize, max_aside: usize) -> Slots {
        let config = config::Images { max_concurrent_downloads: all, ..Default::default() };
        Slots { max_aside, look: Duration::from_millis(2), ..Slots::new(&config) }
    }

    #[tokio::test]
    async fn a_slow_download_steps_aside_for_who_waits_and_is_given_up_where_there_is_no_place() {
        let slots = few(1, 1);
        let slow = slots.take("a").await.unwrap();
        // Nobody waits: it may be as slow as it likes.
        tokio::select! {
            _ = slots.lost(&slow, || 7) => panic!("it is given up"),
            () = tokio::time::sleep(10 * slots.look) => {}
        }
        let next = tokio::select! {
            _ = slots.lost(&slow, || 7) => panic!("it is given up"),
            next = slots.take("b") => next.unwrap(),
        };
        // The place aside is taken.
        let third = slots.take("c");
        tokio::pin!(third);
        let brought = tokio::select! {
            brought = slots.lost(&next, || 7) => brought,
            _ = &mut third => panic!("there is one slot"),
        };
        assert_eq!(brought, 0);
        drop(next);
        let third = third.await.unwrap();
        assert!(slots.step_aside(&third.registry).is_none());
        drop(slow);
        drop(slots.step_aside(&third.registry).unwrap());
        assert!(lock(&slots.aside).is_empty(), "places are given back");
    }

    #[tokio::test]
    async fn a_long_download_steps_aside_too_but_is_never_given_up() {
        let slots = few(1, 1);
        let received = std::cell::Cell::new(0);
        let fast = || {
            received.set(received.get() + (1 << 30));
            received.get()
        };
        let long = slots.take("a").await.unwrap();
        let next = tokio::select! {
            _ = slots.lost(&long, fast) => panic!("it is given up"),
            next = slots.take("b") => next.unwrap(),
        };
        assert!(matches!(&*lock(&long.place), Place::Aside { .. }));
        tokio::select! {
            _ = slots.lost(&next, fast) => panic!("it is given up"),
            _ = slots.take("c") => panic!("there is no place aside"),
            () = tokio::time::sleep(20 * slots.look) => {}
        }
        assert_eq!(slots.waiting.load(Ordering::Relaxed), 0, "who goes away does not wait");
    }

    #[test]
    fn a_registry_has_its_share_of_the_places_aside() {
        let slots = few(1, MAX_ASIDE);
        let (one, other): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let held: Vec<_> = std::iter::from_fn(|| slots.step_aside(&one)).collect();
        assert_eq!(held.len(), MAX_ASIDE_EACH);
        assert!(slots.step_aside(&other).is_some());
    }
}
