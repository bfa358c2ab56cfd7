//! Documents of registries and archives, read by a worker: JSON goes in, a structure of ours comes back in a binary form whose
//! reader knows no nesting but the structure's own.
//!
//! Owns: one worker for one document, what it is fed, how long it may take. A worker that a document took over can lie about
//! that document, of which whoever made it could have said the same; it never sees a second one. What comes back is checked by
//! whoever asked for it, as what the document says.
//!
//! Bounds: the answer is no longer than [`MAX_ANSWER`]. An element of a list takes a byte at least, so that what is made of
//! it takes some 24 times that, for a moment, where a worker lies; the callers' limits on lists come after it.

use super::bounded;
use super::error::ImageError;
use super::manifest::{ConfigFile, Raw};
use super::policy::{Bundle, Index, Manifest};
use super::registry::{Refusal, TokenReply};
use super::transfer::{Marker, Saved};
use super::unpack::plain;
use super::windows::Turns;
use crate::host::worker::{Ends, Program, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Reads one document. Memory: what four million bytes of JSON come to.
pub(crate) const READER: Program =
    Program { name: "document-read", memory: 256 << 20, descriptors: 0, calls: &[], fcntl: &[], body: work };
/// Bytes of an answer: the largest document has 4 MiB, and what it says is written shorter.
const MAX_ANSWER: u64 = 5 << 20;
/// Documents that are read at once: each takes a millisecond, and up to its reader's memory.
const AT_ONCE: usize = 4;
/// An honest one needs some ten milliseconds for the largest; more is a machine that has no time.
const PATIENCE: Duration = Duration::from_secs(20);
/// Before an answer, and before the words of a refusal.
const READ: u8 = b'y';
const REFUSED: u8 = b'n';

/// What a worker can read out of JSON; its number tells it which.
pub(crate) trait Document: Serialize + DeserializeOwned {
    const NUMBER: u8;
}

macro_rules! documents {
    ($($number:literal => $kind:ty,)*) => {
        $(impl Document for $kind {
            const NUMBER: u8 = $number;
        })*

        fn convert(number: u8, json: &[u8]) -> Result<Vec<u8>, String> {
            match number {
                $($number => converted::<$kind>(json),)*
                _ => Err("an unknown kind of document".into()),
            }
        }
    };
}

documents! {
    1 => Raw,
    2 => ConfigFile,
    3 => Vec<Saved>,
    4 => Marker,
    5 => Manifest,
    6 => Index,
    7 => Bundle,
    8 => TokenReply,
    9 => Refusal,
}

fn converted<T: Document>(json: &[u8]) -> Result<Vec<u8>, String> {
    let document: T = serde_json::from_slice(json).map_err(|e| bounded::fault(&e))?;
    postcard::to_stdvec(&document).map_err(|e| e.to_string())
}

/// Why there is no document.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unread {
    /// What the reader said of it.
    #[error("{0}")]
    Malformed(String),
    /// There is no reader, or it came to no good end.
    #[error(transparent)]
    Reader(#[from] ImageError),
}

impl Unread {
    /// As an error of this document.
    pub(crate) fn blame(self, malformed: impl FnOnce(String) -> ImageError) -> ImageError {
        match self {
            Self::Malformed(reason) => malformed(reason),
            Self::Reader(error) => error,
        }
    }
}

/// Has a document read. Blocking.
pub(crate) fn read<T: Document>(json: &[u8]) -> Result<T, Unread> {
    let failed = |e| ImageError::io("have a worker read", Path::new("document"), e);
    let answer = ask(T::NUMBER, json).map_err(failed)?;
    let said = |reason: &str| Unread::Malformed(format!("its reader {reason}"));
    match answer.split_first() {
        Some((&READ, binary)) => match postcard::take_from_bytes(binary) {
            Ok((document, [])) => Ok(document),
            _ => Err(said("said nonsense")),
        },
        Some((&REFUSED, words)) => Err(Unread::Malformed(plain(words))),
        Some(_) => Err(said("said nonsense")),
        None => Err(said("ended without a word")),
    }
}

static READING: Turns = Turns::new(AT_ONCE);

/// What a new worker answers to a document. A worker that does not end well has given no answer.
fn ask(number: u8, json: &[u8]) -> io::Result<Vec<u8>> {
    let _turn = READING.take();
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((input, ours), (answers, output), (control, _nobody)) = (pipe()?, pipe()?, pipe()?);
    let worker = Worker::start(&READER, input, output, control)?;
    let flags = rustix::fs::fcntl_getfl(&ours)?;
    rustix::fs::fcntl_setfl(&ours, flags | rustix::fs::OFlags::NONBLOCK)?;
    let until = Instant::now() + PATIENCE;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes();
    let asked = [&[number][..], &length, json].concat();
    give(&ours, &asked, until)?;
    drop(ours);
    let mut answer = Vec::new();
    let read = Answers { answers, until }.take(MAX_ANSWER + 1).read_to_end(&mut answer);
    if u64::try_from(read?).unwrap_or(u64::MAX) > MAX_ANSWER {
        return Err(io::Error::other("its reader says too much"));
    }
    match worker.end() {
        Some(end) if !answer.is_empty() => Err(io::Error::other(end)),
        _ => Ok(answer),
    }
}

/// Writes what it reads, and its reader may stop at any time.
fn give(to: &OwnedFd, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN) => wait(to, PollFlags::OUT, until)?,
            Err(rustix::io::Errno::INTR) => {}
            // It has ended: how, is told by what it said, or by its end.
            Err(rustix::io::Errno::PIPE) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

struct Answers {
    answers: OwnedFd,
    until: Instant,
}

impl Read for Answers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        wait(&self.answers, PollFlags::IN, self.until)?;
        Ok(rustix::io::read(&self.answers, into)?)
    }
}

