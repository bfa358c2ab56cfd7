//! The verbs for checkpoints: pause, resume, checkpoint. A restore creates a process that must outlive the daemon, so
//! the monitor runs it.

use super::{OciError, Runtime, last_words};
use crate::host::command::Command;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

/// CRIU's lines that report its failure, which are never the cause.
const GIVES_UP: [&str; 2] = ["Dumping FAILED", "Restoring FAILED"];
/// How a runtime with clap's command line (youki) reports an unknown command.
const UNKNOWN_COMMAND: &str = "unrecognized subcommand";
/// Bytes examined at the end of its log, whose length depends on a container's processes.
const LOG_TAIL: u64 = 1 << 20;
/// Characters of its log that go into an error message.
const WORDS: usize = 512;

/// The last error in CRIU's log, of which the runtimes only give the path. Blocking.
#[must_use]
pub fn criu_words(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    // A line for each mapping of each process may precede it.
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // Later ones are consequences.
    let before = text.lines().take_while(|line| !GIVES_UP.iter().any(|end| line.contains(end)));
    let line = before.filter(|line| line.contains("Error")).last()?;
    Some(line.chars().take(WORDS).collect())
}

impl Runtime {
    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// If the runtime is missing, fails or takes too long.
    pub async fn pause(&self, id: &str) -> Result<(), OciError> {
        self.call("pause", id, &["pause", id], None).await.map(|_| ())
    }

    /// Resumes them. One that is not paused, or gone, is fine.
    ///
    /// # Errors
    /// If the runtime is missing, fails or takes too long.
    pub async fn resume(&self, id: &str) -> Result<(), OciError> {
        match self.call("resume", id, &["resume", id], None).await {
            Err(OciError::Failed { message, .. })
                if message.contains("not paused") || message.contains("does not exist") =>
            {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Has CRIU write a container's processes to `images`, its log and figures to `work`; creates both. The container
    /// stays as it was, paused or running. After `limit` only the runtime is killed, and CRIU gets `release` to let go
    /// in order: killed half-way, it may take the container's processes with it, into which it has put its own code.
    ///
    /// # Errors
    /// When the runtime is missing, has no such command, fails, or takes longer than `limit`.
    pub async fn checkpoint(
        &self,
        id: &str,
        images: &Path,
        work: &Path,
        limit: Duration,
        release: Duration,
    ) -> Result<(), OciError> {
        let verb = "checkpoint";
        let command = Command::new(&self.path, limit.min(self.deadline)).orderly(release).args(&self.args);
        let command = command.args([verb, "--leave-running", "--file-locks", "--image-path"]).arg(images);
        let command = command.arg("--work-path").arg(work).arg(id);
        let output = command.run().await.map_err(|error| self.error(verb, id, error))?;
        if output.status.success() {
            return Ok(());
        }
        if String::from_utf8_lossy(&output.stderr).contains(UNKNOWN_COMMAND) {
            return Err(OciError::NoCommand { runtime: self.name.clone(), verb, id: id.to_owned() });
        }
        let mut message = last_words(&output.stderr, &output.status.to_string());
        if let Some(cause) = criu_words(&work.join("dump.log")) {
            message = format!("{message}: {cause}");
        }
        Err(OciError::Failed { runtime: self.name.clone(), verb, id: id.to_owned(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_error_before_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        assert_eq!(criu_words(&log), None);
        let said = "(0.1) Error (a.c:1): rlimit\n(0.2) Error (b.c:2): tcp\n(0.3) fine\n(0.4) Error (c.c:3): Dumping FAILED.\n(0.5) Error (d.c:4): gone\n";
        std::fs::write(&log, said).unwrap();
        assert_eq!(criu_words(&log).unwrap(), "(0.2) Error (b.c:2): tcp");
        // A terabyte, sparse: of a container's making, and never in memory.
        let file = std::fs::File::create(&log).unwrap();
        file.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, said.as_bytes(), 1 << 40).unwrap();
        assert_eq!(criu_words(&log).unwrap(), "(0.2) Error (b.c:2): tcp");
    }

    #[tokio::test]
    async fn a_runtime_without_the_command_is_told_from_one_that_fails() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let minute = Duration::from_mins(1);
        let mut found = Vec::new();
        for (name, says) in [("old", "error: unrecognized subcommand 'checkpoint'"), ("new", "ERROR x: no")] {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho \"{says}\" >&2; exit 2\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let runtime = Runtime::new(name, path, dir.path(), &[], minute);
            let error = runtime.checkpoint("c", dir.path(), dir.path(), minute, minute).await.unwrap_err();
            found.push((matches!(error, OciError::NoCommand { .. }), error.to_string()));
        }
        assert_eq!(
            found,
            [
                (true, "old checkpoint c: the OCI runtime old has no command checkpoint".to_owned()),
                (false, "new checkpoint c: ERROR x: no".to_owned())
            ]
        );
    }
}
