//! Why a command failed.

use crate::config::ConfigError;
use crate::sandbox::RecordError;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The service's error; its messages name thing, operation and cause.
    #[error("{}", .0.message())]
    Answer(tonic::Status),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket is there, but.
    #[error("connect to the daemon at {socket}: {source}")]
    Connect {
        /// Socket.
        socket: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Nothing listens on the socket.
    #[error("no daemon answers at {socket}: it does not run, or serves another socket (--socket, --config)")]
    NotRunning {
        /// Socket.
        socket: PathBuf,
    },
    /// No daemon answers, and another process has the store.
    #[error("no daemon answers at {socket}, and the store cannot be used without one: {reason}")]
    Store {
        /// Socket.
        socket: PathBuf,
        /// Cause.
        reason: String,
    },
    /// Without the daemon nothing else knows what containers need.
    #[error(
        "nothing is deleted while the daemon is down, for it is not known which images containers use: {0}"
    )]
    Records(RecordError),
    /// Something that should be read.
    #[error("read {what}: {reason}")]
    Input {
        /// A path, or standard input.
        what: String,
        /// Cause.
        reason: String,
    },
    /// A place that cannot be written.
    #[error("write {what}: {reason}")]
    Output {
        /// A path, or standard output.
        what: String,
        /// Cause.
        reason: String,
    },
    /// Credentials.
    #[error("credentials: {0}")]
    Credentials(String),
    /// The service ended the answer early.
    #[error("the daemon ended the call without a result")]
    NoResult,
    /// Something failed and was reported.
    #[error("failed")]
    Told,
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        Self::Answer(status)
    }
}
