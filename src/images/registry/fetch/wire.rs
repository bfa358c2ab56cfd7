//! What is said between a pull and the process that speaks HTTP for it. Owns the forms of both sides and their limits; what
//! comes from that process is believed in nothing but its form.
//!
//! Over the control socket, which keeps messages apart: a kind and a number, with at most one descriptor. Each request has a
//! stream socket of its own: the request goes in, the answer comes back in frames of kind, length and content.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::time::Duration;

/// Control: the roots of TLS, in a file.
pub(super) const ROOTS: u8 = b'T';
/// Control: a client's set-up, in a file.
pub(super) const CLIENT: u8 = b'C';
/// Control: a request of a client, over this socket.
pub(super) const REQUEST: u8 = b'A';
/// Control: the connection that was asked for.
pub(super) const SOCKET: u8 = b'S';
/// Control: there is no connection.
pub(super) const NO_SOCKET: u8 = b'N';
/// Control, from the process: a client wants a connection. The number is the client's, and one for the answer follows.
pub(super) const WANTED: u8 = b'W';

/// Frame: status and headers.
pub(super) const HEAD: u8 = b'H';
/// Frame: a piece of the body.
pub(super) const DATA: u8 = b'D';
/// Frame: a piece of the body that lies in a place of the memory that both have; the place's number follows. It is told over
/// the request's socket, as one byte, that the place is free again.
pub(super) const LENT: u8 = b'L';
/// Frame: the body has ended well.
pub(super) const END: u8 = b'E';
/// Frame: there was no connection, for the reason that is known here.
pub(super) const UNCONNECTED: u8 = b'N';
/// Frame: connecting failed behind the connection: TLS, a proxy. Words.
pub(super) const CONNECT: u8 = b'c';
/// Frame: the request or its body failed. Words.
pub(super) const FAILED: u8 = b'f';

/// Bytes of a frame's kind and length.
pub(super) const FRAME: usize = 5;
/// Bytes of a piece of a body. A process sends what it has, up to this.
pub(super) const MAX_DATA: usize = 256 << 10;
/// Bytes of a place in memory, and places of one process: of all its answers, which are of one pull.
pub(super) const PLACE: usize = 128 << 10;
pub(super) const PLACES: u8 = 32;
/// Bytes of all places.
pub(super) const MEMORY: usize = PLACE * PLACES as usize;
/// Bytes of status and headers. Those that are used are a few KiB: a signed URL, a challenge.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Headers of one answer that are passed on; only challenges come several times.
const MAX_HEADERS: usize = 32;
/// Bytes of the words for a failure.
pub(super) const MAX_WORDS: usize = 400;
/// Bytes of a request or a set-up: passwords, tokens, certificates of the node's configuration.
pub(super) const MAX_SETUP: u64 = 16 << 20;

/// The headers of answers that anybody here looks at; no other is passed on. They travel by their place in this list.
static HEADERS: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::LOCATION,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("docker-content-digest"),
];

/// A control message.
pub(super) fn control(kind: u8, number: u32) -> [u8; 5] {
    let [a, b, c, d] = number.to_le_bytes();
    [kind, a, b, c, d]
}

/// The kind and the numbers of a control message.
pub(super) fn numbers(message: &[u8]) -> Option<(u8, u32, Option<u32>)> {
    let mut fields = Fields(message);
    let (kind, number) = (fields.byte()?, fields.number()?);
    let second = if fields.0.is_empty() { None } else { Some(fields.number()?) };
    fields.0.is_empty().then_some((kind, number, second))
}

/// The head of a frame.
pub(super) fn frame(kind: u8, length: usize) -> [u8; FRAME] {
    control(kind, u32::try_from(length).unwrap_or(u32::MAX))
}

