//! What the store does where the index and the directories disagree: at start, when the index is lost, and when a layer's
//! directory is found gone. What is whole is served; what a container may use is never deleted; the rest a pull brings
//! again. Blocking.

use super::copies::{self, CopiedImage, Copies};
use super::error::ImageError;
use super::index::{Change, Found, ImageRecord, Index, Presence};
use super::mend::{in_use, mounts};
use super::state::{State, keys};
use super::store::{Store, lock, names};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Bytes kept free for the index's own pages when the disk is full: a removal, which makes room, has to write some.
const RESERVE: u64 = 2 << 20;

fn reserve_path(root: &Path) -> PathBuf {
    root.join("reserve")
}

/// Keeps some room, if there is any.
pub(super) fn reserve(root: &Path) {
    let path = reserve_path(root);
    if path.symlink_metadata().is_ok() {
        return;
    }
    let taken = File::create_new(&path)
        .and_then(|file| Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE)?));
    if let Err(error) = taken {
        tracing::debug!(%error, "no room for a reserve now");
        let _ = std::fs::remove_file(&path);
    }
}

/// Whether there was a reserve, whose room is free now.
pub(super) fn give_up_reserve(root: &Path) -> bool {
    std::fs::remove_file(reserve_path(root)).is_ok()
}

/// A copy that could not be written says what was, which only counts when the index is lost.
pub(super) fn told(copied: Result<(), ImageError>) {
    if let Err(error) = copied {
        // Log: Nothing is lost while the image index can be read; were it lost now, an image or name would be missing or back.
        // Do: See `error`: free the disk, or mount it writable.
        tracing::warn!(%error, "the copy of an entry of the image index could not be written");
    }
}

/// Takes up what copies say that the index does not: all of a new index; of one that is older than them, as a backup is, the
/// images that came since.
pub(super) fn take_up(index: &Index, found: Found, copies: &Copies, layers: &Path) -> Result<(), ImageError> {
    let mut images = Vec::new();
    for id in copies.ids()? {
        match copies.read(&id) {
            Ok(Some(image)) if found == Found::Nothing || image.generation > index.generation() => {
                images.push(image)
            }
            Ok(_) => {}
            Err(error) => unread(&error),
        }
    }
    let mut kept = Vec::new();
    if found == Found::Nothing {
        for key in names(layers)? {
            match copies::read_layer(&layers.join(&key)) {
                Ok(Some((record, implied))) => kept.push((key, record, implied)),
                Ok(None) => {}
                Err(error) => unread(&error),
            }
        }
    }
    if kept.is_empty() && images.is_empty() {
        return Ok(());
    }
    // A name that two copies have is the later one's.
    let mut named: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for CopiedImage { id, names, .. } in &images {
        for (name, age) in names {
            let at = named.entry(name).or_insert((*age, id));
            *at = (*at).max((*age, id));
        }
    }
    let mut changes: Vec<Change<'_>> =
        kept.iter().map(|(key, record, implied)| Change::PutLayer(key, record, implied)).collect();
    for CopiedImage { id, record, config, .. } in &images {
        changes.extend([Change::PutImage(id, record), Change::PutConfig(id, config)]);
    }
    changes.extend(named.iter().map(|(name, (age, id))| Change::PutName(name, id, *age)));
    index.continue_after(images.iter().map(|image| image.generation).max().unwrap_or_default());
    index.commit(&changes)?;
    let (layers, images) = (kept.len(), images.len());
    match found {
        // Log: There was none, or a damaged one. Running containers keep their images; what the copies lack is pulled again.
        // Do: Nothing.
        Found::Nothing => {
            tracing::warn!(layers, images, "made the image index again from the copies of its entries")
        }
        // Log: Somebody has put an earlier index in its place. Images that came after it are taken from the copies.
        // Do: Nothing.
        Found::Index => tracing::warn!(
            images,
            "the image index is older than the copies of its entries, which are taken up"
        ),
    }
    Ok(())
}

fn unread(error: &ImageError) {
    // Log: While the image index was made again: this layer or image has to be pulled again.
    // Do: Nothing: the kubelet pulls it.
    tracing::warn!(%error, "a copy of an entry of the image index cannot be read");
}

impl Store {
    /// Makes index and directories agree. Before anybody else has the store.
    pub(super) fn reconcile(&self) -> Result<(), ImageError> {
        let present: BTreeSet<String> = names(&self.layers_dir())?.into_iter().collect();
        let mut state = (*self.state()).clone();
        let mut adopted = Vec::new();
        for orphan in present.iter().filter(|name| !state.layers.contains_key(*name)) {
            match copies::read_layer(&self.layer_dir(orphan)) {
                Ok(Some((record, implied))) => adopted.push((orphan, record, implied)),
                // Log: At start: left by an earlier daemon. While a container may use it, it is kept in `retired`.
                _ => {
                    tracing::info!(layer = orphan, "removing a layer directory that the index does not know");
                    self.clear(orphan)?;
                }
            }
        }
        for (key, record, _) in &adopted {
            state.layers.insert((*key).clone(), record.clone());
        }
        let lost: Vec<String> = state.layers.keys().filter(|key| !self.has_layer(key)).cloned().collect();
        state.layers.retain(|key, _| !lost.contains(key));
        for key in &lost {
            warn(key);
        }
        let dropped = self.unlist(&mut state);
        let changes: Vec<Change<'_>> = adopted
            .iter()
            .filter(|(key, ..)| !lost.contains(key))
            .map(|(key, record, implied)| Change::PutLayer(key, record, implied))
            .chain(lost.iter().map(|key| Change::DropLayer(key)))
            .chain(dropped.changes())
            .collect();
        if !changes.is_empty() {
            self.index().commit(&changes)?;
        }
        self.publish(state);
        for key in &lost {
            // A directory without `fs` inside.
            self.clear(key)?;
        }
        self.copy_what_has_no_copy();
        Ok(())
    }

