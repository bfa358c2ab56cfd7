//! Port-forward over WebSocket channels: two per port of the CRI call, one TCP connection each. For old clients.

use super::backend::{Backend, PortForwardRequest};
use super::context::{Context, LINGER};
use super::protocol::Channels;
use super::registry::Meter;
use super::socket::Socket;
use super::spdy::InboxReader;
use super::websocket::{self, Channel, Incoming, Multiplex};
use super::wires::Lost;
use bytes::Bytes;
use futures_util::future::join_all;
use std::io;
use tokio::io::AsyncWriteExt as _;

/// Ports of one connection: two channels each, numbered by one byte.
pub const MAX_PORTS: usize = 127;

/// Serves a client.
pub(super) async fn over_websocket<B: Backend>(
    context: &Context<B>,
    socket: Socket,
    early: Bytes,
    request: &PortForwardRequest,
    channels: Channels,
    meter: &Meter,
) {
    let PortForwardRequest { sandbox, ports } = request;
    let hangup = socket.hangup();
    let stream = websocket::accept(socket, &early);
    let mut incoming = Incoming::new();
    let numbered: Vec<_> = ports.iter().copied().zip((0..=u8::MAX).step_by(2)).take(MAX_PORTS).collect();
    let inputs: Vec<_> = numbered.iter().map(|(_, number)| incoming.channel(*number)).collect();
    let mut multiplex = Multiplex::new(stream, incoming, channels, hangup, context.settings.idle);
    let mut forwards = Vec::new();
    for ((port, number), input) in numbered.into_iter().zip(inputs) {
        let (data, error) = (multiplex.channel(number), multiplex.channel(number + 1));
        forwards.push(forward(context, sandbox, port, (data, error), input, meter));
    }
    let ended = tokio::select! {
        _ = join_all(forwards) => true,
        () = multiplex.gone() => false,
        () = context.ending() => true,
    };
    if ended {
        multiplex.close(LINGER).await;
    }
}

async fn forward<B: Backend>(
    context: &Context<B>,
    sandbox: &str,
    port: u16,
    (data, error): (Channel, Channel),
    input: InboxReader,
    meter: &Meter,
) -> Result<(), Lost> {
    // Which port a channel is for.
    data.send(&port.to_le_bytes()).await?;
    error.send(&port.to_le_bytes()).await?;
    let tcp = match context.backend.port_forward(sandbox, port).await {
        Ok(tcp) => tcp,
        Err(cause) => {
            let words = format!("error forwarding port {port} to pod {sandbox}, uid : {cause}");
            return error.send(words.as_bytes()).await;
        }
    };
    let (reading, mut writing) = tcp.into_split();
    let inward = async {
        let mut input = input;
        while let Ok(Some(piece)) = input.next().await {
            meter.came(piece.len());
            if writing.write_all(&piece).await.is_err() {
                break;
            }
        }
        // This protocol cannot end one direction: only the pod ends a connection.
        std::future::pending::<()>().await;
    };
    let outward = async {
        loop {
            if reading.readable().await.is_err() {
                return Ok(());
            }
            match data.send_from(|buffer| reading.try_read(buffer)).await? {
                Ok(0) => return Ok(()),
                Ok(n) => meter.went(n),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return Ok(()),
            }
        }
    };
    tokio::select! {
        () = inward => Ok(()),
        outcome = outward => outcome,
    }
}
