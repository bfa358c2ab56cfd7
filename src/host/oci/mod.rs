//! OCI runtimes by their command line: runc, crun, youki, runsc take the same verbs.
//!
//! Owns finding them, proving that one works here, and the verbs that the daemon calls itself. The monitor runs what
//! must survive the daemon (create, run, exec). Decides nothing about containers.

mod checkpoint;
mod error;
mod features;
mod keyring;
mod probe;
mod runtimes;
mod signals;
mod surroundings;

pub use checkpoint::criu_words;
pub use error::OciError;
pub use features::Features;
pub use keyring::lacks_room_for_keyring;
pub use probe::UserNamespace;
pub use runtimes::{PREFERENCE, Runtimes, Trial, try_all};
pub use signals::{signal_name, signal_number};
pub use surroundings::Surroundings;

use super::command::{Command, CommandError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a runtime's log searched for its last error.
const MAX_LOG: usize = 64 << 10;

/// Longest time for a delete, which takes milliseconds: one that hangs is killed and tried again within the half minute that
/// a stop of a pod waits.
const DELETE_DEADLINE: Duration = Duration::from_secs(10);

/// One OCI runtime under a handler's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    name: String,
    path: PathBuf,
    args: Vec<String>,
    deadline: Duration,
    features: Features,
}

impl Runtime {
    /// A runtime with its state below `root`; `deadline` bounds each call.
    #[must_use]
    pub fn new(name: &str, path: PathBuf, root: &Path, extra: &[String], deadline: Duration) -> Self {
        let mut args = vec!["--root".to_owned(), root.to_string_lossy().into_owned()];
        args.extend(extra.iter().cloned());
        Self { name: name.to_owned(), path, args, deadline, features: Features::default() }
    }

    /// The handler's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its known capabilities.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether the program exists.
    ///
    /// # Errors
    /// When it is not.
    pub fn present(&self) -> Result<(), OciError> {
        if self.path.is_file() {
            return Ok(());
        }
        Err(OciError::Missing { runtime: self.name.clone(), path: self.path.clone() })
    }

    /// Runs a container in a user namespace to test the runtime. Creates a directory in `around.state` and removes it.
    ///
    /// # Errors
    /// The runtime's message, or that its files could not be created.
    pub async fn try_user_namespace(
        &self,
        around: Surroundings<'_>,
        user: UserNamespace<'_>,
    ) -> Result<(), OciError> {
        probe::user_namespace(self, around, user).await
    }

    /// The program as the monitor runs it.
    #[must_use]
    pub fn command(&self) -> podwright_monitor_proto::Runtime {
        let path = self.path.to_string_lossy().into_owned();
        podwright_monitor_proto::Runtime { path, args: self.args.clone() }
    }

    /// Removes what the runtime keeps of a container, killing what still runs. An unknown container is fine.
    ///
    /// # Errors
    /// If the runtime is missing, fails or takes too long.
    pub async fn delete(&self, id: &str) -> Result<(), OciError> {
        // Of a container that has ended, runc from 1.2 on kills once more when it is forced, and waits 100 ms for that.
        match self.delete_as(id, &["delete", id]).await {
            Err(OciError::Failed { .. }) => self.delete_as(id, &["delete", "--force", id]).await,
            other => other,
        }
    }

    async fn delete_as(&self, id: &str, args: &[&str]) -> Result<(), OciError> {
        let program = Command::new(&self.path, self.deadline.min(DELETE_DEADLINE)).args(&self.args);
        match self.finish("delete", id, program.args(args)).await {
            Err(OciError::Failed { message, .. }) if message.contains("does not exist") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Changes a running container's limits; `resources` is the OCI runtime specification's `linux.resources`.
    ///
    /// # Errors
    /// If the runtime is missing, fails or takes too long.
    pub async fn update(&self, id: &str, resources: &serde_json::Value) -> Result<(), OciError> {
        let stdin = Some(resources.to_string().into_bytes());
        self.call("update", id, &["update", "--resources", "-", id], stdin).await.map(|_| ())
    }

    /// The first line of its version; empty if there is none.
    async fn version(&self) -> String {
        let output = Command::new(&self.path, self.deadline).args(["--version"]).run().await;
        let said = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
    }

    async fn call(
        &self,
        verb: &'static str,
        id: &str,
        args: &[&str],
        stdin: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, OciError> {
        let mut command = self.program().args(args);
        if let Some(stdin) = stdin {
            command = command.stdin(stdin);
        }
        self.finish(verb, id, command).await
    }

    /// The program with its arguments before a verb.
    fn program(&self) -> Command {
        Command::new(&self.path, self.deadline).args(&self.args)
    }

    /// Runs it to its end; what it wrote, if it succeeds.
    async fn finish(&self, verb: &'static str, id: &str, command: Command) -> Result<Vec<u8>, OciError> {
        let output = command.run().await.map_err(|error| self.error(verb, id, error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = last_words(&output.stderr, &output.status.to_string());
        Err(OciError::Failed { runtime: self.name.clone(), verb, id: id.to_owned(), message })
    }

    fn error(&self, verb: &'static str, id: &str, error: CommandError) -> OciError {
        match error {
            CommandError::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                OciError::Missing { runtime: self.name.clone(), path: self.path.clone() }
            }
            error => OciError::Command {
                runtime: self.name.clone(),
                verb,
                id: id.to_owned(),
                error: Box::new(error),
            },
        }
    }
}

/// The last line of a runtime's message, without its log decoration (`time=… level=error msg="…"`).
fn last_words(stderr: &[u8], status: &str) -> String {
    let tail = &stderr[stderr.len().saturating_sub(MAX_LOG)..];
    let text = String::from_utf8_lossy(tail);
    // youki continues with a backtrace, or with advice on its command line.
    let is_error = |line: &&str| line.starts_with("ERROR ") || line.starts_with("error: ");
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let Some(line) = lines().find(is_error).or_else(|| lines().next()) else {
        return status.to_owned();
    };
    match line.split_once("msg=\"") {
        Some((_, message)) => message.trim_end_matches('"').replace("\\\"", "\""),
        None => line.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_words_are_taken_out_of_their_decoration() {
        let runc = b"time=\"2026-11-24T10:00:00Z\" level=error msg=\"container \\\"x\\\" does not exist\"\n";
        assert_eq!(last_words(runc, "exit status: 1"), "container \"x\" does not exist");
        assert_eq!(last_words(b"first\nerror opening file\n\n", "exit status: 1"), "error opening file");
        let youki =
            b"ERROR youki: error in executing command: no PATH\n\nStack backtrace:\n   0: <unknown>\n";
        assert_eq!(last_words(youki, "exit status: 1"), "ERROR youki: error in executing command: no PATH");
        assert_eq!(last_words(b"", "exit status: 3"), "exit status: 3");
    }

    #[tokio::test]
    async fn a_missing_runtime_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new("x", "/no/such/runtime".into(), dir.path(), &[], Duration::from_secs(1));
        let error = runtime.delete("c").await.unwrap_err();
        assert!(matches!(error, OciError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("/no/such/runtime"));
    }
}
