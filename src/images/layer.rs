//! One layer in one pass: socket or file → digest → decompress → digest → files, without a temporary blob.
//!
//! ```text
//! download ─► layer-feed: blob digest ─► pipe ─► decompressor ─► pipe ─► layer-read ─► layer-decode: tar digest, files
//!   (async)                              (a process without rights)       └─ tee ─► tar parser ─► what to do ─┘
//! ```
//!
//! Three threads and two workers (`worker`) beside the async download, with bounded buffers and pipes between them;
//! whichever fails stops the others, and its error is the one that is told. What the workers say is believed of their own
//! layer alone: both digests are taken here, of the bytes that went in and of those that came out.

use super::artifact::{self, Form};
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::progress::LayerProgress;
use super::source::Stream;
use super::staging::Staging;
use super::stats::{PullStats, Stage};
use super::unpack::{self, Limits, Unpacked};
use super::windows::Windows;
use super::worker::{Decompressor, Fed, PARSER, cannot_start, pipe};
use crate::host::worker::Worker;
use bytes::{Buf as _, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Pieces from the socket waiting for the decompressor; hyper's are at most some hundred KiB.
const NETWORK_PIECES: usize = 2;
/// One buffer of tar, bytes: large enough that a write of file data is not dominated by the system call.
const TAR_BUFFER: usize = 256 << 10;
/// Tar buffers between the threads.
const TAR_BUFFERS: usize = 4;
/// Bytes of a parser's words that are read at once.
const WORDS: usize = 64 << 10;
/// Stack of the threads: what they hold is on the heap.
const STACK: usize = 512 << 10;
/// A parser that has bytes and says nothing in this time is given up; an honest one needs milliseconds.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A layer to be fetched.
#[derive(Debug)]
pub(crate) struct Job {
    /// What the bytes that come hash to.
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) form: Form,
    pub(crate) staging: Staging,
    pub(crate) limits: Limits,
    pub(crate) windows: Arc<Windows>,
    pub(crate) stats: Arc<PullStats>,
    pub(crate) progress: Arc<LayerProgress>,
}

enum Piece {
    Data(Bytes),
    End,
}

fn stopped() -> ImageError {
    ImageError::Interrupted { what: "the layer pipeline".into() }
}

/// Downloads and unpacks. The slot is kept until the threads have ended, also when this future is dropped.
pub(crate) async fn fetch(
    stream: &mut Stream<'_>,
    job: Job,
    slot: impl Send + 'static,
) -> Result<(Staging, Unpacked), ImageError> {
    let (pieces, receiver) = mpsc::channel(NETWORK_PIECES);
    let (done, outcome) = oneshot::channel();
    let (stats, progress) = (Arc::clone(&job.stats), Arc::clone(&job.progress));
    std::thread::Builder::new()
        .name("layer-decode".into())
        .stack_size(STACK)
        .spawn(move || {
            let result = match job.form.clone() {
                Form::Tar => work(job, receiver),
                Form::File(path) => copy(job, &path, receiver),
            };
            // Nobody listens when the pull was cancelled; the staging directory is removed then, within the slot.
            let _ = done.send(result);
            drop(slot);
        })
        .map_err(|e| ImageError::io("start a thread for", std::path::Path::new("layer"), e))?;
    let downloaded = download(stream, &pieces, &stats, &progress).await;
    drop(pieces);
    let worked = outcome.await.unwrap_or_else(|_| Err(stopped()));
    match (downloaded, worked) {
        (_, Ok(unpacked)) => Ok(unpacked),
        (Err(error), Err(ImageError::Interrupted { .. })) => Err(error),
        (_, Err(error)) => Err(error),
    }
}

async fn download(
    stream: &mut Stream<'_>,
    pieces: &mpsc::Sender<Piece>,
    stats: &PullStats,
    progress: &LayerProgress,
) -> Result<(), ImageError> {
    while let Some(data) = stream.next().await? {
        let length = u64::try_from(data.len()).unwrap_or_default();
        PullStats::add(&stats.bytes, if stream.is_download() { length } else { 0 });
        if progress.add(length, stream.asked_again()) {
            progress.serve(stream.host());
        }
        // A slow disk makes this wait; only the network has a deadline.
        pieces.send(Piece::Data(data)).await.map_err(|_| stopped())?;
    }
    pieces.send(Piece::End).await.map_err(|_| stopped())
}