/// What makes a client.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Setup {
    /// HTTP/1.1 only, a connection for each request.
    pub(super) separate: bool,
    /// Whatever certificate a host shows is taken.
    pub(super) skip_verify: bool,
    /// Time for a connection with all that is said before the first request.
    pub(super) connect_timeout: Duration,
    /// The proxy of every request; empty: none.
    pub(super) proxy: String,
    /// Further roots, DER.
    pub(super) roots: Vec<Vec<u8>>,
    /// Client certificate with its chain, DER; empty: none.
    pub(super) chain: Vec<Vec<u8>>,
    /// Its key, DER.
    pub(super) key: Vec<u8>,
}

impl Setup {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.separate), u8::from(self.skip_verify)];
        let millis = u32::try_from(self.connect_timeout.as_millis()).unwrap_or(u32::MAX);
        out.extend(millis.to_le_bytes());
        put(&mut out, self.proxy.as_bytes());
        put_all(&mut out, &self.roots);
        put_all(&mut out, &self.chain);
        put(&mut out, &self.key);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let setup = Self {
            separate: fields.byte()? != 0,
            skip_verify: fields.byte()? != 0,
            connect_timeout: Duration::from_millis(fields.number()?.into()),
            proxy: std::str::from_utf8(fields.bytes()?).ok()?.to_owned(),
            roots: fields.all()?,
            chain: fields.all()?,
            key: fields.bytes()?.to_vec(),
        };
        fields.0.is_empty().then_some(setup)
    }
}

/// Certificates, DER.
pub(super) fn encode_roots<T: AsRef<[u8]>>(roots: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    put_all(&mut out, roots);
    out
}

pub(super) fn decode_roots(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    Fields(bytes).all()
}

/// A request, ready to be written.
pub(super) fn encode_request(method: &Method, url: &str, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    put(&mut out, method.as_str().as_bytes());
    put(&mut out, url.as_bytes());
    put_number(&mut out, headers.len());
    for (name, value) in headers {
        put(&mut out, name.as_str().as_bytes());
        put(&mut out, value.as_bytes());
    }
    put(&mut out, body);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX).to_le_bytes();
    out[..4].copy_from_slice(&length);
    out
}

/// A request without the length before it.
pub(super) fn decode_request(bytes: &[u8]) -> Option<http::Request<Vec<u8>>> {
    let mut fields = Fields(bytes);
    let mut request = http::Request::new(Vec::new());
    *request.method_mut() = Method::from_bytes(fields.bytes()?).ok()?;
    *request.uri_mut() = std::str::from_utf8(fields.bytes()?).ok()?.parse().ok()?;
    for _ in 0..fields.number()? {
        let name = HeaderName::from_bytes(fields.bytes()?).ok()?;
        let mut value = HeaderValue::from_bytes(fields.bytes()?).ok()?;
        value.set_sensitive(name == header::AUTHORIZATION);
        request.headers_mut().append(name, value);
    }
    *request.body_mut() = fields.bytes()?.to_vec();
    fields.0.is_empty().then_some(request)
}

/// Status and the headers that are looked at; None: they are too many or too long.
pub(super) fn encode_head(status: StatusCode, headers: &HeaderMap) -> Option<Vec<u8>> {
    let known: Vec<_> = (0u8..)
        .zip(&HEADERS)
        .flat_map(|(place, name)| headers.get_all(name).iter().map(move |value| (place, value)))
        .collect();
    let mut out = status.as_u16().to_le_bytes().to_vec();
    out.push(u8::try_from(known.len()).ok().filter(|count| usize::from(*count) <= MAX_HEADERS)?);
    for (place, value) in known {
        out.push(place);
        put(&mut out, value.as_bytes());
    }
    (out.len() <= MAX_HEAD).then_some(out)
}

