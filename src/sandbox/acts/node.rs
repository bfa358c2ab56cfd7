//! The mechanisms shared by all pods, and paths on disk. Holds handles, no pod state.

use super::files::PodFiles;
use super::metrics::PodMetrics;
use super::output::OutputBudget;
use super::process_file::ProcessFiles;
use super::records::Records;
use super::trials::UserNamespaces;
use super::writable::WritableLayers;
use crate::config::{Config, Handler};
use crate::host::cgroups::{self, Cgroups, Driver, Leaf};
use crate::host::foreign::Foreign;
use crate::host::network::Network;
use crate::host::oci::{Features, Runtime, Runtimes};
use crate::host::security::apparmor::AppArmor;
use crate::host::security::selinux::Selinux;
use crate::images::Images;
use crate::model::{Clock, ContainerId, NamespaceMode, SandboxId, SandboxSpec};
use crate::sandbox::offload::behind;
use crate::sandbox::spec::HostFacts;
use crate::sandbox::words::error::SandboxError;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// Trees being removed. Inside the directory of the live ones, which may be a file system of its own; no container id
/// looks like this.
const TRASH: &str = ".trash";

/// Everything below the domain, wired once in `main`.
#[derive(Debug)]
pub struct Node {
    /// Configuration.
    pub config: Config,
    /// Records.
    pub records: Records,
    /// CNI.
    pub network: Network,
    /// Images.
    pub images: Images,
    /// OCI runtimes.
    pub runtimes: Runtimes,
    /// Cgroups.
    pub cgroups: Cgroups,
    /// The cgroup driver.
    pub driver: Driver,
    /// The cgroup parent of pods that name none.
    pub default_parent: String,
    /// What the kernel and our own privileges allow, without the runtimes' capabilities.
    pub facts: HostFacts,
    /// AppArmor profiles.
    pub apparmor: AppArmor,
    /// SELinux, if containers are labelled.
    pub selinux: Option<Selinux>,
    /// The monitor's program.
    pub monitor_binary: PathBuf,
    /// Timestamps.
    pub clock: Clock,
    /// Step times.
    pub metrics: PodMetrics,
    /// Threads for paths of the host that requests name.
    pub foreign: Foreign,
    /// Usage of writable layers.
    pub layers: Arc<WritableLayers>,
    /// Execs whose end is awaited.
    pub execs: ExecWaiters,
    /// Process files of commands that are being started.
    pub process_files: ProcessFiles,
    /// Memory for the output of ExecSync.
    pub outputs: OutputBudget,
    /// Whether pods can have user namespaces.
    pub user_namespaces: UserNamespaces,
}

impl Node {
    /// The pod's directory of this boot: socket, files, exit records.
    #[must_use]
    pub fn pod_dir(&self, id: &SandboxId) -> PathBuf {
        self.config.state.join("pods").join(id.as_str())
    }

    /// Bytes that containers have written to the pod's shared files. Blocking.
    #[must_use]
    pub fn written_to_pod_files(&self, id: &SandboxId) -> u64 {
        PodFiles::below(&self.pod_dir(id)).written()
    }

    /// Where the pod's monitor puts exit records.
    #[must_use]
    pub fn exit_dir(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("exits")
    }

