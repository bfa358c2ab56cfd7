//! Running the OCI runtime: its command line, its console socket, and its error message.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::container::Limit;
use crate::pod::Setup;
use crate::session::Offer;
use podwright_monitor_proto::{RequestId, Runtime};
use podwright_sys::{fdpass, process, socket, tty};

/// Longest error text that is passed on.
pub(crate) const ERROR_BYTES: usize = 4096;

/// Bytes at the end of runtime.log searched for the last error.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// A runtime that has not returned yet.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) pid: u32,
    pub(crate) kind: JobKind,
    pub(crate) files: JobFiles,
    pub(crate) console: Option<Console>,
    /// The requesting client.
    pub(crate) client: u32,
    pub(crate) request: RequestId,
    pub(crate) deadline: Option<Instant>,
    pub(crate) killed: bool,
}

#[derive(Debug)]
pub(crate) enum JobKind {
    Run {
        serial: u32,
    },
    Exec {
        exec_id: String,
        container_id: String,
        /// A signal, and whether for its group, that arrived before the process existed.
        signal: Option<(i32, bool)>,
        limit: Limit,
        /// Taken when the runtime has returned.
        offer: Option<Offer>,
    },
}

/// Files that the runtime writes for us.
#[derive(Debug)]
pub(crate) struct JobFiles {
    pub(crate) log: PathBuf,
    pub(crate) pid: PathBuf,
}

impl JobFiles {
    /// An earlier run's message or pid must not be mistaken for this one's.
    pub(crate) fn clear(&self) {
        let _ = std::fs::remove_file(&self.log);
        let _ = std::fs::remove_file(&self.pid);
    }

    pub(crate) fn read_pid(&self) -> io::Result<u32> {
        let text = std::fs::read_to_string(&self.pid)?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a pid"))
    }

    /// The last error in the runtime's JSON log.
    pub(crate) fn last_error(&self) -> Option<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = std::fs::File::open(&self.log).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
        last_error(&String::from_utf8_lossy(&bytes))
    }
}

/// One JSON object per line: runc and crun have `level` in lower case and `msg`, youki in upper case and `message`.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = entry.get("level")?.as_str()?;
        let text = entry.get("msg").or_else(|| entry.get("message")).and_then(|text| text.as_str());
        let is_error = ["error", "fatal"].iter().any(|name| level.eq_ignore_ascii_case(name));
        is_error.then(|| shorten(text.unwrap_or_default().trim()))
    })
}

/// At most [`ERROR_BYTES`] of `text`.
pub(crate) fn shorten(text: &str) -> String {
    let mut end = text.len().min(ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The socket to which a runtime sends the master of the terminal that it created.
#[derive(Debug)]
pub(crate) struct Console {
    listener: OwnedFd,
    file: PathBuf,
    /// Short whatever the directory's path: a socket path may have 107 bytes.
    argument: String,
}

impl Console {
    pub(crate) fn listen(dir: &Path, dir_fd: &OwnedFd, serial: u32) -> io::Result<Self> {
        let name = format!("console-{serial}.sock");
        let file = dir.join(&name);
        let _ = std::fs::remove_file(&file);
        let listener = socket::listen_in(dir_fd.as_fd(), &name, 1)?;
        let argument = format!("/proc/{}/fd/{}/{name}", std::process::id(), dir_fd.as_raw_fd());
        Ok(Self { listener, file, argument })
    }

    /// The master that the runtime, which has returned by now, sent.
    pub(crate) fn receive(&self) -> io::Result<OwnedFd> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the runtime sent no terminal");
        let connection = socket::accept(self.listener.as_fd())?.ok_or_else(missing)?;
        let (mut buffer, mut fds) = ([0; 4096], Vec::new());
        fdpass::receive(connection.as_fd(), &mut buffer, &mut fds)?;
        let master = fds.pop().ok_or_else(missing)?;
        tty::map_newlines(master.as_fd())?;
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Standard descriptors of a runtime; a null device of its own for each missing one.
#[derive(Debug, Default)]
pub(crate) struct Stdio3 {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Starts the runtime as leader of its own process group, so that a deadline ends its helpers too. Closes our copies of
/// the standard descriptors on return.
pub(crate) fn spawn(
    runtime: &Runtime,
    files: &JobFiles,
    console: Option<&Console>,
    arguments: &[&str],
    last: &str,
    stdio: Stdio3,
    setup: &Setup,
) -> io::Result<u32> {
    files.clear();
    let mut command = Command::new(&runtime.path);
    command.args(&runtime.args).arg("--log").arg(&files.log).args(["--log-format", "json"]);
    command.args(arguments).arg("--pid-file").arg(&files.pid);
    if let Some(console) = console {
        command.args(["--console-socket", &console.argument]);
    }
    command.arg(last);
    let end = |fd: Option<OwnedFd>| fd.map_or_else(|| setup.nulls.open(), Ok).map(Stdio::from);
    command.stdin(end(stdio.stdin)?).stdout(end(stdio.stdout)?).stderr(end(stdio.stderr)?);
    command.process_group(0);
    process::clean_before_exec(&mut command, setup.oom_score);
    Ok(command.spawn()?.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found_among_other_lines() {
        let log = concat!(
            "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"t\"}\n",
            "{\"msg\": \"second \\\"x\\\"\", \"level\": \"error\", \"time\": \"t\"}\n",
            "{\"level\":\"warning\",\"msg\":\"later\"}\n",
            "garbage\n"
        );
        assert_eq!(last_error(log).unwrap(), "second \"x\"");
        let youki =
            "{\"timestamp\":\"t\",\"level\":\"ERROR\",\"message\":\"no such file\",\"target\":\"youki\"}";
        assert_eq!(last_error(youki), Some("no such file".into()));
        assert_eq!(last_error("{\"level\":\"info\",\"msg\":\"fine\"}"), None);
        let long = format!("{{\"level\":\"error\",\"msg\":\"{}\"}}", "ä".repeat(5000));
        assert!(last_error(&long).unwrap().len() <= ERROR_BYTES);
    }
}
