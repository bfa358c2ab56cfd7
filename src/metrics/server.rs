//! The HTTP listener: `/metrics` in Prometheus' text format and `/healthz`. Knows nothing else.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Time for a client to send its request's head: a scraper sends it at once.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Scrapes at once; more are left waiting in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16;

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
    Ok(accept(listener, registry))
}

async fn accept(listener: TcpListener, registry: Registry) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let registry = registry.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let response = answer(&request, &registry);
                async { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_WAIT);
            // A client that breaks off is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = Vec::new();
            let encoder = TextEncoder::new();
            match encoder.encode(&registry.gather(), &mut text) {
                Ok(()) => reply(StatusCode::OK, encoder.format_type(), text),
                Err(error) => {
                    reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string().into())
                }
            }
        }
        (&Method::GET, "/healthz") => reply(StatusCode::OK, "text/plain", b"ok\n".to_vec()),
        _ => reply(StatusCode::NOT_FOUND, "text/plain", b"try /metrics or /healthz\n".to_vec()),
    }
}

fn reply(status: StatusCode, kind: &str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    if let Ok(kind) = http::HeaderValue::from_str(kind) {
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    }
    response
}
