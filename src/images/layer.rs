//! One layer in one pass: socket or file → digest → decompress → digest → files, without a temporary blob.
//!
//! Three stages side by side: the async download, a thread that hashes and decompresses, a thread that hashes the tar and
//! writes files. Bounded buffers between them; whichever fails stops the others, and its error is the one that is told.

use super::artifact::{self, Form};
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::progress::LayerProgress;
use super::source::Stream;
use super::staging::Staging;
use super::stats::{PullStats, Stage};
use super::unpack::{Limits, Unpacked, unpack};
use bytes::{Buf as _, Bytes};
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Pieces from the socket waiting for the decompressor; hyper's are at most some hundred KiB.
const NETWORK_PIECES: usize = 2;
/// One buffer of tar, bytes: large enough that a write of file data is not dominated by the system call.
const TAR_BUFFER: usize = 256 << 10;
/// Tar buffers between the threads.
const TAR_BUFFERS: usize = 4;
/// Largest zstd window, 2^27 bytes: what the zstd tool itself accepts without being told to use more.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// Stack of the worker threads: the decompressors keep their state on the heap.
const STACK: usize = 512 << 10;

/// A layer to be fetched.
#[derive(Debug)]
pub(crate) struct Job {
    /// What the bytes that come hash to.
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) form: Form,
    pub(crate) staging: Staging,
    pub(crate) limits: Limits,
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
    let Job { blob, diff_id, staging, limits, stats, .. } = job;
    let name = blob.to_string();
    let (full, tar) = blocking::sync_channel::<Vec<u8>>(TAR_BUFFERS);
    let (give_back, empty) = blocking::channel::<Vec<u8>>();
    let (decoded, unpacked) = std::thread::scope(|scope| {
        let unpacker = std::thread::Builder::new()
            .name("layer-unpack".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                let begun = Instant::now();
                let mut source = TarSource {
                    tar,
                    give_back,
                    current: Vec::new(),
                    at: 0,
                    hasher: Hasher::sha256(),
                    ended: false,
                    times: Times::default(),
                };
                let unpacked = unpack(&mut source, staging.path(), &name, limits)?;
                let Times { waited, hashed } = source.times;
                stats.spent(Stage::TarDigest, hashed);
                stats.spent(Stage::Unpack, begun.elapsed().saturating_sub(waited + hashed));
                let actual = source.hasher.finish();
                if actual != diff_id {
                    return Err(ImageError::DigestMismatch {
                        what: format!("the content of layer {name}"),
                        expected: diff_id.to_string(),
                        actual: actual.to_string(),
                    });
                }
                Ok(unpacked)
            });
        let unpacker = match unpacker {
            Ok(unpacker) => unpacker,
            Err(e) => {
                return (Err(ImageError::io("start a thread for", staging.path(), e)), Err(stopped()));
            }
        };
        let decoded = decode(receiver, &blob, limits, &full, &empty, &stats);
        if decoded.is_ok() {
            // The empty buffer is the end mark; a channel that closes without it is a broken one.
            let _ = full.send(Vec::new());
        }
        drop(full);
        (decoded, unpacker.join().unwrap_or_else(|_| Err(stopped())))
    });
    match (decoded, unpacked) {
        (Ok(bytes), Ok(unpacked)) => {
            PullStats::add(&stats.unpacked_bytes, bytes);
            Ok((staging, unpacked))
        }
        (Err(error), Err(ImageError::Interrupted { .. })) => Err(error),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(error),
    }
}

