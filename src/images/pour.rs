//! The decompressor as a worker: a compressed stream in memory on one side, what is in it in memory on the other. Knows no layer
//! and no file.
//!
//! What goes in is told over its input: the bytes in the next place, 0 at the end; it answers with [`FREE`] for each place.
//! Over the control it tells what it has made (`T` and the bytes in the next place), asks for windows (`W` and the bytes), and
//! says how it ended: `E`, or `F` with a text. It hears [`FREE`] and [`GRANTED`]. It trusts the daemon, which puts nothing
//! where it has not heard that the place is free.

use super::areas::{IN, INS, MADE, OUT, OUTS};
use super::decompress::{Ask, Decoder};
use crate::host::worker::Ends;
use podwright_sys::lend::Shared;
use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A place is free again.
pub(super) const FREE: u8 = b'c';
/// So many are told to be free at once: each waking costs both sides.
pub(super) const FREED: usize = 2;
/// A window may be allocated.
pub(super) const GRANTED: u8 = b'y';
/// Bytes of the text of an error.
const MAX_TEXT: usize = 200;

/// The work of a decompressor.
pub(super) fn decompress(ends: Ends) {
    let Ends { input, output, control } = ends;
    let open = || -> io::Result<(Given, Made)> {
        let given = Shared::open(output.as_fd(), 0, INS * IN)?;
        let made = Shared::open(output.as_fd(), MADE, OUTS * OUT)?;
        let given =
            Given { socket: input, memory: given, place: 0, length: 0, at: 0, freed: 0, has_all: false };
        Ok((given, Made { memory: made, place: 0 }))
    };
    let talk = Talk { control, free: AtomicUsize::new(OUTS) };
    let result = open().and_then(|(given, made)| pour(given, made, &talk));
    let mut message = Vec::new();
    match result {
        Ok(()) => message.push(b'E'),
        Err(error) => {
            let text = error.to_string();
            let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
            message.extend([b'F', u8::try_from(text.len()).unwrap_or_default()]);
            message.extend(text);
        }
    }
    // Nobody hears it: the pull has ended.
    let _ = (&talk.control).write_all(&message);
}

/// What a decompressor was given. The daemon puts nothing where it has not heard that the place is free.
struct Given {
    socket: File,
    memory: Shared,
    place: usize,
    /// Bytes in the place, and how many of them were used.
    length: usize,
    at: usize,
    /// Places that are free, and not said to be.
    freed: usize,
    has_all: bool,
}

impl BufRead for Given {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.length && !self.has_all {
            if self.length > 0 {
                self.freed += 1;
                if self.freed == FREED {
                    // Where nobody hears it, there is no more.
                    let _ = self.socket.write_all(&[FREE; FREED]);
                    self.freed = 0;
                }
                self.place = (self.place + 1) % INS;
                (self.length, self.at) = (0, 0);
            }
            let mut length = [0; 4];
            self.socket.read_exact(&mut length)?;
            self.length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            self.has_all = self.length == 0;
            if self.length > IN {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        self.memory.bytes(self.place * IN + self.at, self.length - self.at)
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.length.min(self.at + amount);
    }
}

impl Read for Given {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// What a decompressor has made.
struct Made {
    memory: Shared,
    place: usize,
}

/// A decompressor's end of what it talks over.
struct Talk {
    control: File,
    /// Places that it may write to.
    free: AtomicUsize,
}

impl Talk {
    /// Waits for an answer of this kind.
    fn hear(&self, wanted: u8) -> io::Result<()> {
        loop {
            let mut answers = [0; OUTS + 1];
            let count = match (&self.control).read(&mut answers) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let answers = &answers[..count];
            self.free.fetch_add(answers.iter().filter(|said| **said == FREE).count(), Ordering::Relaxed);
            if answers.contains(&wanted) {
                return Ok(());
            }
        }
    }

    /// Waits for a place to write to.
    fn place(&self) -> io::Result<()> {
        if self.free.load(Ordering::Relaxed) == 0 {
            self.hear(FREE)?;
        }
        self.free.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Decompresses into one place after the other.
fn pour(given: Given, mut made: Made, talk: &Talk) -> io::Result<()> {
    let ask: Ask<'_> = Box::new(|window| {
        let mut message = vec![b'W'];
        message.extend(window.to_le_bytes());
        (&talk.control).write_all(&message)?;
        talk.hear(GRANTED)
    });
    let mut decoder = Decoder::sniff(given, ask)?;
    loop {
        talk.place()?;
        let room = made.memory.room(made.place * OUT, OUT)?;
        let mut filled = 0;
        let mut result = Ok(());
        while filled < room.len() {
            match decoder.read(&mut room[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if filled > 0 {
            let mut message = vec![b'T'];
            message.extend(u32::try_from(filled).map_err(io::Error::other)?.to_le_bytes());
            (&talk.control).write_all(&message)?;
        }
        result?;
        // Only the last one is not full.
        if filled < OUT {
            return Ok(());
        }
        made.place = (made.place + 1) % OUTS;
    }
}
