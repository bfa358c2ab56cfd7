//! What a pod survives: the daemon's death, its restart, its absence; and the reports when the monitor dies.

use crate::support::*;
use podwright::cri::proto as pb;
use std::time::Duration;

/// A number a line, fast enough that a gap would show.
const COUNT: &str = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done";

/// The numbers in a container's log, which must rise by one from 0.
fn counted(node: &Node, pod: &str) -> usize {
    let log = node.log(pod, "main");
    for (expected, record) in log.iter().enumerate() {
        let said = record.rsplit(' ').next().unwrap();
        assert_eq!(said, expected.to_string(), "a gap in the log");
    }
    log.len()
}

fn wait_for_more_than(node: &Node, pod: &str, count: usize) {
    podwright_testkit::wait_for("the log grows", Duration::from_secs(20), || {
        (counted(node, pod) > count).then_some(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outlives_a_killed_daemon() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("outlive", &["sh", "-c", COUNT]).await;
    let ends_later = node.pod("ends");
    let ending_pod = node.run(&ends_later).await.unwrap();
    let gate = node.scratch.root().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let mut spec =
        container("main", &["sh", "-c", "while [ ! -e /gate/go ]; do sleep 0.05; done; echo last; exit 42"]);
    let host_path = gate.to_string_lossy().into_owned();
    spec.mounts = vec![pb::Mount { container_path: "/gate".into(), host_path, ..Default::default() }];
    let ending = node.create(&ending_pod, &ends_later, spec).await.unwrap();
    node.start(&ending).await.unwrap();
    let before = node.status(&id).await.unwrap();
    let ip = node.pod_status(&pod).await.unwrap().network;

    node.daemon.kill().unwrap();
    let count = counted(&node, "outlive");
    std::fs::write(gate.join("go"), "").unwrap();
    wait_for_more_than(&node, "outlive", count + 20);
    podwright_testkit::wait_for("the other container's last word", Duration::from_secs(20), || {
        node.log("ends", "main").iter().any(|l| l.ends_with(" last")).then_some(())
    })
    .unwrap();
    node.daemon.launch().unwrap();

    let after = node.status(&id).await.unwrap();
    assert_eq!(after.state(), pb::ContainerState::ContainerRunning);
    assert_eq!((after.started_at, after.created_at), (before.started_at, before.created_at));
    assert_eq!(node.pod_status(&pod).await.unwrap().network, ip);
    let ended = node.exited(&ending).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (42, "Error"));
    assert!(ended.started_at > 0 && ended.finished_at > ended.started_at);
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    wait_for_more_than(&node, "outlive", counted(&node, "outlive"));
    node.stop(&id, 0).await.unwrap();
    assert_eq!(node.status(&id).await.unwrap().exit_code, 137);
    counted(&node, "outlive");
    node.finish().await;
}

/// The commands of the processes in a PID namespace besides its first.
fn others(init: u64) -> Vec<String> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let (init, mut found) = (init.to_string(), Vec::new());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == init || namespace(&pid).is_none() || namespace(&pid) != namespace(&init) {
            continue;
        }
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if !command.is_empty() {
            found.push(command.trim_end().to_owned());
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_at_its_limit_though_the_daemon_died() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("limit", &["sleep", "1000"]).await;
    let init = node.pid(&id).await;
    // A probe has a limit; a hook has none, and is not cut short by the daemon's end.
    let probe = ["sh", "-c", "setsid sleep 1001 & exec sleep 1002"];
    for (command, timeout) in [(probe.as_slice(), 4), (&["sleep", "1003"], 0)] {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = pb::ExecSyncRequest { container_id: id.clone(), cmd, timeout };
        let mut runtime = node.runtime.clone();
        tokio::spawn(async move { runtime.exec_sync(request).await });
    }
    let until_only = |what: &str, expected: &[&str]| {
        podwright_testkit::wait_for(what, Duration::from_secs(30), || {
            (others(init) == expected).then_some(())
        })
        .unwrap();
    };
    until_only("both run", &["sleep 1001", "sleep 1002", "sleep 1003"]);
    node.daemon.kill().unwrap();
    until_only("the one with a limit is gone", &["sleep 1003"]);
    node.daemon.launch().unwrap();
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_can_be_added_to_an_older_daemons_pod() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("older");
    let pod = node.run(&config).await.unwrap();
    let waiting = node.create(&pod, &config, container("waiting", &[])).await.unwrap();
    node.daemon.crash().unwrap();
    let id = node.create(&pod, &config, container("new", &[])).await.unwrap();
    node.start(&id).await.unwrap();
    node.start(&waiting).await.unwrap();
    assert_eq!(node.output(&id, &["echo", "yes"]).await, "yes");
    assert_eq!(node.list_containers().await.len(), 2);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_moment_leaves_nothing_that_cannot_be_removed() {
    let mut node = Node::with_busybox().await;
    for round in 0..12u64 {
        let name = format!("crash{round}");
        let config = node.pod(&name);
        let mut client = node.runtime.clone();
        let sandbox_config = config.clone();
        let work = tokio::spawn(async move {
            let request =
                pb::RunPodSandboxRequest { config: Some(sandbox_config.clone()), ..Default::default() };
            let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = pb::CreateContainerRequest {
                pod_sandbox_id: pod,
                config: Some(container("main", &[])),
                sandbox_config: Some(sandbox_config),
            };
            let id = client.create_container(request).await?.into_inner().container_id;
            client.start_container(pb::StartContainerRequest { container_id: id }).await?;
            Ok::<_, tonic::Status>(())
        });
        // Not a wait for something: the moment of the kill, spread over the whole way up.
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        node.daemon.crash().unwrap();
        let _ = work.await.unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_monitor_is_told_and_can_be_cleaned_up() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("lost", &[]).await;
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let info = node.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let pid = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let ended = node.exited(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"));
    assert_eq!(node.pod_status(&pod).await.unwrap().state(), pb::PodSandboxState::SandboxNotready);
    node.finish().await;
}