    /// The container's bundle.
    #[must_use]
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.config.state.join("containers").join(id.as_str())
    }

    /// The container's writable layer, on disk.
    #[must_use]
    pub fn writable(&self, id: &ContainerId) -> PathBuf {
        self.config.root.join("containers").join(id.as_str())
    }

    /// Directory of writable layers being removed.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.config.root.join("containers").join(TRASH)
    }

    /// Where the pod's network namespace is pinned.
    #[must_use]
    pub fn netns(&self, id: &SandboxId) -> PathBuf {
        self.config.network.netns_dir.join(format!("podwright-{id}"))
    }

    /// The container's cgroup, below its pod's.
    ///
    /// # Errors
    /// When the pod's parent is malformed.
    pub fn leaf(&self, pod: &SandboxSpec, id: &ContainerId) -> Result<Leaf, SandboxError> {
        Ok(cgroups::leaf(self.cgroup_parent(pod), id)?)
    }

    /// The cgroup of the pod's own process 1, below the pod's; none if the pod has no such process.
    ///
    /// # Errors
    /// As [`Self::leaf`].
    pub fn init_leaf(&self, pod: &SandboxSpec) -> Result<Option<Leaf>, SandboxError> {
        let shares = pod.namespaces.pid == NamespaceMode::Pod;
        Ok(shares.then(|| cgroups::init_leaf(self.cgroup_parent(pod), &pod.id)).transpose()?)
    }

    /// The pod's own cgroup, the parent of its containers' cgroups.
    ///
    /// # Errors
    /// As [`Self::leaf`].
    pub fn pod_cgroup(&self, pod: &SandboxSpec) -> Result<PathBuf, SandboxError> {
        Ok(cgroups::parent_path(self.cgroup_parent(pod))?)
    }

    fn cgroup_parent<'a>(&'a self, pod: &'a SandboxSpec) -> &'a str {
        if pod.cgroup_parent.is_empty() { &self.default_parent } else { &pod.cgroup_parent }
    }

    /// The facts, as they are with a handler's runtime.
    pub(in crate::sandbox) fn facts_for(&self, handler: &str) -> HostFacts {
        HostFacts {
            recursive_read_only: self.recursive_read_only(handler),
            plain_propagation: self.features(handler).plain_propagation,
            ..self.facts.clone()
        }
    }

    /// The capabilities of a handler's runtime; none if there is no such handler.
    fn features(&self, handler: &str) -> Features {
        self.runtimes.get(handler).map(|runtime| runtime.features()).unwrap_or_default()
    }

    /// Whether a handler's kernel and runtime support recursive read-only mounts.
    #[must_use]
    pub fn recursive_read_only(&self, handler: &str) -> bool {
        self.facts.recursive_read_only && self.features(handler).recursive_read_only
    }

    /// Whether a handler's runtime must be told the cgroup of a restored process.
    pub(in crate::sandbox) fn restores_into_old_cgroup(&self, handler: &str) -> bool {
        self.cgroups.mode() == cgroups::CgroupMode::V2 && self.features(handler).restores_into_old_cgroup
    }

    /// Call it as soon as the OCI runtime is sure to put a process into a cgroup. Returns at once.
    pub(in crate::sandbox) fn expect_cgroup_moves(&self) {
        let cgroups = self.cgroups.clone();
        behind(move |_| cgroups.hasten_moves());
    }

    /// Whether pods of a handler can have user namespaces of their own. The first call waits for a trial.
    pub async fn has_user_namespaces(&self, handler: &str) -> bool {
        self.user_namespaces.have(handler).await
    }

    /// Whether this pod can have the user namespaces that it requests.
    ///
    /// # Errors
    /// When its handler has none, with the reason.
    pub(in crate::sandbox) async fn check_user_namespace(
        &self,
        pod: &SandboxSpec,
    ) -> Result<(), SandboxError> {
        match &pod.namespaces.user {
            Some(_) => self.user_namespaces.require(&pod.runtime_handler).await,
            None => Ok(()),
        }
    }

    /// Settings of a handler; empty: the default one's.
    pub(in crate::sandbox) fn handler(&self, handler: &str) -> Handler {
        let name = self.runtimes.get(handler).map(|runtime| runtime.name().to_owned()).unwrap_or_default();
        self.config.runtime.handlers.get(&name).cloned().unwrap_or_default()
    }

    /// The runtime of a handler; empty: the default.
    ///
    /// # Errors
    /// If there is none of that name, or its program is missing.
    pub fn runtime(&self, handler: &str) -> Result<Arc<Runtime>, SandboxError> {
        let runtime = self.runtimes.get(handler).ok_or_else(|| SandboxError::UnknownHandler {
            handler: handler.to_owned(),
            known: self.runtimes.names().join(", "),
        })?;
        runtime.present()?;
        Ok(runtime)
    }
}

/// Waiters for an exec's end, by exec id. Locked briefly, never over an await.
#[derive(Debug, Default)]
pub struct ExecWaiters(Mutex<HashMap<String, oneshot::Sender<i32>>>);

impl ExecWaiters {
    /// Waits for the end of `exec_id`; call it before the exec starts, since that may end at once.
    pub fn expect(&self, exec_id: &str) -> oneshot::Receiver<i32> {
        let (tell, told) = oneshot::channel();
        self.lock().insert(exec_id.to_owned(), tell);
        told
    }

    /// Notifies the waiter, if there still is one.
    pub fn ended(&self, exec_id: &str, exit_code: i32) {
        if let Some(waiter) = self.lock().remove(exec_id) {
            // A waiter that went away needs no answer.
            let _ = waiter.send(exit_code);
        }
    }

    /// Waits no more.
    pub fn forget(&self, exec_id: &str) {
        self.lock().remove(exec_id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<i32>>> {
        // A panic while it was held leaves a map that is still whole.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
