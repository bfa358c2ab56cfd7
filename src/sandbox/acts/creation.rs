//! A container's creation: recorded before its bundle is made, and recorded as created before it is answered. What fails is
//! undone, the record last.

use super::bundle::{self, Prepared, Request};
use super::node::Node;
use crate::model::{ContainerId, SandboxId};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::ContainerRecord;
use crate::sandbox::words::state::ContainerState;
use std::sync::Arc;

/// Makes the bundle of a container, of which `record` is the first one.
pub(in crate::sandbox) async fn create(
    request: Request,
    record: ContainerRecord,
) -> Result<Prepared, SandboxError> {
    let (node, pod, spec) = (request.node.clone(), request.pod.id.clone(), request.spec.clone());
    let created = {
        let (node, pod, spec, record) = (node.clone(), pod.clone(), spec.clone(), record.clone());
        let recorded = blocking(move |off| {
            node.records.write_container(off, &spec)?;
            Ok(node.records.write_container_state(off, &pod, &spec.id, &record)?)
        });
        match recorded.await {
            Ok(()) => bundle::prepare_or_undo(request).await,
            Err(error) => Err(error),
        }
    };
    let created = match created {
        Ok(prepared) => {
            let user = Some(prepared.user.clone());
            let record = ContainerRecord { container: ContainerState::Created, user, ..record };
            // A container that a restart would undo is not answered as made.
            match write(&node, &pod, &spec.id, record).await {
                Ok(()) => return Ok(prepared),
                Err(cause) => match bundle::remove(&node, &spec).await {
                    Ok(()) => Err(cause),
                    Err(undo) => Err(SandboxError::Several(vec![cause, undo])),
                },
            }
        }
        failed => failed,
    };
    forget(&node, &pod, &spec.id).await;
    created
}

/// Replaces the record of a container's state.
pub(in crate::sandbox) async fn write(
    node: &Arc<Node>,
    pod: &SandboxId,
    id: &ContainerId,
    record: ContainerRecord,
) -> Result<(), SandboxError> {
    let (node, pod, id) = (node.clone(), pod.clone(), id.clone());
    blocking(move |off| Ok(node.records.write_container_state(off, &pod, &id, &record)?)).await
}

/// Removes a container's records, after everything else of it.
pub(in crate::sandbox) async fn forget(node: &Arc<Node>, pod: &SandboxId, id: &ContainerId) {
    let (own, of, gone) = (node.clone(), pod.clone(), id.clone());
    let removed = blocking(move |off| Ok(own.records.remove_container(off, &of, &gone)?)).await;
    if let Err(error) = removed {
        // Log: Writing below `root` failed. The record goes with the pod.
        // Do: Free the disk, or mount it writable.
        tracing::error!(container = %id, %error, "cannot remove a container's record");
    }
}
