//! A tar whose parser is another process: its words beside the bytes that it was given. The parser says what the bytes
//! mean; which bytes there are, and what becomes of them, is decided here.
//!
//! A parser that was taken over can say what it likes of its own tar, within what `wire` lets through and `apply` accepts of
//! any tar. It cannot change the bytes: data of files and recipe are made of what was hashed. It is given those very bytes,
//! out of the buffer that is hashed, so that whoever made them cannot show it others.

use super::entries::Entries;
use super::tar::{Entry, Kind};
use super::{Blame, wire};
use crate::images::error::ImageError;
use crate::images::recipe::Recorder;
use std::io::{self, BufRead, Read};

/// Where the bytes come from: memory that nobody else can write to.
pub(crate) trait Source: BufRead {
    /// A parser works on the bytes now: what else there is to do with them is done beside it.
    fn meanwhile(&mut self) {}

    /// Where what `fill_buf` returns lies in the memory that the parser sees; None: elsewhere.
    fn place(&self) -> Option<usize> {
        None
    }

    /// Bytes of the compressed stream that came so far, at least; None: it is not known.
    fn compressed(&self) -> Option<u64> {
        None
    }
}

impl<R: Read> Source for io::BufReader<R> {}

impl<S: Source> Source for &mut S {
    fn meanwhile(&mut self) {
        (**self).meanwhile();
    }

    fn place(&self) -> Option<usize> {
        (**self).place()
    }

    fn compressed(&self) -> Option<u64> {
        (**self).compressed()
    }
}

/// A parser that answers what it was given.
pub(crate) trait Parser: Read {
    /// Gives it one piece, which it sees already if it has a place.
    fn give(&mut self, piece: &[u8], place: Option<usize>) -> io::Result<()>;
    /// There is no more.
    fn no_more(&mut self);
    /// It says no more; what was wrong with its end.
    fn end(&mut self) -> Option<String>;
}

/// The bytes and the words.
#[derive(Debug)]
pub(crate) struct Parsed<S, P> {
    source: S,
    parser: P,
    recorder: Recorder,
    blame: Blame,
    /// Unread bytes of the current file.
    left: u64,
    /// Bytes from here on that the parser was given.
    given: u64,
    /// Whether it knows that there are no more.
    has_all: bool,
    entries: u64,
}

/// Entries of a tar whatever it is compressed to; each is some system calls, on a slow disk a millisecond.
const FREE_ENTRIES: u64 = 16 << 10;
/// Entries beside these for each byte that it is compressed to. Headers that differ in name and checksum only take three bytes
/// of zstd at its best; what is denser makes the same again and again.
const ENTRIES_PER_BYTE: u64 = 1;
/// Bytes behind the end mark, which are only hashed: tools pad to some MiB at most.
const MAX_TRAILER: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

impl<S: Source, P: Parser> Parsed<S, P> {
    pub(super) fn new(source: S, parser: P, recorder: Recorder, blame: Blame) -> Self {
        Self { source, parser, recorder, blame, left: 0, given: 0, has_all: false, entries: 0 }
    }

    /// Gives the parser the next piece, which it has asked for.
    fn give(&mut self) -> Result<(), ImageError> {
        if self.given > 0 || self.has_all {
            return Err(self.blame.corrupt("its tar parser said nonsense: it has not said all"));
        }
        self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
        let place = self.source.place();
        let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
        let piece = &buffer[..buffer.len().min(wire::PIECE)];
        if piece.is_empty() {
            self.has_all = true;
            self.parser.no_more();
            return Ok(());
        }
        match self.parser.give(piece, place) {
            // One that has ended: what it said before tells why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(self.blame.stream(&error)),
            Ok(()) => {}
        }
        self.given = u64::try_from(piece.len()).unwrap_or_default();
        self.source.meanwhile();
        Ok(())
    }

    /// Counts an entry, before anything is done for it.
    fn count(&mut self) -> Result<(), ImageError> {
        self.entries += 1;
        let Some(bytes) = self.source.compressed() else { return Ok(()) };
        let limit = bytes.saturating_mul(ENTRIES_PER_BYTE).saturating_add(FREE_ENTRIES);
        if self.entries > limit {
            let what = format!("the number of entries for {bytes} compressed bytes");
            return Err(self.blame.limit(&what, limit, "entries"));
        }
        Ok(())
    }

