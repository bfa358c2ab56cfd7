//! Errors of checkpoints.

use crate::host::criu::CriuError;
use crate::host::monitor::MonitorError;
use crate::images::ImageError;
use crate::model::{ContainerId, ImageId};
use std::path::PathBuf;

/// An error of a checkpoint or a restore.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// Something of the request cannot be.
    #[error("{field}: {why}")]
    Request {
        /// Its name.
        field: &'static str,
        /// The fault.
        why: String,
    },
    /// Another checkpoint of the container is in progress.
    #[error("container {0} is being checkpointed already")]
    Busy(ContainerId),
    /// The checkpoint and the requested containers do not match.
    #[error("checkpoint {path}: {why}")]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// The mismatch.
        why: String,
    },
    /// Its files are not those of a checkpoint.
    #[error("checkpoint {path}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The fault.
        why: String,
    },
    /// There is no room for its files.
    #[error("checkpoint {path} needs {bytes} bytes, {free} are free")]
    NoRoom {
        /// The checkpoint.
        path: PathBuf,
        /// Size of its files.
        bytes: u64,
        /// Free space of the disk.
        free: u64,
    },
    /// The image of its container is not here.
    #[error(
        "the checkpointed container was of image {image}, which is not on this node and cannot be pulled; pull it first: {cause}"
    )]
    Image {
        /// How the checkpoint calls it.
        image: String,
        /// The pull's error.
        cause: Box<ImageError>,
    },
    /// It could not be continued.
    #[error("{error}: {said}")]
    Start {
        /// The monitor's error.
        error: Box<MonitorError>,
        /// The cause in CRIU's log.
        said: String,
    },
    /// Images are not to be restored.
    #[error("image {0} is a checkpoint, and restoring those is switched off (runtime.restore_images)")]
    ImagesOff(ImageId),
    /// A container could not be set free.
    #[error("container {id} is still frozen, a restart of podwright tries again: {why}")]
    StillFrozen {
        /// The container.
        id: ContainerId,
        /// The OCI runtime's error.
        why: String,
    },
}
