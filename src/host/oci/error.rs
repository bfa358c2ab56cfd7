//! Errors of an OCI runtime.

use crate::host::command::CommandError;
use std::path::PathBuf;

/// An error of an OCI runtime.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The program is not there.
    #[error(
        "OCI runtime of handler {runtime:?}: {path:?} is not there: install it, or set runtime.handlers.{runtime}.path"
    )]
    Missing {
        /// Handler.
        runtime: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It said no.
    #[error("{runtime} {verb} {id}: {message}")]
    Failed {
        /// Handler.
        runtime: String,
        /// Subcommand.
        verb: &'static str,
        /// Container.
        id: String,
        /// Its own words.
        message: String,
    },
    /// It has no such command.
    #[error("{runtime} {verb} {id}: the OCI runtime {runtime} has no command {verb}")]
    NoCommand {
        /// Handler.
        runtime: String,
        /// Subcommand.
        verb: &'static str,
        /// Container.
        id: String,
    },
    /// It could not be run, or took too long.
    #[error("{runtime} {verb} {id}: {error}")]
    Command {
        /// Handler.
        runtime: String,
        /// Subcommand.
        verb: &'static str,
        /// Container.
        id: String,
        /// The cause.
        error: Box<CommandError>,
    },
    /// None of those that may be the default works here.
    #[error(
        "no OCI runtime works on this node; install crun or runc, or set runtime.default. Tried: {tried}"
    )]
    NoneWorks {
        /// Each with its message.
        tried: String,
    },
    /// The probe's bundle could not be created.
    #[error("make or remove the start-up probe's bundle {path}: {source}")]
    Probe {
        /// The bundle.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
