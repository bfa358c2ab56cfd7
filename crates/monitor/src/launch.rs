//! From exec to a ready pod: one Launch request on the inherited connection (standard input), then the process's own
//! attributes, the namespaces, the control socket and the record. Undoes and reports a failure.

use std::io;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podwright_monitor_proto::{
    ErrorKind, FromMonitor, IdMappings, IdRange, Launch, MONITOR_RECORD, MONITOR_SOCKET, MonitorRecord,
    PROTOCOL_REVISION, PROTOCOL_VERSION, ProcessId, RECORD_VERSION, Reply, Request, RequestFrame, RequestId,
    encode, take_frame,
};
use podwright_sys::process::Signals;
use podwright_sys::{fdpass, proc, process, socket};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::umask;

use crate::client::Client;
use crate::diary::Diary;
use crate::ids;
use crate::namespaces::{NamespaceError, Namespaces};
use crate::null::NullDevices;
use crate::pod::{Pod, Setup};
use crate::rights;

/// Below everything that a kubelet gives to containers (-997 at the lowest), above the unkillable.
const OOM_SCORE_ADJ: i32 = -998;

/// Connections that may wait for our accept.
const BACKLOG: i32 = 16;

/// For files and directories; the socket has fewer bits.
const UMASK: u32 = 0o022;

pub(crate) enum Outcome {
    Pod(Box<Pod>),
    /// The daemon went away before its request.
    NobodyThere,
    Failed,
}

#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("{operation} in {dir}: {source}")]
    Io { operation: &'static str, dir: String, source: io::Error },
}

impl LaunchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Namespace(_) => ErrorKind::Namespace,
            Self::Io { .. } => ErrorKind::Io,
        }
    }
}

pub(crate) fn launch() -> Outcome {
    // Nothing of ours is open yet.
    let _ = process::close_from(3);
    let Ok(connection) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return Outcome::NobodyThere;
    };
    let (id, request) = match receive(connection.as_fd()) {
        Ok(Some(received)) => received,
        Ok(None) => return Outcome::NobodyThere,
        Err(message) => {
            refuse(&connection, 0, ErrorKind::Invalid, message);
            return Outcome::Failed;
        }
    };
    match prepare(&request) {
        Ok(mut pod) => {
            let mut client = Client::new(0, connection);
            client.greet();
            pod.adopt_client(client);
            let launched = Reply::Launched(Box::new(pod.record().clone()));
            pod.reply(0, id, launched);
            Outcome::Pod(Box::new(pod))
        }
        Err(error) => {
            refuse(&connection, id, error.kind(), error.to_string());
            Outcome::Failed
        }
    }
}

/// The one valid request; `None` if the peer closed before it.
fn receive(connection: BorrowedFd<'_>) -> Result<Option<(RequestId, Launch)>, String> {
    let (mut input, mut buffer, mut fds) = (Vec::new(), [0; 4096], Vec::new());
    loop {
        if let Some(frame) = take_frame(&mut input).map_err(|error| error.to_string())? {
            let frame: RequestFrame =
                serde_json::from_slice(&frame).map_err(|error| format!("decode launch request: {error}"))?;
            return match frame.request {
                Request::Launch(launch) => Ok(Some((frame.id, *launch))),
                _ => Err("the first request must be launch".into()),
            };
        }
        match fdpass::receive_waiting(connection, &mut buffer, &mut fds) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
        }
        fds.clear();
    }
}

fn refuse(connection: &OwnedFd, id: RequestId, kind: ErrorKind, message: String) {
    if let Ok(frame) = encode(&FromMonitor::Reply { id, reply: Reply::Error { kind, message } }) {
        let _ = fdpass::send(connection.as_fd(), &frame, &[]);
    }
}

