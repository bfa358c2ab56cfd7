//! The real daemon, run on a scratch node.
//!
//! Owns one process of the `podwright` binary: start, readiness, stop, SIGKILL,
//! restart, log. It never looks inside the daemon.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::programs::workspace;
use crate::scratch::Scratch;
use crate::wait::wait_for;

/// Limit until its socket accepts: it has nothing to download and little to recover.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to its end; calls in progress are let finish.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Lines of its log that go into an error.
const LOG_TAIL: usize = 40;

/// A running daemon. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    binary: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// `PODWRIGHT_BIN`, or where `make build` puts the daemon.
#[must_use]
pub fn default_binary() -> PathBuf {
    std::env::var_os("PODWRIGHT_BIN").map_or_else(|| workspace().join("build/bin/podwright"), PathBuf::from)
}

impl Daemon {
    /// Starts [`default_binary`] and waits until its socket accepts.
    ///
    /// # Errors
    /// As [`Self::start_binary`].
    pub fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_binary(scratch, &default_binary())
    }

    /// Starts a certain binary, such as `env!("CARGO_BIN_EXE_podwright")`.
    ///
    /// # Errors
    /// Fails when it cannot be started, ends, or does not accept in time; the message carries its log's end.
    pub fn start_binary(scratch: &Scratch, binary: &Path) -> Result<Self> {
        let mut daemon = Self {
            binary: binary.to_owned(),
            config: scratch.config_file(),
            socket: scratch.socket(),
            log: scratch.daemon_log(),
            child: None,
        };
        daemon.launch()?;
        Ok(daemon)
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Errors
    /// As [`Self::start_binary`].
    pub fn launch(&mut self) -> Result<()> {
        anyhow::ensure!(self.child.is_none(), "the daemon is running already");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let child = Command::new(&self.binary)
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let child = self.child.insert(child);
        let socket = &self.socket;
        let ready = wait_for("the daemon's socket accepts", START_LIMIT, || match child.try_wait() {
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("the daemon ended with {status}"))),
            _ => UnixStream::connect(socket).ok().map(|_| Ok(())),
        });
        ready.and_then(|inner| inner).with_context(|| format!("log ends with:\n{}", self.log_tail()))
    }

    /// Its process id, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it with SIGTERM and waits for the end.
    ///
    /// # Errors
    /// Fails if it has not ended in time (it is killed then).
    pub fn stop(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("daemon's pid")?;
        kill_process(pid, Signal::TERM).context("send SIGTERM to the daemon")?;
        let ended = wait_for("the daemon ends after SIGTERM", STOP_LIMIT, || child.try_wait().ok().flatten());
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.map(Some).with_context(|| format!("log ends with:\n{}", self.log_tail()))
    }

    /// Ends it with SIGKILL, as a crash would, and reaps it.
    ///
    /// # Errors
    /// Fails when the signal cannot be sent.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().context("send SIGKILL to the daemon")?;
        child.wait().context("reap the daemon")?;
        Ok(())
    }

    /// [`Self::stop`], then [`Self::launch`].
    ///
    /// # Errors
    /// As these.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// [`Self::kill`], then [`Self::launch`].
    ///
    /// # Errors
    /// As these.
    pub fn crash(&mut self) -> Result<()> {
        self.kill()?;
        self.launch()
    }

    /// Waits until a failed start ends by itself (a test made it fail or panic).
    ///
    /// # Errors
    /// Fails when it still runs after `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the daemon is not running")?;
        let status = wait_for("the daemon ends", limit, || child.try_wait().ok().flatten())?;
        self.child = None;
        Ok(status)
    }

    /// All that it has logged, over all starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "daemon's log ends with:\n{}", self.log_tail());
        }
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_at_once_is_told_with_its_log() {
        let scratch = Scratch::new().unwrap();
        let program = scratch.root().join("fake");
        std::fs::write(&program, "#!/bin/sh\necho no such feature\nexit 3\n").unwrap();
        assert!(Command::new("chmod").arg("755").arg(&program).status().unwrap().success());
        let error = format!("{:#}", Daemon::start_binary(&scratch, &program).unwrap_err());
        assert!(error.contains("no such feature") && error.contains("exit status: 3"), "{error}");
    }
}
