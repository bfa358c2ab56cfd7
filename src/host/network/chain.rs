//! The verbs over one network's list of plugins: ADD forwards, DEL backwards, and those about the network as a whole.
//! Knows nothing of a pod's other networks.

use super::cache::Entry;
use super::directory::Chosen;
use super::error::{CODE_UNKNOWN_CONTAINER, Fault, NetworkError};
use super::list::NetworkList;
use super::plugin::{Target, Verb};
use super::result::{self, PodAddresses};
use super::version::Version;
use super::{INTERFACE, Inner, live_netns};
use serde_json::Map;
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What DEL does after the first failing plugin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterFailure {
    /// Stop, as the specification requires: plugins before it may rely on what is left. DEL is tried again later.
    Stop,
    /// Continue with the other plugins: there may be no later attempt.
    GoOn,
}

/// The pod for which the plugins are called.
pub(super) struct Pod<'a> {
    /// Its namespace as they may have it.
    pub(super) netns: &'a Path,
    /// For messages.
    pub(super) name: &'a str,
}

impl Inner {
    /// Attaches a pod to one network. Undoes a failure; if that fails too, returns both errors and keeps the entry, so
    /// that a later detach or collection continues.
    pub(super) async fn join(
        &self,
        list: &NetworkList,
        entry: &mut Entry,
        pod: &Pod<'_>,
        spent: &mut Duration,
    ) -> Result<PodAddresses, (NetworkError, Vec<NetworkError>)> {
        self.cache.begin(entry).map_err(|error| (error, Vec::new()))?;
        let failed = match self.add(list, entry, pod, spent).await {
            Ok((result, addresses)) => {
                entry.result = Some(result);
                match self.cache.finish(entry) {
                    Ok(()) => return Ok(addresses),
                    Err(error) => (list.plugins.len(), error),
                }
            }
            Err(failed) => failed,
        };
        Err(self.undo(list, entry, pod, failed, spent).await)
    }

    /// ADD over the list. An error comes with the index of the failed plugin, or their number if all succeeded.
    async fn add(
        &self,
        list: &NetworkList,
        entry: &Entry,
        pod: &Pod<'_>,
        spent: &mut Duration,
    ) -> Result<(Box<RawValue>, PodAddresses), (usize, NetworkError)> {
        let arguments = entry.args();
        let target = self.target(list, entry, Verb::Add, &arguments, pod);
        let capability_args = entry.capability_args();
        let bad = |kind: &str, cause| NetworkError::Plugin {
            call: Box::new(target.call(kind)),
            fault: Box::new(Fault::BadResult { cause }),
        };
        let mut last: Option<(Box<RawValue>, &str)> = None;
        for (index, plugin) in list.plugins.iter().enumerate() {
            let previous = last.as_ref().map(|(result, _)| result.as_ref());
            let stdin = list.stdin(plugin, &capability_args, previous, &[]);
            let stdout = self
                .plugins
                .call(&plugin.kind, &target, stdin, spent)
                .await
                .map_err(|error| (index, error))?;
            let result =
                result::accept(&stdout, list.version).map_err(|cause| (index, bad(&plugin.kind, cause)))?;
            last = Some((result, &plugin.kind));
        }
        let no_address = || NetworkError::NoAddress {
            network: list.name.clone(),
            pod: pod.name.to_owned(),
            interface: INTERFACE,
        };
        let all = list.plugins.len();
        let Some((result, kind)) = last else { return Err((all, no_address())) };
        let addresses =
            result::addresses(&result, entry.interface()).map_err(|cause| (all, bad(kind, cause)))?;
        // A further network may have no addresses.
        if addresses.ips.is_empty() && entry.interface() == INTERFACE {
            return Err((all, no_address()));
        }
        Ok((result, addresses))
    }

