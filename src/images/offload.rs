//! The way from async tasks to work that blocks.

use super::error::ImageError;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

/// Loads, exports and imports at once. Each has a thread of its own: the administrator's archive may lie on a file system
/// that hangs, and a thread that waits for one is lost. A few are more than one person starts by hand.
const ARCHIVES: usize = 8;

/// Threads for work on archives outside the store.
#[derive(Debug)]
pub(super) struct Archives(Arc<Semaphore>);

impl Default for Archives {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ARCHIVES)))
    }
}

/// Runs blocking work on tokio's blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ImageError::Interrupted { what: "work on the image store".into() }))
}

impl Archives {
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits()
    }

    /// Runs blocking work on a thread of its own. Work whose caller left goes on, and counts.
    ///
    /// # Errors
    /// The work's; [`ImageError::Busy`] while [`ARCHIVES`] others are under way.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let Ok(permit) = self.0.clone().try_acquire_owned() else {
            return Err(ImageError::Busy { archive: path.display().to_string(), at_once: ARCHIVES });
        };
        let (tell, told) = oneshot::channel();
        let body = move || {
            let result = work();
            drop(permit);
            // An error: the caller left.
            let _ = tell.send(result);
        };
        let started = std::thread::Builder::new().name("archive".to_owned()).spawn(body);
        started.map_err(|e| ImageError::io("start a thread for", path, e))?;
        told.await
            .unwrap_or_else(|_| Err(ImageError::Interrupted { what: format!("work on {}", path.display()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn archives_that_hang_take_no_thread_of_the_pool_and_are_few() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(hang());
    }

    async fn hang() {
        let archives = Arc::new(Archives::default());
        let (mut hung, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..ARCHIVES {
            let (end, ended) = channel::<()>();
            let archives = archives.clone();
            hung.push(tokio::spawn(async move {
                archives.run(Path::new("/dead"), move || Ok(ended.recv().is_err())).await
            }));
            ends.push(end);
        }
        while archives.left() > 0 {
            tokio::task::yield_now().await;
        }
        let one_more = archives.run(Path::new("/x"), || Ok(())).await.unwrap_err().to_string();
        assert!(one_more.contains("/x") && one_more.contains('8'), "{one_more}");
        blocking(|| Ok(())).await.unwrap();
        ends.clear();
        for one in hung {
            assert!(one.await.unwrap().unwrap());
        }
        archives.run(Path::new("/x"), || Ok(())).await.unwrap();
    }
}
