//! Checkpoints: with CRIU where it works, and with a stand-in for it everywhere, so that the code around it (which
//! containers are frozen and resumed when) is tested on every kernel.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{Daemon, Options, wait_for};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::{Code, Request};

/// A number a line, fast enough that a pause would show.
pub(crate) const COUNT: &str = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done";
/// What the stand-in does for `checkpoint` before it goes on.
pub(crate) const QUICK: &str = "";
const FAILS: &str = "echo 'Error (stand-in): cannot dump' >&2; exit 1";
/// The gate is a file beside the script.
const HANGS: &str = ": > \"$0.begun\"; while [ ! -e \"$0.go\" ]; do sleep 0.05; done";

/// Whether real CRIU works here; says so once where not.
#[allow(clippy::print_stdout)]
fn criu_is_there() -> bool {
    let works = Command::new("criu").arg("check").output().is_ok_and(|o| o.status.success());
    if !works {
        println!("criu does not work here: what needs it is not tested");
    }
    works
}

/// Whether the runtime can make use of it, too.
pub(crate) fn criu_works() -> bool {
    criu_is_there() && runtime_can(Ability::Checkpoints)
}

pub(crate) fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A node whose CRIU always works, and whose OCI runtime fabricates its output. A restore runs the container from its
/// start.
pub(crate) async fn stand_in(before: &str) -> (Node, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    let text = format!(
        r#"for word; do [ "$word" = checkpoint ] && found=1; [ "$word" = restore ] && restored=1; [ "$last" = --image-path ] && images=$word
[ "$last" = --work-path ] && work=$word; last=$word; done
if [ -n "$restored" ]; then
  n=$#
  while [ $n -gt 0 ]; do
    word=$1; shift; n=$((n-1))
    case $word in
      restore) word=run;;
      --file-locks) continue;;
      --image-path|--work-path) shift; n=$((n-1)); continue;;
    esac
    set -- "$@" "$word"
  done
  ls "$images" > "$0.new" && mv "$0.new" "$0.restored"
  while [ -e "$0.hold" ]; do sleep 0.05; done
fi
[ -z "$found" ] && exec runc "$@"
{before}
mkdir -p "$images" "$work" && echo pages > "$images/pages-1.img" && echo said > "$work/dump.log" && : > "$work/stats-dump""#
    );
    script(&runtime, &text);
    script(&dir.path().join("criu"), "[ \"$1\" = check ]");
    let daemon = dir.path().join("podwright");
    let binary = podwright_testkit::daemon::default_binary();
    let monitor = binary.with_file_name("podwright-monitor");
    script(&daemon, &format!("PATH={}:$PATH exec {} \"$@\"", dir.path().display(), binary.display()));
    let handler = format!(
        "[runtime]\nrestore_images = true\n[runtime.handlers.fake]\npath = \"{}\"\n[monitor]\nbinary = \"{}\"\n",
        runtime.display(),
        monitor.display()
    );
    let options = Options { runtime: "fake".to_owned(), extra_config: handler, ..Default::default() };
    let mut node = Node::new(options).await;
    node.daemon.stop().unwrap();
    node.daemon = Daemon::start_binary(&node.scratch, &daemon).unwrap();
    node.pull(BUSYBOX).await.unwrap();
    (node, dir)
}

pub(crate) async fn checkpoint(
    node: &mut Node,
    id: &str,
    location: &Path,
    timeout: i64,
) -> Result<(), tonic::Status> {
    let location = location.to_string_lossy().into_owned();
    let request = pb::CheckpointContainerRequest { container_id: id.to_owned(), location, timeout };
    node.runtime.checkpoint_container(request).await.map(|_| ())
}

pub(crate) fn pod_request(pod: &str, ids: &[&str], output: &Path) -> Request<pb::CheckpointPodRequest> {
    let mut request = Request::new(pb::CheckpointPodRequest {
        pod_sandbox_id: pod.to_owned(),
        output_path: output.to_string_lossy().into_owned(),
        container_ids: words(ids),
        options: Default::default(),
    });
    request.set_timeout(Duration::from_secs(60));
    request
}

