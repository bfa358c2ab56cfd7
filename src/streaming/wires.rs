//! A session's streams over any carrier, and the pumps between them and a process's descriptors. Output is read
//! straight into the carrier's frame buffer.

use super::backend::Control;
use super::registry::Meter;
use super::size::Sizes;
use super::spdy::{InboxReader, StreamReader, StreamWriter};
use super::websocket::Channel;
use crate::model::TerminalSize;
use bytes::Bytes;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;

/// The carrier, or only this stream, is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// End of transmission, as a terminal's user types it.
const EOT: u8 = 4;
/// Size of a session's enlarged pipe, so that one read fills a frame. The kernel may refuse it.
const PIPE_BYTES: usize = 256 << 10;

/// From the client.
#[derive(Debug)]
pub(super) enum Input {
    Spdy(StreamReader),
    WebSocket(InboxReader),
}

/// To the client.
#[derive(Debug)]
pub(super) enum Output {
    Spdy(StreamWriter),
    WebSocket(Channel),
}

impl Input {
    /// The input; None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        match self {
            Self::Spdy(stream) => stream.next().await.map_err(|_| Lost),
            Self::WebSocket(inbox) => inbox.next().await.map_err(|_| Lost),
        }
    }
}

impl Output {
    /// Sends what `fill` puts into a buffer; returns its result. Must not be dropped half-way unless the carrier ends
    /// too.
    pub(super) async fn send_from(
        &self,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Lost> {
        match self {
            Self::Spdy(stream) => stream.send_from(fill).await.map_err(|_| Lost),
            Self::WebSocket(channel) => channel.send_from(fill).await,
        }
    }

    /// Sends these bytes and ends the stream.
    pub(super) async fn send_last(&self, data: &[u8]) -> Result<(), Lost> {
        match self {
            Self::Spdy(stream) => {
                stream.send(data).await.map_err(|_| Lost)?;
                stream.finish().await.map_err(|_| Lost)
            }
            Self::WebSocket(_) if data.is_empty() => Ok(()),
            Self::WebSocket(channel) => channel.send(data).await,
        }
    }
}

/// Whether output still moves, for a process that has ended while children hold its streams.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sending: AtomicUsize,
    sent: AtomicU64,
}

impl Progress {
    /// Returns after `quiet` without output pending or in transit.
    pub(super) async fn until_quiet(&self, quiet: Duration) {
        loop {
            let before = self.sent.load(Ordering::Relaxed);
            tokio::time::sleep(quiet).await;
            if self.sending.load(Ordering::Relaxed) == 0 && self.sent.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// Carries a process's output to the client until it ends.
pub(super) async fn carry_out(
    source: Option<OwnedFd>,
    output: Option<&Output>,
    progress: &Progress,
    meter: &Meter,
) -> Result<(), Lost> {
    let (Some(source), Some(output)) = (source, output) else { return Ok(()) };
    let _ = rustix::pipe::fcntl_setpipe_size(&source, PIPE_BYTES);
    // A terminal's master is no pipe, but is read the same way.
    let Ok(source) = pipe::Receiver::from_owned_fd_unchecked(source) else { return Err(Lost) };
    loop {
        if source.readable().await.is_err() {
            return Ok(());
        }
        progress.sending.fetch_add(1, Ordering::Relaxed);
        let outcome = output.send_from(|buffer| source.try_read(buffer)).await;
        progress.sending.fetch_sub(1, Ordering::Relaxed);
        match outcome? {
            Ok(0) => return Ok(()),
            Ok(n) => {
                progress.sent.fetch_add(1, Ordering::Relaxed);
                meter.went(n);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // EIO: the terminal is closed on the other side.
            Err(_) => return Ok(()),
        }
    }
}

/// Carries the client's input to a process until the client ends it; afterwards, or when the process takes no more,
/// reads and drops the rest. With `eot`, ends the input by typing EOT instead of closing.
pub(super) async fn carry_in(sink: Option<OwnedFd>, input: Option<Input>, eot: bool, meter: &Meter) {
    let Some(mut input) = input else { return };
    let mut sink = sink.and_then(|sink| pipe::Sender::from_owned_fd_unchecked(sink).ok());
    while let Ok(Some(data)) = input.next().await {
        meter.came(data.len());
        if let Some(open) = &mut sink
            && open.write_all(&data).await.is_err()
        {
            sink = None;
        }
    }
    if let (Some(sink), true) = (&mut sink, eot) {
        // A terminal that is gone needs none.
        let _ = sink.write_all(&[EOT]).await;
    }
}

/// Sizes from a client.
#[derive(Debug)]
pub(super) struct Resizes {
    input: Input,
    sizes: Sizes,
}

impl Resizes {
    pub(super) fn new(input: Input) -> Self {
        Self { input, sizes: Sizes::default() }
    }

    /// The next size; None after the last. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Option<TerminalSize> {
        while let Ok(Some(data)) = self.input.next().await {
            if let Some(size) = self.sizes.feed(&data) {
                return Some(size);
            }
        }
        None
    }
}

/// Applies sizes as they come.
pub(super) async fn carry_sizes(resizes: Option<Resizes>, control: &dyn Control) {
    let Some(mut resizes) = resizes else { return };
    while let Some(size) = resizes.next().await {
        if let Err(error) = control.resize(size).await {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    }
}
