//! Bytes a second over the last moments. Pure: the caller passes the time.

use std::collections::VecDeque;
use std::time::Duration;

/// The averaging window: long enough to be steady, short enough to show a stall.
const WINDOW: Duration = Duration::from_secs(3);

/// The meter.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Times, and bytes received until then.
    seen: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// Takes note of what has been received by `now` and returns the rate.
    pub(super) fn rate(&mut self, now: Duration, received: u64) -> u64 {
        // Fewer than before: a layer started again.
        if self.seen.back().is_some_and(|(_, last)| *last > received) {
            self.seen.clear();
        }
        self.seen.push_back((now, received));
        while self.seen.len() > 2
            && self.seen.front().is_some_and(|(then, _)| now.saturating_sub(*then) > WINDOW)
        {
            self.seen.pop_front();
        }
        let (then, before) = self.seen.front().copied().unwrap_or_default();
        rate(received.saturating_sub(before), now.saturating_sub(then))
    }
}

/// Bytes a second; 0 for no time at all.
pub(super) fn rate(bytes: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    if time.is_zero() { 0 } else { u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_moments() {
        let (mut meter, at) = (Meter::default(), Duration::from_secs);
        assert_eq!(meter.rate(at(0), 0), 0);
        assert_eq!(meter.rate(at(1), 100), 100);
        assert_eq!(meter.rate(at(2), 200), 100);
        let stalled: Vec<u64> = (3..8).map(|second| meter.rate(at(second), 200)).collect();
        assert_eq!(stalled.last(), Some(&0), "{stalled:?}");
        assert_eq!(meter.rate(at(8), 50), 0, "it begins anew");
        assert_eq!(rate(500, Duration::from_millis(500)), 1000);
    }
}
