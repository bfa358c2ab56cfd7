//! The way from async tasks to work that waits for a disk, a mount, a cgroup or a clock. Such work takes an [`OffThread`],
//! which only this module makes: it does not compile on a thread that others need.

use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Shows that the thread may wait: nobody else's work waits with it. It cannot be sent to another thread, and so is not
/// held over an await.
#[derive(Debug)]
pub struct OffThread(PhantomData<*const ()>);

/// Why work off the async threads has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// It panicked.
    Panicked,
    /// The daemon ends.
    ShuttingDown,
}

/// Does `work` on a thread of the pool for such work. It goes on when the caller goes away.
///
/// # Errors
/// When it panics, or the daemon ends.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce(&OffThread) -> T + Send + 'static,
) -> Result<T, Unfinished> {
    match tokio::task::spawn_blocking(move || work(&OffThread(PhantomData))).await {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => Err(Unfinished::Panicked),
        Err(_) => Err(Unfinished::ShuttingDown),
    }
}

/// As [`run`], for work whose end nobody waits for.
pub fn behind(work: impl FnOnce(&OffThread) + Send + 'static) {
    drop(tokio::task::spawn_blocking(move || work(&OffThread(PhantomData))));
}

/// Does `work` on this thread, and has another one take over what else it would have done. For what cannot await: drops,
/// programs, tests.
pub fn in_place<T>(work: impl FnOnce(&OffThread) -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let work = || work(&OffThread(PhantomData));
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Waits for the end of a process by its handle (`podwright_sys::pidfd`), which takes no thread.
///
/// # Errors
/// When the handle cannot be watched.
pub async fn ended(process: OwnedFd) -> io::Result<()> {
    // The flaw is that of types that change their descriptor while registered; an OwnedFd cannot.
    #[expect(deprecated, reason = "its replacement is unsafe, and sound here for the same reason as this")]
    let process = AsyncFd::new(process)?;
    process.readable().await.map(drop)
}

#[cfg(test)]
pub(crate) fn here() -> OffThread {
    OffThread(PhantomData)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_in_place_holds_up_nobody_else() {
        let (go, gone) = mpsc::channel();
        let waits = tokio::spawn(async move { in_place(|_| gone.recv()) });
        // On the only worker there is.
        tokio::spawn(async move { go.send(()).unwrap() }).await.unwrap();
        waits.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_has_an_end() {
        assert_eq!(run(|_| 1).await, Ok(1));
        assert_eq!(run(|_| -> u8 { panic!("on purpose") }).await, Err(Unfinished::Panicked));
    }
}
