//! Requests of clients, checked and carried out. Starts a runtime's work here; `reap` completes it.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use podwright_monitor_proto::{
    ErrorKind, Exec as ExecRequest, ExecStatus, ExecStdio, PROTOCOL_VERSION, Reply, Request, RequestFrame,
    RequestId, Run, Target,
};
use podwright_sys::pidfd::SIGKILL;
use podwright_sys::{pidfd, tty};
use rustix::fs::{OFlags, fcntl_setfl};

use crate::container::{Container, Limit, State, Stdin};
use crate::ids;
use crate::logfile::{LogFile, StreamName};
use crate::offspring;
use crate::oom::OomCounter;
use crate::output::Stream;
use crate::pod::Pod;
use crate::runtime::{self, Console, Job, JobFiles, JobKind, Stdio3};
use crate::session::{MAX_SESSIONS, Offer, client_writes};

/// Longest log line that may be requested; the read buffer has this size and a little more.
const MAX_LOG_LINE: u32 = 1 << 20;

/// Why a request fails.
#[derive(Debug)]
pub(crate) struct Refusal {
    kind: ErrorKind,
    message: String,
}

impl Refusal {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::Error { kind: refusal.kind, message: refusal.message }
    }
}

/// The runtime was started; the reply follows when it returns.
struct Later;

