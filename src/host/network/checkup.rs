//! CHECK: whether a pod is still attached as ADD left it. Changes nothing and gives way to DEL at once.

use super::cache::Entry;
use super::chain::Pod;
use super::error::NetworkError;
use super::list::NetworkList;
use super::plugin::Verb;
use super::version::Version;
use super::{Inner, lock, result};
use crate::model::SandboxId;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::oneshot;

/// Result of a CHECK without a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkup {
    /// All queried plugins agree.
    Well,
    /// No plugin to query: no attachment is known, or its configuration is older than 0.4.0 or disables CHECK.
    Unasked,
    /// DEL came first.
    Overtaken,
}

/// Keeps CHECK and DEL of one sandbox apart: operations on one must come one after the other.
#[derive(Debug, Default)]
pub(super) struct Checkups(Mutex<Sandboxes>);

#[derive(Debug, Default)]
struct Sandboxes {
    /// Sandboxes being checked.
    running: HashMap<SandboxId, Running>,
    /// Those that are being detached.
    barred: HashSet<SandboxId>,
}

#[derive(Debug)]
struct Running {
    /// Dropped to end it.
    go_on: oneshot::Sender<()>,
    /// Closed when it has ended.
    ended: oneshot::Receiver<()>,
}

/// While it lives, the sandbox is not checked.
#[derive(Debug)]
pub(super) struct Bar<'a> {
    checkups: &'a Checkups,
    sandbox: SandboxId,
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        lock(&self.checkups.0).barred.remove(&self.sandbox);
    }
}

impl Checkups {
    /// Ends the CHECK of a sandbox, waits until its plugin is killed and admits no other.
    pub(super) async fn bar(&self, sandbox: &SandboxId) -> Bar<'_> {
        let running = {
            let mut sandboxes = lock(&self.0);
            sandboxes.barred.insert(sandbox.clone());
            sandboxes.running.remove(sandbox)
        };
        let bar = Bar { checkups: self, sandbox: sandbox.clone() };
        if let Some(Running { go_on, ended }) = running {
            drop(go_on);
            // Closed without a word.
            let _ = ended.await;
        }
        bar
    }
}

impl Inner {
    pub(super) async fn check(&self, sandbox: &SandboxId, netns: &Path) -> Result<Checkup, NetworkError> {
        let (go_on, overtaken) = oneshot::channel();
        let (_open, ended) = oneshot::channel();
        {
            let mut sandboxes = lock(&self.checkups.0);
            if sandboxes.barred.contains(sandbox) {
                return Ok(Checkup::Overtaken);
            }
            sandboxes.running.insert(sandbox.clone(), Running { go_on, ended });
        }
        let outcome = tokio::select! {
            outcome = self.check_all(sandbox, netns) => outcome,
            _ = overtaken => return Ok(Checkup::Overtaken),
        };
        lock(&self.checkups.0).running.remove(sandbox);
        outcome
    }

    async fn check_all(&self, sandbox: &SandboxId, netns: &Path) -> Result<Checkup, NetworkError> {
        let _shared = self.gate.read().await;
        let mut checkup = Checkup::Unasked;
        for entry in self.cache.of(None, sandbox.as_str()).entries {
            if self.check_one(sandbox, &entry, netns).await? == Checkup::Well {
                checkup = Checkup::Well;
            }
        }
        Ok(checkup)
    }

    async fn check_one(
        &self,
        sandbox: &SandboxId,
        entry: &Entry,
        netns: &Path,
    ) -> Result<Checkup, NetworkError> {
        let (Some(attached), Ok(list)) = (&entry.result, NetworkList::decode(&entry.config)) else {
            return Ok(Checkup::Unasked);
        };
        if list.version < Version::CHECK || list.disable_check {
            return Ok(Checkup::Unasked);
        }
        let Ok(attached) = result::bring_to(attached.clone(), list.version) else {
            return Ok(Checkup::Unasked);
        };
        let (arguments, capability_args, name) = (entry.args(), entry.capability_args(), entry.pod());
        let target = self.target(&list, entry, Verb::Check, &arguments, &Pod { netns, name: &name });
        let addresses = result::addresses(&attached, entry.interface());
        for plugin in &list.plugins {
            let stdin = list.stdin(plugin, &capability_args, Some(&attached), &[]);
            match self.plugins.call(&plugin.kind, &target, stdin, &mut Duration::default()).await {
                Err(error) if addresses.as_ref().is_ok_and(|a| misses_other_family(&error, &a.ips)) => {
                    tracing::debug!(%sandbox, %error, "portmap's CHECK misses rules that its ADD does not make");
                }
                outcome => drop(outcome?),
            }
        }
        Ok(Checkup::Well)
    }
}

/// Whether this is a known fault of portmap (seen in 1.1.1): its CHECK looks for the rules of both families, though its
/// ADD makes those of the pod's own only.
fn misses_other_family(error: &NetworkError, ips: &[IpAddr]) -> bool {
    let NetworkError::Plugin { call, fault } = error else { return false };
    let fault = fault.to_string();
    call.plugin == "portmap"
        && (fault.contains("could not check ipv6 dnat") && !ips.iter().any(IpAddr::is_ipv6)
            || fault.contains("could not check ipv4 dnat") && !ips.iter().any(IpAddr::is_ipv4))
}
