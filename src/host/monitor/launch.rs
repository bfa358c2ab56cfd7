//! Starting a monitor, and finding one of an earlier daemon.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podwright_monitor_proto::{
    CONFINED_INIT_REVISION, DEFAULT_LOG_LINE_BYTES, Launch, MONITOR_RECORD, MONITOR_SOCKET, MonitorRecord,
    NamespaceRequest, PROTOCOL_VERSION, ProcessId, Reply, Request, v1,
};
use podwright_sys::{proc, socket};
use tokio::net::UnixStream;

use super::calls::{Link, Monitor};
use super::{Events, MonitorError, connection};

/// For creating namespaces; the kernel takes milliseconds for a network namespace, but serialises them under load.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(20);

/// PATH of OCI runtimes and their hooks, the only part of the daemon's environment that is passed on.
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
    /// Existing directory for exit records.
    pub exit_dir: PathBuf,
    /// The pod's own namespaces.
    pub namespaces: NamespaceRequest,
    /// For a pod with its own UTS namespace.
    pub hostname: Option<String>,
    /// Of the pod's own namespaces only.
    pub sysctls: BTreeMap<String, String>,
    /// Longest log line in bytes; 16 KiB if not given.
    pub log_max_line: Option<u32>,
    /// Directories, which exist, of the cgroup for the process 1 of a shared PID namespace.
    pub init_cgroups: Vec<PathBuf>,
}

/// Starts a monitor and has it create the pod's namespaces. On error nothing is left. The monitor outlives this daemon.
///
/// # Errors
/// `Refused` names the namespace or sysctl that failed.
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
        init_cgroups: request.init_cgroups.iter().map(|dir| dir.to_string_lossy().into_owned()).collect(),
    };
    let namespaces = launch.namespaces.clone();
    match link.call("launch", Request::Launch(Box::new(launch)), LAUNCH_DEADLINE).await {
        Ok((Reply::Launched(record), _)) => {
            if let Some(what) = lacks(&namespaces, &record) {
                let _ = Monitor::new(*record, link).shutdown(true).await;
                let _ = child.wait().await;
                return Err(MonitorError::Outdated { binary: request.binary, what });
            }
            // The runtime reaps what is dropped here when it exits: no task and no descriptor per pod for that.
            drop(child);
            Ok((Monitor::new(*record, link), events))
        }
        outcome => {
            // An end by itself has undone everything; a monitor that hangs before that cannot.
            let _ = child.start_kill();
            let _ = child.wait().await;
            match outcome {
                Err(MonitorError::Refused { message, .. }) if v1::refuses_launch(&message) => {
                    Err(MonitorError::Outdated { binary: request.binary, what: "protocol 2" })
                }
                Err(error) => Err(error),
                Ok(_) => Err(link.mismatch("launch")),
            }
        }
    }
}

/// Requests that a monitor is too old to understand, where less would be a weaker wall: the host's user namespace, or a
/// process 1 that has the host's files.
fn lacks(asked: &NamespaceRequest, record: &MonitorRecord) -> Option<&'static str> {
    if asked.user.is_some() && record.namespaces.user.is_none() {
        return Some("user namespaces");
    }
    (asked.pid && record.revision < CONFINED_INIT_REVISION).then_some("confined process 1 of pods")
}

/// Finds the monitor of this directory and gets its answer.
///
/// # Errors
/// As [`find`], and `Unresponsive` when it is there but does not answer.
pub async fn adopt(dir: &Path, known: Option<ProcessId>) -> Result<(Monitor, Events), MonitorError> {
    let (monitor, events) = find(dir, known).await?;
    monitor.greet(dir).await?;
    Ok((monitor, events))
}

/// Connects to the monitor whose directory this is; [`Monitor::greet`] is to be the first call. Does not wait, unless the
/// directory's own record is lost or damaged: then the monitor is asked for it. `known` is the monitor's process where the
/// caller has recorded it. Must be called within a tokio runtime.
///
/// # Errors
/// `NotRunning` only when that is proved: the recorded process has ended, is another one, or is of an earlier boot. Every
/// other error leaves open whether a monitor runs.
pub async fn find(dir: &Path, known: Option<ProcessId>) -> Result<(Monitor, Events), MonitorError> {
    match read_record(dir) {
        Ok(record) => {
            check_boot(dir, &record.boot_id)?;
            check_alive(dir, record.process)?;
            let socket = connect(dir, Some(record.process))?;
            let (commands, events) = connection::start(socket);
            let link = Link::new(&record.sandbox_id, commands);
            Ok((Monitor::new(record, link), events))
        }
        Err(lost) => {
            if let Some(process) = known {
                check_alive(dir, process)?;
            }
            let socket = match connect(dir, known) {
                Ok(socket) => socket,
                Err(MonitorError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Err(lost);
                }
                Err(error) => return Err(error),
            };
            let (commands, events) = connection::start(socket);
            let link = Link::new(&dir.file_name().unwrap_or_default().to_string_lossy(), commands);
            Ok((Monitor::introduced(link, dir).await?, events))
        }
    }
}

