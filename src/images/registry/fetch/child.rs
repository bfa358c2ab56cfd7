//! The process that speaks HTTP and TLS for one pull: every byte of a registry, a token service, a proxy or where these lead
//! is parsed in it, and nowhere else. It has no way to make a connection: it asks for one by the number of a client, and the
//! daemon says to where. It opens no file and knows no name; what it needs is handed in.
//!
//! Owns the program; runs as a worker (`host::worker`), in tests as a thread.

use super::dial::{Dialer, Trust, told};
use super::wire::{self, FRAME, MAX_DATA, MAX_SETUP, MAX_WORDS, Setup};
use crate::host::worker::{Ends, Program};
use bytes::{Buf, Bytes};
use futures_util::FutureExt as _;
use http::HeaderValue;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use podwright_sys::{fdpass, seccomp};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::oneshot;

/// The program. Memory: HTTP/2's windows, and buffers of TLS and HTTP/1 for each connection. Descriptors: a socket for each
/// request and each connection, of as many layers and parts as a pull may have at once.
pub(in crate::images) const CLIENT: Program = Program {
    name: "registry-client",
    memory: 128 << 20,
    descriptors: 504,
    calls: &[
        seccomp::SYS_epoll_create1,
        seccomp::SYS_epoll_ctl,
        seccomp::SYS_epoll_wait,
        seccomp::SYS_epoll_pwait,
        seccomp::SYS_eventfd2,
        // tokio makes one for signals, whether any are wanted or not. It reaches nobody.
        seccomp::SYS_socketpair,
        seccomp::SYS_recvfrom,
        seccomp::SYS_recvmsg,
        seccomp::SYS_sendto,
        seccomp::SYS_sendmsg,
        seccomp::SYS_shutdown,
        seccomp::SYS_sched_yield,
    ],
    // F_GETFD, F_GETFL, F_DUPFD_CLOEXEC.
    fcntl: &[1, 3, 1030],
    body: work,
};

/// Idle connections are closed after this long.
const POOL_IDLE: Duration = Duration::from_secs(15);

type Http = Client<Dialer, Full<Bytes>>;

/// What asks the daemon for connections.
#[derive(Debug)]
pub(super) struct Asking {
    control: UnixDatagram,
    next: AtomicU32,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Option<OwnedFd>>>>,
    /// What all connections have brought.
    pub(super) use_of: Arc<Use>,
}

/// Bytes that may arrive and bring no part of an answer: what is read ahead on the connections of a pull, and answers that
/// are not read to their end. As a flood of empty frames they take a second or two.
const USELESS: u64 = 32 << 20;
/// Beyond it, one part in this many of the content: TLS and HTTP/2 take a hundredth, chunks of a hundred bytes a tenth.
const OVERHEAD: u64 = 4;
/// What the head of an answer counts as.
const OF_AN_ANSWER: usize = 64 << 10;

/// How much of what arrived was part of an answer. A registry that sends pings, settings, or `103 Early Hints` without end
/// has a process work and brings nothing, which a limit on time notices late.
#[derive(Debug, Default)]
pub(super) struct Use {
    arrived: AtomicU64,
    brought: AtomicU64,
}

/// A client and the credentials for its proxy.
struct Known {
    http: Http,
    /// Sent along where the proxy sees requests.
    proxy_auth: Option<HeaderValue>,
}

fn work(ends: Ends) {
    // Input and output lead nowhere.
    let control: OwnedFd = ends.control.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let Ok(runtime) = runtime else { return };
    // Whatever goes wrong with what is said is the end: who waits for answers sees that.
    let _ = runtime.block_on(serve(control));
}

async fn serve(control: OwnedFd) -> io::Result<()> {
    let control = UnixDatagram::from_std(control.into())?;
    let asking = Arc::new(Asking {
        control,
        next: AtomicU32::new(0),
        waiting: Mutex::default(),
        use_of: Arc::default(),
    });
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let (mut clients, mut trust) = (HashMap::new(), Trust::of(Vec::new()));
    loop {
        let (mut message, mut fds) = ([0; 16], Vec::new());
        let receive = || fdpass::receive(asking.control.as_fd(), &mut message, &mut fds);
        let length = asking.control.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Ok(());
        }
        let (kind, number, _) = wire::numbers(&message[..length]).ok_or_else(nonsense)?;
        match (kind, fds.pop()) {
            (wire::ROOTS, Some(file)) => {
                trust = Trust::of(wire::decode_roots(&whole(file)?).ok_or_else(nonsense)?);
            }
            (wire::CLIENT, Some(file)) => {
                let setup = Setup::decode(&whole(file)?).ok_or_else(nonsense)?;
                clients.insert(number, Arc::new(client(number, &setup, &trust, &asking)));
            }
            (wire::REQUEST, Some(socket)) => {
                let client: &Arc<Known> = clients.get(&number).ok_or_else(nonsense)?;
                let socket = UnixStream::from_std(socket.into())?;
                tokio::spawn(answer(Arc::clone(client), socket, Arc::clone(&asking.use_of)));
            }
            (wire::SOCKET, Some(socket)) => asking.answered(number, Some(socket)),
            (wire::NO_SOCKET, None) => asking.answered(number, None),
            _ => return Err(nonsense()),
        }
    }
}

fn whole(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(file).take(MAX_SETUP).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn client(number: u32, setup: &Setup, trust: &Trust, asking: &Arc<Asking>) -> Known {
    let dialer = Dialer::new(number, setup, trust, asking);
    let proxy_auth = dialer.request_auth();
    let http = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build(dialer);
    Known { http, proxy_auth }
}

impl Asking {
    /// A connection for a client; None: there is none.
    pub(super) async fn socket(&self, client: u32) -> io::Result<Option<OwnedFd>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let message = [&wire::control(wire::WANTED, client)[..], &number.to_le_bytes()].concat();
        self.control.send(&message).await?;
        Ok(answer.await.unwrap_or_default())
    }

    fn answered(&self, number: u32, socket: Option<OwnedFd>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(waiting) = waiting {
            // Nobody waits any more: it is closed.
            let _ = waiting.send(socket);
        }
    }
}

