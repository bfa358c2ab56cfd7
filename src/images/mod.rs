//! Images: names, pulls and the local store of unpacked layers.
//!
//! ```text
//! reference ─► session (registry/) ─► manifest ─► layers, side by side ─► index ─► snapshot
//!                                                    │
//!                       socket ─► digest ─► decompress ─► diffID ─► unpack/ ─► staging ─► layers/<diffID>/fs
//! ```
//!
//! Content is addressed by digest and verified before it is visible. A layer is a directory keyed by its diffID, stored
//! once, used by overlayfs as it is. Never learns that pods exist: a container's need is a [`Hold`].

mod areas;
mod artifact;
mod aside;
mod bounded;
mod bring;
mod collect;
mod copies;
mod decompress;
mod details;
mod digest;
mod directories;
mod document;
mod endpoints;
mod error;
mod flight;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod image;
mod index;
mod index_check;
mod layer;
mod manifest;
mod mend;
mod offload;
mod policy;
mod pour;
mod progress;
mod proof;
mod pull;
mod recipe;
mod reconcile;
mod reference;
mod registry;
mod set_aside;
mod shares;
mod slots;
mod source;
mod staging;
mod state;
mod stats;
mod store;
mod transfer;
mod unpack;
mod verify;
mod windows;
mod worker;

#[cfg(test)]
mod tests;

pub use collect::{Collected, CollectedImage, Removal};
pub use details::{Details, LayerUse, Stored};
pub use endpoints::Endpoints;
pub use error::{ImageError, RegistryMessage};
pub use image::{Image, ImageConfig, ImageKind, ImageUser};
pub use progress::{LayerProgress, LayerState, PullProgress};
pub use reference::{Reference, Target};
pub use registry::{Credentials, Endpoint, LookedAt, Probe};
pub use stats::{PullStats, Stage};
pub use transfer::{Archive, ExportOptions, Format, Imported, LoadOptions, Loaded, Peer};
pub use verify::{Damage, Depth, Finding, Repair, Subject, VerifyEvent, VerifySummary};

use crate::config;
use crate::model::ImageId;
use digest::Digest;
use flight::Flights;
use progress::Progresses;
use proof::Proofs;
use slots::Slots;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Lease, Store};
use unpack::Limits;

/// The image store and its registry client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Shared,
}

type Shared = Arc<Inner>;

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    registry: Arc<registry::Registry>,
    /// Pulls by reference and credentials: a caller never gets an image by another's rights.
    pulls: Flights<(Reference, Option<Credentials>), ImageId>,
    /// Layers by diffID, blob and where they are from: nobody waits for another's registry, which may be slow on purpose.
    layers: Flights<(Digest, Digest, String), bring::Fetched>,
    proofs: Proofs,
    downloads: Slots,
    limits: Limits,
    windows: Arc<windows::Windows>,
    archives: offload::Archives,
    policy: policy::SignaturePolicy,
    stats: Arc<PullStats>,
    progress: Progresses,
    /// Held while the store is verified.
    verifying: tokio::sync::Mutex<()>,
}

/// Whether this process was started to work on other people's bytes; then its work is done, and this is what it exits with.
/// A program that opens a store calls this before anything else, and then [`use_workers`].
#[must_use]
pub fn run_as_worker() -> Option<std::process::ExitCode> {
    crate::host::worker::run(&[
        &worker::DECOMPRESSOR,
        &worker::PARSER,
        &document::READER,
        &registry::PROGRAM,
        &index_check::CHECKER,
    ])
}

/// Whether the kernel takes files from workers twice: by Landlock and by their filter of calls.
#[must_use]
pub fn workers_have_landlock() -> bool {
    crate::host::worker::have_landlock()
}

/// Has other people's bytes worked on in processes without rights from now on, not in threads of this one.
pub fn use_workers() {
    crate::host::worker::use_processes();
}

/// Use of the file system by images, from sums that the index keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// Bytes of all layers, in allocation units of 4 KiB.
    pub used_bytes: u64,
    /// Inodes of all layers.
    pub inodes_used: u64,
}

