//! Messages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{ExitRecord, MonitorRecord};

/// Chosen by the client, repeated in the reply.
pub type RequestId = u64;

/// Client to monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame<R = Request> {
    /// Echoed in the reply.
    pub id: RequestId,
    /// The request; another type for a monitor of an older protocol.
    pub request: R,
}

/// Requests of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// First and only once, on the inherited connection.
    Launch(Box<Launch>),
    /// First on every later connection.
    Hello {
        /// The client's [`crate::PROTOCOL_VERSION`].
        version: u32,
    },
    /// Run a container: the OCI runtime's run, or its restore.
    Run(Box<Run>),
    /// Run a process in a container: the OCI runtime's exec. The monitor creates the pipes that `stdio` names, or a
    /// terminal, and sends the client's ends with the answer.
    Session(Box<Exec>),
    /// Watch a running container's output from now on, and write to its stdin.
    Attach {
        /// A running container.
        container_id: String,
        /// The streams to connect; a container without a stdin, or a terminal's stderr, is never connected.
        stdio: ExecStdio,
    },
    /// Send a signal. An exec that the runtime is still starting gets the last one once it exists.
    Signal {
        /// The recipient.
        target: Target,
        /// Signal number.
        signal: i32,
        /// To the target's whole process group; SIGKILL of an exec reaches all its descendants.
        #[serde(default)]
        group: bool,
    },
    /// Reopen the log file; answered when the new one is in use.
    ReopenLog {
        /// A running container.
        container_id: String,
    },
    /// All containers and execs.
    List,
    /// Drop an exited container and its exit record.
    Forget {
        /// An exited container.
        container_id: String,
    },
    /// Set a terminal's size.
    Resize {
        /// The terminal's owner.
        target: Target,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Take the pod's namespaces down and exit.
    Shutdown {
        /// Kill remaining processes.
        #[serde(default)]
        force: bool,
    },
}

/// The pod that a fresh monitor is to own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The daemon's [`crate::PROTOCOL_VERSION`].
    pub version: u32,
    /// The pod.
    pub sandbox_id: String,
    /// Directory of this monitor alone, which exists: socket, record, diary.
    pub dir: String,
    /// Existing directory for exit records.
    pub exit_dir: String,
    /// The pod's own namespaces.
    #[serde(default)]
    pub namespaces: NamespaceRequest,
    /// Host name, for a pod with its own UTS namespace.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Kernel settings; only those of the pod's own namespaces are accepted.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// See [`crate::DEFAULT_LOG_LINE_BYTES`].
    #[serde(default = "default_log_line")]
    pub log_max_line: u32,
    /// Existing cgroup directories, one per hierarchy, for process 1 of a shared pid namespace. Revision 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_cgroups: Vec<String>,
}

fn default_log_line() -> u32 {
    crate::DEFAULT_LOG_LINE_BYTES
}

/// Namespaces to create; the others are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRequest {
    /// Make a network namespace and pin it at this path, which must not exist.
    #[serde(default)]
    pub net: Option<String>,
    /// Make an IPC namespace.
    #[serde(default)]
    pub ipc: bool,
    /// Make a UTS namespace.
    #[serde(default)]
    pub uts: bool,
    /// Make a pid namespace that the pod's containers share, with a reaping PID 1.
    #[serde(default)]
    pub pid: bool,
    /// Create a user namespace, which owns the others. A monitor without this field creates none, and its record shows
    /// that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<IdMappings>,
}

/// The host ids of a user namespace's ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// Uids; id 0 is among them.
    pub uids: Vec<IdRange>,
    /// Gids; id 0 is among them.
    pub gids: Vec<IdRange>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id in the namespace.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// An OCI runtime with runc's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Absolute path.
    pub path: String,
    /// Arguments before the verb, such as `--root DIR`.
    #[serde(default)]
    pub args: Vec<String>,
}

/// A container to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The container.
    pub container_id: String,
    /// The program that runs it.
    pub runtime: Runtime,
    /// Bundle directory with config.json; also holds runtime.log and the pid file.
    pub bundle: String,
    /// Log file; without one, output is discarded.
    #[serde(default)]
    pub log_path: Option<String>,
    /// The pod's log directory, of which `log_path` is below: neither it nor anything below may be a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_directory: Option<String>,
    /// The process has a terminal, as in config.json.
    #[serde(default)]
    pub terminal: bool,
    /// Keep a stdin open; a null device without.
    #[serde(default)]
    pub stdin: bool,
    /// Close stdin when the first attached client with a stdin leaves or closes its own. A terminal stays.
    #[serde(default)]
    pub stdin_once: bool,
    /// Kill the runtime after this time.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// The container's future cgroup, relative to the root of every hierarchy. Without it, it is looked up when the
    /// container runs, which is too late for one that ends at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Instead of beginning, continue from a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// Let the container have the monitor's session keyring instead of one of its own: the kernel has no room for more.
    /// Not of a container that is restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
}

/// Parameters of the OCI runtime's restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Directory of CRIU's images.
    pub images: String,
    /// Directory for CRIU's log.
    pub work: String,
}

