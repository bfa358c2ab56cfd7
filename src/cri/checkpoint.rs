//! Checkpoint calls: checks the request and delegates. Owns nothing.

use super::lookup::{image_request, required};
use super::proto as pb;
use super::status::status;
use super::{deadline, decode};
use crate::images::ImageKind;
use crate::model::{ContainerId, ContainerSpec, ImageRequest, Restore, SandboxId, Timestamp, plain};
use crate::sandbox::{Manager, SandboxError};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;
use tonic::{Request, Status};

type Checked<T> = Result<T, Status>;

fn failed(error: SandboxError) -> Status {
    status(&error)
}

/// Bytes of a word from a request that an error tells.
const MAX_SHOWN: usize = 128;

/// No option is known.
fn no_options(options: &HashMap<String, String>) -> Checked<()> {
    match options.keys().min() {
        None => Ok(()),
        Some(key) => {
            let key = plain::ends(key, MAX_SHOWN);
            Err(Status::invalid_argument(format!("options: {key:?} is not known")))
        }
    }
}

/// A pod stays frozen for as long as its caller allows, so a call without a deadline is refused.
fn required_deadline<T>(request: &Request<T>) -> Checked<Duration> {
    deadline::of(request.metadata())
        .ok_or_else(|| Status::invalid_argument("grpc-timeout: the caller has to set a deadline"))
}

/// The image of a new container and the checkpoint that it continues from. If the request names an archive's path, or
/// an image that is a checkpoint, the image is that of the checkpointed container.
pub(super) async fn image(
    pods: &Manager,
    spec: Option<&pb::ImageSpec>,
) -> Checked<(ImageRequest, Option<Restore>)> {
    let requested = spec.map(|s| s.image.as_str()).unwrap_or_default();
    let restore = if requested.starts_with('/') {
        Restore::Archive(decode::path("config.image.image", requested)?)
    } else {
        match pods.node().images.status(requested) {
            Some(image) if image.kind == ImageKind::Checkpoint => Restore::Image(image.id.clone()),
            _ => return Ok((image_request(pods, spec)?, None)),
        }
    };
    let base = pods.base_image(&restore).await.map_err(failed)?;
    let request = ImageRequest {
        requested: requested.to_owned(),
        user_specified: String::new(),
        id: base.id.clone(),
        reference: base.repo_digests.first().cloned().unwrap_or_else(|| base.id.to_string()),
        display: base.repo_tags.first().cloned().unwrap_or_else(|| base.id.to_string()),
    };
    Ok((request, Some(restore)))
}

pub(super) async fn container(
    pods: &Manager,
    request: Request<pb::CheckpointContainerRequest>,
) -> Checked<pb::CheckpointContainerResponse> {
    let callers = deadline::of(request.metadata());
    let r = request.into_inner();
    required("container_id", &r.container_id)?;
    let location = decode::path("location", &r.location)?;
    let limit = match u64::try_from(r.timeout) {
        Ok(0) => pods.node().config.runtime_timeout(),
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => return Err(Status::invalid_argument("timeout: is negative")),
    };
    let limit = callers.map_or(limit, |callers| limit.min(callers));
    pods.checkpoint_container(&r.container_id, &location, limit).await.map_err(failed)?;
    Ok(pb::CheckpointContainerResponse {})
}

pub(super) async fn pod(
    pods: &Manager,
    request: Request<pb::CheckpointPodRequest>,
) -> Checked<pb::CheckpointPodResponse> {
    let limit = required_deadline(&request)?;
    let r = request.into_inner();
    required("pod_sandbox_id", &r.pod_sandbox_id)?;
    no_options(&r.options)?;
    let output = decode::path("output_path", &r.output_path)?;
    let parse = |id: &String| {
        let shown = plain::ends(id, MAX_SHOWN);
        ContainerId::parse(id).map_err(|e| Status::invalid_argument(format!("container_ids: {shown:?}: {e}")))
    };
    let ids = r.container_ids.iter().map(parse).collect::<Checked<Vec<_>>>()?;
    pods.checkpoint_pod(&r.pod_sandbox_id, &ids, &output, limit).await.map_err(failed)?;
    Ok(pb::CheckpointPodResponse {})
}

pub(super) async fn restore(
    pods: &Manager,
    request: Request<pb::RestorePodRequest>,
) -> Checked<pb::RestorePodResponse> {
    required_deadline(&request)?;
    let r = request.into_inner();
    no_options(&r.options)?;
    let from: PathBuf = decode::path("checkpoint_path", &r.checkpoint_path)?;
    if r.container_configs.is_empty() {
        return Err(Status::invalid_argument("container_configs: is empty"));
    }
    let internal = |e: crate::model::IdError| Status::internal(e.to_string());
    let id = SandboxId::random().map_err(internal)?;
    let spec = decode::sandbox(r.config, r.runtime_handler, id, Timestamp::now())?;
    let mut containers: Vec<ContainerSpec> = Vec::new();
    for config in r.container_configs {
        let image = image_request(pods, config.image.as_ref())?;
        let id = ContainerId::random().map_err(internal)?;
        containers.push(decode::container(config, &spec, image, id, Timestamp::now())?);
    }
    let names: Vec<String> = containers.iter().map(|c| c.name.clone()).collect();
    // Runs on when the caller goes away, so that a half-made checkpoint is undone.
    let (manager, sandbox) = (pods.clone(), spec.clone());
    let work = tokio::spawn(async move { manager.restore_pod(sandbox, containers, &from).await });
    let (id, made) = match work.await {
        Ok(done) => done.map_err(|e| status(&e))?,
        Err(_) => return Err(failed(SandboxError::Panicked("a restore"))),
    };
    let restored = names.into_iter().zip(made);
    Ok(pb::RestorePodResponse {
        pod_sandbox_id: id.to_string(),
        restored_containers: restored
            .map(|(name, id)| pb::RestoredContainer { name, container_id: id.to_string() })
            .collect(),
    })
}
