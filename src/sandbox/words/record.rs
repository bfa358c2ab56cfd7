//! Records as values: what is written of pods and containers, and what is read back. `acts::records` has the files.

use super::state::{ContainerState, SandboxState};
use crate::host::users::User;
use crate::model::{ContainerSpec, Resources, SandboxSpec};
use podwright_monitor_proto::ProcessId;
use serde::Serialize;
use std::collections::HashSet;
use std::path::PathBuf;

/// Version of every record; raised when a reader of the old one would misread the new one.
pub(in crate::sandbox) const VERSION: u32 = 1;

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("{operation} record {path}: {source}")]
    Io {
        /// write, read, remove.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a record.
    #[error("record {path} is not readable: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A newer daemon wrote it.
    #[error("record {path} has version {found}, this daemon reads up to {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// A pod's state record.
#[derive(Debug, Clone, PartialEq)]
pub struct PodState {
    /// The sandbox's state.
    pub sandbox: SandboxState,
    /// Its limits after a change; None: the requested ones.
    pub limits: Option<PodLimits>,
    /// Its monitor, for when the monitor's own directory is lost: what this process is or is not proves more than files do.
    /// None: there is none yet, or the record is from before this was noted.
    pub monitor: Option<ProcessId>,
}

/// The limits of a pod's own cgroup, and the part of them for the runtime itself. For people and for OCI runtimes with
/// virtual machines: we write no pod's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PodLimits {
    /// Of the pod's RuntimeClass.
    pub overhead: Option<Resources>,
    /// The sum over its containers.
    pub resources: Option<Resources>,
}

/// A container's state record.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRecord {
    /// Its state.
    pub container: ContainerState,
    /// The limits in force.
    pub resources: Resources,
    /// The user that its image and request resolved to; None before the bundle was made.
    pub user: Option<User>,
}

impl ContainerRecord {
    /// For a container whose state cannot be read: it may run, and the reader must find out.
    pub(in crate::sandbox) fn unknown(spec: &ContainerSpec) -> Self {
        Self { container: ContainerState::Starting, resources: spec.resources.clone(), user: None }
    }
}

/// Everything known of a pod from disk.
#[derive(Debug)]
pub struct StoredPod {
    /// Its spec.
    pub spec: SandboxSpec,
    /// Its state; None: the daemon died before it was written.
    pub state: Option<PodState>,
    /// Whether the state is of this boot.
    pub this_boot: bool,
    /// Its containers, those whose records cannot be read among them.
    pub containers: Vec<StoredContainer>,
}

/// What was found on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Those that can be read.
    pub pods: Vec<StoredPod>,
    /// Ids of pods that cannot, and of their containers.
    pub unread: HashSet<String>,
    /// What is wrong with them.
    pub broken: Vec<RecordError>,
}

/// Everything known of a container from disk.
#[derive(Debug)]
pub struct StoredContainer {
    /// Its spec.
    pub spec: ContainerSpec,
    /// Its state; None: the daemon died before it was written.
    pub state: Option<ContainerRecord>,
    /// A part of its record cannot be read: that is left as it is, and defaults stand for it here.
    pub unread: bool,
}
