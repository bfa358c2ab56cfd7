//! The HTTP listener: `/metrics` in Prometheus' text format and `/healthz`. Knows nothing else.
//!
//! A connection serves one request within one deadline, whatever its client does. When all places are taken, the oldest
//! connection is closed, so clients that do not read never block `/healthz`. Figures are gathered on a blocking thread,
//! once for all waiting requests.

use crate::host::doorway::Doorway;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// Time from a connection's accept to the last byte that the client takes: a scraper's limit is 10 s.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once; beyond that the oldest is closed.
const MAX_CONNECTIONS: usize = 32;
/// Head of a request, bytes: the smallest that hyper takes.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Headers of a request; scrapers send some ten.
const MAX_HEADERS: usize = 64;
/// Maximum age of a page that is reused: a client that asks without pause causes ten gatherings a second, and neither a
/// person nor a scraper notices the difference.
const PAGE_AGE: Duration = Duration::from_millis(100);
/// Maximum age of the shared page for one of many clients, so that their number costs neither memory nor time.
const CROWD_AGE: Duration = Duration::from_secs(1);

/// Why the listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken or wrong.
    #[error("listen on metrics.address {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Opens the listener and serves until the task is dropped.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: &str,
    registry: Registry,
) -> Result<impl Future<Output = ()> + use<>, MetricsError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| MetricsError::Listen { address: address.to_owned(), source })?;
    Ok(accept(listener, registry, CONNECTION_LIMIT))
}

async fn accept(listener: TcpListener, registry: Registry, limit: Duration) {
    let doorway = Doorway::new(MAX_CONNECTIONS);
    let page = Arc::new(Page { registry, doorway: doorway.clone(), last: Arc::default() });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (place, pushed) = doorway.enter().await;
                let page = page.clone();
                tokio::spawn(async move {
                    let _place = place;
                    tokio::select! {
                        // First: a pending request is answered, however many wait.
                        biased;
                        () = connection(stream, page) => {}
                        () = pushed.out() => {}
                        () = tokio::time::sleep(limit) => {}
                    }
                });
            }
            Err(error) => doorway.after_failed_accept("metrics.address", &error).await,
        }
    }
}

async fn connection(stream: TcpStream, page: Arc<Page>) {
    let service = service_fn(move |request| {
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_LIMIT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    // A client that disconnects early is no error.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

/// The figures as text.
struct Page {
    registry: Registry,
    doorway: Doorway,
    /// Locked while gathering.
    last: Arc<Mutex<Option<Made>>>,
}

struct Made {
    at: Instant,
    text: Bytes,
}

impl Page {
    async fn text(&self) -> Result<Bytes, String> {
        let came = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        let age = if self.doorway.is_crowded() { CROWD_AGE } else { PAGE_AGE };
        // Or it was made while this one waited.
        if let Some(made) = last.as_ref().filter(|made| made.at >= came || made.at.elapsed() < age) {
            return Ok(made.text.clone());
        }
        let registry = self.registry.clone();
        // It takes the lock along: that its client goes away has no other gathering begin beside it.
        let gathering = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut text).map_err(|e| e.to_string())?;
            let text = Bytes::from(text);
            *last = Some(Made { at: Instant::now(), text: text.clone() });
            Ok(text)
        });
        gathering.await.unwrap_or_else(|_| Err("the figures could not be gathered".to_owned()))
    }
}

async fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match page.text().await {
            Ok(text) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.into()),
        },
        (&Method::GET, "/healthz") => reply(StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n")),
        _ => {
            let words = Bytes::from_static(b"try /metrics or /healthz\n");
            reply(StatusCode::NOT_FOUND, "text/plain", words)
        }
    }
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{IntCounterVec, Opts};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A listener whose page exceeds the socket buffers.
    async fn listener(limit: Duration) -> SocketAddr {
        let registry = Registry::new();
        let many = IntCounterVec::new(Opts::new("many", "Figures."), &["number"]).unwrap();
        registry.register(Box::new(many.clone())).unwrap();
        for number in 0..100_000 {
            many.with_label_values(&[&format!("{number:0100}")]).inc();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, registry, limit));
        address
    }

    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        socket
    }

    async fn rest(mut socket: TcpStream) -> Vec<u8> {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        // A reset is an end, too.
        let _ = read.expect("the listener does not answer");
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clients_that_never_read_do_not_silence_the_listener() {
        // Longer than the test, so that no deadline expires.
        let address = listener(10 * PATIENCE).await;
        let mut silent = Vec::new();
        for number in 0..3 * MAX_CONNECTIONS {
            silent.push(match number % 2 {
                0 => ask(address, "/metrics").await,
                _ => TcpStream::connect(address).await.unwrap(),
            });
        }
        let answer = rest(ask(address, "/healthz").await).await;
        assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"ok\n"));
        let answer = rest(ask(address, "/metrics").await).await;
        assert!(answer.len() > 10 << 20, "{}", answer.len());
        drop(silent);
    }

    /// Figures that take as long as the test says.
    struct Slow {
        desc: Vec<prometheus::core::Desc>,
        begun: std::sync::mpsc::Sender<()>,
        go: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl prometheus::core::Collector for Slow {
        fn desc(&self) -> Vec<&prometheus::core::Desc> {
            self.desc.iter().collect()
        }

        fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
            self.begun.send(()).unwrap();
            self.go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            Vec::new()
        }
    }

    // One worker: gathering on it would block all others.
    #[tokio::test]
    async fn figures_are_gathered_once_for_all_who_wait_and_hold_nobody_up() {
        let (begun, told) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel();
        let desc =
            prometheus::core::Desc::new("slow".into(), "x".into(), Vec::new(), Default::default()).unwrap();
        let registry = Registry::new();
        registry
            .register(Box::new(Slow { desc: vec![desc], begun, go: std::sync::Mutex::new(wait) }))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, registry, 10 * PATIENCE));
        let mut waiting = vec![ask(address, "/metrics").await];
        tokio::time::timeout(PATIENCE, async {
            while told.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        for _ in 0..6 {
            waiting.push(ask(address, "/metrics").await);
        }
        // One that goes away does not have another gathering begin.
        waiting.remove(0);
        assert!(rest(ask(address, "/healthz").await).await.ends_with(b"ok\n"));
        assert!(told.try_recv().is_err(), "one at a time");
        go.send(()).unwrap();
        for socket in waiting {
            assert!(rest(socket).await.starts_with(b"HTTP/1.1 200 "));
        }
        assert!(told.try_recv().is_err(), "they shared it");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_connection_ends_after_one_answer_and_at_its_deadline() {
        let address = listener(Duration::from_millis(300)).await;
        assert!(
            rest(ask(address, "/healthz").await).await.ends_with(b"ok\n"),
            "it is closed after the answer"
        );
        assert!(rest(TcpStream::connect(address).await.unwrap()).await.is_empty());
        // A client that requests and reads nothing until the deadline does not get everything.
        let mut slow = ask(address, "/metrics").await;
        let ended = async {
            // The server's end is seen by what cannot be written to it any more.
            while slow.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
    }
}
