//! SPDY/3.1, the server's side as Kubernetes' clients need it: frames, header blocks, streams. Knows nothing of
//! containers; a connection is any pair of byte streams.
//!
//! The client opens streams, each answered at once; the server opens none. This dialect has no flow control: SETTINGS
//! and WINDOW_UPDATE are read and ignored. Up to a limit the connection holds what a stream's owner has not taken, then
//! stops reading, so TCP slows the client down.
//!
//! Memory of a connection, all bounded: [`READ_BYTES`] for reading, [`FRAME_BYTES`] for writing, 64 KiB of pending
//! control frames, about 48 KiB of zlib state, and the limits for streams.

mod activity;
mod connection;
mod frame;
mod headers;
mod inbox;
mod outbound;
mod reader;
mod shared;
mod splice;
mod stream;

pub(crate) use activity::Activity;
pub use connection::{Connection, open};
pub use headers::Headers;
pub use inbox::End;
pub(crate) use inbox::{Budget, Inbox, InboxReader};
pub use outbound::Writing;
pub use reader::Reading;
pub use shared::{Hangup, Limits};
pub use stream::{Stream, StreamReader, StreamWriter};

use std::time::Duration;

/// Buffer of the connection's reading side, bytes.
pub const READ_BYTES: usize = 64 << 10;
/// Longest payload of a sent DATA frame, bytes: twice a pipe's default capacity, so that one read empties it.
pub const FRAME_BYTES: usize = 128 << 10;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The socket.
    #[error("SPDY connection: {0}")]
    Io(#[from] std::io::Error),
    /// The client speaks another protocol, or sends wrong lengths.
    #[error("SPDY connection: the client broke the protocol: {0}")]
    Protocol(&'static str),
    /// A header block that cannot be unpacked.
    #[error("SPDY connection: header block: {0}")]
    Headers(&'static str),
    /// No traffic for the allowed time.
    #[error("SPDY connection: idle for {} s", .0.as_secs())]
    Idle(Duration),
    /// The client reset this stream.
    #[error("SPDY stream was reset by the client")]
    Reset,
    /// The connection has ended.
    #[error("SPDY connection has ended")]
    Gone,
}

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
#[allow(clippy::unwrap_used, reason = "only tests have it")]
pub(super) mod client;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
