//! Decompression: detects the format by the first bytes; gzip with members, zstd with frames. Runs in a worker, or in
//! its place; knows neither layers nor files.
//!
//! Bounds: a zstd frame's window is read from its header, and requested, before it is allocated. The consumer counts
//! the output.

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
    Gzip(Box<flate2::bufread::MultiGzDecoder<Begun<R>>>),
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
            (true, _) => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
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
}
