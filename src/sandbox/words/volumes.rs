//! Images as volumes, in words: why an image cannot be one, and which images a request names.

use crate::host::rootfs::RootfsError;
use crate::images::ImageError;
use crate::model::{ContainerSpec, ImageId, MountSource};
use std::path::PathBuf;

/// Why an image cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It was to be written to.
    #[error("readonly is not set, and an image can only be mounted read-only")]
    Writable,
    /// It is not there, or its name cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its layers were lost.
    #[error("the image is not held any more")]
    NotHeld,
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] RootfsError),
    /// Nothing is there in the image.
    #[error("sub path {sub_path:?} is not in the image: {source}")]
    SubPath {
        /// As asked.
        sub_path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file, which Kubernetes does not define as a volume and both peers refuse.
    #[error("sub path {sub_path:?} is not a directory of the image")]
    NotDirectory {
        /// As asked.
        sub_path: String,
    },
    /// A directory of the bundle.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// The images that a container's volumes are, each once.
pub(in crate::sandbox) fn image_ids(spec: &ContainerSpec) -> Vec<&ImageId> {
    let mut ids: Vec<&ImageId> = Vec::new();
    for mount in &spec.mounts {
        if let MountSource::Image(volume) = &mount.source
            && let Some(resolved) = &volume.resolved
            && !ids.contains(&&resolved.id)
        {
            ids.push(&resolved.id);
        }
    }
    ids
}
