//! Usage of pods and containers, as the kubelet queries it: stats and metrics.

use crate::support::*;
use podwright::cri::proto as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tonic::Code;

/// Network, memory, a socket, and a little CPU time again and again.
const BUSY: &str = "ping -c 1 -w 1 10.88.255.1 >/dev/null 2>&1; nc -l -p 9 & \
                    while true; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.01; done";

impl Node {
    /// A pod whose cgroup parent is its own, as a kubelet makes it.
    async fn pod_with_parent(&mut self, name: &str) -> (pb::PodSandboxConfig, String) {
        let mut config = self.pod(name);
        config.linux.as_mut().unwrap().cgroup_parent = self.scratch.cgroup_parent_of(name);
        config.labels = map(&[("app", name)]);
        let pod = self.run(&config).await.unwrap();
        (config, pod)
    }

    /// Removes the pods, and the cgroups that a kubelet would remove now: nothing of ours may be left in them.
    async fn finish_with_parents(mut self, names: &[&str]) {
        for pod in self.list_pods().await {
            self.stop_pod(&pod.id).await.unwrap();
            self.remove_pod(&pod.id).await.unwrap();
        }
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let all = hierarchies.chain([std::path::PathBuf::from("/sys/fs/cgroup")]);
        for root in all.filter(|root| root.join("cgroup.procs").exists()) {
            for name in names {
                let parent = self.scratch.cgroup_parent_of(name);
                match std::fs::remove_dir(root.join(parent.trim_start_matches('/'))) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        panic!("{}{parent}: {error}", root.display())
                    }
                    _ => {}
                }
            }
        }
        self.finish().await;
    }

    pub(crate) async fn pod_stats(&mut self, id: &str) -> Result<pb::PodSandboxStats, tonic::Status> {
        let request = pb::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        Ok(self.runtime.pod_sandbox_stats(request).await?.into_inner().stats.unwrap())
    }

    async fn list_pod_stats(&mut self, id: &str, labels: &[(&str, &str)]) -> BTreeSet<String> {
        let filter = pb::PodSandboxStatsFilter { id: id.to_owned(), label_selector: map(labels) };
        let request = pb::ListPodSandboxStatsRequest { filter: Some(filter) };
        let stats = self.runtime.list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
        stats.into_iter().map(|s| s.attributes.unwrap().metadata.unwrap().name).collect()
    }
}

