//! Runs one program with a deadline and bounded output.
//!
//! Owns the child until it has ended: on the deadline, or if the caller goes away, its process group is killed.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Bytes of each output stream that are kept; the rest is drained.
const MAX_OUTPUT: usize = 1 << 20;
/// How long after the program's end its output may stay open in the hands of a child that outlives it.
const DRAIN: Duration = Duration::from_secs(1);

/// One call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) program: &'a Path,
    pub(super) args: Vec<OsString>,
    pub(super) stdin: Option<Vec<u8>>,
    /// Output goes nowhere: the program leaves children that would inherit it.
    pub(super) quiet: bool,
}

/// What a program left.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Why there is no [`Finished`].
#[derive(Debug)]
pub(super) enum RunError {
    Missing,
    Io(std::io::Error),
    Timeout(Duration),
}

/// Kills a process group that is still there when dropped.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let group = nix::unistd::Pid::from_raw(group);
            // ESRCH: it has ended.
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub(super) async fn run(call: Call<'_>, timeout: Duration) -> Result<Finished, RunError> {
    let output = || if call.quiet { Stdio::null() } else { Stdio::piped() };
    let mut child = Command::new(call.program)
        .args(&call.args)
        .stdin(if call.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(output())
        .stderr(output())
        // The runtime would hand these on to the container or wait for its readiness.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| if e.kind() == ErrorKind::NotFound { RunError::Missing } else { RunError::Io(e) })?;
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let stdin = child.stdin.take().zip(call.stdin);
    let feed = async {
        if let Some((mut pipe, bytes)) = stdin {
            // A program that does not read its input fails by itself and says why.
            let _ = pipe.write_all(&bytes).await;
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let reading = async { tokio::join!(keep(out, &mut stdout), keep(err, &mut stderr)) };
        tokio::pin!(reading);
        let ended = async {
            let (status, ()) = tokio::join!(child.wait(), feed);
            status
        };
        tokio::pin!(ended);
        let status = tokio::select! {
            status = &mut ended => {
                // Late output is lost after this; it belongs to a child that the program left.
                let _ = tokio::time::timeout(DRAIN, &mut reading).await;
                status
            }
            _ = &mut reading => ended.await,
        };
        status.map_err(RunError::Io)
    };
    let status = match tokio::time::timeout(timeout, work).await {
        Ok(status) => status?,
        Err(_) => return Err(RunError::Timeout(timeout)),
    };
    // Ended: its number may be another's soon, and what it left on purpose lives on.
    group.0 = None;
    Ok(Finished { success: status.success(), status, stdout, stderr })
}

async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0u8; 8192];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
}
