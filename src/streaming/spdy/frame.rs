//! Frame headers and the small frames that the server sends. Numbers are from the SPDY/3 draft; pure functions.

/// Bytes in front of every frame's payload.
pub(super) const HEADER_BYTES: usize = 8;
/// The version on the wire; 3.1 differs from 3 only in flow control, which Kubernetes does not use.
const VERSION: u16 = 3;
/// Set in the first byte of a control frame.
const CONTROL: u8 = 0x80;
/// The sender sends no more on this stream.
pub(super) const FIN: u8 = 0x01;
/// The receiver may not send on this stream.
pub(super) const UNIDIRECTIONAL: u8 = 0x02;

/// Kinds of control frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    SynStream,
    SynReply,
    RstStream,
    Settings,
    Ping,
    GoAway,
    Headers,
    WindowUpdate,
}

impl Kind {
    fn of(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::SynStream,
            2 => Self::SynReply,
            3 => Self::RstStream,
            4 => Self::Settings,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::Headers,
            9 => Self::WindowUpdate,
            _ => return None,
        })
    }

    /// Whether a frame of this kind may have this length.
    pub(super) fn fits(self, length: usize) -> bool {
        match self {
            Self::SynStream => length > 10,
            Self::SynReply | Self::Headers => length > 4,
            Self::Settings => length >= 4,
            Self::Ping => length == 4,
            Self::RstStream | Self::GoAway | Self::WindowUpdate => length == 8,
        }
    }
}

/// Status of RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// Status of GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Away {
    Ok = 0,
    Protocol = 1,
}

/// The header before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Control { kind: Kind, flags: u8, length: usize },
    Data { stream: u32, flags: u8, length: usize },
}

/// Reads a frame's header.
///
/// # Errors
/// If the version or kind does not exist.
pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Header, &'static str> {
    let [a, b, c, d, flags, l0, l1, l2] = bytes;
    let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
    if a & CONTROL == 0 {
        return Ok(Header::Data { stream: u32::from_be_bytes([a, b, c, d]), flags, length });
    }
    if u16::from_be_bytes([a & !CONTROL, b]) != VERSION {
        return Err("not version 3");
    }
    let kind = Kind::of(u16::from_be_bytes([c, d])).ok_or("unknown kind of frame")?;
    Ok(Header::Control { kind, flags, length })
}

/// The 31 bits of a stream id at the start of `payload`; the payload's length was checked.
pub(super) fn stream_id(payload: &[u8]) -> u32 {
    word(payload) & 0x7fff_ffff
}

/// The first four bytes as a number.
pub(super) fn word(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The header of a DATA frame. `length` is below 2^24.
pub(super) fn data(stream: u32, flags: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [.., l0, l1, l2] = length.to_be_bytes();
    [a, b, c, d, flags, l0, l1, l2]
}

fn control(into: &mut Vec<u8>, kind: u8, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let [.., l0, l1, l2] = length.to_be_bytes();
    into.extend_from_slice(&[CONTROL, 3, 0, kind, 0, l0, l1, l2]);
    for part in payload {
        into.extend_from_slice(part);
    }
}

/// A zlib header that names the dictionary by its Adler-32.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
/// "No headers" as a stored block of four zero bytes and an empty one, which makes a reader flush. Blocks without back
/// references need no compressor, which would cost a quarter of a MiB per connection.
const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Accepts a stream; `first` is for the first header block of the connection.
pub(super) fn syn_reply(into: &mut Vec<u8>, stream: u32, first: bool) {
    let header: &[u8] = if first { &ZLIB_HEADER } else { &[] };
    control(into, 2, &[&stream.to_be_bytes(), header, &NO_HEADERS]);
}

/// Refuses or breaks off a stream.
pub(super) fn rst_stream(into: &mut Vec<u8>, stream: u32, status: Reset) {
    control(into, 3, &[&stream.to_be_bytes(), &(status as u32).to_be_bytes()]);
}

/// Answers a PING.
pub(super) fn ping(into: &mut Vec<u8>, id: u32) {
    control(into, 6, &[&id.to_be_bytes()]);
}

/// Empty SETTINGS, which clients ignore.
pub(super) fn no_settings(into: &mut Vec<u8>) {
    control(into, 4, &[&[0; 4]]);
}

/// Announces that streams after `last` are not served.
pub(super) fn go_away(into: &mut Vec<u8>, last: u32, status: Away) {
    control(into, 7, &[&last.to_be_bytes(), &(status as u32).to_be_bytes()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_draft_has_them() {
        for (bytes, expected) in [
            (
                [0x80, 3, 0, 1, 1, 0, 0, 0x28],
                Ok(Header::Control { kind: Kind::SynStream, flags: FIN, length: 40 }),
            ),
            (
                [0x80, 3, 0, 9, 0, 0, 0, 8],
                Ok(Header::Control { kind: Kind::WindowUpdate, flags: 0, length: 8 }),
            ),
            ([0, 0, 0, 5, 1, 1, 0, 0], Ok(Header::Data { stream: 5, flags: FIN, length: 65536 })),
            (
                [0x7f, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff],
                Ok(Header::Data { stream: 0x7fff_ffff, flags: 0, length: 0xff_ffff }),
            ),
            ([0x80, 2, 0, 1, 0, 0, 0, 40], Err("not version 3")),
            ([0x80, 3, 0, 5, 0, 0, 0, 0], Err("unknown kind of frame")),
            ([0x80, 3, 0, 10, 0, 0, 0, 0], Err("unknown kind of frame")),
            ([0x80, 3, 1, 1, 0, 0, 0, 0], Err("unknown kind of frame")),
        ] {
            assert_eq!(parse(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn lengths_are_checked_by_kind() {
        assert!(Kind::SynStream.fits(11) && !Kind::SynStream.fits(10));
        assert!(Kind::Ping.fits(4) && !Kind::Ping.fits(8));
        assert!(Kind::RstStream.fits(8) && !Kind::RstStream.fits(4));
        assert!(Kind::Headers.fits(5) && !Kind::Headers.fits(4));
    }

    #[test]
    fn small_frames_have_their_bytes() {
        let mut out = Vec::new();
        ping(&mut out, 7);
        rst_stream(&mut out, 3, Reset::Cancel);
        go_away(&mut out, 9, Away::Ok);
        let expected = [
            &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7][..],
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5],
            &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0],
        ];
        assert_eq!(out, expected.concat());
        assert_eq!(data(1, FIN, 0x01_02_03), [0, 0, 0, 1, 1, 1, 2, 3]);
    }
}
