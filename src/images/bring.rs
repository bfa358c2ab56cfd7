//! Makes an image of what a source has: documents, layers side by side, directories, index. Owns the order of these steps
//! and who shares which work; the steps themselves are elsewhere.

use super::Shared;
use super::artifact::{self, Form};
use super::aside::{Aside, Back};
use super::digest::Digest;
use super::directories;
use super::error::ImageError;
use super::flight::{FailedJoins, Role};
use super::index::{ImageRecord, LayerRecord, Presence, Served};
use super::layer::{self, Job};
use super::manifest::{
    ConfigFile, Descriptor, Document, MAX_CONFIG, MAX_INDEX_DEPTH, Node, choose, is_artifact,
    parse as parse_manifest,
};
use super::offload::blocking;
use super::progress::{LayerProgress, LayerState, PullProgress};
use super::proof::Caller;
use super::slots::Slot;
use super::source::{Source, Stream};
use super::staging::Staging;
use super::stats::{PullStats, Stage};
use super::store::{Giver, KEEP_UNREFERENCED, NewImage};
use super::unpack::Unpacked;
use crate::model::ImageId;
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// Layers of a pull that a registry is asked about at once; a connection each where it speaks HTTP/1.
const ASKED_AT_ONCE: usize = 8;

/// An image to be brought.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its name in errors.
    pub(super) what: String,
    /// Manifest or index.
    pub(super) top: Descriptor,
    /// The document of `top`, where it is known and verified already.
    pub(super) document: Option<Vec<u8>>,
    /// Names that it gets: normalised tags and `name@digest`.
    pub(super) names: Vec<String>,
    /// Whose right to each layer is to be shown, also where it is here; None: root's, who may have all.
    pub(super) caller: Option<Caller>,
}

/// Brings an image into the store while nobody watches.
pub(super) async fn bring(inner: &Shared, source: &Source, wanted: Wanted) -> Result<ImageId, ImageError> {
    bring_watched(inner, source, wanted, &PullProgress::default()).await
}

/// Brings an image into the store and tells `progress` how far that is.
pub(super) async fn bring_watched(
    inner: &Shared,
    source: &Source,
    wanted: Wanted,
    progress: &PullProgress,
) -> Result<ImageId, ImageError> {
    let Wanted { what, top, document, names, caller } = wanted;
    let giver = if caller.is_some() { Giver::Pull } else { Giver::Root };
    let Found { manifest, config, layers, is_checkpoint } = descend(source, &what, top, document).await?;
    let config_body = source.small_blob(&config, MAX_CONFIG).await?;
    let (digest, diff_ids, layers, artifact, file) = if is_artifact(&config, &layers) {
        let (keys, files) = artifact::files(&what, layers)?;
        (manifest.digest.clone(), keys, files, Some(config.kept(&[])), None)
    } else {
        let (name, body, count) = (what.clone(), config_body.clone(), layers.len());
        let file = blocking(move || ConfigFile::parse(&name, &body, count, Node::here())).await?;
        (config.digest, file.diff_ids().to_vec(), layers, None, Some(file))
    };
    if !digest.is_sha256() {
        return Err(ImageError::Unsupported {
            what,
            reason: format!("digest {digest}, an image id is sha256"),
        });
    }
    let id = digest.to_string();
    // What a registry said of an image says where to fetch it again, so files do not overwrite it.
    if let Source::Local(_) = source {
        let (store, id, names) = (Arc::clone(&inner.store), id.clone(), names.clone());
        if blocking(move || store.add_names(&id, &names, giver)).await? {
            return Ok(ImageId::from_digest(digest.as_str()));
        }
    }
    let mut record = ImageRecord {
        presence: Presence::Listed,
        size: layers
            .iter()
            .map(|l| l.size)
            .fold(manifest.size.saturating_add(config.size), u64::saturating_add),
        manifest: manifest.digest,
        diff_ids: diff_ids.clone(),
        // Titles are names of files, within limits; an image has none.
        blobs: layers
            .iter()
            .map(|layer| layer.kept(if artifact.is_some() { &artifact::TITLES } else { &[] }))
            .collect(),
        directories: None,
        artifact,
        is_checkpoint,
    };
    // From here on no sweep takes a layer away.
    let _lease = inner.store.lease(super::state::keys(&record));
    let aside = Aside::lay(&what, inner.store.staging_dir(), config_body, file).await?;
    inner.progress.layers(progress, &diff_ids, &layers, &inner.store.state());
    fetch_layers(inner, source, &diff_ids, &layers, caller.as_ref()).await?;
    let state = inner.store.state();
    if state.images.get(&id).is_some_and(|known| known.record.manifest == record.manifest) {
        let (store, id, names) = (Arc::clone(&inner.store), id.clone(), names.clone());
        if blocking(move || store.add_names(&id, &names, giver)).await? {
            return Ok(ImageId::from_digest(digest.as_str()));
        }
    }
    let (store, new_id) = (Arc::clone(&inner.store), id.clone());
    let config = aside.back().await?;
    blocking(move || {
        let directories = directories::build(&store, &super::state::keys(&record))?;
        let _directories_lease = store.lease(directories.iter().map(|d| d.key.clone()).collect());
        if let Some(directories) = directories {
            store.add_layer(&directories.key, directories.staging, &directories.unpacked, None)?;
            record.directories = Some(directories.key);
        }
        let Back { body, file, turn: _turn } = config;
        store.add_image(NewImage { id: new_id, record, config: body, file, names, giver })?;
        if let Err(error) = store.sweep(KEEP_UNREFERENCED) {
            // Log: They could not be removed.
            // Do: See `error`; the next removal tries again.
            tracing::warn!(%error, "layers of failed pulls stay");
        }
        Ok(())
    })
    .await?;
    Ok(ImageId::from_digest(&id))
}