fn prepare(request: &Launch) -> Result<Pod, LaunchError> {
    if request.version != PROTOCOL_VERSION {
        let message = format!("protocol {} asked, {PROTOCOL_VERSION} spoken", request.version);
        return Err(LaunchError::Invalid(message));
    }
    if !ids::is_valid(&request.sandbox_id) {
        return Err(LaunchError::Invalid(format!("sandbox id {:?} is malformed", request.sandbox_id)));
    }
    let io =
        |operation| move |source: io::Error| LaunchError::Io { operation, dir: request.dir.clone(), source };
    let dir = Path::new(&request.dir);
    let nulls = NullDevices::prepare().map_err(io("prepare null devices"))?;
    let oom_score = become_monitor(dir, &nulls).map_err(io("become a monitor"))?;
    let signals = Signals::collect().map_err(io("collect signals"))?;
    let mut namespaces = Namespaces::make(request)?;
    let ready = listen(dir).map_err(io("listen on monitor.sock")).and_then(|(dir_fd, listener)| {
        let record = record(request, &namespaces).map_err(io("read own identity"))?;
        write_record(dir, &record).map_err(io("write monitor.json"))?;
        rights::keep_needed().map_err(io("give up capabilities"))?;
        Ok((dir_fd, listener, record))
    });
    match ready {
        Ok((dir_fd, listener, record)) => {
            let setup = Setup {
                dir: request.dir.clone(),
                dir_fd,
                exit_dir: request.exit_dir.clone(),
                log_max_line: request.log_max_line,
                nulls,
                oom_score,
                owner: request.namespaces.user.as_ref().and_then(root_of),
            };
            Ok(Pod::new(setup, record, namespaces, signals, listener, Diary::new()))
        }
        Err(error) => {
            namespaces.take_down();
            remove_files(dir);
            Err(error)
        }
    }
}

/// The host ids of root inside.
fn root_of(mappings: &IdMappings) -> Option<(u32, u32)> {
    let root = |ranges: &[IdRange]| Some(ranges.iter().find(|range| range.inside == 0)?.outside);
    Some((root(&mappings.uids)?, root(&mappings.gids)?))
}

/// Removes what a monitor leaves in its directory apart from its diary.
pub(crate) fn remove_files(dir: &Path) {
    for name in [MONITOR_SOCKET, MONITOR_RECORD] {
        let _ = std::fs::remove_file(dir.join(name));
    }
}

/// Own session, root directory, standard descriptors, name, parentage. Returns the OOM score that runtimes should get
/// back.
fn become_monitor(dir: &Path, nulls: &NullDevices) -> io::Result<Option<i32>> {
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    umask(Mode::from_raw_mode(UMASK));
    let null = nulls.open()?;
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    let diary = openat(CWD, dir.join("monitor.log"), flags, Mode::from_raw_mode(0o600))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&diary)?;
    let _ = rustix::thread::set_name(c"podwright-mon");
    process::become_subreaper()?;
    let before = process::oom_score_adj().ok();
    match process::set_oom_score_adj(OOM_SCORE_ADJ) {
        Ok(()) => Ok(before),
        // Not allowed: nothing to restore either.
        Err(_) => Ok(None),
    }
}

fn listen(dir: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let dir_fd = podwright_sys::path::open_root(dir)?;
    match std::fs::remove_file(dir.join(MONITOR_SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    umask(Mode::from_raw_mode(0o177));
    let listener = socket::listen_in(dir_fd.as_fd(), MONITOR_SOCKET, BACKLOG);
    umask(Mode::from_raw_mode(UMASK));
    Ok((dir_fd, listener?))
}

fn record(request: &Launch, namespaces: &Namespaces) -> io::Result<MonitorRecord> {
    let pid = std::process::id();
    Ok(MonitorRecord {
        version: RECORD_VERSION,
        protocol: PROTOCOL_VERSION,
        revision: PROTOCOL_REVISION,
        sandbox_id: request.sandbox_id.clone(),
        process: ProcessId { pid, start_time: proc::start_time(pid)? },
        boot_id: proc::boot_id()?,
        namespaces: namespaces.paths.clone(),
        init: namespaces.init,
    })
}

fn write_record(dir: &Path, record: &MonitorRecord) -> io::Result<()> {
    write_atomically(&dir.join(MONITOR_RECORD), &serde_json::to_vec(record)?)
}

/// Readers see the whole file or none. No fsync: these files describe processes, which a power cut ends too.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
