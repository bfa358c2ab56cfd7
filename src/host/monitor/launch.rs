//! Starting a monitor, and finding one that an earlier daemon started.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podwright_monitor_proto::{
    DEFAULT_LOG_LINE_BYTES, Launch, MONITOR_RECORD, MONITOR_SOCKET, MonitorRecord, NamespaceRequest,
    PROTOCOL_VERSION, Reply, Request,
};
use podwright_sys::{proc, socket};
use tokio::net::UnixStream;

use super::calls::{Link, Monitor};
use super::{Events, MonitorError, connection};

/// For making namespaces; the kernel takes milliseconds for a network namespace, but serialises them under load.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(20);

/// What OCI runtimes and their hooks are looked up in; nothing else of the daemon's environment is passed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A monitor to start.
#[derive(Debug, Clone)]
pub struct LaunchRequest {
    /// podwright-monitor.
    pub binary: PathBuf,
    /// The pod.
    pub sandbox_id: String,
    /// Directory of this monitor alone; it exists and is private.
    pub dir: PathBuf,
    /// Where exit records go; it exists.
    pub exit_dir: PathBuf,
    /// Which namespaces the pod owns.
    pub namespaces: NamespaceRequest,
    /// For a pod with its own UTS namespace.
    pub hostname: Option<String>,
    /// Of the pod's own namespaces only.
    pub sysctls: BTreeMap<String, String>,
    /// Longest log line in bytes; 16 KiB if not given.
    pub log_max_line: Option<u32>,
}

/// Starts a monitor and has it make the pod's namespaces. On error nothing is left. The monitor goes on when this
/// daemon dies.
///
/// # Errors
/// `Refused` names the namespace or sysctl that could not be made.
pub async fn launch(request: LaunchRequest) -> Result<(Monitor, Events), MonitorError> {
    let spawn = |source| MonitorError::Spawn { binary: request.binary.clone(), source };
    let (ours, theirs) = UnixStream::pair().map_err(spawn)?;
    let theirs = theirs.into_std().map_err(spawn)?;
    theirs.set_nonblocking(false).map_err(spawn)?;
    let mut command = tokio::process::Command::new(&request.binary);
    command.env_clear().env("PATH", PATH).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().map_err(spawn)?;
    // It holds our copy of the monitor's end: the monitor's death must close the connection.
    drop(command);
    let (commands, events) = connection::start(ours);
    let link = Link::new(&request.sandbox_id, commands);
    let launch = Launch {
        version: PROTOCOL_VERSION,
        dir: request.dir.to_string_lossy().into_owned(),
        exit_dir: request.exit_dir.to_string_lossy().into_owned(),
        sandbox_id: request.sandbox_id,
        namespaces: request.namespaces,
        hostname: request.hostname,
        sysctls: request.sysctls,
        log_max_line: request.log_max_line.unwrap_or(DEFAULT_LOG_LINE_BYTES),
    };
    match link.call("launch", Request::Launch(Box::new(launch)), vec![], LAUNCH_DEADLINE).await {
        Ok((Reply::Launched(record), _)) => {
            // The runtime reaps what is dropped here when it exits: no task and no descriptor per pod for that.
            drop(child);
            Ok((Monitor::new(*record, link), events))
        }
        outcome => {
            // An end by itself has undone everything; a monitor that hangs before that cannot.
            let _ = child.start_kill();
            let _ = child.wait().await;
            Err(outcome.err().unwrap_or_else(|| link.mismatch("launch")))
        }
    }
}

/// Finds the monitor whose directory this is and has it answer.
///
/// # Errors
/// `NotRunning` when there is none any more, at once; `Unresponsive` when it is there but does not answer.
pub async fn adopt(dir: &Path) -> Result<(Monitor, Events), MonitorError> {
    let (monitor, events) = find(dir)?;
    monitor.greet(dir).await?;
    Ok((monitor, events))
}

/// Connects to the monitor whose directory this is, without a word yet: [`Monitor::greet`] is to be the first call.
/// Never waits. Must be called within a tokio runtime.
///
/// # Errors
/// `NotRunning` when there is none any more.
pub fn find(dir: &Path) -> Result<(Monitor, Events), MonitorError> {
    let record = read_record(dir)?;
    let not_running = |reason: String| MonitorError::NotRunning { dir: dir.into(), reason };
    check_alive(&record).map_err(not_running)?;
    let socket = socket::connect_in(dir, MONITOR_SOCKET).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            not_running(format!("{MONITOR_SOCKET}: {source}"))
        }
        _ => MonitorError::Connect { dir: dir.into(), source },
    })?;
    let connect = |source| MonitorError::Connect { dir: dir.into(), source };
    let peer = socket::peer(socket.as_fd()).map_err(connect)?;
    if peer.pid != record.process.pid {
        return Err(not_running(format!("{MONITOR_SOCKET} is served by process {}", peer.pid)));
    }
    let socket = UnixStream::from_std(socket.into()).map_err(connect)?;
    let (commands, events) = connection::start(socket);
    let link = Link::new(&record.sandbox_id, commands);
    Ok((Monitor::new(record, link), events))
}

fn read_record(dir: &Path) -> Result<MonitorRecord, MonitorError> {
    let path = dir.join(MONITOR_RECORD);
    let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            MonitorError::NotRunning { dir: dir.into(), reason: format!("{MONITOR_RECORD}: {source}") }
        }
        _ => MonitorError::Record { path: path.clone(), source },
    })?;
    serde_json::from_slice(&bytes).map_err(|error| MonitorError::Record { path, source: error.into() })
}

/// Whether the process of the record still is that process.
fn check_alive(record: &MonitorRecord) -> Result<(), String> {
    let pid = record.process.pid;
    let boot_id = proc::boot_id().map_err(|error| format!("read boot id: {error}"))?;
    if boot_id != record.boot_id {
        return Err("its record is of an earlier boot".into());
    }
    match proc::start_time(pid) {
        Ok(start_time) if start_time == record.process.start_time => Ok(()),
        Ok(_) => Err(format!("process {pid} is another one by now")),
        Err(error) => Err(format!("process {pid}: {error}")),
    }
}
