//! An error of looking is not an end: what is not proved dead is left alone, and what could not be done is done later.

use crate::faults::{lives, signal, wait};
use crate::support::*;
use podwright::cri::proto as pb;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use tonic::Code;

fn is_ready(status: &pb::PodSandboxStatus) -> bool {
    status.state() == pb::PodSandboxState::SandboxReady
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_cannot_be_looked_at_is_not_a_dead_one() {
    let mut node = Node::with_busybox().await;
    let mut all = Vec::new();
    for name in ["no-record", "torn-record", "odd-record", "no-socket", "nothing-left"] {
        let (pod, id) = node.running(name, &[]).await;
        let init = node.init_pid(&id).await;
        all.push((pod, id, init));
    }
    node.daemon.kill().unwrap();
    let dir = |at: usize| node.scratch.root().join("state/pods").join(&all[at].0);
    let (record, socket, aside) = ("monitor.json", "monitor.sock", "aside");
    std::fs::remove_file(dir(0).join(record)).unwrap();
    std::fs::write(dir(1).join(record), "{").unwrap();
    std::fs::rename(dir(2).join(record), dir(2).join(aside)).unwrap();
    std::fs::create_dir(dir(2).join(record)).unwrap();
    std::fs::rename(dir(3).join(socket), dir(3).join(aside)).unwrap();
    let (socket, aside) = (dir(3).join(socket), dir(3).join(aside));
    std::fs::remove_file(dir(4).join(record)).unwrap();
    std::fs::remove_file(dir(4).join("monitor.sock")).unwrap();
    node.daemon.launch().unwrap();
    for (pod, id, init) in &all {
        assert!(is_ready(&node.pod_status(pod).await.unwrap()), "{}", node.daemon.log());
        assert_eq!(node.status(id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
        assert!(lives(*init));
    }
    for (_, id, _) in &all[..3] {
        assert_eq!(node.output(id, &["echo", "alive"]).await, "alive");
    }
    for (_, id, _) in &all[3..] {
        refused(node.exec_within(id, &["true"], 5).await, Code::Unavailable, &["cannot be reached"]);
    }
    // It can be looked at again: all is as it was.
    std::fs::rename(&aside, &socket).unwrap();
    let reached = async {
        while node.exec_within(&all[3].1, &["true"], 5).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), reached).await.unwrap();
    assert_eq!(node.init_pid(&all[3].1).await, all[3].2);
    // What can never be reached again can be taken down all the same, and nothing of it runs on.
    let (pod, _, init) = &all[4];
    for _ in 0..2 {
        if node.stop_pod(pod).await.is_ok() {
            break;
        }
    }
    node.remove_pod(pod).await.unwrap();
    assert!(!lives(*init));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_read_are_left_alone_and_what_they_stand_for_runs_on() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("torn-container", &[]).await;
    let (torn_pod, torn_in_it) = node.running("torn-pod", &[]).await;
    let (newer_pod, newer_in_it) = node.running("newer-pod", &[]).await;
    let mut pids = Vec::new();
    for container in [&id, &torn_in_it, &newer_in_it] {
        pids.push(node.init_pid(container).await);
    }
    node.daemon.kill().unwrap();
    let specs = [
        node.record(&pod).join("containers").join(&id).join("spec.json"),
        node.record(&torn_pod).join("spec.json"),
        node.record(&newer_pod).join("spec.json"),
    ];
    let whole: Vec<String> = specs.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    std::fs::write(&specs[0], "{").unwrap();
    std::fs::write(&specs[1], "").unwrap();
    std::fs::write(&specs[2], whole[2].replacen("\"version\":1", "\"version\":9", 1)).unwrap();
    // Half of a pod that was never made is no pod.
    let half = node.record(&"a".repeat(64));
    std::fs::create_dir_all(half.join("containers")).unwrap();
    std::fs::write(half.join("spec.tmp"), "{").unwrap();
    node.daemon.launch().unwrap();
    assert!(is_ready(&node.pod_status(&pod).await.unwrap()));
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerUnknown);
    for pod in [&torn_pod, &newer_pod] {
        refused(node.pod_status(pod).await, Code::NotFound, &[]);
    }
    assert!(pids.iter().all(|pid| lives(*pid)), "{}", node.daemon.log());
    assert!(!half.exists() && !node.scratch.root().join("root/pods.quarantine").exists());
    // Somebody repairs them, or the newer daemon comes back.
    node.daemon.kill().unwrap();
    for (path, text) in specs.iter().zip(&whole) {
        std::fs::write(path, text).unwrap();
    }
    node.daemon.launch().unwrap();
    for (container, pid) in [&id, &torn_in_it, &newer_in_it].into_iter().zip(&pids) {
        assert_eq!(node.status(container).await.unwrap().state(), pb::ContainerState::ContainerRunning);
        assert_eq!(node.init_pid(container).await, *pid);
        assert_eq!(node.output(container, &["echo", "alive"]).await, "alive");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_record_cannot_be_read_is_unknown_and_can_be_stopped_and_removed() {
    let mut node = Node::with_busybox().await;
    let (ago_pod, ago) = node.running("ago", &[]).await;
    let (pod, id) = node.running("torn", &[]).await;
    let (newer_pod, newer) = node.running("newer", &[]).await;
    let pids = [node.init_pid(&ago).await, node.init_pid(&id).await, node.init_pid(&newer).await];
    node.daemon.kill().unwrap();
    let file = |pod: &str, id: &str, name: &str| node.record(pod).join("containers").join(id).join(name);
    // As a version wrote it that had not all fields yet.
    let spec = file(&ago_pod, &ago, "spec.json");
    let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&spec).unwrap()).unwrap();
    old["security"].as_object_mut().unwrap().remove("readonly_paths").unwrap();
    old.as_object_mut().unwrap().remove("cdi_devices").unwrap();
    std::fs::write(&spec, old.to_string()).unwrap();
    let spec = file(&pod, &id, "spec.json");
    let mut torn: serde_json::Value = serde_json::from_slice(&std::fs::read(&spec).unwrap()).unwrap();
    torn["mounts"] = serde_json::json!(7);
    std::fs::write(&spec, torn.to_string()).unwrap();
    let state = file(&newer_pod, &newer, "state.json");
    let text = std::fs::read_to_string(&state).unwrap().replacen("\"version\":1", "\"version\":9", 1);
    std::fs::write(&state, &text).unwrap();
    node.daemon.launch().unwrap();
    assert!(pids.iter().all(|pid| lives(*pid)), "{}", node.daemon.log());
    assert_eq!(node.status(&ago).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    for unknown in [&id, &newer] {
        let status = node.status(unknown).await.unwrap();
        assert_eq!(status.state(), pb::ContainerState::ContainerUnknown);
        assert_eq!(status.metadata.unwrap().name, "main");
        assert!(status.message.contains("cannot be read"), "{}", status.message);
        assert!(node.list_containers().await.iter().any(|listed| listed.id == **unknown));
        refused(node.start(unknown).await, Code::FailedPrecondition, &["unknown"]);
    }
    // What the newer one wrote is for it to read.
    assert_eq!(std::fs::read_to_string(&state).unwrap(), text);
    for (unknown, pid) in [(&id, pids[1]), (&newer, pids[2])] {
        node.stop(unknown, 0).await.unwrap();
        assert!(!lives(pid));
        assert_eq!(node.status(unknown).await.unwrap().state(), pb::ContainerState::ContainerExited);
        node.remove(unknown).await.unwrap();
        refused(node.status(unknown).await, Code::NotFound, &[]);
    }
    assert!(!spec.exists() && !state.exists());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_refused_or_recorded_later() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("no-room");
    let pod = node.run(&config).await.unwrap();
    let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
    let record = node.record(&pod).join("containers").join(&id);
    // The next state cannot be written.
    let obstacle = record.join("state.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    let error = node.start(&id).await.unwrap_err();
    assert!(error.message().contains("write record"), "{error}");
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerCreated);
    std::fs::remove_dir(&obstacle).unwrap();
    node.start(&id).await.unwrap();
    // An end cannot be refused.
    std::fs::create_dir(&obstacle).unwrap();
    let init = node.init_pid(&id).await;
    signal(init, Signal::KILL);
    assert_eq!(node.exited(&id).await.exit_code, 137);
    std::fs::remove_dir(&obstacle).unwrap();
    let state = record.join("state.json");
    wait("the end is recorded", || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains("exited")).then_some(())
    });
    node.finish().await;
}

