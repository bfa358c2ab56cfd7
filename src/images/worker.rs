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
//! That the parser sees what is hashed: what the decompressor makes is copied once into memory that this process alone writes,
//! and digest, parser and files are given that copy. The memory that the decompressor writes may change under whoever looks at
//! it; nobody but that one copy does. What goes into it was hashed before it is put there, and is read there by nobody else.

use super::areas::{Area, IN, INS, MADE, OUT, OUTS};
use super::error::ImageError;
use super::pour::{self, FREE, FREED, GRANTED};
use super::unpack::{self, plain};
use super::windows::{Window, Windows};
use crate::host::worker::{Program, Worker};
use podwright_sys::lend::{Shared, Shown};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Turns a compressed stream into what is in it. Memory: the largest window, and buffers.
pub(crate) const DECOMPRESSOR: Program = Program {
    name: "layer-decompress",
    memory: 160 << 20,
    descriptors: 0,
    calls: &[],
    fcntl: &[],
    body: pour::decompress,
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
/// Messages of decompressors that are read at once: bytes.
const MESSAGES: usize = 64;
/// Bytes of a parser's words that are read at once.
const WORDS: usize = 64 << 10;
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

/// The way into a decompressor.
pub(crate) struct Compressed {
    socket: File,
    memory: Arc<Area<Shared>>,
    place: usize,
    /// Places that it has told to be free.
    free: usize,
}

impl Compressed {
    /// Gives it more of the stream; waits where it has enough.
    pub(crate) fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(IN) {
            if self.free == 0 {
                let mut told = [0; INS];
                let count = self.socket.read(&mut told)?;
                if count == 0 || told[..count].iter().any(|said| *said != FREE) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.free = count;
            }
            self.memory.write(self.place * IN, piece)?;
            self.tell(piece.len())?;
            self.place = (self.place + 1) % INS;
            self.free -= 1;
        }
        Ok(())
    }

    /// These were all. Without this it takes the stream for one that was cut off.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.tell(0)
    }

    fn tell(&mut self, length: usize) -> io::Result<()> {
        self.socket.write_all(&u32::try_from(length).map_err(io::Error::other)?.to_le_bytes())
    }
}

/// A decompressor at work. For one thread.
pub(crate) struct Decompressor {
    /// Ended before the memory is left to others.
    worker: Option<Worker>,
    /// Where it reads and writes.
    memory: Arc<Area<Shared>>,
    place: usize,
    /// Bytes in the place, and how many of them were read; it is to be told when all were.
    length: usize,
    at: usize,
    /// Places that are free, and not said to be.
    freed: usize,
    /// None: it has ended.
    control: Option<BufReader<File>>,
    windows: Arc<Windows>,
    window: Option<Window>,
    fed: Arc<Fed>,
    said: Option<Result<(), String>>,
}

impl Decompressor {
    /// Starts one; the compressed stream is to be given by another thread, which counts in `fed`.
    pub(crate) fn start(windows: &Arc<Windows>, fed: &Arc<Fed>) -> io::Result<(Self, Compressed)> {
        let (socket, input) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (control, theirs) = pair()?;
        let (memory, area) = Area::take()?;
        let memory = Arc::new(memory);
        let worker = Worker::start(&DECOMPRESSOR, input, area, theirs)?;
        let compressed =
            Compressed { socket: socket.into(), memory: Arc::clone(&memory), place: 0, free: INS };
        Ok((Self::new(Some(worker), memory, control, windows, fed), compressed))
    }

    fn new(
        worker: Option<Worker>,
        memory: Arc<Area<Shared>>,
        control: OwnedFd,
        windows: &Arc<Windows>,
        fed: &Arc<Fed>,
    ) -> Self {
        Self {
            worker,
            memory,
            place: 0,
            length: 0,
            at: 0,
            freed: 0,
            control: Some(BufReader::with_capacity(MESSAGES, control.into())),
            windows: Arc::clone(windows),
            window: None,
            fed: Arc::clone(fed),
            said: None,
        }
    }