    /// Takes `length` bytes, or all for None.
    fn take(
        &mut self,
        length: Option<u64>,
        what: &'static str,
        mut sink: impl FnMut(&mut Recorder, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
            if buffer.is_empty() {
                return if length.is_some() { Err(self.blame.corrupt(what)) } else { Ok(()) };
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            sink(&mut self.recorder, &buffer[..take])?;
            self.source.consume(take);
            let taken = u64::try_from(take).unwrap_or_default();
            left -= taken;
            self.given = self.given.saturating_sub(taken);
        }
        Ok(())
    }
}

impl<S: Source, P: Parser> Entries for Parsed<S, P> {
    fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        loop {
            let left = std::mem::take(&mut self.left);
            self.take(Some(left), "the tar ends within a file", Recorder::inline)?;
            match wire::read(&mut self.parser) {
                Ok(wire::Said::Next) => self.give()?,
                Ok(wire::Said::Inline(length)) if length > self.given => {
                    return Err(self
                        .blame
                        .corrupt("its tar parser said nonsense: of bytes that it has not seen"));
                }
                Ok(wire::Said::Inline(length)) => {
                    self.take(Some(length), "the tar ends within a header", Recorder::inline)?;
                }
                Ok(wire::Said::Entry(entry)) => {
                    self.count()?;
                    if let Kind::File { size, .. } = entry.kind {
                        self.left = size;
                    }
                    return Ok(Some(*entry));
                }
                Ok(wire::Said::End) => return Ok(None),
                Ok(wire::Said::Refusal { code, text }) => {
                    return Err(wire::refused(&self.blame, code, &text));
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    let end = self.parser.end().unwrap_or_else(|| "it ended well".into());
                    return Err(self.blame.corrupt(format!("its tar parser ended without a word: {end}")));
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.blame.corrupt(format!("its tar parser said nonsense: {e}")));
                }
                Err(e) => return Err(self.blame.stream(&e)),
            }
        }
    }

    fn goes_into(&mut self, path: &[u8]) {
        self.recorder.file(path);
    }

    fn data(
        &mut self,
        sink: impl FnMut(&mut Recorder, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let left = std::mem::take(&mut self.left);
        self.take(Some(left), "the tar ends within a file", sink)
    }

    fn end_file(&mut self) -> Result<(), ImageError> {
        self.recorder.end_file()
    }

    fn drain(&mut self) -> Result<(), ImageError> {
        let (blame, mut left) = (self.blame.clone(), MAX_TRAILER);
        self.take(None, "", |recorder, bytes| {
            left = left
                .checked_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
                .ok_or_else(|| blame.limit("what stands behind the end mark", MAX_TRAILER, "bytes"))?;
            recorder.inline(bytes)
        })
    }

    fn end(self) -> Result<Recorder, ImageError> {
        let Self { mut parser, recorder, blame, .. } = self;
        match parser.end() {
            None => Ok(recorder),
            Some(end) => Err(blame.corrupt(end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::tests::file;

    /// Says what it was told to say, whatever it is given.
    struct Liar<'a> {
        words: &'a [u8],
        given: &'a mut Vec<usize>,
    }

    impl Read for Liar<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.words.read(into)
        }
    }

    impl Parser for Liar<'_> {
        fn give(&mut self, piece: &[u8], _: Option<usize>) -> io::Result<()> {
            self.given.push(piece.len());
            Ok(())
        }

        fn no_more(&mut self) {}

        fn end(&mut self) -> Option<String> {
            None
        }
    }

    fn hear(tar: &[u8], words: &[u8]) -> (Result<u64, ImageError>, Vec<usize>) {
        let mut given = Vec::new();
        let source = io::BufReader::with_capacity(1024, tar);
        let liar = Liar { words, given: &mut given };
        let mut parsed = Parsed::new(source, liar, Recorder::off(), Blame::new("t"));
        let mut entries = 0;
        let result = loop {
            match parsed.next() {
                Ok(Some(_)) => entries += 1,
                Ok(None) => break Ok(entries),
                Err(error) => break Err(error),
            }
        };
        (result, given)
    }

    /// A tar that is all in memory, of so many compressed bytes.
    struct Packed<'a>(&'a [u8], u64);

    impl Read for Packed<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl BufRead for Packed<'_> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            Ok(self.0)
        }

        fn consume(&mut self, amount: usize) {
            self.0.consume(amount);
        }
    }

    impl Source for Packed<'_> {
        fn compressed(&self) -> Option<u64> {
            Some(self.1)
        }
    }

    /// An entry of a file, as it is said.
    fn said(size: u64) -> Vec<u8> {
        let mut entry = b"Ef".to_vec();
        entry.extend(size.to_le_bytes());
        entry.extend([0, 1, 0, b'a']);
        entry.extend([0; 4 + 4 + 4 + 8 + 4 + 1 + 2]);
        entry
    }

    #[test]
    fn entries_that_take_no_bytes_are_limited() {
        let count = |bytes: u64, entries: u64| {
            let mut words = Vec::new();
            (0..entries).for_each(|_| words.extend(said(0)));
            wire::end(&mut words);
            let liar = Liar { words: &words, given: &mut Vec::new() };
            let mut parsed = Parsed::new(Packed(b"", bytes), liar, Recorder::off(), Blame::new("t"));
            loop {
                match parsed.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(error.to_string()),
                }
            }
        };
        assert_eq!(count(100, FREE_ENTRIES + 100), None);
        let error = count(100, FREE_ENTRIES + 101).unwrap();
        assert!(error.contains("for 100 compressed bytes of layer t exceeds"), "{error}");
    }

    #[test]
    fn what_stands_behind_the_end_is_limited() {
        let tar = vec![0; usize::try_from(MAX_TRAILER).unwrap() + 1];
        let drain = |tar: &[u8]| {
            let liar = Liar { words: b"Z", given: &mut Vec::new() };
            let mut parsed = Parsed::new(Packed(tar, 0), liar, Recorder::off(), Blame::new("t"));
            assert!(parsed.next().unwrap().is_none());
            parsed.drain()
        };
        drain(&tar[1..]).unwrap();
        assert!(drain(&tar).unwrap_err().to_string().contains("behind the end mark"));
    }

    #[test]
    fn words_about_bytes_that_were_not_given_end_the_reading() {
        let tar = [file("a", &"x".repeat(5000)), vec![0; 1024]].concat();
        // Of the piece it says all, then what stands in a file, which it need not see.
        let mut honest = Vec::new();
        wire::next(&mut honest);
        wire::inline(&mut honest, 512);
        let entry = said(5000);
        honest.extend(&entry);
        let mut whole = honest.clone();
        wire::next(&mut whole);
        wire::inline(&mut whole, 632);
        wire::end(&mut whole);
        let (result, given) = hear(&tar, &whole);
        assert_eq!(result.unwrap(), 1);
        assert!(given.iter().sum::<usize>() < 2500, "not what stands in the file alone: {given:?}");
        for lie in [1025, u64::MAX, 1 << 40] {
            let mut words = b"N".to_vec();
            wire::inline(&mut words, lie);
            let error = hear(&tar, &words).0.unwrap_err().to_string();
            assert!(error.contains("has not seen"), "{error}");
        }
        for lie in [&b"NN"[..], b"I\x01\0\0\0\0\0\0\0", &[&honest[..10], b"N"].concat()] {
            assert!(hear(&tar, lie).0.unwrap_err().to_string().contains("nonsense"), "{lie:?}");
        }
        // At the end it is told so once.
        assert!(hear(b"", b"NN").0.unwrap_err().to_string().contains("nonsense"));
        assert_eq!(hear(b"", b"NZ").0.unwrap(), 0);
        // A file longer than what there is.
        let mut words = honest[..10].to_vec();
        let mut long = entry.clone();
        long[2..10].copy_from_slice(&u64::MAX.to_le_bytes());
        words.extend(long);
        let error = hear(&tar, &words).0.unwrap_err().to_string();
        assert!(error.contains("ends within a file"), "{error}");
    }
}
