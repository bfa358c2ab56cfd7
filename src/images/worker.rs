//! What works on other people's bytes with no rights: a decompressor and a tar parser, one of each for one layer.
//!
//! Owns how they are fed and emptied, and what their ends mean. Both are processes of `host::worker`, which says what they
//! lack.
//!
//! Why two: the decompressor is the larger risk (C, and every byte is the registry's), and what it makes is hashed before it
//! is believed. It may make whatever it likes: if it is another layer's tar, byte for byte, it has made that layer, and if
//! not, the digest is not that layer's. A parser gets the very bytes that are hashed: a layer that takes it over has a
//! digest of its own, under which it may say of itself what it likes. In one process, the first could make another layer's
//! bytes and say that they mean something else, under the other's digest.
//!
//! That the parser sees what is hashed: what the decompressor makes is copied into memory of this process once, and both the
//! digest and the parser's pieces are taken of that copy. The pages that come through the pipe are the decompressor's own, which
//! may change under whoever looks at them; nobody but that one copy does.

use super::decompress::{Ask, Decoder};
use super::error::ImageError;
use super::unpack::{self, plain};
use super::windows::{Window, Windows};
use crate::host::worker::{Ends, Program, Worker};
use podwright_sys::lend::{Pages, Shown};
use podwright_sys::seccomp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Turns a compressed stream into what is in it. Memory: the largest window, and buffers.
pub(crate) const DECOMPRESSOR: Program = Program {
    name: "layer-decompress",
    memory: 160 << 20,
    descriptors: 0,
    calls: &[seccomp::SYS_vmsplice],
    fcntl: &[],
    body: decompress,
};
/// Says what is in a tar. Memory: one PAX header with what it says, a sparse map, and buffers.
pub(crate) const PARSER: Program = Program {
    name: "layer-parse",
    memory: 32 << 20,
    descriptors: 0,
    calls: &[],
    fcntl: &[],
    body: unpack::parse,
};
/// Bytes in the pipe into a decompressor: it reads as much at once. In larger ones the bytes leave the processor's cache, in
/// smaller ones there are more switches between the processes.
const PIPE: usize = 256 << 10;
/// Bytes at a time in the decompressor, and from it: the buffers stay in the processor's cache.
const BUFFER: usize = 256 << 10;
/// Bytes in the pipe from a decompressor: not more than one of its two buffers has, see [`pour`].
const LENT: usize = BUFFER;
/// Bytes of a parser's words that are read at once.
const WORDS: usize = 64 << 10;
/// Bytes of the text of an error.
const MAX_TEXT: usize = 200;
/// A worker that has bytes to work on and says or makes nothing in this time is given up. An honest one needs a fraction of a
/// second for what a pipe holds.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// The rest of a message that has begun, and room for an answer, come in this time, or never.
const TALK: Duration = Duration::from_secs(60);

/// A pipe of ours.
fn pipe(size: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Less will do, where it is refused; and it is not more without this.
    let _ = fcntl_setpipe_size(&write, size);
    Ok((read, write))
}

/// What we talk over, and a worker's end of it. Ours never waits longer than [`TALK`]; a worker may have to wait for a window.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    limit_talk(&ours, TALK)?;
    Ok((ours, theirs))
}

fn limit_talk(ours: &OwnedFd, limit: Duration) -> io::Result<()> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(ours, direction, Some(limit))?;
    }
    Ok(())
}

/// An error of talking; one that has waited too long is told as what it is.
fn talked(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => stopped_working(),
        _ => error,
    }
}

fn stopped_working() -> io::Error {
    io::Error::other("its decompressor has stopped working")
}

/// The work of a decompressor. It asks for windows (`W` and the bytes; any byte is the permission), and says how it ended:
/// `E`, or `F` with a text.
fn decompress(ends: Ends) {
    let Ends { input, output, control } = ends;
    // By reference: a worker may make no descriptor.
    let mut asking = &control;
    let ask: Ask = Box::new(move |window| {
        let mut message = vec![b'W'];
        message.extend(window.to_le_bytes());
        asking.write_all(&message)?;
        let mut answer = [0];
        asking.read_exact(&mut answer)
    });
    let result = pour(input, output, ask);
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
    let _ = (&control).write_all(&message);
}