/// Some of the three standard descriptors. Those that travel with an answer are in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStdio {
    /// Read by the process.
    #[serde(default)]
    pub stdin: bool,
    /// Written by the process.
    #[serde(default)]
    pub stdout: bool,
    /// Written by the process.
    #[serde(default)]
    pub stderr: bool,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Unique in the pod among the execs that run.
    pub exec_id: String,
    /// A running container.
    pub container_id: String,
    /// The process that runs it.
    pub runtime: Runtime,
    /// OCI process specification.
    pub process_file: String,
    /// The process has a terminal, as in the process file.
    #[serde(default)]
    pub terminal: bool,
    /// The descriptors that the client gets the other ends of; a null device for the others.
    #[serde(default)]
    pub stdio: ExecStdio,
    /// Kill the runtime after this time.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Kill the process with its descendants this long after the request, whether its client is still there or not.
    /// Revision 4: an older monitor leaves that to its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
}

/// A process of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A container's init, by container id.
    Container(String),
    /// An exec, by exec id.
    Exec(String),
}

/// Monitor to client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMonitor {
    /// To one request.
    Reply {
        /// The request's.
        id: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// To every client.
    Event(Event),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To Hello.
    Hello {
        /// The monitor's [`crate::PROTOCOL_VERSION`].
        version: u32,
        /// As on disk.
        record: Box<MonitorRecord>,
    },
    /// To Launch.
    Launched(Box<MonitorRecord>),
    /// To Run.
    #[serde(alias = "created")]
    Running {
        /// The container's init in the host's pid namespace.
        pid: u32,
        /// In clock ticks since boot; 0 if it was gone before it could be read.
        start_time: u64,
    },
    /// To Session. It carries the master of a terminal, or what `stdio` names, and last the session's leash.
    SessionStarted {
        /// The process in the host's pid namespace.
        pid: u32,
        /// Whether it has a terminal; then `stdio` names nothing.
        terminal: bool,
        /// Accompanying descriptors.
        stdio: ExecStdio,
    },
    /// To Attach. It carries what `stdio` names, and last the session's leash.
    Attached {
        /// Accompanying descriptors.
        stdio: ExecStdio,
    },
    /// To List.
    List {
        /// In order of creation.
        containers: Vec<ContainerStatus>,
        /// In order of start, without exited ones.
        execs: Vec<ExecStatus>,
    },
    /// To the others.
    Done,
    /// To Signal: the process is gone.
    AlreadyExited,
    /// To any.
    Error {
        /// For the program.
        kind: ErrorKind,
        /// For the reader.
        message: String,
    },
}

impl ExecStdio {
    /// Number of these descriptors.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.stdin) + usize::from(self.stdout) + usize::from(self.stderr)
    }
}

impl Reply {
    /// Number of descriptors that travel with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::SessionStarted { terminal, stdio, .. } => usize::from(*terminal) + stdio.count() + 1,
            Self::Attached { stdio } => stdio.count() + 1,
            Self::Hello { .. }
            | Self::Launched(_)
            | Self::Running { .. }
            | Self::List { .. }
            | Self::Done
            | Self::AlreadyExited
            | Self::Error { .. } => 0,
        }
    }
}

/// How a session ended: the only packet that the monitor sends on a session's leash, as JSON. A leash that ends without
/// it means that the monitor is gone.
///
/// The leash is a packet socket. The client leaves the session by closing its end, or by its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    /// The exec's process is gone.
    Exited {
        /// 128 + n for signal n.
        exit_code: i32,
        /// Signal that ended it.
        #[serde(default)]
        signal: Option<i32>,
    },
    /// The exec's process was killed at its limit. Revision 4.
    TimedOut,
    /// The attached container is gone; its output is in the pipes.
    ContainerEnded,
    /// The attached client did not read for so long that its pipe was full. What is in the pipe is whole.
    TooSlow,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Malformed, unknown, or out of place.
    Invalid,
    /// No such container or exec.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The container does not run (any more, or yet).
    NotRunning,
    /// It still runs.
    StillRunning,
    /// The pod has as many sessions as it may.
    TooMany,
    /// The OCI runtime failed.
    Runtime {
        /// Its exit code.
        exit_code: i32,
    },
    /// The OCI runtime was killed at the deadline.
    Deadline,
    /// A namespace, host name or sysctl failed.
    Namespace,
    /// A system call failed.
    Io,
}

/// The monitor's view of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The container.
    pub id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Bytes of output lost because the log could not be written.
    #[serde(default)]
    pub log_dropped_bytes: u64,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// The runtime's run is in progress.
    #[serde(alias = "creating")]
    Starting,
    /// Its init lives, or its last output is being drained.
    Running {
        /// Init.
        pid: u32,
        /// In clock ticks since boot.
        start_time: u64,
    },
    /// Its init is gone and its output is in the log.
    Exited(ExitRecord),
}

/// An exec that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStatus {
    /// The exec.
    pub id: String,
    /// Its container.
    pub container_id: String,
    /// The process.
    pub pid: u32,
}

/// An unsolicited message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Init is gone, its output is in the log, the exit record is on disk.
    ContainerExited {
        /// The container.
        container_id: String,
        /// As on disk.
        exit: ExitRecord,
    },
    /// Output of a container was written to no log: its disk was full, or gave another error.
    LogLost {
        /// The container.
        container_id: String,
        /// Since the last such event.
        bytes: u64,
        /// What the kernel said.
        reason: String,
    },
    /// An exec's process is gone. Only monitors of protocol 1 send it, and nobody needs it: the leash reports the end.
    #[serde(skip_serializing)]
    ExecExited {
        /// The exec.
        exec_id: String,
    },
}
