//! Errors between the daemon and a monitor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use podwright_monitor_proto::{ErrorKind, FrameError};

/// Failure of a call to a monitor, or of starting or finding one.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The binary could not be run.
    #[error("start monitor {binary:?}: {source}")]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The monitor's directory has no live monitor.
    #[error("no monitor runs in {dir:?}: {reason}")]
    NotRunning {
        /// The monitor's directory.
        dir: PathBuf,
        /// The answer found instead.
        reason: String,
    },
    /// The monitor's record is damaged.
    #[error("read monitor record {path:?}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The connection failed.
    #[error("connect to monitor in {dir:?}: {source}")]
    Connect {
        /// The monitor's directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The monitor speaks another protocol.
    #[error("monitor in {dir:?} speaks protocol {theirs}, this daemon {ours}", ours = podwright_monitor_proto::PROTOCOL_VERSION)]
    Version {
        /// The monitor's directory.
        dir: PathBuf,
        /// The monitor's version.
        theirs: u32,
    },
    /// The monitor is older than this request.
    #[error(
        "monitor of {sandbox_id} was started by an older podwright, which had no {operation}: recreate the pod"
    )]
    TooOld {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
    },
    /// The program is of another version than the daemon.
    #[error(
        "monitor {binary:?} is of an older podwright, which had no {what}: install the one of this version"
    )]
    Outdated {
        /// The binary.
        binary: PathBuf,
        /// The missing feature.
        what: &'static str,
    },
    /// No answer within the deadline.
    #[error("monitor of {sandbox_id} did not answer {operation} within {deadline:?}")]
    Unresponsive {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection ended before the answer came.
    #[error("connection to the monitor of {sandbox_id} ended during {operation}")]
    Gone {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
    },
    /// The monitor said no.
    #[error("{operation} in pod {sandbox_id}: {message}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
        /// For the program.
        kind: ErrorKind,
        /// For the reader.
        message: String,
    },
    /// The answer does not match the request.
    #[error("monitor of {sandbox_id} gave an answer to {operation} that does not fit")]
    Mismatch {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
    },
    /// The request is too large.
    #[error("encode {operation} for the monitor of {sandbox_id}: {source}")]
    Encode {
        /// The operation.
        operation: &'static str,
        /// The pod.
        sandbox_id: String,
        /// The cause.
        source: FrameError,
    },
    /// Remains of a dead monitor could not be removed.
    #[error("{operation} network namespace pin {path:?}: {source}")]
    Sweep {
        /// The operation.
        operation: &'static str,
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl MonitorError {
    /// The monitor's own reason, if it gave one.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            Self::Spawn { .. }
            | Self::NotRunning { .. }
            | Self::Record { .. }
            | Self::Connect { .. }
            | Self::Version { .. }
            | Self::TooOld { .. }
            | Self::Unresponsive { .. }
            | Self::Gone { .. }
            | Self::Mismatch { .. }
            | Self::Encode { .. }
            | Self::Outdated { .. }
            | Self::Sweep { .. } => None,
        }
    }
}
