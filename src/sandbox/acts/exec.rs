//! ExecSync: a [session](super::session) whose streams are drained here, so that the monitor's memory does not grow with
//! the output (`output`). Bypasses the pod's mailbox. Owns the time limit for its caller; the monitor keeps it as well,
//! for the case that this daemon ends.

use super::node::Node;
use super::output::{Collector, OutputHold, collect};
use super::session::{self, Begin, Terminal};
use crate::host::monitor::{Monitor, Session, SessionEnd, StdioFlags, Target};
use crate::model::ContainerId;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use podwright_sys::pidfd::SIGKILL;
use std::time::Duration;

/// How long to wait for a killed command to be reaped.
const REAP_WAIT: Duration = Duration::from_secs(5);

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
    let monitor = session::running(session::EXEC, pod, container)?;
    let hold = node.execs.outputs.enter(&pod.spec.id, node.config.grpc.max_message_bytes)?;
    let exec_id = ContainerId::random()?.short().to_owned();
    let mut unfinished = Unfinished { monitor: Some(monitor), exec_id: &exec_id };
    let timed_out = |limit| {
        let container = container.spec.id.to_string();
        Err(SandboxError::ExecTimeout { container, timeout: limit })
    };
    let run = async {
        let stdio = StdioFlags { stdin: false, stdout: true, stderr: true };
        let begin = Begin { exec_id: &exec_id, command, terminal: Terminal::No, stdio, limit: timeout };
        let Session { stdout, stderr, leash, .. } = session::begin(node, pod, container, begin).await?;
        let kept = node.config.containers.exec_output_bytes;
        let drain = |pipe: Option<_>| pipe.map(|pipe| collect(pipe, kept, &hold)).transpose();
        let (stdout, stderr) = (drain(stdout)?, drain(stderr)?);
        match (leash.ended().await, timeout) {
            (Some(SessionEnd::Exited { exit_code, .. }), _) => Ok((exit_code, stdout, stderr)),
            (Some(SessionEnd::TimedOut), Some(limit)) => timed_out(limit),
            (Some(SessionEnd::TimedOut | SessionEnd::ContainerEnded | SessionEnd::TooSlow) | None, _) => {
                Err(SandboxError::MonitorLost(pod.spec.id.clone()))
            }
        }
    };
    let ended = match timeout {
        None => run.await,
        Some(limit) => {
            let mut run = std::pin::pin!(run);
            match tokio::time::timeout(limit, &mut run).await {
                Ok(result) => result,
                Err(_) => {
                    kill(monitor, &exec_id).await;
                    // Until it was reaped, so that it is not found alive later.
                    let _ = tokio::time::timeout(REAP_WAIT, run).await;
                    timed_out(limit)
                }
            }
        }
    };
    unfinished.monitor = None;
    let (exit_code, stdout, stderr) = ended?;
    // A leftover child may hold the pipes for ever: wait a moment, then answer with what is there.
    let drain = Duration::from_secs(node.config.containers.exec_drain_seconds);
    let deadline = tokio::time::Instant::now() + drain;
    let (stdout, stderr) = (rest(stdout, deadline).await, rest(stderr, deadline).await);
    Ok(Output { stdout, stderr, exit_code, hold })
}

async fn rest(stream: Option<Collector>, deadline: tokio::time::Instant) -> Vec<u8> {
    match stream {
        Some(stream) => stream.finish(deadline).await,
        None => Vec::new(),
    }
}

/// Kills the command with its process group, or the runtime that is about to start it.
async fn kill(monitor: &Monitor, exec_id: &str) {
    if let Err(error) = monitor.signal(Target::Exec(exec_id.to_owned()), SIGKILL, true).await {
        // Log: Processes of an exec remain in the container.
        // Do: Look for processes in state D.
        tracing::warn!(exec = exec_id, %error, "cannot kill a command that timed out");
    }
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
