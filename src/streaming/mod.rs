//! Exec, attach and port-forward for the kubelet and crictl: from a token in a URL to the descriptors of a process.
//! Never starts a process itself: the [`Backend`] does, which is `sandbox` outside of tests.
//!
//! ```text
//! CRI Exec ──► Urls ──token──► client ──HTTP──► server ──upgrade──► exec, forward ──► Backend
//!                                                                    │ spdy, websocket carry the bytes
//! ```
//!
//! Memory of a session, besides what the kernel holds for its sockets and pipes: over SPDY at most 450 KiB for exec and
//! attach (64 KiB read, 128 KiB written, 128 KiB of input that the process does not take, 64 KiB of answers, zlib); a
//! port-forward connection 4 MiB of input more and about 4 KiB per pair. Over WebSocket at most 256 KiB: messages are
//! passed on in pieces.

pub mod backend;
mod context;
mod exec;
mod forward;
mod forward_channels;
mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod metrics;
mod pods;
mod protocol;
mod registry;
mod server;
mod session;
mod size;
mod socket;
pub mod spdy;
mod status;
mod tls;
mod tokens;
mod tunnel;
mod websocket;
mod wires;

pub use backend::{AttachRequest, Backend, ExecRequest, PortForwardRequest, Stdio};
pub use forward_channels::MAX_PORTS;
pub use metrics::StreamingMetrics;
pub use registry::{SessionInfo, SessionKind, Sessions};
pub use server::{Server, StreamingError, Urls};
pub use tls::TlsError;
pub use tokens::TokenError;

#[cfg(test)]
mod tests;
