//! Ending a container: the stop signal, the grace period, then SIGKILL repeatedly until the kernel reports it gone. A
//! caller that goes away does not end this; a later stop may only bring SIGKILL forward.

use super::pod_cgroups::PodCgroups;
use crate::host::monitor::{self, Monitor, Target};
use crate::images::Hold;
use crate::model::{ContainerSpec, NamespaceMode, SandboxSpec};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::phase::Phase;
use crate::sandbox::words::state::Init;
use podwright_sys::pidfd::SIGKILL;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// First pause between two SIGKILLs; doubled each time up to [`LAST_RETRY`]. CRI-O goes from 20 ms to 2 min.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest pause between two SIGKILLs of a process in an uninterruptible sleep.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Linux's SIGTERM, where neither CRI nor the image names a stop signal.
const SIGTERM: i32 = 15;

/// Inputs of a stop.
#[derive(Debug)]
pub(in crate::sandbox) struct Request {
    pub(in crate::sandbox) cgroups: PodCgroups,
    pub(in crate::sandbox) monitor: Option<Monitor>,
    pub(in crate::sandbox) pod: Arc<SandboxSpec>,
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    pub(in crate::sandbox) init: Option<Init>,
    pub(in crate::sandbox) signal: i32,
    pub(in crate::sandbox) kill_at: watch::Receiver<Instant>,
    pub(in crate::sandbox) phase: watch::Receiver<Phase>,
}

/// Returns when the container has exited.
pub(in crate::sandbox) async fn stop(mut request: Request) {
    if Instant::now() < *request.kill_at.borrow() {
        signal(&request, request.signal).await;
        if wait_until_due(&mut request).await {
            return;
        }
    }
    let mut pause = FIRST_RETRY;
    loop {
        if !signal(&request, SIGKILL).await
            && let Some(init) = request.init
        {
            monitor::kill_process(init.pid, init.start_time);
        }
        if shares_pid_namespace(&request.spec) {
            // Its init is not the init of a pid namespace: the others must be killed one by one.
            kill_cgroup(&request.cgroups, &request.pod, &request.spec).await;
        }
        let ended = request.phase.wait_for(|p| *p != Phase::Alive);
        if tokio::time::timeout(pause, ended).await.is_ok() {
            return;
        }
        thaw(&request).await;
        // Log: A process hangs in the kernel.
        // Do: Check its file system: NFS, a failing disk.
        tracing::warn!(container = %request.spec.id, "still there after SIGKILL, will try again");
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// True when it exited before SIGKILL was due.
async fn wait_until_due(request: &mut Request) -> bool {
    loop {
        let due = *request.kill_at.borrow_and_update();
        tokio::select! {
            _ = request.phase.wait_for(|p| *p != Phase::Alive) => return true,
            () = tokio::time::sleep_until(due) => return false,
            changed = request.kill_at.changed() => if changed.is_err() { return false },
        }
    }
}

/// False if the monitor could not be reached.
async fn signal(request: &Request, signal: i32) -> bool {
    let Some(monitor) = &request.monitor else { return false };
    let target = Target::Container(request.spec.id.to_string());
    match monitor.signal(target, signal, false).await {
        Ok(_) => true,
        Err(error) => {
            // Log: The stop signal could not be sent. SIGKILL follows.
            // Do: Nothing.
            tracing::warn!(container = %request.spec.id, signal, %error, "cannot signal");
            false
        }
    }
}

/// Lets it die if it has frozen itself.
async fn thaw(request: &Request) {
    let Request { cgroups, pod, spec, .. } = request;
    let (kernel, leaf) = (cgroups.kernel.clone(), cgroups.leaf(pod, &spec.id));
    if let Err(error) = blocking(move |off| Ok(kernel.thaw(off, &leaf?)?)).await {
        // Log: A container's freezer cgroup could not be written. Tried again.
        // Do: If it lasts: check its cgroups.
        tracing::warn!(container = %spec.id, %error, "cannot thaw a container");
    }
}

/// Kills what is left in a container's cgroup.
pub(in crate::sandbox) async fn kill_cgroup(cgroups: &PodCgroups, pod: &SandboxSpec, spec: &ContainerSpec) {
    let (kernel, leaf) = (cgroups.kernel.clone(), cgroups.leaf(pod, &spec.id));
    // It may have to freeze a cgroup first and wait for that.
    if let Err(error) = blocking(move |off| Ok(kernel.kill_all(off, &leaf?)?)).await {
        // Log: Tried again.
        // Do: If it lasts: look for processes in state D.
        tracing::warn!(container = %spec.id, %error, "cannot kill a container's processes");
    }
}

/// Whether killing the container's init leaves its other processes alive.
pub(in crate::sandbox) fn shares_pid_namespace(spec: &ContainerSpec) -> bool {
    spec.security.namespaces.pid != NamespaceMode::Container
}

/// The stop signal: CRI's, else the image's, else SIGTERM.
pub(in crate::sandbox) fn stop_signal(spec: &ContainerSpec, hold: Option<&Hold>) -> i32 {
    spec.stop_signal
        .or_else(|| hold.and_then(|h| crate::host::oci::signal_number(&h.image().stop_signal)))
        .unwrap_or(SIGTERM)
}