/// A container's use of an image: its layer directories stay while this exists, also when the image is removed.
#[derive(Debug)]
pub struct Hold {
    image: Arc<Image>,
    layers: Vec<PathBuf>,
    lease: Lease,
}

impl Hold {
    /// The image as it was when the hold was taken.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Whether all layers are there. Of one that is not, the images are not listed any more, so that they are pulled again.
    /// Blocking.
    ///
    /// # Errors
    /// `LayerLost`; when the index cannot be written.
    pub fn check(&self) -> Result<(), ImageError> {
        match self.lease.lost()? {
            Some(layer) => Err(ImageError::LayerLost { image: self.image.id.to_string(), layer }),
            None => Ok(()),
        }
    }

    /// Overlay lower directories, bottom first.
    #[must_use]
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }
}

impl Images {
    /// Opens the store below `root`, sweeps what a crash left and makes index and directories agree. Blocking.
    ///
    /// # Errors
    /// When `root` cannot be used, the index is of another version, or another process has it open; for a malformed
    /// reference among `pinned`, and for a signature policy that cannot be used.
    pub fn open(root: &Path, config: &config::Images) -> Result<Self, ImageError> {
        let pinned = config
            .pinned
            .iter()
            .map(|name| Reference::parse(name).map(|r| r.to_string()))
            .collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                store: Store::open(root, pinned)?,
                registry: registry::Registry::new(config),
                pulls: Flights::default(),
                layers: Flights::default(),
                proofs: Proofs::new()?,
                downloads: Slots::new(config),
                limits: Limits { bytes: config.max_layer_bytes, entries: config.max_layer_entries },
                archives: offload::Archives::default(),
                windows: windows::Windows::for_downloads(
                    config.zstd_window_bytes,
                    config.max_concurrent_downloads.max(1),
                ),
                policy: policy::SignaturePolicy::open(&config.signature_policy)?,
                stats: Arc::default(),
                progress: Progresses::default(),
                verifying: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Pulls an image and returns its id. Calls for the same reference and credentials join, as do layers of different
    /// images; the work goes on while anybody waits for it and ends when nobody does.
    ///
    /// # Errors
    /// Any of [`ImageError`]; nothing of a failed layer stays.
    pub async fn pull(&self, reference: &str, auth: Option<Credentials>) -> Result<ImageId, ImageError> {
        let reference = Reference::parse(reference)?;
        let what = reference.to_string();
        let inner = &self.inner;
        // For the first document, which a worker reads.
        crate::host::worker::expect();
        let start = || {
            let progress = inner.progress.start((reference.clone(), auth.clone()));
            pull::start(inner, &reference, auth.as_ref(), progress)
        };
        inner.pulls.join((reference.clone(), auth.clone()), &what, start).await.0
    }

    /// All images, in the order of their ids. From memory.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.store.state().listed().cloned().collect()
    }

    /// Finds an image by id, `sha256:` id, unique id prefix, tag (normalised) or digest. From memory.
    #[must_use]
    pub fn status(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.store.state().find(name).ok().map(|e| Arc::clone(&e.image))
    }

    /// What a container of the image runs, also of one that was removed and is held. Blocking for one read of the index.
    ///
    /// # Errors
    /// When the image is gone or the index cannot be read.
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig, ImageError> {
        let (store, id) = (&self.inner.store, id.as_str());
        let missing = || ImageError::NotFound { name: id.to_owned() };
        let record =
            store.state().images.get(id).map(|entry| Arc::clone(&entry.record)).ok_or_else(missing)?;
        let config = store.index().config(id)?.ok_or_else(missing)?;
        let file = record.config_file(id, &config, store.index().said(id)?.as_deref())?;
        Ok(file.config.unwrap_or_default())
    }

    /// [`Self::config`] for who may not block.
    ///
    /// # Errors
    /// As there.
    pub async fn read_config(&self, id: &ImageId) -> Result<ImageConfig, ImageError> {
        let (images, id) = (self.clone(), id.clone());
        offload::blocking(move || images.config(&id)).await
    }

