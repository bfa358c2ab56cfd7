//! A disk that is full: every call says so by its code and its message, leaves nothing, and works again once there is
//! room, without a restart.

use crate::faults::wait;
use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tonic::Code;

/// A small file system of its own for the daemon's root, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self::of("size=24m")
    }

    fn of(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// Leaves room for so many pages.
    fn fill_but(&self, pages: u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        let file = std::fs::File::create(self.0.path().join("ballast")).unwrap();
        let take = (stat.f_bavail - pages) * stat.f_frsize;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }

    /// Names of what is in a directory of the root, but for the trash, which stays.
    fn names(&self, dir: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root().join(dir)).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|path| !path.ends_with(".trash")).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that a failed test's open files do not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_leaves_nothing_and_is_got_over() {
    let disk = Disk::new();
    let extra_config = format!("root = \"{}\"\n", disk.root().display());
    let mut node = Node::new(Options { extra_config, ..Options::default() }).await;

    disk.fill_but(0);
    refused(node.pull(BUSYBOX).await, Code::ResourceExhausted, &["no space left", "images"]);
    disk.make_room();
    node.pull(BUSYBOX).await.unwrap();

    let config = node.pod("full");
    disk.fill_but(0);
    refused(node.run(&config).await, Code::ResourceExhausted, &["No space left", "pods"]);
    assert!(node.list_pods().await.is_empty());
    assert_eq!(disk.names("pods"), Vec::<PathBuf>::new());
    disk.make_room();
    let pod = node.run(&config).await.unwrap();

    // With ever more room: the record, then the state, then the layer.
    for pages in 0.. {
        disk.fill_but(pages);
        let created = node.create(&pod, &config, container("main", &[])).await;
        if let Ok(id) = created {
            // What it writes has no room, and that is its own matter.
            node.start(&id).await.unwrap();
            let answer =
                node.exec(&id, &["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=30"]).await.unwrap();
            assert_ne!(answer.exit_code, 0);
            assert!(String::from_utf8_lossy(&answer.stderr).contains("o space left"));
            disk.make_room();
            node.remove(&id).await.unwrap();
            assert!(pages > 0);
            break;
        }
        refused(created, Code::ResourceExhausted, &["No space left"]);
        assert!(node.list_containers().await.is_empty());
        assert_eq!(disk.names("containers"), Vec::<PathBuf>::new());
        let records = disk.names(&format!("pods/{pod}/containers"));
        assert_eq!(records, Vec::<PathBuf>::new(), "with {pages} pages");
        disk.make_room();
        let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
        node.remove(&id).await.unwrap();
    }

    // A full disk prevents neither stopping nor removing.
    let id = node.create(&pod, &config, container("last", &[])).await.unwrap();
    node.start(&id).await.unwrap();
    disk.fill_but(0);
    node.stop(&id, 0).await.unwrap();
    node.remove(&id).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    assert_eq!(disk.names("pods"), Vec::<PathBuf>::new());
    disk.make_room();
    node.finish().await;
}

