//! Linux resource limits of a container or a pod, as the kubelet requests them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits in the kubelet's terms. A zero or empty field means "not set" (CRI v1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds per period; negative means no limit.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Memory plus swap in bytes (the cgroup v1 meaning).
    pub memory_swap_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPU list such as `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// One entry per page size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 file name to value.
    pub unified: BTreeMap<String, String>,
}

/// A limit on one huge page size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

impl Resources {
    /// The limits after an update in which zero and empty fields change nothing (UpdateContainerResources in CRI v1).
    #[must_use]
    pub fn updated_by(&self, update: &Resources) -> Resources {
        fn pick(new: i64, old: i64) -> i64 {
            if new == 0 { old } else { new }
        }
        fn pick_text(new: &str, old: &str) -> String {
            if new.is_empty() { old.to_owned() } else { new.to_owned() }
        }
        let mut unified = self.unified.clone();
        unified.extend(update.unified.iter().map(|(k, v)| (k.clone(), v.clone())));
        Resources {
            cpu_period: pick(update.cpu_period, self.cpu_period),
            cpu_quota: pick(update.cpu_quota, self.cpu_quota),
            cpu_shares: pick(update.cpu_shares, self.cpu_shares),
            memory_limit: pick(update.memory_limit, self.memory_limit),
            memory_swap_limit: pick(update.memory_swap_limit, self.memory_swap_limit),
            oom_score_adj: pick(update.oom_score_adj, self.oom_score_adj),
            cpuset_cpus: pick_text(&update.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: pick_text(&update.cpuset_mems, &self.cpuset_mems),
            hugepage_limits: if update.hugepage_limits.is_empty() {
                self.hugepage_limits.clone()
            } else {
                update.hugepage_limits.clone()
            },
            unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let old = Resources {
            cpu_shares: 512,
            memory_limit: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let new = old.updated_by(&Resources { cpu_shares: 1024, ..Default::default() });
        assert_eq!((new.cpu_shares, new.memory_limit, new.cpuset_cpus.as_str()), (1024, 1 << 20, "0"));
    }
}
