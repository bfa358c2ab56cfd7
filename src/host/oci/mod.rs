//! Driver of an OCI runtime by its command line: runc, crun, youki, runsc.
//!
//! Owns the verbs and the reading of their errors. Never runs `create` for a container (the pod's monitor does, as its
//! parent), except in the start-up probe.

mod probe;
mod process;

use crate::config::Handler;
use process::{Call, Finished};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of a runtime's log or stderr that go into an error.
const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// Bytes of a runtime's log that are read; its last lines tell the cause.
const MAX_LOG_BYTES: u64 = 256 << 10;
/// Longest call of `--version`, which does nothing.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a runtime's call failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The program is not there.
    #[error("OCI runtime {program:?} is not there (PATH={search})")]
    Missing {
        /// Program as configured.
        program: PathBuf,
        /// PATH.
        search: String,
    },
    /// The program could not be run.
    #[error("run {runtime} {verb}: {cause}")]
    Run {
        /// Handler name.
        runtime: String,
        /// Verb.
        verb: &'static str,
        /// Cause.
        cause: std::io::Error,
    },
    /// The program failed.
    #[error("{runtime} {verb} {id}: {message}")]
    Failed {
        /// Handler name.
        runtime: String,
        /// Verb.
        verb: &'static str,
        /// Container id.
        id: String,
        /// The runtime's own words, cut.
        message: String,
    },
    /// The program did not end in time and was killed.
    #[error("{runtime} {verb} {id} did not end within {seconds} s and was killed")]
    Timeout {
        /// Handler name.
        runtime: String,
        /// Verb.
        verb: &'static str,
        /// Container id.
        id: String,
        /// Deadline.
        seconds: u64,
    },
    /// The program ended well but said nothing that makes sense.
    #[error("{runtime} {verb} {id} answered {output:?}, which is {problem}")]
    Answer {
        /// Handler name.
        runtime: String,
        /// Verb.
        verb: &'static str,
        /// Container id.
        id: String,
        /// Its output, cut.
        output: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The probe's bundle could not be made.
    #[error("write the probe bundle {}: {cause}", path.display())]
    Bundle {
        /// Path.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
}

impl OciError {
    /// Whether the runtime says that there is no such container, or that its process has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // The runtimes have no exit codes for this: runc and youki, runc, runc, crun, any, crun.
        const WORDS: [&str; 6] = [
            "does not exist",
            "process already finished",
            "container not running",
            "is not running",
            "No such process",
            "/status`: No such file or directory",
        ];
        match self {
            OciError::Failed { message, .. } => WORDS.iter().any(|words| message.contains(words)),
            _ => false,
        }
    }
}

/// A container as its runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RuntimeState {
    /// Id.
    pub id: String,
    /// Status.
    pub status: RuntimeStatus,
    /// Init's pid in the host's namespace; 0 once stopped.
    #[serde(default)]
    pub pid: i32,
}

/// Status in the runtime's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeStatus {
    /// In the making.
    Creating,
    /// Waits for start.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Stopped,
    /// Frozen.
    Paused,
}

/// One OCI runtime.
#[derive(Debug)]
pub struct Runtime {
    name: String,
    path: PathBuf,
    root: PathBuf,
    args: Vec<String>,
    timeout: Duration,
    calls: AtomicU64,
}

impl Runtime {
    /// The runtime of handler `name`. `state` is the daemon's state directory.
    #[must_use]
    pub fn new(name: &str, handler: &Handler, state: &Path, timeout: Duration) -> Self {
        let or = |given: &Path, default: PathBuf| {
            if given.as_os_str().is_empty() { default } else { given.to_owned() }
        };
        Self {
            name: name.to_owned(),
            path: or(&handler.path, name.into()),
            root: or(&handler.root, state.join("runtime").join(name)),
            args: handler.args.clone(),
            timeout,
            calls: AtomicU64::new(0),
        }
    }

    /// Handler name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Arguments before the verb, without the log's: for whoever runs `create`.
    #[must_use]
    pub fn global_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = self.args.iter().map(OsString::from).collect();
        args.extend(["--root".into(), self.root.clone().into_os_string()]);
        args
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn start(&self, id: &str) -> Result<(), OciError> {
        self.call("start", id, [id], None).await.map(drop)
    }

