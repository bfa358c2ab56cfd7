//! ExecSync: runs a command in a running container through its monitor and collects the output here, so that the
//! monitor's memory does not grow with it (`output`). Bypasses the pod's mailbox. Owns the time limits; streams are
//! elsewhere.

use super::node::Node;
use super::output::{OutputHold, collect};
use super::process_file::Terminal;
use crate::host::monitor::{ErrorKind, ExecRequest, ExecStdio, Monitor, MonitorError, Target};
use crate::model::{ContainerId, UserNamespace};
use crate::sandbox::offload::{blocking, ended};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use crate::sandbox::words::state::{ContainerState, Init};
use podwright_sys::pidfd::{self, SIGKILL};
use std::time::Duration;

/// How long to wait for a killed command to be reaped.
const REAP_WAIT: Duration = Duration::from_secs(5);

/// How long to watch a dying container's init after the runtime refused a command in it. Delays a refusal for other
/// reasons by as much.
const END_WAIT: Duration = Duration::from_millis(100);

/// Result of a command.
#[derive(Debug)]
pub struct Output {
    /// Cut at `containers.exec_output_bytes`, and to what `containers.exec_memory_bytes` has room for.
    pub stdout: Vec<u8>,
    /// Cut in the same way.
    pub stderr: Vec<u8>,
    /// 128 plus the signal's number where a signal ended it.
    pub exit_code: i32,
    /// Dropped with the output.
    pub hold: OutputHold,
}

pub(in crate::sandbox) async fn exec_sync(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<Output, SandboxError> {
    let id = &container.spec.id;
    let refuse = |state| {
        let (operation, id) = ("execute a command in", id.to_string());
        Err(SandboxError::ContainerState { operation, id, state })
    };
    let ContainerState::Running { init, .. } = &container.state else {
        return refuse(container.state.name());
    };
    let Some(monitor) = &pod.monitor else { return Err(SandboxError::no_monitor(&pod.spec.id, &pod.state)) };
    let hold = node.execs.outputs.enter(&pod.spec.id, node.config.grpc.max_message_bytes)?;
    node.cgroups.expect_moves();
    let exec_id = ContainerId::random()?.short().to_owned();
    let bundle = node.places.bundle(id);
    let (files, of, named) = (node.execs.files.clone(), pod.spec.id.clone(), exec_id.clone());
    let process_file =
        blocking(move |off| files.write(off, &of, &bundle, &named, command, Terminal::No)).await?;
    let owner = pod.spec.namespaces.user.as_ref().and_then(UserNamespace::root);
    let kept = node.config.containers.exec_output_bytes;
    let (stdout_end, stdout) = collect(kept, &hold, owner)?;
    let (stderr_end, stderr) = collect(kept, &hold, owner)?;
    let mut told = node.execs.waiters.expect(&exec_id);
    let _forget = Forget { node, exec_id: &exec_id };
    let mut unfinished = Unfinished { monitor: Some(monitor), exec_id: &exec_id };
    let stdio = ExecStdio { stdin: None, stdout: Some(stdout_end), stderr: Some(stderr_end) };
    let run = async {
        let deadline = Some(node.config.runtime_timeout());
        let request = ExecRequest {
            exec_id: exec_id.clone(),
            container_id: id.to_string(),
            runtime: pod.runtime.command(),
            process_file: process_file.path(),
            terminal: false,
            deadline,
        };
        let lost = || SandboxError::MonitorLost(pod.spec.id.clone());
        match monitor.exec(request, stdio).await {
            // The same end of the connection as below, only sooner.
            Err(MonitorError::Gone { .. }) => return Err(lost()),
            started => started?,
        };
        // The runtime has read it: it is not there for as long as the command runs.
        drop(process_file);
        tokio::select! {
            // Reports from before the monitor's end are still true.
            biased;
            code = &mut told => code.map_err(|_| lost()),
            () = monitor.gone() => Err(lost()),
        }
    };
    let mut run = std::pin::pin!(run);
    let exit_code = match timeout {
        None => run.await,
        Some(limit) => match tokio::time::timeout(limit, &mut run).await {
            Ok(result) => result,
            Err(_) => {
                kill(monitor, &exec_id).await;
                // Until it was reaped, so that it is not found alive later.
                let _ = tokio::time::timeout(REAP_WAIT, run).await;
                Err(SandboxError::ExecTimeout { container: id.to_string(), timeout: limit })
            }
        },
    };
    unfinished.monitor = None;
    if let Err(SandboxError::Monitor(MonitorError::Refused { kind: ErrorKind::Runtime { .. }, .. })) =
        &exit_code
        && dies_soon(*init).await
    {
        // The runtime's error about a container that ended meanwhile does not help.
        return refuse("exited");
    }
    // A leftover child may hold the pipes for ever: wait a moment, then answer with what is there.
    let drain = Duration::from_secs(node.config.containers.exec_drain_seconds);
    let exit_code = exit_code?;
    let deadline = tokio::time::Instant::now() + drain;
    let (stdout, stderr) = (stdout.finish(deadline).await, stderr.finish(deadline).await);
    Ok(Output { stdout, stderr, exit_code, hold })
}

/// Kills the command with its process group, or the runtime that is about to start it.
async fn kill(monitor: &Monitor, exec_id: &str) {
    if let Err(error) = monitor.signal(Target::Exec(exec_id.to_owned()), SIGKILL, true).await {
        // Log: Processes of an exec remain in the container.
        // Do: Look for processes in state D.
        tracing::warn!(exec = exec_id, %error, "cannot kill a command that timed out");
    }
}

/// Whether a container whose runtime just refused a command is ending: the runtime may notice first.
async fn dies_soon(init: Init) -> bool {
    let process = pidfd::open(init.pid);
    if !is_alive(init) {
        return true;
    }
    // It is the init's, which was alive when it was open.
    let Ok(process) = process else { return false };
    matches!(tokio::time::timeout(END_WAIT, ended(process)).await, Ok(Ok(())))
}

pub(in crate::sandbox) fn is_alive(init: Init) -> bool {
    podwright_sys::proc::start_time(init.pid).is_ok_and(|time| time == init.start_time)
        && podwright_sys::proc::state(init.pid).is_ok_and(|state| !matches!(state, 'Z' | 'X'))
}

/// A command whose caller may go away: its output would never be read, so it is killed then, as in containerd.
struct Unfinished<'a> {
    monitor: Option<&'a Monitor>,
    exec_id: &'a str,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let (Some(monitor), Ok(here)) = (self.monitor.cloned(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let exec_id = self.exec_id.to_owned();
        here.spawn(async move { kill(&monitor, &exec_id).await });
    }
}

struct Forget<'a> {
    node: &'a Node,
    exec_id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.node.execs.waiters.forget(self.exec_id);
    }
}
