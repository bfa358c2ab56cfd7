//! The pod network: CNI plugins, called as a CRI runtime must.
//!
//! Owns the configuration directory's meaning, plugin calls and the libcni-compatible result cache. Never creates or
//! removes network namespaces, never brings up loopback, never maps ports itself (the `portmap` plugin does).
//! Operations on one sandbox must come one after the other; different sandboxes run side by side.

mod args;
mod attachments;
mod cache;
mod chain;
mod checkup;
mod collect;
mod configure;
mod directory;
mod error;
mod examine;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod health;
mod list;
mod orphans;
mod plugin;
mod result;
mod template;
mod version;
mod watch;

#[cfg(test)]
mod debian_tests;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod several_tests;
#[cfg(test)]
mod tests;

pub use checkup::Checkup;
pub use configure::PodRanges;
pub use error::{Call, Failures, Fault, NetworkError};
pub use examine::{Configured, Examination, examine};
pub use health::Readiness;
pub use orphans::Leaving;
pub use plugin::{CallOutcome, PluginCall, Verb};

use crate::config;
use crate::model::{DnsConfig, PodName, PortMapping, SandboxId};
use cache::Cache;
use directory::Chosen;
use health::{Current, Health};
use plugin::Plugins;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use version::Version;
use watch::Watch;

/// The interface that has the pod's addresses, by convention of all CRI runtimes: the first network's.
const INTERFACE: &str = "eth0";

/// Inputs of a pod's network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its network namespace; None, or vanished: detach without.
    pub netns: Option<PathBuf>,
    /// The pod's name.
    pub pod: PodName,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's cgroup; empty: not passed.
    pub cgroup_parent: String,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its DNS configuration.
    pub dns: Option<DnsConfig>,
}

/// The network that a pod got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// Name of the CNI network, the first one's of several.
    pub network: String,
    /// Addresses of eth0, at least one, the primary first.
    pub ips: Vec<IpAddr>,
    /// MAC of eth0, if the plugins reported one.
    pub mac: Option<String>,
    /// Its further networks (`network.max_conf_num`). As in containerd, none of their addresses are the pod's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<FurtherInterface>,
    /// Time spent in plugins; not saved.
    #[serde(skip)]
    pub plugin_time: Duration,
}

/// One more interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherInterface {
    /// Name of the CNI network.
    pub network: String,
    /// Its name in the pod.
    pub interface: String,
    /// Its addresses; a network may give none.
    pub ips: Vec<IpAddr>,
    /// Its MAC, if the plugins reported one.
    pub mac: Option<String>,
}

/// The node's pod network. Clones share everything.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("conf_dir", &self.inner.conf_dir).finish_non_exhaustive()
    }
}

