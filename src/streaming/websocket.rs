//! Kubernetes' channels over a WebSocket: each message begins with the number of its channel. Owns what goes out and the
//! task that hands out what comes in; knows no channel's meaning.

use super::protocol::Channels;
use super::socket::Socket;
use super::spdy::{Activity, Budget, End, Hangup, Inbox, InboxReader};
use super::wires::Lost;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// Longest message from a client. Go's clients send 32 KiB, others a whole input at once.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Buffers of the library, each way, bytes.
const BUFFER_BYTES: usize = 16 << 10;
/// Payload of a message to the client: what Go's clients send themselves.
const PAYLOAD_BYTES: usize = 32 << 10;
/// Held for one channel whose owner does not take it, and for all together.
const INBOX_BYTES: usize = 64 << 10;
/// First byte of the fifth protocol's message that ends a channel.
const CLOSE: u8 = 0xff;
/// How often it is looked whether the client is still there while its data cannot be taken.
const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// A WebSocket over a client's socket.
pub(super) type Stream = WebSocketStream<Socket>;

/// Takes over a socket after the handshake; `early` was read with it.
pub(super) async fn accept(socket: Socket, early: &Bytes) -> Stream {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * PAYLOAD_BYTES + BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_partially_read(socket, early.to_vec(), Role::Server, Some(config)).await
}

struct Outgoing {
    sink: tokio::sync::Mutex<(SplitSink<Stream, Message>, Vec<u8>)>,
    base64: bool,
    activity: Arc<Activity>,
}

/// One channel to the client.
#[derive(Clone)]
pub(super) struct Channel {
    out: Arc<Outgoing>,
    number: u8,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Channel {
    /// Sends what `fill` puts into a buffer as one message; hands its answer back.
    pub(super) async fn send_from(
        &self,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Lost> {
        let mut guard = self.out.sink.lock().await;
        let (sink, buffer) = &mut *guard;
        if buffer.is_empty() {
            *buffer = vec![0; 1 + PAYLOAD_BYTES];
        }
        let length = match fill(&mut buffer[1..]) {
            Ok(length @ 1..) => length,
            other => return Ok(other),
        };
        buffer[0] = self.number;
        let message = self.message(&buffer[..=length]);
        sink.send(message).await.map_err(|_| Lost)?;
        self.out.activity.touch();
        Ok(Ok(length))
    }

    /// Sends these bytes, at least one message.
    pub(super) async fn send(&self, data: &[u8]) -> Result<(), Lost> {
        let mut guard = self.out.sink.lock().await;
        for piece in data.chunks(PAYLOAD_BYTES).chain(data.is_empty().then_some(&[][..])) {
            let message = self.message(&[&[self.number], piece].concat());
            guard.0.send(message).await.map_err(|_| Lost)?;
        }
        Ok(())
    }

    fn message(&self, with_number: &[u8]) -> Message {
        if !self.out.base64 {
            return Message::Binary(Bytes::copy_from_slice(with_number));
        }
        let mut text = String::new();
        // Channels of base64 protocols are digits.
        text.push(char::from(b'0' + with_number[0] % 10));
        STANDARD.encode_string(&with_number[1..], &mut text);
        Message::Text(text.into())
    }
}

/// All channels of one WebSocket.
pub(super) struct Multiplex {
    out: Arc<Outgoing>,
    task: JoinHandle<()>,
}

/// What a client may send on: channel numbers and where their bytes go.
#[derive(Debug)]
pub(super) struct Incoming {
    inboxes: HashMap<u8, Arc<Inbox>>,
    budget: Arc<Budget>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self { inboxes: HashMap::new(), budget: Budget::new(2 * INBOX_BYTES) }
    }

    /// Takes what comes on a channel; the others are read and dropped.
    pub(super) fn channel(&mut self, number: u8) -> InboxReader {
        let (inbox, reader) = Inbox::new(INBOX_BYTES, self.budget.clone());
        self.inboxes.insert(number, inbox);
        reader
    }
}

impl Multiplex {
    /// Serves the channels; the connection ends when nothing went over it for `idle`.
    pub(super) fn new(
        stream: Stream,
        incoming: Incoming,
        channels: Channels,
        hangup: Option<Hangup>,
        idle: Duration,
    ) -> Self {
        let (sink, stream) = stream.split();
        let activity = Arc::new(Activity::new());
        let out = Arc::new(Outgoing {
            sink: tokio::sync::Mutex::new((sink, Vec::new())),
            base64: channels.base64,
            activity: activity.clone(),
        });
        let reader = Reader { stream, incoming, channels, hangup, out: out.clone() };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = reader.run() => {}
                () = activity.idle(idle) => {}
            }
        });
        Self { out, task }
    }

    /// A channel to the client.
    pub(super) fn channel(&self, number: u8) -> Channel {
        Channel { out: self.out.clone(), number }
    }

    /// Returns when the client is gone.
    pub(super) async fn gone(&mut self) {
        // Its panics are bugs that the log shows; the session ends either way.
        let _ = (&mut self.task).await;
    }

    /// Says goodbye and waits up to `linger` for the client to do so too.
    pub(super) async fn close(mut self, linger: Duration) {
        let goodbye = async {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            if self.out.sink.lock().await.0.send(Message::Close(Some(frame))).await.is_ok() {
                let _ = (&mut self.task).await;
            }
        };
        let _ = tokio::time::timeout(linger, goodbye).await;
    }
}