    /// The config blob as the registry gave it. Blocking for one read of the index.
    ///
    /// # Errors
    /// When the image is gone or the index cannot be read.
    pub fn raw_config(&self, id: &ImageId) -> Result<String, ImageError> {
        let bytes = self.inner.store.index().config(id.as_str())?;
        bytes
            .and_then(|b| String::from_utf8(b).ok())
            .ok_or_else(|| ImageError::NotFound { name: id.to_string() })
    }

    /// Removes the image with all its names; an unknown one is fine. Layers that no other image and no hold needs are
    /// deleted behind the caller's back.
    ///
    /// # Errors
    /// When a prefix is ambiguous or the index cannot be written.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let id = match self.inner.store.state().find(name) {
            Ok(entry) => entry.image.id.as_str().to_owned(),
            Err(error @ ImageError::Ambiguous { .. }) => return Err(error),
            Err(_) => return Ok(()),
        };
        let store = Arc::clone(&self.inner.store);
        offload::blocking(move || store.remove_image(&id).map(drop)).await
    }

    /// Takes a hold on an image for a container.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous` or `Malformed`.
    pub fn hold(&self, name: &str) -> Result<Hold, ImageError> {
        self.hold_entry(|state| state.find(name).cloned())
    }

    /// Takes the hold of a container that lived before this process, also on an image removed since.
    #[must_use]
    pub fn restore_hold(&self, id: &ImageId) -> Option<Hold> {
        let missing = || ImageError::NotFound { name: id.to_string() };
        self.hold_entry(|state| state.images.get(id.as_str()).cloned().ok_or_else(missing)).ok()
    }

    fn hold_entry(
        &self,
        find: impl FnOnce(&state::State) -> Result<state::Entry, ImageError>,
    ) -> Result<Hold, ImageError> {
        let (entry, lease) = self.inner.store.hold(find)?;
        let layers = state::keys(&entry.record).iter().map(|key| self.inner.store.layer_fs(key)).collect();
        Ok(Hold { image: entry.image, layers, lease })
    }

    /// To be called once all holds are restored: forgets removed images that no container uses any more. Blocking.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub fn recovered(&self) -> Result<(), ImageError> {
        self.inner.store.reap(&[]).map(drop)
    }

    /// What the layers take. From memory, never a walk.
    #[must_use]
    pub fn fs_usage(&self) -> FsUsage {
        let store = &self.inner.store;
        let state = store.state();
        let sum = |field: fn(&index::LayerRecord) -> u64| {
            state.layers.values().map(field).fold(0, u64::saturating_add)
        };
        FsUsage {
            mountpoint: store.root().to_owned(),
            used_bytes: sum(|l| l.bytes),
            inodes_used: sum(|l| l.inodes),
        }
    }

    /// Unpacks the tar of a container's changes into `<to>/fs` as a layer, by the rules for layers of others: it is no
    /// more trusted. It may be compressed with gzip or zstd; `first` are entries before its own. `<to>/fs` and
    /// `<to>/replaced` are there; `name` stands for it in errors. Blocking.
    ///
    /// # Errors
    /// When it is hostile, corrupt or too large.
    pub fn unpack_changes(
        &self,
        first: impl std::io::Read + 'static,
        tar: impl std::io::Read + Send + 'static,
        to: &Path,
        name: &str,
    ) -> Result<(), ImageError> {
        let tar = transfer::plain(tar, name, &self.inner.windows)?;
        let whole = std::io::BufReader::new(std::io::Read::chain(first, tar));
        let parser = worker::Parser::start().map_err(worker::cannot_start)?;
        unpack::unrecorded(whole, parser, to, name, self.inner.limits).map(|_| ())
    }

    /// Counters of pulls.
    #[must_use]
    pub fn stats(&self) -> &Arc<PullStats> {
        &self.inner.stats
    }
}
