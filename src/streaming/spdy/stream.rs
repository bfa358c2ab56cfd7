//! One stream: its headers, input and output. Dropping both halves forgets it, and resets it if it had not ended.

use super::SpdyError;
use super::frame::{self, Reset};
use super::headers::Headers;
use super::inbox::{End, Inbox, InboxReader};
use super::shared::Shared;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;

/// A stream that the client opened and that was answered.
#[derive(Debug)]
pub struct Stream {
    /// From 1, odd.
    pub id: u32,
    /// As the client sent them.
    pub headers: Headers,
    /// The client's half.
    pub reader: StreamReader,
    /// Our half.
    pub writer: StreamWriter,
}

/// Input from the client.
#[derive(Debug)]
pub struct StreamReader {
    inbox: InboxReader,
    _open: Arc<Open>,
}

/// Output to the client.
#[derive(Debug)]
pub struct StreamWriter {
    open: Arc<Open>,
}

/// Keeps the stream in the connection's table.
#[derive(Debug)]
struct Open {
    id: u32,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    /// Our half was ended or broken off.
    ended: AtomicBool,
}

impl Stream {
    pub(super) fn new(
        id: u32,
        headers: Headers,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        reader: InboxReader,
    ) -> Self {
        let open = Arc::new(Open { id, shared, inbox, ended: AtomicBool::new(false) });
        let reader = StreamReader { inbox: reader, _open: open.clone() };
        Self { id, headers, reader, writer: StreamWriter { open } }
    }
}

impl StreamReader {
    /// Input since the last call; None if the client ended its half.
    ///
    /// # Errors
    /// When the stream was broken off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SpdyError> {
        self.inbox.next().await.map_err(|_| SpdyError::Reset)
    }
}

impl StreamWriter {
    /// Sends what `fill` puts into the frame buffer (up to `FRAME_BYTES`), without an intermediate copy. `fill` must
    /// not block; if it fails or puts nothing, nothing is sent and its result is returned. Dropping the future while a
    /// frame is being sent ends the connection.
    ///
    /// # Errors
    /// If the stream or the connection is gone.
    pub async fn send_from(
        &self,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, SpdyError> {
        self.open.shared.outbound.send_from(self.open.id, &self.open.inbox, fill).await
    }

    /// Sends a socket's pending data like [`Self::send_from`], but without a copy if the connection is a socket, too.
    ///
    /// # Errors
    /// If the stream or the connection is gone.
    pub async fn send_spliced(&self, source: &TcpStream) -> Result<io::Result<usize>, SpdyError> {
        self.open.shared.outbound.send_spliced(self.open.id, &self.open.inbox, source).await
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// If the stream or the connection is gone.
    pub async fn send(&self, mut data: &[u8]) -> Result<(), SpdyError> {
        while !data.is_empty() {
            let sent = self
                .send_from(|frame| {
                    let n = data.len().min(frame.len());
                    frame[..n].copy_from_slice(&data[..n]);
                    Ok(n)
                })
                .await??;
            data = &data[sent..];
        }
        Ok(())
    }

    /// Ends our half.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn finish(&self) -> Result<(), SpdyError> {
        if self.open.ended.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.open.shared.outbound.finish(self.open.id).await
    }

    /// Breaks the stream off, both ways.
    pub fn reset(&self) {
        self.open.reset();
    }

    /// Whether the stream was reset, or the connection is gone.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.open.inbox.ended() == Some(End::Reset)
    }

    /// Returns when the stream was reset, or the connection is gone.
    pub async fn until_reset(&self) {
        self.open.inbox.until_reset().await;
    }
}

impl Open {
    fn reset(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) && self.inbox.ended() != Some(End::Reset) {
            self.shared.outbound.push(|out| frame::rst_stream(out, self.id, Reset::Cancel));
        }
        self.inbox.end(End::Reset);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reset();
        self.shared.forget(self.id);
    }
}