/// A manifest and what it says.
#[derive(Debug)]
pub(super) struct Found {
    manifest: Descriptor,
    pub(super) config: Descriptor,
    layers: Vec<Descriptor>,
    is_checkpoint: bool,
}

/// Follows indexes down to a manifest.
pub(super) async fn descend(
    source: &Source,
    what: &str,
    top: Descriptor,
    document: Option<Vec<u8>>,
) -> Result<Found, ImageError> {
    let (mut at, mut body) = (top, document);
    for _ in 0..=MAX_INDEX_DEPTH {
        let bytes = match body.take() {
            Some(bytes) => bytes,
            None => source.manifest(&at).await?,
        };
        let name = what.to_owned();
        match blocking(move || parse_manifest(&name, &bytes)).await? {
            Document::Manifest { config, layers, is_checkpoint } => {
                return Ok(Found { manifest: at, config, layers, is_checkpoint });
            }
            Document::Index(entries) => at = choose(what, &entries, Node::here())?,
        }
    }
    Err(ImageError::Limit {
        what: format!("the nesting of indexes of {what}"),
        limit: u64::try_from(MAX_INDEX_DEPTH).unwrap_or_default(),
        unit: "levels",
    })
}

/// Sees to it that all layers are here and that the caller may have them, side by side; the same layer once.
async fn fetch_layers(
    inner: &Shared,
    source: &Source,
    diff_ids: &[Digest],
    layers: &[Descriptor],
    caller: Option<&Caller>,
) -> Result<(), ImageError> {
    let wanted: BTreeMap<&Digest, &Descriptor> = diff_ids.iter().zip(layers).collect();
    let state = inner.store.state();
    let present = wanted.keys().filter(|diff_id| state.layers.contains_key(diff_id.hex())).count();
    PullStats::add(&inner.stats.layers_reused, u64::try_from(present).unwrap_or_default());
    let asking = Semaphore::new(ASKED_AT_ONCE);
    let layers =
        wanted.into_iter().map(|(diff_id, blob)| have_layer(inner, source, diff_id, blob, caller, &asking));
    try_join_all(layers).await?;
    Ok(())
}

/// A layer that is here is the caller's only when its registry has shown so; that others may have it says nothing.
async fn have_layer(
    inner: &Shared,
    source: &Source,
    diff_id: &Digest,
    blob: &Descriptor,
    caller: Option<&Caller>,
    asking: &Semaphore,
) -> Result<(), ImageError> {
    let has_shown = || {
        if let Some(caller) = caller {
            inner.proofs.put(caller, &blob.digest);
        }
    };
    let mut failed = FailedJoins::default();
    loop {
        let here = inner.store.state().layers.get(diff_id.hex()).cloned();
        if let Some(record) = here {
            let (store, key) = (Arc::clone(&inner.store), diff_id.hex().to_owned());
            if blocking(move || store.lost_of(&[key])).await?.is_some() {
                continue;
            }
            if caller.is_some_and(|c| !record.is_of(&blob.digest) || !inner.proofs.has(c, &blob.digest)) {
                prove(inner, source, diff_id, blob, &record, asking).await?;
                has_shown();
            }
            return Ok(());
        }
        let work = || one_layer(Arc::clone(inner), source.clone(), diff_id.clone(), blob.clone());
        let key = (diff_id.clone(), blob.digest.clone(), source.place());
        match inner.layers.join_or_alone(key, blob.digest.as_str(), &mut failed, work).await {
            // It failed with another pull's credentials; ours may do better.
            (Err(error), Role::Joined) => tracing::debug!(%diff_id, %error, "a joined layer download failed"),
            (Err(error), Role::Started) => return Err(error),
            (Ok(Fetched::Now), Role::Started) => {
                has_shown();
                return Ok(());
            }
            // It is here by another's right.
            (Ok(_), _) => {}
        }
    }
}

