//! What a request names, looked up.

use super::proto as pb;
use crate::model::{ImageRequest, plain};
use crate::sandbox::Manager;
use tonic::Status;

/// Refuses a request that names nothing.
pub(super) fn required(field: &'static str, id: &str) -> Result<(), Status> {
    if id.is_empty() { Err(Status::invalid_argument(format!("{field} is empty"))) } else { Ok(()) }
}

/// Bytes of an image's name as people wrote it, which each list tells and each sample of metrics: a reference has some 530
/// at most.
const MAX_IMAGE_NAME: usize = 1024;

/// Finds the image of a new container.
pub(super) fn image_request(pods: &Manager, spec: Option<&pb::ImageSpec>) -> Result<ImageRequest, Status> {
    let requested = spec.map(|s| s.image.as_str()).unwrap_or_default();
    if requested.is_empty() {
        return Err(Status::invalid_argument("config.image.image: is empty"));
    }
    let user_specified = spec.map(|s| s.user_specified_image.as_str()).unwrap_or_default();
    if user_specified.len() > MAX_IMAGE_NAME {
        let text = format!("config.image.user_specified_image: is longer than {MAX_IMAGE_NAME} bytes");
        return Err(Status::invalid_argument(text));
    }
    let images = &pods.node().images;
    let image = images.status(requested).ok_or_else(|| {
        let requested = plain::ends(requested, MAX_IMAGE_NAME);
        Status::not_found(format!(
            "image {requested:?} is not on this node: pull it before creating a container"
        ))
    })?;
    let user_specified = user_specified.to_owned();
    let display = if user_specified.is_empty() {
        image.repo_tags.first().cloned().unwrap_or_else(|| requested.to_owned())
    } else {
        user_specified.clone()
    };
    Ok(ImageRequest {
        requested: requested.to_owned(),
        user_specified,
        id: image.id.clone(),
        reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        display,
    })
}
