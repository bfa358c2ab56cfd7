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
//! That the parser sees what is hashed: the decompressor writes into a pipe, `tee` duplicates what lies there for the parser,
//! and the same bytes are then read here. A decompressor that could put its own pages into the pipe (vmsplice) might change
//! them in between; its filter has no such call.

use super::decompress::{Ask, Decoder};
use super::error::ImageError;
use super::unpack::{self, plain};
use super::windows::{Window, Windows};
use crate::host::worker::{Ends, Program, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, tee};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Turns a compressed stream into what is in it. Memory: the largest window, its buffers, and the program.
pub(crate) const DECOMPRESSOR: Program = Program {
    name: "layer-decompress",
    memory: 512 << 20,
    descriptors: 0,
    calls: &[],
    fcntl: &[],
    body: decompress,
};
/// Says what is in a tar. Memory: one PAX header with what it says, a sparse map, and the program.
pub(crate) const PARSER: Program = Program {
    name: "layer-parse",
    memory: 256 << 20,
    descriptors: 0,
    calls: &[],
    fcntl: &[],
    body: unpack::parse,
};
/// Bytes in a pipe: the most that an ordinary system lets a pipe have. Fewer switches between the processes.
const PIPE: usize = 1 << 20;
/// Bytes at a time in the decompressor.
const BUFFER: usize = 256 << 10;
/// Bytes of the text of an error.
const MAX_TEXT: usize = 200;
/// A worker that has bytes to work on and says or makes nothing in this time is given up. An honest one needs a fraction of a
/// second for what a pipe holds.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// The rest of a message that has begun, and room for an answer, come in this time, or never.
const TALK: Duration = Duration::from_secs(60);

/// A pipe of ours.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Less will do, where it is refused.
    let _ = fcntl_setpipe_size(&write, PIPE);
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
    let Ends { input, output, control, nowhere: _ } = ends;
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

fn pour(input: File, mut output: File, ask: Ask<'_>) -> io::Result<()> {
    let mut decoder = Decoder::sniff(BufReader::with_capacity(BUFFER, input), ask)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    output.write_all(&buffer[..filled])?;
                    return Err(e);
                }
            }
        }
        if filled == 0 {
            return Ok(());
        }
        output.write_all(&buffer[..filled])?;
    }
}

/// What a worker was given so far, as who waits for it sees it.
#[derive(Debug, Default)]
pub(crate) struct Fed {
    /// Bytes.
    pub(crate) bytes: AtomicU64,
    /// No bytes come at the moment, and that is not the worker's doing.
    pub(crate) waiting: AtomicBool,
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
        let (input, compressed) = pipe()?;
        let (output, made) = pipe()?;
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

    /// What comes next, also to `copy`, as long as that one reads. 0: the stream has ended well.
    pub(crate) fn read_and_copy(&mut self, into: &mut [u8], copy: &mut Option<OwnedFd>) -> io::Result<usize> {
        if matches!(self.said, Some(Ok(()))) && self.worker.is_none() {
            return Ok(0);
        }
        self.wait()?;
        let mut length = into.len();
        while let Some(to) = copy {
            match tee(&self.output, to.as_fd(), length, SpliceFlags::empty()) {
                Ok(0) => return self.ended().map(|()| 0),
                Ok(copied) => {
                    length = copied;
                    break;
                }
                // It knows enough, or has ended; who hears it sees which.
                Err(Errno::PIPE) => *copy = None,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut filled = 0;
        // What was copied is read whole.
        while filled < length {
            match rustix::io::read(&self.output, &mut into[filled..length]) {
                Ok(0) if filled == 0 => return self.ended().map(|()| 0),
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if copy.is_none() {
                break;
            }
        }
        Ok(filled)
    }
}

impl Read for Decompressor {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() { Ok(0) } else { self.read_and_copy(into, &mut None) }
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
            let (output, made) = pipe().unwrap();
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

    /// What goes to the parser is what is read, byte for byte, and a parser that ends early does not stop the reading.
    #[test]
    fn a_copy_is_the_same_bytes() {
        let data: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
        for patient in [true, false] {
            let fed = Arc::default();
            let (mut decompressor, mut input) = Decompressor::start(&Windows::new(0), &fed).unwrap();
            let packed = gzip(&data);
            let feeder = std::thread::spawn(move || input.write_all(&packed).unwrap());
            let (read, write) = pipe().unwrap();
            let copy = std::thread::spawn(move || {
                let mut seen = Vec::new();
                let limit = if patient { u64::MAX } else { 1000 };
                File::from(read).take(limit).read_to_end(&mut seen).unwrap();
                seen
            });
            let (mut to, mut out, mut buffer) = (Some(write), Vec::<u8>::new(), vec![0; 100_000]);
            loop {
                match decompressor.read_and_copy(&mut buffer, &mut to).unwrap() {
                    0 => break,
                    length => out.extend(&buffer[..length]),
                }
            }
            drop(to);
            feeder.join().unwrap();
            assert!(out == data);
            let seen = copy.join().unwrap();
            assert!(seen == data[..seen.len()] && (seen.len() == data.len()) == patient);
        }
    }
}
