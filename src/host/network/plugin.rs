//! One call of one plugin: find its program, run it, interpret its failure.
//!
//! Runs in the daemon's own network namespace, as the specification requires. Never knows a configuration's content.

use super::error::{Call, Fault, NetworkError};
use crate::host::command::{Command, CommandError, Output};
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Limit of bytes of a result. The largest real ones have a few kilobytes.
const RESULT_LIMIT: usize = 1 << 20;
/// Characters of a plugin's message in an error.
const TEXT_SHOWN: usize = 4 << 10;
/// A plugin that is being replaced cannot be executed; libcni, too, waits five seconds in all.
const TEXT_BUSY_RETRIES: u32 = 20;
/// Between two of these tries.
pub(super) const TEXT_BUSY_PAUSE: Duration = Duration::from_millis(250);

/// The verbs of plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Check whether a pod is still attached as ADD left it.
    Check,
    /// Say whether ADD could work.
    Status,
    /// Collect what belongs to no valid attachment.
    Gc,
}

impl Verb {
    /// The value of CNI_COMMAND.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a plugin call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// Well.
    Done,
    /// With an error.
    Failed,
    /// It was killed at its deadline.
    TimedOut,
}

impl CallOutcome {
    /// The label in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }
}

/// A finished plugin call, for metrics.
#[derive(Debug)]
pub struct PluginCall<'a> {
    /// Verb.
    pub verb: Verb,
    /// Plugin type.
    pub plugin: &'a str,
    /// Time in the plugin, with its start.
    pub elapsed: Duration,
    /// How it ended.
    pub outcome: CallOutcome,
}

type Observer = Box<dyn Fn(&PluginCall<'_>) + Send + Sync>;

/// The directories of plugins, and the observer of their calls.
pub(super) struct Plugins {
    dirs: Vec<PathBuf>,
    path: OsString,
    observer: OnceLock<Observer>,
}

/// The variables of one call; the same for every plugin of a chain.
pub(super) struct Target<'a> {
    pub(super) network: &'a str,
    pub(super) verb: Verb,
    /// Empty where the verb is not about a container.
    pub(super) container: &'a str,
    pub(super) interface: &'a str,
    pub(super) netns: &'a Path,
    pub(super) args: &'a str,
    pub(super) pod: Option<&'a str>,
    pub(super) deadline: Duration,
}

#[derive(Deserialize)]
struct ErrorReply {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugins {
    pub(super) fn new(dirs: &[PathBuf]) -> Self {
        let names: Vec<_> = dirs.iter().map(|dir| dir.as_os_str()).collect();
        Self { dirs: dirs.to_vec(), path: names.join(std::ffi::OsStr::new(":")), observer: OnceLock::new() }
    }

    /// Sets the observer of calls; false if there is one already.
    pub(super) fn observe(&self, observer: Observer) -> bool {
        self.observer.set(observer).is_ok()
    }

    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The program of a plugin type. Not cached: plugins are installed and replaced while the daemon runs.
    pub(super) fn find(&self, kind: &str) -> Option<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(kind)).find(|path| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
    }

    /// Calls `kind` and returns what it printed; adds the time it took to `spent`.
    pub(super) async fn call(
        &self,
        kind: &str,
        target: &Target<'_>,
        stdin: Vec<u8>,
        spent: &mut Duration,
    ) -> Result<Vec<u8>, NetworkError> {
        let started = Instant::now();
        let result = self.run(kind, target, stdin).await;
        let elapsed = started.elapsed();
        *spent += elapsed;
        let outcome = match &result {
            Ok(_) => CallOutcome::Done,
            Err(Fault::Timeout { .. }) => CallOutcome::TimedOut,
            Err(_) => CallOutcome::Failed,
        };
        if let Some(observer) = self.observer.get() {
            observer(&PluginCall { verb: target.verb, plugin: kind, elapsed, outcome });
        }
        result.map_err(|fault| NetworkError::Plugin {
            call: Box::new(target.call(kind)),
            fault: Box::new(fault),
        })
    }

    async fn run(&self, kind: &str, target: &Target<'_>, stdin: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let program = self.find(kind).ok_or_else(|| Fault::Missing { dirs: self.dirs.clone() })?;
        let mut busy = 0;
        let output = loop {
            let run = Command::new(&program, target.deadline)
                .env("CNI_COMMAND", target.verb.as_str())
                .env("CNI_CONTAINERID", target.container)
                .env("CNI_NETNS", target.netns)
                .env("CNI_IFNAME", target.interface)
                .env("CNI_ARGS", target.args)
                .env("CNI_PATH", &self.path)
                .stdin(stdin.clone())
                .stdout_limit(RESULT_LIMIT);
            match run.run().await {
                Err(error) if error.is_text_busy() && busy < TEXT_BUSY_RETRIES => {
                    busy += 1;
                    tokio::time::sleep(TEXT_BUSY_PAUSE).await;
                }
                Err(CommandError::Timeout { after, stderr, .. }) => {
                    return Err(Fault::Timeout { after, stderr });
                }
                Err(CommandError::TooMuchOutput { limit, .. }) => {
                    return Err(Fault::BadResult { cause: format!("more than {limit} bytes on stdout") });
                }
                Err(error) => return Err(Fault::NotRun(error)),
                Ok(output) => break output,
            }
        };
        if !output.stderr.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr);
            tracing::debug!(
                plugin = kind,
                verb = target.verb.as_str(),
                sandbox = target.container,
                "{}",
                said.trim()
            );
        }
        if output.status.success() { Ok(output.stdout) } else { Err(fault(&output)) }
    }
}

/// Plugins print their error on stdout; the specification's overview says stderr. Both are read.
fn fault(output: &Output) -> Fault {
    for stream in [&output.stdout, &output.stderr] {
        if let Ok(reply) = serde_json::from_slice::<ErrorReply>(stream)
            && (reply.code != 0 || !reply.msg.is_empty())
        {
            return Fault::Refused { code: reply.code, msg: clip(&reply.msg), details: clip(&reply.details) };
        }
    }
    let texts =
        [&output.stdout, &output.stderr].map(|stream| String::from_utf8_lossy(stream).trim().to_owned());
    let text = texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    Fault::Failed { status: output.status, text: clip(&text) }
}

fn clip(text: &str) -> String {
    text.chars().take(TEXT_SHOWN).collect()
}

impl Target<'_> {
    pub(super) fn call(&self, kind: &str) -> Call {
        Call {
            plugin: kind.to_owned(),
            network: self.network.to_owned(),
            verb: self.verb,
            pod: self.pod.map(str::to_owned),
        }
    }
}
