//! Connections to the CRI socket, and HTTP/2's limits on each. Connections are bounded in number: of a client that leaks
//! them, those silent the longest are closed, so that it neither takes the daemon's descriptors nor keeps a kubelet out.
//! Never reads the content.

use crate::host::doorway;
use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, Server, UdsConnectInfo};

/// Connections at once. A node has a kubelet's two or three, and one per tool.
const MAX_CONNECTIONS: usize = 512;
/// Calls at once on one connection; a client waits with more. A kubelet that starts or stops 500 pods at once has some
/// hundreds. Without this number there would be no limit.
const MAX_CALLS: u32 = 1000;

/// The transport with its limits. h2 itself bounds resets, settings, pings and header frames.
pub(super) fn transport() -> Server {
    Server::builder().max_concurrent_streams(MAX_CALLS)
}

/// Incoming connections. tonic itself would retry at once, endlessly, when descriptors run out.
pub(super) fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    bounded(listener, MAX_CONNECTIONS)
}

fn bounded(listener: UnixListener, most: usize) -> impl Stream<Item = io::Result<Connection>> {
    let held = Arc::new(Held::default());
    futures_util::stream::unfold((listener, held), move |(listener, held)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Held::take(&held, stream, most);
                    return Some((Ok(connection), (listener, held)));
                }
                Err(error) => doorway::after_failed_accept("grpc.socket", &error).await,
            }
        }
    })
}

/// All that are open.
#[derive(Debug, Default)]
struct Held {
    /// Counts what was said on all of them: an order that no clock disturbs.
    said: AtomicU64,
    open: Mutex<BTreeMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    last: Arc<AtomicU64>,
    close: oneshot::Sender<()>,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    held: Arc<Held>,
    number: u64,
    last: Arc<AtomicU64>,
    close: oneshot::Receiver<()>,
    is_closed: bool,
}

