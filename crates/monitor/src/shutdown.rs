//! The end of a pod: nothing runs any more, the namespaces are taken down, the files removed, then the answer.

use podwright_sys::pidfd::SIGKILL;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use podwright_monitor_proto::{ErrorKind, Reply, RequestId};
use podwright_sys::pidfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::Client;
use crate::container::{Container, State};
use crate::launch::remove_files;
use crate::pod::Pod;
use crate::requests::Refusal;

/// How long killed containers may take to be gone; one in uninterruptible sleep takes longer, and the caller comes
/// again.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long the last answer may take to leave; the peer sees the end of the connection anyway.
const LAST_WORDS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[derive(Debug)]
pub(crate) enum Shutdown {
    No,
    /// Everything was killed; waiting for it to be gone.
    Waiting {
        client: u32,
        request: RequestId,
        until: Instant,
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
            Self::No | Self::Done => None,
        }
    }
}

impl Pod {
    pub(crate) fn refuse_while_shutting_down(&self) -> Result<(), Refusal> {
        match self.shutdown {
            Shutdown::No => Ok(()),
            Shutdown::Waiting { .. } | Shutdown::Done => {
                Err(Refusal::new(ErrorKind::Invalid, "the monitor is shutting down"))
            }
        }
    }

    /// The reply comes when all is down.
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

    pub(crate) fn go_on_shutting_down(&mut self, now: Instant) {
        let Shutdown::Waiting { client, request, until } = self.shutdown else { return };
        // A create that was under way may have made one more.
        for container in &self.containers {
            if let State::Running(process) = &container.state
                && let Some(handle) = &process.pidfd
            {
                let _ = pidfd::send_signal(handle.as_fd(), SIGKILL);
            }
        }
        if self.jobs.is_empty() && self.containers.iter().all(Container::is_exited) {
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