impl Pod {
    /// Handles one frame of a client.
    pub(crate) fn request(&mut self, client: u32, frame: &[u8]) {
        let frame: RequestFrame = match serde_json::from_slice(frame) {
            Ok(frame) => frame,
            Err(error) => {
                let value: Option<serde_json::Value> = serde_json::from_slice(frame).ok();
                let id = value.and_then(|value| value.get("id")?.as_u64()).unwrap_or_default();
                let refusal = Refusal::new(ErrorKind::Invalid, format!("decode request: {error}"));
                self.reply(client, id, refusal.into());
                return;
            }
        };
        let greeted = self.client(client).is_some_and(|client| client.is_greeted());
        if !greeted && !matches!(frame.request, Request::Hello { .. }) {
            let refusal = Refusal::new(ErrorKind::Invalid, "the first request must be hello");
            self.reply(client, frame.id, refusal.into());
            if let Some(client) = self.client(client) {
                client.give_up();
            }
            return;
        }
        let (id, later) = (frame.id, |outcome: Result<Later, Refusal>| outcome.err().map(Reply::from));
        let reply = match frame.request {
            Request::Launch(_) => {
                Some(Refusal::new(ErrorKind::Invalid, "this monitor has been launched already").into())
            }
            Request::Hello { version: _ } => {
                if let Some(client) = self.client(client) {
                    client.greet();
                }
                Some(Reply::Hello { version: PROTOCOL_VERSION, record: Box::new(self.record().clone()) })
            }
            Request::Run(run) => later(self.run_container(client, id, &run)),
            Request::Session(exec) => later(self.session(client, id, &exec)),
            Request::Attach { container_id, stdio } => {
                self.attach(client, id, &container_id, stdio).err().map(Reply::from)
            }
            Request::Signal { target, signal, group } => Some(self.signal(&target, signal, group)),
            Request::ReopenLog { container_id } => Some(done(self.reopen_log(&container_id))),
            Request::List => Some(self.list()),
            Request::Forget { container_id } => Some(done(self.forget(&container_id))),
            Request::Resize { target, width, height } => Some(done(self.resize(&target, width, height))),
            Request::Shutdown { force } => self.start_shutdown(client, id, force).err().map(Reply::from),
        };
        if let Some(reply) = reply {
            self.reply(client, id, reply);
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        self.containers
            .iter_mut()
            .find(|container| container.id == id)
            .ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("no container {id:?}")))
    }

    /// A container whose init lives.
    pub(crate) fn running(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        let container = self.container(id)?;
        match container.state {
            State::Running(_) => Ok(container),
            State::Starting | State::Draining { .. } | State::Exited(_) => {
                Err(Refusal::new(ErrorKind::NotRunning, format!("container {id:?} does not run")))
            }
        }
    }

    fn run_container(&mut self, client: u32, request: RequestId, run: &Run) -> Result<Later, Refusal> {
        let id = &run.container_id;
        self.refuse_while_shutting_down()?;
        if !ids::is_valid(id) {
            return Err(Refusal::new(ErrorKind::Invalid, format!("container id {id:?} is malformed")));
        }
        if self.containers.iter().any(|container| container.id == *id) {
            return Err(Refusal::new(ErrorKind::AlreadyExists, format!("container {id:?} exists")));
        }
        if run.restore.is_some() && run.no_new_keyring {
            return Err(Refusal::new(
                ErrorKind::Invalid,
                "a container that is restored has the keyring it had",
            ));
        }
        let max_line = usize::try_from(self.setup.log_max_line.clamp(1, MAX_LOG_LINE)).unwrap_or(usize::MAX);
        let log = match &run.log_path {
            Some(path) => Some(
                LogFile::open(Path::new(path), run.log_directory.as_deref().map(Path::new))
                    .map_err(|error| Refusal::new(ErrorKind::Io, error.to_string()))?,
            ),
            None => None,
        };
        // The parent's current count is not the container's.
        let oom = run.cgroup.as_deref().and_then(OomCounter::at);
        match self.start_run(client, request, run) {
            Ok((serial, streams, stdin)) => {
                self.containers.push(Container {
                    id: id.clone(),
                    serial,
                    state: State::Starting,
                    streams,
                    log,
                    lost_bytes: 0,
                    max_line,
                    stdin,
                    stdin_once: run.stdin_once,
                    viewers: Vec::new(),
                    oom,
                });
                Ok(Later)
            }
            Err(error) => {
                if let Some(log) = log {
                    log.discard();
                }
                let message = format!("run {:?} for container {id:?}: {error}", run.runtime.path);
                Err(Refusal::new(ErrorKind::Io, message))
            }
        }
    }

    fn start_run(
        &mut self,
        client: u32,
        request: RequestId,
        run: &Run,
    ) -> io::Result<(u32, Vec<Stream>, Stdin)> {
        let serial = self.serial();
        let bundle = Path::new(&run.bundle);
        let files = JobFiles { log: bundle.join("runtime.log"), pid: bundle.join("pid") };
        let console = self.console(run.terminal, serial)?;
        let mut stdio = Stdio3::default();
        let mut stdin = Stdin::None;
        if run.stdin && !run.terminal {
            let (reader, writer) = client_writes()?;
            self.setup.give(&reader)?;
            stdio.stdin = Some(reader);
            stdin = Stdin::Pipe { writer };
        }
        let mut streams = Vec::with_capacity(2);
        for (name, end) in [(StreamName::Stdout, &mut stdio.stdout), (StreamName::Stderr, &mut stdio.stderr)]
        {
            let (reader, writer) = io::pipe()?;
            fcntl_setfl(&reader, OFlags::RDONLY | OFlags::NONBLOCK)?;
            self.setup.give(&writer)?;
            streams.push(Stream::new(name, reader.into()));
            *end = Some(writer.into());
        }
        let verb: &[&str] = match &run.restore {
            // As the checkpoint was made: with file locks.
            Some(restore) => &[
                "restore",
                "--detach",
                "--file-locks",
                "--image-path",
                &restore.images,
                "--work-path",
                &restore.work,
            ],
            None => &["run", "--detach"],
        };
        let keyring: &[&str] = if run.no_new_keyring { &["--no-new-keyring"] } else { &[] };
        let pid = runtime::spawn(
            &run.runtime,
            &files,
            console.as_ref(),
            &[verb, keyring, &["--bundle", &run.bundle]].concat(),
            &run.container_id,
            stdio,
            &self.setup,
        )?;
        let deadline = deadline(run.deadline_ms);
        let kind = JobKind::Run { serial };
        self.jobs.push(Job { pid, kind, files, console, client, request, deadline, killed: false });
        Ok((serial, streams, stdin))
    }

    fn console(&self, terminal: bool, serial: u32) -> io::Result<Option<Console>> {
        terminal.then(|| Console::listen(Path::new(&self.setup.dir), &self.setup.dir_fd, serial)).transpose()
    }

    fn session(&mut self, client: u32, request: RequestId, exec: &ExecRequest) -> Result<Later, Refusal> {
        self.check_exec(exec)?;
        self.refuse_too_many_sessions(MAX_SESSIONS)?;
        // A terminal comes from the runtime.
        let stdio = if exec.terminal { ExecStdio::default() } else { exec.stdio };
        let (offer, stdio) = Offer::make(stdio, &self.setup).map_err(|error| {
            Refusal::new(ErrorKind::Io, format!("make pipes for exec {:?}: {error}", exec.exec_id))
        })?;
        self.start_exec(client, request, exec, stdio, offer)
    }

    fn check_exec(&mut self, exec: &ExecRequest) -> Result<(), Refusal> {
        let id = &exec.exec_id;
        self.refuse_while_shutting_down()?;
        if !ids::is_valid(id) {
            return Err(Refusal::new(ErrorKind::Invalid, format!("exec id {id:?} is malformed")));
        }
        let under_way =
            self.jobs.iter().any(|job| matches!(&job.kind, JobKind::Exec { exec_id, .. } if exec_id == id));
        if under_way || self.execs.iter().any(|exec| exec.id == *id) {
            return Err(Refusal::new(ErrorKind::AlreadyExists, format!("exec {id:?} exists")));
        }
        self.running(&exec.container_id).map(|_| ())
    }

    fn start_exec(
        &mut self,
        client: u32,
        request: RequestId,
        exec: &ExecRequest,
        stdio: Stdio3,
        offer: Offer,
    ) -> Result<Later, Refusal> {
        let failed = |error: io::Error| {
            let message = format!("run {:?} for exec {:?}: {error}", exec.runtime.path, exec.exec_id);
            Refusal::new(ErrorKind::Io, message)
        };
        // From now on: the runtime's time is the command's, as for its client.
        let limit = deadline(exec.limit_ms);
        let serial = self.serial();
        let dir = Path::new(&self.setup.dir);
        let files = JobFiles {
            log: dir.join(format!("exec-{serial}.log")),
            pid: dir.join(format!("exec-{serial}.pid")),
        };
        let console = self.console(exec.terminal, serial).map_err(failed)?;
        let pid = runtime::spawn(
            &exec.runtime,
            &files,
            console.as_ref(),
            &["exec", "--detach", "--process", &exec.process_file],
            &exec.container_id,
            stdio,
            &self.setup,
        )
        .inspect_err(|_| files.clear())
        .map_err(failed)?;
        let deadline = deadline(exec.deadline_ms);
        let (exec_id, container_id) = (exec.exec_id.clone(), exec.container_id.clone());
        let limit = limit.map_or(Limit::None, Limit::At);
        let kind = JobKind::Exec { exec_id, container_id, signal: None, limit, offer: Some(offer) };
        self.jobs.push(Job { pid, kind, files, console, client, request, deadline, killed: false });
        Ok(Later)
    }

    pub(crate) fn signal(&mut self, target: &Target, signal: i32, group: bool) -> Reply {
        let process = match target {
            Target::Container(id) => match self.container(id) {
                Ok(container) => match &container.state {
                    State::Running(process) => process,
                    State::Draining { .. } | State::Exited(_) => return Reply::AlreadyExited,
                    State::Starting => {
                        let message = format!("container {id:?} does not run yet");
                        return Refusal::new(ErrorKind::NotRunning, message).into();
                    }
                },
                Err(refusal) => return refusal.into(),
            },
            Target::Exec(id) => match self.execs.iter().find(|exec| exec.id == *id) {
                Some(exec) => &exec.process,
                None => return self.signal_at_start(id, signal, group),
            },
        };
        let sent = match (&process.pidfd, group) {
            // Not reaped, or it would not be here: the pid is still its own.
            (_, true) if signal == SIGKILL && matches!(target, Target::Exec(_)) => {
                let offspring = offspring::of(process.pid);
                let sent = pidfd::send_group_signal(process.pid, signal);
                offspring::kill(offspring);
                sent
            }
            (_, true) => pidfd::send_group_signal(process.pid, signal),
            (Some(handle), false) => pidfd::send_signal(handle.as_fd(), signal),
            (None, false) => return Reply::AlreadyExited,
        };
        match sent {
            Ok(()) => Reply::Done,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Reply::AlreadyExited
            }
            Err(error) => {
                let kind = match error.kind() {
                    io::ErrorKind::InvalidInput => ErrorKind::Invalid,
                    _ => ErrorKind::Io,
                };
                Refusal::new(kind, format!("send signal {signal} to {target:?}: {error}")).into()
            }
        }
    }

    /// The runtime is still starting the exec, which would outlive the signal, so the signal waits for it. Killing the
    /// runtime instead could leave an unknown process.
    fn signal_at_start(&mut self, id: &str, number: i32, to_group: bool) -> Reply {
        for job in &mut self.jobs {
            if let JobKind::Exec { exec_id, signal, .. } = &mut job.kind
                && exec_id == id
            {
                *signal = Some((number, to_group));
                return Reply::Done;
            }
        }
        Reply::AlreadyExited
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Refusal> {
        match &mut self.running(id)?.log {
            Some(log) => log.reopen().map_err(|error| Refusal::new(ErrorKind::Io, error.to_string())),
            None => Err(Refusal::new(ErrorKind::Invalid, format!("container {id:?} has no log"))),
        }
    }

    fn list(&self) -> Reply {
        let containers = self.containers.iter().map(Container::status).collect();
        let execs = self.execs.iter().map(|exec| ExecStatus {
            id: exec.id.clone(),
            container_id: exec.container_id.clone(),
            pid: exec.process.pid,
        });
        Reply::List { containers, execs: execs.collect() }
    }

    fn forget(&mut self, id: &str) -> Result<(), Refusal> {
        if !self.container(id)?.is_exited() {
            return Err(Refusal::new(ErrorKind::StillRunning, format!("container {id:?} has not exited")));
        }
        let path = self.exit_file(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Refusal::new(ErrorKind::Io, format!("remove exit record {path}: {error}")));
            }
            _ => {}
        }
        self.containers.retain(|container| container.id != id);
        self.containers.shrink_to_fit();
        Ok(())
    }

    fn resize(&mut self, target: &Target, width: u16, height: u16) -> Result<(), Refusal> {
        let no_terminal = || Refusal::new(ErrorKind::Invalid, format!("{target:?} has no terminal here"));
        match target {
            Target::Container(id) => match &self.running(id)?.stdin {
                Stdin::Terminal(master) => tty::resize(master.as_fd(), width, height)
                    .map_err(|error| Refusal::new(ErrorKind::Io, format!("resize {target:?}: {error}"))),
                Stdin::None | Stdin::Pipe { .. } => Err(no_terminal()),
            },
            // The master went to the client with the reply.
            Target::Exec(_) => Err(no_terminal()),
        }
    }
}

fn done(outcome: Result<(), Refusal>) -> Reply {
    outcome.map_or_else(Reply::from, |()| Reply::Done)
}

fn deadline(milliseconds: Option<u64>) -> Option<Instant> {
    milliseconds.and_then(|time| Instant::now().checked_add(Duration::from_millis(time)))
}
