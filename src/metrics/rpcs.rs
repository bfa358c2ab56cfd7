//! RPC metrics: counts by code, latencies, and the one place that logs a failed RPC.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};
use std::future::Future;
use std::time::Instant;
use tonic::{Code, Response, Status};

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

    /// Runs one call: measures, counts and, if it failed, logs it.
    ///
    /// # Errors
    /// The call's own.
    pub async fn observe<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let begun = Instant::now();
        let mut guard = InFlight { rpcs: self, method, answered: false };
        self.in_flight.inc();
        let result = call.await;
        guard.answered = true;
        self.seconds.with_label_values(&[method]).observe(begun.elapsed().as_secs_f64());
        let code = match &result {
            Ok(_) => Code::Ok,
            Err(status) => {
                log(method, status, begun);
                status.code()
            }
        };
        self.handled.with_label_values(&[method, name(code)]).inc();
        result.map(Response::new)
    }
}

/// Counts a call whose client went away before the answer.
struct InFlight<'a> {
    rpcs: &'a Rpcs,
    method: &'static str,
    answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.rpcs.in_flight.dec();
        if !self.answered {
            self.rpcs.handled.with_label_values(&[self.method, name(Code::Cancelled)]).inc();
            // Log: The work continues.
            tracing::info!(rpc = self.method, "the client went away before the answer");
        }
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

    #[tokio::test]
    async fn a_call_is_counted_by_its_code() {
        let registry = Registry::new();
        let rpcs = Rpcs::register(&registry).unwrap();
        rpcs.observe("Version", async { Ok(()) }).await.unwrap();
        rpcs.observe::<()>("Version", async { Err(Status::not_found("x")) }).await.unwrap_err();
        assert_eq!(rpcs.handled.with_label_values(&["Version", "OK"]).get(), 1);
        assert_eq!(rpcs.handled.with_label_values(&["Version", "NotFound"]).get(), 1);
        assert_eq!(rpcs.in_flight.get(), 0);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_counted_as_cancelled() {
        let rpcs = Rpcs::register(&Registry::new()).unwrap();
        {
            let call = rpcs.observe::<()>("Version", std::future::pending());
            let mut call = std::pin::pin!(call);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(call.as_mut().poll(&mut context).is_pending());
            assert_eq!(rpcs.in_flight.get(), 1);
        }
        assert_eq!(rpcs.handled.with_label_values(&["Version", "Canceled"]).get(), 1);
        assert_eq!(rpcs.in_flight.get(), 0);
    }
}
