//! Having a pod's monitor run the OCI runtime for a container, and what is tried again when it fails.

use crate::host::monitor::{
    ContainerState as MonitorContainer, ErrorKind, Monitor, MonitorError, ProcessId, RunRequest,
};
use crate::host::oci::lacks_room_for_keyring;
use crate::model::ContainerId;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::state::Init;
use std::sync::Once;
use std::time::{Duration, Instant};

/// Starts the container. Where the kernel has no room for a session keyring of its own, it gets the empty one of its
/// monitor: whoever filled root's room must not keep the whole node from starting containers. One that is restored has no
/// new one anyway.
pub(in crate::sandbox) async fn run(
    monitor: &Monitor,
    request: RunRequest,
) -> Result<ProcessId, MonitorError> {
    if request.restore.is_some() {
        return monitor.run(request).await;
    }
    let begun = Instant::now();
    match monitor.run(request.clone()).await {
        Err(MonitorError::Refused { kind: ErrorKind::Runtime { .. }, message, .. })
            if lacks_room_for_keyring(&message) =>
        {
            static TOLD: Once = Once::new();
            // Log: Once: a user of kernel keys, mostly root, has as many as it may. Containers start all the same, with
            // an empty session keyring that nobody can write to in place of one of their own. `error` has the OCI
            // runtime's words.
            // Do: `/proc/key-users` shows who has how many. Root of a container without a user namespace makes keys as
            // the node's root: give such pods `hostUsers: false` or the default seccomp profile. Keys stay until the node
            // is restarted; `kernel.keys.root_maxkeys` and `kernel.keys.root_maxbytes` are the limits.
            TOLD.call_once(|| tracing::warn!(error = message, "no room for keyrings of containers"));
            let spent = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let deadline_ms = request.deadline_ms.map(|all| all.saturating_sub(spent).max(1));
            monitor.run(RunRequest { no_new_keyring: true, deadline_ms, ..request }).await
        }
        created => created,
    }
}

/// How often a monitor is asked about a start that an earlier daemon asked for.
const START_POLL: Duration = Duration::from_millis(100);

/// Waits for the outcome of a start that an earlier daemon asked for; its monitor bounds it.
pub(in crate::sandbox) async fn await_start(
    monitor: &Monitor,
    id: &ContainerId,
) -> Result<Init, SandboxError> {
    loop {
        let listing = match monitor.list().await {
            // It lives as long as its connection does; whether it does is the pod's task's to find out.
            Err(MonitorError::Unresponsive { .. }) => continue,
            listing => listing?,
        };
        let state = listing.containers.into_iter().find(|c| c.id == id.as_str()).map(|c| c.state);
        match state {
            Some(MonitorContainer::Starting) => tokio::time::sleep(START_POLL).await,
            Some(MonitorContainer::Running { pid, start_time }) => return Ok(Init { pid, start_time }),
            // Its end comes, or came, as an event.
            Some(MonitorContainer::Exited(record)) => return Ok(Init { pid: record.pid, start_time: 0 }),
            None => return Err(SandboxError::StartUnseen(id.to_string())),
        }
    }
}
