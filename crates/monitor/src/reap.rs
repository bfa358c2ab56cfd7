//! Consequences of a child's end: a runtime has returned, a container or an exec is gone, an orphan is reaped.

use podwright_sys::pidfd::SIGKILL;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use podwright_monitor_proto::{ErrorKind, Event, ExitRecord, RECORD_VERSION, Reply, SessionEnd, Target};
use podwright_sys::process::{self, Ended};
use podwright_sys::{pidfd, proc};
use rustix::fs::{OFlags, fcntl_setfl};

use crate::client::Handed;
use crate::container::{Exec, Limit, Process, State, Stdin};
use crate::launch::write_atomically;
use crate::logfile::StreamName;
use crate::oom::OomCounter;
use crate::output::{Flow, Stream};
use crate::pod::{EarlyExit, Pod};
use crate::record::Stamp;
use crate::requests::Refusal;
use crate::runtime::{Console, ERROR_BYTES, Job, JobKind, shorten};
use crate::session::{Offer, Session};

/// How long an exited container's output is read while others (a shared pid namespace, an escaped child) hold its pipes
/// open.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Exits kept for processes whose runtime has not returned yet. Only orphans of the pod arrive here, and only while a
/// runtime runs.
const EARLY_EXITS: usize = 1024;

/// Exit code if another process took the status, as the kubelet and other runtimes use it.
const UNKNOWN_EXIT: i32 = 255;

/// Reads of the runtime's output before the container can write.
const WORDS_READS: u32 = 32;

/// An exec that the runtime has started.
struct Begun {
    id: String,
    container_id: String,
    limit: Limit,
}

impl Pod {
    pub(crate) fn reap_all(&mut self) {
        while let Ok(Some((pid, ended))) = process::reap_any() {
            self.process_ended(EarlyExit { pid, ended, at_ns: Stamp::now().nanoseconds() });
        }
        if self.jobs.is_empty() {
            self.early = Vec::new();
        }
    }

    fn process_ended(&mut self, exit: EarlyExit) {
        if let Some(at) = self.jobs.iter().position(|job| job.pid == exit.pid) {
            let job = self.jobs.remove(at);
            self.runtime_returned(job, exit.ended);
        } else if let Some(serial) = self.running_with(exit.pid) {
            self.container_ended(serial, exit.ended, exit.at_ns);
        } else if let Some(at) = self.execs.iter().position(|exec| exec.process.pid == exit.pid) {
            // Its handle is closed before the exit is reported.
            let Exec { session, limit, .. } = self.execs.remove(at);
            exec_ended(session, limit, exit.ended);
        } else if self.namespaces.init.is_some_and(|init| init.pid == exit.pid) {
            self.namespaces.init = None;
            self.diary.note(format!("pod init {} ended: {:?}", exit.pid, exit.ended));
        } else if !self.jobs.is_empty() {
            if self.early.len() == EARLY_EXITS {
                self.early.remove(0);
            }
            self.early.push(exit);
        }
    }

    fn running_with(&self, pid: u32) -> Option<u32> {
        let is_it = |state: &State| matches!(state, State::Running(process) if process.pid == pid);
        self.containers.iter().find(|container| is_it(&container.state)).map(|container| container.serial)
    }

    fn take_early(&mut self, pid: u32) -> Option<EarlyExit> {
        let at = self.early.iter().position(|exit| exit.pid == pid)?;
        Some(self.early.remove(at))
    }

    fn runtime_returned(&mut self, mut job: Job, ended: Ended) {
        let console = job.console.take();
        let (client, request) = (job.client, job.request);
        let refused = match &mut job.kind {
            JobKind::Run { serial } => {
                let serial = *serial;
                // After a success the pipes may hold the container's output, which belongs in the log.
                let words = match ended {
                    Ended::Exited(0) => String::new(),
                    _ => self.take_words(serial),
                };
                match succeeded(&job, ended, &words).and_then(|()| self.runs(serial, &job, console)) {
                    Ok(()) => None,
                    Err(refusal) => {
                        self.abandon(serial, &job);
                        Some(refusal)
                    }
                }
            }
            JobKind::Exec { exec_id, container_id, signal, limit, offer } => {
                let (exec_id, container_id, signal) = (exec_id.clone(), container_id.clone(), *signal);
                let begun = Begun { id: exec_id.clone(), container_id, limit: *limit };
                let offer = offer.take();
                let outcome =
                    succeeded(&job, ended, "").and_then(|()| self.exec_started(begun, &job, console, offer));
                match (&outcome, signal) {
                    (Err(_), _) => self.kill_left_behind(&job),
                    (Ok(()), Some((signal, group))) => {
                        self.signal(&Target::Exec(exec_id), signal, group);
                    }
                    (Ok(()), None) => {}
                }
                job.files.clear();
                outcome.err()
            }
        };
        if let Some(refusal) = refused {
            self.reply(client, request, refusal.into());
        }
    }

