//! The source of an image: a registry, or files on this machine. Owns what both have in common, documents and blobs by
//! descriptor; never knows how they are used.

use super::digest::Digest;
use super::error::ImageError;
use super::index::Served;
use super::manifest::{Descriptor, MAX_MANIFEST};
use super::offload::blocking;
use super::registry::{Blob, Session};
use bytes::Bytes;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a local blob read at once: as many as the unpacker writes at once.
const PIECE: u64 = 256 << 10;

/// A source of images.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Over the network.
    Registry(Arc<Session>),
    /// On this machine.
    Local(Arc<dyn LocalSource>),
}

/// Files that hold images. Blocking; its content is not verified yet.
pub(crate) trait LocalSource: fmt::Debug + Send + Sync {
    /// Its name, for errors and for the queue of layers.
    fn name(&self) -> &str;

    /// The content of a descriptor.
    fn open(&self, descriptor: &Descriptor) -> Result<LocalBlob, ImageError>;

    /// The content of a layer: the blob, or its tar where the source has only that.
    fn layer(&self, _diff_id: &Digest, blob: &Descriptor) -> Result<LocalBlob, ImageError> {
        self.open(blob)
    }
}

/// A blob of a local source.
pub(crate) struct LocalBlob {
    /// The expected hash of its bytes.
    pub(crate) digest: Digest,
    /// Bytes, where the source states them.
    pub(crate) size: Option<u64>,
    /// The bytes.
    pub(crate) reader: Box<dyn Read + Send>,
}

impl Source {
    /// The queue for its layers.
    pub(super) fn queue(&self) -> &str {
        match self {
            Self::Registry(session) => session.registry(),
            Self::Local(local) => local.name(),
        }
    }

    /// Where it is, as far as that decides how its blobs come: what one caller gets of a blob in that place, another does, too,
    /// if it may.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Registry(session) => session.place(),
            Self::Local(local) => local.name().to_owned(),
        }
    }

    /// A manifest or index by digest, verified.
    pub(super) async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Registry(session) => session.manifest(descriptor).await,
            Self::Local(local) => document(local, descriptor, MAX_MANIFEST).await,
        }
    }

    /// A blob small enough for memory, verified.
    pub(super) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Registry(session) => session.small_blob(descriptor, limit).await,
            Self::Local(local) => document(local, descriptor, limit).await,
        }
    }

    /// A layer to be streamed, not verified here.
    pub(super) fn layer<'s>(&'s self, diff_id: &'s Digest, blob: &'s Descriptor) -> Stream<'s> {
        match self {
            Self::Registry(session) => Stream::Registry(Box::new(session.blob(blob)), blob),
            Self::Local(local) => {
                Stream::Local(LocalStream { source: local, diff_id, blob, state: State::Closed })
            }
        }
    }
}

/// Reads and verifies a document.
pub(crate) fn read_document(
    source: &dyn LocalSource,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>, ImageError> {
    let what = || format!("{} in {}", descriptor.digest, source.name());
    if descriptor.size > limit {
        return Err(ImageError::Limit { what: what(), limit, unit: "bytes" });
    }
    let blob = source.open(descriptor)?;
    let mut body = Vec::new();
    // One byte more shows that there is more.
    blob.reader.take(descriptor.size + 1).read_to_end(&mut body).map_err(|e| read_error(source, e))?;
    let actual = u64::try_from(body.len()).unwrap_or(u64::MAX);
    if actual != descriptor.size {
        let more = actual > descriptor.size;
        return Err(ImageError::SizeMismatch { what: what(), expected: descriptor.size, actual, more });
    }
    let digest = blob.digest.of_same_kind(&body);
    if digest != blob.digest {
        return Err(ImageError::DigestMismatch {
            what: what(),
            expected: blob.digest.to_string(),
            actual: digest.to_string(),
        });
    }
    Ok(body)
}

async fn document(
    source: &Arc<dyn LocalSource>,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>, ImageError> {
    let (source, descriptor) = (Arc::clone(source), descriptor.clone());
    blocking(move || read_document(&*source, &descriptor, limit)).await
}

/// The error inside a reader's, or that itself.
fn read_error(source: &dyn LocalSource, error: std::io::Error) -> ImageError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ImageError>()) {
        Some(carried) => carried.clone(),
        None => ImageError::io("read", std::path::Path::new(source.name()), error),
    }
}

/// A layer's bytes in transit.
pub(crate) enum Stream<'s> {
    /// From hosts.
    Registry(Box<Blob<'s>>, &'s Descriptor),
    /// From a file.
    Local(LocalStream<'s>),
}

impl Stream<'_> {
    /// Prepares for reading. Some: call it again after this time, in which nothing is held.
    pub(super) async fn open(&mut self) -> Result<Option<Duration>, ImageError> {
        match self {
            Self::Registry(blob, _) => blob.open().await,
            Self::Local(stream) => stream.open().await.map(|()| None),
        }
    }

    /// What the bytes have to hash to; of an open stream.
    pub(super) fn digest(&self) -> &Digest {
        match self {
            Self::Registry(_, descriptor) => &descriptor.digest,
            Self::Local(stream) => match &stream.state {
                State::Open { digest, .. } => digest,
                State::Closed => &stream.blob.digest,
            },
        }
    }

    /// The next bytes; None at the end. Never more than were announced.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        match self {
            Self::Registry(blob, _) => blob.next().await,
            Self::Local(stream) => stream.next().await,
        }
    }

    /// The host that serves the bytes of an open stream.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Registry(blob, _) => blob.host(),
            Self::Local(stream) => stream.source.name().to_owned(),
        }
    }

    /// The completely read blob and the host that served it; None: files of this machine.
    pub(super) fn served(&self) -> Option<Served> {
        match self {
            Self::Registry(blob, descriptor) => {
                Some(Served { blob: descriptor.digest.clone(), host: blob.served_by() })
            }
            Self::Local(_) => None,
        }
    }

    /// Number of retries.
    pub(super) fn asked_again(&self) -> u32 {
        match self {
            Self::Registry(blob, _) => blob.asked_again(),
            Self::Local(_) => 0,
        }
    }

    /// Whether the bytes come over the network.
    pub(super) fn is_download(&self) -> bool {
        matches!(self, Self::Registry(..))
    }

    /// Whether the layer may be fetched from the start again, from elsewhere, after `error`.
    pub(super) fn begin_again(&mut self, error: &ImageError) -> bool {
        match self {
            Self::Registry(blob, _) => blob.begin_again(error),
            Self::Local(_) => false,
        }
    }
}

