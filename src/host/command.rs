//! Running other programs: the only place in the daemon that does.
//!
//! Owns the child from start to reaping: bytes on stdin, bounded output, a deadline, its own process group that is
//! killed whole at the deadline or when the caller's future is dropped. Never interprets a program's output.

use super::offload;
use podwright_sys::proc;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal,
};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// Default limit of a program's stdout, bytes.
const DEFAULT_STDOUT_LIMIT: usize = 1 << 20;
/// Bytes of stderr kept, the last ones, where a program explains its failure.
const STDERR_KEPT: usize = 16 << 10;
/// Characters of stderr that go into an error message.
const STDERR_SHOWN: usize = 2 << 10;
/// How long to wait for output after the program has ended: a child may hold the pipes for ever.
const DRAIN_AFTER_EXIT: Duration = Duration::from_secs(1);
/// How long to wait for a killed program. One in uninterruptible sleep ends later; the tokio runtime then reaps it.
const REAP_AFTER_KILL: Duration = Duration::from_secs(1);
/// Variables of the service manager's protocol with the daemon, which no child may speak.
const SERVICE_MANAGER_ENV: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Reading its output or waiting for it failed.
    #[error("{operation} {}: {source}", program.display())]
    Io {
        /// The program.
        program: PathBuf,
        /// The operation.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// It did not end in time; its process group was killed.
    #[error("{} did not end within {after:?} and was killed{}", program.display(), said(stderr))]
    Timeout {
        /// The program.
        program: PathBuf,
        /// The deadline.
        after: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It wrote more than it may; its process group was killed.
    #[error("{} wrote more than {limit} bytes to stdout and was killed{}", program.display(), said(stderr))]
    TooMuchOutput {
        /// The program.
        program: PathBuf,
        /// The limit in bytes.
        limit: usize,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It ended with an error.
    #[error("{}: {status}{}", program.display(), said(stderr))]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
}

impl CommandError {
    /// Whether the program's file was open for writing (during an upgrade), which is worth another attempt.
    #[must_use]
    pub fn is_text_busy(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == io::ErrorKind::ExecutableFileBusy)
    }
}

fn said(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!(": {}", tail(text, STDERR_SHOWN)) }
}

