//! What a node lacks: looks at the host as the daemon will find it and says what to type.
//!
//! Owns the verdicts and their remedies; the facts are `host`'s. Leaves the host as it was: what it makes, it removes.
//! Never starts, stops or changes anything of the daemon's.

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
    /// Pods run, but something that users may want does not work.
    Warn {
        /// What to do, one step a line.
        mend: String,
    },
    /// The daemon does not start, or pods do not run.
    Fail {
        /// What to do, one step a line.
        mend: String,
    },
}

/// One fact and the verdict on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub found: String,
    /// The verdict.
    pub verdict: Verdict,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Ok }
    }

    /// Something that users may want does not work.
    pub fn warn(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Warn { mend: mend.into() } }
    }

    /// Pods do not run.
    pub fn fail(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Fail { mend: mend.into() } }
    }
}

/// What is looked at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The daemon's configuration.
    pub config: &'a Config,
    /// The kubelet's, where there is one on this node.
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

/// What costs next to nothing to look at, for a daemon that has just started: it runs no program and makes nothing.
#[must_use]
pub fn brief(subject: &Subject<'_>) -> Vec<Finding> {
    let mut found = kernel::all(subject.config.containers.selinux);
    found.extend(cgroups::all(subject));
    found.extend(limits::all(subject));
    found.extend(kubelet::all(subject));
    found
}

/// Says what is wrong in the daemon's log, once.
pub fn log(config: &Config) {
    // A kubelet's file that cannot be read is the kubelet's trouble, and `podwright check` tells it.
    let kubelet = Kubelet::read(Path::new(DEFAULT_KUBELET_CONFIG)).ok();
    for finding in brief(&Subject { config, kubelet: kubelet.as_ref() }) {
        let Finding { name, found, verdict } = finding;
        match verdict {
            Verdict::Ok => {}
            Verdict::Warn { mend } | Verdict::Fail { mend } => {
                // Log: A finding of `podwright check`: fields `check`, `found` and `mend`.
                // Do: What `mend` says.
                tracing::warn!(
                    check = name,
                    found,
                    mend = mend.replace('\n', "; "),
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
