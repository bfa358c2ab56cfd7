//! The metrics of pods and containers, for a kubelet that takes them from its runtime instead of cAdvisor. Reads on a
//! blocking thread and never walks a file system.

mod descriptors;
mod sheet;

pub(super) use descriptors::all as descriptors;

use self::sheet::{Processes, Sheet};
use super::proto as pb;
use super::stats;
use crate::host::interfaces::Counters;
use crate::host::{processes, space};
use crate::sandbox::{ContainerSnapshot, ContainerState, Manager, Measured, Node, PodSnapshot, SandboxError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One entry per ready pod.
pub(super) async fn list(pods: &Manager) -> Vec<pb::PodSandboxMetrics> {
    let wanted = stats::select_pods(pods, &pb::PodSandboxStatsFilter::default());
    let node = pods.node().clone();
    let cgroups = stats::own_cgroups(pods);
    let networks = stats::networks(&node, &wanted).await;
    let mut layers = Vec::new();
    for pod in &wanted {
        let containers: Vec<stats::Wanted> =
            stats::running(pod).map(|container| (pod.clone(), container.clone())).collect();
        layers.push(stats::layers(&node, &containers).await);
    }
    let read = move || {
        let space = space::of(node.layers.file_system())
            .inspect_err(|error| tracing::debug!(%error, "no figures of the layers' file system"))
            .ok();
        let all = wanted.iter().zip(layers).zip(networks);
        all.map(|((pod, layers), network)| {
            let own = cgroups.get(pod.spec.cgroup_parent.as_str());
            of_pod(&node, pod, layers, network.unwrap_or_default(), own, space.as_ref())
        })
        .collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn of_pod(
    node: &Node,
    pod: &PodSnapshot,
    layers: Vec<Option<Measured>>,
    network: Vec<Counters>,
    cgroup: Option<&PathBuf>,
    space: Option<&space::Space>,
) -> pb::PodSandboxMetrics {
    let path = node.pod_cgroup(&pod.spec).unwrap_or_default();
    let mut metrics = Vec::new();
    if let Some(path) = cgroup {
        // cAdvisor's name for what is not a container.
        let mut sheet = Sheet::new(labels(path, "", "", pod, ""));
        read_cgroup(node, path, &mut sheet).unwrap_or_else(|error| {
            tracing::debug!(sandbox = %pod.spec.id, %error, "no reading of the pod's cgroup");
        });
        metrics.extend(sheet.samples());
    }
    let mut sheet = Sheet::new(labels(&path, pod.spec.id.as_str(), "", pod, ""));
    sheet.network(&network);
    metrics.extend(sheet.samples());
    let containers = stats::running(pod).zip(layers);
    pb::PodSandboxMetrics {
        pod_sandbox_id: pod.spec.id.to_string(),
        metrics,
        container_metrics: containers
            .map(|(container, layer)| pb::ContainerMetrics {
                container_id: container.spec.id.to_string(),
                metrics: of_container(node, pod, container, layer, space).unwrap_or_else(|error| {
                    tracing::debug!(container = %container.spec.id, %error, "no metrics");
                    Vec::new()
                }),
            })
            .collect(),
    }
}

fn of_container(
    node: &Node,
    pod: &PodSnapshot,
    container: &Arc<ContainerSnapshot>,
    layer: Option<Measured>,
    space: Option<&space::Space>,
) -> Result<Vec<pb::Metric>, SandboxError> {
    let spec = &container.spec;
    let leaf = node.leaf(&pod.spec, &spec.id)?;
    let mut sheet = Sheet::new(labels(leaf.path(), spec.id.as_str(), &spec.image.display, pod, &spec.name));
    read_cgroup(node, leaf.path(), &mut sheet)?;
    if let Some(space) = space {
        sheet.layer(layer, node.layers.limits().bytes, space);
    }
    let (init, started) = match &container.state {
        ContainerState::Running { init, since } => (Some(init.pid), Some(*since)),
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => (None, None),
    };
    let pids = node.cgroups.pids(&leaf)?;
    sheet.processes(&Processes {
        count: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        open: processes::open_files(&pids),
        open_limit: init.and_then(processes::open_files_limit),
    });
    sheet.limits(&container.resources);
    sheet.times(started, node.clock.now());
    Ok(sheet.samples())
}

fn read_cgroup(node: &Node, cgroup: &Path, sheet: &mut Sheet) -> Result<(), SandboxError> {
    sheet.cgroup(&node.cgroups.stats(cgroup)?, &node.cgroups.details(cgroup)?);
    Ok(())
}

/// The base labels, in their order: cAdvisor's `id` is the cgroup, its `name` the container's id.
fn labels(cgroup: &Path, id: &str, image: &str, pod: &PodSnapshot, container: &str) -> [String; 6] {
    let name = &pod.spec.name;
    let cgroup = cgroup.to_string_lossy();
    [&cgroup, id, image, &name.namespace, &name.name, container].map(str::to_owned)
}
