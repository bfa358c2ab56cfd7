//! CRIU: whether containers can be checkpointed here. Runs its check on the first request for a checkpoint. Never runs
//! it on a container: the OCI runtime does.

use super::command::{Command, CommandError};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Looked up in PATH, as the OCI runtimes do. A monitor's PATH is fixed and has the usual directories only.
const PROGRAM: &str = "criu";
/// Limit of its kernel check; a second on an idle machine.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// Why nothing can be checkpointed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// By the configuration.
    #[error("checkpoints are switched off (runtime.criu)")]
    Off,
    /// There is no CRIU.
    #[error("{PROGRAM} is not in PATH: install CRIU, of a version that knows this kernel")]
    Missing,
    /// It does not work on this kernel.
    #[error("{PROGRAM} does not work on this node (`{PROGRAM} check`): {0}")]
    Refused(String),
    /// It could not be run.
    #[error("ask {PROGRAM}: {0}")]
    Command(Box<CommandError>),
}

/// The CRIU of this node.
#[derive(Debug)]
pub struct Criu {
    on: bool,
    /// Held during the check, so that concurrent requests cause one. A refusal is not cached: the next request finds
    /// what was installed meanwhile.
    works: tokio::sync::Mutex<bool>,
}

impl Criu {
    /// As configured; checks nothing yet.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on, works: tokio::sync::Mutex::new(false) }
    }

    /// Whether it works here.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), CriuError> {
        if !self.on {
            return Err(CriuError::Off);
        }
        let mut works = self.works.lock().await;
        if !*works {
            ask(Path::new(PROGRAM)).await?;
            *works = true;
        }
        Ok(())
    }
}

async fn ask(program: &Path) -> Result<(), CriuError> {
    match Command::new(program, CHECK_LIMIT).arg("check").run().await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(CriuError::Refused(reason(&output.stdout, &output.stderr, &output.status.to_string())))
        }
        Err(CommandError::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(CriuError::Missing)
        }
        Err(error) => Err(CriuError::Command(Box::new(error))),
    }
}

/// The first line with an error: later ones are consequences.
fn reason(stdout: &[u8], stderr: &[u8], status: &str) -> String {
    let text = [stderr, stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("\n");
    let error = text.lines().find(|line| line.contains("Error"));
    error.or_else(|| text.lines().find(|line| !line.trim().is_empty())).unwrap_or(status).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn stand_in(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("criu");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, program)
    }

    #[tokio::test]
    async fn its_own_words_say_why_it_does_not_work() {
        assert!(matches!(Criu::new(false).check().await, Err(CriuError::Off)));
        assert!(matches!(ask(Path::new("/nowhere/criu")).await, Err(CriuError::Missing)));
        let (_dir, works) = stand_in("echo Looks good.; [ \"$1\" = check ]");
        ask(&works).await.unwrap();
        let words = "echo 'Warn (a.c:1): hm' >&2; echo 'Error (vdso.c:3): bad bounds' >&2; echo 'Error: so' >&2; exit 1";
        let (_dir, refuses) = stand_in(words);
        let error = ask(&refuses).await.unwrap_err().to_string();
        assert!(error.ends_with(": Error (vdso.c:3): bad bounds"), "{error}");
        let (_dir, silent) = stand_in("exit 3");
        assert!(ask(&silent).await.unwrap_err().to_string().ends_with("exit status: 3"));
    }
}
