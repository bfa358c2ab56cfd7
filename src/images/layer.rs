//! One layer in one pass: socket or file → digest → decompress → digest → files, without a temporary blob.
//!
//! ```text
//! download ─► layer-feed: blob digest ─► memory ─► decompressor ─► memory ─► layer-decode: one copy ─► tar digest, files
//!   (async)                                (a process without rights)                      └─► tar parser ─► what to do
//! ```
//!
//! Two threads and two workers (`worker`) beside the async download, with bounded buffers and shared memory between them;
//! whichever fails stops the others, and its error is the one that is told. What the workers say is believed of their own
//! layer alone: both digests are taken here, of the bytes that went in and of those that came out.

use super::areas::Area;
use super::artifact::{self, Form};
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::progress::LayerProgress;
use super::source::Stream;
use super::staging::Staging;
use super::stats::{PullStats, Stage};
use super::unpack::{self, Limits, Unpacked};
use super::windows::Windows;
use super::worker::{Compressed, Decompressor, Fed, Parser, cannot_start};
use bytes::{Buf as _, Bytes};
use podwright_sys::lend::Shown;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Pieces from the socket waiting for the decompressor; hyper's are at most some hundred KiB.
const NETWORK_PIECES: usize = 2;
/// Stack of the threads: what they hold is on the heap.
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
                Form::Tar => work(job, receiver, &|| !done.is_closed()),
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