fn number(value: Option<pb::UInt64Value>) -> u64 {
    value.unwrap().value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_stats_tell_all_that_it_uses() {
    let mut node = Node::with_busybox().await;
    let (config, pod) = node.pod_with_parent("one").await;
    let (_, other) = node.pod_with_parent("two").await;
    let id = node.create(&pod, &config, container("main", &["sh", "-c", BUSY])).await.unwrap();
    node.start(&id).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // A rate takes two readings, a second apart.
    let linux = loop {
        let stats = node.pod_stats(&pod).await.unwrap();
        assert_eq!(stats.attributes.as_ref().unwrap().id, pod);
        let linux = stats.linux.unwrap();
        let network = linux.network.clone().unwrap().default_interface.unwrap();
        let runs = |cpu: &Option<pb::CpuUsage>| {
            cpu.as_ref().unwrap().usage_nano_cores.is_some_and(|rate| rate.value > 0)
        };
        // The container's window may be a little younger than the pod's.
        let rated = runs(&linux.cpu) && linux.containers.iter().all(|container| runs(&container.cpu));
        if rated && number(network.tx_bytes) > 0 && number(linux.process.unwrap().process_count) >= 2 {
            break linux;
        }
        assert!(tokio::time::Instant::now() < deadline, "{linux:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let cpu = linux.cpu.unwrap();
    assert!(number(cpu.usage_nano_cores) > 0 && number(cpu.usage_core_nano_seconds) > 0 && cpu.timestamp > 0);
    let network = linux.network.unwrap();
    assert_eq!(network.default_interface.unwrap().name, "eth0");
    assert!(!network.interfaces.iter().any(|device| ["lo", "eth0"].contains(&device.name.as_str())));
    let [container] = &linux.containers[..] else { panic!("{:?}", linux.containers) };
    assert_eq!(container.attributes.as_ref().unwrap().id, id);
    assert!(number(container.cpu.unwrap().usage_nano_cores) > 0);
    assert!(container.writable_layer.is_some() && container.memory.is_some());
    // The pod's own cgroup has at least what the container's has.
    let (pod_memory, memory) = (linux.memory.unwrap(), container.memory.unwrap());
    assert!(number(pod_memory.usage_bytes) > 0 && number(memory.usage_bytes) > 0);
    let pressure = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && std::fs::read_to_string("/proc/pressure/cpu").is_ok();
    assert_eq!((cpu.psi.is_some(), container.cpu.unwrap().psi.is_some()), (pressure, pressure));

    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(node.list_pod_stats("", &[]).await, names(&["one", "two"]));
    assert_eq!(node.list_pod_stats(&other[..12], &[]).await, names(&["two"]));
    assert_eq!(node.list_pod_stats("", &[("app", "one")]).await, names(&["one"]));
    assert_eq!(node.list_pod_stats(&pod, &[("app", "two")]).await, names(&[]));

    node.stop_pod(&other).await.unwrap();
    assert_eq!(node.list_pod_stats("", &[]).await, names(&["one"]));
    refused(node.pod_stats(&other).await, Code::FailedPrecondition, &["read the stats", "not ready"]);
    refused(node.pod_stats("0123").await, Code::NotFound, &["0123"]);
    node.finish_with_parents(&["one", "two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_agree_with_their_descriptors() {
    let mut node = Node::with_busybox().await;
    let (config, pod) = node.pod_with_parent("metrics").await;
    let mut spec = container("main", &["sh", "-c", BUSY]);
    spec.linux.as_mut().unwrap().resources = Some(pb::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let request = pb::ListMetricDescriptorsRequest {};
    let descriptors = node.runtime.list_metric_descriptors(request).await.unwrap().into_inner().descriptors;
    let keys: BTreeMap<String, Vec<String>> =
        descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
    let request = pb::ListPodSandboxMetricsRequest {};
    let all = node.runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    let [of_pod] = &all[..] else { panic!("{} pods", all.len()) };
    assert_eq!(of_pod.pod_sandbox_id, pod);
    let [of_container] = &of_pod.container_metrics[..] else { panic!() };
    assert_eq!(of_container.container_id, id);
    let label = |metric: &pb::Metric, key: &str| {
        let at = keys[&metric.name].iter().position(|k| k == key).unwrap();
        metric.label_values[at].clone()
    };
    for metric in of_pod.metrics.iter().chain(&of_container.metrics) {
        assert_eq!(metric.label_values.len(), keys[&metric.name].len(), "{}", metric.name);
        assert_eq!((label(metric, "namespace"), label(metric, "pod")), ("default".into(), "metrics".into()));
    }
    let of = |name: &str| of_container.metrics.iter().find(|m| m.name == name);
    let value = |name: &str| of(name).unwrap_or_else(|| panic!("no {name}")).value.unwrap().value;
    assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!((value("container_spec_cpu_quota"), value("container_spec_cpu_shares")), (50_000, 512));
    assert!(value("container_processes") >= 1 && value("container_file_descriptors") >= 3);
    assert!(value("container_memory_usage_bytes") > 0 && value("container_start_time_seconds") > 0);
    let usage = of("container_cpu_usage_seconds_total").unwrap();
    assert_eq!((label(usage, "container"), label(usage, "name")), ("main".to_owned(), id.clone()));
    assert!(label(usage, "id").contains(&id) && label(usage, "image") == BUSYBOX);
    let network: BTreeSet<&str> = of_pod.metrics.iter().map(|m| m.name.as_str()).collect();
    assert!(network.contains("container_network_receive_bytes_total"));
    // Everything that this kernel reports: missing figures have a reason.
    let sampled: BTreeSet<&str> =
        of_container.metrics.iter().map(|m| m.name.as_str()).chain(network).collect();
    let missing: Vec<&String> = keys.keys().filter(|name| !sampled.contains(name.as_str())).collect();
    let excused = [
        "container_pressure_",
        "container_hugetlb_",
        "container_fs_reads",
        "container_fs_writes",
        "container_blkio_",
    ];
    assert!(missing.iter().all(|name| excused.iter().any(|e| name.starts_with(e))), "{missing:?}");
    node.finish_with_parents(&["metrics"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_and_metrics_of_pods_come_as_streams_with_every_pod_once() {
    let mut node = Node::with_busybox().await;
    let request = pb::StreamPodSandboxStatsRequest::default();
    let (stats, messages) = streamed!(node.runtime, stream_pod_sandbox_stats, request, pod_sandbox_stats);
    assert_eq!((stats.len(), messages), (0, 0));
    let request = pb::StreamPodSandboxMetricsRequest::default();
    let (metrics, messages) =
        streamed!(node.runtime, stream_pod_sandbox_metrics, request, pod_sandbox_metrics);
    assert_eq!((metrics.len(), messages), (0, 0));

    let mut ids = BTreeMap::new();
    for name in ["one", "two"] {
        let mut config = node.pod(name);
        config.labels = map(&[("app", name)]);
        // So large that one message does not hold both.
        config.annotations = map(&[("large", &"x".repeat(700 << 10))]);
        let pod = node.run(&config).await.unwrap();
        let id = node.create(&pod, &config, container("main", &["sleep", "1000"])).await.unwrap();
        node.start(&id).await.unwrap();
        ids.insert(pod, id);
    }
    let request = pb::StreamPodSandboxStatsRequest::default();
    let (stats, messages) = streamed!(node.runtime, stream_pod_sandbox_stats, request, pod_sandbox_stats);
    assert_eq!(messages, 2);
    let of_pod = |stats: &pb::PodSandboxStats| {
        let [container] = &stats.linux.as_ref().unwrap().containers[..] else { panic!("{stats:?}") };
        assert!(number(container.memory.unwrap().usage_bytes) > 0);
        (stats.attributes.as_ref().unwrap().id.clone(), container.attributes.as_ref().unwrap().id.clone())
    };
    assert_eq!((stats.len(), stats.iter().map(of_pod).collect::<BTreeMap<_, _>>()), (2, ids.clone()));
    let filter = pb::PodSandboxStatsFilter { label_selector: map(&[("app", "two")]), ..Default::default() };
    let request = pb::StreamPodSandboxStatsRequest { filter: Some(filter) };
    let (stats, _) = streamed!(node.runtime, stream_pod_sandbox_stats, request, pod_sandbox_stats);
    let [two] = &stats[..] else { panic!("{} pods", stats.len()) };
    assert_eq!(two.attributes.as_ref().unwrap().metadata.as_ref().unwrap().name, "two");

    let request = pb::StreamPodSandboxMetricsRequest::default();
    let (metrics, _) = streamed!(node.runtime, stream_pod_sandbox_metrics, request, pod_sandbox_metrics);
    let of_pod = |metrics: &pb::PodSandboxMetrics| {
        let [container] = &metrics.container_metrics[..] else { panic!("{metrics:?}") };
        let memory = container.metrics.iter().find(|m| m.name == "container_memory_usage_bytes");
        assert!(memory.unwrap().value.unwrap().value > 0);
        (metrics.pod_sandbox_id.clone(), container.container_id.clone())
    };
    assert_eq!((metrics.len(), metrics.iter().map(of_pod).collect::<BTreeMap<_, _>>()), (2, ids));
    node.finish().await;
}
