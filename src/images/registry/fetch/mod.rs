//! HTTP for one pull, by a process without rights that speaks it for us (`child`): how that process is started, asked and
//! heard, and given connections. One for a pull, so that it holds that pull's secrets only; it ends with the pull.
//!
//! Nothing that it says is believed beyond its form: lengths and counts are held to limits, deadlines are the callers', and
//! digests are taken of what arrives. When it dies, or talks nonsense, what it was asked fails as a broken connection does,
//! and the next request has another.

mod child;
mod connect;
mod dial;
mod incoming;
mod wire;

pub(in crate::images) use child::CLIENT as PROGRAM;
pub(super) use dial::proxy_of;
pub(in crate::images::registry) use incoming::Response;

use super::names::domain;
use super::reach::{Reach, Refused};
use crate::host::worker::Worker;
use crate::images::shares::{Share, Shares};
use connect::Destination;
use http::{HeaderMap, Method};
use incoming::Incoming;
use podwright_sys::{fdpass, lend};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use url::Url;

/// Processes at once, of all pulls: some MiB each. More pulls wait for one. A pull has one from its first request to its end,
/// and waits for nothing else before that.
const MAX_PROCESSES: usize = 64;
/// Those of pulls from one domain: a registry decides how long each lasts, and must not hold up the pulls from others.
const OF_A_DOMAIN: usize = 16;
/// Processes of one pull, one after the other: a registry that ends each of them is given up.
const MAX_STARTS: u32 = 8;
/// Connections of one process that are being made.
const MAX_CONNECTING: usize = 256;
/// Bytes of an answer on their way from the process, in the kernel's memory.
const ON_THE_WAY: usize = 512 << 10;

/// What the processes of all pulls share.
#[derive(Debug)]
pub(super) struct Common {
    processes: Shares,
    /// The system's roots, as the processes get them; read once, when TLS is first spoken.
    roots: OnceCell<Vec<u8>>,
}

impl Default for Common {
    fn default() -> Self {
        Self { processes: Shares::new(MAX_PROCESSES, OF_A_DOMAIN), roots: OnceCell::new() }
    }
}

/// Why there is no answer, or not the whole of one.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    /// The rule of where it may lead.
    #[error(transparent)]
    Refused(Refused),
    /// There was no connection.
    #[error("connect: {0}")]
    Connect(String),
    /// The request or its answer broke.
    #[error("request: {0}")]
    Request(String),
    /// The process is of no use.
    #[error("the process that asks it: {0}")]
    Process(String),
}

impl Failure {
    /// In words, of a host that another one has led to: its own words, and the names in its certificate, are not for whoever
    /// named the image.
    pub(super) fn of_another(&self) -> String {
        let text = self.to_string();
        tracing::debug!(error = text, "a host that another one has led to");
        match self {
            Self::Refused(_) | Self::Process(_) => return text,
            _ if text.contains("certificate") => "its certificate is not accepted",
            Self::Connect(_) => "no connection",
            Self::Request(_) => "no usable answer",
        }
        .to_owned()
    }
}

/// HTTP of one pull.
#[derive(Debug)]
pub(super) struct Fetcher {
    common: Arc<Common>,
    /// The domain of the registry that the image's reference names.
    domain: String,
    next_client: AtomicU32,
    process: tokio::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Arc<Process>>,
    starts: u32,
    /// Kept while the pull lasts.
    share: Option<Share>,
}

/// A client for one origin. What its set-up says holds for nobody else.
#[derive(Clone)]
pub(super) struct Client {
    fetcher: Arc<Fetcher>,
    number: u32,
    origin: url::Origin,
    setup: Arc<Vec<u8>>,
    destination: Arc<Destination>,
    needs_roots: bool,
}

// Its set-up has a key, and the password of a proxy.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("number", &self.number).finish_non_exhaustive()
    }
}

/// What a client is made of.
pub(super) struct ClientSetup {
    /// HTTP/1.1 only, a connection for each request.
    pub(super) separate: bool,
    pub(super) skip_verify: bool,
    pub(super) connect_timeout: Duration,
    /// With its credentials.
    pub(super) proxy: Option<String>,
    /// Roots beside the system's.
    pub(super) roots: Vec<Vec<u8>>,
    pub(super) identity: Option<Identity>,
    pub(super) reach: Reach,
}