    /// Waits until there is output, gives it what it asks for meanwhile, and returns how many bytes; 0: it has ended.
    fn wait(&mut self) -> io::Result<usize> {
        while self.at == self.length {
            if self.said.is_some() || self.control.is_none() {
                self.ended()?;
                return Ok(0);
            }
            let before = self.fed.bytes.load(Ordering::Relaxed);
            match self.hear() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let idle = self.fed.waiting.load(Ordering::Relaxed)
                        || self.fed.bytes.load(Ordering::Relaxed) != before;
                    if !idle {
                        return Err(stopped_working());
                    }
                }
                heard => heard?,
            }
        }
        Ok(self.length - self.at)
    }

    /// So many bytes of the output have been copied.
    fn took(&mut self, count: usize) -> io::Result<()> {
        self.at += count;
        if self.at < self.length {
            return Ok(());
        }
        self.place = (self.place + 1) % OUTS;
        self.freed += 1;
        let Some(control) = self.control.as_mut().filter(|_| self.freed == FREED) else { return Ok(()) };
        self.freed = 0;
        match control.get_mut().write_all(&[FREE; FREED]) {
            // It has ended, and what it said before is still to be heard.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(())
            }
            told => told.map_err(talked),
        }
    }

    /// Copies what it has made into memory that it cannot write: as much as there is room for, but for the last bytes.
    pub(crate) fn fill(&mut self, into: &mut Shown) -> io::Result<usize> {
        let (room, mut filled) = (into.bytes().len(), 0);
        while filled < room {
            let count = self.wait()?.min(room - filled);
            if count == 0 {
                break;
            }
            into.take(filled, &self.memory, MADE + self.place * OUT + self.at, count)?;
            filled += count;
            self.took(count)?;
        }
        Ok(filled)
    }

    /// Reads one message. The error is `WouldBlock` only where none has begun.
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
            [b'T'] => {
                let mut length = [0; 4];
                control.read_exact(&mut length).map_err(talked)?;
                let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
                // Only the last one is not full: it could make us work for each byte.
                let is_last = self.length > 0 && self.length < OUT;
                if length == 0 || length > OUT || is_last {
                    return Err(io::Error::other("its decompressor said nonsense"));
                }
                (self.length, self.at) = (length, 0);
                Ok(())
            }
            [b'W'] => {
                let mut bytes = [0; 8];
                control.read_exact(&mut bytes).map_err(talked)?;
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
                control.get_mut().write_all(&[GRANTED]).map_err(talked)
            }
            [b'E'] => {
                self.said = Some(Ok(()));
                Ok(())
            }
            [b'F'] => {
                let mut length = [0];
                control.read_exact(&mut length).map_err(talked)?;
                let mut text = vec![0; usize::from(length[0])];
                control.read_exact(&mut text).map_err(talked)?;
                self.said = Some(Err(plain(&text)));
                Ok(())
            }
            _ => Err(io::Error::other("its decompressor said nonsense")),
        }
    }

    /// There is no more output: whether that was its end.
    fn ended(&mut self) -> io::Result<()> {
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
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let count = self.wait()?.min(into.len());
        self.memory.read(MADE + self.place * OUT + self.at, &mut into[..count])?;
        if count > 0 {
            self.took(count)?;
        }
        Ok(count)
    }
}

/// A tar parser at work. For one thread.
pub(crate) struct Parser {
    /// None: it has ended.
    worker: Option<Worker>,
    /// None: there is no more.
    pieces: Option<OwnedFd>,
    /// Where it sees them. None: in memory of who gives them.
    shown: Option<Area<Shown>>,
    words: BufReader<Said>,
}

impl Parser {
    /// Starts one.
    pub(crate) fn start() -> io::Result<Self> {
        let (shown, seen) = Area::take()?;
        Self::seeing(Some(shown), seen)
    }

    /// Starts one that looks at memory of the caller's, [`unpack::PIECE`] bytes, which has the tar.
    pub(crate) fn start_with(seen: OwnedFd) -> io::Result<Self> {
        Self::seeing(None, seen)
    }