    /// Output in the pipes so far, which can only be the runtime's.
    fn take_words(&mut self, serial: u32) -> String {
        let mut buffer = self.take_buffer(0);
        let mut said = Vec::new();
        if let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) {
            container.streams.retain_mut(|stream| {
                for _ in 0..WORDS_READS {
                    if !stream.is_readable() {
                        break;
                    }
                    if stream.capture(&mut buffer, &mut said, ERROR_BYTES) == Flow::Ended {
                        return false;
                    }
                }
                true
            });
        }
        self.buffer = buffer;
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    fn runs(&mut self, serial: u32, job: &Job, console: Option<Console>) -> Result<(), Refusal> {
        let pid = pid_of(job)?;
        let terminal = match console {
            Some(console) => Some(console.receive().map_err(|error| {
                Refusal::new(ErrorKind::Io, format!("receive the container's terminal: {error}"))
            })?),
            None => None,
        };
        let early = self.take_early(pid);
        let process = Process {
            pid,
            start_time: proc::start_time(pid).unwrap_or_default(),
            pidfd: if early.is_none() { pidfd::open(pid).ok() } else { None },
        };
        let (start_time, handle_missing) = (process.start_time, process.pidfd.is_none());
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return Err(Refusal::new(ErrorKind::NotFound, "the container is gone"));
        };
        if let Some(master) = terminal {
            let io = |error: rustix::io::Errno| {
                Refusal::new(ErrorKind::Io, format!("prepare the container's terminal: {error}"))
            };
            fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).map_err(io)?;
            let output = rustix::io::fcntl_dupfd_cloexec(&master, 3).map_err(io)?;
            container.streams = vec![Stream::new(StreamName::Stdout, output)];
            container.stdin = Stdin::Terminal(master);
        }
        let known = container.oom.as_mut().is_some_and(OomCounter::look);
        if !known {
            // The daemon did not name it, or it is gone already: then its process may still show it.
            container.oom = OomCounter::of(pid).or(container.oom.take());
        }
        if let Some(counter) = &mut container.oom {
            self.oom.add(counter);
        }
        container.state = State::Running(process);
        self.reply(job.client, job.request, Reply::Running { pid, start_time });
        match early {
            Some(exit) => self.container_ended(serial, exit.ended, exit.at_ns),
            None if handle_missing => self.check_process(serial),
            None => {}
        }
        Ok(())
    }

    fn exec_started(
        &mut self,
        Begun { id, container_id, limit }: Begun,
        job: &Job,
        console: Option<Console>,
        offer: Option<Offer>,
    ) -> Result<(), Refusal> {
        let pid = pid_of(job)?;
        let missing = || Refusal::new(ErrorKind::Io, format!("exec {id} has no session"));
        let Offer { session, ends, stdio } = offer.ok_or_else(missing)?;
        let lost = |error: std::io::Error| {
            Refusal::new(ErrorKind::Io, format!("receive the terminal of exec {id}: {error}"))
        };
        let master = match console {
            Some(console) => Some(console.receive().map_err(lost)?),
            None => None,
        };
        let terminal = master.is_some();
        // The client resizes through its own copy, the only one: closing it hangs up the process.
        let mut fds: Vec<OwnedFd> = master.into_iter().collect();
        if let Some(master) = fds.first() {
            fcntl_setfl(master, OFlags::RDWR | OFlags::NONBLOCK).map_err(|error| lost(error.into()))?;
        }
        fds.extend(ends);
        let started = Reply::SessionStarted { pid, terminal, stdio };
        let handed = self.reply_with(job.client, job.request, started, fds);
        match self.take_early(pid) {
            Some(exit) => exec_ended(session, limit, exit.ended),
            None => {
                let start_time = proc::start_time(pid).unwrap_or_default();
                let process = Process { pid, start_time, pidfd: pidfd::open(pid).ok() };
                let serial = self.serial();
                self.execs.push(Exec { id: id.clone(), serial, container_id, process, session, limit });
                // Who asked was told that it did not begin.
                if handed == Handed::Refused {
                    self.signal(&Target::Exec(id), SIGKILL, true);
                }
            }
        }
        Ok(())
    }

    /// A failed run: leaves no descriptor, no empty log file of ours, no process.
    fn abandon(&mut self, serial: u32, job: &Job) {
        self.kill_left_behind(job);
        if let Some(at) = self.containers.iter().position(|container| container.serial == serial)
            && let Some(log) = self.containers.remove(at).log
        {
            log.discard();
        }
    }

    /// A killed runtime may have left the process that it was creating, now our child.
    fn kill_left_behind(&mut self, job: &Job) {
        use std::os::fd::AsFd as _;
        let Ok(pid) = job.files.read_pid() else { return };
        if let Ok(handle) = pidfd::open(pid)
            && proc::parent(pid).is_ok_and(|parent| parent == std::process::id())
        {
            let _ = pidfd::send_signal(handle.as_fd(), SIGKILL);
        }
    }

    /// Its handle shows its end: reap it, or learn that it was not our child.
    pub(crate) fn check_process(&mut self, serial: u32) {
        self.reap_all();
        let Some(container) = self.containers.iter().find(|container| container.serial == serial) else {
            return;
        };
        let State::Running(process) = &container.state else { return };
        if let Err(error) = process::reap(process.pid) {
            let pid = process.pid;
            self.diary.note(format!("process {pid} ended without telling us how: {error}"));
            self.container_ended(serial, Ended::Exited(UNKNOWN_EXIT), Stamp::now().nanoseconds());
        }
    }

    /// Init is gone: read the OOM counter before the cgroup can be removed, then the rest of the output.
    fn container_ended(&mut self, serial: u32, ended: Ended, finished_at_ns: i64) {
        self.look_at_memory();
        let Some(container) = self.containers.iter_mut().find(|container| container.serial == serial) else {
            return;
        };
        let State::Running(process) = &container.state else { return };
        let killed = ended.signal() == Some(SIGKILL);
        let oom_killed = container.oom.as_mut().is_some_and(|counter| counter.verdict(killed));
        let exit = ExitRecord {
            version: RECORD_VERSION,
            container_id: container.id.clone(),
            pid: process.pid,
            exit_code: ended.code(),
            signal: ended.signal(),
            oom_killed,
            finished_at_ns,
        };
        let start_time = process.start_time;
        container.state = State::Draining { start_time, exit, until: Instant::now() + DRAIN_LIMIT };
        if container.streams.is_empty() {
            self.finish_exit(serial);
        }
    }

    /// The output is in the log, or abandoned: record the exit, then report it.
    pub(crate) fn finish_exit(&mut self, serial: u32) {
        let Some(at) = self.containers.iter().position(|container| container.serial == serial) else {
            return;
        };
        let mut buffer = self.take_buffer(self.containers[at].max_line);
        let container = &mut self.containers[at];
        container.close_streams(&mut buffer);
        self.buffer = buffer;
        container.streams = Vec::new();
        container.stdin = Stdin::None;
        container.dismiss_all();
        let loss = container.loss(true);
        if let Some(log) = container.log.take() {
            container.lost_bytes = log.dropped_bytes();
        }
        let State::Draining { exit, .. } = &container.state else { return };
        let exit = exit.clone();
        container.state = State::Exited(exit.clone());
        let path = self.exit_file(&exit.container_id);
        let written = serde_json::to_vec(&exit)
            .map_err(std::io::Error::from)
            .and_then(|bytes| write_atomically(Path::new(&path), &bytes));
        if let Err(error) = written {
            // It stays in memory, and List reports it.
            self.diary.note(format!("write exit record {path}: {error}"));
        }
        if let Some(lost) = loss {
            self.tell(lost);
        }
        self.tell(Event::ContainerExited { container_id: exit.container_id.clone(), exit });
    }

    pub(crate) fn exit_file(&self, container_id: &str) -> String {
        format!("{}/{container_id}.json", self.setup.exit_dir)
    }
}

