//! Stats of pods: their own cgroup, which the kubelet created, their network devices, and their containers.

use super::{Parts, Wanted, one, running, value};
use crate::cri::encode;
use crate::cri::proto as pb;
use crate::host::cgroups::CgroupStats;
use crate::host::interfaces::{self, Counters, Traffic};
use crate::model::{NamespaceMode, Timestamp};
use crate::sandbox::{Manager, Measured, Node, PodSnapshot, SandboxState};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The device that CNI gives the pod's first address to.
const DEFAULT_INTERFACE: &str = "eth0";

/// The pods that pass the filter and are ready; others have nothing to read.
pub(in crate::cri) fn select_pods(
    pods: &Manager,
    filter: &pb::PodSandboxStatsFilter,
) -> Vec<Arc<PodSnapshot>> {
    let mut wanted = ready(pods);
    wanted.retain(|pod| {
        pod.spec.id.as_str().starts_with(&filter.id)
            && encode::selected(&pod.spec.labels, &filter.label_selector)
    });
    wanted
}

fn ready(pods: &Manager) -> Vec<Arc<PodSnapshot>> {
    let mut pods = pods.pods();
    pods.retain(|pod| matches!(pod.state, SandboxState::Ready { .. }));
    pods
}

/// One entry per pod, in the order given.
pub(in crate::cri) async fn pods(pods: &Manager, wanted: Vec<Arc<PodSnapshot>>) -> Vec<pb::PodSandboxStats> {
    let node = pods.node().clone();
    let cgroups = own_cgroups(pods);
    let networks = networks(&node, &wanted).await;
    let with_containers: Vec<(Arc<PodSnapshot>, Vec<Wanted>)> = wanted
        .into_iter()
        .map(|pod| {
            let containers = running(&pod).map(|container| (pod.clone(), container.clone())).collect();
            (pod, containers)
        })
        .collect();
    let mut layers = Vec::new();
    for (_, containers) in &with_containers {
        layers.push(super::layers(&node, containers).await);
    }
    let read = move || {
        let all = with_containers.iter().zip(layers).zip(networks);
        all.map(|(((pod, containers), layers), network)| {
            stats_of(&node, pod, containers, layers, network, cgroups.get(pod.spec.cgroup_parent.as_str()))
        })
        .collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Cgroup paths by the parent that a pod names, if no other ready pod names it: a shared cgroup is no single pod's
/// figure.
pub(in crate::cri) fn own_cgroups(pods: &Manager) -> HashMap<String, PathBuf> {
    let mut count: HashMap<String, (usize, PathBuf)> = HashMap::new();
    let shared = &pods.node().cgroups.default_parent;
    for pod in ready(pods).iter().filter(|pod| !["", shared].contains(&pod.spec.cgroup_parent.as_str())) {
        if let Ok(path) = pods.node().cgroups.pod_cgroup(&pod.spec) {
            count.entry(pod.spec.cgroup_parent.clone()).or_insert((0, path)).0 += 1;
        }
    }
    count.into_iter().filter(|(_, (pods, _))| *pods == 1).map(|(parent, (_, path))| (parent, path)).collect()
}

/// The devices of each pod; None for one on the host's network, which has the node's devices.
pub(in crate::cri) async fn networks(node: &Node, pods: &[Arc<PodSnapshot>]) -> Vec<Option<Vec<Counters>>> {
    let own = |pod: &PodSnapshot| pod.spec.namespaces.network != NamespaceMode::Node;
    let namespaces = pods.iter().filter(|pod| own(pod)).map(|pod| node.places.netns(&pod.spec.id)).collect();
    let mut read = interfaces::counters(namespaces).await.into_iter();
    let network = |pod: &Arc<PodSnapshot>| {
        if !own(pod) {
            return None;
        }
        match read.next()? {
            Ok(devices) => Some(devices),
            Err(error) => {
                tracing::debug!(sandbox = %pod.spec.id, %error, "no counters of network devices");
                None
            }
        }
    };
    pods.iter().map(network).collect()
}

fn stats_of(
    node: &Node,
    pod: &PodSnapshot,
    containers: &[Wanted],
    layers: Vec<Option<Measured>>,
    network: Option<Vec<Counters>>,
    cgroup: Option<&PathBuf>,
) -> pb::PodSandboxStats {
    let each = containers.iter().zip(layers).map(|((_, container), layer)| one(node, pod, container, layer));
    let (containers, readings): (Vec<_>, Vec<_>) = each.unzip();
    let now = Timestamp::now().nanos();
    let parts = match cgroup.map(|path| (path, node.cgroups.kernel.stats(path))) {
        Some((path, Ok(usage))) => Parts::of(node, path, &usage, now),
        failed => {
            if let Some((_, Err(error))) = failed {
                tracing::debug!(sandbox = %pod.spec.id, %error, "no reading of the pod's cgroup");
            }
            let sum = readings.into_iter().flatten().fold(CgroupStats::default(), CgroupStats::plus);
            let rates = containers.iter().filter_map(|c| c.cpu.as_ref()?.usage_nano_cores.as_ref());
            let rate = rates.map(|rate| rate.value).reduce(u64::saturating_add);
            Parts::with_rate(&sum, rate, now)
        }
    };
    pb::PodSandboxStats {
        attributes: Some(pb::PodSandboxAttributes {
            id: pod.spec.id.to_string(),
            metadata: Some(encode::sandbox_metadata(&pod.spec.name)),
            labels: pod.spec.labels.clone().into_iter().collect(),
            annotations: pod.spec.annotations.clone().into_iter().collect(),
        }),
        linux: Some(pb::LinuxPodSandboxStats {
            cpu: Some(parts.cpu),
            memory: parts.memory,
            io: parts.io,
            network: network.map(|devices| network_usage(devices, now)),
            process: Some(pb::ProcessUsage { timestamp: now, process_count: value(processes(node, pod)) }),
            containers,
        }),
        windows: None,
    }
}

/// The processes of the pod's running containers.
fn processes(node: &Node, pod: &PodSnapshot) -> u64 {
    let of = |container: &crate::sandbox::ContainerSnapshot| {
        let pids = node
            .cgroups
            .leaf(&pod.spec, &container.spec.id)
            .ok()
            .and_then(|leaf| node.cgroups.kernel.pids(&leaf).ok());
        u64::try_from(pids.unwrap_or_default().len()).unwrap_or(u64::MAX)
    };
    running(pod).map(|container| of(container)).fold(0, u64::saturating_add)
}

fn network_usage(devices: Vec<Counters>, now: i64) -> pb::NetworkUsage {
    let usage = |device: Counters| {
        let Counters { name, received: Traffic { bytes, errors, .. }, sent } = device;
        pb::NetworkInterfaceUsage {
            name,
            rx_bytes: value(bytes),
            rx_errors: value(errors),
            tx_bytes: value(sent.bytes),
            tx_errors: value(sent.errors),
        }
    };
    let (default, others): (Vec<_>, Vec<_>) =
        devices.into_iter().map(usage).partition(|device| device.name == DEFAULT_INTERFACE);
    pb::NetworkUsage { timestamp: now, default_interface: default.into_iter().next(), interfaces: others }
}
