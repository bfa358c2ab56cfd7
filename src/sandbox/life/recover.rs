//! What a daemon does with what an earlier one left: reads the records, looks at what is really there, decides by a
//! pure table, then starts the pods' tasks. Serving begins after this.
//!
//! A monitor that does not answer at once holds up neither the socket nor another pod: its pod is shown as recorded, and
//! its task goes on asking. Only what is proved dead is dead: an error of looking says nothing about the monitor, and ends
//! nothing that runs.
//!
//! It assumes: a record is written before its effect; a monitor that answers tells the truth about its containers; an
//! exit record is written before anyone is told. It cleans only below our own directories.

use super::announce::Announcer;
use super::index::Index;
use super::manager::Manager;
use super::pod::{Container, Pod};
use super::shared::Shared;
use crate::host::foreign::Asked;
use crate::host::network::Network;
use crate::model::{SandboxId, Timestamp};
use crate::sandbox::acts::adopt::{Found, Heard, look_for, observe};
use crate::sandbox::acts::bring_up;
use crate::sandbox::acts::bundle;
use crate::sandbox::acts::creation;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::sweep::{end_stranger, report, sweep};
use crate::sandbox::acts::volumes;
use crate::sandbox::checkpoint;
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::reconcile::{Decision, MonitorSeen, decide_container, decide_sandbox};
use crate::sandbox::words::record::{Loaded, StoredContainer, StoredPod};
use crate::sandbox::words::state::{ContainerState, SandboxState};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Reads everything back and starts the tasks.
///
/// # Errors
/// Only when the records' directory cannot be listed; one broken pod never stops the others.
pub async fn recover(node: Arc<Node>, announcer: Announcer) -> Result<Manager, SandboxError> {
    let records = node.records.clone();
    let Loaded { pods, unread, broken } = blocking(move |off| Ok(records.load(off)?)).await?;
    for error in broken {
        // Log: A record could not be read at start, and stays as it is. A container is listed as `Unknown` with what can be read,
        // and can be stopped and removed. A pod runs on and is not listed.
        // Do: Repair the file, or go back to the newer podwright that wrote it, and restart. If a pod's is beyond repair: end its processes, then delete its directory below `<root>/pods`.
        tracing::error!(%error, "a record cannot be read");
    }
    let shared = Shared { node: node.clone(), index: Index::default(), announcer: Arc::new(announcer) };
    let manager = Manager::new(shared.clone());
    let mut known = HashSet::new();
    known.extend(unread);
    for pod in &pods {
        known.insert(pod.spec.id.to_string());
        known.extend(pod.containers.iter().map(|c| c.spec.id.to_string()));
    }
    end_orphans(&node, &pods).await;
    // Side by side: one that is waited for holds up no other.
    let recovered = pods.into_iter().map(async |pod| {
        let id = pod.spec.id.clone();
        if let Err(error) = recover_pod(&shared, pod).await {
            // Log: At start a recorded pod could not be examined.
            // Do: See `error`; the next start tries again.
            tracing::error!(sandbox = %id, %error, "cannot take up a pod");
        }
    });
    futures_util::future::join_all(recovered).await;
    // Beside the rest: a CRIU of the earlier daemon may have to be waited for.
    tokio::spawn(checkpoint::thaw(node.clone(), checkpoint::Leftovers::find(&node)));
    sweep(&node, &known).await;
    let images = node.images.clone();
    let forgotten = blocking(move |_| Ok(images.recovered()?)).await;
    report(&node.config.root.join("images"), forgotten);
    Ok(manager)
}

/// How long processes' environments are read: a process that maps a file of a dead server holds up whoever reads its.
const ORPHANS_LIMIT: Duration = Duration::from_secs(5);

/// CNI plugins that the earlier daemon was waiting for.
async fn end_orphans(node: &Arc<Node>, pods: &[StoredPod]) {
    let ids: Vec<SandboxId> = pods.iter().filter(|p| p.this_boot).map(|p| p.spec.id.clone()).collect();
    let places = vec![PathBuf::from("/proc/<pid>/environ")];
    let asked = Asked { pod: String::new(), places, limit: ORPHANS_LIMIT };
    let ended = node
        .foreign
        .apart(asked, move |_, _| Network::end_orphans(&ids.iter().map(SandboxId::as_str).collect()));
    let ended = ended.await.map(|(leaving, _)| node.network.wait_for(leaving));
    report(Path::new("/proc"), ended.map_err(SandboxError::from));
}

