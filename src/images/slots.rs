//! Limits parallel layer downloads: in all, and per registry. Knows nothing of what is downloaded.

use super::error::ImageError;
use crate::config;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    all: Arc<Semaphore>,
    /// Slots of one registry; 0: no limit of its own.
    each: usize,
    registries: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// One download's right to run, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(config: &config::Images) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.max_concurrent_downloads.max(1))),
            each: config.max_concurrent_downloads_per_registry,
            registries: Mutex::default(),
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
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(|_| closed())?;
        Ok(Slot { _own: own, _all: all })
    }

    fn of(&self, registry: &str) -> Option<Arc<Semaphore>> {
        if self.each == 0 {
            return None;
        }
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
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
}
