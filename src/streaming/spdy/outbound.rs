//! The sending side of a connection: whole frames, one at a time. Small control frames collect in a buffer that
//! precedes the next DATA frame; data is read from its source straight into the connection's frame buffer.

use super::activity::Activity;
use super::frame::{self, HEADER_BYTES};
use super::inbox::{End, Inbox};
use super::splice::Splice;
use super::{FRAME_BYTES, SpdyError};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

/// Bytes of pending control frames beyond which a client that takes no answers is read no further.
const MAX_CONTROL_BYTES: usize = 64 << 10;

/// The half that is written.
pub enum Writing {
    /// A bare socket, to which the kernel can move another socket's data.
    Tcp(OwnedWriteHalf),
    /// Anything else.
    Other(Box<dyn AsyncWrite + Send + Sync + Unpin>),
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl<W: AsyncWrite + Send + Sync + Unpin + 'static> From<Box<W>> for Writing {
    fn from(writer: Box<W>) -> Self {
        Self::Other(writer)
    }
}

impl Writing {
    /// Whatever it is.
    pub(crate) fn writer(&mut self) -> &mut (dyn AsyncWrite + Send + Unpin) {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Other(other) => other,
        }
    }
}

pub(super) struct Outbound {
    socket: tokio::sync::Mutex<Socket>,
    control: Mutex<Vec<u8>>,
    pending: Notify,
    drained: Notify,
    activity: Activity,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

struct Socket {
    writer: Writing,
    /// Allocated at the first data; room for a header and [`FRAME_BYTES`].
    frame: Vec<u8>,
    /// Created at the first data from a socket to a socket.
    splice: Option<Splice>,
    /// A frame was begun and not completed: its sender was dropped half-way, or the socket failed.
    torn: bool,
}

impl Socket {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), SpdyError> {
        if self.torn {
            return Err(SpdyError::Gone);
        }
        self.torn = true;
        let writer = self.writer.writer();
        writer.write_all(bytes).await?;
        // TLS and tunnels may buffer what the socket did not take at once.
        writer.flush().await?;
        self.torn = false;
        Ok(())
    }

    /// Sends what `fill` puts into the frame buffer, as a frame.
    async fn write_from(
        &mut self,
        stream: u32,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, SpdyError> {
        if self.frame.is_empty() {
            self.frame = vec![0; HEADER_BYTES + FRAME_BYTES];
        }
        let length = match fill(&mut self.frame[HEADER_BYTES..]) {
            Ok(length @ 1..) => length,
            other => return Ok(other),
        };
        self.frame[..HEADER_BYTES].copy_from_slice(&frame::data(stream, 0, length));
        self.write_frame(length).await?;
        Ok(Ok(length))
    }

    /// Sends what `source` has now, as a frame, without a copy where both ends allow that.
    async fn write_spliced(
        &mut self,
        stream: u32,
        source: &TcpStream,
    ) -> Result<io::Result<usize>, SpdyError> {
        if self.torn {
            return Err(SpdyError::Gone);
        }
        if self.splice.is_none() && matches!(self.writer, Writing::Tcp(_)) {
            // Without it, as when descriptors run out, data is copied.
            self.splice = Splice::new().ok();
        }
        let (Writing::Tcp(sink), Some(splice)) = (&self.writer, &self.splice) else {
            return self.write_from(stream, |buffer| source.try_read(buffer)).await;
        };
        let length = match splice.take(source) {
            Ok(length @ 1..) => length,
            other => return Ok(other),
        };
        self.torn = true;
        splice.give(sink.as_ref(), &frame::data(stream, 0, length), length).await?;
        self.torn = false;
        Ok(Ok(length))
    }

    async fn write_frame(&mut self, length: usize) -> Result<(), SpdyError> {
        let frame = std::mem::take(&mut self.frame);
        let outcome = self.write(&frame[..HEADER_BYTES + length]).await;
        self.frame = frame;
        outcome
    }
}

impl Outbound {
    pub(super) fn new(writer: Writing) -> Self {
        let socket = Socket { writer, frame: Vec::new(), splice: None, torn: false };
        Self {
            socket: tokio::sync::Mutex::new(socket),
            control: Mutex::default(),
            pending: Notify::new(),
            drained: Notify::new(),
            activity: Activity::new(),
        }
    }

    fn control(&self) -> MutexGuard<'_, Vec<u8>> {
        // A panic while it was held leaves whole frames.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a control frame sent soon; never waits.
    pub(super) fn push(&self, frame: impl FnOnce(&mut Vec<u8>)) {
        frame(&mut self.control());
        self.pending.notify_one();
    }

    /// Sends a meaningless frame if nothing is pending. The kernel of a vanished client answers it with a reset; its
    /// close may be stuck behind unread data.
    pub(super) fn probe(&self) {
        let mut control = self.control();
        if control.is_empty() {
            frame::no_settings(&mut control);
            self.pending.notify_one();
        }
    }

    /// Waits until fewer control frames than allowed are pending.
    pub(super) async fn room(&self) {
        while self.control().len() > MAX_CONTROL_BYTES {
            self.drained.notified().await;
        }
    }

    /// Sends pending control frames until the socket fails.
    pub(super) async fn send_control(&self) -> Result<(), SpdyError> {
        loop {
            self.pending.notified().await;
            let mut socket = self.socket.lock().await;
            self.flush(&mut socket).await?;
        }
    }

    async fn flush(&self, socket: &mut Socket) -> Result<(), SpdyError> {
        let bytes = std::mem::take(&mut *self.control());
        if !bytes.is_empty() {
            socket.write(&bytes).await?;
            self.drained.notify_one();
        }
        Ok(())
    }

    /// Lets `fill` put up to [`FRAME_BYTES`] into the frame buffer and sends them. Sends nothing if it fails or puts
    /// nothing; returns its result.
    pub(super) async fn send_from(
        &self,
        stream: u32,
        inbox: &Inbox,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, SpdyError> {
        let mut socket = self.socket.lock().await;
        if inbox.ended() == Some(End::Reset) {
            return Err(SpdyError::Reset);
        }
        self.flush(&mut socket).await?;
        let sent = socket.write_from(stream, fill).await?;
        self.touch();
        Ok(sent)
    }

    /// The same with what a socket has.
    pub(super) async fn send_spliced(
        &self,
        stream: u32,
        inbox: &Inbox,
        source: &TcpStream,
    ) -> Result<io::Result<usize>, SpdyError> {
        let mut socket = self.socket.lock().await;
        if inbox.ended() == Some(End::Reset) {
            return Err(SpdyError::Reset);
        }
        self.flush(&mut socket).await?;
        let sent = socket.write_spliced(stream, source).await?;
        self.touch();
        Ok(sent)
    }

    /// Announces the end of this stream's output.
    pub(super) async fn finish(&self, stream: u32) -> Result<(), SpdyError> {
        let mut socket = self.socket.lock().await;
        self.flush(&mut socket).await?;
        socket.write(&frame::data(stream, frame::FIN, 0)).await?;
        self.touch();
        Ok(())
    }

    /// Sends what is pending, then closes the sending direction.
    pub(super) async fn shut_down(&self) -> Result<(), SpdyError> {
        let mut socket = self.socket.lock().await;
        self.flush(&mut socket).await?;
        Ok(socket.writer.writer().shutdown().await?)
    }

    /// Something came or went.
    pub(super) fn touch(&self) {
        self.activity.touch();
    }

    /// Returns after `limit` without traffic.
    pub(super) async fn idle(&self, limit: Duration) {
        self.activity.idle(limit).await;
    }
}
