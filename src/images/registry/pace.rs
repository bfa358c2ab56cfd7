//! How fast bytes come: a body that stands still or drips is given up, and all bodies together keep below the configured rate.

use super::client::HostClient;
use super::fetch::Response;
use crate::images::error::ImageError;
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One body's progress. Only time spent waiting for the network counts: a slow disk is no fault of the registry.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// The next piece of a body.
    pub(super) async fn next(
        &mut self,
        host: &HostClient,
        response: &mut Response,
        what: &str,
    ) -> Result<Option<Bytes>, ImageError> {
        let shared = host.shared();
        let window = shared.progress_timeout;
        let begun = Instant::now();
        let chunk = tokio::time::timeout(window, response.chunk())
            .await
            .map_err(|_| host.stalled(what))?
            .map_err(|e| host.unavailable(what, e.to_string()))?;
        let Some(chunk) = chunk else { return Ok(None) };
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if let Some(bytes) = self.add(begun.elapsed(), length, window, shared.min_bytes_per_second) {
            return Err(ImageError::TooSlow { what: what.to_owned(), host: host.name(), bytes, window });
        }
        shared.throttle.take(length).await;
        Ok(Some(chunk))
    }

    /// Counts; at the end of each window the bytes of it, if they are too few.
    fn add(&mut self, waited: Duration, bytes: u64, window: Duration, least: u64) -> Option<u64> {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < window {
            return None;
        }
        let wanted = least.saturating_mul(self.waited.as_secs());
        let Self { bytes, .. } = std::mem::take(self);
        (bytes < wanted).then_some(bytes)
    }
}

/// A limit on the bytes of all bodies together.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes a second; 0: no limit.
    rate: u64,
    /// When the bytes taken so far are paid for.
    free: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, free: Mutex::new(Instant::now()) }
    }

    async fn take(&self, bytes: u64) {
        if let Some(until) = self.reserve(bytes, Instant::now()) {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// When these bytes may be used; None: at once.
    fn reserve(&self, bytes: u64, now: Instant) -> Option<Instant> {
        if self.rate == 0 {
            return None;
        }
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.rate);
        let cost = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free).max(now);
        *free = start.checked_add(cost).unwrap_or(start);
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_noticed_at_the_end_of_the_window() {
        let (second, window) = (Duration::from_secs(1), Duration::from_secs(3));
        let mut pace = Pace::default();
        assert_eq!(pace.add(second, 100, window, 1000), None);
        assert_eq!(pace.add(second, 100, window, 1000), None);
        assert_eq!(pace.add(second, 100, window, 1000), Some(300));
        // A new window; a burst pays for the waits around it.
        assert_eq!(pace.add(2 * second, 1, window, 1000), None);
        assert_eq!(pace.add(second, 2999, window, 1000), None);
        assert_eq!(pace.add(window, 0, window, 0), None, "0: any drip is well");
    }

    #[test]
    fn the_rate_holds_over_all_takers() {
        let now = Instant::now();
        let throttle = Throttle { rate: 1000, free: Mutex::new(now) };
        assert_eq!(throttle.reserve(500, now), None);
        assert_eq!(throttle.reserve(2000, now), Some(now + Duration::from_millis(500)));
        assert_eq!(throttle.reserve(1, now), Some(now + Duration::from_millis(2500)));
        // What is not used is not saved up.
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.reserve(1000, later), None);
        assert_eq!(throttle.reserve(1, later), Some(later + Duration::from_secs(1)));
        assert_eq!(Throttle::new(0).reserve(u64::MAX, now), None);
    }
}
