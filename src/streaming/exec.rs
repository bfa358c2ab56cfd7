//! Exec and attach over their two carriers: the role of each stream or channel, and how the end is reported.

use super::backend::{Backend, Stdio};
use super::context::{Context, LINGER};
use super::protocol::Channels;
use super::registry::Meter;
use super::session::{Ends, Outputs, Wanted, Wires, run};
use super::socket::Socket;
use super::spdy::{self, Connection, Limits, Stream, StreamWriter};
use super::websocket::{self, Incoming, Multiplex};
use super::wires::{Input, Output};
use bytes::Bytes;

/// Streams of one connection: the protocol has five, and an unknown one is answered and dropped.
const MAX_STREAMS: usize = 8;
/// Bytes held for one stream whose process does not read; the same for all together.
const STREAM_BYTES: usize = 64 << 10;

/// WebSocket channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a session over SPDY.
pub(super) async fn over_spdy<B: Backend>(
    context: &Context<B>,
    socket: Socket,
    early: Bytes,
    wanted: Wanted,
    channels: Channels,
    meter: &Meter,
) {
    let limits = Limits {
        streams: MAX_STREAMS,
        stream_bytes: STREAM_BYTES,
        held_bytes: 2 * STREAM_BYTES,
        idle: context.settings.idle,
    };
    let hangup = socket.hangup();
    let (reading, writing) = socket.into_halves();
    let mut connection = spdy::open(reading, writing, early, limits, hangup, |_| true);
    let gathered =
        tokio::time::timeout(context.settings.creation, gather(&mut connection, wanted.stdio(), channels));
    let Ok(Some(Gathered { wires, outputs, error, kept })) = gathered.await else {
        tracing::debug!("a client did not open its streams");
        return connection.close(LINGER).await;
    };
    let ends = Ends {
        gone: async {
            if let Err(error) = connection.ended().await {
                tracing::debug!(%error, "a session's connection ended");
            }
        },
        ending: context.ending(),
    };
    let verdict = run(&*context.backend, wanted, wires, &outputs, ends, context.settings.quiet, meter).await;
    let Some(verdict) = verdict else { return };
    let last = async {
        for output in [&outputs.stdout, &outputs.stderr].into_iter().flatten() {
            output.send_last(&[]).await?;
        }
        error.send_last(&verdict.bytes(channels.status)).await?;
        for writer in &kept {
            // Ended, not reset: a client would show its user a reset.
            let _ = writer.finish().await;
        }
        Ok::<_, super::wires::Lost>(())
    };
    // A client that has stopped reading had its time.
    let told = tokio::select! {
        told = last => told.is_ok(),
        _ = connection.ended() => false,
    };
    if told {
        drop((outputs, error, kept));
        connection.close(LINGER).await;
    }
}

struct Gathered {
    wires: Wires,
    outputs: Outputs,
    error: Output,
    /// Our halves of the streams that only the client sends on.
    kept: Vec<StreamWriter>,
}

/// Waits for the streams that the request announced. None if the client is gone.
async fn gather(connection: &mut Connection, stdio: Stdio, channels: Channels) -> Option<Gathered> {
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let with_resize = stdio.tty && channels.resize;
    loop {
        let complete = error.is_some()
            && stdin.is_some() == stdio.stdin
            && stdout.is_some() == stdio.stdout
            && stderr.is_some() == stdio.stderr
            && resize.is_some() == with_resize;
        if complete {
            break;
        }
        let stream = connection.accept().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let place: &mut Option<Stream> = match kind.as_str() {
            "stdin" if stdio.stdin => &mut stdin,
            "stdout" if stdio.stdout => &mut stdout,
            "stderr" if stdio.stderr => &mut stderr,
            "error" => &mut error,
            "resize" if with_resize => &mut resize,
            _ => {
                tracing::debug!(kind, "a client opened a stream that was not asked for");
                continue;
            }
        };
        place.get_or_insert(stream);
    }
    let output = |stream: Stream| Output::Spdy(stream.writer);
    let mut kept = Vec::new();
    let mut input = |stream: Stream| {
        kept.push(stream.writer);
        Input::Spdy(stream.reader)
    };
    let wires = Wires { stdin: stdin.map(&mut input), resize: resize.map(&mut input) };
    let outputs = Outputs { stdout: stdout.map(output), stderr: stderr.map(output) };
    Some(Gathered { wires, outputs, error: output(error?), kept })
}

/// Serves a session over WebSocket.
pub(super) async fn over_websocket<B: Backend>(
    context: &Context<B>,
    socket: Socket,
    early: Bytes,
    wanted: Wanted,
    channels: Channels,
    meter: &Meter,
) {
    let stdio = wanted.stdio();
    let hangup = socket.hangup();
    let stream = websocket::accept(socket, &early);
    let mut incoming = Incoming::new();
    let stdin = stdio.stdin.then(|| Input::WebSocket(incoming.channel(STDIN)));
    let resize = (stdio.tty && channels.resize).then(|| Input::WebSocket(incoming.channel(RESIZE)));
    let mut multiplex = Multiplex::new(stream, incoming, channels, hangup, context.settings.idle);
    let (stdout, stderr, error) =
        (multiplex.channel(STDOUT), multiplex.channel(STDERR), multiplex.channel(ERROR));
    // Clients take this for the sign that the session is up.
    let first = [(stdio.stdout, &stdout), (stdio.stderr, &stderr), (true, &error)];
    if let Some((_, channel)) = first.into_iter().find(|(there, _)| *there)
        && channel.send(&[]).await.is_err()
    {
        return;
    }
    let outputs = Outputs {
        stdout: stdio.stdout.then_some(Output::WebSocket(stdout)),
        stderr: stdio.stderr.then_some(Output::WebSocket(stderr)),
    };
    let ends = Ends { gone: multiplex.gone(), ending: context.ending() };
    let wires = Wires { stdin, resize };
    let verdict = run(&*context.backend, wanted, wires, &outputs, ends, context.settings.quiet, meter).await;
    let Some(verdict) = verdict else { return };
    let (error, words) = (Output::WebSocket(error), verdict.bytes(channels.status));
    let told = tokio::select! {
        told = error.send_last(&words) => told.is_ok(),
        () = multiplex.gone() => false,
    };
    if told {
        multiplex.close(LINGER).await;
    }
}
