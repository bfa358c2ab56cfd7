//! The only way to work that blocks: threads that may wait for a disk.

use super::words::error::SandboxError;

/// Runs file-system work off the async threads.
pub(in crate::sandbox) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(SandboxError::Panicked("work on the file system")),
        Err(_) => Err(SandboxError::ShuttingDown),
    }
}

/// Runs short work on our own file systems on the caller's thread. A disk can be frozen for a snapshot, or stall: then
/// only the caller waits, and its thread's other work moves elsewhere.
pub(in crate::sandbox) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
