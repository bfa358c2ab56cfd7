//! The Node service: the daemon's current state. Reads snapshots and counters; changes nothing.

use super::proto as pb;
use super::proto::node_server::{Node as Service, NodeServer};
use crate::model::plain;
use crate::sandbox::{self, ContainerSnapshot, ContainerState, Manager, PodSnapshot, SandboxState};
use crate::streaming::{SessionInfo, SessionKind, Sessions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status};

/// The daemon's report about itself.
#[derive(Debug, Clone)]
pub struct About {
    /// The pods.
    pub pods: Manager,
    /// The open streaming sessions.
    pub sessions: Sessions,
    /// Address of the streaming server.
    pub streaming: SocketAddr,
    /// When the daemon was started.
    pub begun: Instant,
}

pub(super) fn server(about: About, limit: usize) -> NodeServer<About> {
    NodeServer::new(about).max_decoding_message_size(limit).max_encoding_message_size(limit)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for About {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let (pods, mut answer) = (self.pods.pods(), pb::StatusResponse::default());
        for pod in &pods {
            match pod.state {
                SandboxState::Ready { .. } => answer.pods_ready += 1,
                SandboxState::NotReady { .. } => answer.pods_not_ready += 1,
                SandboxState::Preparing => {}
            }
            for container in &pod.containers {
                match container.state {
                    ContainerState::Creating => {}
                    ContainerState::Created | ContainerState::Starting => answer.containers_created += 1,
                    ContainerState::Running { .. } => answer.containers_running += 1,
                    ContainerState::Exited { .. } => answer.containers_exited += 1,
                }
            }
        }
        answer.version = env!("CARGO_PKG_VERSION").to_owned();
        answer.pid = std::process::id();
        answer.uptime_seconds = self.begun.elapsed().as_secs();
        answer.streaming_address = self.streaming.to_string();
        answer.conditions = sandbox::conditions(self.pods.node()).into_iter().map(condition).collect();
        answer.sessions = self.sessions.list().into_iter().map(|open| session(&pods, open)).collect();
        Ok(Response::new(answer))
    }

    async fn pods(&self, r: Request<pb::PodsRequest>) -> Answer<pb::PodsResponse> {
        let id = r.into_inner().id;
        let mut pods: Vec<Arc<PodSnapshot>> =
            self.pods.pods().into_iter().filter(|pod| pod.spec.id.as_str().starts_with(&id)).collect();
        if pods.is_empty() && !id.is_empty() {
            let id = plain::ends(&id, 128);
            return Err(Status::not_found(format!("pod sandbox {id:?} is not found")));
        }
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.spec.created_at));
        Ok(Response::new(pb::PodsResponse { pods: pods.iter().map(|p| self::pod(p)).collect() }))
    }
}

fn condition(condition: sandbox::Condition) -> pb::Condition {
    pb::Condition {
        name: condition.name.to_owned(),
        ok: condition.ok,
        reason: condition.reason.to_owned(),
        message: condition.message,
    }
}

/// A session keeps its id when its pod is removed.
fn session(pods: &[Arc<PodSnapshot>], open: SessionInfo) -> pb::Session {
    let mut shown = pb::Session {
        kind: open.kind.name().to_owned(),
        protocol: open.protocol,
        age_milliseconds: u64::try_from(open.age.as_millis()).unwrap_or(u64::MAX),
        sent_bytes: open.sent,
        received_bytes: open.received,
        ..Default::default()
    };
    let (target, mut pod) = (open.target.as_str(), None);
    match open.kind {
        SessionKind::PortForward => {
            shown.pod_id.clone_from(&open.target);
            pod = pods.iter().find(|pod| pod.spec.id.as_str() == target);
        }
        SessionKind::Exec | SessionKind::Attach => {
            shown.container_id.clone_from(&open.target);
            for candidate in pods {
                if let Some(c) = candidate.containers.iter().find(|c| c.spec.id.as_str() == target) {
                    shown.container_name.clone_from(&c.spec.name);
                    pod = Some(candidate);
                }
            }
        }
    }
    if let Some(pod) = pod {
        shown.pod_id = pod.spec.id.to_string();
        shown.pod_name.clone_from(&pod.spec.name.name);
        shown.pod_namespace.clone_from(&pod.spec.name.namespace);
    }
    shown
}

fn pod(pod: &PodSnapshot) -> pb::Pod {
    let addresses = match &pod.state {
        SandboxState::Ready { network: Some(network) } => {
            network.ips.iter().map(ToString::to_string).collect()
        }
        SandboxState::Ready { network: None } | SandboxState::Preparing | SandboxState::NotReady { .. } => {
            Vec::new()
        }
    };
    let mut containers: Vec<_> =
        pod.containers.iter().filter(|c| c.state != ContainerState::Creating).collect();
    containers.sort_by_key(|c| std::cmp::Reverse(c.spec.created_at));
    pb::Pod {
        id: pod.spec.id.to_string(),
        name: pod.spec.name.name.clone(),
        namespace: pod.spec.name.namespace.clone(),
        uid: pod.spec.name.uid.clone(),
        attempt: pod.spec.name.attempt,
        state: pod.state.name().to_owned(),
        created_at: pod.spec.created_at.nanos(),
        addresses,
        monitor_pid: pod.monitor.as_ref().map(|monitor| monitor.info().process.pid).unwrap_or_default(),
        runtime: pod.runtime.name().to_owned(),
        containers: containers.into_iter().map(|c| container(c)).collect(),
    }
}

fn container(container: &ContainerSnapshot) -> pb::Container {
    let (pid, exit_code, reason) = match &container.state {
        ContainerState::Running { init, .. } => (init.pid, 0, ""),
        ContainerState::Exited { exit, .. } => (0, exit.code, exit.reason.as_str()),
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => (0, 0, ""),
    };
    pb::Container {
        id: container.spec.id.to_string(),
        name: container.spec.name.clone(),
        attempt: container.spec.attempt,
        state: container.state.name().to_owned(),
        image: container.spec.image.display.clone(),
        created_at: container.spec.created_at.nanos(),
        pid,
        exit_code,
        reason: reason.to_owned(),
    }
}
