//! The daemon itself: configuration, lock, socket, signals, metrics.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{CgroupDriver, Options};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};
use tonic::Code;

fn podwright() -> Command {
    Command::new(podwright_testkit::daemon::default_binary())
}

#[tokio::test(flavor = "multi_thread")]
async fn version_status_and_config_answer() {
    let mut node = Node::new(Options::default()).await;
    let version = node.runtime.version(pb::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "podwright"));
    assert_eq!(
        (version.runtime_version.as_str(), version.runtime_api_version.as_str()),
        (env!("CARGO_PKG_VERSION"), "v1")
    );
    let status = node.runtime.status(pb::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        assert!(conditions.iter().any(|c| c.r#type == kind && c.status), "{conditions:?}");
    }
    assert!(status.runtime_handlers.iter().any(|h| h.name.is_empty()));
    let config = node.runtime.runtime_config(pb::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let driver = match node.scratch.cgroup_driver() {
        CgroupDriver::Cgroupfs => pb::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => pb::CgroupDriver::Systemd,
    };
    assert_eq!(config.linux.unwrap().cgroup_driver(), driver);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_root_and_its_group_alone() {
    let node = Node::new(Options::default()).await;
    let mode = std::fs::metadata(node.scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_may_read_of_an_existing_root_is_taken_away() {
    let mut node = Node::new(Options::default()).await;
    let (root, state) = (node.scratch.root().join("root"), node.scratch.root().join("state"));
    let open_to = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open_to(&root, 0o755);
    open_to(&root.join("lock"), 0o644);
    open_to(&state, 0o777);
    node.daemon.restart().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&root), mode(&root.join("lock")), mode(&state)), (0o700, 0o600, 0o711));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_root_is_refused() {
    let node = Node::new(Options::default()).await;
    let output = podwright().args(["serve", "--config"]).arg(node.scratch.config_file()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    let holder = format!("(process {})", node.daemon.pid().unwrap());
    assert!(said.contains("another podwright serves") && said.contains(&holder), "{said}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_daemon_soon_and_touches_no_pod() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("term", &[]).await;
    let mut client = node.runtime.clone();
    let request = pb::ExecSyncRequest { container_id: id.clone(), cmd: words(&["sleep", "60"]), timeout: 0 };
    let hanging = tokio::spawn(async move { client.exec_sync(request).await });
    let begun = Instant::now();
    node.daemon.stop().unwrap();
    // The promise of `serve`, not a measurement.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(hanging.await.unwrap().is_err());
    assert!(!node.scratch.socket().exists());
    node.daemon.launch().unwrap();
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    assert_eq!(node.pod_status(&pod).await.unwrap().state(), pb::PodSandboxState::SandboxReady);
    node.finish().await;
}

#[test]
fn a_wrong_key_is_told_with_file_line_and_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "root = \"/tmp/x\"\n\n[grpc]\nsocked = \"/x\"\n").unwrap();
    let output = podwright().args(["serve", "--config"]).arg(&file).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("config.toml:4:") && said.contains("did you mean `socket`?"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_calls_steps_and_pulls() {
    let mut node = Node::with_busybox().await;
    node.running("metrics", &[]).await;
    let refused_call = node.status(&"0".repeat(64)).await;
    assert!(refused_call.is_err());
    let address = node.scratch.metrics().unwrap();
    let text = podwright_testkit::http::get(address, "/metrics").unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "podwright_rpcs_total{code=\"OK\",method=\"RunPodSandbox\"} 1",
        "podwright_rpcs_total{code=\"NotFound\",method=\"ContainerStatus\"} 1",
        "podwright_rpc_seconds_count{method=\"StartContainer\"} 1",
        "podwright_step_seconds_count{operation=\"run_pod_sandbox\",step=\"network\"} 1",
        "podwright_pulls_succeeded_total 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let bytes = text.lines().find_map(|l| l.strip_prefix("podwright_pull_bytes_total ")).unwrap();
    assert!(bytes.parse::<f64>().unwrap() > 100_000.0, "{bytes}");
    assert_eq!(podwright_testkit::http::get(address, "/healthz").unwrap(), b"ok\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_configuration_only_host_network_pods_run() {
    let mut node = Node::new(Options::default()).await;
    for entry in std::fs::read_dir(node.scratch.cni_conf_dir()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    node.daemon.restart().unwrap();
    let status = node.runtime.status(pb::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let network = status.status.unwrap().conditions.into_iter().find(|c| c.r#type == "NetworkReady").unwrap();
    assert_eq!((network.status, network.reason.as_str()), (false, "NetworkPluginNotReady"));
    let config = node.pod("nonet");
    refused(node.run(&config).await, Code::Unavailable, &["no CNI configuration"]);
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_is_started_with_ends_with_it_and_reaches_no_program() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let inherited = std::fs::File::open(secret.path()).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let node = Node::new(Options::default()).await;
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::CLOEXEC).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.daemon.pid().unwrap())).unwrap();
    let leads = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let kept: Vec<_> = leads.filter(|to| to == secret.path()).collect();
    assert!(kept.is_empty(), "{kept:?}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_crashes_leaves_no_core_and_containers_keep_their_limit() {
    use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
    use std::os::unix::process::ExitStatusExt as _;
    let mut node = Node::with_busybox().await;
    let pid = Pid::from_raw(i32::try_from(node.daemon.pid().unwrap()).unwrap()).unwrap();
    let most = getrlimit(Resource::Core).maximum;
    prlimit(Some(pid), Resource::Core, Rlimit { current: most, maximum: most }).unwrap();
    let (_, id) = node.running("core", &["sleep", "1000000"]).await;
    let expected = most.map_or("unlimited".to_owned(), |blocks| (blocks / 512).to_string());
    assert_eq!(node.output(&id, &["sh", "-c", "ulimit -c"]).await, expected);
    kill_process(pid, Signal::ABORT).unwrap();
    let status = node.daemon.stop().unwrap().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    node.daemon.launch().unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_the_cri_socket_waits_and_does_not_spin() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    const SAYS: &str = "a listener cannot accept a connection";
    let mut node = Node::new(Options::default()).await;
    let pid = Pid::from_raw(i32::try_from(node.daemon.pid().unwrap()).unwrap()).unwrap();
    // What is open stays open, and nothing more can be.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    let begun = std::time::Instant::now();
    let waiting = std::os::unix::net::UnixStream::connect(node.scratch.socket()).unwrap();
    let said = |node: &Node| node.daemon.log().matches(SAYS).count();
    let repeated = std::time::Duration::from_secs(60);
    podwright_testkit::wait_for("it says so more than once", repeated, || (said(&node) > 3).then_some(()))
        .unwrap();
    let (often, took) = (said(&node), begun.elapsed());
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    // Ten times a second; one that spins says it ten thousand times.
    let most = usize::try_from(took.as_millis() / 50).unwrap() + 10;
    assert!(often <= most, "{often} times within {took:?}");
    drop(waiting);
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}
