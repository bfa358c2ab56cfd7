//! Stats of containers and pods: selection, and cgroup readings in the kubelet's terms. Reads on a blocking thread; a
//! failed reading leaves its part unset instead of failing the list.

mod pods;

pub(super) use pods::{networks, own_cgroups, pods, select_pods};

use super::encode;
use super::proto as pb;
use crate::host::cgroups::{CgroupStats, Pressure, PressureLine};
use crate::model::Timestamp;
use crate::sandbox::{ContainerSnapshot, ContainerState, Manager, Measured, Node, PodSnapshot};
use std::path::Path;
use std::sync::Arc;

pub(super) type Wanted = (Arc<PodSnapshot>, Arc<ContainerSnapshot>);

/// The containers that pass the filter, running or not, as in containerd: an ended one keeps its files until removal. A
/// kubelet uses the running ones, `crictl stats` those that use something, all with `-a`.
pub(super) fn select(pods: &Manager, filter: &pb::ContainerStatsFilter) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for pod in pods.pods() {
        for container in &pod.containers {
            let spec = &container.spec;
            if spec.id.as_str().starts_with(&filter.id)
                && spec.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
                && encode::selected(&spec.labels, &filter.label_selector)
            {
                wanted.push((pod.clone(), container.clone()));
            }
        }
    }
    wanted
}

/// The pod's running containers.
pub(super) fn running(pod: &PodSnapshot) -> impl Iterator<Item = &Arc<ContainerSnapshot>> {
    pod.containers.iter().filter(|container| is_running(container))
}