    /// After a failed ADD. A failure of DEL does not count if ADD did nothing: for plugins that ADD did not reach, and
    /// for the one that failed if it gives the very same error, since then it refuses its configuration. Otherwise a
    /// mistake in a configuration would leave pods that can never be detached.
    async fn undo(
        &self,
        list: &NetworkList,
        entry: &Entry,
        pod: &Pod<'_>,
        (failed, error): (usize, NetworkError),
        spent: &mut Duration,
    ) -> (NetworkError, Vec<NetworkError>) {
        let failures = self.delete(list, entry, pod, AfterFailure::GoOn, spent).await;
        let (counted, ignored): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|(index, undo)| *index < failed || (*index == failed && !says_the_same(&error, undo)));
        for (_, error) in ignored {
            tracing::debug!(%error, "DEL of a plugin that ADD did not reach or that refuses its configuration");
        }
        let mut failures: Vec<_> = counted.into_iter().map(|(_, error)| error).collect();
        if failures.is_empty() {
            failures.extend(self.cache.remove(entry).err());
        }
        (error, failures)
    }

    /// Detaches a pod from one network as it was attached, and forgets the attachment.
    pub(super) async fn leave(
        &self,
        current: &[Chosen],
        entry: &Entry,
        pod: &Pod<'_>,
        spent: &mut Duration,
    ) -> Result<(), NetworkError> {
        let same = current.iter().find(|network| network.list.encoded == entry.config);
        let list = match same {
            Some(network) => Arc::clone(&network.list),
            None => match NetworkList::decode(&entry.config) {
                Ok(list) => Arc::new(list),
                Err(cause) => {
                    // Log: DEL runs with the current configuration instead of the pod's own.
                    // Do: Nothing.
                    tracing::warn!(
                        sandbox = entry.container_id,
                        cause,
                        "the cached CNI configuration is unusable"
                    );
                    let instead = current.iter().find(|network| network.interface == entry.interface());
                    let Some(network) = instead else { return self.cache.remove(entry) };
                    Arc::clone(&network.list)
                }
            },
        };
        // Without a result ADD did not succeed: nothing relies on anything, so everything possible is released.
        let after_failure = if entry.result.is_some() { AfterFailure::Stop } else { AfterFailure::GoOn };
        let failures = self.delete(&list, entry, pod, after_failure, spent).await;
        match failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => self.cache.remove(entry),
        }
    }

    /// DEL for an unknown pod: there may be nothing to release, so failures are only logged.
    pub(super) async fn leave_unknown(
        &self,
        list: &NetworkList,
        entry: &Entry,
        pod: &Pod<'_>,
        spent: &mut Duration,
    ) {
        for (_, error) in self.delete(list, entry, pod, AfterFailure::GoOn, spent).await {
            // Log: DEL ran without a recorded ADD, and failed.
            // Do: Nothing.
            tracing::warn!(%error, "detach of a pod that is not known to be attached");
        }
    }

    /// DEL over the list, backwards. Failures come with the index of their plugin.
    async fn delete(
        &self,
        list: &NetworkList,
        entry: &Entry,
        pod: &Pod<'_>,
        after_failure: AfterFailure,
        spent: &mut Duration,
    ) -> Vec<(usize, NetworkError)> {
        let previous = entry
            .result
            .as_ref()
            .filter(|_| list.version >= Version::DEL_WITH_RESULT)
            .and_then(|result| result::bring_to(result.clone(), list.version).ok());
        let (arguments, capability_args) = (entry.args(), entry.capability_args());
        let mut failures = Vec::new();
        for (index, plugin) in list.plugins.iter().enumerate().rev() {
            let mut target = self.target(list, entry, Verb::Del, &arguments, pod);
            let stdin = list.stdin(plugin, &capability_args, previous.as_deref(), &[]);
            let mut outcome = self.plugins.call(&plugin.kind, &target, stdin.clone(), spent).await;
            // The namespace went away meanwhile: the plugin must free the rest without it.
            if outcome.is_err()
                && !pod.netns.as_os_str().is_empty()
                && live_netns(Some(pod.netns)).as_os_str().is_empty()
            {
                target.netns = Path::new("");
                outcome = self.plugins.call(&plugin.kind, &target, stdin, spent).await;
            }
            match outcome {
                Ok(_) => {}
                Err(error) if knows_no_container(&error) => {
                    tracing::debug!(%error, "nothing to detach");
                }
                Err(error) => {
                    failures.push((index, error));
                    if after_failure == AfterFailure::Stop {
                        break;
                    }
                }
            }
        }
        failures
    }

    pub(super) fn target<'a>(
        &self,
        list: &'a NetworkList,
        entry: &'a Entry,
        verb: Verb,
        args: &'a str,
        pod: &Pod<'a>,
    ) -> Target<'a> {
        let deadline = if verb == Verb::Del { self.del_timeout } else { self.add_timeout };
        Target {
            network: &list.name,
            verb,
            container: &entry.container_id,
            interface: entry.interface(),
            netns: pod.netns,
            args,
            pod: Some(pod.name),
            deadline,
        }
    }

    /// Calls a verb that is about the network as a whole; STATUS ends at the first failure.
    pub(super) async fn whole(
        &self,
        list: &NetworkList,
        verb: Verb,
        deadline: Duration,
        extra: &[(&str, &str)],
    ) -> Vec<NetworkError> {
        let target = Target {
            network: &list.name,
            verb,
            container: "",
            interface: "",
            netns: Path::new(""),
            args: "",
            pod: None,
            deadline,
        };
        let mut failures = Vec::new();
        for plugin in &list.plugins {
            let stdin = list.stdin(plugin, &Map::new(), None, extra);
            if let Err(error) =
                self.plugins.call(&plugin.kind, &target, stdin, &mut Duration::default()).await
            {
                failures.push(error);
                if verb == Verb::Status {
                    break;
                }
            }
        }
        failures
    }

    pub(super) async fn status(&self, list: &NetworkList) -> Result<(), NetworkError> {
        self.whole(list, Verb::Status, self.add_timeout, &[]).await.pop().map_or(Ok(()), Err)
    }
}

/// Whether two calls of a plugin failed for the same stated, lasting reason.
fn says_the_same(add: &NetworkError, del: &NetworkError) -> bool {
    let (NetworkError::Plugin { fault: add, .. }, NetworkError::Plugin { fault: del_fault, .. }) = (add, del)
    else {
        return false;
    };
    match (&**add, &**del_fault) {
        (Fault::Refused { code, msg, .. }, Fault::Refused { code: again, msg: said, .. }) => {
            code == again && msg == said && !del.wants_retry()
        }
        (Fault::Missing { .. }, Fault::Missing { .. }) => true,
        _ => false,
    }
}

fn knows_no_container(error: &NetworkError) -> bool {
    matches!(error, NetworkError::Plugin { fault, .. }
        if matches!(**fault, Fault::Refused { code: CODE_UNKNOWN_CONTAINER, .. }))
}
