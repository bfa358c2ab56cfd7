//! A tar whose parser is another process: its words beside the bytes that it was given. The parser says what the bytes
//! mean; which bytes there are, and what becomes of them, is decided here.
//!
//! A parser that was taken over can say what it likes of its own tar, within what `wire` lets through and `apply` accepts of
//! any tar. It cannot change the bytes: data of files and recipe are made of what was hashed.

use super::apply::Entries;
use super::tar::{Entry, Kind};
use super::{Blame, wire};
use crate::images::error::ImageError;
use crate::images::recipe::Recorder;
use std::io::{self, BufRead, Read};

/// The bytes and the words.
#[derive(Debug)]
pub(crate) struct Parsed<S, W> {
    source: S,
    words: W,
    recorder: Recorder,
    blame: Blame,
    /// Unread bytes of the current file.
    left: u64,
}

impl<S: BufRead, W: Read> Parsed<S, W> {
    /// `words` are those of a parser that was given the bytes of `source`.
    pub(super) fn new(source: S, words: W, recorder: Recorder, blame: Blame) -> Self {
        Self { source, words, recorder, blame, left: 0 }
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
            left -= u64::try_from(take).unwrap_or_default();
        }
        Ok(())
    }
}

impl<S: BufRead, W: Read> Entries for Parsed<S, W> {
    fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        loop {
            let left = std::mem::take(&mut self.left);
            self.take(Some(left), "the tar ends within a file", Recorder::inline)?;
            match wire::read(&mut self.words) {
                Ok(wire::Said::Inline(length)) => {
                    self.take(Some(length), "the tar ends within a header", Recorder::inline)?;
                }
                Ok(wire::Said::Entry(entry)) => {
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
                    return Err(self.blame.corrupt("its tar parser ended without a word"));
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
        self.take(None, "", Recorder::inline)
    }

    fn into_recorder(self) -> Recorder {
        self.recorder
    }
}
