//! Container stats: which containers, and their cgroup readings in the kubelet's terms. Reads on a blocking thread;
//! a reading that fails leaves its part unset rather than failing the list.

use super::encode;
use super::proto as pb;
use crate::host::cgroups::{CgroupStats, Pressure, PressureLine};
use crate::sandbox::{ContainerSnapshot, ContainerState, Manager, Measured, Node, PodSnapshot};
use std::sync::Arc;

pub(super) type Wanted = (Arc<PodSnapshot>, Arc<ContainerSnapshot>);

pub(super) fn select(pods: &Manager, filter: &pb::ContainerStatsFilter) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for pod in pods.pods() {
        for container in &pod.containers {
            let spec = &container.spec;
            let running = matches!(container.state, ContainerState::Running { .. });
            if running
                && spec.id.as_str().starts_with(&filter.id)
                && spec.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
                && encode::selected(&spec.labels, &filter.label_selector)
            {
                wanted.push((pod.clone(), container.clone()));
            }
        }
    }
    wanted
}

pub(super) async fn containers(node: Arc<Node>, wanted: Vec<Wanted>) -> Vec<pb::ContainerStats> {
    let layers = wanted.iter().map(|(_, container)| node.layers.usage(&container.spec.id));
    let layers = futures_util::future::join_all(layers).await;
    let read = move || {
        let with_layers = wanted.iter().zip(layers);
        with_layers.map(|((pod, container), layer)| one(&node, pod, container, layer)).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn value(value: u64) -> Option<pb::UInt64Value> {
    Some(pb::UInt64Value { value })
}

fn one(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    layer: Option<Measured>,
) -> pb::ContainerStats {
    let spec = &container.spec;
    let now = node.clock.now().nanos();
    let mut stats = pb::ContainerStats {
        attributes: Some(pb::ContainerAttributes {
            id: spec.id.to_string(),
            metadata: Some(encode::container_metadata(spec)),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
        }),
        writable_layer: layer.map(|l| encode::file_system(node.layers.file_system(), l.usage, l.at)),
        ..Default::default()
    };
    let read = node.leaf(&pod.spec, &spec.id).and_then(|leaf| Ok(node.cgroups.stats(&leaf)?));
    match read {
        Ok(usage) => fill(&mut stats, &usage, now),
        Err(error) => tracing::debug!(container = %spec.id, %error, "no cgroup reading"),
    }
    stats
}

fn fill(stats: &mut pb::ContainerStats, usage: &CgroupStats, now: i64) {
    let pressure = |p: &Option<Pressure>| p.as_ref().map(psi);
    stats.cpu = Some(pb::CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: usage.cpu_usage_ns.and_then(value),
        usage_nano_cores: None,
        psi: pressure(&usage.pressure.cpu),
    });
    stats.io = usage.pressure.io.as_ref().map(|p| pb::IoUsage { timestamp: now, psi: Some(psi(p)) });
    let Some(memory) = &usage.memory else { return };
    stats.memory = Some(pb::MemoryUsage {
        timestamp: now,
        working_set_bytes: value(memory.working_set),
        available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(memory.working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: pressure(&usage.pressure.memory),
    });
    stats.swap = memory.swap_usage.map(|used| pb::SwapUsage {
        timestamp: now,
        swap_usage_bytes: value(used),
        swap_available_bytes: memory.swap_limit.and_then(|limit| value(limit.saturating_sub(used))),
    });
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
