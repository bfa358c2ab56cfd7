//! Kubernetes' channels over a WebSocket: each message begins with its channel's number. Owns the output and the task
//! that distributes input as it arrives: a message is never held. Knows no channel's meaning.

use super::frames::{self, PAYLOAD_BYTES, Piece, Writer};
use super::protocol::Channels;
use super::socket::Socket;
use super::spdy::{Activity, Budget, End, Hangup, Inbox, InboxReader};
use super::wires::Lost;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Limit of held bytes for one channel whose owner does not take them, and for all together.
const INBOX_BYTES: usize = 64 << 10;
/// First byte of the fifth protocol's message that ends a channel.
const CLOSE: u8 = 0xff;
/// Interval of checks for a vanished client while its data cannot be taken, and limit for it to read an answer to a
/// ping or a close frame.
const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// A WebSocket over a client's socket.
pub(super) type Stream = (frames::Reader, Writer);

/// Takes over a socket after the handshake; `early` was read with it.
pub(super) fn accept(socket: Socket, early: &Bytes) -> Stream {
    frames::open(socket, early)
}

struct Outgoing {
    writer: tokio::sync::Mutex<Writer>,
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
    /// Sends what `fill` puts into a buffer as one message; returns its result.
    pub(super) async fn send_from(
        &self,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Lost> {
        let mut writer = self.out.writer.lock().await;
        writer.drain().await.map_err(|_| Lost)?;
        let room = writer.room(1 + PAYLOAD_BYTES);
        let length = match fill(&mut room[1..]) {
            Ok(length @ 1..) => length,
            other => return Ok(other),
        };
        room[0] = self.number;
        if self.out.base64 {
            let text = self.text(&room[1..=length]);
            writer.put_text(&text).map_err(|_| Lost)?;
        } else {
            writer.put_room(1 + length).map_err(|_| Lost)?;
        }
        writer.drain().await.map_err(|_| Lost)?;
        self.out.activity.touch();
        Ok(Ok(length))
    }

    /// Sends these bytes as at least one message.
    pub(super) async fn send(&self, data: &[u8]) -> Result<(), Lost> {
        let mut writer = self.out.writer.lock().await;
        for piece in data.chunks(PAYLOAD_BYTES).chain(data.is_empty().then_some(&[][..])) {
            writer.drain().await.map_err(|_| Lost)?;
            let put = match self.out.base64 {
                true => writer.put_text(&self.text(piece)),
                false => writer.put_binary(&[&[self.number], piece].concat()),
            };
            put.map_err(|_| Lost)?;
            writer.drain().await.map_err(|_| Lost)?;
        }
        Ok(())
    }

    fn text(&self, data: &[u8]) -> String {
        let mut text = String::new();
        // Channels of base64 protocols are digits.
        text.push(char::from(b'0' + self.number % 10));
        STANDARD.encode_string(data, &mut text);
        text
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

    /// Takes a channel's input; other channels are read and dropped.
    pub(super) fn channel(&mut self, number: u8) -> InboxReader {
        let (inbox, reader) = Inbox::new(INBOX_BYTES, self.budget.clone());
        self.inboxes.insert(number, inbox);
        reader
    }
}

impl Multiplex {
    /// Serves the channels; the connection ends after `idle` without traffic.
    pub(super) fn new(
        stream: Stream,
        incoming: Incoming,
        channels: Channels,
        hangup: Option<Hangup>,
        idle: Duration,
    ) -> Self {
        let (reader, writer) = stream;
        let activity = Arc::new(Activity::new());
        let out = Arc::new(Outgoing {
            writer: tokio::sync::Mutex::new(writer),
            base64: channels.base64,
            activity: activity.clone(),
        });
        let message = Begun::default();
        let reader = Reader { reader, incoming, channels, hangup, out: out.clone(), message };
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

    /// Sends a close frame and waits up to `linger` for the client's.
    pub(super) async fn close(mut self, linger: Duration) {
        let goodbye = async {
            if self.out.answer(Writer::put_close).await.is_ok() {
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

impl Outgoing {
    /// Sends a frame between messages.
    async fn answer(&self, put: impl FnOnce(&mut Writer) -> io::Result<()>) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.drain().await?;
        put(&mut writer)?;
        writer.drain().await
    }

    /// The same for a client that may not read: one that takes no output gets none.
    async fn try_answer(&self, put: impl FnOnce(&mut Writer) -> io::Result<()>) {
        let _ = tokio::time::timeout(HANGUP_CHECK, self.answer(put)).await;
    }
}

struct Reader {
    reader: frames::Reader,
    incoming: Incoming,
    channels: Channels,
    hangup: Option<Hangup>,
    out: Arc<Outgoing>,
    message: Begun,
}

/// State of the arriving message.
#[derive(Debug, Default)]
struct Begun {
    channel: Option<u8>,
    /// Characters of base64 that are no group of four yet; or the payload of a message that ends a channel.
    left: Vec<u8>,
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
        while let Ok(Some(piece)) = self.reader.next().await {
            self.out.activity.touch();
            match piece {
                Piece::Data { text, first, last, at } => {
                    if text && !self.channels.base64 || self.take(first, last, &at).await.is_err() {
                        break;
                    }
                }
                Piece::Ping(at) => {
                    let payload = self.reader.bytes(&at).to_vec();
                    self.out.try_answer(|writer| writer.put_pong(&payload)).await;
                }
                Piece::Pong => {}
                Piece::Close => break,
            }
        }
        self.out.try_answer(Writer::put_close).await;
    }

    async fn take(&mut self, first: bool, last: bool, at: &Range<usize>) -> Result<(), Lost> {
        if first {
            self.message = Begun::default();
        }
        let mut data = self.reader.bytes(at);
        let channel = match (self.message.channel, data.split_first()) {
            (Some(channel), _) => channel,
            (None, Some((channel, rest))) => {
                data = rest;
                *self.message.channel.insert(*channel)
            }
            // An empty message means nothing.
            (None, None) => return Ok(()),
        };
        if self.channels.base64 {
            let left = &mut self.message.left;
            left.extend_from_slice(data);
            let whole = if last { left.len() } else { left.len() / 4 * 4 };
            let decoded = STANDARD.decode(&left[..whole]).map_err(|_| Lost)?;
            left.drain(..whole);
            return self.deliver(channel.wrapping_sub(b'0'), &decoded).await;
        }
        if self.channels.close && channel == CLOSE {
            return self.end(data.to_vec(), last);
        }
        self.deliver(channel, data).await
    }

    /// A message that ends a channel has the channel's number as its payload.
    fn end(&mut self, payload: Vec<u8>, last: bool) -> Result<(), Lost> {
        let left = &mut self.message.left;
        if left.len() + payload.len() > 1 {
            return Err(Lost);
        }
        left.extend(payload);
        match (last, left.first()) {
            (false, _) => {}
            (true, None) => return Err(Lost),
            (true, Some(channel)) => {
                if let Some(inbox) = self.incoming.inboxes.get(channel) {
                    inbox.end(End::Finished);
                }
            }
        }
        Ok(())
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
                // An unsolicited pong means nothing, but a vanished client's kernel answers it with a reset. If it
                // cannot be sent now it is not needed: other output is pending.
                if let Ok(mut writer) = self.out.writer.try_lock() {
                    let pong = async {
                        writer.drain().await?;
                        writer.put_pong(&[])?;
                        writer.drain().await
                    };
                    let _ = tokio::time::timeout(HANGUP_CHECK, pong).await;
                }
            }
        }
    }
}

/// The entry point of the fuzz target `websocket`: frames as they arrive, or one around all bytes; the first of them
/// came with the handshake. Held bytes stay within their limit, and the session ends.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    use std::sync::LazyLock;
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an asynchronous runtime")
    });
    let Some((door, data)) = data.split_first() else { return };
    let protocol = ["v5.channel.k8s.io", "v4.base64.channel.k8s.io"][usize::from(door % 2)];
    let framed = if door / 2 % 2 == 0 { data.to_vec() } else { frame(data, door % 2 == 1) };
    let (early, late) = framed.split_at(framed.len().min(usize::from(door / 4)));
    RUNTIME.block_on(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let mut client = std::net::TcpStream::connect(address).expect("connect");
        // No lingering: there are thousands a second.
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("set linger");
        client.set_nonblocking(true).expect("a socket that does not block");
        // What it does not take at once is dropped.
        let _ = io::Write::write(&mut client, late);
        client.shutdown(std::net::Shutdown::Write).expect("end the client's side");
        let server = listener.accept().expect("accept").0;
        server.set_nonblocking(true).expect("a socket that does not block");
        let socket = Socket::Plain(tokio::net::TcpStream::from_std(server).expect("a socket"));
        let stream = accept(socket, &Bytes::copy_from_slice(early));
        let mut incoming = Incoming::new();
        let mut readers = [incoming.channel(0), incoming.channel(4)];
        let mut multiplex = Multiplex::new(stream, incoming, Channels::of(protocol), None, HANGUP_CHECK);
        let read = async {
            for reader in &mut readers {
                while let Ok(Some(data)) = reader.next().await {
                    assert!(!data.is_empty() && data.len() <= INBOX_BYTES);
                }
            }
        };
        tokio::join!(read, multiplex.gone());
        drop(client);
    });
}

/// A client's message, of text or of bytes.
#[cfg(any(test, fuzzing))]
fn frame(data: &[u8], text: bool) -> Vec<u8> {
    let [.., a, b] = data.len().to_be_bytes();
    // A zero mask changes nothing.
    let mut framed = vec![if text { 0x81 } else { 0x82 }, 0xfe, a, b, 0, 0, 0, 0];
    framed.extend(data.iter().take(usize::from(u16::MAX)));
    framed
}
