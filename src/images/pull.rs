//! A pull, from a reference to an image in the index. Owns the order of the steps and who shares which work; the steps
//! themselves are elsewhere.

use super::digest::Digest;
use super::directories;
use super::error::ImageError;
use super::flight::Role;
use super::index::{ImageRecord, Presence};
use super::layer::{self, Job};
use super::manifest::{
    ConfigFile, Descriptor, Document, MAX_CONFIG, MAX_INDEX_DEPTH, Node, choose, parse as parse_manifest,
};
use super::reference::{Reference, Target};
use super::registry::{Blob, Credentials, Session};
use super::slots::Slot;
use super::staging::Staging;
use super::stats::PullStats;
use super::store::{KEEP_UNREFERENCED, NewImage, Store};
use super::{Inner, Shared};
use crate::model::ImageId;
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Keeps the number of running pulls right, also when a pull is cancelled.
struct Running(Arc<PullStats>, Instant, bool);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.pulls_running.fetch_sub(1, Ordering::Relaxed);
        self.0.ended(self.2, self.1.elapsed());
    }
}

/// Pulls, in a task of its own.
pub(super) async fn pull(
    inner: Shared,
    reference: Reference,
    credentials: Option<Credentials>,
) -> Result<ImageId, ImageError> {
    PullStats::add(&inner.stats.pulls_running, 1);
    let mut running = Running(Arc::clone(&inner.stats), Instant::now(), false);
    let result = steps(&inner, &reference, credentials.as_ref()).await;
    running.2 = result.is_ok();
    match &result {
        Ok(id) => {
            let millis = running.1.elapsed().as_millis();
            tracing::info!(image = %reference, %id, %millis, "pulled");
        }
        Err(error) => tracing::info!(image = %reference, %error, "pull failed"),
    }
    result
}

async fn steps(
    inner: &Shared,
    reference: &Reference,
    credentials: Option<&Credentials>,
) -> Result<ImageId, ImageError> {
    let session = {
        let (registry, reference, credentials) =
            (Arc::clone(&inner.registry), reference.clone(), credentials.cloned());
        // Reads hosts.toml and certificates.
        blocking(move || Session::new(&registry, &reference, credentials.as_ref())).await?
    };
    let session = Arc::new(session);
    let (top, document) = session.resolve().await?;
    inner.policy.admit(&session, reference, &top.digest, &inner.stats).await?;
    let names = Names::of(reference, &top.digest);
    if let Some(id) = known(inner, &top.digest, &names).await? {
        return Ok(id);
    }
    let (manifest, config, layers) = descend(&session, reference, top, document).await?;
    let config_body = session.small_blob(&config, MAX_CONFIG).await?;
    let file = ConfigFile::parse(&reference.to_string(), &config_body, layers.len(), Node::here())?;
    if !config.digest.is_sha256() {
        return Err(ImageError::Unsupported {
            what: reference.to_string(),
            reason: format!("config digest {}, an image id is sha256", config.digest),
        });
    }
    let diff_ids = file.diff_ids().to_vec();
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
    };
    // From here on no sweep takes a layer away.
    let _lease = inner.store.lease(super::state::keys(&record));
    fetch_layers(inner, &session, &diff_ids, &layers).await?;
    let id = config.digest.to_string();
    let (store, new_id) = (Arc::clone(&inner.store), id.clone());
    blocking(move || {
        let directories = directories::build(&store, &super::state::keys(&record))?;
        let _directories_lease = store.lease(directories.iter().map(|d| d.key.clone()).collect());
        if let Some(directories) = directories {
            store.add_layer(&directories.key, directories.staging, &directories.unpacked)?;
            record.directories = Some(directories.key);
        }
        let Names { tag, at_digest } = names;
        store.add_image(NewImage { id: new_id, record, config: config_body, tag, at_digest })?;
        if let Err(error) = store.sweep(KEEP_UNREFERENCED) {
            tracing::warn!(%error, "layers of failed pulls stay");
        }
        Ok(())
    })
    .await?;
    Ok(ImageId::from_digest(&id))
}

/// The names that a pull gives to its image.
struct Names {
    tag: Option<String>,
    at_digest: String,
}

impl Names {
    fn of(reference: &Reference, top: &Digest) -> Self {
        let tag = match reference.target() {
            Target::Tag(_) => Some(reference.to_string()),
            Target::Digest(_) => None,
        };
        Self { tag, at_digest: reference.at_digest(top) }
    }
}

