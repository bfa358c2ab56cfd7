//! What can go wrong with checkpoints.

use crate::host::criu::CriuError;
use crate::model::ContainerId;
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
        /// What is wrong.
        why: String,
    },
    /// Another checkpoint of the container is being made.
    #[error("container {0} is being checkpointed already")]
    Busy(ContainerId),
    /// A checkpoint and the containers that were asked for do not belong together.
    #[error("checkpoint {path}: {why}")]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Its files are not those of a checkpoint.
    #[error("checkpoint {path}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A container could not be set free.
    #[error("container {id} is still frozen, a restart of podwright tries again: {why}")]
    StillFrozen {
        /// The container.
        id: ContainerId,
        /// What the OCI runtime said.
        why: String,
    },
}
