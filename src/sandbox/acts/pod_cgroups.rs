//! The cgroups of pods and containers: where they are, by the pod's parent or the default one.

use crate::host::cgroups::{self, Cgroups, Driver, Leaf};
use crate::model::{ContainerId, NamespaceMode, SandboxSpec};
use crate::sandbox::offload::behind;
use crate::sandbox::words::error::SandboxError;
use std::path::PathBuf;

/// The hierarchies and what is configured of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PodCgroups {
    /// The kernel's side.
    pub kernel: Cgroups,
    /// The cgroup driver.
    pub driver: Driver,
    /// The cgroup parent of pods that name none.
    pub default_parent: String,
}

impl PodCgroups {
    /// The container's cgroup, below its pod's.
    ///
    /// # Errors
    /// When the pod's parent is malformed.
    pub fn leaf(&self, pod: &SandboxSpec, id: &ContainerId) -> Result<Leaf, SandboxError> {
        Ok(cgroups::leaf(self.cgroup_parent(pod), id)?)
    }

    /// The cgroup of the pod's own process 1, below the pod's; none if the pod has no such process.
    ///
    /// # Errors
    /// As [`Self::leaf`].
    pub fn init_leaf(&self, pod: &SandboxSpec) -> Result<Option<Leaf>, SandboxError> {
        let shares = pod.namespaces.pid == NamespaceMode::Pod;
        Ok(shares.then(|| cgroups::init_leaf(self.cgroup_parent(pod), &pod.id)).transpose()?)
    }

    /// The pod's own cgroup, the parent of its containers' cgroups.
    ///
    /// # Errors
    /// As [`Self::leaf`].
    pub fn pod_cgroup(&self, pod: &SandboxSpec) -> Result<PathBuf, SandboxError> {
        Ok(cgroups::parent_path(self.cgroup_parent(pod))?)
    }

    fn cgroup_parent<'a>(&'a self, pod: &'a SandboxSpec) -> &'a str {
        if pod.cgroup_parent.is_empty() { &self.default_parent } else { &pod.cgroup_parent }
    }

    /// Call it as soon as the OCI runtime is sure to put a process into a cgroup. Returns at once.
    pub(in crate::sandbox) fn expect_moves(&self) {
        let cgroups = self.kernel.clone();
        behind(move |_| cgroups.hasten_moves());
    }
}
