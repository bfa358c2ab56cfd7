//! RPC metrics: counts by code, latencies, and the one place that logs a failed RPC.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};
use std::time::Instant;
use tonic::{Code, Status};

/// Upper bounds in seconds: lists take microseconds, starts tens of milliseconds, pulls and stops minutes.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// The RPC metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rpcs {
    handled: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGauge,
}

impl Rpcs {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// When a name is registered twice.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let handled = IntCounterVec::new(
            Opts::new("podwright_rpcs_total", "CRI calls answered, by method and gRPC code."),
            &["method", "code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("podwright_rpc_seconds", "Time to answer a CRI call.")
                .buckets(BUCKETS.to_vec()),
            &["method"],
        )?;
        let in_flight = IntGauge::new("podwright_rpcs_in_flight", "CRI calls being worked on.")?;
        registry.register(Box::new(handled.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        Ok(Self { handled, seconds, in_flight })
    }

    /// A call begins.
    #[must_use]
    pub fn begin(&self, method: &'static str) -> Begun {
        self.in_flight.inc();
        Begun { rpcs: self.clone(), method, at: Instant::now(), is_answered: false }
    }
}

/// A call that is being worked on. Dropped without an answer, its client has gone away.
#[derive(Debug)]
pub struct Begun {
    rpcs: Rpcs,
    method: &'static str,
    at: Instant,
    is_answered: bool,
}

impl Begun {
    /// It went well.
    pub fn answered(self) {
        self.end(Code::Ok);
    }

    /// It failed; this logs it.
    pub fn failed(self, status: &Status) {
        log(self.method, status, self.at);
        self.end(status.code());
    }

    fn end(mut self, code: Code) {
        self.is_answered = true;
        self.rpcs.seconds.with_label_values(&[self.method]).observe(self.at.elapsed().as_secs_f64());
        self.rpcs.handled.with_label_values(&[self.method, name(code)]).inc();
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.rpcs.in_flight.dec();
        if !self.is_answered {
            self.rpcs.handled.with_label_values(&[self.method, name(Code::Cancelled)]).inc();
            // Log: The work continues.
            tracing::info!(rpc = self.method, "the client went away before the answer");
        }
    }
}

/// For tests of whoever counts.
#[cfg(test)]
impl Rpcs {
    pub(crate) fn count(&self, method: &str, code: &str) -> u64 {
        self.handled.with_label_values(&[method, code]).get()
    }

    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Combinations of method and code that were counted.
    pub(crate) fn series(&self) -> usize {
        use prometheus::core::Collector as _;
        self.handled.collect().iter().map(|family| family.get_metric().len()).sum()
    }
}

fn log(method: &str, status: &Status, begun: Instant) {
    let (code, error) = (name(status.code()), status.message());
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    match status.code() {
        // Codes that a kubelet meets in ordinary operation.
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => {
            // Log: A call failed as it should: unknown id, wrong request.
            tracing::info!(rpc = method, code, ms, error, "refused");
        }
        // Log: A CRI call failed: `rpc`, `code`, `error`, `ms`.
        // Do: Look up the text of `error` above.
        _ => tracing::warn!(rpc = method, code, ms, error, "failed"),
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_by_its_code() {
        let rpcs = Rpcs::register(&Registry::new()).unwrap();
        rpcs.begin("Version").answered();
        let begun = rpcs.begin("Version");
        assert_eq!(rpcs.in_flight(), 1);
        begun.failed(&Status::not_found("x"));
        drop(rpcs.begin("Version"));
        for code in ["OK", "NotFound", "Canceled"] {
            assert_eq!(rpcs.count("Version", code), 1, "{code}");
        }
        assert_eq!(rpcs.in_flight(), 0);
    }
}
