//! Fetches damaged parts again, from the origin of the images that need them. Owns the choice of sources, never the
//! transfer.

use crate::images::Shared;
use crate::images::bring::{Found, descend, stage};
use crate::images::digest::Digest;
use crate::images::directories as made;
use crate::images::error::ImageError;
use crate::images::manifest::{Descriptor, MAX_CONFIG};
use crate::images::offload::blocking;
use crate::images::reference::Reference;
use crate::images::registry::Session;
use crate::images::source::Source;
use crate::images::state::{Entry, keys};
use crate::images::stats::PullStats;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Limit of repositories tried for one part: an image may have hundreds of names, and each may fail slowly.
const MAX_SOURCES: usize = 8;

/// Names of an image to fetch it by, one per repository, those with a digest first.
fn names(inner: &Shared, id: &str) -> Vec<Reference> {
    let state = inner.store.state();
    let mut names: Vec<&String> = state.names.iter().filter(|(_, t)| *t == id).map(|(n, _)| n).collect();
    names.sort_by_key(|name| !name.contains('@'));
    let mut seen = BTreeSet::new();
    names
        .into_iter()
        .filter_map(|name| Reference::parse(name).ok())
        .filter(|reference| seen.insert(reference.name()))
        .collect()
}

async fn session(inner: &Shared, reference: &Reference) -> Result<Session, ImageError> {
    let (registry, reference) = (Arc::clone(&inner.registry), reference.clone());
    // No credentials of a caller: those of the node's files.
    blocking(move || Session::new(&registry, &reference, None)).await
}

fn nowhere(what: &str) -> ImageError {
    ImageError::NotFound { name: format!("a registry that has {what}") }
}

/// The blob of a layer in each image that needs it, and where that image came from.
fn sources(inner: &Shared, diff_id: &Digest) -> Vec<(Reference, Descriptor)> {
    let state = inner.store.state();
    let mut found: Vec<(Reference, Descriptor)> = Vec::new();
    for (id, Entry { record, .. }) in &state.images {
        let Some(at) = record.diff_ids.iter().position(|d| d == diff_id) else { continue };
        let Some(blob) = record.blobs.get(at) else { continue };
        for name in names(inner, id) {
            let known = |(n, b): &(Reference, Descriptor)| n.name() == name.name() && b.digest == blob.digest;
            if found.len() < MAX_SOURCES && !found.iter().any(known) {
                found.push((name, blob.clone()));
            }
        }
    }
    found
}

/// Fetches a layer again.
pub(super) async fn layer(inner: &Shared, diff_id: &Digest) -> Result<(), ImageError> {
    let mut failed = nowhere(&format!("layer {diff_id}"));
    for (reference, blob) in sources(inner, diff_id) {
        let fetched = async {
            let source = Source::Registry(Arc::new(session(inner, &reference).await?));
            let progress = inner.progress.layer(diff_id, &blob);
            stage(inner, &source, diff_id, &blob, &progress).await
        };
        match fetched.await {
            Ok((staging, unpacked, _)) => {
                let (store, key) = (Arc::clone(&inner.store), diff_id.hex().to_owned());
                blocking(move || store.replace_layer(&key, staging, &unpacked)).await?;
                PullStats::add(&inner.stats.layers, 1);
                return Ok(());
            }
            Err(error) => {
                // Log: One source failed; the next is tried.
                tracing::info!(%diff_id, repository = %reference.name(), %error, "cannot fetch a damaged layer");
                failed = error;
            }
        }
    }
    Err(failed)
}

/// Makes a directories layer again, from the layers below it.
pub(super) async fn directories(inner: &Shared, key: &str) -> Result<(), ImageError> {
    let (store, key) = (Arc::clone(&inner.store), key.to_owned());
    blocking(move || {
        let state = store.state();
        let missing = || nowhere(&format!("directories layer {key}"));
        let image = state.images.values().find(|e| e.record.directories.as_deref() == Some(&key));
        let mut stack = keys(&image.ok_or_else(missing)?.record);
        stack.retain(|k| *k != key);
        let _lease = store.lease(stack.clone());
        let made = made::build(&store, &stack)?.ok_or_else(missing)?;
        if made.key != key {
            return Err(ImageError::DigestMismatch {
                what: "the directories of an image's layers".into(),
                expected: key,
                actual: made.key,
            });
        }
        store.replace_layer(&key, made.staging, &made.unpacked).map(|_| ())
    })
    .await
}

/// Fetches an image's config again.
pub(super) async fn config(inner: &Shared, id: &str, wanted: &str) -> Result<(), ImageError> {
    let mut failed = nowhere(&format!("config {id}"));
    for reference in names(inner, id).into_iter().take(MAX_SOURCES) {
        match fetch_config(inner, wanted, &reference).await {
            Ok(body) => {
                let (store, id) = (Arc::clone(&inner.store), id.to_owned());
                return blocking(move || store.replace_config(&id, &body)).await;
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn fetch_config(inner: &Shared, wanted: &str, reference: &Reference) -> Result<Vec<u8>, ImageError> {
    let session = session(inner, reference).await?;
    let (top, document) = session.resolve().await?;
    let source = Source::Registry(Arc::new(session));
    let Found { config, .. } = descend(&source, &reference.to_string(), top, document).await?;
    if config.digest.as_str() != wanted {
        return Err(ImageError::DigestMismatch {
            what: format!("the config of {reference}"),
            expected: wanted.to_owned(),
            actual: config.digest.to_string(),
        });
    }
    source.small_blob(&config, MAX_CONFIG).await
}
