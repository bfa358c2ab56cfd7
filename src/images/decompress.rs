//! Decompression: detects the format by the first bytes; gzip with members, zstd with frames. Runs in a worker, or in
//! its place; knows neither layers nor files.
//!
//! Bounds: a zstd frame's window is read from its header, and requested, before it is allocated. The consumer counts
//! the output.

use flate2::{Decompress, FlushDecompress, Status};
use std::io::{self, BufRead, Chain, Cursor, Read};
use zstd::stream::raw::{DParameter, Decoder as Raw, InBuffer, Operation as _, OutBuffer};

/// Largest zstd window, 2^27 bytes: the default limit of the zstd tool.
const MAX_WINDOW_LOG: u32 = 27;
/// The error for a frame with a larger window, or one larger than the budget.
const TOO_LARGE: &str = "a zstd frame needs a larger window than is allowed";
/// Bytes that distinguish all formats.
const START: usize = 6;
/// Longest header of a zstd frame (RFC 8878, 3.1.1): magic, descriptor, window, dictionary, content size.
const MAX_HEADER: usize = 18;
/// Magic of a zstd frame, and of a skippable one without its last four bits.
const FRAME: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;

/// Grants windows: returns when there is room, or with an error.
pub(crate) type Ask<'a> = Box<dyn FnMut(u64) -> io::Result<()> + Send + 'a>;

/// A source whose first bytes were examined.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// A decompressed stream. The first bytes determine the compression: media types of old images lie.
pub(crate) enum Decoder<'a, R: BufRead> {
    Plain(Begun<R>),
    Gzip(Box<Members<Begun<R>>>),
    Zstd(Box<Frames<'a, Begun<R>>>),
}

impl<'a, R: BufRead> Decoder<'a, R> {
    /// Examines the first bytes of `source`.
    ///
    /// # Errors
    /// The source's, and for what no image format allows.
    pub(crate) fn sniff(mut source: R, ask: Ask<'a>) -> io::Result<Self> {
        let mut start = Vec::with_capacity(START);
        source.by_ref().take(START as u64).read_to_end(&mut start)?;
        let word = start.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
        let kind = (start.starts_with(&[0x1f, 0x8b]), word);
        if start.starts_with(b"BZh") || start.starts_with(b"\xfd7zXZ\0") {
            return Err(io::Error::other("compressed with bzip2 or xz, which no image format allows"));
        }
        let source = Cursor::new(start).chain(source);
        Ok(match kind {
            (true, _) => Self::Gzip(Box::new(Members::new(source))),
            // A frame, or a skippable one (zstd:chunked has them).
            (_, Some(word)) if word == FRAME || word & !0xf == SKIPPABLE => {
                Self::Zstd(Box::new(Frames::new(source, ask)?))
            }
            _ => Self::Plain(source),
        })
    }
}

impl<R: BufRead> Read for Decoder<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(into),
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// gzip members, one after the other (RFC 1952). `flate2` has the same, with a checksum that takes a tenth of the time of all
/// the rest.
pub(crate) struct Members<R> {
    source: R,
    raw: Decompress,
    at: Within,
    /// Of what the member has made, or of its header, so far.
    crc: crc32fast::Hasher,
    /// Bytes that the member has made, as its trailer counts them.
    length: u32,
}

/// Where in the stream of members.
#[derive(Debug, PartialEq, Eq)]
enum Within {
    /// There must be a member.
    Start,
    Content,
    /// There may be another one.
    Between,
}

/// Flags of a member's header: a checksum of it, a field of bytes, a name, a comment.
const HAS_CRC: u8 = 2;
const HAS_FIELD: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;

impl<R: BufRead> Members<R> {
    fn new(source: R) -> Self {
        let (raw, crc) = (Decompress::new(false), crc32fast::Hasher::new());
        Self { source, raw, at: Within::Start, crc, length: 0 }
    }

