//! What a node lacks: examines the host as the daemon will find it, and names remedies.
//!
//! Owns verdicts and remedies; `host` has the facts. Leaves the host as it was and removes what it creates. Never
//! starts, stops or changes the daemon.

mod cgroups;
mod holes;
mod kernel;
mod kubelet;
mod limits;
mod network;
mod places;
mod programs;
mod scratch;
mod storage;

pub use kubelet::{DEFAULT_CONFIG as DEFAULT_KUBELET_CONFIG, Kubelet};

use crate::config::Config;
use crate::host::listeners::{self, Owner, Place};
use std::path::Path;

/// How good a fact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods run, but an optional feature does not work.
    Warn {
        /// The remedy, one step a line.
        remedy: String,
    },
    /// The daemon does not start, or pods do not run.
    Fail {
        /// The remedy, one step a line.
        remedy: String,
    },
}

/// One fact and the verdict on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The checked fact.
    pub name: String,
    /// The finding.
    pub found: String,
    /// The verdict.
    pub verdict: Verdict,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Ok }
    }

    /// An optional feature does not work.
    pub fn warn(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Warn { remedy: remedy.into() } }
    }

    /// It could not be found out: nobody knows whether pods run as they should.
    pub fn unknown(name: impl Into<String>, what: &str, cause: impl std::fmt::Display) -> Self {
        Self::warn(
            name,
            format!("unknown: {what}: {cause}"),
            "run this as root on the node itself, with /proc and /sys mounted",
        )
    }

    /// Pods do not run.
    pub fn fail(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Fail { remedy: remedy.into() } }
    }
}

/// The inputs of the checks.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The daemon's configuration.
    pub config: &'a Config,
    /// The kubelet's configuration, if the node has one.
    pub kubelet: Option<&'a Kubelet>,
}

impl Subject<'_> {
    /// The daemon that serves the configured socket now.
    fn daemon(&self) -> Option<Owner> {
        match listeners::unix(&self.config.grpc.socket) {
            Place::Taken(Some(owner)) if owner.name == "podwright" => Some(owner),
            Place::Taken(_) | Place::Free | Place::Unusable(_) => None,
        }
    }
}

/// Everything. Runs OCI runtimes and CNI plugins, and mounts for a moment.
pub async fn all(subject: &Subject<'_>) -> Vec<Finding> {
    let mut found = kernel::all(subject.config.containers.selinux);
    found.extend(cgroups::all(subject));
    found.extend(storage::all(subject.config));
    found.extend(programs::all(subject.config).await);
    found.extend(network::all(&subject.config.network).await);
    found.extend(places::all(subject));
    found.extend(limits::all(subject));
    found.extend(kubelet::all(subject));
    found
}

/// Checks that cost next to nothing, for a daemon that has just started: they run no program and create nothing.
#[must_use]
pub fn brief(subject: &Subject<'_>) -> Vec<Finding> {
    let mut found = kernel::all(subject.config.containers.selinux);
    found.extend(cgroups::all(subject));
    found.extend(limits::all(subject));
    found.extend(kubelet::all(subject));
    found
}

/// Logs the problems found, once.
pub fn log(config: &Config) {
    // An unreadable kubelet file is the kubelet's problem; `podwright check` reports it.
    let kubelet = Kubelet::read(Path::new(DEFAULT_KUBELET_CONFIG)).ok();
    for finding in brief(&Subject { config, kubelet: kubelet.as_ref() }) {
        let Finding { name, found, verdict } = finding;
        match verdict {
            Verdict::Ok => {}
            Verdict::Warn { remedy } | Verdict::Fail { remedy } => {
                // Log: A finding of `podwright check`: fields `check`, `found` and `remedy`.
                // Do: What `remedy` says.
                tracing::warn!(
                    check = name,
                    found,
                    remedy = remedy.replace('\n', "; "),
                    "the node lacks something"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brief_look_needs_no_kubelet_and_tells_each_thing_once() {
        let config = Config::default();
        let found = brief(&Subject { config: &config, kubelet: None });
        let mut names: Vec<_> = found.iter().map(|finding| finding.name.clone()).collect();
        assert!(names.iter().any(|name| name == "kernel"), "{names:?}");
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{names:?}");
    }
}
