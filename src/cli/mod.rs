//! `podwright images …`, `status` and `pods`: thin clients of the admin services. Results go to standard output, all
//! else to standard error. Decides nothing.

mod arguments;
pub mod check;
mod collect;
mod connection;
mod credentials;
mod endpoints;
mod error;
mod export;
mod import;
mod list;
mod load;
mod log;
mod meter;
mod node;
mod out;
mod pull;
mod remove;
mod text;
mod verify;

pub use arguments::{Arguments, NodeArguments};
pub use log::OneLine;

use arguments::Command;
use connection::{Connection, Purpose};
use error::CliError;
use std::process::ExitCode;

/// The shell's exit code for a program ended by SIGINT.
const INTERRUPTED: u8 = 130;

/// The exit code of init scripts and `systemctl status` for a service that does not run (LSB).
const NOT_RUNNING: u8 = 3;

/// Runs one command on images and returns the exit code: 0; 1, something failed; 130, interrupted. (2, wrong usage, is
/// the argument parser's.)
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    to_the_end(command(arguments))
}

/// Shows the daemon's state. Exit codes as of [`run`], and 3 when no daemon runs.
#[must_use]
pub fn status(arguments: NodeArguments) -> ExitCode {
    to_the_end(node::status(arguments))
}

/// Lists pods with their containers. Exit codes as of [`status`].
#[must_use]
pub fn pods(arguments: NodeArguments, id: String) -> ExitCode {
    to_the_end(node::pods(arguments, id))
}

fn to_the_end(command: impl Future<Output = Result<(), CliError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out::error(&format!("start the asynchronous runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        tokio::select! {
            result = command => match result {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    if !matches!(error, CliError::Told) {
                        out::error(&error.to_string());
                    }
                    match error {
                        CliError::NotRunning { .. } => ExitCode::from(NOT_RUNNING),
                        _ => ExitCode::FAILURE,
                    }
                }
            },
            // The call ends with its connection: a pull ends unless others wait for it too.
            Ok(()) = tokio::signal::ctrl_c() => {
                out::error("interrupted");
                ExitCode::from(INTERRUPTED)
            }
        }
    });
    runtime.shutdown_background();
    code
}

async fn command(arguments: Arguments) -> Result<(), CliError> {
    let purpose = match &arguments.command {
        Command::Rm { .. } | Command::Gc { .. } => Purpose::Delete,
        Command::Ls { .. }
        | Command::Pull { .. }
        | Command::Load { .. }
        | Command::ImportFrom { .. }
        | Command::Export { .. }
        | Command::Verify { .. }
        | Command::Endpoints { .. } => Purpose::Other,
    };
    // Before anything is opened: it may wait for a person.
    let credentials = match &arguments.command {
        Command::Pull { creds, creds_stdin, .. } => credentials::read(creds.as_deref(), *creds_stdin)?,
        _ => None,
    };
    let mut connection = Connection::open(&arguments, purpose).await?;
    let client = &mut connection.client;
    let result = match arguments.command {
        Command::Ls { name, json, quiet } => list::run(client, name, json, quiet).await,
        Command::Rm { names } => remove::run(client, names).await,
        Command::Pull { reference, .. } => pull::run(client, reference, credentials).await,
        Command::Load { file, name } => load::run(client, &file, name).await,
        Command::ImportFrom { peer, root, names } => import::run(client, peer, root, names).await,
        Command::Export { names, output, format, gzip } => {
            export::run(client, names, &output, format, gzip).await
        }
        Command::Verify { names, no_repair, json } => verify::run(client, names, !no_repair, json).await,
        Command::Gc { dry_run, unused, json } => collect::run(client, dry_run, unused, json).await,
        Command::Endpoints { reference, probe, json } => endpoints::run(client, reference, probe, json).await,
    };
    connection.close().await;
    result
}