    /// The next bytes of a header.
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.crc.update(&bytes);
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<()> {
        while self.take::<1>()? != [0] {}
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "invalid gzip header");
        self.crc.reset();
        let [0x1f, 0x8b, 8, flags, _, _, _, _, _, _] = self.take::<10>()? else { return Err(wrong()) };
        if flags & HAS_FIELD != 0 {
            for _ in 0..u16::from_le_bytes(self.take()?) {
                self.take::<1>()?;
            }
        }
        for flag in [HAS_NAME, HAS_COMMENT] {
            if flags & flag != 0 {
                self.text()?;
            }
        }
        if flags & HAS_CRC != 0 {
            let [a, b, ..] = self.crc.clone().finalize().to_le_bytes();
            if self.take()? != [a, b] {
                return Err(wrong());
            }
        }
        self.crc.reset();
        self.length = 0;
        self.raw.reset(false);
        Ok(())
    }

    fn trailer(&mut self) -> io::Result<()> {
        let expected = (std::mem::take(&mut self.crc).finalize(), self.length);
        let found = (u32::from_le_bytes(self.take()?), u32::from_le_bytes(self.take()?));
        if found != expected {
            let reason = "corrupt gzip stream does not have a matching checksum";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if self.at != Within::Content {
                if self.at == Within::Between && self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.header()?;
                self.at = Within::Content;
            }
            let bytes = self.source.fill_buf()?;
            let (has_ended, before) = (bytes.is_empty(), (self.raw.total_in(), self.raw.total_out()));
            let status = self.raw.decompress(bytes, into, FlushDecompress::None)?;
            let count = |now: u64, before: u64| usize::try_from(now - before).map_err(io::Error::other);
            let used = count(self.raw.total_in(), before.0)?;
            let made = count(self.raw.total_out(), before.1)?;
            self.source.consume(used);
            self.crc.update(&into[..made]);
            self.length = self.length.wrapping_add(u32::try_from(made).map_err(io::Error::other)?);
            if status == Status::StreamEnd {
                self.trailer()?;
                self.at = Within::Between;
            }
            if made > 0 {
                return Ok(made);
            }
            if has_ended && self.at == Within::Content {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// zstd frames, one after the other.
pub(crate) struct Frames<'a, R> {
    source: R,
    /// None between two decoders: the old one frees its window first.
    raw: Option<Raw<'static>>,
    ask: Ask<'a>,
    /// The requested window.
    window: u64,
    /// The header of the frame that begins, as far as the decoder has not had it.
    head: Vec<u8>,
    at: usize,
    within: bool,
}

impl<'a, R: BufRead> Frames<'a, R> {
    fn new(source: R, ask: Ask<'a>) -> io::Result<Self> {
        Ok(Self { source, raw: None, ask, window: 0, head: Vec::new(), at: 0, within: false })
    }

    /// Reads the header of the next frame and sees to the room for its window. False: the stream has ended.
    fn begin(&mut self) -> io::Result<bool> {
        self.head.clear();
        self.at = 0;
        let window = loop {
            match window(&self.head)? {
                Some(window) => break window,
                None => {
                    let mut byte = [0];
                    match self.source.read(&mut byte) {
                        Ok(0) if self.head.is_empty() => return Ok(false),
                        Ok(0) => return Err(incomplete()),
                        Ok(_) => self.head.push(byte[0]),
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        };
        if window > 1 << MAX_WINDOW_LOG {
            return Err(io::Error::other(TOO_LARGE));
        }
        if window > self.window {
            self.raw = None;
            (self.ask)(window)?;
            self.window = window;
        }
        if self.raw.is_none() {
            let mut raw = Raw::new()?;
            raw.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
            self.raw = Some(raw);
        }
        self.within = true;
        Ok(true)
    }
}

fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame")
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if into.is_empty() || (!self.within && !self.begin()?) {
                return Ok(0);
            }
            let Some(raw) = &mut self.raw else { return Err(incomplete()) };
            let in_head = self.at < self.head.len();
            let bytes = if in_head { &self.head[self.at..] } else { self.source.fill_buf()? };
            let ended = bytes.is_empty();
            let (mut input, mut output) = (InBuffer::around(bytes), OutBuffer::around(&mut *into));
            let hint = raw.run(&mut input, &mut output)?;
            let (used, made) = (input.pos(), output.pos());
            if in_head {
                self.at += used;
            } else {
                self.source.consume(used);
            }
            self.within = hint > 0;
            if made > 0 {
                return Ok(made);
            }
            if ended && self.within {
                return Err(incomplete());
            }
        }
    }
}

/// The window of the frame whose header begins with `head`, 0 for a skippable one. None: more bytes are needed.
fn window(head: &[u8]) -> io::Result<Option<u64>> {
    let Some((magic, rest)) = head.split_first_chunk::<4>() else { return Ok(None) };
    match u32::from_le_bytes(*magic) {
        FRAME => {}
        magic if magic & !0xf == SKIPPABLE => return Ok(Some(0)),
        _ => return Err(io::Error::other("Unknown frame descriptor")),
    }
    let Some((descriptor, rest)) = rest.split_first() else { return Ok(None) };
    if descriptor & 0x20 == 0 {
        return Ok(rest.first().map(|byte| {
            let base = 1u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }));
    }
    // A single segment: the content is its own window.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    debug_assert!(5 + dictionary + length <= MAX_HEADER);
    let Some(field) = rest.get(dictionary..dictionary + length) else { return Ok(None) };
    let value = field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    Ok(Some(if length == 2 { value + 256 } else { value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::{Arc, Mutex};

    /// A frame with this window and no content: its last block is empty.
    fn empty_frame(window_log: u8) -> Vec<u8> {
        let mut bytes = FRAME.to_le_bytes().to_vec();
        bytes.extend([0, (window_log - 10) << 3, 1, 0, 0]);
        bytes
    }

    fn read(bytes: &[u8]) -> (io::Result<Vec<u8>>, Vec<u64>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&asked);
        let ask: Ask = Box::new(move |window| {
            tell.lock().unwrap().push(window);
            Ok(())
        });
        let mut out = Vec::new();
        // One byte at a time: headers are cut everywhere.
        let source = io::BufReader::with_capacity(1, bytes);
        let result = Decoder::sniff(source, ask).and_then(|mut d| d.read_to_end(&mut out)).map(|_| out);
        let asked = asked.lock().unwrap().clone();
        (result, asked)
    }

    #[test]
    fn windows_are_asked_for_before_they_are_allocated() {
        let frames: Vec<u8> = [20, 27, 22, 27].into_iter().flat_map(empty_frame).collect();
        let (result, asked) = read(&frames);
        assert_eq!(result.unwrap(), b"");
        assert_eq!(asked, [1 << 20, 1 << 27], "a smaller one uses what there is");
        let (result, asked) = read(&empty_frame(28));
        assert!(result.unwrap_err().to_string().contains("larger window"));
        assert!(asked.is_empty());
        // A single segment as large as its content says.
        let mut single = FRAME.to_le_bytes().to_vec();
        single.extend([0xe0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert!(read(&single).0.unwrap_err().to_string().contains("larger window"));
    }

    #[test]
    fn frames_members_and_what_is_skipped_are_one_stream() {
        let data: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let mut zstd = [&[0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let mut gzip = Vec::new();
        for part in data.chunks(500_000) {
            zstd.extend(zstd::encode_all(part, 1).unwrap());
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            gzip.extend(encoder.finish().unwrap());
        }
        for stream in [&zstd, &gzip, &data] {
            assert!(read(stream).0.unwrap() == data);
        }
        assert!(read(b"").0.unwrap().is_empty());
        for (stream, cut) in [(&zstd, 5), (&zstd, 200_000), (&gzip, 5), (&gzip, 200_000)] {
            assert!(read(&stream[..cut]).0.is_err(), "{cut}");
        }
        let error = read(&[&zstd[..], b"rest"].concat()).0.unwrap_err().to_string();
        assert!(error.contains("Unknown frame"), "{error}");
        assert!(read(b"BZh91AY").0.unwrap_err().to_string().contains("bzip2"));
    }

    /// As `flate2` reads it, which the tool of the same name writes.
    #[test]
    fn headers_of_gzip_members_are_passed_over_and_their_ends_are_checked() {
        let data: Vec<u8> = (0..500u32).flat_map(u32::to_le_bytes).collect();
        let member = |with: bool| {
            let mut builder = flate2::GzBuilder::new();
            if with {
                builder = builder.filename("a name").comment("words").extra(vec![0; 300]).mtime(1);
            }
            let mut encoder = builder.write(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        };
        let (plain, full) = (member(false), member(true));
        // A header with a checksum of its own.
        let mut checked = plain.clone();
        checked[3] |= HAS_CRC;
        let [a, b, ..] = crc32fast::hash(&checked[..10]).to_le_bytes();
        checked.splice(10..10, [a, b]);
        let mut empty = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        empty.flush().unwrap();
        let stream = [&full[..], &empty.finish().unwrap(), &checked, &plain].concat();
        assert!(read(&stream).0.unwrap() == data.repeat(3));
        let bad = |at: usize, of: &[u8]| {
            let mut bad = of.to_vec();
            bad[at] ^= 1;
            read(&bad).0.unwrap_err().to_string()
        };
        assert_eq!(bad(2, &plain), "invalid gzip header");
        assert_eq!(bad(10, &checked), "invalid gzip header");
        for at in 1..=8 {
            assert!(bad(plain.len() - at, &plain).contains("matching checksum"));
        }
        for cut in 1..full.len().min(1000) {
            assert!(read(&full[..full.len() - cut]).0.is_err(), "{cut}");
        }
        for cut in 2..400 {
            assert!(read(&full[..cut]).0.is_err(), "{cut}");
        }
        assert_eq!(
            read(&[&plain[..], b"more bytes"].concat()).0.unwrap_err().to_string(),
            "invalid gzip header"
        );
        assert!(read(&[&plain[..], b"\x1f\x8b"].concat()).0.is_err());
    }
}
