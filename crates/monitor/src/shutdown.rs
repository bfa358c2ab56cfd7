//! The end of a pod: nothing runs any more, the namespaces are taken down, the files removed, then the answer is sent.
//! And the end of the machine, where only processes count: the monitor ends with its last container.

use podwright_sys::pidfd::SIGKILL;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use podwright_monitor_proto::{ErrorKind, Reply, RequestId};
use podwright_sys::{pidfd, proc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::Client;
use crate::container::{Container, Process, State};
use crate::launch::remove_files;
use crate::pod::Pod;
use crate::requests::Refusal;
use crate::rights;

/// How long killed containers may take to end; one in uninterruptible sleep takes longer, and the caller repeats the
/// request.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long the last answer may take to leave; the peer sees the end of the connection anyway.
const LAST_WORDS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Process 1 while systemd ends the machine: it has executed systemd-shutdown. The kernel keeps 15 characters of a
/// name.
const LAST_PROCESS: &str = "systemd-shutdow";

/// How long SIGTERM must have no effect on a container before SIGKILL: a shell whose last child has just ended is about
/// to continue.
const DEAF_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) enum Shutdown {
    No,
    /// Everything was killed; waits for its end.
    Waiting {
        client: u32,
        request: RequestId,
        until: Instant,
    },
    /// The machine ends: waiting for the containers to end.
    WithMachine {
        look_at: Instant,
        /// Containers that SIGTERM could not end at the last check.
        deaf: Vec<u32>,
    },
    Done,
}

impl Shutdown {
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        match self {
            Self::Waiting { until, .. } => Some(*until),
            Self::WithMachine { look_at, .. } => Some(*look_at),
            Self::No | Self::Done => None,
        }
    }
}

impl Pod {
    pub(crate) fn refuse_while_shutting_down(&self) -> Result<(), Refusal> {
        match self.shutdown {
            Shutdown::No | Shutdown::WithMachine { .. } => Ok(()),
            Shutdown::Waiting { .. } | Shutdown::Done => {
                Err(Refusal::new(ErrorKind::Invalid, "the monitor is shutting down"))
            }
        }
    }

    /// The reply follows when everything is down.
    pub(crate) fn start_shutdown(
        &mut self,
        client: u32,
        request: RequestId,
        force: bool,
    ) -> Result<(), Refusal> {
        self.refuse_while_shutting_down()?;
        if !force && let Some(container) = self.containers.iter().find(|container| !container.is_exited()) {
            let message = format!("container {:?} has not exited", container.id);
            return Err(Refusal::new(ErrorKind::StillRunning, message));
        }
        for exec in &self.execs {
            if let Some(handle) = &exec.process.pidfd {
                let _ = pidfd::send_signal(handle.as_fd(), SIGKILL);
            }
        }
        for job in &mut self.jobs {
            job.killed = true;
            let _ = pidfd::send_group_signal(job.pid, SIGKILL);
        }
        self.shutdown = Shutdown::Waiting { client, request, until: Instant::now() + KILL_LIMIT };
        Ok(())
    }

    /// The meaning of SIGTERM depends on its sender. When systemd ends the machine, every remaining process gets it and
    /// delays the machine, 90 s by default. From anybody else it is a mistake, such as `systemctl kill podwright`, and
    /// obeying it would cost the pod.
    pub(crate) fn asked_to_end(&mut self, sender: u32) {
        let name = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
        if sender != 1 || name.trim_end() != LAST_PROCESS {
            self.diary.note(format!("SIGTERM of process {sender} ignored"));
        } else if matches!(self.shutdown, Shutdown::No) {
            self.diary.note("the machine ends");
            self.shutdown = Shutdown::WithMachine { look_at: Instant::now(), deaf: Vec::new() };
        }
    }

    /// The containers have got SIGTERM as the monitor has. Namespaces and files go with the machine.
    fn end_with_machine(&mut self, now: Instant) {
        if self.jobs.is_empty() && self.containers.iter().all(Container::is_exited) {
            self.shutdown = Shutdown::Done;
            return;
        }
        let Shutdown::WithMachine { look_at, deaf: before } = &mut self.shutdown else { return };
        if now < *look_at {
            return;
        }
        let before = std::mem::take(before);
        let mut deaf = Vec::new();
        for container in &self.containers {
            let State::Running(Process { pid, pidfd: Some(handle), .. }) = &container.state else { continue };
            if !proc::is_deaf_init(*pid) {
                continue;
            }
            deaf.push(container.serial);
            if before.contains(&container.serial) {
                let _ = pidfd::send_signal(handle.as_fd(), SIGKILL);
            }
        }
        self.shutdown = Shutdown::WithMachine { look_at: now + DEAF_FOR, deaf };
    }

    pub(crate) fn go_on_shutting_down(&mut self, now: Instant) {
        if matches!(self.shutdown, Shutdown::WithMachine { .. }) {
            return self.end_with_machine(now);
        }
        let Shutdown::Waiting { client, request, until } = self.shutdown else { return };
        // A create in progress may have created one more.
        for container in &self.containers {
            if let State::Running(process) = &container.state
                && let Some(handle) = &process.pidfd
            {
                let _ = pidfd::send_signal(handle.as_fd(), SIGKILL);
            }
        }
        if self.jobs.is_empty() && self.containers.iter().all(Container::is_exited) {
            if let Err(error) = rights::for_the_end() {
                self.diary.note(format!("take capabilities into use: {error}"));
            }
            for wrong in self.namespaces.take_down() {
                self.diary.note(wrong);
            }
            remove_files(Path::new(&self.setup.dir));
            self.reply(client, request, Reply::Done);
            self.last_words();
            self.shutdown = Shutdown::Done;
        } else if now >= until {
            self.shutdown = Shutdown::No;
            let left = self.containers.iter().find(|container| !container.is_exited());
            let left = left.map_or("a runtime", |container| &container.id);
            let message = format!("{left:?} is still there after SIGKILL");
            self.reply(client, request, Refusal::new(ErrorKind::StillRunning, message).into());
        }
    }

    fn last_words(&mut self) {
        for client in self.clients().iter_mut().filter(|client| Client::has_output(client)) {
            let mut fds = [PollFd::new(client, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&LAST_WORDS));
            client.flush();
        }
    }
}