/// A client certificate with its chain, and its key, DER.
#[derive(Default)]
pub(super) struct Identity {
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Fetcher {
    /// For a pull from a registry (`host[:port]`). Starts nothing yet.
    pub(super) fn new(common: &Arc<Common>, registry: &str) -> Arc<Self> {
        Arc::new(Self {
            common: Arc::clone(common),
            domain: domain_of(registry).to_owned(),
            next_client: AtomicU32::new(0),
            process: tokio::sync::Mutex::default(),
        })
    }

    /// A client for the origin of `url`; None: its proxy is none.
    pub(super) fn client(self: &Arc<Self>, url: &Url, setup: ClientSetup) -> Option<Client> {
        let Identity { chain, key } = setup.identity.unwrap_or_default();
        let mut origin = url.clone();
        origin.set_path("/");
        origin.set_query(None);
        let (to, reach) = match &setup.proxy {
            None => (origin, setup.reach),
            // It may be on this machine, and resolves the names itself.
            Some(proxy) => (proxy_url(proxy)?, Reach::Anywhere),
        };
        let needs_roots = [url.scheme(), to.scheme()].contains(&"https");
        let said = wire::Setup {
            separate: setup.separate,
            skip_verify: setup.skip_verify,
            connect_timeout: setup.connect_timeout,
            proxy: setup.proxy.unwrap_or_default(),
            roots: setup.roots,
            chain,
            key,
        };
        Some(Client {
            fetcher: Arc::clone(self),
            number: self.next_client.fetch_add(1, Ordering::Relaxed),
            origin: url.origin(),
            setup: Arc::new(said.encode()),
            destination: Arc::new(Destination::new(to, reach, setup.connect_timeout)),
            needs_roots,
        })
    }

    /// The process, started where there is none.
    async fn process(&self) -> Result<Arc<Process>, Failure> {
        let mut state = self.process.lock().await;
        if let Some(running) = state.running.as_ref().filter(|process| !process.shared.is_over()) {
            return Ok(Arc::clone(running));
        }
        state.running = None;
        if state.share.is_none() {
            state.share = Some(self.common.processes.take(&self.domain, 1).await);
        }
        if state.starts >= MAX_STARTS {
            return Err(Failure::Process(format!("{MAX_STARTS} of them have ended")));
        }
        state.starts += 1;
        let process = Arc::new(Process::start().await.map_err(|e| Failure::Process(e.to_string()))?);
        state.running = Some(Arc::clone(&process));
        Ok(process)
    }

    #[cfg(test)]
    async fn running(&self) -> Arc<Process> {
        self.process().await.unwrap()
    }
}

/// The domain of a registry, or its address.
fn domain_of(registry: &str) -> &str {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => registry,
    };
    if host.ends_with(']') || host.parse::<std::net::IpAddr>().is_ok() { host } else { domain(host) }
}

/// Where a proxy is, without its credentials.
fn proxy_url(proxy: &str) -> Option<Url> {
    Url::parse(&proxy_of(proxy)?.uri().to_string()).ok()
}

impl Client {
    /// Asks, and hears the head of the answer. Has no deadline of its own.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response, Failure> {
        if url.origin() != self.origin {
            return Err(Failure::Request("this client is for another host".into()));
        }
        let broken = |e: io::Error| Failure::Process(e.to_string());
        let process = self.fetcher.process().await?;
        process.learn(self, &self.fetcher.common).await.map_err(broken)?;
        let (ours, theirs) = pair(SocketType::STREAM).map_err(broken)?;
        // Less will do, where it is refused.
        let _ = nix::sys::socket::setsockopt(&theirs, nix::sys::socket::sockopt::SndBufForce, &ON_THE_WAY);
        let mut socket = UnixStream::from_std(ours.into()).map_err(broken)?;
        process.send(wire::REQUEST, self.number, Some(theirs)).await.map_err(broken)?;
        let request = wire::encode_request(method, url.as_str(), headers, body);
        socket.write_all(&request).await.map_err(broken)?;
        let answer = Incoming::new(socket, Arc::clone(&process.memory));
        answer.head(&self.destination).await
    }
}

fn nonsense() -> Failure {
    Failure::Process("it talks nonsense".into())
}

/// A process. It ends with this.
#[derive(Debug)]
struct Process {
    /// Where it puts bodies.
    memory: Arc<lend::Shared>,
    shared: Arc<Shared>,
    /// The clients that it knows, and whether it knows the roots.
    knows: tokio::sync::Mutex<(HashSet<u32>, bool)>,
    hearing: AbortHandle,
    _keeper: mpsc::Sender<()>,
}

/// What the task that hears it has, too.
#[derive(Debug)]
struct Shared {
    /// Keeps messages apart, and has an end.
    control: UnixDatagram,
    is_over: AtomicBool,
    destinations: Mutex<HashMap<u32, Arc<Destination>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

impl Process {
    async fn start() -> io::Result<Self> {
        let (ours, theirs) = pair(SocketType::SEQPACKET)?;
        let shared = Arc::new(Shared {
            control: UnixDatagram::from_std(ours.into())?,
            is_over: AtomicBool::new(false),
            destinations: Mutex::default(),
        });
        let area = lend::shared(wire::MEMORY)?;
        let memory = Arc::new(lend::Shared::open_sparsely(area.as_fd(), 0, wire::MEMORY)?);
        let (keeper, over) = mpsc::channel();
        let (started, has_started) = oneshot::channel();
        // It dies with the thread that starts it.
        std::thread::Builder::new()
            .name("registry-keeper".into())
            .spawn(move || keep(theirs, area, started, &over))?;
        has_started.await.map_err(io::Error::other)??;
        let hearing = tokio::spawn(hear(Arc::clone(&shared), keeper.clone())).abort_handle();
        Ok(Self { memory, shared, knows: tokio::sync::Mutex::default(), hearing, _keeper: keeper })
    }