/// Connects to the socket of `dir`, which `process` must serve, if it is known.
fn connect(dir: &Path, process: Option<ProcessId>) -> Result<UnixStream, MonitorError> {
    let error = |source| MonitorError::Connect { dir: dir.into(), source };
    let socket = match socket::connect_in(dir, MONITOR_SOCKET) {
        Ok(socket) => socket,
        Err(source) => {
            // It may have ended since it was looked at.
            process.map_or(Ok(()), |process| check_alive(dir, process))?;
            return Err(error(source));
        }
    };
    let peer = socket::peer(socket.as_fd()).map_err(error)?;
    if let Some(process) = process.filter(|process| process.pid != peer.pid) {
        let told = format!("process {} serves it, not {}", peer.pid, process.pid);
        return Err(error(io::Error::new(io::ErrorKind::AddrInUse, told)));
    }
    UnixStream::from_std(socket.into()).map_err(error)
}

fn read_record(dir: &Path) -> Result<MonitorRecord, MonitorError> {
    let path = dir.join(MONITOR_RECORD);
    let failed = |source| MonitorError::Record { path: path.clone(), source };
    let bytes = std::fs::read(&path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn check_boot(dir: &Path, recorded: &str) -> Result<(), MonitorError> {
    let boot_id = proc::boot_id().map_err(|source| MonitorError::Connect { dir: dir.into(), source })?;
    if boot_id == recorded {
        return Ok(());
    }
    Err(MonitorError::NotRunning { dir: dir.into(), reason: "its record is of an earlier boot".into() })
}

/// Whether a recorded process still is that process. An error of looking proves nothing.
fn check_alive(dir: &Path, process: ProcessId) -> Result<(), MonitorError> {
    let not_running = |reason| Err(MonitorError::NotRunning { dir: dir.into(), reason });
    let pid = process.pid;
    match proc::start_time(pid).and_then(|start_time| Ok((start_time, proc::state(pid)?))) {
        Ok((start_time, _)) if start_time != process.start_time => {
            not_running(format!("process {pid} is another one by now"))
        }
        // Ended, and not yet reaped by whoever has inherited it.
        Ok((_, 'Z' | 'X')) => not_running(format!("process {pid} has ended")),
        Ok(_) => Ok(()),
        Err(error) if is_no_process(&error) => not_running(format!("process {pid}: {error}")),
        Err(source) => Err(MonitorError::Connect { dir: dir.into(), source }),
    }
}

/// ESRCH comes of a process that ends while its file is open.
fn is_no_process(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwright_monitor_proto::{IdMappings, NamespacePaths, PROTOCOL_REVISION};

    #[test]
    fn a_monitor_with_weaker_walls_than_asked_is_not_taken() {
        let record = |revision, user: Option<&str>| MonitorRecord {
            version: 1,
            protocol: PROTOCOL_VERSION,
            revision,
            sandbox_id: "s1".into(),
            process: ProcessId { pid: 5, start_time: 6 },
            boot_id: "b".into(),
            namespaces: NamespacePaths { user: user.map(str::to_owned), ..NamespacePaths::default() },
            init: None,
        };
        let shared = NamespaceRequest { pid: true, ..NamespaceRequest::default() };
        assert!(lacks(&shared, &record(2, None)).is_some());
        assert_eq!(lacks(&shared, &record(PROTOCOL_REVISION, None)), None);
        assert_eq!(lacks(&NamespaceRequest::default(), &record(0, None)), None);
        let user = Some(IdMappings { uids: vec![], gids: vec![] });
        let mapped = NamespaceRequest { user, ..NamespaceRequest::default() };
        assert!(lacks(&mapped, &record(PROTOCOL_REVISION, None)).is_some());
        assert_eq!(lacks(&mapped, &record(PROTOCOL_REVISION, Some("/proc/./5/fd/3"))), None);
    }
}