/// Decompresses into two buffers by turns, whose pages go into the pipe as they are. The pipe holds no more than one of them:
/// when the last page of one is in it, the last page of the other has left it, and that one can be written to again.
fn pour(input: File, output: File, ask: Ask<'_>) -> io::Result<()> {
    let mut decoder = Decoder::sniff(BufReader::with_capacity(BUFFER, input), ask)?;
    let (mut buffer, mut other) = (Pages::new(BUFFER)?, Pages::new(BUFFER)?);
    loop {
        let mut filled = 0;
        let mut result = Ok(());
        while filled < BUFFER {
            match decoder.read(&mut buffer.bytes()[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        buffer.lend(output.as_fd(), filled)?;
        result?;
        // Only the last one is not full.
        if filled < BUFFER {
            return Ok(());
        }
        std::mem::swap(&mut buffer, &mut other);
    }
}

/// What a worker was given so far, as who waits for it sees it.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    /// Bytes.
    pub(crate) bytes: AtomicU64,
    /// The same with those that are just being given: never fewer than the worker has.
    pub(crate) offered: AtomicU64,
    /// No bytes come at the moment, and that is not the worker's doing.
    pub(crate) waiting: AtomicBool,
    /// No more will come, though these are not all.
    pub(crate) is_cut: AtomicBool,
}

/// A decompressor at work. For one thread.
pub(crate) struct Decompressor {
    worker: Option<Worker>,
    output: OwnedFd,
    control: Option<File>,
    windows: Arc<Windows>,
    window: Option<Window>,
    fed: Arc<Fed>,
    said: Option<Result<(), String>>,
}

impl Decompressor {
    /// Starts one; the compressed stream is to be written to the file, by another thread, which counts in `fed`.
    pub(crate) fn start(windows: &Arc<Windows>, fed: &Arc<Fed>) -> io::Result<(Self, File)> {
        let (input, compressed) = pipe(PIPE)?;
        let (output, made) = pipe(LENT)?;
        let (control, theirs) = pair()?;
        let worker = Worker::start(&DECOMPRESSOR, input, made, theirs)?;
        let decompressor = Self {
            worker: Some(worker),
            output,
            control: Some(control.into()),
            windows: Arc::clone(windows),
            window: None,
            fed: Arc::clone(fed),
            said: None,
        };
        Ok((decompressor, compressed.into()))
    }

    /// Waits until there is output, or its end, and gives it what it asks for meanwhile.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            let before = self.fed.bytes.load(Ordering::Relaxed);
            let (output, control) = {
                let mut wanted = vec![PollFd::new(&self.output, PollFlags::IN)];
                wanted.extend(self.control.as_ref().map(|control| PollFd::new(control, PollFlags::IN)));
                match poll(&mut wanted, Some(&PATIENCE)) {
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                    Ok(0) => {
                        let idle = self.fed.waiting.load(Ordering::Relaxed)
                            || self.fed.bytes.load(Ordering::Relaxed) != before;
                        if idle {
                            continue;
                        }
                        return Err(stopped_working());
                    }
                    Ok(_) => {}
                }
                let is = |at: usize| wanted.get(at).is_some_and(|fd| !fd.revents().is_empty());
                (is(0), is(1))
            };
            if control {
                self.hear().map_err(talked)?;
            }
            if output {
                return Ok(());
            }
        }
    }

    /// Reads one message.
    fn hear(&mut self) -> io::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let mut kind = [0];
        match control.read(&mut kind) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            // It has ended, perhaps with something unread.
            Ok(0) | Err(_) => {
                self.control = None;
                return Ok(());
            }
        }
        match kind {
            [b'W'] => {
                let mut bytes = [0; 8];
                control.read_exact(&mut bytes)?;
                // What it has is free again in it; and two that wait for each other's would wait for ever.
                self.window = None;
                let window = self.windows.take(u64::from_le_bytes(bytes));
                let Some(window) = window else {
                    let largest = self.windows.largest() >> 20;
                    return Err(io::Error::other(format!(
                        "a zstd frame needs a larger window than is allowed ({largest} MiB)"
                    )));
                };
                self.window = Some(window);
                control.write_all(b"y")
            }
            [b'E'] => {
                self.said = Some(Ok(()));
                Ok(())
            }
            [b'F'] => {
                let mut length = [0];
                control.read_exact(&mut length)?;
                let mut text = vec![0; usize::from(length[0])];
                control.read_exact(&mut text)?;
                self.said = Some(Err(plain(&text)));
                Ok(())
            }
            _ => Err(io::Error::other("its decompressor said nonsense")),
        }
    }

    /// The output has ended: whether that was its end.
    fn ended(&mut self) -> io::Result<()> {
        while self.said.is_none() && self.control.is_some() {
            self.hear().map_err(talked)?;
        }
        self.window = None;
        let end = self.worker.take().and_then(Worker::end);
        match (self.said.take(), end) {
            (Some(Ok(())), None) => {
                self.said = Some(Ok(()));
                Ok(())
            }
            (Some(Err(text)), _) => Err(io::Error::other(text)),
            (_, Some(end)) => Err(io::Error::other(format!("its decompressor: {end}"))),
            (None, None) => Err(io::Error::other("its decompressor ended without a word")),
        }
    }
}