/// Variables of so many bytes together.
fn environment(bytes: usize) -> Vec<pb::KeyValue> {
    let variable = |n| pb::KeyValue { key: format!("K{n:06}"), value: vec![b'v'; 1024 - 8] };
    (0..bytes / 1024).map(variable).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_fill_no_state_that_probes_stops_and_removals_need() {
    let disk = Disk::of("size=32m");
    let state = disk.0.path().join("state");
    let extra_config = format!("state = \"{}\"\n", state.display());
    let mut node = Node::new(Options { extra_config, ..Options::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let (victim_pod, victim) = node.running("victim", &[]).await;
    let config = |bytes: usize, name: &str| pb::ContainerConfig {
        envs: environment(bytes),
        ..container(name, &["sleep", "1000000"])
    };

    // What no program could be executed with, from the request or from the image.
    let loud = node.pod("loud");
    let pod = node.run(&loud).await.unwrap();
    let created = node.create(&pod, &loud, config(3 << 20, "too-much")).await;
    refused(created, Code::InvalidArgument, &["config.envs", "2097152"]);
    let variables: Vec<String> = (0..4_000).map(|n| format!("I{n:06}={}", "v".repeat(200))).collect();
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    push(&node.registry, "atk/environment", "1", busybox().env(&variables).build());
    let image = "docker.io/atk/environment:1";
    node.pull(image).await.unwrap();
    let of_both = pb::ContainerConfig { image: Some(image_spec(image)), ..config(3 << 19, "of-both") };
    refused(node.create(&pod, &loud, of_both).await, Code::InvalidArgument, &["2097152"]);

    // One pod has its part.
    let large = 3 << 19;
    let mut last = None;
    for n in 0.. {
        match node.create(&pod, &loud, config(large, &format!("c{n}"))).await {
            Ok(id) => last = Some(id),
            denied => {
                assert!((3..8).contains(&n), "{n}");
                refused(denied, Code::ResourceExhausted, &["this pod's containers"]);
                break;
            }
        }
    }
    // What it has runs, and a large configuration is gone with its container's end.
    let id = last.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["sh", "-c", "echo ${#K000000}"]).await, "1016");
    let bundle = state.join("containers").join(&id);
    assert!(std::fs::metadata(bundle.join("config.json")).unwrap().len() > 1 << 20);
    let of_commands = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("exec-");
    let names = || std::fs::read_dir(&bundle).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names().any(|name| of_commands(&name)));
    node.stop(&id, 0).await.unwrap();
    let gone = || (!bundle.join("config.json").exists()).then_some(());
    podwright_testkit::wait_for("the large configuration goes", Duration::from_secs(30), gone).unwrap();

    // All pods together leave the reserve.
    'full: for n in 0.. {
        let more = node.pod(&format!("more{n}"));
        let pod = node.run(&more).await.unwrap();
        for c in 0..4 {
            let created = node.create(&pod, &more, config(large, &format!("c{c}"))).await;
            if created.is_err() {
                assert!((2..8).contains(&n), "{n}");
                refused(created, Code::ResourceExhausted, &["no room in", "state"]);
                break 'full;
            }
        }
    }
    assert_eq!(node.output(&victim, &["echo", "alive"]).await, "alive");
    node.stop(&victim, 0).await.unwrap();
    node.remove(&victim).await.unwrap();
    node.stop_pod(&victim_pod).await.unwrap();
    node.remove_pod(&victim_pod).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    let (_, again) = node.running("again", &[]).await;
    assert_eq!(node.output(&again, &["echo", "alive"]).await, "alive");
    node.finish().await;
    assert_eq!(std::fs::read_dir(state.join("containers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_a_full_disk_took_is_told_and_no_record_is_torn() {
    let disk = Disk::of("size=1m");
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("logs");
    config.log_directory = disk.0.path().join("logs").to_string_lossy().into_owned();
    let pod = node.run(&config).await.unwrap();
    let count = "i=0; while true; do echo line-$i; i=$((i+1)); sleep 0.005; done";
    let spec = container("main", &["sh", "-c", count]);
    let path = disk.0.path().join("logs").join(&spec.log_path);
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let log = || std::fs::read_to_string(&path).unwrap_or_default();
    wait("there is output", || log().contains("line-10").then_some(()));
    disk.fill_but(0);
    let metrics = node.scratch.metrics().unwrap();
    wait("the loss is counted", || {
        let text = String::from_utf8(podwright_testkit::http::get(metrics, "/metrics").unwrap()).unwrap();
        let lost =
            text.lines().find_map(|line| line.strip_prefix("podwright_log_lost_bytes_total "))?.to_owned();
        (lost != "0").then_some(())
    });
    disk.make_room();
    let marked = wait("the log tells it", || {
        let text = log();
        let (_, after) = text.split_once("bytes of output are missing here: No space left")?;
        after.contains("line-").then_some(text)
    });
    let mut last = None;
    for record in marked.lines().take(marked.matches('\n').count()) {
        let words: Vec<&str> = record.splitn(4, ' ').collect();
        let [_, stream, "F", said] = words[..] else { panic!("{record:?}") };
        match said.strip_prefix("line-") {
            Some(number) => {
                let number = number.parse::<u64>().unwrap();
                assert!(stream == "stdout" && last < Some(number), "{record:?} after {last:?}");
                last = Some(number);
            }
            None => assert!(stream == "stderr" && said.starts_with("podwright: "), "{record:?}"),
        }
    }
    node.finish().await;
}
