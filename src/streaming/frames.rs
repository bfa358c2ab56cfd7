//! A WebSocket's frames (RFC 6455) as a server reads and writes them. Payload is passed on in pieces as it arrives, so
//! a message of any length costs no memory; output is one frame at a time.
//!
//! Knows nothing of channels. A client that breaks the protocol ends its connection.

use super::socket::Socket;
use super::spdy::{Reading, Writing};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead as _, ReadBuf};

/// Bytes per read, and the longest piece of a message.
const READ_BYTES: usize = 16 << 10;
/// Longest header of a frame: two bytes, eight of length, four of a mask.
const MAX_HEADER: usize = 14;
/// The same for a frame sent, which has no mask.
const HEAD: usize = 10;
/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;
/// Longest payload of one sent frame.
pub(super) const PAYLOAD_BYTES: usize = 32 << 10;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// The last frame of a message.
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What arrived. Read its bytes with [`Reader::bytes`] before asking for the next piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Of a message.
    Data {
        text: bool,
        first: bool,
        last: bool,
        at: Range<usize>,
    },
    /// To be answered with the same bytes.
    Ping(Range<usize>),
    Pong,
    /// The client says goodbye.
    Close,
}

/// The reading half.
pub(super) struct Reader {
    socket: Reading,
    buffer: Box<[u8]>,
    filled: Range<usize>,
    /// The data frame whose payload is arriving.
    frame: Option<Frame>,
    /// The message that it belongs to.
    message: Option<Message>,
}

struct Frame {
    left: u64,
    mask: [u8; 4],
    last: bool,
}

#[derive(Clone, Copy)]
struct Message {
    text: bool,
    /// Nothing of it was passed on yet.
    fresh: bool,
}

struct Header {
    size: usize,
    opcode: u8,
    last: bool,
    mask: [u8; 4],
    length: u64,
}

fn broken(how: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, how)
}

/// None: more bytes are needed.
fn header(bytes: &[u8]) -> io::Result<Option<Header>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(broken("reserved bits of a WebSocket frame"));
    }
    if second & MASKED == 0 {
        return Err(broken("a WebSocket frame without a mask"));
    }
    let (length, rest) = match second & !MASKED {
        126 => match rest.split_first_chunk() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        length => (u64::from(length), rest),
    };
    if length >> 63 != 0 {
        return Err(broken("the length of a WebSocket frame"));
    }
    let Some((mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
    let size = bytes.len() - rest.len();
    Ok(Some(Header { size, opcode: first & 0x0f, last: first & FIN != 0, mask: *mask, length }))
}

fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(bytes.len() % 4);
}

impl Reader {
    /// The bytes of the last piece.
    pub(super) fn bytes(&self, at: &Range<usize>) -> &[u8] {
        self.buffer.get(at.clone()).unwrap_or_default()
    }

    /// The next piece; None when the client closed without a goodbye.
    pub(super) async fn next(&mut self) -> io::Result<Option<Piece>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Piece>>> {
        loop {
            let start = self.filled.start;
            let found = if self.frame.is_some() { self.payload() } else { self.begin()? };
            if let Some(piece) = found {
                return Poll::Ready(Ok(Some(piece)));
            }
            // A frame that says nothing was passed over: what is behind it may be all that ever comes.
            if self.filled.start != start && !self.filled.is_empty() {
                continue;
            }
            if self.needs_more() && ready!(self.poll_fill(context))? == 0 {
                let whole = self.filled.is_empty() && self.message.is_none();
                return Poll::Ready(if whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
        }
    }

    /// Whether the buffered bytes are too few to continue.
    fn needs_more(&self) -> bool {
        match &self.frame {
            Some(frame) => frame.left > 0 && self.filled.is_empty(),
            None => true,
        }
    }

    /// Parses a whole control frame, or the head of a data frame; its payload follows.
    fn begin(&mut self) -> io::Result<Option<Piece>> {
        let Some(header) = header(self.bytes(&self.filled))? else { return Ok(None) };
        if header.opcode >= CLOSE {
            return self.control(&header);
        }
        let message = match (header.opcode, self.message) {
            (CONTINUATION, Some(message)) => message,
            (TEXT | BINARY, None) => Message { text: header.opcode == TEXT, fresh: true },
            _ => return Err(broken("the order of WebSocket frames")),
        };
        self.message = Some(message);
        self.filled.start += header.size;
        self.frame = Some(Frame { left: header.length, mask: header.mask, last: header.last });
        Ok(self.payload())
    }

    fn control(&mut self, header: &Header) -> io::Result<Option<Piece>> {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MAX_CONTROL || !header.last {
            return Err(broken("a WebSocket control frame that is long or in parts"));
        }
        let at = self.filled.start + header.size;
        let at = at..at + length;
        if at.end > self.filled.end {
            return Ok(None);
        }
        self.filled.start = at.end;
        unmask(&mut self.buffer[at.clone()], &mut { header.mask });
        Ok(Some(match header.opcode {
            CLOSE => Piece::Close,
            PING => Piece::Ping(at),
            PONG => Piece::Pong,
            _ => return Err(broken("the type of a WebSocket frame")),
        }))
    }

    /// The available part of the frame's payload; None: nothing to report.
    fn payload(&mut self) -> Option<Piece> {
        let (frame, message) = (self.frame.as_mut()?, self.message.as_mut()?);
        let there = usize::try_from(frame.left).unwrap_or(usize::MAX).min(self.filled.len());
        if there == 0 && frame.left > 0 {
            return None;
        }
        let at = self.filled.start..self.filled.start + there;
        self.filled.start = at.end;
        unmask(&mut self.buffer[at.clone()], &mut frame.mask);
        frame.left = frame.left.saturating_sub(u64::try_from(there).unwrap_or(u64::MAX));
        let ended = frame.left == 0;
        let last = ended && frame.last;
        let first = std::mem::replace(&mut message.fresh, false);
        let text = message.text;
        if ended {
            self.frame = None;
        }
        if last {
            self.message = None;
        }
        (there > 0 || first || last).then_some(Piece::Data { text, first, last, at })
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.end + MAX_HEADER + MAX_CONTROL > self.buffer.len() {
            // The beginning of a header or control frame: a few bytes.
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.filled.end..]);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut room))?;
        let came = room.filled().len();
        self.filled.end += came;
        Poll::Ready(Ok(came))
    }
}

