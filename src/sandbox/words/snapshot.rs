//! What readers see of a pod: immutable snapshots, published after each step, so that List and Status never wait for a
//! stop or a plugin.

use super::record::PodLimits;
use super::state::{ContainerState, SandboxState};
use crate::host::monitor::Monitor;
use crate::host::oci::Runtime;
use crate::host::users::User;
use crate::model::{ContainerId, ContainerSpec, Resources, SandboxSpec};
use std::sync::{Arc, OnceLock};

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodSnapshot {
    /// The request.
    pub spec: Arc<SandboxSpec>,
    /// Its state.
    pub state: SandboxState,
    /// Its monitor, if it has one.
    pub monitor: Option<Monitor>,
    /// Limits of its cgroup, once they have been changed.
    pub limits: Option<PodLimits>,
    /// The OCI runtime of its containers.
    pub runtime: Arc<Runtime>,
    /// Containers that are listed.
    pub containers: Vec<Arc<ContainerSnapshot>>,
    /// The cached list entry.
    pub list_entry: Encoded,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerSnapshot {
    /// The request.
    pub spec: Arc<ContainerSpec>,
    /// Its state.
    pub state: ContainerState,
    /// Limits in force.
    pub resources: Resources,
    /// The user of its init; None before the bundle was made.
    pub user: Option<User>,
    /// Its record cannot be read: its state is `Unknown` to callers, and what the request said may be defaults.
    pub unread: bool,
    /// The cached list entry.
    pub list_entry: Encoded,
}

/// Bytes derived from a snapshot by a reader, cached. A copy of the snapshot begins without: it may be changed.
#[derive(Debug, Default)]
pub struct Encoded(OnceLock<Box<[u8]>>);

impl Clone for Encoded {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Encoded {
    /// The bytes; the first call creates them.
    pub fn get_or_make(&self, make: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.get_or_init(|| make().into())
    }
}

impl PodSnapshot {
    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerSnapshot>> {
        self.containers.iter().find(|c| c.spec.id == *id)
    }

    /// The last known limits of its cgroup.
    #[must_use]
    pub fn limits(&self) -> PodLimits {
        self.limits.clone().unwrap_or_else(|| PodLimits {
            overhead: self.spec.overhead.clone(),
            resources: self.spec.resources.clone(),
        })
    }

    /// Whether the sandbox is listed: not during bring-up.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.state != SandboxState::Preparing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_made_once_and_a_copy_makes_its_own() {
        let encoded = Encoded::default();
        assert_eq!(encoded.get_or_make(|| vec![1]), [1]);
        assert_eq!(encoded.get_or_make(|| panic!("again")), [1]);
        assert_eq!(encoded.clone().get_or_make(|| vec![2]), [2]);
    }
}
