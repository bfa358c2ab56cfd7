//! Whether pods can have user namespaces of their own: tested once per daemon and handler. Knows no pod.

use super::node::Node;
use crate::host::cgroups::Driver;
use crate::host::oci::{self, Surroundings};
use crate::host::rootfs::{self, IdMap, IdRange, RootfsError};
use crate::sandbox::words::error::SandboxError;
use podwright_sys::namespace;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// Ids of the trial: what a kubelet gives a pod at the least, from where it gives none.
const TRIAL: IdRange = IdRange { inside: 0, outside: 4_000_000_000, count: 65_536 };
/// For one runtime's trial, which takes tens of milliseconds; Status waits for the first.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);

/// A user namespace to test OCI runtimes with, and another that belongs to it; both live as long as this.
#[derive(Debug)]
pub struct TrialNamespace {
    /// Hold them.
    _held: (IdMap, OwnedFd),
    path: String,
    uts: String,
}

impl TrialNamespace {
    /// Makes one. Blocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make() -> Result<Self, RootfsError> {
        let held = IdMap::with_uts(vec![TRIAL], vec![TRIAL])?;
        let (path, uts) = (namespace::path_of(held.0.namespace()), namespace::path_of(&held.1));
        Ok(Self { _held: held, path, uts })
    }

    /// For a runtime.
    #[must_use]
    pub fn user(&self) -> oci::UserNamespace<'_> {
        let owner = (TRIAL.outside, TRIAL.outside);
        oci::UserNamespace { path: &self.path, uts: &self.uts, owner, count: TRIAL.count }
    }
}

/// The result.
#[derive(Debug, Clone, Default)]
pub struct UserNamespaces(OnceCell<Arc<Found>>);

/// Why a handler cannot, or None.
type Found = BTreeMap<String, Option<String>>;

impl UserNamespaces {
    /// Whether pods of a handler can have them; the name of the default is empty. Waits for the trial if necessary.
    pub(in crate::sandbox) async fn have(node: &Arc<Node>, handler: &str) -> bool {
        found(node).await.is_some_and(|found| found.get(handler).is_some_and(Option::is_none))
    }

    /// As [`Self::have`], with the reason.
    pub(in crate::sandbox) async fn require(node: &Arc<Node>, handler: &str) -> Result<(), SandboxError> {
        let found = found(node).await.ok_or(SandboxError::ShuttingDown)?;
        match found.get(handler) {
            Some(None) => Ok(()),
            Some(Some(why)) => Err(SandboxError::NoUserNamespaces { why: why.clone() }),
            None => Err(SandboxError::UnknownHandler {
                handler: handler.to_owned(),
                known: node.runtimes.names().join(", "),
            }),
        }
    }
}

/// On a task of its own: a caller who goes away must not leave half a trial.
async fn found(node: &Arc<Node>) -> Option<Arc<Found>> {
    if let Some(found) = node.user_namespaces.0.get() {
        return Some(found.clone());
    }
    let node = node.clone();
    let trial = tokio::spawn(async move {
        let cell = &node.user_namespaces.0;
        cell.get_or_init(|| async { Arc::new(try_all(&node).await) }).await.clone()
    });
    trial.await.ok()
}

async fn try_all(node: &Node) -> Found {
    let root = node.config.root.clone();
    let kernel = tokio::task::spawn_blocking(move || try_kernel(&root)).await;
    let namespace = match kernel {
        Ok(Ok(namespace)) => Ok(namespace),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the trial was ended".to_owned()),
    };
    let mut found = Found::new();
    for name in node.runtimes.names() {
        let why = match &namespace {
            Ok(namespace) => try_runtime(node, &name, namespace).await.err(),
            Err(why) => Some(why.clone()),
        };
        match &why {
            // Log: At start, for each handler.
            None => tracing::info!(handler = name, "pods can have user namespaces"),
            // Log: At start, for each handler, with the reason.
            Some(why) => tracing::info!(handler = name, why, "pods cannot have user namespaces"),
        }
        found.insert(name, why);
    }
    if let Some(default) = node.runtimes.get("") {
        let of_default = found.get(default.name()).cloned().flatten();
        found.insert(String::new(), of_default);
    }
    found
}

/// Blocking.
fn try_kernel(root: &Path) -> Result<TrialNamespace, RootfsError> {
    rootfs::supports_idmap(root)?;
    TrialNamespace::make()
}

async fn try_runtime(node: &Node, name: &str, namespace: &TrialNamespace) -> Result<(), String> {
    let runtime = node.runtimes.get(name).ok_or("it is not configured")?;
    runtime.present().map_err(|error| error.to_string())?;
    let around = Surroundings {
        state: &node.config.state,
        systemd: node.driver == Driver::Systemd,
        probe_cgroup: &|name| node.driver.oci_path(&node.default_parent, name),
    };
    let trial = runtime.try_user_namespace(around, namespace.user());
    match tokio::time::timeout(TRIAL_LIMIT, trial).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("its trial took more than {TRIAL_LIMIT:?}")),
    }
}