struct Inner {
    conf_dir: PathBuf,
    /// Configurations of the directory that count; 0: all.
    max_conf_num: usize,
    cache: Cache,
    plugins: Plugins,
    add_timeout: Duration,
    del_timeout: Duration,
    runtime: Handle,
    /// The current configuration and the verdict on it.
    health: Mutex<Health>,
    /// Sandboxes attached by this process: valid even if a caller of collect does not know them.
    attached: Mutex<HashSet<SandboxId>>,
    /// Running CHECKs: DEL of the same sandbox ends one.
    checkups: checkup::Checkups,
    /// ADD and DEL share it; GC has it alone.
    gate: tokio::sync::RwLock<()>,
    /// Reloads the configuration; None: no watch could be had, each readiness check reloads instead.
    watcher: Mutex<Option<AbortHandle>>,
    /// Plugins of an earlier daemon that are in DEL.
    leaving: Mutex<Leaving>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.watcher).take() {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// Loads the configuration and watches its directory. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// None today: without configuration the network is not ready, without a watch the directory is read again with
    /// each readiness check.
    pub fn start(config: &config::Network) -> Result<Self, NetworkError> {
        let inner = Arc::new(Inner::new(config));
        // The watch comes first, so that no change falls between it and the load.
        match Watch::new(&config.conf_dir) {
            Ok(watch) => {
                inner.reload(Some(&watch));
                let task = tokio::spawn(follow(watch, Arc::downgrade(&inner)));
                *lock(&inner.watcher) = Some(task.abort_handle());
            }
            Err(error) => {
                // Log: Each status call reads the directory instead.
                // Do: Create the directory, or raise `fs.inotify.max_user_instances`.
                tracing::warn!(dir = %config.conf_dir.display(), %error, "cannot watch the CNI configuration directory");
                inner.reload(None);
            }
        }
        let network = Self { inner };
        // Starts the first check.
        drop(network.readiness());
        Ok(network)
    }

    /// Reports every finished plugin call to `observer`, for metrics. Only the first observer counts.
    pub fn observe_plugins(&self, observer: impl Fn(&PluginCall<'_>) + Send + Sync + 'static) {
        if !self.inner.plugins.observe(Box::new(observer)) {
            // Log: A defect without effect.
            // Do: Report it.
            tracing::warn!("plugin calls have an observer already");
        }
    }

    /// Whether pods can get a network, by the last verdict. If that is old, starts a check in the background.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let mut health = lock(&self.inner.health);
        if let Some((networks, generation)) = health.start_check(Instant::now()) {
            let inner = Arc::downgrade(&self.inner);
            self.inner.runtime.spawn(check(inner, networks, generation));
        }
        match (health.current(), health.problem()) {
            (Err(reason), _) => Readiness::NotReady { reason: self.inner.not_configured(reason).to_string() },
            (Ok(_), Some(problem)) => Readiness::NotReady { reason: problem.to_owned() },
            (Ok(current), None) => Readiness::Ready {
                networks: current.networks.iter().map(|network| network.list.name.clone()).collect(),
            },
        }
    }

    /// Attaches a pod to each network in turn (ADD). If one fails, undoes all (DEL) before returning the error.
    ///
    /// The caller records its intent before; if the future is dropped, [`Network::detach`] undoes what was done.
    ///
    /// # Errors
    /// No configuration, a failed plugin, no address.
    pub async fn attach(&self, request: &Attachment) -> Result<PodNetwork, NetworkError> {
        self.inner.attach(request).await
    }

    /// Detaches a pod (DEL) from each of its networks, the last first, with the configuration and arguments of its
    /// attachment; returns the time spent in plugins. Repeatable. Without a known attachment, runs DEL with the current
    /// configuration and only logs errors: there is probably nothing to detach.
    ///
    /// # Errors
    /// A plugin failed; the other networks were detached nevertheless, this attachment stays known and detach can be
    /// repeated.
    pub async fn detach(&self, request: &Attachment) -> Result<Duration, NetworkError> {
        self.inner.detach(request).await
    }

    /// Ends the plugins that an earlier daemon called for these sandboxes, but for those in DEL, which go on and are waited
    /// for by [`Network::detach`]; to be called before any other call for them. Blocking.
    pub fn end_orphans(sandboxes: &HashSet<&str>) -> Leaving {
        orphans::end(sandboxes)
    }

    /// Has detaching wait for plugins that were let go on.
    pub fn wait_for(&self, leaving: Leaving) {
        lock(&self.inner.leaving).extend(leaving);
    }

    /// Asks the plugins whether a pod is still attached as it was (CHECK). A detach of the same sandbox ends this
    /// early, without a finding.
    ///
    /// # Errors
    /// The finding of the first plugin that has one.
    pub async fn check(&self, sandbox: &SandboxId, netns: &Path) -> Result<Checkup, NetworkError> {
        self.inner.check(sandbox, netns).await
    }

    /// Detaches this daemon's attachments of vanished sandboxes, then has the plugins collect (GC, CNI 1.1). Other
    /// runtimes' entries in the same directory stay valid. Failures are logged; the next call continues.
    pub async fn collect(&self, valid: &[SandboxId]) {
        self.inner.collect(valid).await;
    }

    /// The configuration in use, for verbose Status.
    #[must_use]
    pub fn config_summary(&self) -> serde_json::Value {
        let inner = &self.inner;
        let mut summary = serde_json::json!({
            "confDir": inner.conf_dir, "binDirs": inner.plugins.dirs(), "interface": INTERFACE,
        });
        match lock(&inner.health).current() {
            Err(reason) => summary["error"] = reason.into(),
            Ok(Current { networks, skipped }) => {
                summary["maxConfNum"] = inner.max_conf_num.into();
                summary["skippedFiles"] = skipped.as_slice().into();
                let mut all = networks.iter().map(describe);
                for (key, value) in all.next().into_iter().flatten() {
                    summary[key] = value;
                }
                let further: Vec<_> = all.map(serde_json::Value::Object).collect();
                if !further.is_empty() {
                    summary["furtherNetworks"] = further.into();
                }
            }
        }
        summary
    }
}