impl Held {
    fn take(held: &Arc<Self>, stream: UnixStream, most: usize) -> Connection {
        let number = held.said.fetch_add(1, Ordering::Relaxed);
        let last = Arc::new(AtomicU64::new(number));
        let (close, closed) = oneshot::channel();
        let mut open = held.open();
        let silent = open.iter().min_by_key(|(_, open)| open.last.load(Ordering::Relaxed)).map(|(n, _)| *n);
        if open.len() >= most
            && let Some(silent) = silent.and_then(|silent| open.remove(&silent))
        {
            // Log: 512 connections are open. Some client opens one again and again and never closes any.
            // Do: `ss -xp` shows whose they are.
            tracing::warn!(
                most,
                "the CRI socket has too many connections: closing the one that was silent the longest"
            );
            // It may have gone by itself.
            let _ = silent.close.send(());
        }
        open.insert(number, Open { last: Arc::clone(&last), close });
        drop(open);
        Connection { stream, held: Arc::clone(held), number, last, close: closed, is_closed: false }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        // Every section leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Whether it has to make room. Asked before writing too: a client that does not read may be why nothing is read.
    fn is_closed(&mut self, context: &mut Context<'_>) -> bool {
        self.is_closed = self.is_closed || Pin::new(&mut self.close).poll(context).is_ready();
        self.is_closed
    }

    fn said_something(&self) {
        self.last.store(self.held.said.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.held.open().remove(&self.number);
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_closed(context) {
            // As if its client had closed it.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.said_something();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_closed(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = Pin::new(&mut this.stream).poll_write(context, data);
        if written.is_ready() {
            this.said_something();
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_closed(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, data);
        if written.is_ready() {
            this.said_something();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;
    use tonic::service::Routes;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn listener() -> (tempfile::TempDir, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        (dir, listener)
    }

    #[tokio::test]
    async fn the_connection_that_was_silent_the_longest_makes_room() {
        let (dir, listener) = listener();
        let mut accepted = std::pin::pin!(bounded(listener, 3));
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            clients.push(UnixStream::connect(dir.path().join("s")).await.unwrap());
            servers.push(accepted.next().await.unwrap().unwrap());
        }
        // The first speaks, the third is spoken to; the second is silent.
        clients[0].write_all(b"x").await.unwrap();
        servers[0].read_u8().await.unwrap();
        servers[2].write_all(b"x").await.unwrap();
        let _fourth = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let fourth = accepted.next().await.unwrap().unwrap();
        let mut byte = [0];
        for _ in 0..2 {
            assert_eq!(servers[1].read(&mut byte).await.unwrap(), 0, "as if it had been closed");
            servers[1].write_all(b"x").await.unwrap_err();
        }
        for other in [0, 2] {
            assert!(servers[other].read(&mut byte).now_or_never().is_none());
        }
        // A closed connection frees its place.
        servers.remove(1);
        drop(fourth);
        assert_eq!(servers[0].held.open().len(), 2);
        let _fifth = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let _held = accepted.next().await.unwrap().unwrap();
        assert!(servers.iter_mut().all(|server| server.read(&mut byte).now_or_never().is_none()));
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A request's header block, of HPACK's static table: POST, http, `/`, and an authority.
    fn headers() -> Vec<u8> {
        [&[0x83, 0x86, 0x84, 0x41, 1][..], b"x"].concat()
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const CONTINUATION: u8 = 9;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    /// One whole request; true when it is answered.
    async fn is_answered(path: &std::path::Path) -> bool {
        let mut client = UnixStream::connect(path).await.unwrap();
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers());
        client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request].concat()).await.unwrap();
        loop {
            let mut head = [0; 9];
            if client.read_exact(&mut head).await.is_err() {
                return false;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            client.read_exact(&mut payload).await.unwrap();
            if head[3] == HEADERS {
                return true;
            }
        }
    }

    /// What a client floods with: the frames of round `n`.
    type Flood = fn(u32) -> Vec<u8>;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_floods_is_held_up_or_closed_and_nobody_else_is() {
        // More than any honest client sends without reading, and less than would hurt.
        const MOST: usize = 64 << 20;
        let floods: [(&str, Flood); 6] = [
            ("pings", |_| frame(PING, 0, 0, &[7; 8])),
            ("settings", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
            ("resets", |n| {
                let request = frame(HEADERS, END_HEADERS, 2 * n + 1, &headers());
                [request, frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes())].concat()
            }),
            ("calls whose answers are not read", |n| {
                frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &headers())
            }),
            ("headers without an end", |n| match n {
                0 => frame(HEADERS, END_STREAM, 1, &headers()),
                // A literal without an index, name and value of one byte.
                _ => frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']),
            }),
            ("empty continuations", |n| match n {
                0 => frame(HEADERS, END_STREAM, 1, &headers()),
                _ => frame(CONTINUATION, 0, 1, &[]),
            }),
        ];
        let (dir, listener) = listener();
        let path = dir.path().join("s");
        let router = transport().add_routes(Routes::default());
        let serving = tokio::spawn(router.serve_with_incoming(connections(listener)));
        for (what, flood) in floods {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
            let (mut round, mut sent) = (0, 0);
            let ended = loop {
                let frames: Vec<u8> = (round..round + 1000).flat_map(flood).collect();
                round += 1000;
                match tokio::time::timeout(Duration::from_secs(1), client.write_all(&frames)).await {
                    Ok(Ok(())) => sent += frames.len(),
                    Ok(Err(_)) => break "closed",
                    Err(_) => break "held up",
                }
                assert!(sent < MOST, "{what}: {sent} bytes were taken");
            };
            eprintln!("{what}: {ended} after {sent} bytes");
            let answered = tokio::time::timeout(PATIENCE, is_answered(&path)).await;
            assert!(answered.expect(what), "{what}: another client has no answer");
        }
        serving.abort();
    }
}
