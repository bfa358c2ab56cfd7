//! Exec and attach with streams: a session with a process of a container. The bytes go through the caller's descriptors
//! and never through here; nothing here waits for a client. Bypasses the pod's mailbox.
//!
//! A session ends when its process or container does, and for the caller when dropped. A process without a terminal
//! then runs on and the monitor takes its output; one with a terminal gets SIGHUP. The same happens when the daemon
//! dies.

use super::node::Node;
pub(super) use super::process_file::Terminal;
use crate::host::monitor::{
    ErrorKind, ExecRequest, Leash, Monitor, MonitorError, Session, SessionEnd, StdioFlags, Target,
};
use crate::model::{ContainerId, SandboxId, TerminalSize};
use crate::sandbox::offload::{blocking, ended};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use crate::sandbox::words::state::{ContainerState, Init};
use podwright_sys::{pidfd, tty};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

/// How long to watch a dying container's init after the runtime refused a command in it. Delays a refusal for other
/// reasons by as much.
const END_WAIT: Duration = Duration::from_millis(100);

/// A command to run with streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecStream {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal: then stdout and stderr are one.
    pub tty: bool,
    /// Connect stdin. A null device without, if it has no terminal.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr; there is none with a terminal.
    pub stderr: bool,
    /// The terminal's first size, which the program finds when it starts.
    pub size: Option<TerminalSize>,
}

/// The streams to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachStream {
    /// Connect stdin, if the container has one.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr; there is none with a terminal.
    pub stderr: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// 0 to 255; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// The end of an attach that its client did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachEnd {
    /// The container's process is gone.
    ContainerEnded,
    /// The container wrote more than a pipe full (1 MiB each for stdout and stderr) beyond what was read. What can
    /// still be read is complete; the rest is lost.
    TooSlow,
}

/// A command that runs. All descriptors are non-blocking and suit `tokio::net::unix::pipe`, a terminal's by its
/// `from_owned_fd_unchecked`.
///
/// Every stream must be read to its end, else the process blocks. Streams end when the last process that holds them
/// does: leftover children may outlive the command, so after [`ExecSession::wait`] read the rest for a bounded time
/// only.
#[derive(Debug)]
pub struct ExecSession {
    /// Dropping it ends the command's input; with a terminal it ends nothing: send EOT (4) instead.
    pub stdin: Option<OwnedFd>,
    /// Ends by EOF; with a terminal by the error EIO. Always present with a terminal.
    pub stdout: Option<OwnedFd>,
    /// Ends by EOF.
    pub stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    leash: Leash,
    pod: SandboxId,
}

/// A connection with a running container. Earlier output is not repeated. All descriptors are non-blocking ends of
/// pipes.
#[derive(Debug)]
pub struct AttachSession {
    /// Its drop ends the container's input if that is `stdin_once`; the container may end it first (EPIPE).
    pub stdin: Option<OwnedFd>,
    /// Ends by EOF, with the session.
    pub stdout: Option<OwnedFd>,
    /// Ends by EOF, with the session.
    pub stderr: Option<OwnedFd>,
    leash: Leash,
    monitor: Monitor,
    container: ContainerId,
    pod: SandboxId,
}

impl ExecSession {
    /// Sets the size of the terminal; the foreground process gets SIGWINCH. Does nothing without a terminal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match &self.terminal {
            Some(master) => tty::resize(master.as_fd(), size.columns, size.rows),
            None => Ok(()),
        }
    }

    /// Waits until the command has ended. Call it until it has answered once; cancelling it loses nothing.
    ///
    /// # Errors
    /// If the pod's monitor is gone.
    pub async fn wait(&self) -> Result<ExitStatus, SandboxError> {
        match self.leash.ended().await {
            Some(SessionEnd::Exited { exit_code, signal }) => Ok(ExitStatus { code: exit_code, signal }),
            Some(SessionEnd::TimedOut | SessionEnd::ContainerEnded | SessionEnd::TooSlow) | None => {
                Err(SandboxError::MonitorLost(self.pod.clone()))
            }
        }
    }
}

impl AttachSession {
    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// When the container has none, or has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        let target = Target::Container(self.container.to_string());
        Ok(self.monitor.resize(target, size.columns, size.rows).await?)
    }

    /// Waits until the container has ended, or the client was too slow. Call it until it has answered once; cancelling
    /// it loses nothing. The streams can then still be read to their end.
    ///
    /// # Errors
    /// If the pod's monitor is gone.
    pub async fn wait(&self) -> Result<AttachEnd, SandboxError> {
        match self.leash.ended().await {
            Some(SessionEnd::ContainerEnded | SessionEnd::Exited { .. } | SessionEnd::TimedOut) => {
                Ok(AttachEnd::ContainerEnded)
            }
            Some(SessionEnd::TooSlow) => Ok(AttachEnd::TooSlow),
            None => Err(SandboxError::MonitorLost(self.pod.clone())),
        }
    }
}

/// A command to begin.
pub(super) struct Begin<'a> {
    pub(super) exec_id: &'a str,
    pub(super) command: Vec<String>,
    pub(super) terminal: Terminal,
    pub(super) stdio: StdioFlags,
    /// Kept by the monitor.
    pub(super) limit: Option<Duration>,
}