impl Drop for Multiplex {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reader {
    stream: SplitStream<Stream>,
    incoming: Incoming,
    channels: Channels,
    hangup: Option<Hangup>,
    out: Arc<Outgoing>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        for inbox in self.incoming.inboxes.values() {
            inbox.end(End::Reset);
        }
    }
}

impl Reader {
    async fn run(mut self) {
        while let Some(Ok(message)) = self.stream.next().await {
            self.out.activity.touch();
            let taken = match message {
                Message::Binary(data) => self.take(&data).await,
                Message::Text(text) if self.channels.base64 => self.take(text.as_bytes()).await,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
                Message::Text(_) | Message::Close(_) => Err(Lost),
            };
            if taken.is_err() {
                // One more look has the library answer a goodbye.
                let _ = tokio::time::timeout(HANGUP_CHECK, self.stream.next()).await;
                return;
            }
        }
    }

    async fn take(&self, message: &[u8]) -> Result<(), Lost> {
        let Some((first, payload)) = message.split_first() else { return Ok(()) };
        if self.channels.base64 {
            let payload = STANDARD.decode(payload).map_err(|_| Lost)?;
            return self.deliver(first.wrapping_sub(b'0'), &payload).await;
        }
        if self.channels.close && *first == CLOSE {
            let [channel] = payload else { return Err(Lost) };
            if let Some(inbox) = self.incoming.inboxes.get(channel) {
                inbox.end(End::Finished);
            }
            return Ok(());
        }
        self.deliver(*first, payload).await
    }

    async fn deliver(&self, channel: u8, mut data: &[u8]) -> Result<(), Lost> {
        let Some(inbox) = self.incoming.inboxes.get(&channel) else { return Ok(()) };
        loop {
            data = &data[inbox.push(data)..];
            if data.is_empty() {
                return Ok(());
            }
            let room = tokio::time::timeout(HANGUP_CHECK, self.incoming.budget.changed()).await;
            if room.is_err() {
                if self.hangup.as_ref().is_some_and(|hung_up| hung_up()) {
                    return Err(Lost);
                }
                // Unasked for, it means nothing; but the kernel of a client that is gone answers it with a reset. One that
                // cannot be sent now is not needed: then more is on its way.
                if let Ok(mut out) = self.out.sink.try_lock() {
                    let pong = out.0.send(Message::Pong(Bytes::new()));
                    let _ = tokio::time::timeout(HANGUP_CHECK, pong).await;
                }
            }
        }
    }
}