fn is_running(container: &ContainerSnapshot) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// One entry per container, in the order given.
pub(super) async fn containers(node: Arc<Node>, wanted: Vec<Wanted>) -> Vec<pb::ContainerStats> {
    let layers = layers(&node, &wanted).await;
    let read = move || {
        let with_layers = wanted.iter().zip(layers);
        with_layers.map(|((pod, container), layer)| one(&node, pod, container, layer).0).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// The last usage figures of these containers' writable layers; does not trigger a walk.
pub(super) async fn layers(node: &Node, wanted: &[Wanted]) -> Vec<Option<Measured>> {
    let layers = wanted.iter().map(|(_, container)| node.layers.usage(&container.spec.id));
    futures_util::future::join_all(layers).await
}

fn value(value: u64) -> Option<pb::UInt64Value> {
    Some(pb::UInt64Value { value })
}

/// Resource usage of one container, in CRI's form and as read.
fn one(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    layer: Option<Measured>,
) -> (pb::ContainerStats, Option<CgroupStats>) {
    let spec = &container.spec;
    let now = Timestamp::now().nanos();
    let mut stats = pb::ContainerStats {
        attributes: Some(pb::ContainerAttributes {
            id: spec.id.to_string(),
            metadata: Some(encode::container_metadata(spec)),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
        }),
        writable_layer: layer.map(|mut layer| {
            if counts_pod_files(pod, container) {
                layer.usage.bytes += node.places.written_to_pod_files(&pod.spec.id);
            }
            encode::file_system(node.layers.file_system(), layer.usage, layer.at)
        }),
        ..Default::default()
    };
    if !is_running(container) {
        return (stats, None);
    }
    let read = node.cgroups.leaf(&pod.spec, &spec.id).and_then(|leaf| {
        let usage = node.cgroups.kernel.stats(leaf.path())?;
        let parts = Parts::of(node, leaf.path(), &usage, now);
        Ok((usage, parts))
    });
    match read {
        Ok((usage, parts)) => {
            (stats.cpu, stats.memory, stats.swap, stats.io) =
                (Some(parts.cpu), parts.memory, parts.swap, parts.io);
            (stats, Some(usage))
        }
        Err(error) => {
            tracing::debug!(container = %spec.id, %error, "no cgroup reading");
            (stats, None)
        }
    }
}

/// Whether writes to the pod's shared files are reported with this container's layer. CRI has no storage figure for
/// pods, and a kubelet sums up the running containers, so the longest running one of them carries it.
fn counts_pod_files(pod: &PodSnapshot, container: &ContainerSnapshot) -> bool {
    let age = |container: &ContainerSnapshot| (container.spec.created_at, container.spec.id.to_string());
    let first = running(pod).min_by_key(|container| age(container));
    first.is_some_and(|first| first.spec.id == container.spec.id)
}

/// A cgroup's reading in CRI's messages, which containers and pods share.
struct Parts {
    cpu: pb::CpuUsage,
    memory: Option<pb::MemoryUsage>,
    swap: Option<pb::SwapUsage>,
    io: Option<pb::IoUsage>,
}

impl Parts {
    fn of(node: &Node, cgroup: &Path, usage: &CgroupStats, now: i64) -> Self {
        let rate = usage.cpu_usage_ns.and_then(|used| node.cgroups.kernel.cpu_rate(cgroup, used));
        Self::with_rate(usage, rate, now)
    }

    fn with_rate(usage: &CgroupStats, rate: Option<u64>, now: i64) -> Self {
        let pressure = |p: &Option<Pressure>| p.as_ref().map(psi);
        let left = |limit: Option<u64>, used: u64| limit.and_then(|limit| value(limit.saturating_sub(used)));
        let memory = usage.memory.as_ref();
        Self {
            cpu: pb::CpuUsage {
                timestamp: now,
                usage_core_nano_seconds: usage.cpu_usage_ns.and_then(value),
                usage_nano_cores: rate.and_then(value),
                psi: pressure(&usage.pressure.cpu),
            },
            memory: memory.map(|memory| pb::MemoryUsage {
                timestamp: now,
                working_set_bytes: value(memory.working_set),
                available_bytes: left(memory.limit, memory.working_set),
                usage_bytes: value(memory.usage),
                rss_bytes: value(memory.rss),
                page_faults: value(memory.page_faults),
                major_page_faults: value(memory.major_page_faults),
                psi: pressure(&usage.pressure.memory),
            }),
            swap: memory.and_then(|memory| {
                let used = memory.swap_usage?;
                Some(pb::SwapUsage {
                    timestamp: now,
                    swap_usage_bytes: value(used),
                    swap_available_bytes: left(memory.swap_limit, used),
                })
            }),
            io: usage.pressure.io.as_ref().map(|p| pb::IoUsage { timestamp: now, psi: Some(psi(p)) }),
        }
    }
}

fn psi(pressure: &Pressure) -> pb::PsiStats {
    let line = |l: &PressureLine| pb::PsiData {
        total: l.total_ns,
        avg10: l.avg10,
        avg60: l.avg60,
        avg300: l.avg300,
    };
    pb::PsiStats { full: Some(line(&pressure.full)), some: Some(line(&pressure.some)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroups::{MemoryStats, PressureStats};

    #[test]
    fn every_part_that_was_read_is_told() {
        let pressure = Pressure {
            some: PressureLine { avg10: 1.5, total_ns: 7, ..Default::default() },
            ..Default::default()
        };
        let memory = MemoryStats {
            usage: 100,
            working_set: 60,
            limit: Some(80),
            swap_usage: Some(3),
            swap_limit: Some(10),
            ..Default::default()
        };
        let usage = CgroupStats {
            cpu_usage_ns: Some(5),
            memory: Some(memory),
            pids: None,
            pressure: PressureStats { cpu: Some(pressure), memory: Some(pressure), io: Some(pressure) },
        };
        let parts = Parts::with_rate(&usage, Some(9), 1);
        assert_eq!((parts.cpu.usage_core_nano_seconds, parts.cpu.usage_nano_cores), (value(5), value(9)));
        let memory = parts.memory.unwrap();
        assert_eq!((memory.available_bytes, memory.usage_bytes), (value(20), value(100)));
        let swap = parts.swap.unwrap();
        assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (value(3), value(7)));
        for psi in [parts.cpu.psi, memory.psi, parts.io.unwrap().psi] {
            assert_eq!(psi.unwrap().some.unwrap().total, 7);
        }
        let nothing = Parts::with_rate(&CgroupStats::default(), None, 1);
        assert!(nothing.memory.is_none() && nothing.swap.is_none() && nothing.io.is_none());
    }
}
