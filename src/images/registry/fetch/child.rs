//! The process that speaks HTTP and TLS for one pull: every byte of a registry, a token service, a proxy or where these lead
//! is parsed in it, and nowhere else. It has no way to make a connection: it asks for one by the number of a client, and the
//! daemon says to where. It opens no file and knows no name; what it needs is handed in.
//!
//! Owns the program; runs as a worker (`host::worker`), in tests as a thread.

use super::dial::{Dialer, Trust, told};
use super::wire::{self, FRAME, MAX_DATA, MAX_SETUP, MAX_WORDS, MEMORY, PLACE, PLACES, Setup};
use crate::host::worker::{Ends, Program};
use bytes::{Buf, Bytes};
use futures_util::FutureExt as _;
use http::HeaderValue;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use podwright_sys::lend::Shared;
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

/// Places that one answer may have filled at a time: it waits for one to be free again, and leaves some to others.
const PLACES_OF_ONE: usize = 4;
/// Pieces below this go through the socket: that costs less than a place.
const LEAST_LENT: usize = 4 << 10;

/// The memory for bodies, and the places of it that are free.
type Memory = Arc<Mutex<(Shared, Vec<u8>)>>;

/// The places that an answer has filled. They are free when it is over: the daemon has then taken all, or takes no more.
struct Filled {
    memory: Memory,
    places: Vec<u8>,
}

impl Filled {
    /// Puts the bytes in a free place, whose number it returns; None: there is none.
    fn fill(&mut self, bytes: &Pieces) -> io::Result<Option<u8>> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, free) = &mut *memory;
        let Some(place) = free.pop() else { return Ok(None) };
        self.places.push(place);
        let mut at = usize::from(place) * PLACE;
        for piece in &bytes.all {
            memory.write(at, piece)?;
            at += piece.len();
        }
        Ok(Some(place))
    }

    /// These are free again.
    fn free(&mut self, places: &[u8]) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            if let Some(at) = self.places.iter().position(|filled| filled == place) {
                memory.1.push(self.places.swap_remove(at));
            }
        }
    }

    /// Waits for word of places, and for the end: false.
    async fn hear(&mut self, socket: &UnixStream) -> bool {
        loop {
            if socket.readable().await.is_err() {
                return false;
            }
            let mut places = [0; 16];
            match socket.try_read(&mut places) {
                Ok(0) => return false,
                Ok(count) => {
                    self.free(&places[..count]);
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let places = std::mem::take(&mut self.places);
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).1.extend(places);
    }
}

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
    // The input leads nowhere.
    let Ends { input: _, output, control } = ends;
    let Ok(memory) = Shared::open_sparsely(output.as_fd(), 0, MEMORY) else { return };
    let memory = Arc::new(Mutex::new((memory, (0..PLACES).rev().collect())));
    let control: OwnedFd = control.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let Ok(runtime) = runtime else { return };
    // Whatever goes wrong with what is said is the end: who waits for answers sees that.
    let _ = runtime.block_on(serve(control, memory));
}

async fn serve(control: OwnedFd, memory: Memory) -> io::Result<()> {
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
                let filled = Filled { memory: Arc::clone(&memory), places: Vec::new() };
                tokio::spawn(answer(Arc::clone(client), socket, Arc::clone(&asking.use_of), filled));
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
async fn answer(client: Arc<Known>, mut socket: UnixStream, use_of: Arc<Use>, mut filled: Filled) {
    let Ok(mut request) = request(&mut socket).await else { return };
    let is_plain = request.uri().scheme() == Some(&http::uri::Scheme::HTTP);
    if let Some(auth) = client.proxy_auth.as_ref().filter(|_| is_plain) {
        request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, auth.clone());
    }
    let got = tokio::select! {
        got = client.http.request(request) => got,
        () = nobody_hears(&socket, &mut filled) => return,
    };
    // What cannot be said is heard by nobody.
    let said = match got {
        Err(error) => fail(&mut socket, &error).await,
        Ok(response) => pass_on(&mut socket, response, &use_of, &mut filled).await,
    };
    while said.is_ok() && !filled.places.is_empty() && filled.hear(&socket).await {}
}

async fn request(socket: &mut UnixStream) -> io::Result<http::Request<Full<Bytes>>> {
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let length = u64::from(socket.read_u32_le().await?);
    let mut bytes = Vec::new();
    (&mut *socket).take(length.min(MAX_SETUP)).read_to_end(&mut bytes).await?;
    let request = wire::decode_request(&bytes).ok_or_else(nonsense)?;
    Ok(request.map(|body| Full::new(Bytes::from(body))))
}

