//! The HTTP listener: accepts, checks a token, chooses a protocol, upgrades, and passes the socket to a session. One
//! task per connection owns everything of it.

use super::backend::{AttachRequest, Backend, ExecRequest, PortForwardRequest};
use super::context::{Context, Settings};
use super::metrics::StreamingMetrics;
use super::protocol::{self, Channels, Mismatch};
use super::registry::{OpenSession, Sessions};
use super::session::Wanted;
use super::socket::Socket;
use super::tls::{Certificates, TlsError};
use super::tokens::{Ticket, TokenError, Tokens};
use super::{exec, forward, forward_channels};
use crate::config;
use crate::host::doorway::{Doorway, Place, Pushed};
use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use podwright_sys::memory;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Handshakes at once; beyond that the oldest without a valid token is closed.
const MAX_HANDSHAKES: usize = 256;
/// Head of a request, bytes: the smallest that hyper takes; clients send below 1 KiB.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Headers of a request; clients send below ten.
const MAX_HEADERS: usize = 64;
/// Connections at once whose end makes returning the allocator's pages worthwhile; fewer leave pages that are reused.
const CROWD: usize = 32;

/// Why the server cannot start, or gives no URL.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The address is taken or wrong.
    #[error("listen on streaming.address {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Gives out URLs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Urls {
    base: Arc<str>,
    tokens: Tokens,
}

impl Urls {
    /// For one exec.
    ///
    /// # Errors
    /// If too many URLs are unused, or the command is too long.
    pub fn exec(&self, request: ExecRequest) -> Result<String, StreamingError> {
        self.url(Ticket::Exec(request))
    }

    /// For one attach.
    ///
    /// # Errors
    /// If too many URLs are unused.
    pub fn attach(&self, request: AttachRequest) -> Result<String, StreamingError> {
        self.url(Ticket::Attach(request))
    }