fn tail(text: &str, limit: usize) -> &str {
    let from = text.len().saturating_sub(limit);
    let from = (from..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    &text[from..]
}

/// A program's exit status and output.
#[derive(Debug)]
pub struct Output {
    /// The program.
    pub program: PathBuf,
    /// How it ended.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// The end of stderr.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub elapsed: Duration,
}

impl Output {
    /// Turns an exit status that is not zero into an error.
    ///
    /// # Errors
    /// [`CommandError::Failed`].
    pub fn success(self) -> Result<Self, CommandError> {
        if self.status.success() {
            return Ok(self);
        }
        let stderr = lossy(&self.stderr);
        Err(CommandError::Failed { program: self.program, status: self.status, stderr })
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One run of a program, built and then run once. Inherits the daemon's environment.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    inner: tokio::process::Command,
    /// None: it reads the end at once.
    stdin: Option<Vec<u8>>,
    stdout_limit: usize,
    deadline: Duration,
    /// Time for the others of its group to end by themselves.
    grace: Option<Duration>,
    /// Interval of reminding it of its children.
    nudge: Option<Duration>,
}

impl Command {
    /// A run of `program` that may take `deadline`.
    #[must_use]
    pub fn new(program: &Path, deadline: Duration) -> Self {
        let mut inner = tokio::process::Command::new(program);
        // No pre_exec, uid or groups here: std then uses posix_spawn, which does not copy page tables.
        inner.process_group(0).kill_on_drop(true);
        inner.stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in SERVICE_MANAGER_ENV {
            inner.env_remove(name);
        }
        let stdout_limit = DEFAULT_STDOUT_LIMIT;
        Self {
            program: program.to_owned(),
            inner,
            stdin: None,
            stdout_limit,
            deadline,
            grace: None,
            nudge: None,
        }
    }

    /// At the deadline kills only the program itself, and the rest of its group if it has not ended within `grace`: for
    /// a program whose helper holds processes that would not survive its sudden end. When the future is dropped, the
    /// others end by themselves.
    #[must_use]
    pub fn orderly(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sends SIGCHLD to the program repeatedly: for one that waits for that of a child, but missed it.
    #[must_use]
    pub fn nudge(mut self, every: Duration) -> Self {
        self.nudge = Some(every);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Forgets the daemon's environment and what was set so far.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.inner.env_clear();
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Gives the program these bytes on stdin; without them that is at its end.
    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// Bytes of stdout after which the program is killed.
    #[must_use]
    pub fn stdout_limit(mut self, bytes: usize) -> Self {
        self.stdout_limit = bytes;
        self
    }

    /// Runs the program to its end, whatever its exit status; see [`Output::success`].
    ///
    /// If the returned future is dropped, the process group is killed and the child reaped by the runtime.
    ///
    /// # Errors
    /// If it cannot be started, outlives the deadline or writes too much.
    pub async fn run(mut self) -> Result<Output, CommandError> {
        let started = Instant::now();
        let child = match stdin_of(self.stdin.is_some()).and_then(|stdin| self.inner.stdin(stdin).spawn()) {
            Ok(child) => child,
            Err(source) => return Err(CommandError::Start { program: self.program, source }),
        };
        let mut group = Group { child, whole: self.grace.is_none() };
        let mut output = Captured::default();
        let nudges = nudge(group.pid(), self.nudge);
        let talk = converse(
            &mut group.child,
            self.stdin.as_deref().unwrap_or_default(),
            self.stdout_limit,
            &mut output,
        );
        let end = tokio::select! {
            end = tokio::time::timeout(self.deadline, talk) => end,
            never = nudges => match never {},
        };
        let Captured { stdout, stderr } = output;
        let (program, failure) = match end {
            Ok(Ok(status)) => {
                let elapsed = started.elapsed();
                return Ok(Output { program: self.program, status, stdout, stderr, elapsed });
            }
            Ok(Err(failure)) => (self.program, Some(failure)),
            Err(_elapsed) => (self.program, None),
        };
        if let Some(grace) = self.grace {
            group.end_within(grace).await;
        }
        group.kill();
        // A killed program's exit status says nothing; an error here means that it is already gone.
        drop(tokio::time::timeout(REAP_AFTER_KILL, group.child.wait()).await);
        let stderr = lossy(&stderr);
        Err(match failure {
            None => CommandError::Timeout { program, after: self.deadline, stderr },
            Some(Failure::TooMuch) => {
                CommandError::TooMuchOutput { program, limit: self.stdout_limit, stderr }
            }
            Some(Failure::Io { operation, source }) => CommandError::Io { program, operation, source },
        })
    }
}

/// Never the node's /dev/null: an OCI runtime may give its standard descriptors to a container's user, who could then
/// change the mode of a device that the whole node needs. A pipe without writers ends as that does.
fn stdin_of(fed: bool) -> io::Result<Stdio> {
    if fed {
        return Ok(Stdio::piped());
    }
    let (reader, _writer) = io::pipe()?;
    Ok(reader.into())
}

async fn nudge(pid: Option<Pid>, every: Option<Duration>) -> Infallible {
    let handle = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let (Some(Ok(handle)), Some(every)) = (handle, every) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        // One that is gone needs none.
        let _ = pidfd_send_signal(&handle, Signal::CHILD);
    }
}

#[derive(Default)]
struct Captured {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum Failure {
    TooMuch,
    Io { operation: &'static str, source: io::Error },
}

/// Feeds stdin, reads both outputs and waits for the end, all at once.
async fn converse(
    child: &mut tokio::process::Child,
    stdin: &[u8],
    stdout_limit: usize,
    output: &mut Captured,
) -> Result<ExitStatus, Failure> {
    let (stdin_pipe, stdout_pipe, stderr_pipe) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut pipe) = stdin_pipe {
            // A program need not read all of its input; EPIPE is its choice, and its exit status shows whether it
            // matters.
            drop(pipe.write_all(stdin).await);
        }
        Ok(())
    };
    let stdout = read_all(stdout_pipe, &mut output.stdout, stdout_limit);
    let stderr = read_tail(stderr_pipe, &mut output.stderr, STDERR_KEPT);
    let talk = async { tokio::try_join!(feed, stdout, stderr).map(|_| ()) };
    tokio::pin!(talk);
    let waited = |source| Failure::Io { operation: "wait for", source };
    tokio::select! {
        talked = &mut talk => {
            talked?;
            child.wait().await.map_err(waited)
        }
        status = child.wait() => {
            let status = status.map_err(waited)?;
            // Waits only briefly for others' output; output so far is kept.
            match tokio::time::timeout(DRAIN_AFTER_EXIT, talk).await {
                Ok(talked) => talked?,
                Err(_held_open) => {}
            }
            Ok(status)
        }
    }
}

fn read_failed(source: io::Error) -> Failure {
    Failure::Io { operation: "read the output of", source }
}

async fn read_all(
    pipe: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    limit: usize,
) -> Result<(), Failure> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    while pipe.read_buf(into).await.map_err(read_failed)? > 0 {
        if into.len() > limit {
            return Err(Failure::TooMuch);
        }
    }
    Ok(())
}

async fn read_tail(
    pipe: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    keep: usize,
) -> Result<(), Failure> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    while pipe.read_buf(into).await.map_err(read_failed)? > 0 {
        // Twice the size, so that not every read moves the buffer.
        if into.len() > 2 * keep {
            into.drain(..into.len() - keep);
        }
    }
    into.drain(..into.len().saturating_sub(keep));
    Ok(())
}

/// A child that leads its own process group. Dropped before the end, it takes the group with it; tokio (`kill_on_drop`)
/// then reaps the leader in the background.
struct Group {
    child: tokio::process::Child,
    /// Whether the others go with the leader.
    whole: bool,
}

impl Group {
    /// None after the leader was reaped: its number may then be another process's.
    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    fn kill(&self) {
        let Some(pid) = self.pid() else { return };
        if let Err(error) = kill_process_group(pid, Signal::KILL) {
            tracing::debug!(?pid, %error, "kill of a process group");
        }
    }

    /// Kills the leader and waits for the others. The leader stays a zombie meanwhile, so that its number, which is the
    /// group's, stays its own.
    async fn end_within(&self, grace: Duration) {
        let Some(pid) = self.pid() else { return };
        let _ = kill_process(pid, Signal::KILL);
        let ended = async {
            // Again, since they may have had children meanwhile.
            while let Ok(others) = offload::run(move |_| others_of(pid)).await
                && !others.is_empty()
            {
                for process in others {
                    if offload::ended(process).await.is_err() {
                        return;
                    }
                }
            }
        };
        let _ = tokio::time::timeout(grace, ended).await;
    }
}

/// The living processes of a group without its leader, as handles that become readable when they end.
fn others_of(leader: Pid) -> Vec<OwnedFd> {
    let Ok(leader) = u32::try_from(leader.as_raw_nonzero().get()) else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != leader && proc::group(*pid).is_ok_and(|group| group == leader));
    others
        .filter_map(|pid| {
            let handle = podwright_sys::pidfd::open(pid).ok()?;
            let lives = proc::group(pid).is_ok_and(|group| group == leader)
                && proc::state(pid).is_ok_and(|state| !matches!(state, 'Z' | 'X'));
            lives.then_some(handle)
        })
        .collect()
}