    fn seeing(shown: Option<Area<Shown>>, seen: OwnedFd) -> io::Result<Self> {
        let (input, pieces) = pipe(0)?;
        let (words, said) = pipe(WORDS)?;
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
    fn give(&mut self, piece: &[u8], place: Option<usize>) -> io::Result<()> {
        let Some(pieces) = &self.pieces else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let said = self.words.get_mut();
        said.patience = PATIENCE;
        let place = match (place, &mut self.shown) {
            (Some(place), None) => place,
            (None, Some(shown)) => {
                shown.write(piece)?;
                0
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let message = unpack::where_it_is(place, piece.len())?;
        let mut left = &message[..];
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
            let mut buffer = vec![0; IN];
            loop {
                fed.waiting.store(true, Ordering::Relaxed);
                let read = source.read(&mut buffer);
                fed.waiting.store(false, Ordering::Relaxed);
                match read {
                    Ok(0) => {
                        let _ = compressed.end();
                        return;
                    }
                    // The decompressor has ended: it has said why.
                    Ok(length) if compressed.give(&buffer[..length]).is_err() => return,
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
    use rustix::fd::AsFd as _;

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

    /// A decompressor that we play: its end of the talk, and the memory.
    fn played() -> (Decompressor, File, Shared) {
        let (control, theirs) = pair().unwrap();
        for direction in [Timeout::Recv, Timeout::Send] {
            let limit = rustix::net::sockopt::socket_timeout(&control, direction).unwrap();
            assert_eq!(limit, Some(TALK));
        }
        limit_talk(&control, Duration::from_millis(1)).unwrap();
        let (ours, area) = Area::take().unwrap();
        let memory = Shared::open(area.as_fd(), MADE, OUTS * OUT).unwrap();
        let windows = Windows::new(1 << 20);
        (Decompressor::new(None, Arc::new(ours), control, &windows, &Arc::default()), theirs.into(), memory)
    }

    fn made(length: usize) -> Vec<u8> {
        [&b"T"[..], &u32::try_from(length).unwrap().to_le_bytes()].concat()
    }

    /// A decompressor that was taken over cannot hold who hears it.
    #[test]
    fn one_that_stops_in_the_middle_of_talking_is_given_up() {
        let asks = [&b"W"[..], &1u64.to_le_bytes()].concat().repeat(10_000);
        let makes = made(OUT).repeat(200_000);
        for said in [&b""[..], b"W", b"W123", b"F", b"F\x05no", b"T", b"T12", &asks, &makes] {
            let (mut decompressor, mut theirs, _memory) = played();
            // It lives, and neither hears nor says more.
            let saying = theirs.try_clone().unwrap();
            let error = std::thread::scope(|scope| {
                scope.spawn(move || (&saying).write_all(said));
                let mut sum = 0;
                loop {
                    match decompressor.read(&mut [0; OUT]) {
                        Ok(length) => sum += length,
                        Err(error) => {
                            drop(decompressor);
                            assert!(sum == 0 || said == makes);
                            break error.to_string();
                        }
                    }
                }
            });
            let _ = theirs.read(&mut [0]);
            assert_eq!(error, "its decompressor has stopped working", "{:?}", &said[..said.len().min(9)]);
        }
    }

    /// Each message costs us work, and may not be about less than there is room for but once.
    #[test]
    fn what_a_decompressor_says_to_have_made_is_held_to_its_places() {
        let twice = [made(1), made(1)].concat();
        let after = [made(OUT - 1), made(OUT)].concat();
        for said in [&made(0)[..], &made(OUT + 1), &made(usize::try_from(u32::MAX).unwrap()), &twice, &after]
        {
            let (mut decompressor, mut theirs, _memory) = played();
            theirs.write_all(said).unwrap();
            let error = decompressor.read_to_end(&mut Vec::new()).unwrap_err().to_string();
            assert_eq!(error, "its decompressor said nonsense");
        }
    }

    /// Whatever a decompressor does with the memory that it writes: what was read stays as it was read.
    #[test]
    fn pages_that_change_later_change_nothing_that_was_read() {
        let (mut decompressor, mut theirs, mut memory) = played();
        let mut fill = |byte| memory.room(0, OUTS * OUT).unwrap().fill(byte);
        fill(1);
        theirs.write_all(&[made(OUT), made(OUT)].concat()).unwrap();
        let (mut shown, _seen) = Shown::new(OUT).unwrap();
        assert_eq!(decompressor.fill(&mut shown).unwrap(), OUT);
        fill(2);
        assert!(shown.bytes().iter().all(|byte| *byte == 1), "there is one copy, which is ours");
        let mut half = vec![0; OUT / 2];
        assert_eq!(decompressor.read(&mut half).unwrap(), OUT / 2);
        fill(3);
        assert!(half.iter().all(|byte| *byte == 2));
        assert_eq!(decompressor.read(&mut half).unwrap(), OUT / 2);
        assert!(half.iter().all(|byte| *byte == 3), "the rest is still its own");
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 2, "both places are free");
    }

    /// What was made is not written over before it was taken: many times all places, read in odd pieces and late.
    #[test]
    fn a_buffer_is_used_again_only_when_it_was_taken() {
        let data: Vec<u8> = (0..1_500_000u32).flat_map(u32::to_le_bytes).collect();
        let fed = Arc::default();
        let (mut decompressor, mut input) = Decompressor::start(&Windows::new(0), &fed).unwrap();
        let packed = gzip(&data);
        let feeder = std::thread::spawn(move || {
            for piece in [&packed[..1], &packed[1..IN], &packed[IN..]] {
                input.give(piece).unwrap();
            }
            input.end().unwrap();
        });
        let mut out: Vec<u8> = Vec::new();
        for length in [1, 4095, 4097, 70_001, OUT, 333_333].into_iter().cycle() {
            std::thread::yield_now();
            let mut piece = vec![0; length];
            let read = decompressor.read(&mut piece).unwrap();
            out.extend(&piece[..read]);
            if read == 0 {
                break;
            }
        }
        feeder.join().unwrap();
        assert!(out == data);
    }

    #[test]
    fn a_stream_without_its_end_is_one_that_was_cut_off() {
        for stream in [&b"some tar"[..], b""] {
            let (mut decompressor, mut input) =
                Decompressor::start(&Windows::new(0), &Arc::default()).unwrap();
            input.give(stream).unwrap();
            drop(input);
            assert!(decompressor.read_to_end(&mut Vec::new()).is_err());
        }
    }

    /// A parser that takes nothing, or says nothing, is given up.
    #[test]
    fn a_parser_that_stops_is_given_up() {
        use unpack::Parser as _;
        for takes in [false, true] {
            let (input, pieces) = pipe(0).unwrap();
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
        parser.give(&[1; 512], None).unwrap();
        let mut words = Vec::new();
        parser.read_to_end(&mut words).unwrap();
        assert_eq!(words.first(), Some(&b'N'));
        while parser.give(&[1; 512], None).is_ok() {
            std::thread::yield_now();
        }
    }
}