fn wait(descriptor: &OwnedFd, event: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(descriptor, event)], Some(&left)) {
            Ok(0) => return Err(io::Error::other("its reader has stopped working")),
            Err(rustix::io::Errno::INTR) => {}
            polled => return Ok(polled.map(|_| ())?),
        }
    }
}

/// The worker: a number, a length, a document; and what it says.
fn work(ends: Ends) {
    let Ends { input, mut output, control: _ } = ends;
    let Ok((number, json)) = asked(input) else { return };
    let (kind, said) = match convert(number, &json) {
        Ok(binary) => (READ, binary),
        Err(words) => (REFUSED, words.into_bytes()),
    };
    // Nobody hears it: whoever asked has given up.
    let _ = output.write_all(&[&[kind][..], &said].concat());
}

fn asked(mut input: File) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    input.read_exact(&mut head)?;
    let [number, length @ ..] = head;
    let mut json = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX)];
    input.read_exact(&mut json)?;
    Ok((number, json))
}

/// What is there and means nothing to us: any JSON, and no bytes in the binary form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ignored;

impl Serialize for Ignored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            IgnoredAny::deserialize(deserializer)?;
        } else {
            <()>::deserialize(deserializer)?;
        }
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that a document took over says what it likes: it is heard within bounds, or refused.
    #[test]
    fn whatever_a_reader_says_ends() {
        let binary = converted::<ConfigFile>(
            br#"{"os":"linux","config":{"Env":["A=b"],"Volumes":{"/v":{}}},"rootfs":{"diff_ids":null}}"#,
        )
        .unwrap();
        assert!(postcard::from_bytes::<ConfigFile>(&binary).is_ok());
        for at in 0..binary.len() {
            assert!(postcard::from_bytes::<ConfigFile>(&binary[..at]).is_err(), "cut at {at}");
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = binary.clone();
                bad[at] = value;
                let _ = postcard::from_bytes::<ConfigFile>(&bad);
            }
        }
        // A list of as many elements as there are numbers, and none of them.
        assert!(postcard::from_bytes::<Vec<Saved>>(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }

    #[test]
    fn documents_come_back_and_refusals_say_why() {
        let marker: Marker = read(br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        assert_eq!(marker.image_layout_version, "1.0.0");
        let error = read::<Marker>(b"{\"imageLayoutVersion\":1}\x1b[2J").unwrap_err().to_string();
        assert!(error.contains("a value of another kind, expected a string"), "{error}");
        // serde_json's own limit of depth.
        assert!(read::<Raw>("[".repeat(1 << 20).as_bytes()).is_err());
        let large = format!(r#"{{"imageLayoutVersion":"{}"}}"#, "x".repeat(4 << 20));
        assert!(read::<Marker>(large.as_bytes()).is_ok());
        let larger = format!(r#"{{"imageLayoutVersion":"{}"}}"#, "x".repeat(5 << 20));
        assert!(read::<Marker>(larger.as_bytes()).unwrap_err().to_string().contains("says too much"));
    }
}
