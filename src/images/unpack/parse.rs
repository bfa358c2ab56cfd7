//! The tar parser as a worker: a tar on one descriptor, what is in it on the other. Passes over files' data without reading
//! it. Knows no layer and no file.

use super::tar::{Kind, Note, TarReader};
use super::{Blame, wire};
use crate::host::worker::Ends;
use crate::images::error::ImageError;
use podwright_sys::lend::View;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::os::fd::AsFd as _;
use std::rc::Rc;

/// Bytes of a piece that are copied at once: a header with what usually follows it.
const COPIED: usize = 4 << 10;
/// Bytes said before they are written though nothing has to be waited for.
const SAID: usize = 32 << 10;

/// What is to be said, and what was not written yet of it.
struct Out {
    file: File,
    said: Vec<u8>,
    inline: u64,
}

impl Out {
    fn settle(&mut self) {
        if self.inline > 0 {
            wire::inline(&mut self.said, std::mem::take(&mut self.inline));
        }
    }

    fn ask(&mut self) -> io::Result<()> {
        self.settle();
        wire::next(&mut self.said);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.settle();
        let written = self.file.write_all(&self.said);
        self.said.clear();
        written
    }
}

/// The tar, piece by piece. Before one is waited for, all that is to be said is written: who hears it waits for just that.
pub(super) struct Feed {
    input: File,
    view: View,
    /// Where the piece is, its bytes, and how many of them were copied or passed.
    place: usize,
    length: usize,
    copied: usize,
    /// A part of the piece: the view may change as soon as the next one is asked for, or by mistake at any time.
    buffer: Vec<u8>,
    at: usize,
    out: Rc<RefCell<Out>>,
}

impl Feed {
    /// Passes over bytes of a file: what of them is not in this piece is in none.
    pub(super) fn pass(&mut self, wanted: u64) {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let held = self.buffer.len() - self.at;
        self.at += wanted.min(held);
        self.copied += wanted.saturating_sub(held).min(self.length - self.copied);
    }

    /// Takes the next piece; none is left where there is no length.
    fn take(&mut self) -> io::Result<()> {
        let mut message = [0; 8];
        let mut read = 0;
        while read < message.len() {
            match self.input.read(&mut message[read..]) {
                Ok(0) if read == 0 => break,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => read += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        (self.place, self.length) = wire::where_is(message).ok_or(io::ErrorKind::InvalidData)?;
        self.copied = 0;
        Ok(())
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() {
            if self.copied == self.length {
                self.out.borrow_mut().ask()?;
                self.take()?;
            }
            self.buffer.resize(COPIED.min(self.length - self.copied), 0);
            self.view.read(self.place + self.copied, &mut self.buffer)?;
            self.copied += self.buffer.len();
            self.at = 0;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<N: Note> TarReader<Feed, N> {
    /// Passes over the data of the current entry.
    pub(super) fn pass(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.source.pass(left);
    }
}

struct Counted(Rc<RefCell<Out>>);

impl Note for Counted {
    fn inline(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.0.borrow_mut().inline += u64::try_from(bytes.len()).unwrap_or_default();
        Ok(())
    }
}

/// Reads a tar to its end and says what is in it.
pub(crate) fn parse(ends: Ends) {
    let Ends { input, output, control } = ends;
    // Who started it sees that it has ended.
    let Ok(view) = View::new(control.as_fd(), wire::PIECE) else { return };
    let out = Rc::new(RefCell::new(Out { file: output, said: Vec::new(), inline: 0 }));
    let (buffer, out_too) = (Vec::new(), Rc::clone(&out));
    let feed = Feed { input, view, place: 0, length: 0, copied: 0, buffer, at: 0, out: out_too };
    let mut tar = TarReader::new(feed, Counted(Rc::clone(&out)), Blame::new(""));
    let result = entries(&mut tar, &out);
    let mut out = out.borrow_mut();
    out.settle();
    match result {
        Ok(()) => wire::end(&mut out.said),
        Err(error) => wire::refusal(&mut out.said, &error),
    }
    // Where nobody hears it, the pull has ended.
    let _ = out.flush();
}

fn entries(tar: &mut TarReader<Feed, Counted>, out: &Rc<RefCell<Out>>) -> Result<(), ImageError> {
    let blame = Blame::new("");
    while let Some(entry) = tar.next()? {
        {
            let mut out = out.borrow_mut();
            out.settle();
            // Only whole messages: what cannot be an entry is a refusal instead.
            let before = out.said.len();
            if let Err(error) = wire::entry(&mut out.said, &entry, &blame) {
                out.said.truncate(before);
                return Err(error);
            }
            if out.said.len() > SAID {
                out.flush().map_err(|e| blame.stream(&e))?;
            }
        }
        if let Kind::File { .. } = entry.kind {
            tar.pass();
        }
    }
    Ok(())
}
