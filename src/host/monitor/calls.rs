//! The calls of a monitor, each with its deadline.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podwright_monitor_proto::{
    ContainerStatus, Exec, ExecStatus, ExecStdio as StdioFlags, MonitorRecord, PROTOCOL_VERSION, ProcessId,
    RESTORE_REVISION, Reply, Request, RequestFrame, Run, Runtime, SESSIONS_REVISION, Target, encode, v1,
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::MonitorError;
use super::connection::{Answer, Command};
use super::session::Session;

/// For immediate answers. A monitor never waits for a disk or another process meanwhile, so seconds mean that it is
/// stopped or the node is badly overloaded.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Default for the OCI runtime's run and exec; the kubelet's own limit for a call is two minutes.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(60);

/// For a shutdown: longer than the monitor waits for killed containers (10 s).
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);

/// A pod's monitor. Cheap to clone; the connection closes with the last clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    info: Arc<MonitorRecord>,
    link: Link,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Unique in the pod among the execs that run.
    pub exec_id: String,
    /// A running container.
    pub container_id: String,
    /// The process that runs it.
    pub runtime: Runtime,
    /// Path of an OCI process specification.
    pub process_file: String,
    /// The process has a terminal, as the process file also says.
    pub terminal: bool,
    /// For the runtime to return.
    pub deadline: Option<Duration>,
    /// For the process to end: the monitor kills it then, whatever becomes of this daemon. A monitor of protocol 1 does
    /// not, so the caller has to keep the limit, too.
    pub limit: Option<Duration>,
}

impl ExecRequest {
    /// The message, and how long to wait for its answer.
    fn with(self, stdio: StdioFlags) -> (Box<Exec>, Duration) {
        let mut deadline_ms = self.deadline.map(milliseconds);
        let deadline = runtime_deadline(&mut deadline_ms);
        let exec = Exec {
            exec_id: self.exec_id,
            container_id: self.container_id,
            runtime: self.runtime,
            process_file: self.process_file,
            terminal: self.terminal,
            stdio,
            deadline_ms,
            limit_ms: self.limit.map(milliseconds),
        };
        (Box::new(exec), deadline)
    }
}

/// Outcome of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalOutcome {
    /// The kernel took it.
    Sent,
    /// The process is gone.
    AlreadyExited,
}

/// A monitor's inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In order of creation.
    pub containers: Vec<ContainerStatus>,
    /// Those that run.
    pub execs: Vec<ExecStatus>,
}

impl Monitor {
    pub(super) fn new(info: MonitorRecord, link: Link) -> Self {
        Self { info: Arc::new(info), link }
    }

    /// Its process and namespace paths.
    #[must_use]
    pub fn info(&self) -> &MonitorRecord {
        &self.info
    }

    /// Says hello, which an adopted monitor needs first. Repeat it if there was no answer.
    ///
    /// # Errors
    /// `Version` when it speaks another protocol; `dir` is for the message.
    pub async fn greet(&self, dir: &Path) -> Result<(), MonitorError> {
        let hello = Request::Hello { version: PROTOCOL_VERSION };
        match self.link.call("hello", hello, CALL_DEADLINE).await?.0 {
            Reply::Hello { version: v1::VERSION | PROTOCOL_VERSION, .. } => Ok(()),
            Reply::Hello { version: theirs, .. } => Err(MonitorError::Version { dir: dir.into(), theirs }),
            _ => Err(self.link.mismatch("hello")),
        }
    }

    /// The monitor at the other end, by what it says of itself in its greeting.
    pub(super) async fn introduced(link: Link, dir: &Path) -> Result<Self, MonitorError> {
        let hello = Request::Hello { version: PROTOCOL_VERSION };
        match link.call("hello", hello, CALL_DEADLINE).await?.0 {
            Reply::Hello { version: v1::VERSION | PROTOCOL_VERSION, record } => Ok(Self::new(*record, link)),
            Reply::Hello { version: theirs, .. } => Err(MonitorError::Version { dir: dir.into(), theirs }),
            _ => Err(link.mismatch("hello")),
        }
    }

