//! Deletion on request: an image by name, and unneeded layers. Never takes a layer that a pull or a container uses, and
//! never starts by itself.

use super::error::ImageError;
use super::index::{Change, Presence};
use super::offload::blocking;
use super::state::{State, keys};
use super::store::{Store, lock};
use super::{Images, LayerUse};
use crate::model::ImageId;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An image that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its id.
    pub id: ImageId,
    /// Tags and digests that went with it.
    pub names: Vec<String>,
    /// Containers that still use it; its layers go with the last of them.
    pub containers: usize,
    /// Unpacked bytes of the layers that went.
    pub freed_bytes: u64,
}

/// What a collection deleted, or would delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images, in the order of their ids.
    pub images: Vec<CollectedImage>,
    /// Layers, in the order of their keys.
    pub layers: Vec<LayerUse>,
}

/// An image that a collection took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectedImage {
    /// Its id.
    pub id: ImageId,
    /// Tags and digests that went with it.
    pub names: Vec<String>,
}

impl Collected {
    /// Unpacked bytes of the layers.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.bytes).sum()
    }
}

impl Images {
    /// Removes the image with all its names and returns the effect.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Malformed`, or when the index cannot be written.
    pub async fn remove_known(&self, name: &str) -> Result<Removal, ImageError> {
        let image = self.inner.store.state().find(name).map(|e| Arc::clone(&e.image))?;
        let store = Arc::clone(&self.inner.store);
        blocking(move || {
            let id = image.id.as_str();
            let freed_bytes = store.remove_image(id)?;
            let names = image.names().cloned().collect();
            Ok(Removal { id: image.id.clone(), names, containers: store.containers(id), freed_bytes })
        })
        .await
    }

    /// Deletes unneeded layers of any age; with `unused_images`, first the images that no container uses and that are
    /// not pinned. With `dry_run` it only reports.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub async fn collect(&self, unused_images: bool, dry_run: bool) -> Result<Collected, ImageError> {
        let store = Arc::clone(&self.inner.store);
        blocking(move || store.collect(unused_images, dry_run)).await
    }

    /// Keeps images for as long as this store is open: for containers without a [`super::Hold`], because their daemon
    /// does not run. Skips missing ones.
    pub fn keep(&self, ids: &[ImageId]) {
        ids.iter().for_each(|id| self.inner.store.keep(id));
    }

    /// Waits until the deleted directories are gone from the disk. Blocking.
    pub fn settle(&self) {
        crate::host::remove::settle();
    }
}

impl Store {
    /// Containers that hold an image.
    pub(super) fn containers(&self, id: &str) -> usize {
        lock(&self.leases).images.get(id).copied().unwrap_or_default()
    }

    fn keep(&self, id: &ImageId) {
        let mut leases = lock(&self.leases);
        let state = self.state();
        let Some(entry) = state.images.get(id.as_str()) else { return };
        for key in keys(&entry.record) {
            *leases.layers.entry(key).or_default() += 1;
        }
        *leases.images.entry(id.as_str().to_owned()).or_default() += 1;
    }

    fn collect(&self, unused_images: bool, dry_run: bool) -> Result<Collected, ImageError> {
        let _writer = lock(&self.writer);
        let leases = lock(&self.leases);
        let old = self.state();
        let mut state: State = (*old).clone();
        if unused_images {
            state.images.retain(|id, entry| {
                entry.record.presence == Presence::Removed
                    || entry.image.pinned
                    || leases.images.contains_key(id)
            });
            let State { names, ages, images, .. } = &mut state;
            names.retain(|_, id| images.contains_key(id));
            ages.retain(|name, _| names.contains_key(name));
        }
        let needed = state.referenced();
        state.layers.retain(|key, _| needed.contains(key) || leases.layers.contains_key(key));
        let images: Vec<_> = old.images.iter().filter(|(id, _)| !state.images.contains_key(*id)).collect();
        let layers: BTreeSet<&String> =
            old.layers.keys().filter(|key| !state.layers.contains_key(*key)).collect();
        let uses = old.layer_uses();
        let collected = Collected {
            images: images
                .iter()
                .map(|(_, e)| CollectedImage {
                    id: e.image.id.clone(),
                    names: e.image.names().cloned().collect(),
                })
                .collect(),
            layers: layers.iter().filter_map(|key| uses.get(*key).cloned()).collect(),
        };
        if dry_run || (images.is_empty() && layers.is_empty()) {
            return Ok(collected);
        }
        let names = old.names.iter().filter(|(name, _)| !state.names.contains_key(*name));
        let changes: Vec<Change<'_>> = names
            .map(|(name, _)| Change::DropName(name))
            .chain(images.iter().map(|(id, _)| Change::DropImage(id)))
            .chain(layers.iter().map(|key| Change::DropLayer(key)))
            .collect();
        // Out of the snapshot while the leases are locked: a pull that starts now fetches the layers again.
        self.publish(state);
        drop(leases);
        if let Err(error) = self.index().commit(&changes) {
            self.publish((*old).clone());
            return Err(error);
        }
        for key in &layers {
            self.discard(&self.layer_dir(key))?;
        }
        Ok(collected)
    }
}