fn work(job: Job, receiver: mpsc::Receiver<Piece>) -> Result<(Staging, Unpacked), ImageError> {
    let Job { blob, diff_id, staging, limits, windows, stats, .. } = job;
    let name = blob.as_str();
    let (full, tar) = blocking::sync_channel::<Vec<u8>>(TAR_BUFFERS);
    let (give_back, empty) = blocking::channel::<Vec<u8>>();
    let (given, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let (parser_input, to_parser) = pipe().map_err(cannot_start)?;
    let (words, said) = pipe().map_err(cannot_start)?;
    let (control, _nobody) = pipe().map_err(cannot_start)?;
    let parser = Worker::start(&PARSER, parser_input, said, control).map_err(cannot_start)?;
    let (decoded, unpacked) = std::thread::scope(|scope| {
        let counted = Arc::clone(&given);
        let decoder = std::thread::Builder::new().name("layer-read".into()).stack_size(STACK).spawn_scoped(
            scope,
            || {
                let way = Way { full, empty, to_parser: Some(to_parser), given: counted };
                decode(receiver, &blob, limits, &windows, way, &stats)
            },
        );
        let decoder = match decoder {
            Ok(decoder) => decoder,
            Err(e) => return (Err(ImageError::io("start a thread for", staging.path(), e)), Err(stopped())),
        };
        let unpacked = (|| {
            let waited = Cell::new(Duration::ZERO);
            let taken = AtomicU64::new(0);
            let mut source = TarSource {
                tar,
                give_back,
                current: Vec::new(),
                at: 0,
                hasher: Hasher::sha256(),
                ended: false,
                hashed: Duration::ZERO,
                waited: &waited,
                taken: &taken,
            };
            let words = Words { words: words.into(), waited: &waited, given: &given, taken: &taken };
            let words = io::BufReader::with_capacity(WORDS, words);
            let unpacked = unpack::unpack_parsed(&mut source, words, staging.path(), name, limits);
            // Before anything that waits: the other thread may be writing to it.
            let unpacked = match unpacked {
                Ok(unpacked) => {
                    let end = parser.end();
                    end.map_or(Ok(unpacked), |end| Err(unpack::Blame::new(name).corrupt(end)))?
                }
                Err(error) => {
                    drop(parser);
                    return Err(error);
                }
            };
            let hashed = source.hashed;
            stats.spent(Stage::TarDigest, hashed);
            stats.spent(Stage::Unpack, begun.elapsed().saturating_sub(waited.get() + hashed));
            let actual = source.hasher.finish();
            if actual != diff_id {
                return Err(ImageError::DigestMismatch {
                    what: format!("the content of layer {name}"),
                    expected: diff_id.to_string(),
                    actual: actual.to_string(),
                });
            }
            Ok(unpacked)
        })();
        (decoder.join().unwrap_or_else(|_| Err(stopped())), unpacked)
    });
    match (decoded, unpacked) {
        (Ok(None), _) => Err(stopped()),
        (Ok(Some(bytes)), Ok(unpacked)) => {
            PullStats::add(&stats.unpacked_bytes, bytes);
            Ok((staging, unpacked))
        }
        // What comes first on the way is the cause of what follows.
        (Err(ImageError::Interrupted { .. }), Err(error)) | (Err(error), _) | (Ok(_), Err(error)) => {
            Err(error)
        }
    }
}

/// Hashes the blob and writes it as it is.
fn copy(
    job: Job,
    path: &std::path::Path,
    receiver: mpsc::Receiver<Piece>,
) -> Result<(Staging, Unpacked), ImageError> {
    let blame = unpack::Blame::new(job.blob.as_str());
    let mut source = BlobSource::new(receiver, &job.blob);
    let unpacked = artifact::write(&job.staging, path, &mut source, &blame, job.limits)?;
    verify(&job.blob, &source.hasher.finish())?;
    PullStats::add(&job.stats.unpacked_bytes, unpacked.bytes);
    Ok((job.staging, unpacked))
}

fn verify(blob: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if actual == blob {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: format!("layer {blob}"),
        expected: blob.to_string(),
        actual: actual.to_string(),
    })
}

/// Where decompressed bytes go.
struct Way {
    full: blocking::SyncSender<Vec<u8>>,
    empty: blocking::Receiver<Vec<u8>>,
    to_parser: Option<OwnedFd>,
    /// Bytes that the parser was given.
    given: Arc<AtomicU64>,
}

/// Has the blob hashed and decompressed; returns the bytes of tar. None: the download has ended before the blob, and all that
/// others say of a stream that is cut off means nothing.
fn decode(
    receiver: mpsc::Receiver<Piece>,
    blob: &Digest,
    limits: Limits,
    windows: &Arc<Windows>,
    way: Way,
    stats: &PullStats,
) -> Result<Option<u64>, ImageError> {
    let begun = Instant::now();
    let fed = Arc::new(Fed::default());
    let (mut decompressor, compressed) = Decompressor::start(windows, &fed).map_err(cannot_start)?;
    std::thread::scope(|scope| {
        let feeder = std::thread::Builder::new()
            .name("layer-feed".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || feed(BlobSource::new(receiver, blob), compressed, &fed))
            .map_err(cannot_start)?;
        // For the unpacker, which is then the slower one.
        let mut waited_below = Duration::ZERO;
        let read = read_tar(&mut decompressor, blob.as_str(), limits, way, &mut waited_below);
        // Who feeds it is to stop too.
        drop(decompressor);
        let fed = feeder.join().unwrap_or_else(|_| Err(stopped()));
        let Ok(fed) = fed else { return Ok(None) };
        let (total, full) = read?;
        let Some((actual, Times { waited, hashed })) = fed else { return Err(stopped()) };
        verify(blob, &actual)?;
        // The empty buffer is the end mark; a channel that closes without it is a broken one.
        let _ = full.send(Vec::new());
        stats.spent(Stage::Network, waited);
        stats.spent(Stage::BlobDigest, hashed);
        stats.spent(Stage::Decompress, begun.elapsed().saturating_sub(waited + waited_below));
        Ok(Some(total))
    })
}

