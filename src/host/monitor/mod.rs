//! The daemon's side of a pod's monitor: starting one, finding one again, and talking to it.
//!
//! Owns the connection and its one task. Never owns anything that a container needs: when the daemon dies, the
//! connection closes and the pod does not notice. Every call has a deadline; a monitor that does not answer
//! ([`MonitorError::Unresponsive`]) delays only its caller.

mod binary;
mod calls;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod launch;
mod session;
mod sweep;

use tokio::sync::mpsc;

pub use binary::{BinaryError, binary};
pub use calls::{ExecRequest, Listing, Monitor, SignalOutcome};
pub use error::MonitorError;
pub use launch::{LaunchRequest, adopt, find, launch};
pub use podwright_monitor_proto::{
    ContainerState, ContainerStatus, ErrorKind, ExecStatus, ExecStdio as StdioFlags, ExitRecord, IdMappings,
    IdRange, MonitorRecord as MonitorInfo, NamespacePaths, NamespaceRequest, ProcessId,
    Restore as RestoreRequest, Run as RunRequest, Runtime, SessionEnd, Target,
};
pub use session::{Leash, Session};
pub use sweep::{kill, kill_process, sweep};

/// Unsolicited messages of a monitor. In order; nothing follows [`MonitorEvent::Gone`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorEvent {
    /// A container's init is gone, its output is in its log, its exit record is on disk.
    ContainerExited {
        /// The container.
        container_id: String,
        /// As on disk.
        exit: ExitRecord,
    },
    /// Output of a container was written to no log.
    LogLost {
        /// The container.
        container_id: String,
        /// Since the last such event.
        bytes: u64,
        /// What the kernel said to the monitor.
        reason: String,
    },
    /// The connection ended: the monitor is dead, or more events waited than are kept. [`adopt`] finds out which, and
    /// [`Monitor::list`] what was missed.
    Gone,
}

/// Events of one pod, bounded.
pub type Events = mpsc::Receiver<MonitorEvent>;
