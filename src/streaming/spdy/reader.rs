//! The reading side of a connection: frame by frame, each answered or passed to its stream before the next.

use super::frame::{self, HEADER_BYTES, Header, Kind, Reset};
use super::headers::{Headers, Inflater};
use super::inbox::{End, Inbox};
use super::shared::{Hangup, Limits, Shared};
use super::{READ_BYTES, SpdyError, Stream};
use bytes::{Buf as _, Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

/// Longest payload of a control frame. Kubernetes' clients send below 300 bytes.
const MAX_CONTROL_BYTES: usize = 16 << 10;
/// Interval of checks for a vanished client while its data cannot be taken.
const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// The half that is read.
pub type Reading = Box<dyn AsyncRead + Send + Sync + Unpin>;

pub(super) struct Reader {
    socket: Reading,
    buffer: BytesMut,
    inflater: Inflater,
    shared: Arc<Shared>,
    limits: Limits,
    streams: mpsc::Sender<Stream>,
    hangup: Option<Hangup>,
    accept: fn(&Headers) -> bool,
    replied: bool,
    /// The client sent GOAWAY: it opens no more streams.
    away: bool,
}

impl Reader {
    pub(super) fn new(
        socket: Reading,
        early: Bytes,
        shared: Arc<Shared>,
        limits: Limits,
        streams: mpsc::Sender<Stream>,
        hangup: Option<Hangup>,
        accept: fn(&Headers) -> bool,
    ) -> Self {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        buffer.extend_from_slice(&early);
        let inflater = Inflater::new();
        Self {
            socket,
            buffer,
            inflater,
            shared,
            limits,
            streams,
            hangup,
            accept,
            replied: false,
            away: false,
        }
    }

    /// Reads until the client closes.
    pub(super) async fn run(mut self) -> Result<(), SpdyError> {
        while self.fill(HEADER_BYTES).await? {
            let Some(header) = self.buffer.first_chunk() else { return Err(SpdyError::Gone) };
            let header = frame::parse(*header).map_err(SpdyError::Protocol)?;
            self.buffer.advance(HEADER_BYTES);
            match header {
                Header::Data { stream, flags, length } => self.data(stream, flags, length).await?,
                Header::Control { kind, flags, length } => {
                    if length > MAX_CONTROL_BYTES || !kind.fits(length) {
                        return Err(SpdyError::Protocol("length of a control frame"));
                    }
                    self.need(length).await?;
                    let payload = self.buffer.split_to(length);
                    self.control(kind, flags, &payload)?;
                    drop(payload);
                    self.answers_taken().await?;
                }
            }
            self.shared.outbound.touch();
        }
        Ok(())
    }

    /// Has at least `length` bytes in the buffer; false when the client closed before the first of them.
    async fn fill(&mut self, length: usize) -> Result<bool, SpdyError> {
        while self.buffer.len() < length {
            // Frees the buffer once its bytes were taken.
            self.buffer.reserve(READ_BYTES - self.buffer.len());
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(false)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
        Ok(true)
    }

    async fn need(&mut self, length: usize) -> Result<(), SpdyError> {
        if self.fill(length).await? {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    async fn data(&mut self, id: u32, flags: u8, mut left: usize) -> Result<(), SpdyError> {
        let inbox = self.shared.inbox(id);
        if inbox.is_none() && (id == 0 || id > self.shared.last()) {
            self.refuse(id, Reset::InvalidStream);
        }
        // Input for a stream that has ended here is late, not wrong.
        while left > 0 {
            self.need(1).await?;
            let length = left.min(self.buffer.len());
            if let Some(inbox) = &inbox {
                self.deliver(inbox, length).await?;
            }
            self.buffer.advance(length);
            left -= length;
        }
        if flags & frame::FIN != 0
            && let Some(inbox) = inbox
        {
            inbox.end(End::Finished);
        }
        Ok(())
    }

    /// Hands the first `length` bytes over, waiting where they find no room.
    async fn deliver(&self, inbox: &Inbox, length: usize) -> Result<(), SpdyError> {
        let mut data = &self.buffer[..length];
        loop {
            data = &data[inbox.push(data)..];
            if data.is_empty() {
                return Ok(());
            }
            self.unless_hung_up(self.shared.budget.changed()).await?;
        }
    }

    /// Waits until the client has taken enough of the answers to its control frames.
    async fn answers_taken(&self) -> Result<(), SpdyError> {
        self.unless_hung_up(self.shared.outbound.room()).await
    }

    async fn unless_hung_up(&self, wait: impl Future<Output = ()>) -> Result<(), SpdyError> {
        let mut wait = std::pin::pin!(wait);
        while tokio::time::timeout(HANGUP_CHECK, &mut wait).await.is_err() {
            if self.hangup.as_ref().is_some_and(|hung_up| hung_up()) {
                return Err(SpdyError::Gone);
            }
            self.shared.outbound.probe();
        }
        Ok(())
    }

    fn control(&mut self, kind: Kind, flags: u8, payload: &[u8]) -> Result<(), SpdyError> {
        match kind {
            Kind::SynStream => self.syn_stream(flags, payload),
            Kind::Headers | Kind::SynReply => {
                // Its content does not matter, but the blocks form one compressed stream.
                self.inflater.block(&payload[4..])?;
                if flags & frame::FIN != 0 {
                    self.end(payload, End::Finished);
                }
                Ok(())
            }
            Kind::RstStream => {
                self.end(payload, End::Reset);
                Ok(())
            }
            Kind::Ping => {
                let id = frame::word(payload);
                // The client's pings are odd, as its streams are; an even one answers a ping that we never sent.
                if id % 2 == 1 {
                    self.shared.outbound.push(|out| frame::ping(out, id));
                }
                Ok(())
            }
            Kind::GoAway => {
                self.away = true;
                Ok(())
            }
            Kind::Settings | Kind::WindowUpdate => Ok(()),
        }
    }

    fn end(&self, payload: &[u8], end: End) {
        if let Some(inbox) = self.shared.inbox(frame::stream_id(payload)) {
            inbox.end(end);
        }
    }

    fn syn_stream(&mut self, flags: u8, payload: &[u8]) -> Result<(), SpdyError> {
        let id = frame::stream_id(payload);
        // Before any refusal: the next block builds upon this one.
        let headers = self.inflater.block(&payload[10..])?;
        if self.away {
            return Ok(());
        }
        if id.is_multiple_of(2) || id <= self.shared.last() || flags & frame::UNIDIRECTIONAL != 0 {
            self.refuse(id, Reset::Protocol);
            return Ok(());
        }
        self.shared.set_last(id);
        if !(self.accept)(&headers) {
            self.refuse(id, Reset::Cancel);
            return Ok(());
        }
        if self.shared.table().len() >= self.limits.streams {
            self.refuse(id, Reset::Refused);
            return Ok(());
        }
        let (inbox, reader) = Inbox::new(self.limits.stream_bytes, self.shared.budget.clone());
        if flags & frame::FIN != 0 {
            inbox.end(End::Finished);
        }
        self.shared.table().insert(id, inbox.clone());
        let first = !std::mem::replace(&mut self.replied, true);
        // At once: the client opens its next stream only after this.
        self.shared.outbound.push(|out| frame::syn_reply(out, id, first));
        let stream = Stream::new(id, headers, self.shared.clone(), inbox, reader);
        // Full only after the owner stopped taking; then the stream is dropped and so reset.
        let _ = self.streams.try_send(stream);
        Ok(())
    }

    fn refuse(&self, id: u32, status: Reset) {
        self.shared.outbound.push(|out| frame::rst_stream(out, id, status));
    }
}
