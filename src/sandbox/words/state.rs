//! The states of a sandbox and of a container, as values with their data. Owns no behaviour: `machine` has the
//! admission, `pod` the actions.
//!
//! ```text
//! sandbox:    Preparing --> Ready --> NotReady{Held} --> NotReady{Released} --> gone
//!                 '------------------------^
//! container:  Creating --> Created --> Starting --> Running --> Exited --> gone
//!                             '-----------------------------------^  (start failed, monitor lost)
//! ```

use crate::host::network::PodNetwork;
use crate::model::Timestamp;
use podwright_monitor_proto::ExitRecord;
use serde::Serialize;

/// A sandbox's state.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SandboxState {
    /// Being brought up; anything may exist already. Not listed.
    Preparing,
    /// Namespaces held, network attached.
    Ready {
        /// Its addresses; None for the host's network.
        network: Option<PodNetwork>,
    },
    /// No container can start in it.
    NotReady {
        /// Why.
        why: NotReadyCause,
        /// What may still have to be released.
        resources: Holdings,
    },
}

/// Why a sandbox is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotReadyCause {
    /// StopPodSandbox.
    Stopped,
    /// Its bring-up failed and could not be undone.
    BringUpFailed(String),
    /// The daemon died while it was brought up.
    Interrupted,
    /// The monitor is gone.
    MonitorLost,
    /// The machine was restarted.
    Rebooted,
}

/// What a sandbox that is not ready still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holdings {
    /// Network, monitor or mounts may exist: tear-down is due.
    Held,
    /// Everything was given back.
    Released,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    /// The bundle is in preparation. Not listed; undone after a crash.
    Creating,
    /// The bundle is ready; no process yet.
    Created,
    /// The OCI runtime is starting it.
    Starting,
    /// Its init process runs.
    Running {
        /// The init process.
        init: Init,
        /// When the runtime reported it started.
        since: Timestamp,
    },
    /// Its init process ended, or never started.
    Exited {
        /// When it had started; None: never.
        started_at: Option<Timestamp>,
        /// How it ended.
        exit: Exit,
    },
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Init {
    /// Pid in the host's namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (/proc/pid/stat field 22).
    pub start_time: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exit {
    /// Exit status, or 128 plus the signal's number.
    pub code: i32,
    /// CRI reason.
    pub reason: ExitReason,
    /// Readable; empty if the code is enough.
    pub message: String,
    /// When.
    pub finished_at: Timestamp,
    /// The source, so that a guess never passes for knowledge.
    pub source: ExitSource,
}

/// CRI's ContainerStatus.reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Exit 0.
    Completed,
    /// Any other exit.
    Error,
    /// The kernel's OOM killer ended it.
    OomKilled,
    /// It never ran.
    StartError,
    /// Unobserved.
    Unknown,
}

impl ExitReason {
    /// The text that kubelet and users know from containerd and CRI-O.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// Where an exit is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitSource {
    /// The monitor reaped it.
    Monitor,
    /// The OCI runtime failed to start it.
    Runtime,
    /// Assumed: its monitor is gone.
    Assumed,
}

/// Exit code of a container that never started (containerd's `errorStartExitCode`).
const START_ERROR_CODE: i32 = 128;
/// Exit code of a container with an unobserved end (as in containerd and CRI-O).
const UNKNOWN_CODE: i32 = 255;

impl Exit {
    /// From the monitor's record.
    #[must_use]
    pub fn from_record(record: &ExitRecord) -> Self {
        let reason = match (record.exit_code, record.oom_killed) {
            (_, true) => ExitReason::OomKilled,
            (0, false) => ExitReason::Completed,
            (_, false) => ExitReason::Error,
        };
        Self {
            code: record.exit_code,
            reason,
            message: String::new(),
            finished_at: Timestamp(record.finished_at_ns),
            source: ExitSource::Monitor,
        }
    }

    /// A start that failed.
    #[must_use]
    pub fn start_error(message: String, at: Timestamp) -> Self {
        Self {
            code: START_ERROR_CODE,
            reason: ExitReason::StartError,
            message,
            finished_at: at,
            source: ExitSource::Runtime,
        }
    }

    /// An unobserved end.
    #[must_use]
    pub fn unknown(message: &str, at: Timestamp) -> Self {
        Self {
            code: UNKNOWN_CODE,
            reason: ExitReason::Unknown,
            message: message.to_owned(),
            finished_at: at,
            source: ExitSource::Assumed,
        }
    }
}

impl ContainerState {
    /// The word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }

    /// Whether a process of it may exist.
    #[must_use]
    pub fn may_have_process(&self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } => true,
            Self::Creating | Self::Created | Self::Exited { .. } => false,
        }
    }
}

impl SandboxState {
    /// The word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "being prepared",
            Self::Ready { .. } => "ready",
            Self::NotReady { .. } => "not ready",
        }
    }
}
