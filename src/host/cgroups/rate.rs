//! CPU time as a rate: usage between two readings by recurring readers.
//!
//! Owns the earlier readings. Never reads a cgroup, never waits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest interval for a rate: otherwise two clients that ask almost at once would spoil each other's window. A
/// kubelet asks every ten seconds.
const SHORTEST: Duration = Duration::from_secs(1);
/// Age from which a reading is replaced as the base of the next ones.
const WINDOW: Duration = Duration::from_secs(10);
/// Cgroups without queries for this long are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    used_ns: u64,
}

/// Two readings: with `base` the next are compared, `next_base` takes its place once that is old.
#[derive(Debug, Clone, Copy)]
struct Meter {
    base: Reading,
    next_base: Reading,
    asked: Instant,
}

/// The readings of all queried cgroups.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<PathBuf, Meter>>);

impl Rates {
    /// Nanoseconds of CPU time a second since an earlier reading, one to about twenty seconds ago; None at first, or if
    /// the counter went back, as for a new cgroup of the same name.
    pub(super) fn observe(&self, cgroup: &Path, used_ns: u64, now: Instant) -> Option<u64> {
        let reading = Reading { at: now, used_ns };
        // Every section leaves the table whole.
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(meter) = meters.get_mut(cgroup) else {
            meters.retain(|_, meter| now.saturating_duration_since(meter.asked) < FORGOTTEN);
            meters.insert(cgroup.to_owned(), Meter { base: reading, next_base: reading, asked: now });
            return None;
        };
        meter.asked = now;
        if used_ns < meter.next_base.used_ns {
            *meter = Meter { base: reading, next_base: reading, asked: now };
            return None;
        }
        if now.saturating_duration_since(meter.next_base.at) >= WINDOW {
            (meter.base, meter.next_base) = (meter.next_base, reading);
        }
        rate(meter.base, reading)
    }
}

fn rate(from: Reading, to: Reading) -> Option<u64> {
    let time = to.at.saturating_duration_since(from.at);
    if time < SHORTEST {
        return None;
    }
    let used = u128::from(to.used_ns.saturating_sub(from.used_ns));
    u64::try_from(used * 1_000_000_000 / time.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_takes_two_readings() {
        let (rates, start) = (Rates::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let path = Path::new("/a");
        assert_eq!(rates.observe(path, 0, at(0)), None);
        assert_eq!(rates.observe(path, 5, at(0)), None, "no time has passed");
        assert_eq!(rates.observe(path, 1_000_000_000, at(2)), Some(500_000_000));
        assert_eq!(rates.observe(path, 10_000_000_000, at(10)), Some(1_000_000_000));
        // Compared with the reading of ten seconds before, not with the first.
        assert_eq!(rates.observe(path, 10_000_000_000, at(20)), Some(0));
        assert_eq!(rates.observe(path, 11_000_000_000, at(21)), Some(1_000_000_000 / 11));
        assert_eq!(rates.observe(path, 7, at(22)), None, "a new cgroup of that name");
        assert_eq!(rates.observe(path, 7, at(23)), Some(0));
    }

    #[test]
    fn what_nobody_asks_about_is_forgotten() {
        let (rates, start) = (Rates::default(), Instant::now());
        rates.observe(Path::new("/a"), 1, start);
        rates.observe(Path::new("/b"), 1, start + FORGOTTEN);
        assert_eq!(rates.0.lock().unwrap().len(), 1);
    }
}
