//! The only way of pods' tasks and acts to work that blocks (`host::offload`), with the errors of this layer.

use super::words::error::SandboxError;
use crate::host::offload::{self, Unfinished};
pub(in crate::sandbox) use crate::host::offload::{OffThread, behind, ended, in_place};

/// Does work on the file system off the async threads.
pub(in crate::sandbox) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&OffThread) -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    offload::run(work).await.unwrap_or_else(|unfinished| {
        Err(match unfinished {
            Unfinished::Panicked => SandboxError::Panicked("work on the file system"),
            Unfinished::ShuttingDown => SandboxError::ShuttingDown,
        })
    })
}
