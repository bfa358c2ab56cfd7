//! Counters of pulls, as plain atomics that the metrics module reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct PullStats {
    /// Successful pulls; joined ones count once.
    pub pulls_ok: AtomicU64,
    /// Pulls that failed.
    pub pulls_failed: AtomicU64,
    /// Layers unpacked and committed.
    pub layers: AtomicU64,
    /// Layers already present.
    pub layers_reused: AtomicU64,
    /// Compressed bytes of layers received.
    pub bytes: AtomicU64,
    /// Images whose signature the policy required and verified.
    pub signatures_verified: AtomicU64,
    /// Images refused by the policy.
    pub signatures_refused: AtomicU64,
    /// Images without a valid signature that were pulled all the same, as the policy only warns.
    pub signatures_missed: AtomicU64,
    /// Microseconds of all pulls together.
    pub micros: AtomicU64,
    /// Nanoseconds of all layers together, by stage.
    pub stages: [AtomicU64; Stage::ALL.len()],
}

/// The stages of a layer on its way from the registry to the store. They run side by side, on two threads and the
/// network's: the one whose time is close to the whole is the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for the registry.
    Network,
    /// Hashing the blob.
    BlobDigest,
    /// Decompressing.
    Decompress,
    /// Hashing the tar.
    TarDigest,
    /// Writing files and the recipe.
    Unpack,
    /// Making the layer durable and visible.
    Publish,
}

impl Stage {
    /// In the order of the way.
    pub const ALL: [Self; 6] =
        [Self::Network, Self::BlobDigest, Self::Decompress, Self::TarDigest, Self::Unpack, Self::Publish];

    /// The name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::BlobDigest => "blob_digest",
            Self::Decompress => "decompress",
            Self::TarDigest => "tar_digest",
            Self::Unpack => "unpack",
            Self::Publish => "publish",
        }
    }
}

impl PullStats {
    pub(crate) fn spent(&self, stage: Stage, time: Duration) {
        if let Some(counter) = self.stages.get(stage as usize) {
            Self::add(counter, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// The time that a stage has taken so far.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.stages.get(stage as usize).map_or(0, |n| n.load(Ordering::Relaxed)))
    }

    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, ok: bool, took: Duration) {
        Self::add(if ok { &self.pulls_ok } else { &self.pulls_failed }, 1);
        Self::add(&self.micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}
