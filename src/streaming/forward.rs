//! Port-forward over SPDY: each TCP connection of the client is a pair of streams. A pair's state lives only as long as
//! the pair; a connection may have thousands in succession.

use super::backend::Backend;
use super::context::{Context, LINGER};
use super::registry::Meter;
use super::socket::Socket;
use super::spdy::{self, Headers, Limits, Reading, SpdyError, Stream, StreamReader, StreamWriter, Writing};
use super::tunnel::Tunnel;
use super::websocket;
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Streams at once: 2048 forwarded connections, each of which also needs a descriptor.
const MAX_STREAMS: usize = 4096;
/// Bytes held for one stream whose pod does not read. A full stream blocks the whole connection: there is no other way
/// to slow a client down.
const STREAM_BYTES: usize = 256 << 10;
/// The same for all streams of a connection.
const HELD_BYTES: usize = 4 << 20;

/// Serves a client over its socket.
pub(super) async fn over_spdy<B: Backend>(
    context: &Context<B>,
    socket: Socket,
    early: Bytes,
    sandbox: &str,
    meter: &Meter,
) {
    let hangup = socket.hangup();
    let (reading, writing) = socket.into_halves();
    serve(context, (reading, writing), early, hangup, sandbox, meter).await;
}

/// Serves a client over SPDY inside of a WebSocket.
pub(super) async fn over_tunnel<B: Backend>(
    context: &Context<B>,
    socket: Socket,
    early: Bytes,
    sandbox: &str,
    meter: &Meter,
) {
    let hangup = socket.hangup();
    let tunnel = Tunnel::new(websocket::accept(socket, &early));
    let (reading, writing) = tokio::io::split(tunnel);
    serve(context, (Box::new(reading), Box::new(writing).into()), Bytes::new(), hangup, sandbox, meter).await;
}

