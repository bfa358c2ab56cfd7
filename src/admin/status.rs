//! Errors of images to gRPC statuses.

use crate::cri::image_status;
use crate::images::ImageError;
use crate::model::plain;
use tonic::Status;

/// The CRI code with the plain message, without the kubelet's prefix.
pub(super) fn status(error: &ImageError) -> Status {
    Status::new(image_status(error).code(), plain::one_line(&error.to_string()))
}
