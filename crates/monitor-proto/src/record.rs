//! Records on disk.

use serde::{Deserialize, Serialize};

/// File name of [`MonitorRecord`] in the monitor's directory.
pub const MONITOR_RECORD: &str = "monitor.json";

/// File name of the monitor's socket in its directory.
pub const MONITOR_SOCKET: &str = "monitor.sock";

/// A process, named for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

/// Paths of the pod's namespaces for an OCI runtime; `None` where the pod has none of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePaths {
    /// Pinned by a bind mount: outlives the monitor.
    #[serde(default)]
    pub net: Option<String>,
    /// Below the monitor's procfs directory: lives as long as the monitor.
    #[serde(default)]
    pub ipc: Option<String>,
    /// As `ipc`.
    #[serde(default)]
    pub uts: Option<String>,
    /// Below the procfs directory of the pod's own PID 1.
    #[serde(default)]
    pub pid: Option<String>,
    /// As `ipc`; owns the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `monitor.json`: written once, when the monitor is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorRecord {
    /// [`crate::RECORD_VERSION`].
    pub version: u32,
    /// Protocol that the monitor speaks.
    pub protocol: u32,
    /// [`crate::PROTOCOL_REVISION`]; 0 for monitors older than revisions.
    #[serde(default)]
    pub revision: u32,
    /// The pod.
    pub sandbox_id: String,
    /// The monitor.
    pub process: ProcessId,
    /// Boot in which all of this is true.
    pub boot_id: String,
    /// The pod's namespaces.
    pub namespaces: NamespacePaths,
    /// PID 1 of a shared pid namespace.
    #[serde(default)]
    pub init: Option<ProcessId>,
}

/// `<exit_dir>/<container id>.json`: written before the exit is reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`crate::RECORD_VERSION`].
    pub version: u32,
    /// The container.
    pub container_id: String,
    /// Its init process.
    pub pid: u32,
    /// 0 to 255; 128 + n for signal n; 255 when the status could not be learned.
    pub exit_code: i32,
    /// Signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel killed some process of the container's memory cgroup for lack of memory, perhaps only a child:
    /// `signal` shows whether it caused the exit.
    #[serde(default)]
    pub oom_killed: bool,
    /// When the process was reaped, in nanoseconds since 1970 UTC.
    pub finished_at_ns: i64,
}
