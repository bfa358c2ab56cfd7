//! Progress of pulls. The work only stores into atomics here; observers read them at any time, and neither waits for
//! the other. Work shared between pulls (a pull or a layer) has one progress.

use super::Images;
use super::digest::Digest;
use super::manifest::Descriptor;
use super::reference::Reference;
use super::registry::Credentials;
use super::state::State;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

type Key = (Reference, Option<Credentials>);

/// The pulls and layers in progress. Holds none of them: it finds what others hold.
#[derive(Debug, Default)]
pub(super) struct Progresses {
    pulls: Mutex<HashMap<Key, Weak<PullProgress>>>,
    /// By diffID and blob: two pulls may have one layer in different blobs.
    layers: Mutex<HashMap<(Digest, Digest), Weak<LayerProgress>>>,
}

/// How far a pull is.
#[derive(Debug, Default)]
pub struct PullProgress {
    layers: OnceLock<Vec<Arc<LayerProgress>>>,
}

/// How far a layer is.
#[derive(Debug)]
pub struct LayerProgress {
    digest: Digest,
    size: u64,
    received: AtomicU64,
    retries: AtomicU32,
    now: Mutex<(LayerState, String)>,
}

/// State of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// For a slot, or for a registry that asked to wait.
    Waiting,
    /// Bytes come and are unpacked.
    Downloading,
    /// On disk, by this pull.
    Unpacked,
    /// It was on disk already.
    Present,
    /// Its pull fails, or another one with other credentials tries.
    Failed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    /// The progress of the running pull for this reference and these credentials.
    #[must_use]
    pub fn progress(&self, reference: &str, auth: Option<&Credentials>) -> Option<Arc<PullProgress>> {
        let key = (Reference::parse(reference).ok()?, auth.cloned());
        lock(&self.inner.progress.pulls).get(&key)?.upgrade()
    }
}

impl Progresses {
    /// A new pull's.
    pub(super) fn start(&self, key: Key) -> Arc<PullProgress> {
        let progress = Arc::default();
        let mut pulls = lock(&self.pulls);
        pulls.retain(|_, pull| pull.strong_count() > 0);
        pulls.insert(key, Arc::downgrade(&progress));
        progress
    }

    /// A layer's: another pull's, where it has the same.
    pub(super) fn layer(&self, diff_id: &Digest, blob: &Descriptor) -> Arc<LayerProgress> {
        let mut layers = lock(&self.layers);
        let key = (diff_id.clone(), blob.digest.clone());
        if let Some(layer) = layers.get(&key).and_then(Weak::upgrade) {
            return layer;
        }
        let layer = Arc::new(LayerProgress {
            digest: blob.digest.clone(),
            size: blob.size,
            received: AtomicU64::new(0),
            retries: AtomicU32::new(0),
            now: Mutex::new((LayerState::Waiting, String::new())),
        });
        layers.retain(|_, layer| layer.strong_count() > 0);
        layers.insert(key, Arc::downgrade(&layer));
        layer
    }

    /// Sets a pull's layers; those in `state` are already present.
    pub(super) fn layers(
        &self,
        pull: &PullProgress,
        diff_ids: &[Digest],
        blobs: &[Descriptor],
        state: &State,
    ) {
        let mut layers: Vec<Arc<LayerProgress>> = Vec::new();
        for (diff_id, blob) in diff_ids.iter().zip(blobs) {
            let layer = self.layer(diff_id, blob);
            if layers.iter().any(|other| Arc::ptr_eq(other, &layer)) {
                continue;
            }
            if state.layers.contains_key(diff_id.hex()) && layer.state() == LayerState::Waiting {
                layer.set(LayerState::Present);
            }
            layers.push(layer);
        }
        let _ = pull.layers.set(layers);
    }
}

impl PullProgress {
    /// The layers, bottom first; None while the manifest is not known.
    #[must_use]
    pub fn layers(&self) -> Option<&[Arc<LayerProgress>]> {
        self.layers.get().map(Vec::as_slice)
    }
}

impl LayerProgress {
    /// Digest of the compressed layer.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.digest.as_str()
    }

    /// Compressed bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Compressed bytes that came.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Number of retries.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> LayerState {
        lock(&self.now).0
    }

    /// The host that serves it; empty: none yet.
    #[must_use]
    pub fn host(&self) -> String {
        lock(&self.now).1.clone()
    }

    /// Marks the layer as failed when dropped, unless it is finished by then.
    pub(super) fn guard(self: &Arc<Self>) -> FailedGuard {
        FailedGuard(Arc::clone(self))
    }

    pub(super) fn set(&self, state: LayerState) {
        lock(&self.now).0 = state;
    }

    /// Bytes come from `host`, from the start, after this many retries.
    pub(super) fn begin(&self, host: String, asked_again: u32) {
        *lock(&self.now) = (LayerState::Downloading, host);
        self.received.store(0, Ordering::Relaxed);
        self.retries.store(asked_again, Ordering::Relaxed);
    }

    /// Counts received bytes; true: they may come from another host than the last ones.
    pub(super) fn add(&self, bytes: u64, asked_again: u32) -> bool {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.retries.swap(asked_again, Ordering::Relaxed) != asked_again
    }

    /// Names the host that serves now.
    pub(super) fn serve(&self, host: String) {
        lock(&self.now).1 = host;
    }
}

/// See [`LayerProgress::guard`].
pub(super) struct FailedGuard(Arc<LayerProgress>);

impl Drop for FailedGuard {
    fn drop(&mut self) {
        let state = &mut lock(&self.0.now).0;
        if matches!(state, LayerState::Waiting | LayerState::Downloading) {
            *state = LayerState::Failed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(text: &str) -> (Digest, Descriptor) {
        let digest = Digest::sha256(text.as_bytes());
        (Digest::sha256(digest.as_str().as_bytes()), Descriptor::new(digest, 10))
    }

    #[test]
    fn pulls_share_a_layer_while_one_of_them_lives() {
        let progresses = Progresses::default();
        let key = |name: &str| (Reference::parse(name).unwrap(), None);
        let (a, b) = (progresses.start(key("a")), progresses.start(key("b")));
        let ((common_id, common), (other_id, other)) = (blob("common"), blob("other"));
        let state = State::default();
        progresses.layers(
            &a,
            &[common_id.clone(), common_id.clone()],
            &[common.clone(), common.clone()],
            &state,
        );
        progresses.layers(&b, &[other_id, common_id.clone()], &[other, common.clone()], &state);
        assert_eq!(a.layers().unwrap().len(), 1, "a layer that occurs twice is fetched once");
        let work = progresses.layer(&common_id, &common);
        work.begin("g".into(), 0);
        assert!(!work.add(3, 0) && work.add(1, 1));
        work.serve("h".into());
        for (pull, at) in [(&a, 0), (&b, 1)] {
            let layer = &pull.layers().unwrap()[at];
            assert_eq!((layer.state(), layer.received()), (LayerState::Downloading, 4));
            assert_eq!((layer.host().as_str(), layer.size(), layer.retries()), ("h", 10, 1));
        }
        work.begin("i".into(), 1);
        assert_eq!(a.layers().unwrap()[0].received(), 0, "it starts anew");
        drop((a, b, work));
        assert_eq!(
            progresses.layer(&common_id, &common).state(),
            LayerState::Waiting,
            "nothing is remembered"
        );
        assert_eq!(lock(&progresses.layers).len(), 1);
    }
}
