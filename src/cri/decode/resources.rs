//! Resource limits of containers and pods, at creation and update.

use super::{Checked, invalid, sorted};
use crate::cri::proto as pb;
use crate::model::{HugepageLimit, Resources};
use crate::sandbox::PodLimits;

/// Limits, also of an update.
#[must_use]
pub fn resources(r: pb::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit: r.memory_limit_in_bytes,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus,
        cpuset_mems: r.cpuset_mems,
        hugepage_limits: r
            .hugepage_limits
            .into_iter()
            .map(|h| HugepageLimit { page_size: h.page_size, limit: h.limit })
            .collect(),
        unified: sorted(r.unified),
    }
}

/// UpdateContainerResources; absent limits stay unchanged.
///
/// # Errors
/// Names the field that is wrong.
pub fn update(linux: Option<pb::LinuxContainerResources>) -> Checked<Resources> {
    check_resources(resources(linux.unwrap_or_default()))
}

/// UpdatePodSandboxResources. Only recorded, so any limit that the pod's cgroup accepted is valid.
#[must_use]
pub fn pod_limits(
    overhead: Option<pb::LinuxContainerResources>,
    asked: Option<pb::LinuxContainerResources>,
) -> PodLimits {
    PodLimits { overhead: overhead.map(resources), resources: asked.map(resources) }
}

pub(super) fn check_resources(resources: Resources) -> Checked<Resources> {
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        let value = resources.oom_score_adj;
        return invalid("config.linux.resources.oom_score_adj", format!("{value} is not in -1000 to 1000"));
    }
    for (field, value) in [
        ("config.linux.resources.memory_limit_in_bytes", resources.memory_limit),
        ("config.linux.resources.cpu_period", resources.cpu_period),
        ("config.linux.resources.cpu_shares", resources.cpu_shares),
    ] {
        if value < 0 {
            return invalid(field, format!("{value} is negative"));
        }
    }
    Ok(resources)
}
