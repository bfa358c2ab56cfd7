//! Container events, lists as streams, and the kubelet's information about the node's network.

use crate::support::*;
use pb::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::{Code, Streaming};

/// Until an event that must come has come.
const PATIENCE: Duration = Duration::from_secs(60);

async fn listen(node: &mut Node) -> Streaming<pb::ContainerEventResponse> {
    node.runtime.get_container_events(pb::GetEventsRequest {}).await.unwrap().into_inner()
}

async fn next(events: &mut Streaming<pb::ContainerEventResponse>) -> pb::ContainerEventResponse {
    tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_life_is_told_in_events_with_the_whole_pod_in_each() {
    let mut node = Node::with_busybox().await;
    let mut events = listen(&mut node).await;
    let (pod, id) = node.running("events", &[]).await;
    node.stop(&id, 0).await.unwrap();
    node.exited(&id).await;
    node.remove(&id).await.unwrap();
    let other = node.create(&pod, &node.pod("events"), container("other", &[])).await.unwrap();
    node.start(&other).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();

    let (pod, id, other) = (pod.as_str(), id.as_str(), other.as_str());
    let mut told = Vec::new();
    while told.last() != Some(&(pod.to_owned(), Deleted)) {
        let event = next(&mut events).await;
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!((status.id.as_str(), status.metadata.as_ref().unwrap().name.as_str()), (pod, "events"));
        let states: Vec<_> = event.containers_statuses.iter().map(|c| (c.id.as_str(), c.state())).collect();
        let kind = event.container_event_type();
        match (event.container_id == pod, kind) {
            (true, Created | Started) => {
                assert_eq!(status.state(), pb::PodSandboxState::SandboxReady);
                assert!(!status.network.as_ref().unwrap().ip.is_empty());
            }
            (true, Stopped | Deleted) => assert_eq!(status.state(), pb::PodSandboxState::SandboxNotready),
            (false, Created) => {
                assert!(states.contains(&(&event.container_id, pb::ContainerState::ContainerCreated)))
            }
            (false, Started) => {
                assert!(states.contains(&(&event.container_id, pb::ContainerState::ContainerRunning)))
            }
            (false, Stopped) => {
                assert!(states.contains(&(&event.container_id, pb::ContainerState::ContainerExited)));
            }
            (false, Deleted) => assert!(states.iter().all(|(id, _)| *id != event.container_id)),
        }
        told.push((event.container_id.clone(), kind));
    }
    let of = |wanted: &str| told.iter().filter(|(id, _)| id == wanted).map(|(_, k)| *k).collect::<Vec<_>>();
    for whose in [pod, id, other] {
        assert_eq!(of(whose), [Created, Started, Stopped, Deleted], "{told:?}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_events_rise_and_fit_those_of_statuses() {
    let mut node = Node::with_busybox().await;
    let mut events = listen(&mut node).await;
    let (pod, id) = node.running("times", &["true"]).await;
    node.exited(&id).await;
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = node.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    assert_eq!(status.containers_statuses.len(), 1);
    assert_eq!(status.containers_statuses[0].state(), pb::ContainerState::ContainerExited);
    let mut last = 0;
    for expected in [Created, Started, Created, Started, Stopped] {
        let event = next(&mut events).await;
        assert_eq!(event.container_event_type(), expected);
        assert!(event.created_at > last);
        last = event.created_at;
    }
    assert!(status.timestamp > last);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_told_as_an_end() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("badstart");
    let pod = node.run(&config).await.unwrap();
    let mut events = listen(&mut node).await;
    let id = node.create(&pod, &config, container("main", &["/no/such/program"])).await.unwrap();
    node.start(&id).await.unwrap_err();
    let kinds = [next(&mut events).await, next(&mut events).await].map(|e| e.container_event_type());
    assert_eq!(kinds, [Created, Stopped]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_bounded_and_one_that_left_makes_room() {
    let mut node = Node::new(Options::default()).await;
    let mut all = Vec::new();
    let refused = loop {
        match node.runtime.get_container_events(pb::GetEventsRequest {}).await {
            Ok(events) => all.push(events),
            Err(status) => break status,
        }
        assert!(all.len() < 1000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{}", refused.message());
    drop(all);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.runtime.get_container_events(pb::GetEventsRequest {}).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_as_streams_with_every_item_once() {
    let mut node = Node::with_busybox().await;
    let (pods, messages) = streamed!(
        node.runtime,
        stream_pod_sandboxes,
        pb::StreamPodSandboxesRequest::default(),
        pod_sandboxes
    );
    assert_eq!((pods.len(), messages), (0, 0));
    // Annotations so large that one message does not hold them all.
    let mut config = node.pod("large");
    config.annotations = map(&[("large", &"x".repeat(700 << 10))]);
    let first = node.run(&config).await.unwrap();
    config.metadata.as_mut().unwrap().name = "large2".into();
    let second = node.run(&config).await.unwrap();
    for (pod, name) in [(&first, "one"), (&first, "two"), (&second, "three")] {
        let mut spec = container(name, &[]);
        spec.annotations = map(&[("large", &"y".repeat(600 << 10))]);
        let id = node.create(pod, &config, spec).await.unwrap();
        node.start(&id).await.unwrap();
    }
    let (pods, messages) = streamed!(
        node.runtime,
        stream_pod_sandboxes,
        pb::StreamPodSandboxesRequest::default(),
        pod_sandboxes
    );
    assert_eq!(messages, 2);
    let by_id = |a: &pb::PodSandbox, b: &pb::PodSandbox| a.id.cmp(&b.id);
    let (mut pods, mut listed) = (pods, node.list_pods().await);
    pods.sort_by(by_id);
    listed.sort_by(by_id);
    assert_eq!(pods, listed);

    let (containers, messages) =
        streamed!(node.runtime, stream_containers, pb::StreamContainersRequest::default(), containers);
    assert_eq!((containers.len(), messages), (3, 3));
    let names: BTreeSet<_> = containers.iter().map(|c| c.metadata.as_ref().unwrap().name.clone()).collect();
    assert_eq!(names, ["one", "two", "three"].map(str::to_owned).into());
    let filter = pb::ContainerFilter { pod_sandbox_id: second.clone(), ..Default::default() };
    let request = pb::StreamContainersRequest { filter: Some(filter) };
    let (containers, _) = streamed!(node.runtime, stream_containers, request, containers);
    assert_eq!(containers.len(), 1);

    let request = pb::StreamContainerStatsRequest::default();
    let (stats, _) = streamed!(node.runtime, stream_container_stats, request, container_stats);
    assert_eq!(stats.len(), 3);
    assert!(stats.iter().all(|s| s.cpu.is_some() && s.attributes.is_some()));

    let (images, _) = streamed!(node.images, stream_images, pb::StreamImagesRequest::default(), images);
    let listed = node.images.list_images(pb::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images, listed);
    node.finish().await;
}

fn told(pod_cidr: &str) -> pb::UpdateRuntimeConfigRequest {
    let network_config = Some(pb::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
    pb::UpdateRuntimeConfigRequest { runtime_config: Some(pb::RuntimeConfig { network_config }) }
}

async fn network_is_ready(node: &mut Node) -> bool {
    let status = node.runtime.status(pb::StatusRequest { verbose: false }).await.unwrap().into_inner();
    status.status.unwrap().conditions.iter().any(|c| c.r#type == "NetworkReady" && c.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_made_of_the_template_and_the_pod_cidr() {
    let template = tempfile::NamedTempFile::new().unwrap();
    let text = r#"{"cniVersion": "1.0.0", "name": "told", "plugins": [{"type": "loopback", "ranges":
        [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]}]}"#;
    std::fs::write(template.path(), text).unwrap();
    let extra_config = format!("[network]\nconf_template = {:?}\n", template.path());
    let mut node = Node::new(Options { extra_config, ..Options::default() }).await;
    let dir = node.scratch.cni_conf_dir();
    // There is a configuration already: it stays alone.
    node.runtime.update_runtime_config(told("10.99.0.0/24")).await.unwrap();
    let files = || std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let before = files();
    assert_eq!(before.len(), 1);
    std::fs::remove_file(&before[0]).unwrap();
    refused(
        node.runtime.update_runtime_config(told("10.99.0.0")).await,
        Code::InvalidArgument,
        &["runtime_config.network_config.pod_cidr"],
    );
    node.runtime.update_runtime_config(told("")).await.unwrap();
    assert!(files().is_empty());
    node.runtime.update_runtime_config(told("10.99.0.0/24,fd00:99::/64")).await.unwrap();
    let made = std::fs::read_to_string(dir.join("10-podwright-net.conflist")).unwrap();
    assert!(made.contains(r#"[[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]]"#), "{made}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !network_is_ready(&mut node).await {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.finish().await;
}
