//! A byte stream inside a WebSocket's binary messages, whose bounds mean nothing: carries SPDY for port-forward.

use super::frames::{PAYLOAD_BYTES, Piece, Reader, Writer};
use super::websocket::Stream;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The tunnel.
pub(super) struct Tunnel {
    reader: Reader,
    writer: Writer,
    /// Of the last piece.
    left: Range<usize>,
    ended: bool,
}

impl Tunnel {
    pub(super) fn new((reader, writer): Stream) -> Self {
        Self { reader, writer, left: 0..0, ended: false }
    }

    /// Sends a frame between messages if the client takes output; otherwise sends none.
    fn answer(
        &mut self,
        context: &mut Context<'_>,
        put: impl FnOnce(&Reader, &mut Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.writer.poll_drain(context)?.is_ready() {
            put(&self.reader, &mut self.writer)?;
            // The rest goes with the next output.
            let _ = self.writer.poll_drain(context)?;
        }
        Ok(())
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.left.is_empty() && !this.ended {
            match ready!(this.reader.poll_next(context))? {
                Some(Piece::Data { text: false, at, .. }) => this.left = at,
                Some(Piece::Data { text: true, .. }) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Piece::Ping(at)) => {
                    let pong = |reader: &Reader, writer: &mut Writer| writer.put_pong(reader.bytes(&at));
                    this.answer(context, pong)?;
                }
                Some(Piece::Pong) => {}
                Some(Piece::Close) => {
                    this.ended = true;
                    // A client that has gone needs no answer.
                    let _ = this.answer(context, |_, writer| writer.put_close());
                }
                None => this.ended = true,
            }
        }
        let bytes = this.reader.bytes(&this.left);
        let length = bytes.len().min(buffer.remaining());
        buffer.put_slice(&bytes[..length]);
        this.left.start += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writer.poll_drain(context))?;
        let piece = &data[..data.len().min(PAYLOAD_BYTES)];
        this.writer.put_binary(piece)?;
        // The writer has it; the rest precedes the next output.
        let _ = this.writer.poll_drain(context)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writer.poll_drain(context)
    }

    /// Closes with status 1000, which a client takes for the end.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.writer.poll_drain(context))?;
        // Called again after the first time it puts nothing.
        this.writer.put_close()?;
        this.writer.poll_drain(context)
    }
}
