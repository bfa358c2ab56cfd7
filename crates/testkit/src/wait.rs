//! Waiting for a condition of another process, with a deadline.
//!
//! Owns the one polling loop of the test kit. It never guesses a time: the
//! caller states the condition, the loop ends at the first moment it holds.

use std::time::{Duration, Instant};

/// Interval of checking a condition: short, since most are met at once.
const STEP: Duration = Duration::from_millis(5);

/// Factor for all time limits: `PODWRIGHT_TEST_PATIENCE`, 1 unless set. An emulated processor needs it.
#[must_use]
pub fn patience() -> u32 {
    std::env::var("PODWRIGHT_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Calls `ready` until it gives a value, at most for `limit` times [`patience`].
///
/// # Errors
/// Fails with `what` and the time waited when the limit has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let (start, limit) = (Instant::now(), limit.saturating_mul(patience()));
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        anyhow::ensure!(start.elapsed() < limit, "{what}: not so within {limit:?}");
        std::thread::sleep(STEP);
    }
}
