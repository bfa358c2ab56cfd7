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
use crate::model::Timestamp;
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
    let most = pods.node().config.grpc.max_message_bytes;
    let mut all: Vec<_> = tokio::task::spawn_blocking(read).await.unwrap_or_default();
    let silenced = fit(&mut all, most);
    if silenced > 0 {
        tracing::debug!(pods = silenced, "metrics of these are too long for a message with all others'");
    }
    all
}

/// What a pod takes in a list beside its own bytes: a tag and a length.
const ENTRY_BYTES: usize = 6;

/// Takes the samples of the longest entries until all fit a message; how many. How many interfaces, devices and containers
/// a pod has is its own choice, and none may keep the others' figures from being told.
fn fit(all: &mut [pb::PodSandboxMetrics], most: usize) -> usize {
    use prost::Message as _;
    let mut total: usize = all.iter().map(|pod| pod.encoded_len() + ENTRY_BYTES).sum();
    if total <= most {
        return 0;
    }
    let mut longest: Vec<_> = all.iter_mut().map(|pod| (pod.encoded_len(), pod)).collect();
    longest.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let mut silenced = 0;
    for (bytes, pod) in longest {
        if total <= most {
            break;
        }
        (pod.metrics, pod.container_metrics) = (Vec::new(), Vec::new());
        total = total - bytes + pod.encoded_len();
        silenced += 1;
    }
    silenced
}

fn of_pod(
    node: &Node,
    pod: &PodSnapshot,
    layers: Vec<Option<Measured>>,
    network: Vec<Counters>,
    cgroup: Option<&PathBuf>,
    space: Option<&space::Space>,
) -> pb::PodSandboxMetrics {
    let path = node.cgroups.pod_cgroup(&pod.spec).unwrap_or_default();
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
    let leaf = node.cgroups.leaf(&pod.spec, &spec.id)?;
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
    let pids = node.cgroups.kernel.pids(&leaf)?;
    sheet.processes(&Processes {
        count: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        open: processes::open_files(&pids),
        open_limit: init.and_then(processes::open_files_limit),
    });
    sheet.limits(&container.resources);
    sheet.times(started, Timestamp::now());
    Ok(sheet.samples())
}

fn read_cgroup(node: &Node, cgroup: &Path, sheet: &mut Sheet) -> Result<(), SandboxError> {
    sheet.cgroup(&node.cgroups.kernel.stats(cgroup)?, &node.cgroups.kernel.details(cgroup)?);
    Ok(())
}

/// The base labels, in their order: cAdvisor's `id` is the cgroup, its `name` the container's id.
fn labels(cgroup: &Path, id: &str, image: &str, pod: &PodSnapshot, container: &str) -> [String; 6] {
    let name = &pod.spec.name;
    let cgroup = cgroup.to_string_lossy();
    [&cgroup, id, image, &name.namespace, &name.name, container].map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn a_pod_with_samples_without_end_does_not_silence_the_others() {
        let pod = |id: &str, samples: usize| {
            let metric = pb::Metric { name: "x".repeat(90), ..Default::default() };
            pb::PodSandboxMetrics {
                pod_sandbox_id: id.to_owned(),
                metrics: vec![metric.clone(); samples / 2],
                container_metrics: vec![pb::ContainerMetrics {
                    container_id: "c".into(),
                    metrics: vec![metric; samples / 2],
                }],
            }
        };
        let most = 1 << 20;
        let mut all = vec![pod("a", 100), pod("loud", 50_000), pod("b", 100)];
        assert_eq!(fit(&mut all, most), 1);
        let ids: Vec<_> = all.iter().map(|pod| pod.pod_sandbox_id.as_str()).collect();
        assert_eq!(ids, ["a", "loud", "b"]);
        let samples: Vec<_> = all.iter().map(|pod| pod.metrics.len()).collect();
        assert_eq!(samples, [50, 0, 50]);
        assert!(pb::ListPodSandboxMetricsResponse { pod_metrics: all.clone() }.encoded_len() <= most);
        assert_eq!(fit(&mut all, most), 0);
    }
}
