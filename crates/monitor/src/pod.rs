//! The poll loop and its state. Waits in one place only; everything else returns at once.

use podwright_sys::pidfd::SIGKILL;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use podwright_monitor_proto::{Event, FromMonitor, MonitorRecord, Reply, RequestId, Target};
use podwright_sys::process::{Ended, Signals};
use podwright_sys::{pidfd, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Uid};

use crate::client::{Client, Handed};
use crate::container::{Container, Exec, Limit, State};
use crate::diary::Diary;
use crate::namespaces::Namespaces;
use crate::null::NullDevices;
use crate::oom::OomWatch;
use crate::output::{self, Flow};
use crate::pace::{self, Pace};
use crate::runtime::Job;
use crate::session::Session;
use crate::shutdown::Shutdown;

/// Connections at a time: the daemon's, its successor's, and people with tools.
const MAX_CLIENTS: usize = 16;

/// After this time without anything to do, the read buffer and free heap pages go back to the kernel.
const IDLE: Duration = Duration::from_secs(1);
/// Pause after a failed accept: without descriptors the poll would return at once while a connection waits.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const SIGCHLD: i32 = 17;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

/// Fixed at launch.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) dir: String,
    /// Keeps the path short for sockets.
    pub(crate) dir_fd: OwnedFd,
    pub(crate) exit_dir: String,
    pub(crate) log_max_line: u32,
    /// Source of its processes' null devices.
    pub(crate) nulls: NullDevices,
    /// The OOM score that runtimes get back after we changed our own.
    pub(crate) oom_score: Option<i32>,
    /// Uid and gid of a user namespace's root. It owns the pipe ends of the pod's processes; otherwise they could not
    /// reopen them, as /dev/stdout.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Setup {
    /// Gives a pipe away.
    pub(crate) fn give(&self, end: impl AsFd) -> io::Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        Ok(rustix::fs::fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }
}

/// An exit whose process is not claimed yet.
#[derive(Debug)]
pub(crate) struct EarlyExit {
    pub(crate) pid: u32,
    pub(crate) ended: Ended,
    pub(crate) at_ns: i64,
}

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) setup: Setup,
    record: MonitorRecord,
    pub(crate) namespaces: Namespaces,
    signals: Signals,
    listener: OwnedFd,
    /// No accept before this time: descriptors have run out.
    deaf_until: Option<Instant>,
    clients: Vec<Client>,
    pub(crate) containers: Vec<Container>,
    pub(crate) execs: Vec<Exec>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) early: Vec<EarlyExit>,
    /// Shared by all readers; empty while idle.
    pub(crate) buffer: Vec<u8>,
    pub(crate) diary: Diary,
    pub(crate) shutdown: Shutdown,
    pub(crate) oom: OomWatch,
    next_serial: u32,
    rest: Rest,
    /// Of containers' output.
    pace: Pace,
}

/// Whether buffers needed only during activity are still held.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// Something happened last at this time.
    Awake(Instant),
    /// All given back.
    Asleep,
}

/// Ready sources.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Signals,
    Listener,
    Client(u32),
    Output(u32, usize),
    Process(u32),
    /// A client of an exec has left.
    Session(u32),
    /// Output of an exec that no client reads.
    Discard(u32, usize),
    /// A client of a container has left: container, client.
    Viewer(u32, u32),
    Input(u32, u32),
    /// Something changed in a container's memory cgroup.
    Memory,
}

impl Pod {
    pub(crate) fn new(
        setup: Setup,
        record: MonitorRecord,
        namespaces: Namespaces,
        signals: Signals,
        listener: OwnedFd,
        diary: Diary,
    ) -> Self {
        Self {
            setup,
            record,
            namespaces,
            signals,
            listener,
            deaf_until: None,
            clients: Vec::new(),
            containers: Vec::new(),
            execs: Vec::new(),
            jobs: Vec::new(),
            early: Vec::new(),
            buffer: Vec::new(),
            diary,
            shutdown: Shutdown::No,
            oom: OomWatch::default(),
            next_serial: 1,
            rest: Rest::Awake(Instant::now()),
            pace: Pace::new(Instant::now()),
        }
    }

    pub(crate) fn record(&self) -> &MonitorRecord {
        &self.record
    }

    pub(crate) fn adopt_client(&mut self, client: Client) {
        self.clients.push(client);
    }

    pub(crate) fn serial(&mut self) -> u32 {
        self.next_serial += 1;
        self.next_serial
    }