impl Read for Decompressor {
    /// Fills `into`, but for the last bytes: the fewer switches, the better.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            if matches!(self.said, Some(Ok(()))) && self.worker.is_none() {
                break;
            }
            self.wait()?;
            match rustix::io::read(&self.output, &mut into[filled..]) {
                Ok(0) => self.ended()?,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(filled)
    }
}

/// A tar parser at work. For one thread.
pub(crate) struct Parser {
    /// None: it has ended.
    worker: Option<Worker>,
    /// None: there is no more.
    pieces: Option<OwnedFd>,
    /// Where it sees them.
    shown: Shown,
    words: BufReader<Said>,
}

impl Parser {
    /// Starts one.
    pub(crate) fn start() -> io::Result<Self> {
        let (input, pieces) = pipe(0)?;
        let (words, said) = pipe(WORDS)?;
        let (shown, seen) = Shown::new(unpack::PIECE)?;
        let worker = Worker::start(&PARSER, input, said, seen)?;
        // Only our end of it: the worker waits for its pieces.
        let flags = rustix::fs::fcntl_getfl(&pieces)?;
        rustix::fs::fcntl_setfl(&pieces, flags | rustix::fs::OFlags::NONBLOCK)?;
        let words = Said { words, patience: PATIENCE };
        let words = BufReader::with_capacity(WORDS, words);
        Ok(Self { worker: Some(worker), pieces: Some(pieces), shown, words })
    }
}

