//! The moment itself: note, freeze, capture, set free. Whatever fails or panics between, the containers are set free
//! before this returns, and where even that fails a note on disk is left.

use super::changes;
use super::frozen::{Note, set_free};
use crate::host::foreign::Progress;
use crate::host::oci::Runtime;
use crate::model::{ContainerId, ContainerSpec};
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::sources::look_at;
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::IMAGES;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Most of a caller's time that is kept back for letting go of containers in order.
const RESERVE: Duration = Duration::from_secs(12);
/// How long the capture may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    until: Instant,
    /// What CRIU gets to let go in order after that.
    release: Duration,
}

impl Budget {
    /// All of it, setting free included, within `limit` from now.
    pub(super) fn within(limit: Duration) -> Self {
        let reserve = (limit / 4).min(RESERVE);
        Self { until: Instant::now() + limit - reserve, release: reserve * 3 / 4 }
    }

    fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// A container and where its checkpoint goes: a directory that is there, or that is made.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) spec: Arc<ContainerSpec>,
    /// The upper directory of its root file system.
    pub(super) upper: PathBuf,
    /// The lower ones, bottom first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) dir: PathBuf,
    /// Where on the host a request has it, if it is not our own.
    pub(super) places: Vec<PathBuf>,
}

/// Captures all of them at one moment. `made` is what a later daemon removes if this one does not come to its end.
pub(super) async fn capture(
    node: &Arc<Node>,
    runtime: &Runtime,
    subjects: &[Subject],
    made: Vec<PathBuf>,
    budget: Budget,
) -> Result<(), SandboxError> {
    let ids: Vec<ContainerId> = subjects.iter().map(|s| s.spec.id.clone()).collect();
    let (own, handler, named) = (node.clone(), runtime.name().to_owned(), ids.clone());
    let note = blocking(move |off| Note::write(off, &own, &handler, &named, made)).await?;
    let work = std::panic::AssertUnwindSafe(frozen(node, runtime, subjects, budget)).catch_unwind();
    let captured = work.await.unwrap_or(Err(SandboxError::Panicked("a checkpoint")));
    let free: Vec<_> = join_all(ids.iter().map(|id| set_free(runtime, id))).await;
    let mut errors: Vec<_> = free.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        note.remove();
    }
    if let Err(error) = captured {
        errors.insert(0, error);
    }
    SandboxError::all(errors).map_or(Ok(()), Err)
}

async fn frozen(
    node: &Node,
    runtime: &Runtime,
    subjects: &[Subject],
    budget: Budget,
) -> Result<(), SandboxError> {
    first_error(join_all(subjects.iter().map(async |s| Ok(runtime.pause(s.spec.id.as_str()).await?))).await)?;
    first_error(join_all(subjects.iter().map(|subject| one(node, runtime, subject, budget))).await)
}

async fn one(node: &Node, runtime: &Runtime, subject: &Subject, budget: Budget) -> Result<(), SandboxError> {
    let (id, dir) = (subject.spec.id.as_str(), &subject.dir);
    // On whatever file system the caller has named.
    let pod = subject.spec.sandbox_id.as_str();
    let place = || (subject.dir.clone(), subject.places.clone());
    let (made, places) = place();
    let make = move |_: Option<&Progress>| {
        std::fs::create_dir_all(&made).map_err(SandboxError::io("make directory", &made))
    };
    look_at(node, pod, places, budget.left(), make).await?;
    runtime.checkpoint(id, &dir.join(IMAGES), dir, budget.left(), budget.release).await?;
    let (upper, layers, (dir, places)) = (subject.upper.clone(), subject.layers.clone(), place());
    let until = budget.until.into_std();
    let write = move |progress: Option<&Progress>| {
        progress.into_iter().for_each(Progress::works);
        changes::write(&upper, &layers, &dir, until, progress)
    };
    look_at(node, pod, places, budget.left(), write).await
}

fn first_error(results: Vec<Result<(), SandboxError>>) -> Result<(), SandboxError> {
    let errors = results.into_iter().filter_map(Result::err).collect();
    SandboxError::all(errors).map_or(Ok(()), Err)
}
