//! Prometheus: the registry, the RPC metrics and the HTTP listener. Other metrics are defined where they are measured
//! and registered here. Never reads the domain's state.

mod rpcs;
mod server;

pub use prometheus::Registry;
pub use rpcs::{Begun, Rpcs};
pub use server::{MetricsError, serve};

use crate::images::{PullStats, Stage};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounter, Opts};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shows the image store's own counters under Prometheus names.
#[derive(Debug)]
pub struct PullCollector {
    stats: Arc<PullStats>,
    descs: Vec<Desc>,
}

/// Name, help, reader.
type Counter = (&'static str, &'static str, fn(&PullStats) -> &AtomicU64);

const COUNTERS: [Counter; 9] = [
    ("podwright_pull_bytes_total", "Bytes of blobs received from registries.", |s| &s.bytes),
    ("podwright_pull_layers_total", "Layers unpacked.", |s| &s.layers),
    ("podwright_pull_layers_reused_total", "Layers that were there already.", |s| &s.layers_reused),
    ("podwright_pull_microseconds_total", "Microseconds spent in pulls.", |s| &s.micros),
    ("podwright_pulls_succeeded_total", "Image pulls that succeeded.", |s| &s.pulls_ok),
    ("podwright_pulls_failed_total", "Image pulls that failed.", |s| &s.pulls_failed),
    ("podwright_signatures_verified_total", "Images whose signature was verified.", |s| {
        &s.signatures_verified
    }),
    ("podwright_signatures_refused_total", "Images refused by the policy.", |s| &s.signatures_refused),
    (
        "podwright_signatures_missed_total",
        "Images pulled without a valid signature, as the policy only warns.",
        |s| &s.signatures_missed,
    ),
];

const STAGES: (&str, &str) =
    ("podwright_pull_stage_seconds_total", "Time that layers spent in each stage of a pull.");

impl PullCollector {
    /// A collector over these counters.
    ///
    /// # Errors
    /// When a name is malformed.
    pub fn new(stats: Arc<PullStats>) -> Result<Self, prometheus::Error> {
        let mut descs = Vec::new();
        for (name, help, _) in COUNTERS {
            descs.push(Desc::new(name.to_owned(), help.to_owned(), Vec::new(), Default::default())?);
        }
        let (name, help) = STAGES;
        descs.push(Desc::new(
            name.to_owned(),
            help.to_owned(),
            vec!["stage".to_owned()],
            Default::default(),
        )?);
        Ok(Self { stats, descs })
    }
}

impl Collector for PullCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        for (name, help, read) in COUNTERS {
            // The names were checked in `new`.
            if let Ok(counter) = IntCounter::with_opts(Opts::new(name, help)) {
                counter.inc_by(read(&self.stats).load(Ordering::Relaxed));
                families.extend(counter.collect());
            }
        }
        let (name, help) = STAGES;
        if let Ok(stages) = CounterVec::new(Opts::new(name, help), &["stage"]) {
            for stage in Stage::ALL {
                stages.with_label_values(&[stage.name()]).inc_by(self.stats.stage(stage).as_secs_f64());
            }
            families.extend(stages.collect());
        }
        families
    }
}