impl Use {
    /// Counts what arrives.
    ///
    /// # Errors
    /// When far more has arrived than was of use.
    pub(super) fn arrives(&self, bytes: usize) -> io::Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let arrived = self.arrived.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let brought = self.brought.load(Ordering::Relaxed);
        if arrived <= USELESS.saturating_add(brought).saturating_add(brought / OVERHEAD) {
            return Ok(());
        }
        Err(io::Error::other("it sends much more than it answers with"))
    }

    fn brings(&self, bytes: usize) {
        self.brought.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Serves one request. It ends when nobody hears the answer any more.
async fn answer(client: Arc<Known>, mut socket: UnixStream, use_of: Arc<Use>) {
    let Ok(mut request) = request(&mut socket).await else { return };
    let is_plain = request.uri().scheme() == Some(&http::uri::Scheme::HTTP);
    if let Some(auth) = client.proxy_auth.as_ref().filter(|_| is_plain) {
        request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, auth.clone());
    }
    let got = tokio::select! {
        got = client.http.request(request) => got,
        () = nobody_hears(&socket) => return,
    };
    // What cannot be said is heard by nobody.
    let _ = match got {
        Err(error) => fail(&mut socket, &error).await,
        Ok(response) => pass_on(&mut socket, response, &use_of).await,
    };
}

async fn request(socket: &mut UnixStream) -> io::Result<http::Request<Full<Bytes>>> {
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let length = u64::from(socket.read_u32_le().await?);
    let mut bytes = Vec::new();
    (&mut *socket).take(length.min(MAX_SETUP)).read_to_end(&mut bytes).await?;
    let request = wire::decode_request(&bytes).ok_or_else(nonsense)?;
    Ok(request.map(|body| Full::new(Bytes::from(body))))
}

async fn nobody_hears(socket: &UnixStream) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_read(&mut [0; 16]) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

async fn pass_on(
    socket: &mut UnixStream,
    response: http::Response<Incoming>,
    use_of: &Use,
) -> io::Result<()> {
    use_of.brings(OF_AN_ANSWER);
    let Some(head) = wire::encode_head(response.status(), response.headers()) else {
        return words(socket, wire::FAILED, "the headers of its answer are too long").await;
    };
    socket.write_all(&wire::frame(wire::HEAD, head.len())).await?;
    socket.write_all(&head).await?;
    let mut body = response.into_body();
    loop {
        let first = tokio::select! {
            frame = body.frame() => frame,
            () = nobody_hears(socket) => return Ok(()),
        };
        let (mut pieces, mut next) = (Pieces::default(), Some(first));
        // All that is there is said at once.
        let after = loop {
            match next {
                Some(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        use_of.brings(data.len());
                        pieces.push(data);
                    }
                }
                other => break other,
            }
            if pieces.length >= MAX_DATA / 2 {
                break None;
            }
            next = body.frame().now_or_never();
        };
        pieces.send(socket).await?;
        match after {
            None => {}
            Some(None) => return socket.write_all(&wire::frame(wire::END, 0)).await,
            Some(Some(Err(error))) => return fail(socket, &error).await,
            Some(Some(Ok(_))) => {}
        }
    }
}

async fn fail(
    socket: &mut UnixStream,
    error: &(dyn std::error::Error + Send + Sync + 'static),
) -> io::Result<()> {
    let (kind, text) = told(error);
    words(socket, kind, &text).await
}

async fn words(socket: &mut UnixStream, kind: u8, text: &str) -> io::Result<()> {
    let text = &text.as_bytes()[..text.len().min(MAX_WORDS)];
    socket.write_all(&[&wire::frame(kind, text.len())[..], text].concat()).await
}

/// Pieces of a body on their way.
#[derive(Default)]
struct Pieces {
    all: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if !piece.is_empty() {
            self.all.push_back(piece);
        }
    }

    /// Sends them in frames of no more than their limit.
    async fn send(mut self, socket: &mut UnixStream) -> io::Result<()> {
        while self.length > 0 {
            let length = self.length.min(MAX_DATA);
            let mut now = self.split(length);
            now.all.push_front(Bytes::copy_from_slice(&wire::frame(wire::DATA, length)));
            now.length += FRAME;
            socket.write_all_buf(&mut now).await?;
        }
        Ok(())
    }

    fn split(&mut self, length: usize) -> Self {
        let mut front = Self::default();
        while front.length < length {
            let Some(mut piece) = self.all.pop_front() else { break };
            let rest = piece.split_off(piece.len().min(length - front.length));
            if !rest.is_empty() {
                self.all.push_front(rest);
            }
            front.push(piece);
        }
        self.length -= front.length;
        front
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.all.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.all);
        filled.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(first) = self.all.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.all.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_sent_whole_and_in_order() {
        let mut pieces = Pieces::default();
        for piece in ["ab", "", "cde", "f"] {
            pieces.push(Bytes::from_static(piece.as_bytes()));
        }
        let mut front = pieces.split(3);
        assert_eq!((front.remaining(), pieces.remaining()), (3, 3));
        let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
        assert_eq!(front.chunks_vectored(&mut slices), 2);
        front.advance(1);
        assert_eq!(front.copy_to_bytes(2), "bc");
        assert_eq!(pieces.copy_to_bytes(3), "def");
        assert!(!front.has_remaining() && !pieces.has_remaining());
    }
}