impl Inner {
    fn new(config: &config::Network) -> Self {
        Self {
            conf_dir: config.conf_dir.clone(),
            max_conf_num: config.max_conf_num,
            cache: Cache::new(&config.cache_dir),
            plugins: Plugins::new(&config.bin_dirs),
            add_timeout: Duration::from_secs(config.add_timeout_seconds),
            del_timeout: Duration::from_secs(config.del_timeout_seconds),
            runtime: Handle::current(),
            health: Mutex::new(Health::new()),
            attached: Mutex::default(),
            checkups: checkup::Checkups::default(),
            gate: tokio::sync::RwLock::new(()),
            watcher: Mutex::default(),
            leaving: Mutex::default(),
        }
    }

    fn reload(&self, watch: Option<&Watch>) {
        let mut loaded = directory::load(&self.conf_dir, self.max_conf_num);
        if let (Some(watch), directory::Loaded::Networks { chosen, .. }) = (watch, &loaded) {
            let mut with_drop_ins =
                chosen.iter().filter(|n| n.list.version >= Version::STATUS_AND_GC).peekable();
            if with_drop_ins.peek().is_some() {
                with_drop_ins.for_each(|network| watch.drop_ins(&network.list.name));
                // Once more: drop-ins may have appeared between the load and the watch.
                loaded = directory::load(&self.conf_dir, self.max_conf_num);
            }
        }
        lock(&self.health).load(loaded, |networks| self.first_look(networks));
    }

    /// The verdict on a configuration without calling its plugins.
    fn first_look(&self, networks: &[Chosen]) -> Option<String> {
        networks.iter().find_map(|network| self.missing_plugins(network)).or_else(|| {
            let unasked = networks.iter().find(|network| network.list.version >= Version::STATUS_AND_GC)?;
            Some(format!("CNI network {}: its plugins have not answered STATUS yet", unasked.list.name))
        })
    }

    fn missing_plugins(&self, network: &Chosen) -> Option<String> {
        let missing: Vec<&str> = network
            .list
            .plugins
            .iter()
            .map(|p| p.kind.as_str())
            .filter(|kind| self.plugins.find(kind).is_none())
            .collect();
        (!missing.is_empty()).then(|| {
            let (plugins, dirs) = (missing.join(", "), error::list(self.plugins.dirs()));
            format!("CNI network {}: no executable {plugins} in {dirs}", network.list.name)
        })
    }

    fn not_configured(&self, reason: &str) -> NetworkError {
        NetworkError::NotConfigured { dir: self.conf_dir.clone(), reason: reason.to_owned() }
    }

    fn current(&self) -> Result<Arc<[Chosen]>, NetworkError> {
        match lock(&self.health).current() {
            Ok(current) => Ok(Arc::clone(&current.networks)),
            Err(reason) => Err(self.not_configured(reason)),
        }
    }
}

/// Reloads after every change, until the network is dropped.
async fn follow(mut watch: Watch, inner: Weak<Inner>) {
    loop {
        let changed = watch.changed().await;
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = changed {
            // Log: Changes are still found.
            // Do: Create the directory, or raise `fs.inotify.max_user_instances`.
            tracing::warn!(%error, "the watch of the CNI configuration directory failed; it is read regularly instead");
            *lock(&inner.watcher) = None;
            return;
        }
        inner.reload(Some(&watch));
    }
}

/// A check in the background: do the plugins exist, and do they report that they can work?
async fn check(inner: Weak<Inner>, networks: Arc<[Chosen]>, generation: u64) {
    let Some(inner) = inner.upgrade() else { return };
    if lock(&inner.watcher).is_none() {
        inner.reload(None);
    }
    let mut problem = networks.iter().find_map(|network| inner.missing_plugins(network));
    for network in &*networks {
        if problem.is_none() && network.list.version >= Version::STATUS_AND_GC {
            problem = inner.status(&network.list).await.err().map(|error| error.to_string());
        }
    }
    lock(&inner.health).verdict(generation, problem, Instant::now());
}

/// A network for verbose Status.
fn describe(network: &Chosen) -> serde_json::Map<String, serde_json::Value> {
    let Chosen { list, file, interface } = network;
    let plugins: serde_json::Value = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
    let entries = [
        ("interface", interface.as_str().into()),
        ("network", list.name.as_str().into()),
        ("cniVersion", list.version.as_str().into()),
        ("file", file.to_string_lossy().into()),
        ("plugins", plugins),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// The namespace for plugins: empty unless it is still a network namespace. After a reboot the file that pinned it is a
/// plain one.
fn live_netns(netns: Option<&Path>) -> PathBuf {
    /// `NSFS_MAGIC` of linux/magic.h.
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    netns
        .filter(|path| rustix::fs::statfs(*path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC))
        .map(Path::to_owned)
        .unwrap_or_default()
}