/// The same, from who is not believed.
pub(super) fn decode_head(bytes: &[u8]) -> Option<(StatusCode, HeaderMap)> {
    let mut fields = Fields(bytes);
    let status = StatusCode::from_u16(u16::from_le_bytes([fields.byte()?, fields.byte()?])).ok()?;
    let count = usize::from(fields.byte()?);
    if count > MAX_HEADERS {
        return None;
    }
    let mut headers = HeaderMap::new();
    for _ in 0..count {
        let name = HEADERS.get(usize::from(fields.byte()?))?;
        headers.append(name, HeaderValue::from_bytes(fields.bytes()?).ok()?);
    }
    fields.0.is_empty().then_some((status, headers))
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len());
    out.extend(bytes);
}

fn put_all<T: AsRef<[u8]>>(out: &mut Vec<u8>, all: &[T]) {
    put_number(out, all.len());
    for bytes in all {
        put(out, bytes.as_ref());
    }
}

/// What is left to be read. Nothing is reserved for what a number claims.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn all(&mut self) -> Option<Vec<Vec<u8>>> {
        (0..self.number()?).map(|_| self.bytes().map(<[u8]>::to_vec)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let setup = Setup {
            separate: true,
            skip_verify: false,
            connect_timeout: Duration::from_millis(1500),
            proxy: "http://u:p@proxy:1".into(),
            roots: vec![vec![1, 2], vec![]],
            chain: vec![vec![3]],
            key: vec![4],
        };
        let bytes = setup.encode();
        assert!(Setup::decode(&bytes) == Some(setup));
        assert!(Setup::decode(&bytes[..bytes.len() - 1]).is_none());
        let mut headers = HeaderMap::new();
        headers.append(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let bytes = encode_request(&Method::POST, "https://r.example/v2/?a=b", &headers, b"form");
        assert_eq!(bytes[..4], u32::try_from(bytes.len() - 4).unwrap().to_le_bytes());
        let request = decode_request(&bytes[4..]).unwrap();
        assert_eq!((request.method(), request.body().as_slice()), (&Method::POST, &b"form"[..]));
        assert_eq!(request.uri(), "https://r.example/v2/?a=b");
        assert_eq!(request.headers(), &headers);
        assert!(request.headers()[header::AUTHORIZATION].is_sensitive());
        assert_eq!(numbers(&control(CLIENT, 7)), Some((CLIENT, 7, None)));
        assert_eq!(decode_roots(&encode_roots(&[b"a", b"b"])), Some(vec![b"a".to_vec(), b"b".to_vec()]));
    }

    #[test]
    fn a_head_has_the_headers_that_are_looked_at_within_limits() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("location", "/x"), ("x-else", "y"), ("www-authenticate", "Basic")] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        let bytes = encode_head(StatusCode::FOUND, &headers).unwrap();
        let (status, told) = decode_head(&bytes).unwrap();
        assert_eq!((status, told.len()), (StatusCode::FOUND, 3));
        assert_eq!(told.get_all(header::WWW_AUTHENTICATE).iter().count(), 2);
        let mut many = HeaderMap::new();
        for _ in 0..=MAX_HEADERS {
            many.append(header::LOCATION, HeaderValue::from_static("/x"));
        }
        assert_eq!(encode_head(StatusCode::OK, &many), None);
        let long = HeaderValue::from_bytes(&vec![b'x'; MAX_HEAD]).unwrap();
        assert_eq!(encode_head(StatusCode::OK, &HeaderMap::from_iter([(header::LOCATION, long)])), None);
    }

    #[test]
    fn nonsense_is_no_head() {
        let good = [200, 0, 1, 2, 2, 0, 0, 0, b'/', b'x'];
        assert!(decode_head(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(decode_head(&good[..length]), None, "{length}");
        }
        for (at, byte) in [(0, 1), (1, 255), (2, 2), (2, 255), (3, 6), (4, 255), (7, 255), (8, 0), (9, b'\n')]
        {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(decode_head(&bad), None, "{at} {byte}");
        }
        assert_eq!(decode_head(&[&good[..], b"x"].concat()), None);
        for message in [&b""[..], b"W", b"W123", b"W12345", b"W123456789"] {
            assert_eq!(numbers(message), None, "{message:?}");
        }
    }
}