async fn nobody_hears(socket: &UnixStream, filled: &mut Filled) {
    while filled.hear(socket).await {}
}

async fn pass_on(
    socket: &mut UnixStream,
    response: http::Response<Incoming>,
    use_of: &Use,
    filled: &mut Filled,
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
            () = nobody_hears(socket, filled) => return Err(io::ErrorKind::BrokenPipe.into()),
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
            if pieces.length >= PLACE {
                break None;
            }
            next = body.frame().now_or_never();
        };
        pieces.send(socket, filled).await?;
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

    /// Sends them in places, or in frames of no more than their limit.
    async fn send(mut self, socket: &mut UnixStream, filled: &mut Filled) -> io::Result<()> {
        while self.length > 0 {
            if self.length >= LEAST_LENT {
                while filled.places.len() >= PLACES_OF_ONE {
                    if !filled.hear(socket).await {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                let now = self.split(self.length.min(PLACE));
                if let Some(place) = filled.fill(&now)? {
                    let [a, b, c, d, e] = wire::frame(wire::LENT, now.length);
                    socket.write_all(&[a, b, c, d, e, place]).await?;
                    continue;
                }
                self.join(now);
            }
            let length = self.length.min(MAX_DATA);
            let mut now = self.split(length);
            now.all.push_front(Bytes::copy_from_slice(&wire::frame(wire::DATA, length)));
            now.length += FRAME;
            socket.write_all_buf(&mut now).await?;
        }
        Ok(())
    }

    /// The reverse of `split`.
    fn join(&mut self, mut front: Self) {
        self.length += front.length;
        front.all.append(&mut self.all);
        self.all = front.all;
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
        let head = pieces.split(1);
        pieces.join(head);
        assert_eq!(pieces.copy_to_bytes(3), "def");
        assert!(!front.has_remaining() && !pieces.has_remaining());
    }

    /// Who hears an answer and takes nothing holds its own places, and none when it has gone.
    #[tokio::test]
    async fn an_answer_has_few_places_and_leaves_them_all() {
        let file = podwright_sys::lend::shared(MEMORY).unwrap();
        let shared = Shared::open_sparsely(file.as_fd(), 0, MEMORY).unwrap();
        let memory: Memory = Arc::new(Mutex::new((shared, (0..6).collect())));
        let free = || memory.lock().unwrap().1.len();
        let filled = || Filled { memory: Arc::clone(&memory), places: Vec::new() };
        let body = |length: usize| {
            let mut pieces = Pieces::default();
            pieces.push(Bytes::from(vec![7; length]));
            pieces
        };
        let (mut socket, mut hears) = UnixStream::pair().unwrap();
        let (mut first, whole) = (filled(), body(6 * PLACE));
        let sending = tokio::spawn(async move {
            whole.send(&mut socket, &mut first).await.unwrap();
            (socket, first)
        });
        let mut frames = [[0; FRAME + 1]; 6];
        for at in 0..6 {
            if at >= 4 {
                assert_eq!(free(), 2, "it waits for a place");
                // One that it has not filled changes nothing.
                hears.write_all(&[200, frames[at - 4][FRAME]]).await.unwrap();
            }
            hears.read_exact(&mut frames[at]).await.unwrap();
            assert_eq!(frames[at][..FRAME], wire::frame(wire::LENT, PLACE));
        }
        let (socket, mut first) = sending.await.unwrap();
        // There are two left for another: the rest goes through the socket.
        let (mut other, mut reads) = UnixStream::pair().unwrap();
        let (mut second, whole) = (filled(), body(3 * PLACE));
        let sending = tokio::spawn(async move {
            whole.send(&mut other, &mut second).await.unwrap();
            second
        });
        let mut frames = vec![0; 2 * (FRAME + 1) + FRAME + PLACE];
        reads.read_exact(&mut frames).await.unwrap();
        assert_eq!(frames[2 * (FRAME + 1)..][..FRAME], wire::frame(wire::DATA, PLACE));
        let second = sending.await.unwrap();
        assert_eq!((free(), second.places.len()), (0, 2));
        drop(hears);
        assert!(!first.hear(&socket).await);
        drop((first, second));
        assert_eq!(free(), 6);
    }
}
