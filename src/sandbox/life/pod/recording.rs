//! What a pod's task writes down, and what becomes of it when the disk refuses. A state that promises something to a caller
//! is written before the answer, or the call fails ([`Pod::record_container`]); what has happened by itself cannot be
//! refused, and is written again until it is on disk.

use super::{Finished, Pod};
use crate::model::ContainerId;
use crate::sandbox::words::record::{PodState, RecordError};
use crate::sandbox::words::state::{ContainerState, SandboxState};
use std::collections::BTreeSet;
use std::time::Duration;

/// First pause before a record that could not be written is tried again; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a disk that has room again is noticed within it, and a write costs little.
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// Records that are older on disk than in memory.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pod: bool,
    containers: BTreeSet<ContainerId>,
    /// The pause that runs now.
    pause: Option<Duration>,
}

impl Pod {
    pub(in crate::sandbox) fn record(&self) -> PodState {
        let process = self.monitor.as_ref().map(|monitor| monitor.info().process).or(self.process);
        PodState { sandbox: self.state.clone(), limits: self.limits.clone(), monitor: process }
    }

    /// Changes the sandbox's state, and sees to it that the record follows.
    pub(super) fn set_state(&mut self, state: SandboxState) {
        self.state = state;
        if let Err(error) = self.record_sandbox() {
            // Log: Writing below `root` failed. The state in memory is right, and is written as soon as the disk lets it.
            // Do: Free the disk, or mount it writable.
            tracing::error!(sandbox = %self.spec.id, %error, "cannot record a sandbox's state yet");
            self.unwritten.pod = true;
            self.record_later();
        }
        self.publish();
    }

    pub(super) fn record_sandbox(&self) -> Result<(), RecordError> {
        self.node.records.write_pod_state(&self.spec.id, &self.record())
    }

    /// Changes a container's state, and sees to it that the record follows.
    pub(super) fn set_container_state(&mut self, id: &ContainerId, state: ContainerState) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.state = state;
        if let Err(error) = self.record_container(id) {
            // Log: Writing below `root` failed. The state in memory is right, and is written as soon as the disk lets it.
            // Do: Free the disk, or mount it writable.
            tracing::error!(container = %id, %error, "cannot record a container's state yet");
            self.unwritten.containers.insert(id.clone());
            self.record_later();
        }
        self.publish();
    }

    /// Changes a container's state if that can be recorded; else all is as before.
    pub(super) fn promise(&mut self, id: &ContainerId, state: ContainerState) -> Result<(), RecordError> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let before = std::mem::replace(&mut container.state, state);
        let recorded = self.record_container(id);
        if let (Err(_), Some(container)) = (&recorded, self.containers.get_mut(id)) {
            container.state = before;
        }
        self.publish();
        recorded
    }

    fn record_container(&mut self, id: &ContainerId) -> Result<(), RecordError> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        self.node.records.write_container_state(&self.spec.id, id, &container.record())?;
        self.unwritten.containers.remove(id);
        Ok(())
    }

    fn record_later(&mut self) {
        if self.unwritten.pause.is_some() {
            return;
        }
        self.wait_to_record(FIRST_PAUSE);
    }

    fn wait_to_record(&mut self, pause: Duration) {
        self.unwritten.pause = Some(pause);
        self.work(Finished::RecordDue, async move {
            tokio::time::sleep(pause).await;
            Finished::RecordDue
        });
    }

    pub(super) fn record_again(&mut self) {
        let Some(pause) = self.unwritten.pause.take() else { return };
        if self.unwritten.pod && self.record_sandbox().is_ok() {
            self.unwritten.pod = false;
        }
        for id in std::mem::take(&mut self.unwritten.containers) {
            if self.record_container(&id).is_err() {
                self.unwritten.containers.insert(id);
            }
        }
        if self.unwritten.pod || !self.unwritten.containers.is_empty() {
            return self.wait_to_record((pause * 2).min(LAST_PAUSE));
        }
        // Log: The disk takes writes again.
        tracing::info!(sandbox = %self.spec.id, "records that could not be written are written");
    }
}
