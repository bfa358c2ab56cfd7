//! The streaming server's metrics.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use std::time::Duration;

/// Upper bounds in seconds: a command's moment to a day of port-forward.
const BUCKETS: [f64; 9] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 14_400.0, 86_400.0];

/// Sessions, their bytes and times.
#[derive(Debug, Clone)]
pub struct StreamingMetrics {
    open: IntGaugeVec,
    seconds: HistogramVec,
    bytes: IntCounterVec,
    refused: IntCounterVec,
}

/// Metrics of one kind of session.
#[derive(Debug, Clone)]
pub(super) struct KindMetrics {
    open: IntGauge,
    seconds: Histogram,
    from_client: IntCounter,
    to_client: IntCounter,
}

impl StreamingMetrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// When a name is registered twice.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let open = IntGaugeVec::new(
            Opts::new("podwright_streaming_sessions", "Open exec, attach and port-forward connections."),
            &["kind"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("podwright_streaming_session_seconds", "How long sessions lasted.")
                .buckets(BUCKETS.to_vec()),
            &["kind"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new(
                "podwright_streaming_bytes_total",
                "Bytes of streams, by direction as the client sees it.",
            ),
            &["kind", "direction"],
        )?;
        let refused = IntCounterVec::new(
            Opts::new("podwright_streaming_refused_total", "Connections that became no session, by reason."),
            &["reason"],
        )?;
        registry.register(Box::new(open.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { open, seconds, bytes, refused })
    }

    pub(super) fn of(&self, kind: &str) -> KindMetrics {
        KindMetrics {
            open: self.open.with_label_values(&[kind]),
            seconds: self.seconds.with_label_values(&[kind]),
            from_client: self.bytes.with_label_values(&[kind, "sent"]),
            to_client: self.bytes.with_label_values(&[kind, "received"]),
        }
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

impl KindMetrics {
    pub(super) fn begin(&self) {
        self.open.inc();
    }

    pub(super) fn end(&self, after: Duration) {
        self.open.dec();
        self.seconds.observe(after.as_secs_f64());
    }

    pub(super) fn came(&self, bytes: u64) {
        self.from_client.inc_by(bytes);
    }

    pub(super) fn went(&self, bytes: u64) {
        self.to_client.inc_by(bytes);
    }
}
