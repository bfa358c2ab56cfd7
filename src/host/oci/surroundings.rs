//! What OCI runtimes are run in, as far as the node decides it.

use std::path::{Path, PathBuf};

/// Gives the `cgroupsPath` of a container by its name.
pub(super) type CgroupPath<'a> = &'a (dyn Fn(&str) -> PathBuf + Sync);

/// Directories for the runtimes.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Parent of the runtimes' state directories.
    pub state: &'a Path,
    /// Whether systemd creates cgroups.
    pub systemd: bool,
    /// The `cgroupsPath` of the container that the start-up probe runs, by its name.
    pub probe_cgroup: CgroupPath<'a>,
    /// Kills and removes what is left in that cgroup after a probe that failed. Blocking.
    pub clear_cgroup: &'a (dyn Fn(&str) + Sync),
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("state", &self.state).finish_non_exhaustive()
    }
}