/// The writing half. The next send completes one that was dropped half-way.
pub(super) struct Writer {
    socket: Writing,
    /// Room for a header before [`HEAD`], then the payload. Allocated at the first frame.
    out: Vec<u8>,
    unsent: Range<usize>,
    said_goodbye: bool,
}

impl Writer {
    /// Sends what was put. Ready: another frame may be put.
    pub(super) fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let unsent = &self.out[self.unsent.clone()];
            match ready!(Pin::new(self.socket.writer()).poll_write(context, unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.unsent.start += sent,
            }
        }
        Pin::new(self.socket.writer()).poll_flush(context)
    }

    pub(super) async fn drain(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_drain(context)).await
    }

    /// Room for `length` bytes of payload; only when everything is sent.
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.out.len() < HEAD + length {
            self.out.resize(HEAD + length, 0);
        }
        &mut self.out[HEAD..HEAD + length]
    }

    /// Puts a binary message of the first `length` bytes of the room.
    pub(super) fn put_room(&mut self, length: usize) -> io::Result<()> {
        self.put_header(BINARY, length)
    }

    pub(super) fn put_binary(&mut self, payload: &[u8]) -> io::Result<()> {
        self.put(BINARY, payload)
    }

    pub(super) fn put_text(&mut self, payload: &str) -> io::Result<()> {
        self.put(TEXT, payload.as_bytes())
    }

    pub(super) fn put_pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.put(PONG, payload)
    }

    /// Queues the close frame of a regular end; nothing follows it.
    pub(super) fn put_close(&mut self) -> io::Result<()> {
        const NORMAL: u16 = 1000;
        if self.said_goodbye {
            return Ok(());
        }
        self.put(CLOSE, &NORMAL.to_be_bytes())?;
        self.said_goodbye = true;
        Ok(())
    }

    fn put(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.room(payload.len()).copy_from_slice(payload);
        self.put_header(opcode, payload.len())
    }

    fn put_header(&mut self, opcode: u8, length: usize) -> io::Result<()> {
        if self.said_goodbye || !self.unsent.is_empty() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let long = u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes();
        let (short, extended) = match (u8::try_from(length), u16::try_from(length)) {
            (Ok(length @ ..126), _) => (length, &[][..]),
            (_, Ok(_)) => (126, &long[6..]),
            _ => (127, &long[..]),
        };
        let start = HEAD - 2 - extended.len();
        self.out[start..start + 2].copy_from_slice(&[FIN | opcode, short]);
        self.out[start + 2..HEAD].copy_from_slice(extended);
        self.unsent = start..HEAD + length;
        Ok(())
    }
}