    /// Sends a signal to the container's init, or to all its processes. One that has ended is fine.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), OciError> {
        let signal = signal.to_string();
        let mut args = vec![id, &signal];
        if all {
            args.insert(0, "--all");
        }
        gone_is_fine(self.call("kill", id, args, None).await)
    }

    /// Deletes a container; `force` kills it first. One that is gone is fine.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), OciError> {
        let args = if force { vec!["--force", id] } else { vec![id] };
        gone_is_fine(self.call("delete", id, args, None).await)
    }

    /// Sets limits of a created or running container.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn update(
        &self,
        id: &str,
        resources: &oci_spec::runtime::LinuxResources,
    ) -> Result<(), OciError> {
        let body = serde_json::to_vec(resources).map_err(|e| OciError::Run {
            runtime: self.name.clone(),
            verb: "update",
            cause: e.into(),
        })?;
        self.call("update", id, ["--resources", "-", id], Some(body)).await.map(drop)
    }

    /// The container's state; None: the runtime does not know it.
    ///
    /// # Errors
    /// When the runtime fails or its answer makes no sense.
    pub async fn state(&self, id: &str) -> Result<Option<RuntimeState>, OciError> {
        let finished = match self.call("state", id, [id], None).await {
            Ok(finished) => finished,
            Err(e) if e.is_gone() => return Ok(None),
            Err(e) => return Err(e),
        };
        let answer = |problem: String| OciError::Answer {
            runtime: self.name.clone(),
            verb: "state",
            id: id.to_owned(),
            output: cut(&finished.stdout),
            problem,
        };
        let state: RuntimeState =
            serde_json::from_slice(&finished.stdout).map_err(|e| answer(format!("no state ({e})")))?;
        if state.id == id {
            Ok(Some(state))
        } else {
            Err(answer("the state of another container".to_owned()))
        }
    }

    /// The first line of `--version`.
    ///
    /// # Errors
    /// When the program is missing or fails.
    pub async fn version(&self) -> Result<String, OciError> {
        let call = Call { program: &self.path, args: vec!["--version".into()], stdin: None, quiet: false };
        let finished = self.finish("--version", "", process::run(call, VERSION_TIMEOUT).await)?;
        let text = String::from_utf8_lossy(&finished.stdout);
        Ok(text.lines().next().unwrap_or_default().chars().take(200).collect())
    }

    async fn call<'a>(
        &self,
        verb: &'static str,
        id: &str,
        args: impl IntoIterator<Item = &'a str>,
        stdin: Option<Vec<u8>>,
    ) -> Result<Finished, OciError> {
        let args = args.into_iter().map(OsString::from).collect();
        self.call_with(verb, id, args, stdin, false).await
    }

    async fn call_with(
        &self,
        verb: &'static str,
        id: &str,
        args: Vec<OsString>,
        stdin: Option<Vec<u8>>,
        quiet: bool,
    ) -> Result<Finished, OciError> {
        let log = self.log_file(verb, id)?;
        let mut all = self.global_args();
        all.extend(["--log".into(), log.clone().into_os_string(), "--log-format".into(), "json".into()]);
        all.push(verb.into());
        all.extend(args);
        let call = Call { program: &self.path, args: all, stdin, quiet };
        let ran = process::run(call, self.timeout).await;
        let said = read_log(&log);
        // Left behind it is one small file below the state directory.
        let _ = std::fs::remove_file(&log);
        let failed_with = said.as_deref();
        match ran {
            Ok(finished) if !finished.success => Err(self.failed(verb, id, failed_with, &finished)),
            ran => self.finish(verb, id, ran),
        }
    }

    fn finish(
        &self,
        verb: &'static str,
        id: &str,
        ran: Result<Finished, process::RunError>,
    ) -> Result<Finished, OciError> {
        match ran {
            Ok(finished) if finished.success => Ok(finished),
            Ok(finished) => Err(self.failed(verb, id, None, &finished)),
            Err(process::RunError::Missing) => Err(OciError::Missing {
                program: self.path.clone(),
                search: std::env::var("PATH").unwrap_or_default(),
            }),
            Err(process::RunError::Io(cause)) => {
                Err(OciError::Run { runtime: self.name.clone(), verb, cause })
            }
            Err(process::RunError::Timeout(after)) => Err(OciError::Timeout {
                runtime: self.name.clone(),
                verb,
                id: id.to_owned(),
                seconds: after.as_secs(),
            }),
        }
    }

    fn failed(&self, verb: &'static str, id: &str, log: Option<&str>, finished: &Finished) -> OciError {
        let message = match log {
            Some(words) => words.to_owned(),
            None if !finished.stderr.is_empty() => cut(&finished.stderr),
            None => format!("ended with {} and said nothing", finished.status),
        };
        OciError::Failed { runtime: self.name.clone(), verb, id: id.to_owned(), message }
    }

    /// A log of its own for each call, beside the runtime's state and not in it.
    fn log_file(&self, verb: &'static str, id: &str) -> Result<PathBuf, OciError> {
        let mut dir = self.root.clone().into_os_string();
        dir.push(".log");
        let dir = PathBuf::from(dir);
        std::fs::create_dir_all(&dir).map_err(|cause| OciError::Run {
            runtime: self.name.clone(),
            verb,
            cause,
        })?;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(dir.join(format!("{id}.{verb}.{call}")))
    }
}

fn gone_is_fine(result: Result<Finished, OciError>) -> Result<(), OciError> {
    match result {
        Err(e) if e.is_gone() => Ok(()),
        result => result.map(drop),
    }
}

fn cut(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    match text.char_indices().nth(MAX_MESSAGE_BYTES) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The last error of a JSON log.
fn read_log(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_LOG_BYTES).read_to_end(&mut bytes).ok()?;
    last_error(&String::from_utf8_lossy(&bytes))
}

fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        msg: String,
    }
    log.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| matches!(line.level.to_ascii_lowercase().as_str(), "error" | "fatal" | "panic" | ""))
        .map(|line| cut(line.msg.as_bytes()))
}

#[cfg(test)]
mod tests;
