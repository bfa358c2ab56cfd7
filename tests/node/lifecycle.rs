//! The less ordinary parts of a container's life: processes that cannot be killed, signals as exit codes, what a command
//! leaves that is over, metadata of any size.

use crate::support::*;
use podwright::cri::proto as pb;
use std::path::PathBuf;
use std::time::Duration;
use tonic::Code;

/// The freezer of cgroup v1, in which a process cannot even be killed, as one that waits for a dead disk.
fn freezer(pid: u64) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path.to_owned()))?;
    Some(PathBuf::from("/sys/fs/cgroup/freezer").join(path.trim_start_matches('/')).join("freezer.state"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_process_is_frozen_can_be_stopped_and_holds_up_no_other_pod() {
    let mut node = Node::with_busybox().await;
    let (stuck, id) = node.running("stuck", &[]).await;
    let pid = node.pid(&id).await;
    // With cgroup v2 the kernel kills what is frozen.
    let Some(freezer) = freezer(pid) else { return node.finish().await };
    std::fs::write(&freezer, "FROZEN").unwrap();
    let mut client = node.runtime.clone();
    let request = pb::StopPodSandboxRequest { pod_sandbox_id: stuck.clone() };
    let stopping = tokio::spawn(async move { client.stop_pod_sandbox(request).await });
    let (other, _) = node.running("other", &[]).await;
    assert_eq!(node.list_pods().await.len(), 2);
    node.remove_pod(&other).await.unwrap();
    stopping.await.unwrap().unwrap();
    assert_eq!(node.exited(&id).await.exit_code, 137);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_ends_a_container_is_its_exit_code() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("signals");
    let pod = node.run(&config).await.unwrap();
    for (name, signal) in [("TERM", 15), ("SEGV", 11), ("KILL", 9), ("USR1", 10)] {
        // Not process 1 of a namespace, which the kernel spares from its own signals.
        let mut spec =
            container(&name.to_lowercase(), &["sh", "-c", &format!("kill -{name} $$; sleep 1000")]);
        security(&mut spec).namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
        let id = node.create(&pod, &config, spec).await.unwrap();
        node.start(&id).await.unwrap();
        let ended = node.exited(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128 + signal, "Error"), "{name}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_timed_out_leaves_nothing_in_other_sessions() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("sessions", &[]).await;
    let script = "setsid sh -c 'setsid sleep 4001 & sleep 4002' & setsid sleep 4003 & sleep 4004";
    refused(node.exec_within(&id, &["sh", "-c", script], 1).await, Code::DeadlineExceeded, &["timed out"]);
    let left = node.output(&id, &["ps", "-o", "args"]).await;
    assert!(!left.contains("sleep 400"), "{left}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_meets_its_containers_end_gets_a_clear_answer() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("meets");
    let pod = node.run(&config).await.unwrap();
    for round in 0..12_u64 {
        let id = node.create(&pod, &config, container(&format!("c{round}"), &[])).await.unwrap();
        node.start(&id).await.unwrap();
        let mut client = node.runtime.clone();
        let request =
            pb::ExecSyncRequest { container_id: id.clone(), cmd: words(&["sleep", "1"]), timeout: 30 };
        let command = tokio::spawn(async move { client.exec_sync(request).await });
        tokio::time::sleep(Duration::from_millis(round * 5)).await;
        node.stop(&id, 0).await.unwrap();
        match command.await.unwrap() {
            // It ran, and went with its container.
            Ok(answer) => assert_eq!(answer.into_inner().exit_code, 137),
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message()),
        }
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_their_metadata_to_the_byte_and_lists_filter_by_all_of_it() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("meta");
    let pod = node.run(&config).await.unwrap();
    let big = "\u{1F600}".repeat(64 << 10);
    let mut ids = Vec::new();
    for colour in ["red", "blue"] {
        let mut spec = container(colour, &[]);
        spec.labels = map(&[("colour", colour), ("big", &big)]);
        spec.annotations = map(&[("big", &big), ("odd", " a=\"b\"\n\\\u{0} ")]);
        ids.push(node.create(&pod, &config, spec).await.unwrap());
    }
    node.start(&ids[0]).await.unwrap();
    node.daemon.crash().unwrap();
    let status = node.status(&ids[1]).await.unwrap();
    assert_eq!((&status.labels["big"], &status.annotations["big"]), (&big, &big));
    assert_eq!(status.annotations["odd"], " a=\"b\"\n\\\u{0} ");
    let mut list = async |filter: pb::ContainerFilter| {
        let request = pb::ListContainersRequest { filter: Some(filter) };
        let answer = node.runtime.list_containers(request).await.unwrap().into_inner();
        answer.containers.into_iter().map(|c| c.id).collect::<Vec<_>>()
    };
    let filter = pb::ContainerFilter::default;
    assert_eq!(list(filter()).await.len(), 2);
    assert_eq!(list(pb::ContainerFilter { id: ids[1][..13].to_owned(), ..filter() }).await, [ids[1].clone()]);
    assert!(list(pb::ContainerFilter { id: "0nothing".to_owned(), ..filter() }).await.is_empty());
    assert_eq!(list(pb::ContainerFilter { pod_sandbox_id: pod[..13].to_owned(), ..filter() }).await.len(), 2);
    assert!(list(pb::ContainerFilter { pod_sandbox_id: "f".repeat(64), ..filter() }).await.is_empty());
    let red = pb::ContainerFilter { label_selector: map(&[("colour", "red")]), ..filter() };
    assert_eq!(list(red).await, [ids[0].clone()]);
    let state = |state: pb::ContainerState| pb::ContainerFilter {
        state: Some(pb::ContainerStateValue { state: state.into() }),
        ..pb::ContainerFilter::default()
    };
    assert_eq!(list(state(pb::ContainerState::ContainerRunning)).await, [ids[0].clone()]);
    assert_eq!(list(state(pb::ContainerState::ContainerCreated)).await, [ids[1].clone()]);
    node.finish().await;
}
