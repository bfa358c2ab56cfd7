//! Where things of pods and containers lie on disk.

use super::files::PodFiles;
use crate::config::Config;
use crate::model::{ContainerId, SandboxId};
use std::path::PathBuf;

/// Trees being removed. Inside the directory of the live ones, which may be a file system of its own; no container id
/// looks like this.
const TRASH: &str = ".trash";

/// The configured directories.
#[derive(Debug, Clone)]
pub struct Places {
    root: PathBuf,
    state: PathBuf,
    netns: PathBuf,
}

impl Places {
    /// As configured.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let (root, state) = (config.root.clone(), config.state.clone());
        Self { root, state, netns: config.network.netns_dir.clone() }
    }

    /// The pod's directory of this boot: socket, files, exit records.
    #[must_use]
    pub fn pod_dir(&self, id: &SandboxId) -> PathBuf {
        self.state.join("pods").join(id.as_str())
    }

    /// Bytes that containers have written to the pod's shared files. Blocking.
    #[must_use]
    pub fn written_to_pod_files(&self, id: &SandboxId) -> u64 {
        PodFiles::below(&self.pod_dir(id)).written()
    }

    /// Where the pod's monitor puts exit records.
    #[must_use]
    pub fn exit_dir(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("exits")
    }

    /// The container's bundle.
    #[must_use]
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }

    /// The container's writable layer, on disk.
    #[must_use]
    pub fn writable(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// Directory of writable layers being removed.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("containers").join(TRASH)
    }

    /// Where the pod's network namespace is pinned.
    #[must_use]
    pub fn netns(&self, id: &SandboxId) -> PathBuf {
        self.netns.join(format!("podwright-{id}"))
    }
}