    /// Takes a layer whose directory is gone out of use: the images that need it are not listed until a pull has brought it
    /// again, and their other layers stay for that.
    pub(crate) fn lose_layer(&self, key: &str) -> Result<(), ImageError> {
        let _writer = lock(&self.writer);
        let mut state = (*self.state()).clone();
        if self.has_layer(key) || state.layers.remove(key).is_none() {
            // Another was faster.
            return Ok(());
        }
        warn(key);
        let dropped = self.unlist(&mut state);
        let lost = [Change::DropLayer(key)];
        self.index().commit(&lost.into_iter().chain(dropped.changes()).collect::<Vec<_>>())?;
        self.copy(&state, dropped.images.iter().map(|(id, _)| id));
        self.publish(state);
        Ok(())
    }

    /// The layer of these that has no directory any more, if there is one; it is out of use then.
    pub(crate) fn lost_of(&self, keys: &[String]) -> Result<Option<String>, ImageError> {
        let Some(lost) = keys.iter().find(|key| !self.has_layer(key)) else { return Ok(None) };
        self.lose_layer(lost)?;
        Ok(Some(lost.clone()))
    }

    /// Takes images that lack a layer out of lists. They keep their names for when it is back.
    fn unlist(&self, state: &mut State) -> Dropped {
        let lacks = |record: &ImageRecord| {
            record.presence != Presence::Removed
                && keys(record).iter().any(|key| !state.layers.contains_key(key))
        };
        let lacking: Vec<String> =
            state.images.iter().filter(|(_, e)| lacks(&e.record)).map(|(id, _)| id.clone()).collect();
        let names: Vec<String> = state
            .names
            .iter()
            .filter(|(_, id)| !state.images.contains_key(*id))
            .map(|(name, _)| name.clone())
            .collect();
        names.iter().for_each(|name| state.forget(name));
        let (mut images, mut waiting) = (Vec::new(), lock(&self.lacking));
        for id in lacking {
            waiting.entry(id.clone()).or_insert_with(Instant::now);
            let Some(entry) = state.images.get_mut(&id) else { continue };
            let record = ImageRecord { presence: Presence::Lacking, ..(*entry.record).clone() };
            entry.record = Arc::new(record.clone());
            images.push((id, record));
        }
        Dropped { images, names }
    }

    /// Lists the images again that lack no layer any more.
    pub(super) fn relist(&self, state: &mut State) -> Vec<(String, ImageRecord)> {
        let mut images = Vec::new();
        let whole = |record: &ImageRecord| {
            record.presence == Presence::Lacking
                && keys(record).iter().all(|key| state.layers.contains_key(key))
        };
        let back: Vec<String> =
            state.images.iter().filter(|(_, e)| whole(&e.record)).map(|(id, _)| id.clone()).collect();
        for id in back {
            lock(&self.lacking).remove(&id);
            let Some(entry) = state.images.get_mut(&id) else { continue };
            let record = ImageRecord { presence: Presence::Listed, ..(*entry.record).clone() };
            entry.record = Arc::new(record.clone());
            images.push((id, record));
        }
        images
    }

    /// Makes room where a layer is to be: what is there is deleted, or kept where containers that use it find it.
    pub(super) fn clear(&self, key: &str) -> Result<(), ImageError> {
        let (place, layers) = (self.layer_dir(key), self.layers_dir());
        if !layers.is_dir() {
            // It was lost as a whole.
            std::fs::create_dir(&layers).map_err(|e| ImageError::io("make directory", &layers, e))?;
        }
        if place.symlink_metadata().is_err() {
            return Ok(());
        }
        if !in_use(&mounts()?, key) {
            return self.discard(&place);
        }
        let retired = self.unused(key);
        std::fs::rename(&place, &retired).map_err(|e| ImageError::io("move away", &place, e))
    }

    /// An older podwright wrote no copies, and a crash may have come before one.
    fn copy_what_has_no_copy(&self) {
        let state = self.state();
        for (key, record) in &state.layers {
            let dir = self.layer_dir(key);
            if !copies::has_layer(&dir) {
                told(
                    self.index().implied(key).and_then(|implied| copies::write_layer(&dir, record, &implied)),
                );
            }
        }
        let copied = self.copies.ids().unwrap_or_default();
        told(self.copies.sweep(|id| state.images.contains_key(id)));
        for id in state.images.keys().filter(|id| !copied.contains(*id)) {
            let config = self.index().config(id).and_then(|config| match config {
                Some(config) => self.copies.put_config(id, &config),
                None => Ok(()),
            });
            told(config);
            self.copy(&state, [id]);
        }
    }
}

fn warn(key: &str) {
    // Log: Somebody deleted it, or the file system lost it in a crash.
    // Do: Nothing: the kubelet pulls them.
    tracing::warn!(layer = key, "a layer of the index has no directory, its images have to be pulled again");
}

/// What images that lack a layer lose.
struct Dropped {
    images: Vec<(String, ImageRecord)>,
    names: Vec<String>,
}

impl Dropped {
    fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let images = self.images.iter().map(|(id, record)| Change::PutImage(id, record));
        images.chain(self.names.iter().map(|name| Change::DropName(name)))
    }
}
