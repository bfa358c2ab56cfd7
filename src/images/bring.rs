//! Makes an image of what a source has: documents, layers side by side, directories, index. Owns the order of these steps
//! and who shares which work; the steps themselves are elsewhere.

use super::Shared;
use super::artifact::{self, Form};
use super::digest::Digest;
use super::directories;
use super::error::ImageError;
use super::flight::Role;
use super::index::{ImageRecord, Presence};
use super::layer::{self, Job};
use super::manifest::{
    ConfigFile, Descriptor, Document, MAX_CONFIG, MAX_INDEX_DEPTH, Node, choose, is_artifact,
    parse as parse_manifest,
};
use super::progress::{LayerProgress, LayerState, PullProgress};
use super::pull::blocking;
use super::slots::Slot;
use super::source::{Source, Stream};
use super::staging::Staging;
use super::stats::{PullStats, Stage};
use super::store::{KEEP_UNREFERENCED, NewImage};
use super::unpack::Unpacked;
use crate::model::ImageId;
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

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
    let Wanted { what, top, document, names } = wanted;
    let Found { manifest, config, layers, is_checkpoint } = descend(source, &what, top, document).await?;
    let config_body = source.small_blob(&config, MAX_CONFIG).await?;
    let (digest, diff_ids, layers, artifact) = if is_artifact(&config, &layers) {
        let (keys, files) = artifact::files(&what, layers)?;
        (manifest.digest.clone(), keys, files, Some(config.clone()))
    } else {
        let file = ConfigFile::parse(&what, &config_body, layers.len(), Node::here())?;
        (config.digest, file.diff_ids().to_vec(), layers, None)
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
        if blocking(move || store.add_names(&id, &names)).await? {
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
        blobs: layers.clone(),
        directories: None,
        artifact,
        is_checkpoint,
    };
    // From here on no sweep takes a layer away.
    let _lease = inner.store.lease(super::state::keys(&record));
    inner.progress.layers(progress, &diff_ids, &layers, &inner.store.state());
    fetch_layers(inner, source, &diff_ids, &layers).await?;
    let (store, new_id) = (Arc::clone(&inner.store), id.clone());
    blocking(move || {
        let directories = directories::build(&store, &super::state::keys(&record))?;
        let _directories_lease = store.lease(directories.iter().map(|d| d.key.clone()).collect());
        if let Some(directories) = directories {
            store.add_layer(&directories.key, directories.staging, &directories.unpacked)?;
            record.directories = Some(directories.key);
        }
        store.add_image(NewImage { id: new_id, record, config: config_body, names })?;
        if let Err(error) = store.sweep(KEEP_UNREFERENCED) {
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
        match parse_manifest(what, &bytes)? {
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

/// Fetches all layers that are absent, side by side; the same layer once.
async fn fetch_layers(
    inner: &Shared,
    source: &Source,
    diff_ids: &[Digest],
    layers: &[Descriptor],
) -> Result<(), ImageError> {
    let wanted: BTreeMap<&Digest, &Descriptor> = diff_ids.iter().zip(layers).collect();
    let state = inner.store.state();
    let (present, absent): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(diff_id, _)| state.layers.contains_key(diff_id.hex()));
    PullStats::add(&inner.stats.layers_reused, u64::try_from(present.len()).unwrap_or_default());
    try_join_all(absent.into_iter().map(|(diff_id, blob)| fetch_layer(inner, source, diff_id, blob))).await?;
    Ok(())
}

async fn fetch_layer(
    inner: &Shared,
    source: &Source,
    diff_id: &Digest,
    blob: &Descriptor,
) -> Result<(), ImageError> {
    loop {
        let work = || one_layer(Arc::clone(inner), source.clone(), diff_id.clone(), blob.clone());
        match inner.layers.join(diff_id.clone(), blob.digest.as_str(), work).await {
            // It failed with another pull's registry and credentials; ours may do better.
            (Err(error), Role::Joined) => tracing::debug!(%diff_id, %error, "a joined layer download failed"),
            (result, _) => return result,
        }
    }
}

async fn one_layer(
    inner: Shared,
    source: Source,
    diff_id: Digest,
    blob: Descriptor,
) -> Result<(), ImageError> {
    // The flight that had it may have ended between our look and our start.
    if inner.store.state().layers.contains_key(diff_id.hex()) {
        return Ok(());
    }
    let progress = inner.progress.layer(&diff_id, &blob);
    let _failed_unless_done = progress.guard();
    let (staging, unpacked) = stage(&inner, &source, &diff_id, &blob, &progress).await?;
    let (store, begun) = (Arc::clone(&inner.store), Instant::now());
    blocking(move || store.add_layer(diff_id.hex(), staging, &unpacked)).await?;
    inner.stats.spent(Stage::Publish, begun.elapsed());
    PullStats::add(&inner.stats.layers, 1);
    progress.set(LayerState::Unpacked);
    Ok(())
}

/// Fetches a layer into a staging directory.
pub(super) async fn stage(
    inner: &Shared,
    source: &Source,
    diff_id: &Digest,
    blob: &Descriptor,
    progress: &Arc<LayerProgress>,
) -> Result<(Staging, Unpacked), ImageError> {
    let mut stream = source.layer(diff_id, blob);
    loop {
        let slot = open(inner, source.queue(), &mut stream).await?;
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
            stats: Arc::clone(&inner.stats),
            progress: Arc::clone(progress),
        };
        match layer::fetch(&mut stream, job, slot).await {
            Ok(done) => return Ok(done),
            Err(error) if stream.begin_again(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the blob within a slot. While a registry makes us wait, others use the slot.
async fn open(inner: &Shared, queue: &str, stream: &mut Stream<'_>) -> Result<Slot, ImageError> {
    loop {
        let slot = inner.downloads.take(queue).await?;
        let Some(wait) = stream.open().await? else { return Ok(slot) };
        drop(slot);
        tokio::time::sleep(wait).await;
    }
}
