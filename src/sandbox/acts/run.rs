//! Running a container from its bundle, and changing its limits. Decides nothing about states: that is `life::pod`.

use super::launch;
use super::node::Node;
use super::private::write_private;
use super::restore;
use super::room;
use crate::host::monitor::{Monitor, RestoreRequest, RunRequest};
use crate::host::oci::{Runtime, criu_words};
use crate::model::{ContainerId, ContainerSpec, NamespaceMode, Resources, SandboxSpec};
use crate::sandbox::offload::{behind, blocking};
use crate::sandbox::spec;
use crate::sandbox::words::checkpoint_error::CheckpointError;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::state::{ContainerState, Init};
use std::path::Path;
use std::sync::Arc;

/// The process whose pid namespace a TARGET container joins.
pub(in crate::sandbox) fn target(
    spec: &ContainerSpec,
    state_of: impl Fn(&ContainerId) -> Option<ContainerState>,
) -> Result<Option<Init>, SandboxError> {
    let NamespaceMode::Target(target) = &spec.security.namespaces.pid else { return Ok(None) };
    let refuse = |why| SandboxError::Target { target: target.to_string(), why };
    match state_of(target) {
        None => Err(refuse("it is not a container of this pod sandbox")),
        Some(ContainerState::Running { init, .. }) => Ok(Some(init)),
        Some(_) => Err(refuse(NOT_RUNNING)),
    }
}

pub(in crate::sandbox) const NOT_RUNNING: &str = "it is not running";

/// Has the monitor run the container.
pub(in crate::sandbox) async fn start(
    node: &Arc<Node>,
    monitor: &Monitor,
    pod: &SandboxSpec,
    spec: &ContainerSpec,
    runtime: &Runtime,
) -> Result<Init, SandboxError> {
    let (own, bundle) = (node.clone(), node.places.bundle(&spec.id));
    blocking(move |off| room::check(off, &own.config, room::For::Start, room::config_bytes(off, &bundle)))
        .await?;
    let request = RunRequest {
        container_id: spec.id.to_string(),
        runtime: runtime.command(),
        bundle: text(&node.places.bundle(&spec.id)),
        log_path: spec.log_path.as_deref().map(text),
        log_directory: pod.log_directory.as_deref().map(text),
        terminal: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        deadline_ms: u64::try_from(node.config.runtime_timeout().as_millis()).ok(),
        cgroup: Some(text(node.cgroups.leaf(pod, &spec.id)?.path())),
        restore: spec.restore.as_ref().map(|_| RestoreRequest {
            images: text(&restore::images(&node.places.writable(&spec.id))),
            work: text(&restore::work(&node.places.writable(&spec.id))),
        }),
        no_new_keyring: false,
    };
    let created = node.metrics.step("start_container", "runtime", launch::run(monitor, request)).await;
    if spec.restore.is_some() {
        let writable = node.places.writable(&spec.id);
        behind(move |_| restore::forget_images(&writable));
    }
    match created {
        Ok(created) => Ok(Init { pid: created.pid, start_time: created.start_time }),
        Err(error) => {
            if spec.restore.is_none() {
                return Err(error.into());
            }
            let log = restore::work(&node.places.writable(&spec.id)).join("restore.log");
            match blocking(move |_| Ok(criu_words(&log))).await? {
                Some(said) => Err(CheckpointError::Start { error: Box::new(error), said }.into()),
                None => Err(error.into()),
            }
        }
    }
}

/// The limits after an update. The score of the OOM killer is that of a process, which an update does not reach.
pub(in crate::sandbox) fn updated(old: &Resources, update: &Resources) -> Resources {
    let mut new = Resources { oom_score_adj: old.oom_score_adj, ..old.updated_by(update) };
    if update.memory_limit != 0 && update.memory_swap_limit == 0 && old.memory_swap_limit == old.memory_limit
    {
        // No swap before, none afterwards.
        new.memory_swap_limit = 0;
    }
    new
}

/// Applies limits: `live` to the processes, else to the bundle from which they will start. On an error the `old` ones
/// are in force again.
pub(in crate::sandbox) async fn update(
    node: &Arc<Node>,
    pod: &SandboxSpec,
    id: &ContainerId,
    runtime: &Runtime,
    (old, asked): (&Resources, &Resources),
    live: bool,
) -> Result<(), SandboxError> {
    let in_oci_terms =
        |limits| spec::linux_resources(limits, node.config.containers.pids_limit, &node.handlers.facts);
    let limits = in_oci_terms(asked)?;
    let config = node.places.bundle(id).join("config.json");
    let malformed = |e: serde_json::Error| SandboxError::io("change", &config)(std::io::Error::from(e));
    let limits = serde_json::to_value(limits).map_err(malformed)?;
    if live {
        check_memory_in_use(node, pod, id, asked).await?;
        let Err(cause) = runtime.update(id.as_str(), &limits).await else { return Ok(()) };
        // It may have written some of them before one was refused.
        let old = serde_json::to_value(in_oci_terms(old)?).map_err(malformed)?;
        return match runtime.update(id.as_str(), &old).await {
            Ok(()) => Err(cause.into()),
            Err(undo) => Err(SandboxError::Several(vec![cause.into(), undo.into()])),
        };
    }
    let config = config.clone();
    blocking(move |off| {
        let text = std::fs::read(&config).map_err(SandboxError::io("read", &config))?;
        let text = with_limits(&text, limits)
            .map_err(|e| SandboxError::io("change", &config)(std::io::Error::from(e)))?;
        let new = config.with_extension("json.new");
        // Half of one would stay for as long as the container does.
        write_private(off, &new, &text).inspect_err(|_| drop(std::fs::remove_file(&new)))?;
        std::fs::rename(&new, &config).map_err(SandboxError::io("replace", &config))
    })
    .await
}

/// Refuses a memory limit that could only be kept by killing: of v1 the kernel does so, of v2 runc does, but not where
/// systemd writes it.
async fn check_memory_in_use(
    node: &Arc<Node>,
    pod: &SandboxSpec,
    id: &ContainerId,
    asked: &Resources,
) -> Result<(), SandboxError> {
    let (cgroups, leaf) = (node.cgroups.kernel.clone(), node.cgroups.leaf(pod, id)?);
    let stats = blocking(move |_| Ok(cgroups.stats(leaf.path())?)).await?;
    let used = stats.memory.map_or(0, |memory| memory.working_set);
    let limit = u64::try_from(asked.memory_limit).unwrap_or(0);
    if limit == 0 || limit >= used {
        return Ok(());
    }
    let (field, value) = ("memory_limit_in_bytes", format!("{limit} (in use: {used})"));
    let reason = "is below what the container uses now, and would have it killed";
    Err(spec::SpecError::Resource { field, value, reason }.into())
}

/// An OCI configuration with other limits; what they do not name (the device rules) stays.
fn with_limits(config: &[u8], limits: serde_json::Value) -> serde_json::Result<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config)?;
    if let serde_json::Value::Object(limits) = limits {
        for (name, limit) in limits {
            config["linux"]["resources"][name.as_str()] = limit;
        }
    }
    serde_json::to_vec(&config)
}

/// Has the monitor drop an ended container and its exit record.
pub(in crate::sandbox) async fn forget(monitor: &Monitor, id: &ContainerId) {
    if let Err(error) = monitor.forget(id.to_string()).await {
        tracing::debug!(container = %id, %error, "the monitor did not know the container");
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
