//! An answer of the process that speaks HTTP, as it comes over the request's socket, and through memory. Copies what lies in
//! memory once: the process may change it at any time.

use super::connect::{Destination, NoWay};
use super::{Failure, nonsense, wire};
use crate::images::unpack::plain;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use podwright_sys::lend;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// Bytes of an answer that are read at once.
const READ: usize = 128 << 10;
/// Room that is left before more is reserved: pieces then hold little more memory than they are long.
const LEAST_READ: usize = 16 << 10;
/// Buffers that are kept to be used again: as many as pieces may be on their way to a layer's decompressor.
pub(super) const MAX_BEFORE: usize = 5;
/// An answer whose head is known. Dropped, the rest is not asked for any more.
#[derive(Debug)]
pub(in crate::images::registry) struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
}

impl Response {
    pub(in crate::images::registry) fn status(&self) -> StatusCode {
        self.status
    }

    /// Those that anybody here looks at.
    pub(in crate::images::registry) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The next bytes of the body; None: it has ended well.
    pub(in crate::images::registry) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        self.body.chunk().await
    }
}

/// What comes over a request's socket.
#[derive(Debug)]
pub(super) struct Incoming {
    socket: UnixStream,
    buffer: BytesMut,
    /// Buffers before this one, of which whoever has their bytes may be done by now: the kernel's pages for new ones cost more
    /// than copying into them.
    before: VecDeque<BytesMut>,
    /// Where the process puts pieces, and what is copied of them once: it may change what it has put there.
    memory: Arc<lend::Shared>,
    lent: BytesMut,
    /// A place that is free again, and not said so: one waking is for two.
    owed: Option<u8>,
    lent_before: VecDeque<BytesMut>,
    /// Bytes of the current piece that are still to come.
    left: usize,
    is_over: bool,
}

impl Incoming {
    pub(super) fn new(socket: UnixStream, memory: Arc<lend::Shared>) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            before: VecDeque::new(),
            memory,
            lent: BytesMut::new(),
            lent_before: VecDeque::new(),
            owed: None,
            left: 0,
            is_over: false,
        }
    }

    pub(super) async fn head(mut self, destination: &Destination) -> Result<Response, Failure> {
        match self.frame().await? {
            (wire::HEAD, length) if length <= wire::MAX_HEAD => {
                let bytes = self.take(length).await?;
                let (status, headers) = wire::decode_head(&bytes).ok_or_else(nonsense)?;
                Ok(Response { status, headers, body: self })
            }
            (wire::UNCONNECTED, 0) => Err(match destination.failure() {
                NoWay::Refused(refused) => Failure::Refused(refused),
                NoWay::Failed(text) => Failure::Connect(text),
            }),
            (kind, length) => Err(self.failure(kind, length).await),
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.is_over {
                return Ok(None);
            }
            if self.left > 0 {
                if self.buffer.is_empty() {
                    self.fill().await?;
                }
                let length = self.left.min(self.buffer.len());
                self.left -= length;
                return Ok(Some(self.buffer.split_to(length).freeze()));
            }
            match self.frame().await? {
                (wire::DATA, length) if (1..=wire::MAX_DATA).contains(&length) => self.left = length,
                (wire::LENT, length) if (1..=wire::PLACE).contains(&length) => {
                    return self.lent(length).await.map(Some);
                }
                (wire::END, 0) => self.is_over = true,
                (kind, length) => return Err(self.failure(kind, length).await),
            }
        }
    }

    /// A piece that lies in memory.
    async fn lent(&mut self, length: usize) -> Result<Bytes, Failure> {
        let number = self.take(1).await?;
        let [place] = number[..] else { return Err(nonsense()) };
        if place >= wire::PLACES {
            return Err(nonsense());
        }
        turn(&mut self.lent, &mut self.lent_before, wire::PLACE);
        self.lent.resize(length, 0);
        let broken = |e: io::Error| Failure::Process(e.to_string());
        self.memory.read(usize::from(place) * wire::PLACE, &mut self.lent).map_err(broken)?;
        let Some(owed) = self.owed.take() else {
            self.owed = Some(place);
            return Ok(self.lent.split().freeze());
        };
        match self.socket.try_write(&[owed, place]) {
            // It has said all, and gone; the rest of that is still to be heard.
            Err(e) if !matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(broken(e))
            }
            _ => Ok(self.lent.split().freeze()),
        }
    }

    /// A frame that says what went wrong, or nonsense.
    async fn failure(&mut self, kind: u8, length: usize) -> Failure {
        if length > wire::MAX_WORDS || ![wire::CONNECT, wire::FAILED].contains(&kind) {
            return nonsense();
        }
        match self.take(length).await {
            Err(failure) => failure,
            Ok(text) if kind == wire::CONNECT => Failure::Connect(plain(&text)),
            Ok(text) => Failure::Request(plain(&text)),
        }
    }

    async fn frame(&mut self) -> Result<(u8, usize), Failure> {
        let head = self.take(wire::FRAME).await?;
        let (kind, length, _) = wire::numbers(&head).ok_or_else(nonsense)?;
        Ok((kind, usize::try_from(length).map_err(|_| nonsense())?))
    }

    /// The next bytes, of a length within a limit.
    async fn take(&mut self, length: usize) -> Result<Bytes, Failure> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(self.buffer.copy_to_bytes(length))
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        if self.buffer.capacity() - self.buffer.len() < LEAST_READ {
            let rest = self.buffer.split();
            turn(&mut self.buffer, &mut self.before, READ);
            self.buffer.extend_from_slice(&rest);
        }
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(0) => Err(Failure::Process("it has ended".into())),
            Err(error) => Err(Failure::Process(error.to_string())),
        }
    }
}

/// Goes on in another buffer with room for so many bytes: the eldest if nobody has bytes of it any more.
pub(super) fn turn(buffer: &mut BytesMut, before: &mut VecDeque<BytesMut>, room: usize) {
    let reclaimed = before.pop_front_if(|eldest| {
        eldest.clear();
        eldest.try_reclaim(room)
    });
    let next = reclaimed.unwrap_or_else(|| BytesMut::with_capacity(room));
    let last = std::mem::replace(buffer, next);
    if last.capacity() > 0 {
        before.push_back(last);
    }
    if before.len() > MAX_BEFORE {
        before.pop_front();
    }
}
