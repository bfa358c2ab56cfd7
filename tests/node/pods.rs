//! Sandboxes: namespaces, network, files, lists, idempotency.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{CgroupDriver, Options};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_an_address_a_hostname_and_its_files() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("files");
    config.dns_config = Some(pb::DnsConfig {
        servers: words(&["10.9.8.7"]),
        searches: words(&["a.test", "b.test"]),
        options: words(&["ndots:3"]),
    });
    let pod = node.run(&config).await.unwrap();
    let status = node.pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), pb::PodSandboxState::SandboxReady);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with(&node.scratch.subnet_prefix()), "{ip}");
    let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["hostname"]).await, "files");
    assert_eq!(node.output(&id, &["cat", "/etc/hostname"]).await, "files");
    let resolv = node.output(&id, &["cat", "/etc/resolv.conf"]).await;
    assert_eq!(resolv, "search a.test b.test\nnameserver 10.9.8.7\noptions ndots:3");
    assert!(node.output(&id, &["ip", "addr", "show", "eth0"]).await.contains(&ip));
    assert!(node.output(&id, &["ip", "addr", "show", "lo"]).await.contains("127.0.0.1"));
    let shm = node.output(&id, &["df", "-k", "/dev/shm"]).await;
    assert!(shm.contains("65536"), "{shm}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_network_ipc_and_hostname_but_not_processes() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("shared");
    let pod = node.run(&config).await.unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let id = node.create(&pod, &config, container(name, &[])).await.unwrap();
        node.start(&id).await.unwrap();
        ids.push(id);
    }
    for kind in ["net", "ipc", "uts"] {
        let link = format!("/proc/self/ns/{kind}");
        let (a, b) = (
            node.output(&ids[0], &["readlink", &link]).await,
            node.output(&ids[1], &["readlink", &link]).await,
        );
        assert_eq!(a, b);
        let host = std::fs::read_link(&link).unwrap();
        assert_ne!(a, host.to_string_lossy(), "{kind} is the host's");
    }
    for kind in ["pid", "mnt"] {
        let link = format!("/proc/self/ns/{kind}");
        assert_ne!(
            node.output(&ids[0], &["readlink", &link]).await,
            node.output(&ids[1], &["readlink", &link]).await
        );
    }
    node.output(&ids[0], &["sh", "-c", "echo from-one > /dev/shm/note"]).await;
    assert_eq!(node.output(&ids[1], &["cat", "/dev/shm/note"]).await, "from-one");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_has_an_init_that_reaps() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("pids");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    security(&mut spec).namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    // An orphan: its parent ends first, so the pod's process 1 inherits and reaps it.
    node.output(&id, &["sh", "-c", "(sh -c 'exit 3' &) ; true"]).await;
    let processes = node.output(&id, &["ps", "-o", "pid,stat,comm"]).await;
    assert!(processes.contains("podwright-init"), "{processes}");
    assert!(!processes.contains(" Z "), "{processes}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_network_needs_no_plugin() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("host");
    let options = pb::NamespaceOption { network: pb::NamespaceMode::Node.into(), ..Default::default() };
    config.linux.get_or_insert_default().security_context =
        Some(pb::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    let pod = node.run(&config).await.unwrap();
    assert_eq!(node.pod_status(&pod).await.unwrap().network.unwrap_or_default().ip, "");
    let mut spec = container("main", &[]);
    security(&mut spec).namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(node.output(&id, &["readlink", "/proc/self/ns/net"]).await, host.to_string_lossy());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_remove_are_idempotent_and_unknown_ids_are_fine() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("twice", &[]).await;
    for _ in 0..2 {
        node.stop(&id, 0).await.unwrap();
        node.stop_pod(&pod).await.unwrap();
    }
    assert_eq!(node.pod_status(&pod).await.unwrap().state(), pb::PodSandboxState::SandboxNotready);
    for _ in 0..2 {
        node.remove(&id).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
    }
    let unknown = "f".repeat(64);
    node.stop(&unknown, 0).await.unwrap();
    node.remove(&unknown).await.unwrap();
    node.stop_pod(&unknown).await.unwrap();
    node.remove_pod(&unknown).await.unwrap();
    refused(node.pod_status(&pod).await, Code::NotFound, &[&pod]);
    refused(node.status(&id).await, Code::NotFound, &[&id]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_gets_the_same_pod() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("retry");
    let mut calls = Vec::new();
    for _ in 0..8 {
        let mut client = node.runtime.clone();
        let request = pb::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        calls.push(tokio::spawn(async move { client.run_pod_sandbox(request).await }));
    }
    let mut ids = Vec::new();
    for call in calls {
        ids.push(call.await.unwrap().unwrap().into_inner().pod_sandbox_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let mut other = config.clone();
    other.hostname = "another".to_owned();
    refused(node.run(&other).await, Code::AlreadyExists, &["retry_default_uid-retry_0", &ids[0]]);
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.run(&next).await.unwrap(), ids[0]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_filter_by_id_state_and_labels_and_keep_annotations_to_the_byte() {
    let mut node = Node::with_busybox().await;
    let mut pods = Vec::new();
    let big = "x".repeat(256 << 10);
    for name in ["red", "blue"] {
        let mut config = node.pod(name);
        config.labels = map(&[("colour", name), ("app", "list")]);
        config.annotations = map(&[("big", &big), ("odd", "a=b\n\u{1F600}")]);
        pods.push(node.run(&config).await.unwrap());
    }
    node.stop_pod(&pods[1]).await.unwrap();
    let mut list = async |filter: pb::PodSandboxFilter| {
        let request = pb::ListPodSandboxRequest { filter: Some(filter) };
        let answer = node.runtime.list_pod_sandbox(request).await.unwrap().into_inner();
        answer.items.into_iter().map(|p| p.id).collect::<Vec<_>>()
    };
    let all = pb::PodSandboxFilter { label_selector: map(&[("app", "list")]), ..Default::default() };
    assert_eq!(list(all).await.len(), 2);
    let red = pb::PodSandboxFilter { label_selector: map(&[("colour", "red")]), ..Default::default() };
    assert_eq!(list(red).await, [pods[0].clone()]);
    let by_prefix = pb::PodSandboxFilter { id: pods[1][..12].to_owned(), ..Default::default() };
    assert_eq!(list(by_prefix).await, [pods[1].clone()]);
    let state = Some(pb::PodSandboxStateValue { state: pb::PodSandboxState::SandboxReady.into() });
    assert_eq!(list(pb::PodSandboxFilter { state, ..Default::default() }).await, [pods[0].clone()]);
    let none = pb::PodSandboxFilter { id: "nothing".to_owned(), ..Default::default() };
    assert!(list(none).await.is_empty());
    node.daemon.crash().unwrap();
    let status = node.pod_status(&pods[0]).await.unwrap();
    assert_eq!(status.annotations["big"], big);
    assert_eq!(status.annotations["odd"], "a=b\n\u{1F600}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_leads_into_the_pod() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("port");
    let port = 20_000 + i32::from(u16::try_from(std::process::id() % 10_000).unwrap());
    config.port_mappings =
        vec![pb::PortMapping { container_port: 8080, host_port: port, ..Default::default() }];
    let pod = node.run(&config).await.unwrap();
    let serve = ["sh", "-c", "while true; do echo hello | nc -l -p 8080; done"];
    let id = node.create(&pod, &config, container("main", &serve)).await.unwrap();
    node.start(&id).await.unwrap();
    let address = format!("127.0.0.1:{port}");
    let text = podwright_testkit::wait_for("the pod answers", std::time::Duration::from_secs(20), || {
        let mut stream = std::net::TcpStream::connect(&address).ok()?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).ok()?;
        Some(text).filter(|t| !t.is_empty())
    });
    assert_eq!(text.unwrap(), "hello\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cgroup_parent_of_the_other_driver_is_refused_with_what_to_set() {
    let mut node = Node::new(Options::default()).await;
    let mut config = node.pod("parent");
    let (wrong, ours) = match node.scratch.cgroup_driver() {
        CgroupDriver::Cgroupfs => ("/kubepods.slice/kubepods-pod1.slice", "cgroupfs"),
        CgroupDriver::Systemd => ("/kubepods/pod1", "systemd"),
    };
    config.linux.as_mut().unwrap().cgroup_parent = wrong.to_owned();
    let says = [wrong, &format!("cgroupDriver: {ours}"), "cgroups.driver"];
    refused(node.run(&config).await, Code::InvalidArgument, &says);
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_new_limits_are_noted_and_outlive_the_daemon() {
    let mut node = Node::new(Options::default()).await;
    let mut config = node.pod("resized");
    let limits = |memory| pb::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    let linux = config.linux.as_mut().unwrap();
    (linux.overhead, linux.resources) = (Some(limits(1 << 20)), Some(limits(64 << 20)));
    let pod = node.run(&config).await.unwrap();
    let noted = async |node: &mut Node| {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
        let info = node.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let of = |what: &str| info["limits"][what]["memory_limit"].as_u64();
        (of("overhead"), of("resources"))
    };
    assert_eq!(noted(&mut node).await, (Some(1 << 20), Some(64 << 20)));
    let mut request = pb::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: Some(limits(2 << 20)),
        resources: Some(limits(96 << 20)),
    };
    node.runtime.update_pod_sandbox_resources(request.clone()).await.unwrap();
    assert_eq!(noted(&mut node).await, (Some(2 << 20), Some(96 << 20)));
    node.daemon.crash().unwrap();
    assert_eq!(noted(&mut node).await, (Some(2 << 20), Some(96 << 20)));
    request.pod_sandbox_id = "f".repeat(64);
    refused(node.runtime.update_pod_sandbox_resources(request).await, Code::NotFound, &["ffff"]);
    node.finish().await;
}