/// A node whose OCI runtime fails to delete while the file is there. The directory keeps it.
async fn stubborn_node() -> (Node, PathBuf, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (script, obstacle) = (dir.path().join("runtime"), dir.path().join("obstacle"));
    let fails =
        format!("if [ $word = delete ] && [ -e {} ]; then echo obstacle >&2; exit 1; fi", obstacle.display());
    std::fs::write(&script, format!("#!/bin/sh\nfor word; do {fails}; done\nexec runc \"$@\"\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let extra_config = format!("[runtime.handlers.stubborn]\npath = \"{}\"\n", script.display());
    let options =
        podwright_testkit::Options { runtime: "stubborn".to_owned(), extra_config, ..Default::default() };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    (node, obstacle, dir)
}

fn runtime_state(node: &Node, id: &str) -> bool {
    fn finds(dir: &Path, id: &str) -> bool {
        std::fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
            entry.file_name() == id && entry.path().join("state.json").exists()
                || entry.file_type().is_ok_and(|kind| kind.is_dir()) && finds(&entry.path(), id)
        })
    }
    finds(&node.scratch.root().join("state/runtime"), id) || finds(&node.scratch.root().join("state/oci"), id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_that_fails_is_repeated_until_nothing_is_left() {
    let (mut node, obstacle, _dir) = stubborn_node().await;
    let (_, ended) = node.running("ends", &[]).await;
    let (lost_pod, lost) = node.running("monitor-dies", &[]).await;
    let (monitor, init) = (node.monitor_pid(&lost_pod).await, node.init_pid(&lost).await);
    let first = node.init_pid(&ended).await;
    std::fs::write(&obstacle, "").unwrap();
    signal(first, Signal::KILL);
    signal(monitor, Signal::KILL);
    assert_eq!(node.exited(&ended).await.exit_code, 137);
    assert_eq!(node.exited(&lost).await.reason, "Unknown");
    // Although the runtime does not help.
    wait("the process of a lost monitor is gone", || (!lives(init)).then_some(()));
    let metrics = node.scratch.metrics().unwrap();
    let unclean = || {
        let text = podwright_testkit::http::get(metrics, "/metrics").unwrap();
        String::from_utf8(text).unwrap().contains("podwright_unclean_containers 2")
    };
    wait("both are counted", || unclean().then_some(()));
    std::fs::remove_file(&obstacle).unwrap();
    node.remove(&ended).await.unwrap();
    node.remove(&lost).await.unwrap();
    assert!(!runtime_state(&node, &ended) && !runtime_state(&node, &lost));
    node.finish().await;
}

/// A freezer cgroup outside of every pod's, with one process; thawed and removed at the end.
struct Frozen(PathBuf);

impl Frozen {
    /// None without the freezer of cgroup v1.
    fn take(name: &str, pid: u32) -> Option<Self> {
        let dir = PathBuf::from("/sys/fs/cgroup/freezer").join(name);
        std::fs::create_dir(&dir).ok().filter(|()| dir.join("freezer.state").exists())?;
        std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(dir.join("freezer.state"), "FROZEN").unwrap();
        wait("the process is frozen", || {
            std::fs::read_to_string(dir.join("freezer.state")).unwrap().starts_with("FROZEN").then_some(())
        });
        Some(Self(dir))
    }

    fn thaw(&self) {
        std::fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        wait("the freezer cgroup is removed", || std::fs::remove_dir(&self.0).ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_which_a_process_lives_on_is_neither_stopped_nor_removed() {
    let (mut node, obstacle, _dir) = stubborn_node().await;
    let config = node.pod("lives-on");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("c", &["sh", "-c", "sleep 4001 & exec sleep 4002"]);
    // So that the end of the container's first process does not end the other.
    security(&mut spec).namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let first = node.init_pid(&id).await;
    let child = wait("its child", || {
        let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
        children.split_whitespace().next().map(|pid| pid.parse::<u32>().unwrap())
    });
    let Some(frozen) = Frozen::take(&format!("podwright-test-{child}"), child) else {
        return node.finish().await;
    };
    // The runtime's own complaint must not hide the process.
    std::fs::write(&obstacle, "").unwrap();
    node.stop(&id, 0).await.unwrap();
    refused(node.stop_pod(&pod).await, Code::DeadlineExceeded, &[&id]);
    assert!(lives(child));
    frozen.thaw();
    std::fs::remove_file(&obstacle).unwrap();
    node.stop_pod(&pod).await.unwrap();
    assert!(!lives(child));
    node.remove_pod(&pod).await.unwrap();
    drop(frozen);
    node.finish().await;
}