/// Takes over a socket after the handshake; `early` was read with it.
pub(super) fn open(socket: Socket, early: &[u8]) -> (Reader, Writer) {
    let (reading, writing) = socket.into_halves();
    let mut buffer = vec![0; READ_BYTES.max(early.len())].into_boxed_slice();
    buffer[..early.len()].copy_from_slice(early);
    let reader = Reader { socket: reading, buffer, filled: 0..early.len(), frame: None, message: None };
    (reader, Writer { socket: writing, out: Vec::new(), unsent: 0..0, said_goodbye: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, Reader, Writer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (reader, writer) = open(Socket::Plain(theirs.unwrap().0), &[]);
        (ours.unwrap(), reader, writer)
    }

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..126), _) => frame.push(MASKED | length),
            (_, Ok(length)) => {
                frame.push(MASKED | 126);
                frame.extend(length.to_be_bytes());
            }
            _ => {
                frame.push(MASKED | 127);
                frame.extend(u64::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    #[tokio::test]
    async fn a_long_message_comes_in_pieces_that_need_no_room() {
        let (mut client, mut reader, _writer) = pair().await;
        let sent: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[2]).collect();
        let mut bytes = frame(BINARY, &sent[..1_000_001]);
        bytes.extend(frame(FIN | PING, b"between"));
        bytes.extend(frame(CONTINUATION, &[]));
        bytes.extend(frame(FIN | CONTINUATION, &sent[1_000_001..]));
        bytes.extend(frame(FIN | TEXT, &[]));
        bytes.extend(frame(FIN | CLOSE, &[3, 232]));
        let sending = tokio::spawn(async move { client.write_all(&bytes).await.map(|()| client) });
        let (mut came, mut pings, mut ends) = (Vec::new(), 0, Vec::new());
        loop {
            match reader.next().await.unwrap().unwrap() {
                Piece::Data { first, last, at, text } => {
                    assert_eq!(first, text || came.is_empty());
                    came.extend_from_slice(reader.bytes(&at));
                    ends.extend(last.then_some((text, came.len())));
                }
                Piece::Ping(at) => {
                    assert_eq!(reader.bytes(&at), b"between");
                    pings += 1;
                }
                Piece::Pong => panic!(),
                Piece::Close => break,
            }
            assert_eq!(reader.buffer.len(), READ_BYTES);
        }
        assert!(came == sent && pings == 1);
        assert_eq!(ends, [(false, sent.len()), (true, sent.len())]);
        drop(sending.await.unwrap());
    }

    #[tokio::test]
    async fn what_is_here_is_handed_on_before_more_is_waited_for() {
        let empty = frame(CONTINUATION, &[]);
        for (behind, wanted) in [
            (frame(FIN | CONTINUATION, b"b"), "b"),
            (frame(FIN | CONTINUATION, &[]), ""),
            ([frame(FIN | PING, b"p"), frame(CONTINUATION, b"b")].concat(), "p"),
            (frame(FIN | CLOSE, &[3, 232]), "close"),
        ] {
            // All in one read: waiting for the socket would never end.
            let (mut client, mut reader, _writer) = pair().await;
            let bytes = [frame(BINARY, b"a"), empty.clone(), empty.clone(), behind].concat();
            client.write_all(&bytes).await.unwrap();
            assert!(matches!(reader.next().await.unwrap(), Some(Piece::Data { first: true, .. })));
            let piece = reader.next().now_or_never().expect("it waits for more").unwrap().unwrap();
            let got = match &piece {
                Piece::Data { at, .. } | Piece::Ping(at) => std::str::from_utf8(reader.bytes(at)).unwrap(),
                Piece::Pong => panic!(),
                Piece::Close => "close",
            };
            assert_eq!(got, wanted);
            drop(client);
        }
    }

    #[tokio::test]
    async fn a_client_that_breaks_the_protocol_is_refused() {
        let unmasked = vec![FIN | BINARY, 1, 0];
        let huge = [&[FIN | BINARY, MASKED | 127, 0x80][..], &[0; 11]].concat();
        let long_control = frame(FIN | PING, &[0; 126]);
        let within = [frame(BINARY, b"x"), frame(FIN | BINARY, b"x")].concat();
        for wrong in [
            unmasked,
            huge,
            long_control,
            within,
            frame(FIN | 0x40 | BINARY, b"x"),
            frame(PING, b"x"),
            frame(FIN | CONTINUATION, b"x"),
            frame(FIN | 3, b"x"),
            frame(FIN | 11, b"x"),
        ] {
            let (mut client, mut reader, _writer) = pair().await;
            client.write_all(&wrong).await.unwrap();
            let error = loop {
                match reader.next().await {
                    Ok(piece) => assert!(matches!(piece, Some(Piece::Data { last: false, .. })), "{wrong:?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn an_end_in_the_middle_is_an_error() {
        for (sent, whole) in [(Vec::new(), true), (frame(BINARY, b"x"), false), (vec![FIN | BINARY], false)] {
            let (mut client, mut reader, _writer) = pair().await;
            client.write_all(&sent).await.unwrap();
            drop(client);
            let end = loop {
                match reader.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert_eq!(end, whole, "{sent:?}");
        }
    }
}
