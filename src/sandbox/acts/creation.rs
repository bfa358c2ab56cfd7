//! A container's creation: recorded before its bundle is made, and as created with it. What fails is undone, the record
//! last.

use super::bundle::{self, Prepared, Request};
use super::node::Node;
use crate::model::{ContainerId, SandboxId};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::ContainerRecord;
use std::sync::Arc;

/// Records a container and makes its bundle.
pub(in crate::sandbox) async fn create(request: Request) -> Result<Prepared, SandboxError> {
    let (node, pod, spec) = (request.node.clone(), request.pod.id.clone(), request.spec.clone());
    let (own, of, id, record) = (node.clone(), pod.clone(), spec.clone(), request.record.clone());
    let recorded = blocking(move |off| {
        own.records.write_container(off, &id)?;
        Ok(own.records.write_container_state(off, &of, &id.id, &record)?)
    });
    let created = match recorded.await {
        Ok(()) => bundle::prepare_or_undo(request).await,
        Err(error) => Err(error),
    };
    if created.is_err() {
        forget(&node, &pod, &spec.id).await;
    }
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
