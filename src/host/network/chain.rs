//! The verbs over a whole list of plugins: ADD forwards, DEL backwards, STATUS and GC.

use super::cache::Entry;
use super::error::{CODE_UNKNOWN_CONTAINER, Failures, Fault, NetworkError};
use super::list::NetworkList;
use super::plugin::{Target, Verb};
use super::version::Version;
use super::{Attachment, INTERFACE, Inner, PodNetwork, args, live_netns, lock, result};
use crate::model::SandboxId;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often collection looks whether no ADD or DEL runs. It never queues for the lock: a hung plugin would then
/// hold up every new pod.
const GATE_PAUSE: Duration = Duration::from_millis(250);
/// How often it looks before it leaves the rest to the next collection.
const GATE_TRIES: u32 = 120;

/// What DEL does after the first plugin that fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterFailure {
    /// Nothing, as the specification wants: plugins before it may rely on what is left. DEL is tried again later.
    Stop,
    /// The other plugins: there may be no later.
    GoOn,
}

impl Inner {
    pub(super) async fn attach(&self, request: &Attachment) -> Result<PodNetwork, NetworkError> {
        let list = self.current()?;
        let pod = request.pod.to_string();
        let netns = request.netns.as_deref().unwrap_or(Path::new(""));
        let arguments = args::cni_args(request)?;
        let capability_args = args::capability_args(request)?;
        if !request.port_mappings.is_empty() && !list.can(args::PORT_MAPPINGS) {
            tracing::warn!(
                pod,
                network = list.name,
                "pod has host ports, but no plugin of the network maps ports"
            );
        }
        let id = request.sandbox.as_str();
        let mut entry =
            Entry::new(&list.name, Arc::clone(&list.encoded), id, netns, arguments, capability_args);
        let _shared = self.gate.read().await;
        lock(&self.attached).insert(request.sandbox.clone());
        self.cache.begin(&entry)?;
        let mut spent = Duration::ZERO;
        let attached = match self.add(&list, &entry, netns, &pod, &mut spent).await {
            Ok((result, mut network)) => {
                entry.result = Some(result);
                network.plugin_time = spent;
                self.cache.finish(&entry).map(|()| network).map_err(|error| (list.plugins.len(), error))
            }
            Err(error) => Err(error),
        };
        match attached {
            Ok(network) => Ok(network),
            Err(failed) => Err(self.undo(&list, &entry, netns, &pod, failed, &mut spent).await),
        }
    }

