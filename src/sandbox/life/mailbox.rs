//! What may be asked of a pod, how it is answered, and what others hold of it.

use crate::images::Hold;
use crate::model::{ContainerId, ContainerSpec, Resources};
use crate::sandbox::acts::granted::Granted;
use crate::sandbox::acts::volumes;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::PodLimits;
use crate::sandbox::words::snapshot::PodSnapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// A result that several callers may get.
pub(super) type Outcome<T> = Result<T, Arc<SandboxError>>;
pub(super) type Reply<T> = oneshot::Sender<Outcome<T>>;

/// A container to be made, with what was found for it.
#[derive(Debug)]
pub(super) struct NewContainer {
    pub(super) spec: ContainerSpec,
    pub(super) hold: Arc<Hold>,
    pub(super) volumes: volumes::Holds,
    pub(super) granted: Granted,
    /// When its call has to be answered.
    pub(super) until: Instant,
}

/// What may be asked of a pod.
#[derive(Debug)]
pub(super) enum Command {
    Create { new: Box<NewContainer>, reply: Reply<ContainerId> },
    Start { id: ContainerId, reply: Reply<()> },
    Stop { id: ContainerId, grace: Duration, reply: Reply<()> },
    Remove { id: ContainerId, reply: Reply<()> },
    Update { id: ContainerId, resources: Box<Resources>, reply: Reply<()> },
    UpdatePod { limits: Box<PodLimits>, reply: Reply<()> },
    StopPod { reply: Reply<()> },
    RemovePod { reply: Reply<()> },
}

/// What others hold of a pod.
#[derive(Debug, Clone)]
pub(super) struct PodHandle {
    pub(super) mailbox: mpsc::Sender<Command>,
    pub(super) snapshots: watch::Receiver<Arc<PodSnapshot>>,
    /// The outcome of the bring-up; None while it runs.
    pub(super) up: watch::Receiver<Option<Outcome<()>>>,
}

/// Commands that may wait in a mailbox: far more than a kubelet ever has in flight for one pod.
pub(super) const MAILBOX: usize = 32;

pub(super) fn refuse<T>(error: SandboxError) -> Outcome<T> {
    Err(Arc::new(error))
}

/// Answers; a caller that went away needs none.
pub(super) fn send<T>(reply: Reply<T>, outcome: Outcome<T>) {
    let _ = reply.send(outcome);
}

pub(super) fn answer_all<T: Clone>(waiters: &mut Vec<Reply<T>>, outcome: &Outcome<T>) {
    for waiter in waiters.drain(..) {
        send(waiter, outcome.clone());
    }
}