impl unpack::Parser for Parser {
    fn give(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(pieces) = &self.pieces else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let said = self.words.get_mut();
        said.patience = PATIENCE;
        self.shown.write(piece)?;
        let length = u32::try_from(piece.len()).map_err(io::Error::other)?.to_le_bytes();
        let mut left = &length[..];
        while !left.is_empty() {
            match rustix::io::write(pieces, left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(Errno::AGAIN) => said.wait(pieces, PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn no_more(&mut self) {
        self.pieces = None;
    }

    fn end(&mut self) -> Option<String> {
        self.worker.take().and_then(Worker::end)
    }
}

impl Read for Parser {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.words.read(into)
    }
}

/// What a parser says. It has something to say it about whenever this is waited for.
struct Said {
    words: OwnedFd,
    /// How much longer it may take over the piece that it has, or over taking it.
    patience: Timespec,
}

impl Said {
    fn wait(&mut self, descriptor: &OwnedFd, event: PollFlags) -> io::Result<()> {
        wait_within(descriptor, event, &mut self.patience)
    }
}

impl Read for Said {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        wait_within(&self.words, PollFlags::IN, &mut self.patience)?;
        Ok(rustix::io::read(&self.words, into)?)
    }
}

/// Waits for a parser, and takes the time from what it has.
fn wait_within(descriptor: &OwnedFd, event: PollFlags, patience: &mut Timespec) -> io::Result<()> {
    loop {
        let begun = Instant::now();
        let polled = poll(&mut [PollFd::new(descriptor, event)], Some(patience));
        let left = Duration::try_from(*patience).unwrap_or_default().saturating_sub(begun.elapsed());
        *patience = Timespec::try_from(left).map_err(io::Error::other)?;
        match polled {
            Ok(0) => return Err(io::Error::other("its tar parser has stopped working")),
            Err(Errno::INTR) => {}
            polled => return Ok(polled.map(|_| ())?),
        }
    }
}

/// A stream of this process's, decompressed by a worker.
pub(crate) struct Decompressed {
    decompressor: Decompressor,
    failed: std::sync::mpsc::Receiver<io::Error>,
}

impl Decompressed {
    /// Reads `source` in a thread of its own.
    pub(crate) fn new(mut source: impl Read + Send + 'static, windows: &Arc<Windows>) -> io::Result<Self> {
        let fed = Arc::default();
        let (decompressor, mut compressed) = Decompressor::start(windows, &fed)?;
        let (fail, failed) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("decompress-feed".into()).spawn(move || {
            let mut buffer = vec![0; BUFFER];
            loop {
                fed.waiting.store(true, Ordering::Relaxed);
                let read = source.read(&mut buffer);
                fed.waiting.store(false, Ordering::Relaxed);
                match read {
                    Ok(0) => return,
                    // The decompressor has ended: it has said why.
                    Ok(length) if compressed.write_all(&buffer[..length]).is_err() => return,
                    Ok(length) => {
                        fed.bytes.fetch_add(u64::try_from(length).unwrap_or_default(), Ordering::Relaxed);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        let _ = fail.send(e);
                        return;
                    }
                }
            }
        })?;
        Ok(Self { decompressor, failed })
    }
}

impl Read for Decompressed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.decompressor.read(into);
        match read {
            // The source's own error, not that of a stream cut off by it.
            Ok(0) | Err(_) => self.failed.try_recv().map_or(read, Err),
            read => read,
        }
    }
}

