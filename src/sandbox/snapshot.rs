//! What readers see of a pod: immutable pictures, published after each step, so that List and Status never wait for
//! a stop or a plugin.

use super::record::PodLimits;
use super::state::{ContainerState, SandboxState};
use crate::host::monitor::Monitor;
use crate::host::oci::Runtime;
use crate::host::users::User;
use crate::model::{ContainerId, ContainerSpec, Resources, SandboxSpec};
use std::sync::Arc;

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodSnapshot {
    /// What was asked.
    pub spec: Arc<SandboxSpec>,
    /// Its state.
    pub state: SandboxState,
    /// Its monitor while it has one.
    pub monitor: Option<Monitor>,
    /// Limits of its cgroup, once they have been changed.
    pub limits: Option<PodLimits>,
    /// The OCI runtime of its containers.
    pub runtime: Arc<Runtime>,
    /// Containers that are listed.
    pub containers: Vec<Arc<ContainerSnapshot>>,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerSnapshot {
    /// What was asked.
    pub spec: Arc<ContainerSpec>,
    /// Its state.
    pub state: ContainerState,
    /// Limits in force.
    pub resources: Resources,
    /// The user that its init runs as; None before the bundle was made.
    pub user: Option<User>,
}

impl PodSnapshot {
    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerSnapshot>> {
        self.containers.iter().find(|c| c.spec.id == *id)
    }

    /// Limits of its cgroup: the last that were told.
    #[must_use]
    pub fn limits(&self) -> PodLimits {
        self.limits.clone().unwrap_or_else(|| PodLimits {
            overhead: self.spec.overhead.clone(),
            resources: self.spec.resources.clone(),
        })
    }

    /// Whether the sandbox is listed: one that is being brought up is not.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.state != SandboxState::Preparing
    }
}
