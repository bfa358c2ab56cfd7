//! Timestamps in nanoseconds since the epoch, each with the rule that its readers need:
//!
//! - starts, ends and measurements carry the wall clock as it is: a kubelet subtracts them from its own clock, and
//!   waits for days if they lie in the future ([`Timestamp::now`]);
//! - `created_at` orders the attempts of one pod or container: the kubelet takes the newest one for the current one,
//!   also after the clock was set back ([`Timestamp::after`]);
//! - events and the statuses beside them are ordered among themselves ([`Clock`]).

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// What the wall clock says, also when it was set back.
    #[must_use]
    pub fn now() -> Self {
        Self(wall_nanos())
    }

    /// This instant, or the nanosecond after the newest of `earlier` if that is later.
    #[must_use]
    pub fn after(self, earlier: impl IntoIterator<Item = Self>) -> Self {
        earlier.into_iter().fold(self, |latest, other| latest.max(Self(other.0.saturating_add(1))))
    }

    /// Nanoseconds since the epoch, as CRI wants them.
    #[must_use]
    pub fn nanos(self) -> i64 {
        self.0
    }
}

/// Yields strictly increasing timestamps within one daemon, for what is ordered and not compared with another clock.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// Now, or one nanosecond after the last answer if the wall clock has not advanced.
    pub fn next(&self) -> Timestamp {
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
        let future = wall_nanos() + 3_600_000_000_000;
        let clock = Clock { last: AtomicI64::new(future) };
        let (a, b) = (clock.next(), clock.next());
        assert!(Timestamp(future) < a && a < b);
    }

    #[test]
    fn an_attempt_is_newer_than_the_earlier_ones_and_else_as_the_wall_clock_says() {
        assert_eq!(Timestamp(5).after([Timestamp(3), Timestamp(2)]), Timestamp(5));
        assert_eq!(Timestamp(5).after([Timestamp(5)]), Timestamp(6));
        assert_eq!(Timestamp(5).after([Timestamp(2), Timestamp(9)]), Timestamp(10));
        assert_eq!(Timestamp(5).after([]), Timestamp(5));
    }
}
