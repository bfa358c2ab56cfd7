//! Wall-clock timestamps in nanoseconds since the epoch, never repeated: the kubelet picks the newest attempt by
//! `created_at`, so no two objects may share one, and a clock set back must not reverse their order.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Nanoseconds since the epoch, as CRI wants them.
    #[must_use]
    pub fn nanos(self) -> i64 {
        self.0
    }
}

/// Yields strictly increasing timestamps within one daemon.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// A clock that will not go below `floor`, the newest timestamp found in the records.
    #[must_use]
    pub fn starting_after(floor: Timestamp) -> Self {
        Self { last: AtomicI64::new(floor.0) }
    }

    /// Now, or one nanosecond after the last answer if the wall clock has not advanced.
    pub fn now(&self) -> Timestamp {
        let wall = wall_nanos();
        let previous = self
            .last
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(wall.max(last.saturating_add(1))))
            .unwrap_or_default();
        Timestamp(wall.max(previous.saturating_add(1)))
    }
}

fn wall_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_nanos()).ok())
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_repeats_even_when_the_wall_clock_is_behind() {
        let future = Timestamp(wall_nanos() + 3_600_000_000_000);
        let clock = Clock::starting_after(future);
        let (a, b) = (clock.now(), clock.now());
        assert!(future < a && a < b);
    }
}