    /// Has it know a client.
    async fn learn(&self, client: &Client, common: &Common) -> io::Result<()> {
        let mut knows = self.knows.lock().await;
        if knows.0.contains(&client.number) {
            return Ok(());
        }
        if client.needs_roots && !knows.1 {
            let roots = common.roots.get_or_init(system_roots).await;
            self.send(wire::ROOTS, 0, Some(file_of(roots)?)).await?;
            knows.1 = true;
        }
        self.send(wire::CLIENT, client.number, Some(file_of(&client.setup)?)).await?;
        self.shared.destinations().insert(client.number, Arc::clone(&client.destination));
        knows.0.insert(client.number);
        Ok(())
    }

    async fn send(&self, kind: u8, number: u32, fd: Option<OwnedFd>) -> io::Result<()> {
        self.shared.send(kind, number, fd).await
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn destinations(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Destination>>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, kind: u8, number: u32, fd: Option<OwnedFd>) -> io::Result<()> {
        let (message, fds) = (wire::control(kind, number), fd.as_ref().map(|fd| fd.as_fd()));
        let send = || fdpass::send(self.control.as_fd(), &message, fds.as_slice());
        let sent = self.control.async_io(Interest::WRITABLE, send).await;
        sent.map(drop).inspect_err(|_| self.is_over.store(true, Ordering::Relaxed))
    }

    /// What it says next; None: it has ended, or what it says is nonsense.
    async fn next(&self) -> Option<(Arc<Destination>, u32)> {
        let mut message = [0; 16];
        // Descriptors that it attaches are not taken.
        let received = self.control.recv(&mut message).await.ok()?;
        let (kind, client, number) = wire::numbers(message.get(..received)?)?;
        let destination = self.destinations().get(&client).cloned()?;
        (kind == wire::WANTED).then_some((destination, number?))
    }
}

/// Gives a process the connections that it wants, until it ends.
async fn hear(shared: Arc<Shared>, keeper: mpsc::Sender<()>) {
    let mut connecting = JoinSet::new();
    while let Some((destination, number)) = shared.next().await {
        while connecting.try_join_next().is_some() {}
        if connecting.len() >= MAX_CONNECTING {
            break;
        }
        let shared = Arc::clone(&shared);
        connecting.spawn(async move {
            let socket = destination.connect().await;
            let kind = if socket.is_some() { wire::SOCKET } else { wire::NO_SOCKET };
            // It has ended: who asked it sees that.
            let _ = shared.send(kind, number, socket).await;
        });
    }
    shared.is_over.store(true, Ordering::Relaxed);
    // Nobody may be left to hear it.
    let _ = keeper.send(());
}

/// The thread of a process: starts it, and sees it end.
fn keep(
    control: OwnedFd,
    memory: OwnedFd,
    started: oneshot::Sender<io::Result<()>>,
    over: &mpsc::Receiver<()>,
) {
    let worker = match start(control, memory) {
        Ok(worker) => worker,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(())).is_err() {
        return;
    }
    // Without a word, the pull has ended: it is killed.
    if over.recv().is_ok() {
        drop(worker);
        // Log: A registry has crashed it or taken it over, or memory is short. Its requests are repeated by another one.
        // Do: If it lasts: find out which registry it is (`pulling` lines before it), and report it.
        tracing::warn!(
            "the process that asks registries for a pull has ended, or was ended for what it said"
        );
    }
}

fn start(control: OwnedFd, memory: OwnedFd) -> io::Result<Worker> {
    Worker::start(&PROGRAM, File::open("/dev/null")?.into(), memory, control)
}

/// A pair of sockets that do not block.
fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// Bytes to be read by another process.
fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("registry", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// The system's roots; none is no error: plain http is left.
async fn system_roots() -> Vec<u8> {
    let read = tokio::task::spawn_blocking(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::debug!(%error, "a root certificate of the system cannot be read");
        }
        wire::encode_roots(&found.certs)
    });
    read.await.unwrap_or_else(|_| wire::encode_roots::<Vec<u8>>(&[]))
}

/// What the process says, as far as it is not a stream.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let _ = wire::numbers(data);
    if let Some((status, headers)) = wire::decode_head(data) {
        let said = wire::encode_head(status, &headers);
        assert!(said.is_none_or(|said| wire::decode_head(&said) == Some((status, headers))), "said again");
    }
}

#[cfg(test)]
mod tests;
