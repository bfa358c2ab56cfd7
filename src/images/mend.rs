//! What takes the place of something damaged in the store, and what becomes of the old. Blocking.
//!
//! A damaged layer may be mounted: overlayfs keeps to the directory that it was given, wherever it is moved. So the good
//! one is moved to `retired/<key>-<n>` and then exchanged with `layers/<key>` in one step; the damaged one is then where
//! neither the next mount nor the sweep of `staging/` finds it. A retired directory is deleted when no container of this
//! process holds its layer and no overlay on the host names its key. Mounts name directories by the path that they had, so
//! one made after the exchange counts too: a retired directory may stay longer than needed, never shorter.
//!
//! A crash leaves either directory in place, and at most one more in `retired/`.

use super::copies;
use super::digest::is_hex;
use super::error::ImageError;
use super::index::{Change, LayerRecord};
use super::staging::Staging;
use super::store::{Store, lock, names};
use super::unpack::Unpacked;
use crate::host::mountinfo::{self, MountEntry};
use rustix::fs::{CWD, RenameFlags};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Overlays of kernels without `lowerdir+` are given descriptors as the names of directories.
const BY_DESCRIPTOR: &str = "/proc/self/fd/";

/// Digits of a layer's key.
const KEY_LENGTH: usize = 64;

impl Store {
    pub(super) fn retired_dir(&self) -> PathBuf {
        self.root().join("retired")
    }

    /// Puts a staged layer in the place of a damaged or lost one. The caller has a lease. False: the layer is not needed any more.
    pub(crate) fn replace_layer(
        &self,
        key: &str,
        staging: Staging,
        unpacked: &Unpacked,
    ) -> Result<bool, ImageError> {
        let _writer = lock(&self.writer);
        let Some(old) = self.state().layers.get(key).cloned() else { return Ok(false) };
        let record = LayerRecord { bytes: unpacked.bytes, inodes: unpacked.inodes, ..old };
        copies::write_layer(staging.path(), &record, &unpacked.implied)?;
        let place = self.layer_dir(key);
        if place.symlink_metadata().is_ok() {
            let retired = self.unused(key);
            staging.publish(&retired)?;
            rustix::fs::renameat_with(CWD, &retired, CWD, &place, RenameFlags::EXCHANGE)
                .map_err(|e| ImageError::io("exchange", &place, e))?;
            for dir in [place.parent(), retired.parent()].into_iter().flatten() {
                File::open(dir).and_then(|d| d.sync_all()).map_err(|e| ImageError::io("sync", dir, e))?;
            }
        } else {
            staging.publish(&place)?;
        }
        self.index().commit(&[Change::PutLayer(key, &record, &unpacked.implied)])?;
        let mut state = (*self.state()).clone();
        state.layers.insert(key.to_owned(), record);
        self.publish(state);
        Ok(true)
    }

    /// Replaces a damaged config blob; the caller has verified it.
    pub(crate) fn replace_config(&self, id: &str, config: &[u8]) -> Result<(), ImageError> {
        let _writer = lock(&self.writer);
        let mut state = (*self.state()).clone();
        let Some(record) = state.images.get(id).map(|entry| Arc::clone(&entry.record)) else {
            return Ok(());
        };
        let file = record.config_file(id, config, None)?;
        let said = file.to_stored(config);
        self.index().commit(&[Change::PutConfig(id, config), Change::PutSaid(id, &said)])?;
        state.put(id, record, &file, &self.pinned);
        self.publish(state);
        Ok(())
    }

    /// A name in `retired` that is free, also after restarts.
    pub(super) fn unused(&self, key: &str) -> PathBuf {
        let dir = self.retired_dir();
        (0u64..)
            .map(|n| dir.join(format!("{key}-{n}")))
            .find(|path| path.symlink_metadata().is_err())
            .unwrap_or(dir)
    }

    /// Deletes retired directories that nothing uses. Within `writer`, or before anybody else has the store.
    pub(crate) fn sweep_retired(&self) -> Result<(), ImageError> {
        if !self.retired_dir().is_dir() {
            return Ok(());
        }
        let retired = names(&self.retired_dir())?;
        if retired.is_empty() {
            return Ok(());
        }
        // Leases first: who takes one from here on gets the directory that is in place.
        let held: Vec<String> = lock(&self.leases).layers.keys().cloned().collect();
        let mounts = mounts()?;
        for name in retired {
            let key = name.rsplit_once('-').map_or(name.as_str(), |(key, _)| key);
            if !held.iter().any(|k| k == key) && !in_use(&mounts, key) {
                // Log: Nothing uses it any more.
                tracing::info!(layer = key, "removing the damaged directory of a repaired layer");
                self.discard(&self.retired_dir().join(&name))?;
            }
        }
        Ok(())
    }
}

pub(super) fn mounts() -> Result<Vec<MountEntry>, ImageError> {
    mountinfo::read().map_err(|e| ImageError::io("read", Path::new("/proc/self/mountinfo"), e))
}

/// Keys of the layers that overlays of this machine name. Those of kernels without `lowerdir+` name none.
pub(super) fn mounted_layers() -> Result<HashSet<String>, ImageError> {
    let mounts = mounts()?;
    let overlays = mounts.iter().filter(|mount| mount.fstype == "overlay");
    let parts = overlays.flat_map(|mount| &mount.super_options).flat_map(|option| option.split('/'));
    Ok(parts.filter(|part| part.len() == KEY_LENGTH && is_hex(part)).map(str::to_owned).collect())
}

/// Whether an overlay has, or may have, a directory of the layer `key` below.
pub(super) fn in_use(mounts: &[MountEntry], key: &str) -> bool {
    mounts.iter().any(|mount| may_use(mount, key))
}

/// Whether an overlay has, or may have, a directory of the layer `key` below.
fn may_use(mount: &MountEntry, key: &str) -> bool {
    mount.fstype == "overlay"
        && mount.super_options.iter().any(|option| option.contains(key) || option.contains(BY_DESCRIPTOR))
}