/// The files of an archive with their contents.
fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.header().entry_type().is_file(), name, content)
    });
    entries.filter(|(is_file, ..)| *is_file).map(|(_, name, content)| (name, content)).collect()
}

/// Waits until a container says more, which one that is frozen does not.
pub(crate) fn goes_on(node: &Node, pod: &str, container: &str) {
    let before = node.log(pod, container).len();
    let more = || (node.log(pod, container).len() > before + 3).then_some(());
    wait_for("the container goes on", Duration::from_secs(20), more).unwrap();
}

fn staged(node: &Node) -> usize {
    std::fs::read_dir(node.scratch.root().join("root/checkpoints")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_can_be_switched_off() {
    let options = Options { extra_config: "[runtime]\ncriu = false\n".to_owned(), ..Default::default() };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let (pod, id) = node.running("off", &[]).await;
    let place = node.scratch.root().join("c.tar");
    refused(checkpoint(&mut node, &id, &place, 0).await, Code::Unimplemented, &["runtime.criu"]);
    let dir = tempfile::tempdir().unwrap();
    let answer = node.runtime.checkpoint_pod(pod_request(&pod, &[&id], dir.path())).await;
    refused(answer, Code::Unimplemented, &["runtime.criu"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_criu_does_not_work_its_reason_is_told() {
    if criu_is_there() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("reason", &[]).await;
    let place = node.scratch.root().join("c.tar");
    refused(checkpoint(&mut node, &id, &place, 0).await, Code::FailedPrecondition, &["criu"]);
    assert!(!place.exists());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_has_the_peers_layout_and_the_container_goes_on() {
    let (mut node, _dir) = stand_in(QUICK).await;
    let change = format!("echo new > /made; rm /etc/group; {COUNT}");
    let (_, id) = node.running("layout", &["sh", "-c", &change]).await;
    goes_on(&node, "layout", "main");
    let place = node.scratch.root().join("c.tar");
    checkpoint(&mut node, &id, &place, 0).await.unwrap();
    goes_on(&node, "layout", "main");
    let files = files(&place);
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    let expected = [
        "checkpoint/pages-1.img",
        "config.dump",
        "container.log",
        "deleted.files",
        "dump.log",
        "rootfs-diff.tar",
        "spec.dump",
        "stats-dump",
        "status.dump",
    ];
    assert_eq!(names, expected);
    let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&files[name]).unwrap();
    assert_eq!(json("deleted.files"), serde_json::json!(["/etc/group"]));
    assert_eq!(
        (&json("config.dump")["id"], &json("config.dump")["name"]),
        (&id.clone().into(), &"main".into())
    );
    assert_eq!(json("spec.dump")["annotations"]["io.kubernetes.cri.container-name"], "main");
    let mut changes = tar::Archive::new(files["rootfs-diff.tar"].as_slice());
    let made = |e: &tar::Entry<'_, &[u8]>| e.path().is_ok_and(|p| p == Path::new("made"));
    assert!(changes.entries().unwrap().any(|e| made(&e.unwrap())));
    assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(staged(&node), 0);
    // Impossible requests fail before anything is frozen.
    for (place, word) in
        [("relative.tar", "location"), ("/no/such/dir/c.tar", "location"), ("/tmp", "location")]
    {
        refused(checkpoint(&mut node, &id, Path::new(place), 0).await, Code::InvalidArgument, &[word]);
    }
    refused(checkpoint(&mut node, &id, &place, -1).await, Code::InvalidArgument, &["timeout"]);
    node.stop(&id, 0).await.unwrap();
    refused(checkpoint(&mut node, &id, &place, 0).await, Code::FailedPrecondition, &["exited"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_leaves_the_container_running_and_no_file() {
    let (mut node, _dir) = stand_in(FAILS).await;
    let (_, id) = node.running("fails", &["sh", "-c", COUNT]).await;
    goes_on(&node, "fails", "main");
    let place = node.scratch.root().join("c.tar");
    refused(checkpoint(&mut node, &id, &place, 0).await, Code::Unknown, &["checkpoint", "cannot dump"]);
    goes_on(&node, "fails", "main");
    assert!(!place.exists());
    assert_eq!(staged(&node), 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_takes_too_long_is_ended_and_one_at_a_time_is_made() {
    let (mut node, dir) = stand_in(HANGS).await;
    let (_, id) = node.running("slow", &["sh", "-c", COUNT]).await;
    goes_on(&node, "slow", "main");
    let place = node.scratch.root().join("c.tar");
    let (mut client, other) = (node.runtime.clone(), place.clone());
    let request = pb::CheckpointContainerRequest {
        container_id: id.clone(),
        location: other.to_string_lossy().into_owned(),
        timeout: 4,
    };
    let slow = tokio::spawn(async move { client.checkpoint_container(request).await });
    let begun = dir.path().join("runtime.begun");
    wait_for("the checkpoint begins", Duration::from_secs(20), || begun.exists().then_some(())).unwrap();
    refused(checkpoint(&mut node, &id, &place, 0).await, Code::Aborted, &["already"]);
    refused(slow.await.unwrap(), Code::DeadlineExceeded, &["checkpoint"]);
    goes_on(&node, "slow", "main");
    assert!(!place.exists());
    node.finish().await;
}

/// A pod with two containers that count.
async fn two(node: &mut Node, name: &str) -> (String, String, String) {
    let (pod, first) = node.running(name, &["sh", "-c", COUNT]).await;
    let second = node.create(&pod, &node.pod(name), container("second", &["sh", "-c", COUNT])).await.unwrap();
    node.start(&second).await.unwrap();
    goes_on(node, name, "main");
    goes_on(node, name, "second");
    (pod, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_checkpoint_has_a_directory_for_each_container_and_all_go_on() {
    let (mut node, _dir) = stand_in(QUICK).await;
    let (pod, first, second) = two(&mut node, "both").await;
    let output = tempfile::tempdir().unwrap();
    let ids = [first.as_str(), second.as_str()];
    node.runtime.checkpoint_pod(pod_request(&pod, &ids, output.path())).await.unwrap();
    for name in ["main", "second"] {
        goes_on(&node, "both", name);
        for file in ["checkpoint/pages-1.img", "config.dump", "spec.dump", "rootfs-diff.tar"] {
            assert!(output.path().join(name).join(file).exists(), "{name}/{file}");
        }
    }
    let options: serde_json::Value =
        serde_json::from_slice(&std::fs::read(output.path().join("pod.options")).unwrap()).unwrap();
    assert_eq!(options, serde_json::json!({"version": 1, "containers": ["main", "second"]}));

    let empty = tempfile::tempdir().unwrap();
    let mut wrong = async |change: fn(&mut pb::CheckpointPodRequest), word: &str| {
        let mut request = pod_request(&pod, &ids, empty.path());
        change(request.get_mut());
        refused(node.runtime.checkpoint_pod(request).await, Code::InvalidArgument, &[word]);
    };
    wrong(|r| r.container_ids.clear(), "container_ids").await;
    wrong(|r| r.container_ids[1] = r.container_ids[0].clone(), "container_ids").await;
    wrong(|r| r.container_ids[1] = "f".repeat(64), "container_ids").await;
    wrong(|r| drop(r.options.insert("x".into(), "y".into())), "options").await;
    wrong(|r| r.output_path = "relative".into(), "output_path").await;
    wrong(|r| r.output_path = "/no/such".into(), "output_path").await;
    let request = pod_request(&pod, &ids, output.path());
    refused(node.runtime.checkpoint_pod(request).await, Code::InvalidArgument, &["not empty"]);
    let without = Request::new(pod_request(&pod, &ids, empty.path()).into_inner());
    refused(node.runtime.checkpoint_pod(without).await, Code::InvalidArgument, &["deadline"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_checkpoint_that_fails_or_takes_too_long_sets_all_free_and_empties_the_directory() {
    for (before, code) in [(FAILS, Code::Unknown), (HANGS, Code::DeadlineExceeded)] {
        let (mut node, _dir) = stand_in(before).await;
        let (pod, first, second) = two(&mut node, "none").await;
        let output = tempfile::tempdir().unwrap();
        let mut request = pod_request(&pod, &[&first, &second], output.path());
        request.set_timeout(Duration::from_secs(12));
        refused(node.runtime.checkpoint_pod(request).await, code, &[]);
        goes_on(&node, "none", "main");
        goes_on(&node, "none", "second");
        assert_eq!(std::fs::read_dir(output.path()).unwrap().count(), 0);
        node.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_dead_daemon_left_frozen_the_next_one_sets_free() {
    let (mut node, dir) = stand_in(HANGS).await;
    let (pod, first, second) = two(&mut node, "dead").await;
    let output = tempfile::tempdir().unwrap();
    let (mut client, request) = (node.runtime.clone(), pod_request(&pod, &[&first, &second], output.path()));
    let call = tokio::spawn(async move { client.checkpoint_pod(request).await });
    let begun = dir.path().join("runtime.begun");
    wait_for("the checkpoint begins", Duration::from_secs(20), || begun.exists().then_some(())).unwrap();
    node.daemon.kill().unwrap();
    assert!(call.await.unwrap().is_err());
    let frozen = node.log("dead", "main").len();
    // Not a wait for something: nothing must come.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.log("dead", "main").len(), frozen);
    // The stand-in's remaining work does no harm.
    std::fs::write(dir.path().join("runtime.go"), "").unwrap();
    node.daemon.launch().unwrap();
    goes_on(&node, "dead", "main");
    goes_on(&node, "dead", "second");
    let notes = node.scratch.root().join("state/checkpoints");
    wait_for("the note is gone", Duration::from_secs(20), || {
        (std::fs::read_dir(&notes).unwrap().count() == 0).then_some(())
    })
    .unwrap();
    node.finish().await;
}

pub(crate) fn restore_request(
    node: &Node,
    name: &str,
    from: &Path,
    containers: &[&str],
) -> Request<pb::RestorePodRequest> {
    let configs = containers.iter().map(|name| container(name, &["sh", "-c", COUNT])).collect();
    let mut request = Request::new(pb::RestorePodRequest {
        checkpoint_path: from.to_string_lossy().into_owned(),
        config: Some(node.pod(name)),
        runtime_handler: String::new(),
        options: Default::default(),
        container_configs: configs,
    });
    request.set_timeout(Duration::from_secs(120));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_a_checkpoint_is_not_restored_and_nothing_stays() {
    let (mut node, _dir) = stand_in(QUICK).await;
    let (pod, first, second) = two(&mut node, "fit").await;
    let output = tempfile::tempdir().unwrap();
    let ids = [first.as_str(), second.as_str()];
    node.runtime.checkpoint_pod(pod_request(&pod, &ids, output.path())).await.unwrap();
    let from: PathBuf = output.path().to_owned();
    let request = restore_request(&node, "new", &from, &["main"]);
    refused(node.runtime.restore_pod(request).await, Code::FailedPrecondition, &["second"]);
    let mut request = restore_request(&node, "new", &from, &["main", "second"]);
    request.get_mut().options.insert("x".into(), String::new());
    refused(node.runtime.restore_pod(request).await, Code::InvalidArgument, &["options"]);
    let request = Request::new(restore_request(&node, "new", &from, &["main", "second"]).into_inner());
    refused(node.runtime.restore_pod(request).await, Code::InvalidArgument, &["deadline"]);
    // A link in place of an image: found when the second container is made; the pod and the first one go again.
    let image = from.join("second/checkpoint/pages-1.img");
    std::fs::remove_file(&image).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &image).unwrap();
    let request = restore_request(&node, "new", &from, &["main", "second"]);
    refused(node.runtime.restore_pod(request).await, Code::DataLoss, &["pages-1.img"]);
    assert_eq!(node.list_pods().await.len(), 1);
    assert_eq!(node.list_containers().await.len(), 2);
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, "").unwrap();
    let request = restore_request(&node, "new", &from, &["main", "second"]);
    let made = node.runtime.restore_pod(request).await.unwrap().into_inner();
    let names: Vec<_> = made.restored_containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["main", "second"]);
    for restored in &made.restored_containers {
        let status = node.status(&restored.container_id).await.unwrap();
        assert_eq!(status.state(), pb::ContainerState::ContainerCreated);
    }
    node.start(&made.restored_containers[0].container_id).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn criu_checkpoints_a_container_that_goes_on() {
    if !criu_is_there() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("criu", &["sh", "-c", COUNT]).await;
    goes_on(&node, "criu", "main");
    let place = node.scratch.root().join("c.tar");
    if !runtime_can(Ability::Checkpoints) {
        let answer = checkpoint(&mut node, &id, &place, 0).await;
        refused(answer, Code::Unimplemented, &["has no command checkpoint"]);
        goes_on(&node, "criu", "main");
        return node.finish().await;
    }
    checkpoint(&mut node, &id, &place, 0).await.unwrap();
    goes_on(&node, "criu", "main");
    let files = files(&place);
    for name in ["checkpoint/inventory.img", "checkpoint/pstree.img", "config.dump", "dump.log", "stats-dump"]
    {
        assert!(files.contains_key(name), "{name} is not in {:?}", files.keys());
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn criu_lets_a_restored_pod_continue_where_it_was() {
    if !criu_works() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let change = format!("echo kept > /made; rm /etc/group; {COUNT}");
    let (pod, first) = node.running("source", &["sh", "-c", &change]).await;
    let second =
        node.create(&pod, &node.pod("source"), container("second", &["sh", "-c", COUNT])).await.unwrap();
    node.start(&second).await.unwrap();
    goes_on(&node, "source", "main");
    goes_on(&node, "source", "second");
    let output = tempfile::tempdir().unwrap();
    node.runtime.checkpoint_pod(pod_request(&pod, &[&first, &second], output.path())).await.unwrap();
    for name in ["main", "second"] {
        goes_on(&node, "source", name);
    }
    node.remove_pod(&pod).await.unwrap();

    let request = restore_request(&node, "copy", output.path(), &["main", "second"]);
    let made = node.runtime.restore_pod(request).await.unwrap().into_inner();
    drop(output);
    for restored in &made.restored_containers {
        assert!(node.log("copy", &restored.name).is_empty());
        node.start(&restored.container_id).await.unwrap();
        goes_on(&node, "copy", &restored.name);
        // Its limits hold, and what is counted for it is its own.
        let pid = node.pid(&restored.container_id).await;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroups.contains(&restored.container_id), "{cgroups}");
        assert!(![&first, &second].iter().any(|id| cgroups.contains(*id)), "{cgroups}");
        // It continues counting instead of starting again.
        let log = node.log("copy", &restored.name);
        let numbers: Vec<u64> = log.iter().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(numbers[0] > 0 && numbers.is_sorted_by(|a, b| a + 1 == *b), "{numbers:?}");
    }
    let main = &made.restored_containers[0].container_id;
    assert_eq!(node.output(main, &["cat", "/made"]).await, "kept");
    assert_eq!(node.output(main, &["sh", "-c", "ls /etc/group 2>/dev/null || echo gone"]).await, "gone");
    let status = node.status(main).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    node.stop(main, 0).await.unwrap();
    assert_eq!(node.status(main).await.unwrap().exit_code, 137);
    node.finish().await;
}
