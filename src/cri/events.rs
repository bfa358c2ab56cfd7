//! Container events as a stream of answers, each with its statuses. Owns nothing: `sandbox` has the subscribers.

use super::proto as pb;
use super::{encode, info};
use crate::sandbox::{Announcement, Happening, MAX_SUBSCRIBERS, Manager, PodSnapshot};
use futures_util::stream::{self, Stream};
use std::pin::Pin;
use tonic::Status;

/// Events until the client leaves.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<pb::ContainerEventResponse, Status>> + Send>>;

/// Events from now on.
pub(super) fn subscribe(pods: &Manager) -> Result<Events, Status> {
    let subscription = pods.subscribe().ok_or_else(|| {
        Status::resource_exhausted(format!("{MAX_SUBSCRIBERS} clients listen to container events already"))
    })?;
    Ok(Box::pin(stream::unfold((pods.clone(), subscription), async |(pods, mut subscription)| {
        let event = match subscription.next().await? {
            Ok(event) => Ok(response(&pods, &event)),
            Err(_) => Err(Status::resource_exhausted(
                "events were lost, as this client does not take them fast enough: list everything and subscribe again",
            )),
        };
        Some((event, (pods, subscription)))
    })))
}

fn response(pods: &Manager, event: &Announcement) -> pb::ContainerEventResponse {
    pb::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind(event.happening).into(),
        created_at: event.at.nanos(),
        pod_sandbox_status: Some(encode::sandbox_status(&event.pod)),
        containers_statuses: statuses(pods, &event.pod),
    }
}

fn kind(happening: Happening) -> pb::ContainerEventType {
    match happening {
        Happening::Created => pb::ContainerEventType::ContainerCreatedEvent,
        Happening::Started => pb::ContainerEventType::ContainerStartedEvent,
        Happening::Stopped => pb::ContainerEventType::ContainerStoppedEvent,
        Happening::Deleted => pb::ContainerEventType::ContainerDeletedEvent,
    }
}

/// The statuses of all containers of a pod.
pub(super) fn statuses(pods: &Manager, pod: &PodSnapshot) -> Vec<pb::ContainerStatus> {
    let status = |container| encode::container_status(container, info::stop_signal(pods, container));
    pod.containers.iter().map(|container| status(container)).collect()
}