/// Unpacks a tar, as long as it is wanted: a few bytes that are in the pipes may be work for minutes.
fn work(
    job: Job,
    receiver: mpsc::Receiver<Piece>,
    is_wanted: &dyn Fn() -> bool,
) -> Result<(Staging, Unpacked), ImageError> {
    let Job { blob, diff_id, staging, limits, windows, stats, .. } = job;
    let name = blob.as_str();
    let begun = Instant::now();
    let fed = Arc::new(Fed::default());
    let _job = windows.job();
    let (buffer, seen) = Area::<Shown>::take().map_err(cannot_start)?;
    let parser = Parser::start_with(seen).map_err(cannot_start)?;
    let (decompressor, compressed) = Decompressor::start(&windows, &fed).map_err(cannot_start)?;
    std::thread::scope(|scope| {
        let feeder = std::thread::Builder::new()
            .name("layer-feed".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                let result = feed(BlobSource::new(receiver, &blob), compressed, &fed);
                fed.is_cut.store(result.is_err(), Ordering::Relaxed);
                result
            })
            .map_err(cannot_start)?;
        let is_wanted = || is_wanted() && !fed.is_cut.load(Ordering::Relaxed);
        let mut tar = TarSource::new(decompressor, buffer, name, limits, &fed, &is_wanted);
        let unpacked = unpack::unpack_parsed(&mut tar, parser, staging.path(), name, limits);
        let TarSource { decompressor, hasher, waited: waited_above, hashed, .. } = tar;
        // Who feeds it is to stop too.
        drop(decompressor);
        let fed = feeder.join().unwrap_or_else(|_| Err(stopped()));
        // The download has ended before the blob: all that others say of a stream that is cut off means nothing.
        let fed = fed.map_err(|_| stopped())?;
        let unpacked = unpacked?;
        let Some((actual, Times { waited, hashed: blob_hashed })) = fed else { return Err(stopped()) };
        verify(&blob, &actual)?;
        stats.spent(Stage::Network, waited);
        stats.spent(Stage::BlobDigest, blob_hashed);
        // As long as the tar was waited for, and not for the network.
        stats.spent(Stage::Decompress, waited_above.saturating_sub(waited));
        stats.spent(Stage::TarDigest, hashed);
        stats.spent(Stage::Unpack, begun.elapsed().saturating_sub(waited_above + hashed));
        let actual = hasher.finish();
        if actual != diff_id {
            return Err(ImageError::DigestMismatch {
                what: format!("the content of layer {name}"),
                expected: diff_id.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(unpacked)
    })
    .map(|unpacked| (staging, unpacked))
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

/// Hashes the blob and hands it to the decompressor. None: the decompressor has ended before the blob has.
fn feed(
    mut source: BlobSource,
    mut compressed: Compressed,
    fed: &Fed,
) -> Result<Option<(Digest, Times)>, ImageError> {
    loop {
        fed.waiting.store(true, Ordering::Relaxed);
        let piece = source.fill_buf();
        fed.waiting.store(false, Ordering::Relaxed);
        let piece = piece.map_err(|_| stopped())?;
        let length = piece.len();
        if length == 0 {
            let ended = compressed.end();
            return Ok(ended.is_ok().then(|| (source.hasher.finish(), source.times)));
        }
        let bytes = u64::try_from(length).unwrap_or_default();
        fed.offered.fetch_add(bytes, Ordering::Relaxed);
        if compressed.give(piece).is_err() {
            return Ok(None);
        }
        fed.bytes.fetch_add(bytes, Ordering::Relaxed);
        source.consume(length);
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

/// The tar, hashed buffer by buffer.
struct TarSource<'a> {
    decompressor: Decompressor,
    name: &'a str,
    limits: Limits,
    /// What is there: the first `filled` bytes, of which `at` were made use of.
    buffer: Area<Shown>,
    filled: usize,
    at: usize,
    /// Whether `hasher` has had it.
    is_hashed: bool,
    hasher: Hasher,
    total: u64,
    hashed: Duration,
    waited: Duration,
    fed: &'a Fed,
    is_wanted: &'a dyn Fn() -> bool,
}

impl<'a> TarSource<'a> {
    fn new(
        decompressor: Decompressor,
        buffer: Area<Shown>,
        name: &'a str,
        limits: Limits,
        fed: &'a Fed,
        is_wanted: &'a dyn Fn() -> bool,
    ) -> Self {
        Self {
            decompressor,
            name,
            limits,
            buffer,
            filled: 0,
            at: 0,
            is_hashed: true,
            hasher: Hasher::sha256(),
            total: 0,
            hashed: Duration::ZERO,
            waited: Duration::ZERO,
            fed,
            is_wanted,
        }
    }

    fn hash(&mut self) {
        if !std::mem::replace(&mut self.is_hashed, true) {
            timed(&mut self.hashed, || self.hasher.update(&self.buffer.bytes()[..self.filled]));
        }
    }
}

impl unpack::Source for TarSource<'_> {
    fn meanwhile(&mut self) {
        self.hash();
    }

    fn place(&self) -> Option<usize> {
        Some(self.at)
    }

    fn compressed(&self) -> Option<u64> {
        Some(self.fed.offered.load(Ordering::Relaxed))
    }
}

impl BufRead for TarSource<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.filled {
            if !(self.is_wanted)() {
                return Err(io::Error::other(stopped()));
            }
            self.hash();
            self.at = 0;
            self.filled = timed(&mut self.waited, || self.decompressor.fill(&mut self.buffer))?;
            self.total += u64::try_from(self.filled).unwrap_or_default();
            self.is_hashed = false;
            if self.total > self.limits.bytes {
                let blame = unpack::Blame::new(self.name);
                return Err(io::Error::other(blame.limit("the tar", self.limits.bytes, "bytes")));
            }
        }
        Ok(&self.buffer.bytes()[self.at..self.filled])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// A few compressed bytes are much of a tar, all of which is in the pipes when a pull is cancelled or its download fails.
    #[test]
    fn what_nobody_wants_any_more_is_not_unpacked() {
        let packed = zstd::encode_all(&vec![0u8; 16 << 20][..], 3).unwrap();
        let fed = Arc::new(Fed::default());
        let (decompressor, mut compressed) = Decompressor::start(&Windows::new(0), &fed).unwrap();
        compressed.give(&packed).unwrap();
        compressed.end().unwrap();
        let wanted = AtomicBool::new(true);
        let is_wanted = || wanted.load(Ordering::Relaxed);
        let limits = Limits { bytes: u64::MAX, entries: u64::MAX };
        let mut tar = TarSource::new(decompressor, Area::take().unwrap().0, "t", limits, &fed, &is_wanted);
        let length = tar.fill_buf().unwrap().len();
        assert_eq!(length, unpack::PIECE);
        wanted.store(false, Ordering::Relaxed);
        tar.consume(length);
        let error = unpack::Blame::new("t").stream(&tar.fill_buf().unwrap_err());
        assert!(matches!(error, ImageError::Interrupted { .. }), "{error}");
    }
}
