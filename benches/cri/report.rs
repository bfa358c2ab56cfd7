//! The report: Markdown for people, JSON for later comparison. Computes no more than percentiles and ratios.

use crate::latency::{DOWN, OPERATIONS, Times};
use crate::memory::Memory;
use crate::share::Share;
use crate::side::Side;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Everything measured; lists are by side.
pub(crate) struct Report<'a> {
    pub(crate) sides: &'a [Side],
    pub(crate) parallel: usize,
    pub(crate) memory: Vec<Option<Memory>>,
    pub(crate) alone: Vec<Times>,
    pub(crate) together: Vec<Times>,
    pub(crate) share: Option<Share>,
    /// The daemons' Pss at the end, in KiB.
    pub(crate) after: Vec<Option<u64>>,
}

/// The value at a hundredth, by the nearest rank: of fewer than a hundred values the 99th is the largest.
pub(crate) fn percentile(values: &[f64], hundredth: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * hundredth).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

impl Report<'_> {
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.latency(&mut text, "One pod at a time", &self.alone);
        self.latency(&mut text, &format!("{} pods side by side", self.parallel), &self.together);
        if let Some(share) = &self.share {
            own_share(&mut text, share);
        }
        self.memory_table(&mut text);
        text
    }

    fn latency(&self, text: &mut String, title: &str, times: &[Times]) {
        let samples = times.first().and_then(|t| t.0.values().next()).map_or(0, Vec::len);
        if samples == 0 {
            return;
        }
        let what = if samples < 100 { "p99 is the slowest" } else { "p99 by nearest rank" };
        let _ = writeln!(text, "### {title}, milliseconds ({samples} samples each; {what})\n");
        let mut head = String::from("| operation |");
        let mut rule = String::from("|---|");
        for side in self.sides {
            let _ = write!(head, " {0} p50 | {0} p99 |", side.name);
            rule.push_str("--:|--:|");
        }
        if let [a, b] = self.sides {
            let _ = write!(head, " {1}/{0} p50 | {1}/{0} p99 |", a.name, b.name);
            rule.push_str("--:|--:|");
        }
        let _ = writeln!(text, "{head}\n{rule}");
        for operation in OPERATIONS.into_iter().chain([DOWN]) {
            let values: Vec<_> = times.iter().filter_map(|t| t.0.get(operation)).collect();
            let _ = write!(text, "| {operation} |");
            for of in &values {
                let _ = write!(text, " {:.1} | {:.1} |", percentile(of, 50) * 1e3, percentile(of, 99) * 1e3);
            }
            if let [a, b] = values[..] {
                for hundredth in [50, 99] {
                    let _ = write!(text, " {:.2} |", percentile(b, hundredth) / percentile(a, hundredth));
                }
            }
            text.push('\n');
        }
        text.push('\n');
    }

    fn memory_table(&self, text: &mut String) {
        if self.memory.iter().all(Option::is_none) {
            return;
        }
        let _ = writeln!(text, "### Memory (Pss), MiB\n\n| |{}|", self.row(|side, _, _| side.name.clone()));
        let _ = writeln!(text, "|---|{}", "--:|".repeat(self.sides.len()));
        let _ = writeln!(text, "| daemon, idle after a pull |{}|", self.row(|_, m, _| mib(m.idle)));
        let pods = self.memory.iter().flatten().map(|m| m.pods).next().unwrap_or_default();
        let _ = writeln!(text, "| daemon with {pods} pods |{}|", self.row(|_, m, _| mib(m.with_pods)));
        let _ = writeln!(
            text,
            "| beside it |{}|",
            self.row(|_, m, _| {
                let kinds = m.per_pod.iter().map(|(name, (n, sum))| format!("{} ({n} {name})", mib(*sum)));
                kinds.collect::<Vec<_>>().join(", ")
            })
        );
        let per_pod = self.row(|_, m, _| format!("{:.2}", m.of_one_pod() / 1024.0));
        let _ = writeln!(text, "| one pod with a container, the daemon's growth included |{per_pod}|");
        let after = self.row(|_, _, after| after.map_or_else(String::new, mib));
        let _ = writeln!(text, "| daemon after all of the above |{after}|");
        let _ = writeln!(
            text,
            "| programs on disk |{}|\n",
            self.row(|_, m, _| {
                let sizes = m.binaries.iter().map(|(path, size)| {
                    format!("{} {}", mib(size / 1024), path.rsplit('/').next().unwrap_or_default())
                });
                sizes.collect::<Vec<_>>().join(", ")
            })
        );
    }

    fn row(&self, cell: impl Fn(&Side, &Memory, Option<u64>) -> String) -> String {
        let cells = self.sides.iter().zip(&self.memory).zip(&self.after).map(|((side, memory), after)| {
            memory
                .as_ref()
                .map_or_else(|| " ".to_owned(), |memory| format!(" {} ", cell(side, memory, *after)))
        });
        cells.collect::<Vec<_>>().join("|")
    }

    pub(crate) fn json(&self) -> Value {
        let times = |times: &Times| {
            let by_operation = times.0.iter().map(|(operation, seconds)| {
                let [p50, p99] = [50, 99].map(|hundredth| percentile(seconds, hundredth));
                ((*operation).to_owned(), json!({ "p50": p50, "p99": p99, "seconds": seconds }))
            });
            Value::Object(by_operation.collect())
        };
        let mut sides = serde_json::Map::new();
        for (at, side) in self.sides.iter().enumerate() {
            let memory = self.memory.get(at).and_then(Option::as_ref).map(|m| {
                json!({
                    "daemon_idle_kib": m.idle,
                    "daemon_with_pods_kib": m.with_pods,
                    "pods": m.pods,
                    "beside_kib": m.per_pod,
                    "one_pod_kib": m.of_one_pod(),
                    "binaries_bytes": m.binaries,
                    "daemon_at_the_end_kib": self.after.get(at).copied().flatten(),
                })
            });
            let of = json!({
                "alone": self.alone.get(at).map(times),
                "together": self.together.get(at).map(times),
                "memory": memory,
            });
            sides.insert(side.name.clone(), of);
        }
        let share = self.share.as_ref().map(|s| {
            let steps = s.steps.iter().map(|((operation, step), seconds)| {
                (format!("{operation}/{step}"), json!({ "p50": percentile(seconds, 50), "seconds": seconds }))
            });
            json!({
                "total": s.total, "plugins": s.plugins, "runtime_step": s.runtime_step,
                "runtime_alone": s.runtime_alone, "own": s.own,
                "steps": Value::Object(steps.collect()),
            })
        });
        json!({ "parallel": self.parallel, "sides": sides, "share": share })
    }
}

fn own_share(text: &mut String, share: &Share) {
    let row = |text: &mut String, what: &str, values: &[f64]| {
        let [p50, p99] = [50, 99].map(|hundredth| percentile(values, hundredth) * 1e3);
        let _ = writeln!(text, "| {what} | {p50:.1} | {p99:.1} |");
    };
    let _ = writeln!(
        text,
        "### podwright's own share of a pod with one container up, milliseconds ({} pods, one at a time)\n",
        share.own.len()
    );
    let _ = writeln!(text, "| | p50 | p99 |\n|---|--:|--:|");
    row(text, "all of it, as the client sees it", &share.total);
    row(text, "CNI plugins (from /metrics, pod by pod)", &share.plugins);
    row(text, "OCI runtime, run alone on a twin of the bundle", &share.runtime_alone);
    row(text, "own share: the rest, pod by pod", &share.own);
    for ((operation, step), values) in &share.steps {
        row(text, &format!("step {operation} {step}"), values);
    }
    text.push('\n');
}

fn mib(kib: u64) -> String {
    // In hundredths, which avoids floats.
    let hundredths = kib * 100 / 1024;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