async fn recover_pod(shared: &Shared, stored: StoredPod) -> Result<(), SandboxError> {
    let Shared { node, index, .. } = shared;
    let runtime =
        node.handlers.runtime(&stored.spec.runtime_handler).or_else(|_| node.handlers.runtime(""))?;
    let dir = node.places.pod_dir(&stored.spec.id);
    let recorded = stored.state.as_ref().map(|s| &s.sandbox);
    let process = stored.state.as_ref().and_then(|s| s.monitor);
    let found = match (stored.this_boot, recorded) {
        (false, _) => Found::Nothing,
        (true, Some(SandboxState::Ready { .. })) => look_for(&dir, process, true).await,
        (true, _) => look_for(&dir, process, false).await,
    };
    let seen = match (&found, stored.this_boot) {
        (Found::Answering(_), _) => MonitorSeen::Alive,
        (Found::Unknown { .. }, _) => MonitorSeen::Unknown,
        (Found::Nothing, true) => MonitorSeen::Dead,
        (Found::Nothing, false) => MonitorSeen::Rebooted,
    };
    let gone = matches!(seen, MonitorSeen::Dead | MonitorSeen::Rebooted);
    if gone && matches!(recorded, Some(SandboxState::Ready { .. })) {
        // Log: At start: its process has ended while no daemon ran. Its containers count as lost.
        // Do: Look for what killed it; the kubelet makes the pod anew.
        tracing::warn!(sandbox = %stored.spec.id, pod = %stored.spec.name, "the monitor of a pod that was ready is gone");
    }
    let state = decide_sandbox(recorded, seen);
    let spec = Arc::new(stored.spec);
    let mut pod = Pod::new(shared, spec.clone(), runtime, state);
    let alive = matches!(found, Found::Answering(_));
    let (monitor, events, reports, answer) = match found {
        Found::Answering((monitor, events, reports)) => (Some(monitor), Some(events), Some(reports), None),
        Found::Unknown { monitor, answer } => (monitor, None, None, Some(answer)),
        Found::Nothing => (None, None, Some(HashMap::new()), None),
    };
    pod.monitor = monitor;
    pod.process = process.filter(|_| !gone);
    pod.limits = stored.state.and_then(|s| s.limits);
    if let Some(reports) = &reports {
        let strangers =
            reports.keys().filter(|id| !stored.containers.iter().any(|c| c.spec.id.as_str() == id.as_str()));
        for id in strangers {
            end_stranger(node, &pod.spec, &pod.runtime, pod.monitor.as_ref(), id).await;
        }
    }
    for container in stored.containers {
        recover_container(node, index, &mut pod, container, Heard::of(reports.as_ref(), alive)).await;
    }
    if let Err(error) = bring_up::write_state(node, &spec, pod.record()).await {
        // Log: Writing below `root` failed at start. The state in memory is right.
        // Do: Free the disk, or mount it writable.
        tracing::error!(sandbox = %spec.id, %error, "cannot record a sandbox's state");
    }
    index.add_pod(&spec, pod.spawn_recovered(events, answer));
    Ok(())
}

async fn recover_container(
    node: &Arc<Node>,
    index: &Index,
    pod: &mut Pod,
    stored: StoredContainer,
    heard: Heard<'_>,
) {
    let spec = Arc::new(stored.spec);
    let seen = observe(node, &pod.spec.id, &spec.id, heard).await;
    let recorded = stored.state;
    let decision = decide_container(recorded.as_ref().map(|r| &r.container), &seen, Timestamp::now());
    let decision = match decision {
        // What it was is not known.
        Decision::Undo if stored.unread => Decision::Keep(ContainerState::Created),
        decision => decision,
    };
    match decision {
        Decision::Undo => {
            let undone = bundle::remove(node, &spec).await;
            match undone {
                Ok(()) => creation::forget(node, &pod.spec.id, &spec.id).await,
                Err(error) => {
                    tracing::error!(container = %spec.id, %error, "cannot undo an unfinished creation");
                }
            }
        }
        Decision::Keep(state) => {
            let (resources, user) = match recorded {
                Some(record) => (record.resources, record.user),
                None => (spec.resources.clone(), None),
            };
            let mut container = Container::new(spec.clone(), state, resources);
            container.user = user;
            container.hold = node.images.restore_hold(&spec.image.id).map(Arc::new);
            container.volumes = volumes::restore(&node.images, &spec);
            container.unread = stored.unread;
            let record = container.record();
            if !container.unread
                && let Err(error) = creation::write(node, &pod.spec.id, &spec.id, record).await
            {
                // Log: Writing below `root` failed at start. The state in memory is right.
                // Do: Free the disk, or mount it writable.
                tracing::error!(container = %spec.id, %error, "cannot record a container's state");
            }
            let ended = matches!(container.state, ContainerState::Exited { .. });
            node.layers.recover(&spec.id, ended);
            index.add_container(&spec.id, &pod.spec.id);
            pod.containers.insert(spec.id.clone(), container);
        }
    }
}