impl Drop for Group {
    fn drop(&mut self) {
        match (self.whole, self.pid()) {
            (true, _) => self.kill(),
            (false, Some(pid)) => drop(kill_process(pid, Signal::KILL)),
            (false, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, deadline: Duration) -> Command {
        Command::new(Path::new("/bin/sh"), deadline).arg("-c").arg(script)
    }

    async fn until_gone(pid: i32) {
        let path = PathBuf::from(format!("/proc/{pid}"));
        tokio::time::timeout(Duration::from_secs(20), async {
            while path.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("process {pid} is still there"));
    }

    async fn pids_in(file: &Path) -> Vec<i32> {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with("done\n") {
                return text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn stdin_larger_than_a_pipe_comes_back() {
        let input = vec![b'x'; 700 << 10];
        let output = Command::new(Path::new("/bin/cat"), LONG).stdin(input.clone()).run().await.unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, input);
    }

    #[tokio::test]
    async fn no_program_is_given_the_nodes_null_device() {
        use std::os::unix::fs::MetadataExt as _;
        let null = std::fs::metadata("/dev/null").unwrap();
        let script = "cat; for fd in 0 1 2; do stat -L -c %d:%i /proc/$$/fd/$fd; done";
        let output = sh(script, LONG).run().await.unwrap().success().unwrap();
        let given = lossy(&output.stdout);
        let inodes: Vec<&str> = given.lines().collect();
        assert_eq!(inodes.len(), 3, "{given}");
        assert!(!inodes.contains(&format!("{}:{}", null.dev(), null.ino()).as_str()), "{given}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_its_stdin_is_no_error() {
        let output = sh("exit 0", LONG).stdin(vec![0; 1 << 20]).run().await.unwrap();
        assert!(output.status.success());
    }

    #[tokio::test]
    async fn failure_names_program_status_and_stderr() {
        let error = sh("echo no such thing >&2; exit 3", LONG).run().await.unwrap().success().unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh: exit status: 3: no such thing");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Command::new(Path::new("/nowhere/prog"), LONG).run().await.unwrap_err();
        assert!(matches!(error, CommandError::Start { .. }));
        assert!(error.to_string().starts_with("start /nowhere/prog: No such file"), "{error}");
    }

    #[tokio::test]
    async fn the_whole_group_dies_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let script = format!("sleep 1000 & echo $$ $! done > {}; echo stuck >&2; wait", file.display());
        let error = sh(&script, Duration::from_millis(700)).run().await.unwrap_err();
        assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
        assert!(error.to_string().ends_with("and was killed: stuck"), "{error}");
        let pids = pids_in(&file).await;
        assert_eq!(pids.len(), 2);
        for pid in pids {
            until_gone(pid).await;
        }
    }

    #[tokio::test]
    async fn a_nudged_program_looks_after_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let script = format!("mkfifo {0}; trap 'exit 7' CHLD; exec 3<>{0}; read nothing <&3", fifo.display());
        let output = sh(&script, LONG).nudge(Duration::from_millis(50)).run().await.unwrap();
        assert_eq!(output.status.code(), Some(7));
        let alone = sh(&script.replace("mkfifo", "echo"), Duration::from_millis(300)).run().await;
        assert!(matches!(alone.unwrap_err(), CommandError::Timeout { .. }));
    }

    #[tokio::test]
    async fn who_is_to_end_in_order_gets_the_grace_after_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("said");
        let child = format!("trap '' TERM; sleep 1.2; echo whole > {}", file.display());
        let script = format!("sh -c \"{child}\" & wait");
        let error = sh(&script, Duration::from_millis(300)).orderly(LONG).run().await.unwrap_err();
        assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "whole\n");
        // And not more than that.
        let stuck = sh("sleep 1000 & wait", Duration::from_millis(300)).orderly(Duration::from_millis(300));
        assert!(matches!(stuck.run().await.unwrap_err(), CommandError::Timeout { .. }));
    }

    #[tokio::test]
    async fn a_dropped_future_leaves_neither_group_nor_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let script = format!("sleep 1000 & echo $$ $! done > {}; wait", file.display());
        let run = tokio::spawn(sh(&script, LONG).run());
        let pids = pids_in(&file).await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        assert_eq!(pids.len(), 2);
        for pid in pids {
            until_gone(pid).await;
        }
    }

