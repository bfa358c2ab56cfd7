//! A root on a disk that is frozen, as backup agents do for a snapshot: what needs the disk waits, and nothing else.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Far more than anything takes that does not wait for the disk.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(program: &str, args: &[&str], path: &Path) -> bool {
    Command::new(program).args(args).arg(path).status().is_ok_and(|status| status.success())
}

/// A file system on a loop device; thawed and unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        let (image, at) = (disk.0.path().join("image"), disk.at());
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        assert!(run("mkfs.ext4", &["-q", "-F"], &image));
        let image = image.to_string_lossy().into_owned();
        assert!(run("mount", &["-o", "loop", &image], &at));
        disk
    }

    fn at(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn freeze(&self) {
        assert!(run("fsfreeze", &["-f"], &self.at()));
    }

    fn thaw(&self) {
        assert!(run("fsfreeze", &["-u"], &self.at()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Frozen where the test failed; lazily, so that open files do not keep it.
        let _ = Command::new("fsfreeze").arg("-u").arg(self.at()).output();
        run("umount", &["-l"], &self.at());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_disk_holds_up_what_writes_to_it_and_nothing_else() {
    let disk = Disk::new();
    let extra_config = format!("root = \"{}\"\n", disk.at().join("root").display());
    let mut node = Node::new(Options { extra_config, ..Options::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let (pod, id) = node.running("stopped", &[]).await;
    let (healthy_pod, healthy) = node.running("healthy", &[]).await;
    disk.freeze();
    let mut client = node.runtime.clone();
    let (stopped, of) = (id.clone(), pod.clone());
    let stop = tokio::spawn(async move {
        client.stop_container(pb::StopContainerRequest { container_id: stopped, timeout: 0 }).await.unwrap();
        client.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: of }).await
    });
    let served = async |node: &mut Node| {
        // In its state already, whose record waits.
        node.exited(&id).await;
        for _ in 0..20 {
            node.runtime.version(pb::VersionRequest::default()).await.unwrap();
            node.runtime.status(pb::StatusRequest { verbose: true }).await.unwrap();
            assert_eq!((node.list_pods().await.len(), node.list_containers().await.len()), (2, 2));
            let state = node.status(&healthy).await.unwrap().state();
            assert_eq!(state, pb::ContainerState::ContainerRunning);
            assert!(node.pod_status(&healthy_pod).await.is_ok());
        }
        assert_eq!(node.output(&healthy, &["echo", "alive"]).await, "alive");
        let metrics = node.scratch.metrics().unwrap();
        assert_eq!(podwright_testkit::http::get(metrics, "/healthz").unwrap(), b"ok\n");
    };
    let served = tokio::time::timeout(PATIENCE, served(&mut node)).await;
    let waits = !stop.is_finished();
    disk.thaw();
    served.expect("somebody waits for the disk of another");
    assert!(waits, "a sandbox was answered as stopped, of which no record says so");
    stop.await.unwrap().unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.finish().await;
}

/// Moves a process of the host into the cgroups of a container's init.
fn intrude(init: u32) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let cgroups = std::fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        let hierarchy = if controllers.is_empty() { "" } else { controllers };
        if hierarchy == "pids" || hierarchy.is_empty() && Path::new("/sys/fs/cgroup/cgroup.procs").exists() {
            let procs = format!("/sys/fs/cgroup/{hierarchy}{path}/cgroup.procs");
            std::fs::write(procs, child.id().to_string()).unwrap();
        }
    }
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_processes_in_cgroups_of_containers_hold_up_nobody() {
    let mut node = Node::with_busybox().await;
    let mut held = Vec::new();
    for number in 0..6 {
        let (pod, id) = node.running(&format!("held-{number}"), &[]).await;
        let foreign = intrude(node.init_pid(&id).await);
        held.push((pod, id, foreign));
    }
    let (_, healthy) = node.running("healthy", &[]).await;
    let mut stops = Vec::new();
    for (_, id, _) in &held {
        let (mut client, id) = (node.runtime.clone(), id.clone());
        let request = pb::StopContainerRequest { container_id: id, timeout: 0 };
        stops.push(tokio::spawn(async move { client.stop_container(request).await }));
    }
    let served = async |node: &mut Node| {
        for _ in 0..20 {
            node.runtime.version(pb::VersionRequest::default()).await.unwrap();
            assert_eq!(node.list_containers().await.len(), 7);
        }
        assert_eq!(node.output(&healthy, &["echo", "alive"]).await, "alive");
        for stop in stops {
            stop.await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, served(&mut node)).await.expect("somebody waits for a cgroup");
    for (pod, id, mut foreign) in held {
        foreign.kill().unwrap();
        foreign.wait().unwrap();
        node.remove(&id).await.unwrap();
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}
