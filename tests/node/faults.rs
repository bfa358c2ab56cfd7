//! Process and host faults: monitors killed, stopped and lost at bad moments, reboots, damaged records.

use crate::support::*;
use podwright::cri::proto as pb;
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::time::Duration;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Alive and not merely waiting to be reaped.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

pub(crate) fn wait<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    podwright_testkit::wait_for(what, PATIENCE, check).unwrap()
}

fn number(info: &std::collections::HashMap<String, String>) -> u32 {
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    u32::try_from(info["pid"].as_u64().unwrap()).unwrap()
}

impl Node {
    pub(crate) async fn monitor_pid(&mut self, pod: &str) -> u32 {
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        number(&self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info)
    }

    pub(crate) async fn init_pid(&mut self, id: &str) -> u32 {
        let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        number(&self.runtime.container_status(request).await.unwrap().into_inner().info)
    }

    pub(crate) fn record(&self, pod: &str) -> PathBuf {
        self.scratch.root().join("root/pods").join(pod)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_dies_while_its_pod_is_stopped_does_not_keep_the_pod() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("dies-in-stop", &[]).await;
    let monitor = node.monitor_pid(&pod).await;
    signal(monitor, Signal::STOP);
    let mut client = node.runtime.clone();
    let request = pb::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    let stopping = tokio::spawn(async move { client.stop_pod_sandbox(request).await });
    // Not a wait for something: the stop is to be under way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(monitor, Signal::KILL);
    let _ = tokio::time::timeout(Duration::from_secs(60), stopping).await.unwrap();
    let ended = node.exited(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_monitor_holds_up_nobody_and_its_pod_can_be_removed() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("hangs", &[]).await;
    let (_, other) = node.running("healthy", &[]).await;
    let (monitor, init) = (node.monitor_pid(&pod).await, node.init_pid(&id).await);
    signal(monitor, Signal::STOP);
    assert_eq!(node.list_containers().await.len(), 2);
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    assert_eq!(node.output(&other, &["echo", "alive"]).await, "alive");
    let mut stop = tonic::Request::new(pb::StopContainerRequest { container_id: id.clone(), timeout: 0 });
    stop.set_timeout(Duration::from_secs(8));
    // The client's clock or ours, whichever is first.
    let code = node.runtime.stop_container(stop).await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code}");
    assert!(!lives(init), "the container outlives StopContainer");
    // The first call reports what hangs; the next ones find it ended.
    for _ in 0..2 {
        if node.stop_pod(&pod).await.is_ok() {
            break;
        }
    }
    assert!(!lives(monitor));
    node.finish().await;
}

/// As a frozen disk does: whoever opens one for writing waits until somebody reads.
fn make_a_write_block(path: &std::path::Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_written_now_hold_up_nobody_else() {
    let mut node = Node::with_busybox().await;
    // More than the daemon has threads for async work.
    let mut blocked = Vec::new();
    for number in 0..6 {
        let (pod, id) = node.running(&format!("frozen-{number}"), &[]).await;
        let path = node.record(&pod).join("containers").join(&id).join("state.tmp");
        make_a_write_block(&path);
        let mut client = node.runtime.clone();
        let request = pb::StopContainerRequest { container_id: id.clone(), timeout: 0 };
        blocked.push((path, tokio::spawn(async move { client.stop_container(request).await })));
    }
    let in_time = async |node: &mut Node| {
        node.runtime.version(pb::VersionRequest::default()).await.unwrap();
        assert_eq!(node.list_containers().await.len(), 6);
        let (pod, id) = node.running("healthy", &[]).await;
        assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, in_time(&mut node)).await.expect("somebody waits for a record of others");
    let metrics = node.scratch.metrics().unwrap();
    assert_eq!(podwright_testkit::http::get(metrics, "/healthz").unwrap(), b"ok\n");
    for (path, stop) in blocked {
        // Read until the record is written; one that was written while nobody waited is an ordinary file by now.
        let reader = std::thread::spawn(move || std::fs::read(path).map(drop));
        stop.await.unwrap().unwrap();
        let _ = reader.join().unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_that_say_nothing_hold_up_no_start_and_are_believed_later() {
    let mut node = Node::with_busybox().await;
    let (pod, goes_on) = node.running("goes-on", &[]).await;
    let (ending_pod, ends) = node.running("ends", &[]).await;
    let (_, healthy) = node.running("healthy", &[]).await;
    let monitors = [node.monitor_pid(&pod).await, node.monitor_pid(&ending_pod).await];
    let init = node.init_pid(&ends).await;
    for monitor in monitors {
        signal(monitor, Signal::STOP);
    }
    node.daemon.kill().unwrap();
    signal(init, Signal::KILL);
    node.daemon.launch().unwrap();
    // As recorded, since nobody says anything else.
    for (pod, id) in [(&pod, &goes_on), (&ending_pod, &ends)] {
        assert_eq!(node.pod_status(pod).await.unwrap().state(), pb::PodSandboxState::SandboxReady);
        assert_eq!(node.status(id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    }
    assert_eq!(node.output(&healthy, &["echo", "alive"]).await, "alive");
    for monitor in monitors {
        signal(monitor, Signal::CONT);
    }
    let ended = node.exited(&ends).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
    assert_eq!(node.output(&goes_on, &["echo", "alive"]).await, "alive");
    node.stop(&goes_on, 0).await.unwrap();
    assert_eq!(node.status(&goes_on).await.unwrap().exit_code, 137);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_whose_monitor_was_lost_beside_the_daemon_are_ended() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("both", &[]).await;
    let config = node.pod("both");
    let mut spec = container("shared", &[]);
    security(&mut spec).namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Node.into();
    let config = {
        let mut config = config;
        config.metadata.as_mut().unwrap().name = "host-pid".to_owned();
        config.linux.get_or_insert_default().security_context = Some(pb::LinuxSandboxSecurityContext {
            namespace_options: Some(pb::NamespaceOption {
                pid: pb::NamespaceMode::Node.into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        config
    };
    let host_pod = node.run(&config).await.unwrap();
    let shared = node.create(&host_pod, &config, spec).await.unwrap();
    node.start(&shared).await.unwrap();
    node.output(&shared, &["sh", "-c", "sleep 87654 & true"]).await;
    let pids = [
        node.monitor_pid(&pod).await,
        node.monitor_pid(&host_pod).await,
        node.init_pid(&id).await,
        node.init_pid(&shared).await,
    ];
    node.daemon.kill().unwrap();
    for monitor in &pids[..2] {
        signal(*monitor, Signal::KILL);
    }
    node.daemon.launch().unwrap();
    for container in [&id, &shared] {
        let ended = node.exited(container).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"));
    }
    wait("the containers' processes are gone", || pids.iter().all(|pid| !lives(*pid)).then_some(()));
    node.remove(&id).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_wait_for_ever_when_its_monitor_dies() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("exec-lost", &[]).await;
    let monitor = node.monitor_pid(&pod).await;
    let mut client = node.runtime.clone();
    let cmd = words(&["sh", "-c", "echo > /tmp/begun; sleep 100000"]);
    let request = pb::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
    let exec = tokio::spawn(async move { client.exec_sync(request).await });
    for _ in 0..1000 {
        if node.exec(&id, &["test", "-e", "/tmp/begun"]).await.unwrap().exit_code == 0 {
            break;
        }
    }
    signal(monitor, Signal::KILL);
    let answer = tokio::time::timeout(PATIENCE, exec).await.expect("it waits for ever").unwrap();
    refused(answer, Code::FailedPrecondition, &["lost its monitor"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_costs_no_container() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("cut", &[]).await;
    let (_, ends) = node.running("other", &[]).await;
    let monitor = node.monitor_pid(&pod).await;
    // The first connection is a pair that has no peer to be told by.
    node.daemon.crash().unwrap();
    let before = node.status(&id).await.unwrap();
    assert_eq!(cut_connections(node.daemon.pid().unwrap(), monitor), 1);
    wait("the connection is restored", || node.daemon.log().contains("was restored").then_some(()));
    assert_eq!(node.status(&id).await.unwrap(), before);
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    node.stop(&id, 0).await.unwrap();
    assert_eq!(node.status(&id).await.unwrap().exit_code, 137);
    assert_eq!(node.status(&ends).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    node.finish().await;
}

/// Shuts down the sockets of one process whose peer is another.
fn cut_connections(process: u32, peer: u32) -> usize {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut cut = 0;
    for entry in std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten() {
        let is_socket =
            std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_string_lossy().parse().unwrap();
        let Ok(fd) = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) else { continue };
        if is_socket
            && podwright_sys::socket::peer(std::os::fd::AsFd::as_fd(&fd)).is_ok_and(|found| found.pid == peer)
        {
            rustix::net::shutdown(&fd, rustix::net::Shutdown::Both).unwrap();
            cut += 1;
        }
    }
    cut
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_everything_is_told_as_ended_and_can_be_removed() {
    // Rules that masquerade would go with the kernel, which goes on here.
    let options = podwright_testkit::Options { ip_masq: false, ..Default::default() };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let (pod, id) = node.running("boot", &[]).await;
    let config = node.pod("boot");
    let created = node.create(&pod, &config, container("created", &[])).await.unwrap();
    let monitor = node.monitor_pid(&pod).await;
    node.daemon.kill().unwrap();
    signal(monitor, Signal::KILL);
    let init_of = |id: &str| {
        let text = std::fs::read(node.record(&pod).join("containers").join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        u32::try_from(state["container"]["init"]["pid"].as_u64().unwrap()).unwrap()
    };
    let init = init_of(&id);
    if lives(init) {
        signal(init, Signal::KILL);
    }
    wait("the container is gone", || (!lives(init)).then_some(()));
    let state = node.scratch.root().join("state");
    let netns = node.scratch.netns_dir();
    // The pod's own process 1, which is in its network namespace.
    let record = std::fs::read(state.join("pods").join(&pod).join("monitor.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pod_init = u32::try_from(record["init"]["pid"].as_u64().unwrap()).unwrap();
    // With the monitor the pod's process 1 goes by itself.
    wait("the pod's process 1 is gone", || (!lives(pod_init)).then_some(()));
    for (what, dir) in [("mounts of the state", &state), ("network namespaces", &netns)] {
        for mount in podwright_testkit_mounts(dir) {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).expect(what);
        }
    }
    std::fs::remove_dir_all(&state).unwrap();
    for pin in std::fs::read_dir(&netns).unwrap() {
        std::fs::remove_file(pin.unwrap().path()).unwrap();
    }
    // With its last user the network namespace goes, and the pod's end of the bridge with it.
    let ports = format!("/sys/class/net/{}/brif", node.scratch.bridge());
    wait("the bridge has no port", || {
        std::fs::read_dir(&ports).is_ok_and(|mut ports| ports.next().is_none()).then_some(())
    });
    for id in [&id, &created] {
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
            let leaf = controller
                .unwrap()
                .path()
                .join(node.scratch.cgroup_parent().trim_start_matches('/'))
                .join(id);
            let _ = std::fs::remove_dir(leaf);
        }
    }
    let mut pending = vec![node.scratch.root().join("root/pods")];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "json") {
                let mut value: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                value["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
                std::fs::write(&path, value.to_string()).unwrap();
            }
        }
    }
    node.daemon.launch().unwrap();
    assert_eq!(node.pod_status(&pod).await.unwrap().state(), pb::PodSandboxState::SandboxNotready);
    let ended = node.status(&id).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (pb::ContainerState::ContainerExited, 255));
    let refusal = node.start(&created).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal}");
    // The name with the next attempt is free at once.
    let mut next = node.pod("boot");
    next.metadata.as_mut().unwrap().attempt = 1;
    node.run(&next).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    let ips = |node: &Node| {
        let walk = walk(&node.scratch.ipam_dir());
        walk.into_iter().filter(|f| f.parse::<std::net::IpAddr>().is_ok()).count()
    };
    assert_eq!(ips(&node), 1, "the lost pod's address is kept");
    node.finish().await;
}

fn podwright_testkit_mounts(below: &std::path::Path) -> Vec<String> {
    let below = std::fs::canonicalize(below).unwrap().to_string_lossy().into_owned();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&below));
    points.map(str::to_owned).collect::<Vec<_>>().into_iter().rev().collect()
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.extend(walk(&entry.path()));
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_states_are_rebuilt_from_what_runs() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("torn-container", &[]).await;
    let (torn_pod, torn_in_it) = node.running("torn-pod", &[]).await;
    let (_, healthy) = node.running("healthy", &[]).await;
    let init = node.init_pid(&id).await;
    node.daemon.kill().unwrap();
    let truncate = |path: PathBuf| {
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    };
    truncate(node.record(&pod).join("containers").join(&id).join("state.json"));
    truncate(node.record(&torn_pod).join("state.json"));
    node.daemon.launch().unwrap();
    assert_eq!(node.status(&healthy).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    assert!(node.daemon.log().contains("is not readable"), "{}", node.daemon.log());
    // It runs, so it is told as running.
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    assert!(lives(init));
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    // Its network is not known any more: it is given up, with what runs in it.
    assert_eq!(node.pod_status(&torn_pod).await.unwrap().state(), pb::PodSandboxState::SandboxNotready);
    let _ = node.status(&torn_in_it).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_a_container_starts_finds_it_running() {
    let (mut node, begun, _dir) = slow_node("run", 2).await;
    let config = node.pod("starting");
    let pod = node.run(&config).await.unwrap();
    let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
    let mut client = node.runtime.clone();
    let request = pb::StartContainerRequest { container_id: id.clone() };
    let start = tokio::spawn(async move { client.start_container(request).await });
    wait("the runtime runs", || begun.exists().then_some(()));
    node.daemon.crash().unwrap();
    let _ = start.await;
    for _ in 0..1000 {
        if node.status(&id).await.unwrap().state() != pb::ContainerState::ContainerCreated {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_times_out_before_it_began_never_begins() {
    let (mut node, _, _dir) = slow_node("exec", 3).await;
    let (_, id) = node.running("slow-exec", &[]).await;
    refused(node.exec_within(&id, &["sleep", "4321"], 1).await, Code::DeadlineExceeded, &["timed out"]);
    // Not a wait for something: nothing must happen.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let init = node.init_pid(&id).await;
    assert!(!processes_beside(init).iter().any(|c| c.contains("4321")));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_caller_went_away_is_ended() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("cancelled", &[]).await;
    let cmd = words(&["sleep", "4321"]);
    let mut request = tonic::Request::new(pb::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 });
    request.set_timeout(Duration::from_secs(1));
    assert!(node.runtime.exec_sync(request).await.is_err());
    let init = node.init_pid(&id).await;
    wait("the command is ended", || {
        (!processes_beside(init).iter().any(|c| c.contains("4321"))).then_some(())
    });
    node.finish().await;
}

/// The command lines in a process's pid namespace.
fn processes_beside(pid: u32) -> Vec<String> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace(&pid.to_string());
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.map(|e| e.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| pid.parse::<u32>().is_ok() && namespace(pid) == ours)
        .map(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
        })
        .collect()
}

/// A node whose OCI runtime takes its time for one verb; the file that it makes when it begins. The directory keeps it.
async fn slow_node(verb: &str, seconds: u32) -> (Node, PathBuf, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (script, begun) = (dir.path().join("runtime"), dir.path().join("begun"));
    let begins = format!("if [ \"$word\" = {verb} ]; then : > {}; sleep {seconds}; fi", begun.display());
    let text = format!("#!/bin/sh\nfor word; do {begins}; done\nexec runc \"$@\"\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let handler = format!("[runtime.handlers.slow]\npath = \"{}\"\n", script.display());
    let options = podwright_testkit::Options {
        runtime: "slow".to_owned(),
        extra_config: handler,
        ..Default::default()
    };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let _ = std::fs::remove_file(&begun);
    (node, begun, dir)
}