    #[tokio::test]
    async fn endless_output_is_cut_off() {
        let error = sh("exec cat /dev/zero", LONG).stdout_limit(4096).run().await.unwrap_err();
        assert!(matches!(error, CommandError::TooMuchOutput { limit: 4096, .. }), "{error}");
    }

    #[tokio::test]
    async fn only_the_end_of_stderr_is_kept() {
        let output = sh("head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2", LONG).run().await.unwrap();
        assert_eq!(output.stderr.len(), STDERR_KEPT);
        assert!(output.stderr.ends_with(b"xend\n"));
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_pipes_does_not_hold_the_caller() {
        let output = sh("echo said; sleep 1000 & echo $! >&2", LONG).run().await.unwrap();
        assert_eq!(output.stdout, b"said\n");
        let pid: i32 = lossy(&output.stderr).trim().parse().unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }

    #[tokio::test]
    async fn the_environment_is_the_daemons_own_plus_what_is_set() {
        let output = sh("echo $A-$HOME", LONG).env("A", "b").run().await.unwrap();
        assert!(output.stdout.starts_with(b"b-"));
        let output = sh("echo $A-$B", LONG).env("A", "b").env_clear().env("B", "c").run().await.unwrap();
        assert_eq!(output.stdout, b"-c\n");
    }
}
