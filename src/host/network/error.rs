//! Errors of the pod network. Each message names the plugin, the network, the verb and the pod.

use super::plugin::Verb;
use crate::host::command::CommandError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why a pod has no network, or still has one.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable configuration.
    #[error("no CNI configuration in {}: {reason}", dir.display())]
    NotConfigured {
        /// The configuration directory.
        dir: PathBuf,
        /// The fault of the configuration.
        reason: String,
    },
    /// A plugin call failed.
    #[error("{call}: {fault}")]
    Plugin {
        /// Which call.
        call: Box<Call>,
        /// How it failed.
        fault: Box<Fault>,
    },
    /// ADD succeeded, but the pod has no address on its interface.
    #[error("CNI network {network:?}: no address for {interface} of pod {pod} in the result of ADD")]
    NoAddress {
        /// Network name.
        network: String,
        /// The pod.
        pod: String,
        /// Interface name.
        interface: &'static str,
    },
    /// An annotation of the pod that shapes its network is malformed.
    #[error("pod {pod}: annotation {key}={value:?}: {cause}")]
    Annotation {
        /// The pod.
        pod: String,
        /// Annotation key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why it is refused.
        cause: &'static str,
    },
    /// A name cannot be passed to plugins.
    #[error("{what} {value:?} of pod {pod} cannot be passed in CNI_ARGS")]
    Argument {
        /// The pod.
        pod: String,
        /// Its kind.
        what: String,
        /// Its value.
        value: String,
    },
    /// The result cache could not be written or read.
    #[error("{operation} {}: {source}", path.display())]
    Cache {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The administrator's template gives no configuration.
    #[error("CNI template {} (network.conf_template): {reason}", path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// The filled template could not be written.
    #[error("{operation} {}: {source}", path.display())]
    Generate {
        /// The operation.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// DEL failed for several of a pod's networks. Those attachments stay cached: a later detach continues.
    #[error("{0}")]
    NotDetached(Failures),
    /// ADD failed, and so did the DEL after it. The attachment stays cached: a later detach continues.
    #[error("{error}; undoing it failed too: {undo}")]
    NotUndone {
        /// Why ADD failed.
        error: Box<NetworkError>,
        /// Why DEL failed.
        undo: Failures,
    },
}

impl NetworkError {
    /// Whether a plugin asked to try again later (CNI error code 11).
    #[must_use]
    pub fn wants_retry(&self) -> bool {
        matches!(self, Self::Plugin { fault, .. } if matches!(**fault, Fault::Refused { code: CODE_TRY_AGAIN, .. }))
    }
}

impl Failures {
    /// As one error; None: there are none.
    pub(super) fn into_error(mut self) -> Option<NetworkError> {
        match self.0.len() {
            0 | 1 => self.0.pop(),
            _ => Some(NetworkError::NotDetached(self)),
        }
    }
}

/// CNI error code: the plugin does not know the container, nothing to clean up.
pub(super) const CODE_UNKNOWN_CONTAINER: u64 = 3;
/// CNI error code: try again later.
const CODE_TRY_AGAIN: u64 = 11;

/// Several failures, all reported.
#[derive(Debug)]
pub struct Failures(pub Vec<NetworkError>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// One call of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Plugin type.
    pub plugin: String,
    /// Network name.
    pub network: String,
    /// Verb.
    pub verb: Verb,
    /// `<name>_<namespace>_<uid>_<attempt>`, or the sandbox id where no more is known; None: not about a pod.
    pub pod: Option<String>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI plugin {} of network {}: {}", self.plugin, self.network, self.verb)?;
        match &self.pod {
            Some(pod) => write!(f, " for pod {pod}"),
            None => Ok(()),
        }
    }
}

/// How a plugin call failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The plugin answered with a CNI error.
    #[error("{msg}{} (code {code})", suffix(details))]
    Refused {
        /// CNI error code; 100 and more are the plugin's own.
        code: u64,
        /// Its message.
        msg: String,
        /// Its details.
        details: String,
    },
    /// The plugin failed without a CNI error.
    #[error("{status}, {}", if text.is_empty() { "without a word" } else { text })]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its output.
        text: String,
    },
    /// The plugin outlived its deadline and was killed with its process group.
    #[error("no answer within {after:?}; killed{}", suffix(stderr))]
    Timeout {
        /// The deadline.
        after: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// There is no such plugin.
    #[error("no executable of that name in {}", list(dirs))]
    Missing {
        /// The directories searched.
        dirs: Vec<PathBuf>,
    },
    /// The plugin could not be run.
    #[error(transparent)]
    NotRun(CommandError),
    /// The answer cannot be understood.
    #[error("bad result: {cause}")]
    BadResult {
        /// The fault.
        cause: String,
    },
}

fn suffix(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

pub(super) fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}