/// The image that the digest is known to mean, with its new names. The registry has just answered for the reference, so the
/// caller may have it.
async fn known(inner: &Shared, top: &Digest, names: &Names) -> Result<Option<ImageId>, ImageError> {
    let state = inner.store.state();
    let suffix = format!("@{top}");
    let Some(id) = state.names.iter().find(|(name, _)| name.ends_with(&suffix)).map(|(_, id)| id.clone())
    else {
        return Ok(None);
    };
    let (store, tag, at_digest, target) =
        (Arc::clone(&inner.store), names.tag.clone(), names.at_digest.clone(), id.clone());
    let there = blocking(move || store.add_names(&target, tag.as_deref(), &at_digest)).await?;
    Ok(there.then(|| ImageId::from_digest(&id)))
}

/// Follows indexes down to a manifest.
async fn descend(
    session: &Session,
    reference: &Reference,
    top: Descriptor,
    document: Option<Vec<u8>>,
) -> Result<(Descriptor, Descriptor, Vec<Descriptor>), ImageError> {
    let what = reference.to_string();
    let (mut at, mut body) = (top, document);
    for _ in 0..=MAX_INDEX_DEPTH {
        let bytes = match body.take() {
            Some(bytes) => bytes,
            None => session.manifest(&at).await?,
        };
        match parse_manifest(&what, &bytes)? {
            Document::Manifest { config, layers } => return Ok((at, config, layers)),
            Document::Index(entries) => at = choose(&what, &entries, Node::here())?,
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
    session: &Arc<Session>,
    diff_ids: &[Digest],
    layers: &[Descriptor],
) -> Result<(), ImageError> {
    let wanted: BTreeMap<&Digest, &Descriptor> = diff_ids.iter().zip(layers).collect();
    let state = inner.store.state();
    let (present, absent): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(diff_id, _)| state.layers.contains_key(diff_id.hex()));
    PullStats::add(&inner.stats.layers_reused, u64::try_from(present.len()).unwrap_or_default());
    try_join_all(absent.into_iter().map(|(diff_id, blob)| fetch_layer(inner, session, diff_id, blob)))
        .await?;
    Ok(())
}

async fn fetch_layer(
    inner: &Shared,
    session: &Arc<Session>,
    diff_id: &Digest,
    blob: &Descriptor,
) -> Result<(), ImageError> {
    loop {
        let work = || one_layer(Arc::clone(inner), Arc::clone(session), diff_id.clone(), blob.clone());
        match inner.layers.join(diff_id.clone(), blob.digest.as_str(), work).await {
            // It failed with another pull's registry and credentials; ours may do better.
            (Err(error), Role::Joined) => tracing::debug!(%diff_id, %error, "a joined layer download failed"),
            (result, _) => return result,
        }
    }
}

async fn one_layer(
    inner: Shared,
    session: Arc<Session>,
    diff_id: Digest,
    blob: Descriptor,
) -> Result<(), ImageError> {
    // The flight that had it may have ended between our look and our start.
    if inner.store.state().layers.contains_key(diff_id.hex()) {
        return Ok(());
    }
    let mut stream = session.blob(&blob);
    let (staging, unpacked) = loop {
        let slot = open(&inner, session.registry(), &mut stream).await?;
        let store = Arc::clone(&inner.store);
        // With the slot: a pull cancelled here has its directory removed before the slot is free.
        let made = blocking(move || Ok((Staging::new(&store.staging_dir())?, slot)));
        let (staging, slot) = made.await?;
        let job = Job {
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            staging,
            limits: inner.limits,
            stats: Arc::clone(&inner.stats),
        };
        match layer::fetch(&mut stream, job, slot).await {
            Ok(done) => break done,
            Err(error) if stream.begin_again(&error) => {}
            Err(error) => return Err(error),
        }
    };
    let store: Arc<Store> = Arc::clone(&inner.store);
    blocking(move || store.add_layer(diff_id.hex(), staging, &unpacked)).await?;
    PullStats::add(&inner.stats.layers, 1);
    Ok(())
}

/// Opens the blob within a slot. While a registry makes us wait, others use the slot.
async fn open(inner: &Inner, registry: &str, stream: &mut Blob<'_>) -> Result<Slot, ImageError> {
    loop {
        let slot = inner.downloads.take(registry).await?;
        let Some(wait) = stream.open().await? else { return Ok(slot) };
        drop(slot);
        tokio::time::sleep(wait).await;
    }
}

/// Runs blocking work on tokio's blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ImageError::Interrupted { what: "work on the image store".into() }))
}

/// Keeps the type of the shared part in one place.
pub(super) fn start(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: Option<&Credentials>,
) -> impl Future<Output = Result<ImageId, ImageError>> + Send + 'static {
    pull(Arc::clone(inner), reference.clone(), credentials.cloned())
}
