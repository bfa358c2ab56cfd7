//! Entry points for fuzzing. See [`crate::streaming::fuzz`].

use super::client::Deflater;
use super::frame::{self, HEADER_BYTES, Header, Kind};
use super::headers::{self, Inflater};
use super::{Limits, Stream, open};
use bytes::Bytes;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Small, so that they are met.
const LIMITS: Limits =
    Limits { streams: 4, stream_bytes: 256, held_bytes: 512, idle: Duration::from_secs(3600) };
/// The buffer between client and server.
const DUPLEX_BYTES: usize = 512;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("an asynchronous runtime")
});

/// Blocks of one connection, each preceded by its length.
pub(in crate::streaming) fn blocks(mut data: &[u8]) {
    let mut inflater = Inflater::new();
    while let Some((length, rest)) = data.split_first() {
        let (block, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        // No block follows an error.
        if inflater.block(block).is_err() {
            return;
        }
        data = rest;
    }
}

/// The unpacked content of a block.
pub(in crate::streaming) fn headers(data: &[u8]) {
    if let Ok(headers) = headers::parse(data) {
        for name in ["streamtype", "port", "requestid", ""] {
            let _ = headers.get(name);
        }
    }
}

/// Frames with headers that a client could send: a byte for the kind, one for flags, one for the stream, one for the
/// content.
pub(in crate::streaming) fn frames(data: &[u8]) -> Vec<u8> {
    const NAMES: [&str; 6] = ["streamtype", "port", "requestid", "error", "data", "80"];
    let mut deflater = Deflater::new();
    let mut bytes = Vec::new();
    for op in data.chunks_exact(4) {
        let &[kind, flags, id, seed] = op else { return bytes };
        let id = u32::from(id).to_be_bytes();
        let name = |n: u8| NAMES[usize::from(n) % NAMES.len()];
        let mut block =
            || deflater.block(&[(name(seed), name(seed / 7)), (name(seed / 11), name(seed / 13))]);
        let payload = match kind % 10 {
            0 => {
                bytes.extend(frame::data(u32::from_be_bytes(id), flags, 3 * usize::from(seed)));
                bytes.extend(std::iter::repeat_n(seed, 3 * usize::from(seed)));
                continue;
            }
            1 => [&id[..], &[0; 6], &block()].concat(),
            2 | 8 => [&id[..], &block()].concat(),
            6 => id.to_vec(),
            _ => [&id[..], &[0, 0, 0, seed]].concat(),
        };
        let [.., a, b, c] = payload.len().to_be_bytes();
        bytes.extend([0x80, 3, 0, kind % 10, flags, a, b, c]);
        bytes.extend(payload);
    }
    bytes
}

/// A whole connection: the client sends `sent`, ends, and reads the answers. The streams' owner reads, answers, or
/// drops them.
pub(in crate::streaming) fn connection(sent: Vec<u8>) {
    RUNTIME.block_on(async {
        let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
        let (reading, writing) = tokio::io::split(ours);
        // The first of it came with the handshake.
        let (early, late) = sent.split_at(sent.len().min(100));
        let accept = |headers: &super::Headers| headers.get("port") != Some("error");
        let mut server =
            open(Box::new(reading), Box::new(writing), Bytes::copy_from_slice(early), LIMITS, None, accept);
        let (their_reading, their_writing) = tokio::io::split(theirs);
        let client = async { tokio::join!(send(their_writing, late.to_vec()), receive(their_reading)) };
        let owner = async {
            let mut streams = JoinSet::new();
            while let Some(stream) = server.accept().await {
                assert!(stream.id % 2 == 1 && server.open_streams() <= LIMITS.streams);
                streams.spawn(own(stream));
            }
            let _ = server.ended().await;
            // Each finds its end by itself.
            while streams.join_next().await.is_some() {}
            assert_eq!(server.open_streams(), 0);
            drop(server);
        };
        tokio::join!(client, owner);
    });
}

/// Handles a stream as its id says.
async fn own(mut stream: Stream) {
    if stream.id.is_multiple_of(3) {
        return;
    }
    while let Ok(Some(data)) = stream.reader.next().await {
        assert!(!data.is_empty() && data.len() <= LIMITS.stream_bytes);
        if !stream.id.is_multiple_of(5) && stream.writer.send(&data).await.is_err() {
            return;
        }
    }
    let _ = stream.writer.finish().await;
}

async fn send(mut writing: WriteHalf<DuplexStream>, bytes: Vec<u8>) {
    // The server may have had enough.
    let _ = writing.write_all(&bytes).await;
    let _ = writing.shutdown().await;
}

/// The server sends whole frames, of the kinds that it may send.
async fn receive(mut reading: ReadHalf<DuplexStream>) {
    let (mut all, mut inflater) = (Vec::new(), Inflater::new());
    let _ = reading.read_to_end(&mut all).await;
    let mut left = &all[..];
    while let Some((header, rest)) = left.split_first_chunk::<HEADER_BYTES>() {
        let header = frame::parse(*header).expect("a frame");
        let (Header::Control { length, .. } | Header::Data { length, .. }) = header;
        // The connection's end may truncate the last one.
        let Some((payload, rest)) = rest.split_at_checked(length) else { return };
        match header {
            Header::Data { stream, .. } => assert!(stream % 2 == 1),
            Header::Control { kind: Kind::SynReply, .. } => {
                assert_eq!(inflater.block(&payload[4..]).expect("a block"), super::Headers::default());
            }
            Header::Control { kind, .. } => {
                assert!(
                    matches!(kind, Kind::RstStream | Kind::Ping | Kind::GoAway | Kind::Settings),
                    "{kind:?}"
                );
            }
        }
        left = rest;
    }
}
