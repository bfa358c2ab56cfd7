//! How far a container's end has come, as its pod's task says it to those who wait for it.

use crate::model::ContainerSpec;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// How far a container's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Phase {
    /// Not ended.
    Alive,
    /// Its init is gone.
    Exited,
    /// The runtime's state, cgroup and mounts are gone too.
    Cleaned,
}

/// A container whose end is waited for.
#[derive(Debug)]
pub(in crate::sandbox) struct Dying {
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    pub(in crate::sandbox) phase: watch::Receiver<Phase>,
    pub(in crate::sandbox) trouble: watch::Receiver<Option<String>>,
}

impl Dying {
    /// Waits until nothing is left of its processes, or until the deadline.
    ///
    /// # Errors
    /// Why something is left; empty where nobody knows.
    pub(in crate::sandbox) async fn gone_by(&mut self, deadline: Instant) -> Result<(), String> {
        let gone = self.phase.wait_for(|phase| *phase == Phase::Cleaned);
        match tokio::time::timeout_at(deadline, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.trouble.borrow().clone().unwrap_or_default()),
        }
    }
}
