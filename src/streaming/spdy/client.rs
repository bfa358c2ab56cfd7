//! A client for tests: compresses header blocks and speaks frames over any socket.

use super::frame::{self, HEADER_BYTES, Header, Kind};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(include_bytes!("dictionary.bin")).unwrap();
        Self(compress)
    }

    pub(crate) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            plain.extend(text.as_bytes());
        }
        self.raw(&plain)
    }

    pub(crate) fn raw(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        self.0.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }
}

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Reply(u32),
    Data(u32, Vec<u8>),
    Fin(u32),
    Rst(u32, u32),
    Ping(u32),
    GoAway(u32, u32),
    Closed,
}

pub(crate) struct Client<S> {
    pub(crate) socket: S,
    pub(crate) deflater: Deflater,
    inflater: super::headers::Inflater,
}

impl Client<DuplexStream> {
    pub(crate) fn new(socket: DuplexStream) -> Self {
        Self::over(socket)
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(socket: S) -> Self {
        Self { socket, deflater: Deflater::new(), inflater: super::headers::Inflater::new() }
    }

    pub(crate) async fn control(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let [.., a, b, c] = payload.len().to_be_bytes();
        let frame = [&[0x80, 3, 0, kind, flags, a, b, c], payload].concat();
        self.socket.write_all(&frame).await.unwrap();
    }

    pub(crate) async fn syn(&mut self, id: u32, headers: &[(&str, &str)]) {
        self.syn_flags(id, 0, headers).await;
    }

    pub(crate) async fn syn_flags(&mut self, id: u32, flags: u8, headers: &[(&str, &str)]) {
        let block = self.deflater.block(headers);
        let payload = [&id.to_be_bytes()[..], &[0; 6], &block].concat();
        self.control(1, flags, &payload).await;
    }

    pub(crate) async fn data(&mut self, id: u32, flags: u8, data: &[u8]) {
        self.socket.write_all(&frame::data(id, flags, data.len())).await.unwrap();
        self.socket.write_all(data).await.unwrap();
    }

    pub(crate) async fn ping(&mut self, id: u32) {
        self.control(6, 0, &id.to_be_bytes()).await;
    }

    /// The next frame; header blocks of replies must unpack and be empty.
    pub(crate) async fn next(&mut self) -> Got {
        let mut header = [0; HEADER_BYTES];
        if self.socket.read_exact(&mut header).await.is_err() {
            return Got::Closed;
        }
        let (header, length) = match frame::parse(header).unwrap() {
            header @ (Header::Control { length, .. } | Header::Data { length, .. }) => (header, length),
        };
        let mut payload = vec![0; length];
        if self.socket.read_exact(&mut payload).await.is_err() {
            return Got::Closed;
        }
        let second = || frame::word(&payload[4..]);
        match header {
            Header::Data { stream, flags, .. } if flags & frame::FIN != 0 => {
                assert!(payload.is_empty(), "our FINs carry nothing");
                Got::Fin(stream)
            }
            Header::Data { stream, .. } => Got::Data(stream, payload),
            Header::Control { kind: Kind::SynReply, .. } => {
                let headers = self.inflater.block(&payload[4..]).unwrap();
                assert_eq!(headers, super::Headers::default());
                Got::Reply(frame::stream_id(&payload))
            }
            Header::Control { kind: Kind::RstStream, .. } => Got::Rst(frame::stream_id(&payload), second()),
            Header::Control { kind: Kind::Ping, .. } => Got::Ping(frame::word(&payload)),
            Header::Control { kind: Kind::GoAway, .. } => Got::GoAway(frame::stream_id(&payload), second()),
            other @ Header::Control { .. } => panic!("{other:?} from a server"),
        }
    }
}