    pub(crate) fn client(&mut self, serial: u32) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.serial == serial)
    }

    pub(crate) fn clients(&mut self) -> &mut [Client] {
        &mut self.clients
    }

    /// A client that has gone gets no answer.
    pub(crate) fn reply(&mut self, client: u32, id: RequestId, reply: Reply) {
        self.reply_with(client, id, reply, Vec::new());
    }

    pub(crate) fn reply_with(
        &mut self,
        client: u32,
        id: RequestId,
        reply: Reply,
        fds: Vec<OwnedFd>,
    ) -> Handed {
        match self.client(client) {
            Some(client) => client.push(&FromMonitor::Reply { id, reply }, fds),
            None => Handed::Over,
        }
    }

    pub(crate) fn tell(&mut self, event: Event) {
        let event = FromMonitor::Event(event);
        for client in self.clients.iter_mut().filter(|client| client.is_greeted()) {
            client.push(&event, Vec::new());
        }
    }

    /// Serves until shut down.
    pub(crate) fn run(&mut self) {
        let mut before = pace::spent();
        while !self.shutdown.is_done() {
            let ready = self.wait();
            if !ready.is_empty() {
                self.rest = Rest::Awake(Instant::now());
            }
            let output = ready.iter().any(|ready| matches!(ready, Ready::Output(..) | Ready::Discard(..)));
            for item in ready {
                self.serve(item);
            }
            self.expire(Instant::now());
            self.clients.retain(|client| !client.is_gone());
            let after = pace::spent();
            if output {
                self.pace.spend(after.saturating_sub(before), Instant::now());
            }
            before = after;
        }
    }

    /// Sources with events. Empty if only time has passed.
    fn wait(&mut self) -> Vec<Ready> {
        let timeout = self.timeout();
        let mut what = vec![Ready::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.deaf_until.is_none() {
            what.push(Ready::Listener);
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        if let Some(oom) = self.oom.fd() {
            what.push(Ready::Memory);
            fds.push(PollFd::from_borrowed_fd(oom, PollFlags::IN));
        }
        for client in &self.clients {
            let mut flags = PollFlags::IN;
            if client.has_output() {
                flags |= PollFlags::OUT;
            }
            what.push(Ready::Client(client.serial));
            fds.push(PollFd::new(client, flags));
        }
        let closed = self.pace.closed_until(Instant::now()).is_some();
        for container in &self.containers {
            let silent = closed || matches!(container.state, State::Starting);
            for (index, stream) in container.streams.iter().enumerate().filter(|_| !silent) {
                what.push(Ready::Output(container.serial, index));
                fds.push(PollFd::new(stream, PollFlags::IN));
            }
            if let State::Running(process) = &container.state
                && let Some(pidfd) = &process.pidfd
            {
                what.push(Ready::Process(container.serial));
                fds.push(PollFd::new(pidfd, PollFlags::IN));
            }
            // Only the end of a leash matters. Input goes first: it is older.
            for viewer in &container.viewers {
                what.push(Ready::Viewer(container.serial, viewer.serial));
                fds.push(PollFd::new(&viewer.leash, PollFlags::empty()));
                let Some((input, sink)) = viewer.input.as_ref().zip(container.sink()) else { continue };
                what.push(Ready::Input(container.serial, viewer.serial));
                fds.push(match input.waits_for_container() {
                    true => PollFd::from_borrowed_fd(sink, PollFlags::OUT),
                    false => PollFd::from_borrowed_fd(input.reader(), PollFlags::IN),
                });
            }
        }
        for exec in &self.execs {
            match &exec.session {
                Session::Held { leash, .. } => {
                    what.push(Ready::Session(exec.serial));
                    fds.push(PollFd::new(leash, PollFlags::empty()));
                }
                Session::Left { outputs } if !closed => {
                    for (index, output) in outputs.iter().enumerate() {
                        what.push(Ready::Discard(exec.serial, index));
                        fds.push(PollFd::new(output, PollFlags::IN));
                    }
                }
                Session::Left { .. } => {}
            }
        }
        match poll(&mut fds, timeout.as_ref()) {
            // Reversed: the end of a stream removes it, which moves only later ones. Output before exits.
            Ok(count) if count > 0 => std::iter::zip(what, fds)
                .filter_map(|(what, fd)| (!fd.revents().is_empty()).then_some(what))
                .rev()
                .collect(),
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let tails = self.containers.iter().flat_map(|c| &c.streams).filter_map(output::Stream::flush_at);
        let tails = tails.chain(self.pace.closed_until(Instant::now()));
        let drains = self.containers.iter().filter_map(|container| match &container.state {
            State::Draining { until, .. } => Some(*until),
            State::Starting | State::Running(_) | State::Exited(_) => None,
        });
        let jobs = self.jobs.iter().filter(|job| !job.killed).filter_map(|job| job.deadline);
        let limits = self.execs.iter().filter_map(|exec| exec.limit.at());
        let rest = match self.rest {
            Rest::Awake(since) => Some(since + IDLE),
            Rest::Asleep => None,
        };
        let next = tails.chain(drains).chain(jobs).chain(limits).chain(self.shutdown.until()).chain(rest);
        let next = next.chain(self.deaf_until).min();
        next.map(|at| at.saturating_duration_since(Instant::now())).map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        })
    }

    fn serve(&mut self, item: Ready) {
        match item {
            Ready::Signals => self.take_signals(),
            Ready::Listener => self.accept(),
            Ready::Client(serial) => self.serve_client(serial),
            Ready::Output(serial, index) => self.take_output(serial, index),
            Ready::Process(serial) => self.check_process(serial),
            Ready::Session(serial) => self.session_left(serial),
            Ready::Discard(serial, index) => self.discard_output(serial, index),
            Ready::Viewer(container, viewer) => self.viewer_left(container, viewer),
            Ready::Input(container, viewer) => self.pass_input(container, viewer),
            Ready::Memory => self.look_at_memory(),
        }
    }

    /// Learns of processes that were killed for lack of memory, before their cgroup can go.
    pub(crate) fn look_at_memory(&mut self) {
        self.oom.serve(self.containers.iter_mut().filter_map(|container| container.oom.as_mut()));
    }

    fn take_signals(&mut self) {
        let mut children = false;
        loop {
            match self.signals.take() {
                Ok(Some(received)) if received.signal == SIGCHLD => children = true,
                // A write to a peer that has gone also fails by itself.
                Ok(Some(received)) if received.signal == SIGPIPE => {}
                Ok(Some(received)) if received.signal == SIGTERM => self.asked_to_end(received.sender),
                Ok(Some(received)) => {
                    self.diary
                        .note(format!("signal {} of process {} ignored", received.signal, received.sender));
                }
                Ok(None) | Err(_) => break,
            }
        }
        if children {
            self.reap_all();
        }
    }

    fn accept(&mut self) {
        loop {
            let connection = match socket::accept(self.listener.as_fd()) {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                Err(error) => {
                    self.diary.note(format!("cannot accept a connection: {error}"));
                    self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            let known = socket::peer(connection.as_fd())
                .is_ok_and(|peer| peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw());
            if known && self.clients.len() < MAX_CLIENTS {
                let serial = self.serial();
                self.clients.push(Client::new(serial, connection));
            } else {
                self.diary.note("connection refused: a stranger, or one too many");
            }
        }
    }

    fn serve_client(&mut self, serial: u32) {
        let mut buffer = self.take_buffer(0);
        if let Some(client) = self.client(serial) {
            if client.has_output() {
                client.flush();
            }
            client.read(&mut buffer);
        }
        self.buffer = buffer;
        while let Some(frame) = self.client(serial).and_then(Client::next_frame) {
            self.request(serial, &frame);
        }
    }

    /// The shared buffer, large enough for lines of `max` bytes; the caller puts it back.
    pub(crate) fn take_buffer(&mut self, max: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        output::size_buffer(&mut buffer, max);
        buffer
    }

    fn take_output(&mut self, serial: u32, index: usize) {
        let Some(at) = self.containers.iter().position(|container| container.serial == serial) else {
            return;
        };
        let mut buffer = self.take_buffer(self.containers[at].max_line);
        let container = &mut self.containers[at];
        if let Some(stream) = container.streams.get_mut(index) {
            let flow = match &mut container.state {
                // Not polled.
                State::Starting => return self.buffer = buffer,
                State::Running(_) | State::Draining { .. } | State::Exited(_) => {
                    let viewers = &mut container.viewers;
                    stream.pump(&mut buffer, container.log.as_mut(), viewers, container.max_line)
                }
            };
            if flow == Flow::Ended {
                let name = container.streams.remove(index).name;
                container.end_view(name);
            }
            container.dismiss_slow();
        }
        let loss = container.loss(false);
        self.buffer = buffer;
        if let Some(lost) = loss {
            self.tell(lost);
        }
        if matches!(self.containers[at].state, State::Draining { .. })
            && self.containers[at].streams.is_empty()
        {
            self.finish_exit(serial);
        }
    }

    /// Kills execs that have reached their limit. Their clients may be gone: a daemon that died keeps no limit.
    fn end_overdue(&mut self, now: Instant) {
        let mut due = Vec::new();
        for exec in &mut self.execs {
            if exec.limit.at().is_some_and(|at| at <= now) {
                exec.limit = Limit::Reached;
                due.push(exec.id.clone());
            }
        }
        for id in due {
            self.signal(&Target::Exec(id), SIGKILL, true);
        }
    }

    /// Handles everything that is due.
    fn expire(&mut self, now: Instant) {
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        for container in &mut self.containers {
            for stream in &mut container.streams {
                stream.expire(now, container.log.as_mut(), container.max_line);
            }
        }
        let due: Vec<u32> = self
            .containers
            .iter()
            .filter(|c| matches!(&c.state, State::Draining { until, .. } if *until <= now))
            .map(|c| c.serial)
            .collect();
        for serial in due {
            self.finish_exit(serial);
        }
        for job in &mut self.jobs {
            if !job.killed && job.deadline.is_some_and(|deadline| deadline <= now) {
                job.killed = true;
                // The runtime leads its group and is not reaped before its job is removed.
                let _ = pidfd::send_group_signal(job.pid, SIGKILL);
            }
        }
        self.end_overdue(now);
        self.go_on_shutting_down(now);
        if let Rest::Awake(since) = self.rest
            && now >= since + IDLE
        {
            self.buffer = Vec::new();
            podwright_sys::memory::trim();
            self.rest = Rest::Asleep;
        }
    }
}