/// An error of making workers.
pub(super) fn cannot_start(error: io::Error) -> ImageError {
    ImageError::io("start a worker for", std::path::Path::new("layer"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decompressed(source: impl Read + Send + 'static, budget: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressed::new(source, &Windows::new(budget))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_a_worker_makes_and_says_arrives() {
        let data: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let packed = gzip(&data);
        assert!(decompressed(io::Cursor::new(packed.clone()), 0).unwrap() == data);
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        assert!(decompressed(io::Cursor::new(zstd), 0).unwrap() == data);
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&data).unwrap();
        let large = encoder.finish().unwrap();
        assert!(decompressed(io::Cursor::new(large.clone()), 32 << 20).unwrap() == data);
        let error = decompressed(io::Cursor::new(large), 31 << 20).unwrap_err().to_string();
        assert!(error.contains("larger window than is allowed"), "{error}");
        let cut = packed[..packed.len() / 2].to_vec();
        assert!(decompressed(io::Cursor::new(cut), 0).is_err(), "a stream that is cut off");
        let error = decompressed(io::Cursor::new(&b"BZh9"[..]), 0).unwrap_err().to_string();
        assert!(error.contains("bzip2"), "{error}");
        assert!(decompressed(io::empty(), 0).unwrap().is_empty());
    }

    #[test]
    fn the_sources_own_error_is_the_one_that_is_told() {
        struct Broken(io::Cursor<Vec<u8>>);
        impl Read for Broken {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                match self.0.read(into)? {
                    0 => Err(io::Error::other("the disk has gone")),
                    read => Ok(read),
                }
            }
        }
        let packed = gzip(&vec![7; 100_000]);
        let cut = packed[..packed.len() / 2].to_vec();
        let error = decompressed(Broken(io::Cursor::new(cut)), 0).unwrap_err().to_string();
        assert_eq!(error, "the disk has gone");
    }

    /// A decompressor that was taken over cannot hold who hears it.
    #[test]
    fn one_that_stops_in_the_middle_of_talking_is_given_up() {
        let say_and_stop = |said: &[u8]| {
            let (output, made) = pipe(LENT).unwrap();
            let (control, theirs) = pair().unwrap();
            for direction in [Timeout::Recv, Timeout::Send] {
                let limit = rustix::net::sockopt::socket_timeout(&control, direction).unwrap();
                assert_eq!(limit, Some(TALK));
            }
            limit_talk(&control, Duration::from_millis(1)).unwrap();
            rustix::io::write(&theirs, said).unwrap();
            // Its output has ended; it lives, and neither hears nor says more.
            drop(made);
            let mut decompressor = Decompressor {
                worker: None,
                output,
                control: Some(control.into()),
                windows: Windows::new(1 << 20),
                window: None,
                fed: Arc::default(),
                said: None,
            };
            let error = decompressor.read(&mut [0; 16]).unwrap_err().to_string();
            drop(theirs);
            error
        };
        let asks = [&b"W"[..], &1u64.to_le_bytes()].concat().repeat(10_000);
        for said in [&b""[..], b"W", b"W123", b"F", b"F\x05no", &asks] {
            assert_eq!(
                say_and_stop(said),
                "its decompressor has stopped working",
                "{:?}",
                &said[..said.len().min(9)]
            );
        }
    }

    /// Whatever a decompressor does with the pages that it has lent: what was read stays as it was read.
    #[test]
    fn pages_that_change_later_change_nothing_that_was_read() {
        let (output, made) = pipe(LENT).unwrap();
        let mut pages = Pages::new(BUFFER).unwrap();
        pages.bytes().fill(1);
        pages.lend(made.as_fd(), BUFFER).unwrap();
        let mut decompressor = Decompressor {
            worker: None,
            output,
            control: None,
            windows: Windows::new(0),
            window: None,
            fed: Arc::default(),
            said: None,
        };
        let mut first = vec![0; BUFFER / 2];
        assert_eq!(decompressor.read(&mut first).unwrap(), BUFFER / 2);
        pages.bytes().fill(2);
        let mut second = vec![0; BUFFER / 2];
        assert_eq!(decompressor.read(&mut second).unwrap(), BUFFER / 2);
        assert!(first.iter().all(|byte| *byte == 1), "there is one copy, which is ours");
        assert!(second.iter().all(|byte| *byte == 2), "its pages are in the pipe itself");
    }

    /// What is lent is not written to before it was taken: many times both buffers, read in odd pieces and late.
    #[test]
    fn a_buffer_is_used_again_only_when_it_was_taken() {
        let data: Vec<u8> = (0..1_500_000u32).flat_map(u32::to_le_bytes).collect();
        let fed = Arc::default();
        let (mut decompressor, mut input) = Decompressor::start(&Windows::new(0), &fed).unwrap();
        let packed = gzip(&data);
        let feeder = std::thread::spawn(move || input.write_all(&packed).unwrap());
        let mut out: Vec<u8> = Vec::new();
        for length in [1, 4095, 4097, 70_001, BUFFER, 333_333].into_iter().cycle() {
            std::thread::yield_now();
            let mut piece = vec![0; length];
            let read = decompressor.read(&mut piece).unwrap();
            out.extend(&piece[..read]);
            if read < length {
                break;
            }
        }
        feeder.join().unwrap();
        assert!(out == data);
    }

    /// A parser that takes nothing, or says nothing, is given up.
    #[test]
    fn a_parser_that_stops_is_given_up() {
        use unpack::Parser as _;
        for takes in [false, true] {
            let (input, pieces) = pipe(PIPE).unwrap();
            let (words, said) = pipe(WORDS).unwrap();
            let mut left = Timespec { tv_sec: 0, tv_nsec: 1 };
            let error = if takes {
                Said { words, patience: left }.read(&mut [0; 8]).unwrap_err()
            } else {
                wait_within(&words, PollFlags::IN, &mut left).unwrap_err()
            };
            assert_eq!(error.to_string(), "its tar parser has stopped working");
            drop((input, pieces, said));
        }
        // One that has ended is told by its words, or by their end.
        let mut parser = Parser::start().unwrap();
        parser.give(&[1; 512]).unwrap();
        let mut words = Vec::new();
        parser.read_to_end(&mut words).unwrap();
        assert_eq!(words.first(), Some(&b'N'));
        while parser.give(&[1; 512]).is_ok() {
            std::thread::yield_now();
        }
    }
}