/// Has a layer that is here shown to be the caller's: by the word of a host that is known to have its bytes, or by all of
/// them again. What the manifest says of blob and diff id is believed only once both were seen together.
async fn prove(
    inner: &Shared,
    source: &Source,
    diff_id: &Digest,
    blob: &Descriptor,
    record: &LayerRecord,
    asking: &Semaphore,
) -> Result<(), ImageError> {
    if let Source::Registry(session) = source {
        let _one_of_few = asking.acquire().await;
        if session.grants(blob, |host| record.is_from(&blob.digest, host)).await {
            return Ok(());
        }
    }
    tracing::debug!(%diff_id, blob = %blob.digest, "a layer that is here is fetched to show the right to it");
    let progress = inner.progress.layer(diff_id, blob);
    let _failed_unless_done = progress.guard();
    let (staging, _, served) = stage(inner, source, diff_id, blob, &progress).await?;
    let (store, key) = (Arc::clone(&inner.store), diff_id.hex().to_owned());
    blocking(move || {
        drop(staging);
        served.map_or(Ok(()), |served| store.add_served(&key, served))
    })
    .await?;
    progress.set(LayerState::Present);
    Ok(())
}

/// How a layer came to be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// By this very work.
    Now,
    /// Another has fetched it.
    Before,
}

async fn one_layer(
    inner: Shared,
    source: Source,
    diff_id: Digest,
    blob: Descriptor,
) -> Result<Fetched, ImageError> {
    // The flight that had it may have ended between our look and our start.
    if inner.store.state().layers.contains_key(diff_id.hex()) {
        return Ok(Fetched::Before);
    }
    let progress = inner.progress.layer(&diff_id, &blob);
    let _failed_unless_done = progress.guard();
    let (staging, unpacked, served) = stage(&inner, &source, &diff_id, &blob, &progress).await?;
    let (store, begun) = (Arc::clone(&inner.store), Instant::now());
    blocking(move || store.add_layer(diff_id.hex(), staging, &unpacked, served)).await?;
    inner.stats.spent(Stage::Publish, begun.elapsed());
    PullStats::add(&inner.stats.layers, 1);
    progress.set(LayerState::Unpacked);
    Ok(Fetched::Now)
}

/// Fetches a layer into a staging directory; blob and diff id are verified.
pub(super) async fn stage(
    inner: &Shared,
    source: &Source,
    diff_id: &Digest,
    blob: &Descriptor,
    progress: &Arc<LayerProgress>,
) -> Result<(Staging, Unpacked, Option<Served>), ImageError> {
    let mut stream = source.layer(diff_id, blob);
    loop {
        let slot = open(inner, source.queue(), blob, &mut stream).await?;
        progress.begin(stream.host(), stream.asked_again());
        let store = Arc::clone(&inner.store);
        // With the slot: a pull cancelled here has its directory removed before the slot is free.
        let made = blocking(move || Ok((Staging::new(&store.staging_dir())?, slot)));
        let (staging, slot) = made.await?;
        let job = Job {
            blob: stream.digest().clone(),
            form: Form::of(diff_id, blob),
            diff_id: diff_id.clone(),
            staging,
            limits: inner.limits,
            windows: Arc::clone(&inner.windows),
            stats: Arc::clone(&inner.stats),
            progress: Arc::clone(progress),
        };
        let (watched, host) = (slot.clone(), stream.host());
        let fetched = tokio::select! {
            fetched = layer::fetch(&mut stream, job, slot) => fetched,
            bytes = inner.downloads.lost(&watched, || progress.received()) => {
                Err(lost(inner, blob, host, bytes))
            }
        };
        match fetched {
            Ok((staging, unpacked)) => return Ok((staging, unpacked, stream.served())),
            Err(error) if stream.begin_again(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the blob within a slot. While a registry makes us wait, others use the slot.
async fn open(
    inner: &Shared,
    queue: &str,
    blob: &Descriptor,
    stream: &mut Stream<'_>,
) -> Result<Slot, ImageError> {
    loop {
        let slot = inner.downloads.take(queue).await?;
        let opened = tokio::select! {
            opened = stream.open() => opened?,
            // An answer may be as slow as what it is the answer with.
            bytes = inner.downloads.lost(&slot, || 0) => {
                return Err(lost(inner, blob, queue.to_owned(), bytes));
            }
        };
        let Some(wait) = opened else { return Ok(slot) };
        drop(slot);
        tokio::time::sleep(wait).await;
    }
}

/// A download that lost its slot to others.
fn lost(inner: &Shared, blob: &Descriptor, host: String, bytes: u64) -> ImageError {
    ImageError::TooSlow { what: blob.digest.to_string(), host, bytes, window: inner.downloads.look }
}
