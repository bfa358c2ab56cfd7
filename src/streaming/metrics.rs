//! The streaming server's metrics.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use std::time::Instant;

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

/// Counts one session's bytes.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    received: IntCounter,
    sent: IntCounter,
}

/// An open session; its drop is the end.
#[derive(Debug)]
pub(super) struct OpenSession {
    open: IntGauge,
    seconds: prometheus::Histogram,
    begun: Instant,
}

impl StreamingMetrics {
    /// Makes the metrics and registers them.
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

    pub(super) fn meter(&self, kind: &str) -> Meter {
        Meter {
            received: self.bytes.with_label_values(&[kind, "sent"]),
            sent: self.bytes.with_label_values(&[kind, "received"]),
        }
    }

    pub(super) fn session(&self, kind: &str) -> OpenSession {
        let open = self.open.with_label_values(&[kind]);
        open.inc();
        OpenSession { open, seconds: self.seconds.with_label_values(&[kind]), begun: Instant::now() }
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

impl Meter {
    /// To the client.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// From the client.
    pub(super) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.open.dec();
        self.seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}
