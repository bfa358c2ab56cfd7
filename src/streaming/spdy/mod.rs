//! SPDY/3.1 as the server's side speaks it with Kubernetes' clients: frames, header blocks, streams. Knows nothing of
//! containers; a connection is any pair of byte streams.
//!
//! The client opens streams, each is answered at once; the server opens none. There is no flow control in this dialect:
//! SETTINGS and WINDOW_UPDATE are read and ignored. What a stream's owner has not taken yet is held up to a limit, then
//! the connection is read no further, so a client is slowed down by TCP.
//!
//! Memory of a connection, all of it bounded: [`READ_BYTES`] to read into, [`FRAME_BYTES`] to write from, 64 KiB of
//! control frames to be sent, some 48 KiB of zlib state, and what the limits allow to be held for streams.

mod activity;
mod connection;
mod frame;
mod headers;
mod inbox;
mod outbound;
mod reader;
mod splice;
mod stream;

pub(crate) use activity::Activity;
pub use connection::{Connection, Hangup, Limits, open};
pub use headers::Headers;
pub use inbox::End;
pub(crate) use inbox::{Budget, Inbox, InboxReader};
pub use outbound::Writing;
pub use reader::Reading;
pub use stream::{Stream, StreamReader, StreamWriter};

use std::time::Duration;

/// Buffer of the connection's reading side, bytes.
pub const READ_BYTES: usize = 64 << 10;
/// Longest payload of a DATA frame that is sent, bytes: twice what a pipe holds by default, so that one read empties it.
pub const FRAME_BYTES: usize = 128 << 10;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The socket.
    #[error("SPDY connection: {0}")]
    Io(#[from] std::io::Error),
    /// The client speaks another language, or lies about lengths.
    #[error("SPDY connection: the client broke the protocol: {0}")]
    Protocol(&'static str),
    /// A header block that cannot be unpacked.
    #[error("SPDY connection: header block: {0}")]
    Headers(&'static str),
    /// Nothing came or went for as long as is allowed.
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
#[cfg(fuzzing)]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
