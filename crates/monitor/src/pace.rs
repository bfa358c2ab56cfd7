//! Limits the CPU time that the output of a pod's containers takes here. The monitor is outside the pod's cgroup, so
//! that the pod's limits never stop or kill it; instead this bounds the work that a container causes by writing. A
//! faster writer waits at a full pipe. Never looks at the output itself.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Over time, one part in this many of one CPU: about 190 MB/s, faster than any log is rotated. Without a limit,
/// writers of single bytes take a whole CPU.
const SHARE: u32 = 5;

/// CPU time of a burst, so that brief output is never delayed: 40 MB, or some thousand single lines.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Pace {
    /// The remaining budget, as of `at`.
    left: Duration,
    /// The excess used.
    debt: Duration,
    at: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, debt: Duration::ZERO, at: now }
    }

    /// When output may be read again; `None` for now.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let until = self.at + self.debt * SHARE;
        (!self.debt.is_zero() && until > now).then_some(until)
    }

    /// Notes CPU time that output took.
    pub(crate) fn spend(&mut self, time: Duration, now: Instant) {
        let earned = now.saturating_duration_since(self.at) / SHARE;
        let (paid, over) = (earned.min(self.debt), earned.saturating_sub(self.debt));
        self.debt -= paid;
        self.left = (self.left + over).min(BURST);
        self.debt += time.saturating_sub(self.left);
        self.left = self.left.saturating_sub(time);
        self.at = now;
    }
}

/// CPU time of this thread so far.
pub(crate) fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(1);

    #[test]
    fn who_works_without_end_gets_its_share_and_who_rests_its_burst() {
        let start = Instant::now();
        let (mut pace, mut now, mut worked) = (Pace::new(start), start, Duration::ZERO);
        // Works whenever it may, for ten seconds.
        while now < start + Duration::from_secs(10) {
            now = pace.closed_until(now).unwrap_or(now) + SLICE;
            worked += SLICE;
            pace.spend(SLICE, now);
        }
        let share = now.duration_since(start) / SHARE;
        assert!(worked >= share && worked <= share + BURST + 2 * SLICE, "{worked:?} of {share:?}");
        assert!(pace.closed_until(now).is_some());
        // The budget grows to at most a burst.
        now += Duration::from_secs(100);
        assert_eq!(pace.closed_until(now), None);
        pace.spend(BURST, now);
        assert_eq!(pace.closed_until(now), None);
        pace.spend(SLICE, now);
        assert_eq!(pace.closed_until(now), Some(now + SLICE * SHARE));
    }

    #[test]
    fn little_work_is_never_held_up() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..100_000 {
            now += SLICE;
            pace.spend(SLICE / 10, now);
            assert_eq!(pace.closed_until(now), None);
        }
    }
}
