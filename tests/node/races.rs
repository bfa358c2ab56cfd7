//! Verbs that meet on one container or pod in every order, and clients that go away: afterwards everything answers
//! and everything can be removed.

use crate::support::*;
use podwright::cri::proto as pb;
use std::time::Duration;
use tonic::Code;

/// Far longer than any call here may take.
const NEVER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Create,
    Start,
    Stop,
    Remove,
    Exec,
    Update,
    StopPod,
    RemovePod,
}

const VERBS: [Verb; 8] = [
    Verb::Create,
    Verb::Start,
    Verb::Stop,
    Verb::Remove,
    Verb::Exec,
    Verb::Update,
    Verb::StopPod,
    Verb::RemovePod,
];

#[derive(Clone)]
struct Aim {
    client: pb::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    pod: String,
    config: pb::PodSandboxConfig,
    id: String,
}

async fn ask(mut aim: Aim, verb: Verb) -> Result<(), tonic::Status> {
    let (container_id, pod_sandbox_id) = (aim.id.clone(), aim.pod.clone());
    match verb {
        Verb::Create => {
            let request = pb::CreateContainerRequest {
                pod_sandbox_id,
                config: Some(container("main", &[])),
                sandbox_config: Some(aim.config),
            };
            aim.client.create_container(request).await.map(drop)
        }
        Verb::Start => aim.client.start_container(pb::StartContainerRequest { container_id }).await.map(drop),
        Verb::Stop => {
            aim.client.stop_container(pb::StopContainerRequest { container_id, timeout: 1 }).await.map(drop)
        }
        Verb::Remove => {
            aim.client.remove_container(pb::RemoveContainerRequest { container_id }).await.map(drop)
        }
        Verb::Exec => {
            let request = pb::ExecSyncRequest { container_id, cmd: words(&["true"]), timeout: 5 };
            aim.client.exec_sync(request).await.map(drop)
        }
        Verb::Update => {
            let linux = Some(pb::LinuxContainerResources { cpu_shares: 512, ..Default::default() });
            let request = pb::UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
            aim.client.update_container_resources(request).await.map(drop)
        }
        Verb::StopPod => {
            aim.client.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id }).await.map(drop)
        }
        Verb::RemovePod => {
            aim.client.remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id }).await.map(drop)
        }
    }
}

/// What must not be answered: a bug in us, or a state that cannot be.
fn is_wrong(verb: Verb, code: Code) -> bool {
    match code {
        // A runtime whose container dies meanwhile may report that in its own words.
        Code::Unknown => verb != Verb::Exec,
        Code::Internal | Code::Unavailable | Code::DeadlineExceeded => true,
        _ => matches!(verb, Verb::Stop | Verb::Remove | Verb::StopPod | Verb::RemovePod),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_verbs_may_meet() {
    let mut node = Node::with_busybox().await;
    let mut wrong = Vec::new();
    let mut attempt = 0;
    for first in VERBS {
        for second in VERBS {
            for started in [false, true] {
                attempt += 1;
                let mut config = node.pod("pairs");
                config.metadata.as_mut().unwrap().attempt = attempt;
                let pod = node.run(&config).await.unwrap();
                let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
                if started {
                    node.start(&id).await.unwrap();
                }
                let aim = Aim { client: node.runtime.clone(), pod: pod.clone(), config, id };
                let one = tokio::spawn(ask(aim.clone(), first));
                // Not a wait for something: a spread of moments.
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) % 7 * 4)).await;
                let two = tokio::spawn(ask(aim, second));
                for (verb, call) in [(first, one), (second, two)] {
                    match tokio::time::timeout(NEVER, call).await {
                        Err(_) => {
                            wrong.push(format!("{first:?} {second:?} started={started}: {verb:?} hangs"))
                        }
                        Ok(answer) => match answer.unwrap() {
                            Err(status) if is_wrong(verb, status.code()) => wrong
                                .push(format!("{first:?} {second:?} started={started}: {verb:?}: {status}")),
                            _ => {}
                        },
                    }
                }
                node.stop_pod(&pod).await.unwrap();
                node.remove_pod(&pod).await.unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_verbs_leaves_nothing() {
    let mut node = Node::with_busybox().await;
    // A fixed seed: the same storm each time (Numerical Recipes' generator).
    let mut seed = 20_261_124_u32;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        usize::try_from(seed >> 8).unwrap() % below
    };
    let mut wrong = Vec::new();
    for round in 0..10 {
        let mut config = node.pod("storm");
        config.metadata.as_mut().unwrap().attempt = round;
        let pod = node.run(&config).await.unwrap();
        let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
        let aim = Aim { client: node.runtime.clone(), pod: pod.clone(), config, id };
        let mut calls = Vec::new();
        for step in 0..20 {
            // The pod's own end comes last, or there is nothing to meet.
            let verb = VERBS[random(if step < 14 { 6 } else { 8 })];
            calls.push((verb, tokio::spawn(ask(aim.clone(), verb))));
            tokio::time::sleep(Duration::from_millis(u64::try_from(random(15)).unwrap())).await;
        }
        for (verb, call) in calls {
            match tokio::time::timeout(NEVER, call).await {
                Err(_) => wrong.push(format!("round {round}: {verb:?} hangs")),
                Ok(answer) => match answer.unwrap() {
                    Err(status) if is_wrong(verb, status.code()) => {
                        wrong.push(format!("round {round}: {verb:?}: {status}"))
                    }
                    _ => {}
                },
            }
        }
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_caller_went_away_is_there_for_the_retry() {
    let mut node = Node::with_busybox().await;
    for round in 0..50u64 {
        let mut config = node.pod("gave-up");
        config.metadata.as_mut().unwrap().attempt = u32::try_from(round).unwrap();
        let mut request = tonic::Request::new(pb::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        });
        request.set_timeout(Duration::from_millis(1 + round * 2));
        let _ = node.runtime.run_pod_sandbox(request).await;
        let pod = node.run(&config).await.unwrap();
        let pods = node.list_pods().await;
        assert_eq!(pods.len(), 1, "round {round}: {pods:?}");
        assert_eq!(pods[0].id, pod);
        node.stop_pod(&pod).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_meets_the_pods_stop_is_refused_or_ended() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("late-start");
    let pod = node.run(&config).await.unwrap();
    let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
    let mut client = node.runtime.clone();
    let request = pb::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    let stop = tokio::spawn(async move { client.stop_pod_sandbox(request).await });
    // Not a wait for something: the stop is to be under way, and takes longer than this to detach the network.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let start = node.start(&id).await;
    stop.await.unwrap().unwrap();
    if let Err(status) = start {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("start"), "{status}");
    }
    refused(node.start(&id).await, Code::FailedPrecondition, &["start"]);
    node.finish().await;
}