/// Hashes the blob and hands it to the decompressor. None: the decompressor has ended before the blob has.
fn feed(
    mut source: BlobSource,
    mut compressed: File,
    fed: &Fed,
) -> Result<Option<(Digest, Times)>, ImageError> {
    loop {
        fed.waiting.store(true, Ordering::Relaxed);
        let piece = source.fill_buf();
        fed.waiting.store(false, Ordering::Relaxed);
        let piece = piece.map_err(|_| stopped())?;
        let length = piece.len();
        if length == 0 {
            return Ok(Some((source.hasher.finish(), source.times)));
        }
        if compressed.write_all(piece).is_err() {
            return Ok(None);
        }
        fed.bytes.fetch_add(u64::try_from(length).unwrap_or_default(), Ordering::Relaxed);
        source.consume(length);
    }
}

fn read_tar(
    decompressor: &mut Decompressor,
    name: &str,
    limits: Limits,
    way: Way,
    waited_below: &mut Duration,
) -> Result<(u64, blocking::SyncSender<Vec<u8>>), ImageError> {
    let blame = unpack::Blame::new(name);
    let Way { full, empty, mut to_parser, given } = way;
    let mut total = 0u64;
    let mut allocated = 0;
    loop {
        let mut buffer = match empty.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if allocated < TAR_BUFFERS => {
                allocated += 1;
                vec![0; TAR_BUFFER]
            }
            Err(_) => timed(waited_below, || empty.recv()).map_err(|_| stopped())?,
        };
        buffer.resize(TAR_BUFFER, 0);
        let filled = decompressor.read_and_copy(&mut buffer, &mut to_parser).map_err(|e| blame.stream(&e))?;
        if filled == 0 {
            return Ok((total, full));
        }
        let length = u64::try_from(filled).unwrap_or_default();
        total += length;
        if total > limits.bytes {
            return Err(blame.limit("the tar", limits.bytes, "bytes"));
        }
        given.fetch_add(length, Ordering::Relaxed);
        buffer.truncate(filled);
        timed(waited_below, || full.send(buffer)).map_err(|_| stopped())?;
    }
}

/// What passing bytes on took.
#[derive(Debug, Default, Clone, Copy)]
struct Times {
    waited: Duration,
    hashed: Duration,
}

fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    *sum += begun.elapsed();
    result
}

/// The blob's bytes, hashed as they pass.
struct BlobSource {
    receiver: mpsc::Receiver<Piece>,
    hasher: Hasher,
    current: Bytes,
    ended: bool,
    times: Times,
}

impl BlobSource {
    fn new(receiver: mpsc::Receiver<Piece>, blob: &Digest) -> Self {
        let hasher = blob.hasher();
        Self { receiver, hasher, current: Bytes::new(), ended: false, times: Times::default() }
    }
}

impl BufRead for BlobSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match timed(&mut self.times.waited, || self.receiver.blocking_recv()) {
                Some(Piece::Data(data)) => {
                    timed(&mut self.times.hashed, || self.hasher.update(&data));
                    self.current = data;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other(stopped())),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for BlobSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// What the tar parser says, waited for as long as it has nothing left to say it about.
struct Words<'a> {
    words: File,
    waited: &'a Cell<Duration>,
    given: &'a AtomicU64,
    taken: &'a AtomicU64,
}

impl Read for Words<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let idle = || self.given.load(Ordering::Relaxed) == self.taken.load(Ordering::Relaxed);
        let mut had_work = false;
        loop {
            match poll(&mut [PollFd::new(&self.words, PollFlags::IN)], Some(&PATIENCE)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(0) if had_work && !idle() => {
                    return Err(io::Error::other("its tar parser has stopped working"));
                }
                Ok(0) => had_work = !idle(),
                Ok(_) => break,
            }
        }
        self.waited.set(self.waited.get() + begun.elapsed());
        self.words.read(into)
    }
}

/// The tar, hashed buffer by buffer; spent buffers go back.
struct TarSource<'a> {
    tar: blocking::Receiver<Vec<u8>>,
    give_back: blocking::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
    ended: bool,
    hashed: Duration,
    waited: &'a Cell<Duration>,
    /// Bytes that were made use of.
    taken: &'a AtomicU64,
}

impl BufRead for TarSource<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.ended {
            let spent = std::mem::take(&mut self.current);
            if spent.capacity() > 0 {
                // The decoder may have ended; then nobody needs it.
                let _ = self.give_back.send(spent);
            }
            let begun = Instant::now();
            let next = self.tar.recv();
            self.waited.set(self.waited.get() + begun.elapsed());
            let next = next.map_err(|_| io::Error::other(stopped()))?;
            timed(&mut self.hashed, || self.hasher.update(&next));
            self.ended = next.is_empty();
            (self.current, self.at) = (next, 0);
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
        self.taken.fetch_add(u64::try_from(amount).unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Read for TarSource<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}