/// Whether a stream can be half of a pair; otherwise it is refused.
fn acceptable(headers: &Headers) -> bool {
    kind(headers).is_some() && port(headers).is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

fn kind(headers: &Headers) -> Option<Kind> {
    match headers.get("streamtype")? {
        "error" => Some(Kind::Error),
        "data" => Some(Kind::Data),
        _ => None,
    }
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// The key that joins two streams. Clients older than request ids open the data stream right after its error stream.
fn request_id(stream: &Stream, kind: Kind) -> String {
    match (stream.headers.get("requestid"), kind) {
        (Some(id), _) => id.to_owned(),
        (None, Kind::Error) => stream.id.to_string(),
        (None, Kind::Data) => stream.id.saturating_sub(2).to_string(),
    }
}

/// The first half of a pair.
struct Waiting {
    kind: Kind,
    stream: Stream,
    until: Instant,
}

async fn serve<B: Backend>(
    context: &Context<B>,
    (reading, writing): (Reading, Writing),
    early: Bytes,
    hangup: Option<spdy::Hangup>,
    sandbox: &str,
    meter: &Meter,
) {
    let idle = context.settings.idle;
    let limits = Limits { streams: MAX_STREAMS, stream_bytes: STREAM_BYTES, held_bytes: HELD_BYTES, idle };
    let mut connection = spdy::open(reading, writing, early, limits, hangup, acceptable);
    let mut waiting: HashMap<String, Waiting> = HashMap::new();
    // Everything that runs here ends with this function.
    let mut pairs = JoinSet::new();
    let mut ending = std::pin::pin!(context.ending());
    loop {
        let next = waiting.values().map(|half| half.until).min();
        tokio::select! {
            stream = connection.accept() => {
                let Some(stream) = stream else { return };
                let Some(kind) = kind(&stream.headers) else { continue };
                let id = request_id(&stream, kind);
                match waiting.remove(&id) {
                    None => {
                        let until = Instant::now() + context.settings.creation;
                        waiting.insert(id, Waiting { kind, stream, until });
                    }
                    Some(first) if first.kind == kind => {
                        pairs.spawn(refuse(stream, kind, format!("request {id} already has a stream of this type")));
                        waiting.insert(id, first);
                    }
                    Some(first) => {
                        let (data, error) = match kind {
                            Kind::Data => (stream, first.stream),
                            Kind::Error => (first.stream, stream),
                        };
                        pairs.spawn(pair(context.backend.clone(), sandbox.to_owned(), data, error, meter.clone()));
                    }
                }
            }
            _ = pairs.join_next(), if !pairs.is_empty() => {}
            () = until(next) => {
                let now = Instant::now();
                for (id, half) in waiting.extract_if(|_, half| half.until <= now) {
                    let words = format!("request {id}: its other stream did not come in time");
                    pairs.spawn(refuse(half.stream, half.kind, words));
                }
            }
            () = &mut ending => break,
        }
    }
    pairs.shutdown().await;
    connection.close(LINGER).await;
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Writes the reason to an error stream; a data stream carries no message.
async fn refuse(stream: Stream, kind: Kind, words: String) {
    tracing::debug!(words, "port-forward");
    if kind == Kind::Error {
        // A client that is gone needs no message.
        let _ = stream.writer.send(words.as_bytes()).await;
        let _ = stream.writer.finish().await;
    }
}

/// One forwarded connection from connect to close.
async fn pair<B: Backend>(backend: Arc<B>, sandbox: String, data: Stream, error: Stream, meter: Meter) {
    let Some(port) = port(&data.headers) else { return };
    let Stream { reader, writer, .. } = data;
    let outcome = tokio::select! {
        connected = backend.port_forward(&sandbox, port) => match connected {
            Ok(tcp) => {
                carry(tcp, reader, &writer, &meter).await;
                Ok(())
            }
            Err(cause) => Err(cause),
        },
        () = writer.until_reset() => return,
    };
    if let Err(cause) = outcome {
        let words = format!("error forwarding port {port} to pod {sandbox}, uid : {cause}");
        tracing::debug!(words, "port-forward");
        let _ = error.writer.send(words.as_bytes()).await;
    }
    // An empty error stream means success.
    let _ = error.writer.finish().await;
}

/// Carries bytes both ways until both have ended, or one breaks off.
async fn carry(tcp: TcpStream, mut reader: StreamReader, writer: &StreamWriter, meter: &Meter) {
    let (tcp_reader, mut tcp_writer) = tcp.into_split();
    let inward = async {
        let outcome = carry_in(&mut reader, &mut tcp_writer, meter).await;
        if outcome.is_err() {
            // The other direction finds the end of its stream or of its socket.
            let _ = rustix::net::shutdown(tcp_reader.as_ref(), rustix::net::Shutdown::Both);
            writer.reset();
        }
    };
    let outward = async {
        let outcome = carry_out(&tcp_reader, writer, meter).await;
        if outcome.is_err() {
            let _ = rustix::net::shutdown(tcp_reader.as_ref(), rustix::net::Shutdown::Both);
            writer.reset();
        }
    };
    tokio::join!(inward, outward);
}

async fn carry_in(
    reader: &mut StreamReader,
    tcp: &mut OwnedWriteHalf,
    meter: &Meter,
) -> Result<(), SpdyError> {
    while let Some(data) = reader.next().await? {
        meter.came(data.len());
        tcp.write_all(&data).await?;
    }
    Ok(tcp.shutdown().await?)
}

async fn carry_out(tcp: &OwnedReadHalf, writer: &StreamWriter, meter: &Meter) -> Result<(), SpdyError> {
    loop {
        // Cancels only the wait: a frame once begun must be completed.
        tokio::select! {
            ready = tcp.readable() => ready?,
            () = writer.until_reset() => return Err(SpdyError::Reset),
        }
        match writer.send_spliced(tcp.as_ref()).await? {
            Ok(0) => return writer.finish().await,
            Ok(n) => meter.went(n),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
