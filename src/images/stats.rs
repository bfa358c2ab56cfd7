//! Counters of pulls, as plain atomics that the metrics module reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct PullStats {
    /// Pulls that ended well, joined ones counted once.
    pub pulls_ok: AtomicU64,
    /// Pulls that failed.
    pub pulls_failed: AtomicU64,
    /// Pulls under way.
    pub pulls_running: AtomicU64,
    /// Layers unpacked and committed.
    pub layers: AtomicU64,
    /// Layers that were there already.
    pub layers_reused: AtomicU64,
    /// Compressed bytes of layers received.
    pub bytes: AtomicU64,
    /// Bytes of tar that came out of them.
    pub unpacked_bytes: AtomicU64,
    /// Images whose signature the policy asked for and that had one.
    pub signatures_verified: AtomicU64,
    /// Images refused by the policy.
    pub signatures_refused: AtomicU64,
    /// Images without a valid signature that were pulled all the same, as the policy only warns.
    pub signatures_missed: AtomicU64,
    /// Microseconds of all pulls together.
    pub micros: AtomicU64,
}

impl PullStats {
    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, ok: bool, took: Duration) {
        Self::add(if ok { &self.pulls_ok } else { &self.pulls_failed }, 1);
        Self::add(&self.micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}
