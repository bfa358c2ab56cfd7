//! The messages between the daemon and a pod's monitor, and the files that both read.
//!
//! Owns: frames, messages, on-disk records, their versions and fixtures. Never does I/O.
//!
//! A frame is a 4 byte little-endian length and that many bytes of JSON. Requests carry an id and may be in flight side
//! by side; a reply repeats the id; an event has none. File descriptors travel with the first byte of their reply.
//! Within one protocol version fields may be added (readers ignore unknown ones, writers give defaults to new ones);
//! anything else needs a new version, and fixtures of the old one in `tests`. Requests may be added too: a monitor's
//! revision says which ones it knows, and a client sends no others. Answers of a new kind go only to new requests.

mod frame;
mod message;
mod record;
pub mod v1;

pub use frame::{FrameError, HEADER_BYTES, MAX_FRAME_BYTES, encode, take_frame};
pub use message::{
    ContainerState, ContainerStatus, ErrorKind, Event, Exec, ExecStatus, ExecStdio, FromMonitor, IdMappings,
    IdRange, Launch, NamespaceRequest, Reply, Request, RequestFrame, RequestId, Restore, Run, Runtime,
    SessionEnd, Target,
};
pub use record::{ExitRecord, MONITOR_RECORD, MONITOR_SOCKET, MonitorRecord, NamespacePaths, ProcessId};

/// Version of the messages; the monitor reports its own in the reply to `Hello`.
pub const PROTOCOL_VERSION: u32 = 2;

/// Additions, counted through all versions: 1 for sessions, 2 for restoring containers, 3 for a confined process 1 of
/// shared PID namespaces, 4 for protocol 2 and the limit of an exec. In the monitor's record.
pub const PROTOCOL_REVISION: u32 = 4;

/// The first revision with `Session` and `Attach`.
pub const SESSIONS_REVISION: u32 = 1;

/// The first revision with `Run::restore`.
pub const RESTORE_REVISION: u32 = 2;

/// The first revision whose process 1 of a shared PID namespace is worth nothing to the pod.
pub const CONFINED_INIT_REVISION: u32 = 3;

/// Version of [`MonitorRecord`] and [`ExitRecord`] on disk.
pub const RECORD_VERSION: u32 = 1;

/// Longest line of a container's output that becomes one record; longer ones become partial records. containerd's
/// default, far below the 64 KiB at which critest's reader fails.
pub const DEFAULT_LOG_LINE_BYTES: u32 = 16_384;
