//! A budget of places, of which each party has a share: what one does, or has done to it, takes only its share from others.
//! Knows nothing of what the places are for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budget.
#[derive(Debug)]
pub(in crate::images) struct Shares {
    all: Arc<Semaphore>,
    each: usize,
    /// By party; those without a place are forgotten.
    own: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Places of one party, until dropped.
#[derive(Debug)]
pub(in crate::images) struct Share {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Shares {
    /// So many places for all, and for each party.
    pub(in crate::images) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, own: Mutex::default() }
    }

    /// Waits for places of the party's own first, so that those who wait for these are in nobody else's way. More than the
    /// share are as many as it has.
    pub(in crate::images) async fn take(&self, party: &str, count: usize) -> Share {
        let count = u32::try_from(count.min(self.each)).unwrap_or(u32::MAX);
        let (own, all) = (self.own(party), Arc::clone(&self.all));
        loop {
            // They are never closed.
            let Ok(own) = Arc::clone(&own).acquire_many_owned(count).await else { continue };
            let Ok(all) = Arc::clone(&all).acquire_many_owned(count).await else { continue };
            return Share { _own: own, _all: all };
        }
    }

    fn own(&self, party: &str) -> Arc<Semaphore> {
        // Every section leaves it whole.
        let mut parties = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = parties.get(party).and_then(Weak::upgrade) {
            return own;
        }
        parties.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.each));
        parties.insert(party.to_owned(), Arc::downgrade(&own));
        own
    }

    /// How many places are free.
    #[cfg(test)]
    pub(in crate::images) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn a_party_has_its_share_and_those_that_wait_for_it_are_in_nobodys_way() {
        let shares = Shares::new(8, 2);
        let (one, _two) =
            (shares.take("a", 1).now_or_never().unwrap(), shares.take("a", 1).now_or_never().unwrap());
        let mut third = Box::pin(shares.take("a", 1));
        assert!(third.as_mut().now_or_never().is_none());
        let others: Vec<_> =
            ["b", "c", "d"].map(|party| shares.take(party, 9).now_or_never().unwrap()).into();
        assert_eq!(shares.free(), 0, "more than the share is the share");
        drop(one);
        assert!(third.as_mut().now_or_never().is_some());
        drop((third, others));
        assert!(shares.take("e", 2).now_or_never().is_some());
        assert!(shares.own.lock().unwrap().len() <= 2, "those without a place are forgotten");
    }
}
