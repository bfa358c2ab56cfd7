//! The domain's metrics: the steps of starting and stopping pods and containers, and the CNI plugins' part in them.

use crate::host::network::PluginCall;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::future::Future;
use std::time::Instant;

/// Upper bounds in seconds: our own steps take under a millisecond to some ten, plugins and runtimes up to seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Step times and ends of containers.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    steps: HistogramVec,
    exits: IntCounterVec,
    plugins: HistogramVec,
    unclean: IntGauge,
    log_lost: IntCounter,
}

impl PodMetrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// When a name is registered twice.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let steps = HistogramVec::new(
            HistogramOpts::new(
                "podwright_step_seconds",
                "Time of each step of starting and stopping pods and containers.",
            )
            .buckets(BUCKETS.to_vec()),
            &["operation", "step"],
        )?;
        let exits = IntCounterVec::new(
            Opts::new("podwright_container_exits_total", "Containers that ended, by reason."),
            &["reason"],
        )?;
        let plugins = HistogramVec::new(
            HistogramOpts::new("podwright_cni_call_seconds", "Time of each call of a CNI plugin.")
                .buckets(BUCKETS.to_vec()),
            &["plugin", "verb", "outcome"],
        )?;
        let log_lost = IntCounter::new(
            "podwright_log_lost_bytes_total",
            "Bytes of containers' output that could not be written to their logs.",
        )?;
        registry.register(Box::new(log_lost.clone()))?;
        let unclean = IntGauge::new(
            "podwright_unclean_containers",
            "Ended containers of which processes, cgroups, mounts or the runtime's state could not be removed yet.",
        )?;
        registry.register(Box::new(unclean.clone()))?;
        registry.register(Box::new(plugins.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(exits.clone()))?;
        Ok(Self { steps, exits, plugins, unclean, log_lost })
    }

    /// Times one step.
    pub async fn step<T>(&self, operation: &str, step: &str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = work.await;
        self.observe(operation, step, begun);
        result
    }

    /// Records the time since `begun` for one step.
    pub fn observe(&self, operation: &str, step: &str, begun: Instant) {
        self.spent(operation, step, begun.elapsed());
    }

    /// Records the time of one step.
    pub fn spent(&self, operation: &str, step: &str, time: std::time::Duration) {
        self.steps.with_label_values(&[operation, step]).observe(time.as_secs_f64());
    }

    /// Records time spent in other programs during an operation, so that our own share is visible.
    pub fn plugin_time(&self, operation: &str, time: std::time::Duration) {
        self.steps.with_label_values(&[operation, "plugins"]).observe(time.as_secs_f64());
    }

    /// Records one call of a CNI plugin.
    pub fn plugin_call(&self, call: &PluginCall<'_>) {
        let labels = [call.plugin, call.verb.as_str(), call.outcome.as_str()];
        self.plugins.with_label_values(&labels).observe(call.elapsed.as_secs_f64());
    }

    /// Counts a container as not cleaned up after, for as long as the answer lives.
    pub fn unclean(&self) -> Unclean {
        self.unclean.inc();
        Unclean(self.unclean.clone())
    }

    /// Counts output that is in no log.
    pub fn log_lost(&self, bytes: u64) {
        self.log_lost.inc_by(bytes);
    }

    /// Counts a container's end.
    pub fn exited(&self, reason: &str) {
        self.exits.with_label_values(&[reason]).inc();
    }
}

/// A container that could not be cleaned up after yet.
#[derive(Debug)]
pub struct Unclean(IntGauge);

impl Drop for Unclean {
    fn drop(&mut self) {
        self.0.dec();
    }
}