fn exec_ended(session: Session, limit: Limit, ended: Ended) {
    let (exit_code, signal) = (ended.code(), ended.signal());
    session.end(match (limit, signal) {
        (Limit::Reached, Some(SIGKILL)) => SessionEnd::TimedOut,
        _ => SessionEnd::Exited { exit_code, signal },
    });
}

fn pid_of(job: &Job) -> Result<u32, Refusal> {
    job.files.read_pid().map_err(|error| {
        let message = format!("the runtime returned success but no pid in {:?}: {error}", job.files.pid);
        Refusal::new(ErrorKind::Runtime { exit_code: 0 }, message)
    })
}

/// Why a runtime may have written nothing to its log.
fn why_silent(log: &Path) -> String {
    let Some(dir) = log.parent() else { return String::new() };
    match rustix::fs::statvfs(dir) {
        Ok(found) if found.f_bavail == 0 => format!(": no space is left in {}", dir.display()),
        _ => String::new(),
    }
}

fn succeeded(job: &Job, ended: Ended, words: &str) -> Result<(), Refusal> {
    if job.killed {
        return Err(Refusal::new(ErrorKind::Deadline, "the runtime was killed at its deadline"));
    }
    if ended == Ended::Exited(0) {
        return Ok(());
    }
    let message = job.files.last_error().filter(|text| !text.is_empty()).unwrap_or_else(|| match words {
        "" => match ended {
            Ended::Exited(code) => {
                format!("the runtime exited with code {code} and no message{}", why_silent(&job.files.log))
            }
            Ended::Signaled(signal) => format!("the runtime was killed by signal {signal}"),
        },
        words => shorten(words),
    });
    Err(Refusal::new(ErrorKind::Runtime { exit_code: ended.code() }, message))
}