    /// For one port-forward connection.
    ///
    /// # Errors
    /// If too many URLs are unused.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, StreamingError> {
        self.url(Ticket::PortForward(request))
    }

    fn url(&self, ticket: Ticket) -> Result<String, StreamingError> {
        let kind = ticket.kind();
        Ok(format!("{}/{kind}/{}", self.base, self.tokens.issue(ticket)?))
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    urls: Urls,
    sessions: Sessions,
    address: SocketAddr,
    ending: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Opens the listener and serves. `quiet`: how long output that a child of an ended command holds open may be silent.
    ///
    /// # Errors
    /// If the listener cannot be opened, or there is no certificate.
    pub async fn start<B: Backend>(
        config: &config::Streaming,
        quiet: Duration,
        backend: B,
        metrics: StreamingMetrics,
    ) -> Result<Self, StreamingError> {
        Self::start_with(config, Settings::of(config, quiet), backend, metrics).await
    }

    /// The same with other durations.
    pub(super) async fn start_with<B: Backend>(
        config: &config::Streaming,
        settings: Settings,
        backend: B,
        metrics: StreamingMetrics,
    ) -> Result<Self, StreamingError> {
        let failed = |source| StreamingError::Listen { address: config.address.clone(), source };
        let listener = TcpListener::bind(&config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        // Clients are on this node; a wildcard is no address to connect to.
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let address = SocketAddr::new(ip, address.port());
        let certificates = match config.tls {
            true => {
                let files = (config.cert_file.clone(), config.key_file.clone());
                let files = Some(files).filter(|(cert, _): &(PathBuf, PathBuf)| !cert.as_os_str().is_empty());
                let names = vec!["localhost".to_owned(), ip.to_string()];
                Some(Arc::new(Certificates::new(files, names, settings.look)?))
            }
            false => None,
        };
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let urls =
            Urls { base: format!("{scheme}://{address}").into(), tokens: Tokens::new(settings.lifetime) };
        let sessions = Sessions::default();
        let (ending, watch) = watch::channel(false);
        let context = Arc::new(Context {
            backend: Arc::new(backend),
            metrics,
            sessions: sessions.clone(),
            settings,
            tokens: urls.tokens.clone(),
            places: Arc::new(Semaphore::new(config.max_sessions)),
            ending: watch,
        });
        let task = tokio::spawn(accept(context, listener, certificates));
        Ok(Self { urls, sessions, address, ending, task })
    }

    /// Source of URLs.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Open sessions.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all sessions with a message to their clients, for at most `limit`.
    pub async fn end(mut self, limit: Duration) {
        // Without open sessions nothing listens.
        let _ = self.ending.send(true);
        let _ = tokio::time::timeout(limit, &mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<B: Backend>(
    context: Arc<Context<B>>,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
) {
    let doorway = Doorway::new(MAX_HANDSHAKES);
    // Their end is the server's.
    let mut connections = JoinSet::new();
    // The maximum since pages were last returned.
    let mut crowd = 0;
    let mut ending = std::pin::pin!(context.ending());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let place = doorway.enter().await;
                    connections.spawn(serve(context.clone(), stream, certificates.clone(), place));
                    crowd = crowd.max(connections.len());
                }
                Err(error) => doorway.after_failed_accept("streaming.address", &error).await,
            },
            Some(_) = connections.join_next() => {
                while connections.try_join_next().is_some() {}
                if crowd >= CROWD && connections.len() <= crowd / 4 {
                    crowd = connections.len();
                    drop(tokio::task::spawn_blocking(memory::trim));
                }
            }
            () = &mut ending => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A session that may begin.
struct Plan {
    upgrade: OnUpgrade,
    what: What,
    place: OwnedSemaphorePermit,
    open: OpenSession,
}

enum What {
    ExecSpdy(Wanted, Channels),
    ExecWebSocket(Wanted, Channels),
    ForwardSpdy(String),
    ForwardTunnel(String),
    ForwardChannels(PortForwardRequest, Channels),
}

async fn serve<B: Backend>(
    context: Arc<Context<B>>,
    stream: TcpStream,
    certificates: Option<Arc<Certificates>>,
    (door, pushed): (Place, Pushed),
) {
    // Keystrokes are small and must not wait for one another.
    let _ = stream.set_nodelay(true);
    let shake = shake(&context, stream, certificates, &door);
    let shaken = tokio::select! {
        // First: what a client has sent already counts, however full the door is.
        biased;
        shaken = tokio::time::timeout(context.settings.handshake, shake) => shaken,
        () = pushed.out() => {
            context.metrics.refused("crowded");
            return;
        }
    };
    let Ok(Some((plan, socket, early))) = shaken else { return };
    drop(door);
    let Plan { what, place: _place, open, .. } = plan;
    let (context, meter) = (&*context, open.meter());
    match what {
        What::ExecSpdy(wanted, channels) => {
            exec::over_spdy(context, socket, early, wanted, channels, &meter).await
        }
        What::ExecWebSocket(wanted, channels) => {
            exec::over_websocket(context, socket, early, wanted, channels, &meter).await;
        }
        What::ForwardSpdy(sandbox) => forward::over_spdy(context, socket, early, &sandbox, &meter).await,
        What::ForwardTunnel(sandbox) => forward::over_tunnel(context, socket, early, &sandbox, &meter).await,
        What::ForwardChannels(request, channels) => {
            forward_channels::over_websocket(context, socket, early, &request, channels, &meter).await;
        }
    }
}

/// TLS, the request and its answer; None if no session results.
async fn shake<B: Backend>(
    context: &Arc<Context<B>>,
    stream: TcpStream,
    certificates: Option<Arc<Certificates>>,
    door: &Place,
) -> Option<(Plan, Socket, Bytes)> {
    let socket = match certificates {
        Some(certificates) => Socket::Tls(Box::new(certificates.acceptor().accept(stream).await.ok()?)),
        None => Socket::Plain(stream),
    };
    let planned = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let response = match answer(context, request) {
            Ok((plan, response)) => {
                // Its token was good.
                door.leave();
                *planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
                response
            }
            Err(refusal) => *refusal,
        };
        async { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(context.settings.handshake)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    // A client that disconnects early is no error.
    server.serve_connection(TokioIo::new(socket), service).with_upgrades().await.ok()?;
    let mut plan: Plan = planned.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    let upgraded = (&mut plan.upgrade).await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
    Some((plan, parts.io.into_inner(), parts.read_buf))
}

type Answer = Response<Full<Bytes>>;

/// Decides about one request. Looking up a token uses it up.
fn answer<B: Backend>(
    context: &Arc<Context<B>>,
    mut request: Request<Incoming>,
) -> Result<(Plan, Answer), Box<Answer>> {
    let refuse = |reason: &str, status, words: &str| {
        context.metrics.refused(reason);
        Box::new(plain(status, words))
    };
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(refuse("method", StatusCode::METHOD_NOT_ALLOWED, "use GET or POST"));
    }
    let unknown = || refuse("token", StatusCode::NOT_FOUND, "404 page not found");
    let path = request.uri().path().trim_start_matches('/');
    let (kind, token) = path.split_once('/').ok_or_else(unknown)?;
    let Ok(place) = context.places.clone().try_acquire_owned() else {
        let words = "as many sessions are open as streaming.max_sessions allows";
        return Err(refuse("full", StatusCode::SERVICE_UNAVAILABLE, words));
    };
    let ticket = context.tokens.take(kind, token).ok_or_else(unknown)?;
    let websocket = protocol::wants_websocket(request.headers());
    let known = match (&ticket, websocket) {
        (Ticket::PortForward(_), false) => &[protocol::PORT_FORWARD][..],
        (Ticket::PortForward(_), true) => &protocol::FORWARD_WEBSOCKET,
        (Ticket::Exec(_) | Ticket::Attach(_), false) => &protocol::EXEC_SPDY,
        (Ticket::Exec(_) | Ticket::Attach(_), true) => &protocol::EXEC_WEBSOCKET,
    };
    let chosen = match websocket {
        true => protocol::choose_websocket(request.headers(), known),
        false => protocol::choose_spdy(request.headers(), known),
    };
    let chosen = chosen.map_err(|mismatch| match mismatch {
        Mismatch::Missing => {
            refuse("protocol", StatusCode::BAD_REQUEST, "no X-Stream-Protocol-Version was offered")
        }
        Mismatch::None => {
            let words = format!("none of the offered protocols is known; known are {}", known.join(", "));
            let mut refusal = refuse("protocol", StatusCode::FORBIDDEN, &words);
            for name in known.iter().filter(|name| !name.is_empty()) {
                let name = HeaderValue::from_static(name);
                refusal.headers_mut().append(protocol::ACCEPTED_PROTOCOLS, name);
            }
            refusal
        }
    })?;
    let response = match websocket {
        true => websocket_response(request.headers(), chosen),
        false => spdy_response(request.headers(), chosen),
    };
    let response = response.map_err(|words| refuse("upgrade", StatusCode::BAD_REQUEST, words))?;
    let channels = Channels::of(chosen);
    let carried = if websocket { "websocket" } else { protocol::SPDY };
    let open =
        context.sessions.open(&context.metrics, &ticket, format!("{carried} {chosen}").trim_end().to_owned());
    let what = match (ticket, websocket) {
        (Ticket::Exec(exec), false) => What::ExecSpdy(Wanted::Exec(exec), channels),
        (Ticket::Exec(exec), true) => What::ExecWebSocket(Wanted::Exec(exec), channels),
        (Ticket::Attach(attach), false) => What::ExecSpdy(Wanted::Attach(attach), channels),
        (Ticket::Attach(attach), true) => What::ExecWebSocket(Wanted::Attach(attach), channels),
        (Ticket::PortForward(forward), false) => What::ForwardSpdy(forward.sandbox),
        (Ticket::PortForward(forward), true) if chosen == protocol::PORT_FORWARD_TUNNEL => {
            What::ForwardTunnel(forward.sandbox)
        }
        (Ticket::PortForward(forward), true) => What::ForwardChannels(forward, channels),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    Ok((Plan { upgrade, what, place, open }, response))
}

fn switching(upgrade: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

fn spdy_response(headers: &http::HeaderMap, chosen: &'static str) -> Result<Answer, &'static str> {
    if !protocol::wants_spdy(headers) {
        return Err("an upgrade to SPDY/3.1 or websocket is needed");
    }
    let mut response = switching(protocol::SPDY);
    response.headers_mut().insert(protocol::STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    Ok(response)
}

fn websocket_response(headers: &http::HeaderMap, chosen: &'static str) -> Result<Answer, &'static str> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|_| "Sec-WebSocket-Key is malformed")?;
    let mut response = switching("websocket");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok(response)
}

fn plain(status: StatusCode, words: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(format!("{words}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