    /// ADD over the list. An error comes with the index of the plugin that failed, or their number if all succeeded.
    async fn add(
        &self,
        list: &NetworkList,
        entry: &Entry,
        netns: &Path,
        pod: &str,
        spent: &mut Duration,
    ) -> Result<(Box<RawValue>, PodNetwork), (usize, NetworkError)> {
        let arguments = entry.args();
        let target = self.target(list, entry, Verb::Add, netns, &arguments, pod);
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
            pod: pod.to_owned(),
            interface: INTERFACE,
        };
        let all = list.plugins.len();
        let Some((result, kind)) = last else { return Err((all, no_address())) };
        let addresses = result::addresses(&result, INTERFACE).map_err(|cause| (all, bad(kind, cause)))?;
        if addresses.ips.is_empty() {
            return Err((all, no_address()));
        }
        let network = PodNetwork {
            network: list.name.clone(),
            ips: addresses.ips,
            mac: addresses.mac,
            plugin_time: Duration::ZERO,
        };
        Ok((result, network))
    }

    /// After a failed ADD. If DEL fails too, the entry stays, so that a later detach or collection goes on.
    ///
    /// A failure of DEL does not count where ADD did nothing: of plugins that ADD did not reach, and of the one that
    /// failed if it says the very same again, for then it refuses its configuration. Otherwise a mistake in a
    /// configuration would leave pods that can never be detached.
    async fn undo(
        &self,
        list: &NetworkList,
        entry: &Entry,
        netns: &Path,
        pod: &str,
        (failed, error): (usize, NetworkError),
        spent: &mut Duration,
    ) -> NetworkError {
        let failures = self.delete(list, entry, netns, pod, AfterFailure::GoOn, spent).await;
        let (counted, ignored): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|(index, undo)| *index < failed || (*index == failed && !says_the_same(&error, undo)));
        for (_, error) in ignored {
            tracing::debug!(%error, "DEL of a plugin that ADD did not reach or that refuses its configuration");
        }
        let mut failures: Vec<_> = counted.into_iter().map(|(_, error)| error).collect();
        if failures.is_empty() {
            match self.cache.remove(entry) {
                Ok(()) => self.forget(&entry.container_id),
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            return error;
        }
        NetworkError::NotUndone { error: Box::new(error), undo: Failures(failures) }
    }

    pub(super) async fn detach(&self, request: &Attachment) -> Result<Duration, NetworkError> {
        let _bar = self.checkups.bar(&request.sandbox).await;
        let _shared = self.gate.read().await;
        let netns = live_netns(request.netns.as_deref());
        let pod = request.pod.to_string();
        let mut spent = Duration::ZERO;
        let current = self.current().ok();
        let id = request.sandbox.as_str();
        match self.cache.find(current.as_ref().map(|list| list.name.as_str()), id) {
            Some(entry) => self.detach_cached(current.as_ref(), &entry, &netns, &pod, &mut spent).await?,
            None => {
                if let Some(list) = current {
                    let arguments = args::cni_args(request)?;
                    // A bad annotation stopped ADD before any plugin ran.
                    let capability_args = args::capability_args(request).unwrap_or_default();
                    let config = Arc::clone(&list.encoded);
                    let entry = Entry::new(&list.name, config, id, &netns, arguments, capability_args);
                    for (_, error) in
                        self.delete(&list, &entry, &netns, &pod, AfterFailure::GoOn, &mut spent).await
                    {
                        tracing::warn!(%error, "detach of a pod that is not known to be attached");
                    }
                }
            }
        }
        lock(&self.attached).remove(&request.sandbox);
        Ok(spent)
    }

    async fn detach_cached(
        &self,
        current: Option<&Arc<NetworkList>>,
        entry: &Entry,
        netns: &Path,
        pod: &str,
        spent: &mut Duration,
    ) -> Result<(), NetworkError> {
        let list = match current {
            Some(list) if list.encoded == entry.config => Arc::clone(list),
            _ => match NetworkList::decode(&entry.config) {
                Ok(list) => Arc::new(list),
                Err(cause) => {
                    tracing::warn!(
                        sandbox = entry.container_id,
                        cause,
                        "the cached CNI configuration is unusable"
                    );
                    let Some(list) = current else { return self.cache.remove(entry) };
                    Arc::clone(list)
                }
            },
        };
        // Without a result ADD did not end well: nothing relies on anything, all that can be freed is.
        let after_failure = if entry.result.is_some() { AfterFailure::Stop } else { AfterFailure::GoOn };
        let failures = self.delete(&list, entry, netns, pod, after_failure, spent).await;
        match failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => self.cache.remove(entry),
        }
    }

    /// DEL over the list, backwards. Failures come with the index of their plugin.
    async fn delete(
        &self,
        list: &NetworkList,
        entry: &Entry,
        netns: &Path,
        pod: &str,
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
            let mut target = self.target(list, entry, Verb::Del, netns, &arguments, pod);
            let stdin = list.stdin(plugin, &capability_args, previous.as_deref(), &[]);
            let mut outcome = self.plugins.call(&plugin.kind, &target, stdin.clone(), spent).await;
            // The namespace went away meanwhile: the plugin must free the rest without it.
            if outcome.is_err()
                && !netns.as_os_str().is_empty()
                && live_netns(Some(netns)).as_os_str().is_empty()
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
        netns: &'a Path,
        args: &'a str,
        pod: &'a str,
    ) -> Target<'a> {
        let deadline = if verb == Verb::Del { self.del_timeout } else { self.add_timeout };
        Target {
            network: &list.name,
            verb,
            container: &entry.container_id,
            interface: INTERFACE,
            netns,
            args,
            pod: Some(pod),
            deadline,
        }
    }

    /// Calls a verb that is about the network as a whole; STATUS ends at the first failure.
    async fn whole(
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

    pub(super) async fn collect(&self, valid: &[SandboxId]) {
        let valid: HashSet<&str> = valid.iter().map(SandboxId::as_str).collect();
        for entry in self.cache.all() {
            let id = entry.container_id.as_str();
            if !entry.is_ours() || valid.contains(id) || lock(&self.attached).contains(id) {
                continue;
            }
            let _shared = self.gate.read().await;
            let current = self.current().ok();
            let (netns, pod) = (live_netns(Some(entry.netns())), entry.pod());
            let mut spent = Duration::ZERO;
            match self.detach_cached(current.as_ref(), &entry, &netns, &pod, &mut spent).await {
                Ok(()) => tracing::info!(pod, sandbox = id, "detached a sandbox that no longer exists"),
                Err(error) => {
                    tracing::warn!(%error, sandbox = id, "detach of a sandbox that no longer exists")
                }
            }
        }
        let Ok(list) = self.current() else { return };
        if list.version < Version::STATUS_AND_GC || list.disable_gc {
            return;
        }
        let Some(_alone) = self.alone().await else {
            tracing::warn!(
                network = list.name,
                "no moment without ADD or DEL; CNI GC is left to the next collection"
            );
            return;
        };
        let attachments = self.valid_attachments(&list, &valid).to_string();
        // libcni sends the list under both names; the older one is what first plugins read.
        let extra =
            [("cni.dev/valid-attachments", attachments.as_str()), ("cni.dev/attachments", &attachments)];
        for error in self.whole(&list, Verb::Gc, self.del_timeout, &extra).await {
            tracing::warn!(%error, "CNI garbage collection");
        }
    }

    /// All that the plugins must keep: ours, those of this process, those that others cached.
    fn valid_attachments(&self, list: &NetworkList, valid: &HashSet<&str>) -> Value {
        let mut keep: HashSet<(String, String)> =
            valid.iter().map(|id| ((*id).to_owned(), INTERFACE.to_owned())).collect();
        keep.extend(lock(&self.attached).iter().map(|id| (id.to_string(), INTERFACE.to_owned())));
        // What is still cached could not be detached: it keeps its address until it can.
        let cached = self.cache.all().into_iter().filter(|entry| entry.network_name == list.name);
        keep.extend(cached.map(|entry| (entry.container_id.clone(), entry.interface().to_owned())));
        keep.into_iter().map(|(id, interface)| json!({"containerID": id, "ifname": interface})).collect()
    }

    async fn alone(&self) -> Option<tokio::sync::RwLockWriteGuard<'_, ()>> {
        for _ in 0..GATE_TRIES {
            if let Ok(guard) = self.gate.try_write() {
                return Some(guard);
            }
            tokio::time::sleep(GATE_PAUSE).await;
        }
        None
    }

    fn forget(&self, id: &str) {
        lock(&self.attached).remove(id);
    }
}

/// Whether two calls of a plugin failed for the same stated reason, which is not a passing one.
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