/// What a command is for in messages.
pub(super) const EXEC: &str = "execute a command in";

/// Begins a command in a running container.
pub(super) async fn begin(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    Begin { exec_id, command, terminal, stdio, limit }: Begin<'_>,
) -> Result<Session, SandboxError> {
    let id = &container.spec.id;
    let monitor = running(EXEC, pod, container)?;
    node.cgroups.expect_moves();
    let (files, of, bundle) = (node.execs.files.clone(), pod.spec.id.clone(), node.places.bundle(id));
    let (named, has_terminal) = (exec_id.to_owned(), matches!(terminal, Terminal::Yes(_)));
    let process_file = blocking(move |off| files.write(off, &of, &bundle, &named, command, terminal)).await?;
    let request = ExecRequest {
        exec_id: exec_id.to_owned(),
        container_id: id.to_string(),
        runtime: pod.runtime.command(),
        process_file: process_file.path(),
        terminal: has_terminal,
        deadline: Some(node.config.runtime_timeout()),
        limit,
    };
    let started = monitor.session(request, stdio).await;
    // The runtime has read it: it is not there for as long as the command runs.
    drop(process_file);
    match started {
        Ok(session) => Ok(session),
        Err(MonitorError::Gone { .. }) => Err(SandboxError::MonitorLost(pod.spec.id.clone())),
        Err(error) => Err(ended_meanwhile(EXEC, container, error).await),
    }
}

pub(in crate::sandbox) async fn exec(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    ask: ExecStream,
) -> Result<ExecSession, SandboxError> {
    let exec_id = ContainerId::random()?.short().to_owned();
    let begin_with = Begin {
        exec_id: &exec_id,
        command: ask.command,
        terminal: if ask.tty { Terminal::Yes(ask.size) } else { Terminal::No },
        stdio: StdioFlags { stdin: ask.stdin, stdout: ask.stdout, stderr: ask.stderr },
        limit: None,
    };
    let Session { terminal, stdin, stdout, stderr, leash } = begin(node, pod, container, begin_with).await?;
    let (mut stdin, mut stdout) = (stdin, stdout);
    if let Some(master) = &terminal {
        let copy = || master.try_clone().map_err(SandboxError::io("copy", "a terminal".as_ref()));
        stdout = Some(copy()?);
        if ask.stdin {
            stdin = Some(copy()?);
        }
    }
    let session = ExecSession { stdin, stdout, stderr, terminal, leash, pod: pod.spec.id.clone() };
    if let Some(size) = ask.size {
        // For a runtime that ignores the first size; no effect if it is already set.
        session.resize(size).map_err(SandboxError::io("resize", "a terminal".as_ref()))?;
    }
    Ok(session)
}

pub(in crate::sandbox) async fn attach(
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
    ask: AttachStream,
) -> Result<AttachSession, SandboxError> {
    let id = &container.spec.id;
    let monitor = running("attach to", pod, container)?;
    let stdio = StdioFlags {
        // A terminal always has an input; the creation decided whether it may be used.
        stdin: ask.stdin && container.spec.stdin,
        stdout: ask.stdout,
        stderr: ask.stderr,
    };
    let session = match monitor.attach(id.to_string(), stdio).await {
        Ok(session) => session,
        Err(error) => return Err(ended_meanwhile("attach to", container, error).await),
    };
    let Session { terminal: _, stdin, stdout, stderr, leash } = session;
    let (monitor, container, pod) = (monitor.clone(), id.clone(), pod.spec.id.clone());
    Ok(AttachSession { stdin, stdout, stderr, leash, monitor, container, pod })
}

/// The monitor of a container that runs.
pub(in crate::sandbox) fn running<'a>(
    operation: &'static str,
    pod: &'a PodSnapshot,
    container: &ContainerSnapshot,
) -> Result<&'a Monitor, SandboxError> {
    match (&container.state, &pod.monitor) {
        (ContainerState::Running { .. }, Some(monitor)) => Ok(monitor),
        (ContainerState::Running { .. }, None) => Err(SandboxError::no_monitor(&pod.spec.id, &pod.state)),
        (state, _) => Err(SandboxError::ContainerState {
            operation,
            id: container.spec.id.to_string(),
            state: state.name(),
        }),
    }
}

/// The runtime's error about a container that ended meanwhile does not help.
async fn ended_meanwhile(
    operation: &'static str,
    container: &ContainerSnapshot,
    error: MonitorError,
) -> SandboxError {
    let ended = match (error.kind(), &container.state) {
        // The runtime may notice first.
        (Some(ErrorKind::Runtime { .. }), ContainerState::Running { init, .. }) => dies_soon(*init).await,
        (Some(_), ContainerState::Running { init, .. }) => !is_alive(*init),
        _ => false,
    };
    if ended {
        return SandboxError::ContainerState {
            operation,
            id: container.spec.id.to_string(),
            state: "exited",
        };
    }
    error.into()
}

/// Whether a container whose runtime just refused a command is ending.
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