/// A layer read from files.
pub(crate) struct LocalStream<'s> {
    source: &'s Arc<dyn LocalSource>,
    diff_id: &'s Digest,
    blob: &'s Descriptor,
    state: State,
}

enum State {
    Closed,
    /// `reader` is away while a piece is being read.
    Open {
        digest: Digest,
        size: Option<u64>,
        at: u64,
        reader: Option<Box<dyn Read + Send>>,
    },
}

impl LocalStream<'_> {
    async fn open(&mut self) -> Result<(), ImageError> {
        let (source, diff_id, blob) = (Arc::clone(self.source), self.diff_id.clone(), self.blob.clone());
        let LocalBlob { digest, size, reader } = blocking(move || source.layer(&diff_id, &blob)).await?;
        self.state = State::Open { digest, size, at: 0, reader: Some(reader) };
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let State::Open { digest, size, at, reader } = &mut self.state else { return Ok(None) };
        let Some(mut from) = reader.take() else { return Ok(None) };
        let source = Arc::clone(self.source);
        let (piece, back) = blocking(move || {
            let mut piece = Vec::with_capacity(usize::try_from(PIECE).unwrap_or_default());
            (&mut from).take(PIECE).read_to_end(&mut piece).map_err(|e| read_error(&*source, e))?;
            Ok((piece, from))
        })
        .await?;
        *at += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let wrong = size.filter(|size| *at > *size || (piece.is_empty() && *at < *size));
        if let Some(expected) = wrong {
            let what = format!("{digest} in {}", self.source.name());
            return Err(ImageError::SizeMismatch { what, expected, actual: *at, more: *at > expected });
        }
        if piece.is_empty() {
            return Ok(None);
        }
        *reader = Some(back);
        Ok(Some(piece.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::bring::{Wanted, bring};
    use crate::images::tests::fixture::{Content, open, small};

    #[derive(Debug)]
    struct Memory(Content);

    impl LocalSource for Memory {
        fn name(&self) -> &str {
            "memory"
        }

        fn open(&self, descriptor: &Descriptor) -> Result<LocalBlob, ImageError> {
            let digest = descriptor.digest.clone();
            let manifest = self.0.manifests.get(digest.as_str()).map(|(_, body)| body);
            let body = manifest.or_else(|| self.0.blobs.get(digest.as_str())).unwrap().clone();
            let reader = Box::new(std::io::Cursor::new(body));
            Ok(LocalBlob { digest, size: Some(descriptor.size), reader })
        }
    }

    fn wanted(content: &Content, manifest: &Digest) -> Wanted {
        let size = content.manifests[manifest.as_str()].1.len();
        let top = Descriptor::new(manifest.clone(), u64::try_from(size).unwrap());
        Wanted { what: "x".into(), top, document: None, names: vec!["r.example/x:t".into()], caller: None }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_local_image_takes_the_way_of_a_pulled_one() {
        let (content, manifest, id) = small();
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path());
        let wanted = wanted(&content, &manifest);
        let source = Source::Local(Arc::new(Memory(content)));
        let found = bring(&images.inner, &source, wanted).await.unwrap();
        assert_eq!(found.as_str(), id.as_str());
        let image = images.status("r.example/x:t").unwrap();
        assert_eq!((image.id.as_str(), image.repo_digests.len()), (id.as_str(), 0));
        let hold = images.hold(id.as_str()).unwrap();
        assert_eq!(std::fs::read(hold.layers()[1].join("etc/a")).unwrap(), b"upper");
        assert_eq!(images.stats().bytes.load(std::sync::atomic::Ordering::Relaxed), 0, "no download");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lies_of_a_local_source_are_seen() {
        for (change, expected) in [
            ((|blob| blob.push(0)) as fn(&mut Vec<u8>), "wrong size"),
            (|blob| blob.truncate(blob.len() - 1), "wrong size"),
            (|blob| *blob.last_mut().unwrap() ^= 1, "digest"),
        ] {
            for document in [true, false] {
                let (mut content, manifest, _) = small();
                let is_document = |body: &Vec<u8>| body[0] == b'{';
                content.blobs.values_mut().filter(|b| is_document(b) == document).for_each(change);
                let root = tempfile::tempdir().unwrap();
                let images = open(root.path());
                let wanted = wanted(&content, &manifest);
                let source = Source::Local(Arc::new(Memory(content)));
                let error = bring(&images.inner, &source, wanted).await.unwrap_err().to_string();
                // The stream's own check sums detect damage at its end first.
                assert!(error.contains(expected) || error.contains("corrupt"), "{expected}: {error}");
                assert!(images.list().is_empty());
            }
        }
    }
}
