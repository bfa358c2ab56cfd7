//! The order of hosts for one request, and when one is retried. Pure: returns how long to wait, and the caller waits,
//! with or without a download slot.

use crate::images::error::ImageError;
use std::time::{Duration, SystemTime};

/// Attempts at the last host while it does not answer or has an error of its own: enough for a restart or a blip behind
/// a load balancer. More would only delay the pod's event; the kubelet retries by itself.
const MAX_TRIES: u32 = 3;
/// Attempts at the last host while it says when to come back (429, or 503 with Retry-After): containerd's number.
const MAX_LIMITED_TRIES: u32 = 5;
/// Wait before the second attempt, doubled for each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Random part added to a wait: many nodes are limited in the same second and told the same time.
const JITTER: f64 = 0.5;

/// The current host. Any failure leads to the next host; the last one is retried while its failure may pass. Returns
/// the most informative failure.
#[derive(Debug)]
pub(super) struct Turn {
    /// Indexes into the session's hosts, at least one.
    hosts: Vec<usize>,
    position: usize,
    attempt: u32,
    worst: Option<ImageError>,
}

impl Turn {
    pub(super) fn new(hosts: Vec<usize>) -> Self {
        Self { hosts, position: 0, attempt: 1, worst: None }
    }

    /// The current host.
    pub(super) fn host(&self) -> usize {
        self.hosts.get(self.position).copied().unwrap_or_default()
    }

    /// Moves on after a failure and returns how long to wait before, or gives up.
    pub(super) fn failed(&mut self, error: ImageError) -> Result<Duration, ImageError> {
        tracing::debug!(attempt = self.attempt, %error, "registry request failed");
        let last = self.position + 1 >= self.hosts.len();
        let again = last && self.attempt < tries(&error);
        let wait = wait(self.attempt, &error, random());
        let error = match self.worst.take() {
            Some(worst) if worst.weight() > error.weight() => worst,
            _ => error,
        };
        if !again && last {
            return Err(error);
        }
        self.worst = Some(error);
        if again {
            self.attempt += 1;
            return Ok(wait);
        }
        self.position += 1;
        Ok(Duration::ZERO)
    }
}

fn tries(error: &ImageError) -> u32 {
    match error {
        ImageError::RateLimited { .. } | ImageError::Unavailable { retry_after: Some(_), .. } => {
            MAX_LIMITED_TRIES
        }
        ImageError::Unavailable { .. } => MAX_TRIES,
        // A stall has already used its time; the caller's own retry is better. All other errors will not pass.
        _ => 1,
    }
}

fn wait(attempt: u32, error: &ImageError, random: f64) -> Duration {
    let base = match error {
        ImageError::RateLimited { retry_after: Some(after), .. }
        | ImageError::Unavailable { retry_after: Some(after), .. } => *after,
        _ => FIRST_WAIT.saturating_mul(1 << (attempt - 1).min(8)),
    };
    base + base.mul_f64(random * JITTER)
}

/// 0 to 1. The clocks of nodes differ in their nanoseconds: enough spread against a herd.
fn random() -> f64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    f64::from(nanos % 1000) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(retry_after: Option<Duration>) -> ImageError {
        ImageError::Unavailable { what: "w".into(), host: "h".into(), reason: "r".into(), retry_after }
    }

    fn missing() -> ImageError {
        ImageError::NotAtRegistry { what: "w".into(), host: "h".into(), registry: None }
    }

    #[test]
    fn only_the_last_host_is_asked_again() {
        let mut turn = Turn::new(vec![4, 7]);
        assert_eq!(turn.host(), 4);
        assert_eq!(turn.failed(unavailable(None)).unwrap(), Duration::ZERO);
        assert_eq!(turn.host(), 7);
        let waits: Vec<_> = std::iter::from_fn(|| turn.failed(unavailable(None)).ok()).collect();
        assert_eq!(waits.len(), 2);
        assert!(waits[0] >= FIRST_WAIT && waits[1] >= 2 * FIRST_WAIT && waits[1] <= 3 * FIRST_WAIT);
        assert_eq!(turn.host(), 7);
    }

    #[test]
    fn a_wait_that_is_asked_for_is_kept_and_bounded_in_number() {
        let after = Duration::from_secs(7);
        let mut turn = Turn::new(vec![0]);
        let waits: Vec<_> = std::iter::from_fn(|| turn.failed(unavailable(Some(after))).ok()).collect();
        assert_eq!(waits.len(), 4);
        assert!(waits.iter().all(|w| *w >= after && *w <= after + after / 2));
        assert_eq!(wait(1, &unavailable(Some(after)), 0.0), after);
        assert_eq!(wait(1, &unavailable(None), 1.0), FIRST_WAIT + FIRST_WAIT / 2);
        assert!(wait(1000, &unavailable(None), 1.0) < Duration::from_secs(120));
    }

    #[test]
    fn the_most_telling_failure_is_returned_and_a_final_one_ends() {
        let mut turn = Turn::new(vec![0, 1]);
        turn.failed(unavailable(None)).unwrap();
        assert!(matches!(turn.failed(missing()), Err(ImageError::Unavailable { .. })));
    }
}