/// Hashes the blob and writes it as it is.
fn copy(
    job: Job,
    path: &std::path::Path,
    receiver: mpsc::Receiver<Piece>,
) -> Result<(Staging, Unpacked), ImageError> {
    let blame = super::unpack::Blame::new(job.blob.as_str());
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

/// Hashes and decompresses; returns the bytes of tar.
fn decode(
    receiver: mpsc::Receiver<Piece>,
    blob: &Digest,
    limits: Limits,
    full: &blocking::SyncSender<Vec<u8>>,
    empty: &blocking::Receiver<Vec<u8>>,
    stats: &PullStats,
) -> Result<u64, ImageError> {
    let begun = Instant::now();
    // For the unpacker, which is then the slower one.
    let mut waited_below = Duration::ZERO;
    let name = blob.as_str();
    let source = BlobSource::new(receiver, blob);
    let blame = super::unpack::Blame::new(name);
    let mut decoder = Decoder::sniff(source).map_err(|e| blame.stream(&e))?;
    let mut total = 0u64;
    let mut allocated = 0;
    loop {
        let mut buffer = match empty.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if allocated < TAR_BUFFERS => {
                allocated += 1;
                vec![0; TAR_BUFFER]
            }
            Err(_) => timed(&mut waited_below, || empty.recv()).map_err(|_| stopped())?,
        };
        buffer.resize(TAR_BUFFER, 0);
        let mut filled = 0;
        while filled < buffer.len() {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(blame.stream(&e)),
            }
        }
        if filled == 0 {
            break;
        }
        total += u64::try_from(filled).unwrap_or_default();
        if total > limits.bytes {
            return Err(blame.limit("the tar", limits.bytes, "bytes"));
        }
        buffer.truncate(filled);
        timed(&mut waited_below, || full.send(buffer)).map_err(|_| stopped())?;
    }
    let (actual, Times { waited, hashed }) = decoder.finish().map_err(|e| blame.stream(&e))?;
    verify(blob, &actual)?;
    stats.spent(Stage::Network, waited);
    stats.spent(Stage::BlobDigest, hashed);
    stats.spent(Stage::Decompress, begun.elapsed().saturating_sub(waited + hashed + waited_below));
    Ok(total)
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

    /// Joins pieces until `length` bytes lie in a row, or the blob ends.
    fn gather(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.current.len() < length && !self.ended {
            let before = std::mem::take(&mut self.current);
            self.fill_buf()?;
            self.current = [before, std::mem::take(&mut self.current)].concat().into();
        }
        Ok(&self.current)
    }
}

impl BufRead for BlobSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.ended {
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

/// The compression is what the first bytes say: media types of old images lie.
enum Decoder {
    Plain(Box<BlobSource>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BlobSource>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BlobSource>>),
}

impl Decoder {
    fn sniff(mut source: BlobSource) -> io::Result<Self> {
        let start = source.gather(6)?;
        if start.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))));
        }
        // A frame, or a skippable one (zstd:chunked has them).
        let zstd = start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]);
        if zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            return Ok(Self::Zstd(Box::new(decoder)));
        }
        if start.starts_with(b"BZh") || start.starts_with(b"\xfd7zXZ\0") {
            return Err(io::Error::other("compressed with bzip2 or xz, which no image format allows"));
        }
        Ok(Self::Plain(Box::new(source)))
    }

    /// Reads the blob to its end and gives its digest.
    fn finish(self) -> io::Result<(Digest, Times)> {
        let mut source = match self {
            Self::Plain(source) => *source,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        loop {
            let length = source.fill_buf()?.len();
            if length == 0 {
                return Ok((source.hasher.finish(), source.times));
            }
            source.consume(length);
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(into),
            Self::Gzip(decoder) => decoder.read(into),
            Self::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// The tar, hashed buffer by buffer; spent buffers go back.
struct TarSource {
    tar: blocking::Receiver<Vec<u8>>,
    give_back: blocking::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
    ended: bool,
    times: Times,
}

impl BufRead for TarSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.ended {
            let spent = std::mem::take(&mut self.current);
            if spent.capacity() > 0 {
                // The decoder may have ended; then nobody needs it.
                let _ = self.give_back.send(spent);
            }
            let next = timed(&mut self.times.waited, || self.tar.recv());
            let next = next.map_err(|_| io::Error::other(stopped()))?;
            timed(&mut self.times.hashed, || self.hasher.update(&next));
            self.ended = next.is_empty();
            (self.current, self.at) = (next, 0);
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for TarSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(into.len());
        into[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}