    /// Runs a container. The runtime is killed after `deadline_ms` (a minute if not given).
    ///
    /// # Errors
    /// `Refused` with the runtime's own message, among others.
    pub async fn run(&self, mut request: Run) -> Result<ProcessId, MonitorError> {
        if request.restore.is_some() {
            self.needs(RESTORE_REVISION, "restore of a container")?;
        }
        let deadline = runtime_deadline(&mut request.deadline_ms);
        let answer = match self.info.protocol {
            v1::VERSION => self.link.call("run", v1::Request::run(&request), deadline).await?,
            _ => self.link.call("run", Request::Run(Box::new(request)), deadline).await?,
        };
        match answer {
            (Reply::Running { pid, start_time }, _) => Ok(ProcessId { pid, start_time }),
            _ => Err(self.link.mismatch("run")),
        }
    }

    /// Runs a process in a container and gets our ends of its descriptors, those in `stdio` unless it has a terminal.
    /// The session's leash reports the end. After the deadline (default: a minute) the runtime is killed, not the process.
    ///
    /// # Errors
    /// `TooOld`; `Refused` with the runtime's own message, or because the pod has its maximum of sessions.
    pub async fn session(&self, request: ExecRequest, stdio: StdioFlags) -> Result<Session, MonitorError> {
        self.needs(SESSIONS_REVISION, "exec with streams")?;
        let stdio = if request.terminal { StdioFlags::default() } else { stdio };
        let (exec, deadline) = request.with(stdio);
        match self.link.call("exec", Request::Session(exec), deadline).await? {
            (Reply::SessionStarted { terminal, stdio, .. }, fds) => {
                Session::assemble(terminal, stdio, fds).ok_or_else(|| self.link.mismatch("exec"))
            }
            _ => Err(self.link.mismatch("exec")),
        }
    }

    /// Receives a running container's output from now on, and writes to its stdin; `stdio` names the requested streams,
    /// and those that the container lacks are missing.
    ///
    /// # Errors
    /// `TooOld`; `Refused` when it does not run, or because the pod has as many sessions as it may.
    pub async fn attach(&self, container_id: String, stdio: StdioFlags) -> Result<Session, MonitorError> {
        self.needs(SESSIONS_REVISION, "attach")?;
        let request = Request::Attach { container_id, stdio };
        match self.link.call("attach", request, CALL_DEADLINE).await? {
            (Reply::Attached { stdio }, fds) => {
                Session::assemble(false, stdio, fds).ok_or_else(|| self.link.mismatch("attach"))
            }
            _ => Err(self.link.mismatch("attach")),
        }
    }

    fn needs(&self, revision: u32, operation: &'static str) -> Result<(), MonitorError> {
        if self.info.revision < revision {
            let sandbox_id = self.info.sandbox_id.clone();
            return Err(MonitorError::TooOld { operation, sandbox_id });
        }
        Ok(())
    }

    /// Sends a signal to a process, or to the group that it leads.
    ///
    /// # Errors
    /// `Refused` for an unknown container or an invalid signal, among others.
    pub async fn signal(
        &self,
        target: Target,
        signal: i32,
        group: bool,
    ) -> Result<SignalOutcome, MonitorError> {
        let request = Request::Signal { target, signal, group };
        match self.link.call("signal", request, CALL_DEADLINE).await?.0 {
            Reply::Done => Ok(SignalOutcome::Sent),
            Reply::AlreadyExited => Ok(SignalOutcome::AlreadyExited),
            _ => Err(self.link.mismatch("signal")),
        }
    }

    /// Switches a container to the file that is now at its log path; in use on return.
    ///
    /// # Errors
    /// `Refused` if it does not run, and then no file was created.
    pub async fn reopen_log(&self, container_id: String) -> Result<(), MonitorError> {
        self.done("reopen log", Request::ReopenLog { container_id }, CALL_DEADLINE).await
    }

