//! A byte stream inside of a WebSocket's binary messages, whose bounds mean nothing: what carries SPDY for port-forward.

use super::websocket::Stream;
use bytes::{Buf as _, Bytes};
use futures_util::{Sink, Stream as _};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes of one message to the client.
const MESSAGE_BYTES: usize = 32 << 10;

/// The tunnel.
pub(super) struct Tunnel {
    websocket: Stream,
    left: Bytes,
    said_goodbye: bool,
}

impl Tunnel {
    pub(super) fn new(websocket: Stream) -> Self {
        Self { websocket, left: Bytes::new(), said_goodbye: false }
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.left.is_empty() {
            match ready!(Pin::new(&mut this.websocket).poll_next(context)) {
                Some(Ok(Message::Binary(data))) => this.left = data,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) | None => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let length = this.left.len().min(buffer.remaining());
        buffer.put_slice(&this.left[..length]);
        this.left.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.websocket).poll_ready(context)).map_err(io_error)?;
        let piece = &data[..data.len().min(MESSAGE_BYTES)];
        let message = Message::Binary(Bytes::copy_from_slice(piece));
        Pin::new(&mut this.websocket).start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().websocket).poll_flush(context).map_err(io_error)
    }

    /// Closes with status 1000, which a client takes for the end.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_goodbye {
            ready!(Pin::new(&mut this.websocket).poll_ready(context)).map_err(io_error)?;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            Pin::new(&mut this.websocket).start_send(Message::Close(Some(frame))).map_err(io_error)?;
            this.said_goodbye = true;
        }
        Pin::new(&mut this.websocket).poll_flush(context).map_err(io_error)
    }
}
