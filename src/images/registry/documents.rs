//! Memory for documents on their way: one budget for all pulls, since a registry decides how many they are and how long each
//! takes.
//!
//! Owns the places for what a document has beyond its first [`FREE`] bytes, and how long one may be kept and waited for.
//! Beyond the budget documents wait, for [`WAIT`] at most; then their pull fails, and is tried again by whoever wants it.
//! Bounds: 64 pulls ask registries at once (`fetch`), each for one document at a time; with the budget that is 36 MiB.

use crate::images::error::ImageError;
use crate::images::shares::{Share, Shares};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a document that need no place: real ones have a few KiB.
pub(super) const FREE: u64 = 64 << 10;
/// Bytes of all documents with a place: eight of the largest.
const BUDGET: u64 = 32 << 20;
/// The same for one registry.
const EACH: u64 = 8 << 20;
/// How long one is kept: the largest comes in this time at 70 KB a second.
const TIME: Duration = Duration::from_secs(60);
/// How long one is waited for: twice as long as any that is taken is kept.
const WAIT: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(120) };
/// The unit of the budget.
const UNIT: u64 = 1 << 10;

/// The budget.
#[derive(Debug)]
pub(in crate::images) struct Documents {
    memory: Shares,
    wait: Duration,
}

/// Memory for one document, until dropped.
#[derive(Debug)]
pub(in crate::images) struct Place {
    _share: Share,
    /// Until when the document has to be there.
    pub(super) until: Instant,
}

impl Default for Documents {
    fn default() -> Self {
        Self::with(WAIT)
    }
}

/// Places for so many bytes.
fn places(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX)
}

impl Documents {
    fn with(wait: Duration) -> Self {
        Self { memory: Shares::new(places(BUDGET), places(EACH)), wait }
    }

    /// Waits for a place for a document of so many bytes; first for the registry's share, so that one that has many wait for it
    /// holds up no other.
    pub(in crate::images) async fn place(
        &self,
        registry: &str,
        what: &str,
        bytes: u64,
    ) -> Result<Place, ImageError> {
        let full = || ImageError::Unavailable {
            what: what.to_owned(),
            host: registry.to_owned(),
            reason: format!(
                "other pulls take the memory for large documents since {} s",
                self.wait.as_secs()
            ),
            retry_after: None,
        };
        let share = tokio::time::timeout(self.wait, self.memory.take(registry, places(bytes))).await;
        Ok(Place { _share: share.map_err(|_| full())?, until: Instant::now() + TIME })
    }

    /// The error of a document that is not there in time.
    pub(super) fn late(registry: &str, what: &str) -> ImageError {
        ImageError::Unavailable {
            what: what.to_owned(),
            host: registry.to_owned(),
            reason: format!(
                "a document of more than {} KiB did not come within {} s",
                FREE >> 10,
                TIME.as_secs()
            ),
            retry_after: None,
        }
    }

    /// How many bytes are free.
    #[cfg(test)]
    pub(in crate::images) fn free(&self) -> u64 {
        u64::try_from(self.memory.free()).unwrap() * UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: u64 = 4 << 20;

    #[tokio::test]
    async fn documents_have_one_budget_of_which_a_registry_has_its_share() {
        let documents = Documents::with(Duration::from_millis(1));
        let mut places = Vec::new();
        for n in 0..8 {
            let registry = format!("{}.example", n / 2);
            places.push(documents.place(&registry, "x", LARGEST).await.unwrap());
            assert_eq!(documents.free(), BUDGET - (n + 1) * LARGEST);
            if n % 2 == 1 && n < 7 {
                let error = documents.place(&registry, "x", LARGEST).await.unwrap_err().to_string();
                assert!(error.contains("other pulls take the memory"), "{error}");
            }
        }
        documents.place("other.example", "x", FREE).await.unwrap_err();
        places.pop();
        let last = documents.place("other.example", "x", u64::MAX).await;
        last.unwrap_err();
        let place = documents.place("other.example", "x", LARGEST).await.unwrap();
        drop((place, places));
        assert_eq!(documents.free(), BUDGET);
    }
}