    /// Everything that the monitor has.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list(&self) -> Result<Listing, MonitorError> {
        match self.link.call("list", Request::List, CALL_DEADLINE).await?.0 {
            Reply::List { containers, execs } => Ok(Listing { containers, execs }),
            _ => Err(self.link.mismatch("list")),
        }
    }

    /// Drops an exited container and its exit record.
    ///
    /// # Errors
    /// `Refused` when it has not exited, or is unknown.
    pub async fn forget(&self, container_id: String) -> Result<(), MonitorError> {
        self.done("forget", Request::Forget { container_id }, CALL_DEADLINE).await
    }

    /// Sets a container's terminal size. An exec's is set on the descriptor that came with its start.
    ///
    /// # Errors
    /// `Refused` if there is no terminal.
    pub async fn resize(&self, target: Target, width: u16, height: u16) -> Result<(), MonitorError> {
        self.done("resize", Request::Resize { target, width, height }, CALL_DEADLINE).await
    }

    /// Takes the pod's namespaces down and ends the monitor; with `force` it kills what runs first.
    ///
    /// # Errors
    /// `Refused` when something still runs.
    pub async fn shutdown(&self, force: bool) -> Result<(), MonitorError> {
        self.done("shutdown", Request::Shutdown { force }, SHUTDOWN_DEADLINE).await
    }

    /// Waits until the connection has ended: the monitor is dead, or must be adopted again.
    pub async fn gone(&self) {
        self.link.commands.closed().await;
    }

    async fn done(
        &self,
        operation: &'static str,
        request: Request,
        deadline: Duration,
    ) -> Result<(), MonitorError> {
        match self.link.call(operation, request, deadline).await?.0 {
            Reply::Done => Ok(()),
            _ => Err(self.link.mismatch(operation)),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Fills in the default; returns how long to wait for the answer: the monitor needs a moment after the deadline.
fn runtime_deadline(given: &mut Option<u64>) -> Duration {
    let default = || milliseconds(RUNTIME_DEADLINE);
    Duration::from_millis(*given.get_or_insert_with(default)).saturating_add(CALL_DEADLINE)
}

/// Sends requests to the connection's task and waits for answers.
#[derive(Debug, Clone)]
pub(super) struct Link {
    sandbox_id: Arc<str>,
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
}

impl Link {
    pub(super) fn new(sandbox_id: &str, commands: mpsc::Sender<Command>) -> Self {
        Self { sandbox_id: sandbox_id.into(), commands, next: Arc::new(AtomicU64::new(1)) }
    }

    pub(super) async fn call(
        &self,
        operation: &'static str,
        request: impl Serialize,
        deadline: Duration,
    ) -> Result<Answer, MonitorError> {
        let sandbox_id = || self.sandbox_id.to_string();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&RequestFrame { id, request }).map_err(|source| MonitorError::Encode {
            operation,
            sandbox_id: sandbox_id(),
            source,
        })?;
        let (answer, receiver) = oneshot::channel();
        let exchange = async {
            self.commands.send(Command { id, frame, answer }).await.ok()?;
            receiver.await.ok()
        };
        match tokio::time::timeout(deadline, exchange).await {
            Err(_) => Err(MonitorError::Unresponsive { operation, sandbox_id: sandbox_id(), deadline }),
            Ok(None) => Err(MonitorError::Gone { operation, sandbox_id: sandbox_id() }),
            Ok(Some((Reply::Error { kind, message }, _))) => {
                Err(MonitorError::Refused { operation, sandbox_id: sandbox_id(), kind, message })
            }
            Ok(Some(answer)) => Ok(answer),
        }
    }

    pub(super) fn mismatch(&self, operation: &'static str) -> MonitorError {
        MonitorError::Mismatch { operation, sandbox_id: self.sandbox_id.to_string() }
    }
}
