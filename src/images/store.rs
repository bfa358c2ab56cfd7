//! The local store: layer directories, the index, and who needs what. Blocking; callers are on blocking threads.
//!
//! Layout: `index.redb`; `records/`, and `layer.json` beside each layer, copies of what it says (`copies`); `layers/<key>/fs`,
//! one directory a layer, visible only when whole; `staging/`, swept at open, as is `trash/`, with what is being deleted;
//! `retired/`, damaged layers that containers may still use (`mend`).
//! Order of a layer's birth: staged, synced, renamed, indexed. Of its death: out of the snapshot, out of the index, renamed
//! into the trash, deleted. So a crash leaves a directory that the index does not know, never a record without its directory.
//! A directory that is lost in another way costs its images their names; their other layers stay for the next pull.
//!
//! Locks: `writer` (disk changes, one after the other) before `leases` (counts) before `state` (a pointer swap).

use super::copies::{self, Copies};
use super::error::ImageError;
use super::index::{Change, ImageRecord, Index, LayerRecord, Presence, Served};
use super::manifest::ConfigFile;
use super::mend;
use super::reconcile;
use super::set_aside::{Links, clear_for_directory};
use super::staging::Staging;
use super::state::{Entry, State, keys};
use super::unpack::Unpacked;
use crate::host::remove;
use std::collections::{BTreeSet, HashMap};
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// How long the finished layers of a failed pull are kept for its retry: the kubelet's back-off ends at five minutes.
pub(crate) const KEEP_UNREFERENCED: Duration = Duration::from_secs(3600);

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    index: Index,
    pub(super) copies: Copies,
    /// Images without names that lack a layer, since when: kept for a while, so that their next pull fetches that layer only.
    pub(super) lacking: Mutex<HashMap<String, Instant>>,
    pub(super) pinned: BTreeSet<String>,
    pub(super) writer: Mutex<()>,
    pub(super) leases: Mutex<Leases>,
    state: RwLock<Arc<State>>,
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Pulls and containers that need a layer.
    pub(super) layers: HashMap<String, usize>,
    /// Containers that need an image.
    pub(super) images: HashMap<String, usize>,
}

/// Keeps layers while it exists.
#[derive(Debug)]
pub(crate) struct Lease {
    store: Arc<Store>,
    keys: Vec<String>,
    image: Option<String>,
}

/// A new image for the index.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) id: String,
    pub(crate) record: ImageRecord,
    pub(crate) config: Vec<u8>,
    /// What the config says; of an artifact's nothing.
    pub(crate) file: ConfigFile,
    /// Tags, and `name@digest` of what a reference pointed to.
    pub(crate) names: Vec<String>,
    pub(crate) giver: Giver,
}

/// Who gives an image its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Giver {
    /// Whoever may pull: up to [`MAX_NAMES`](super::state::MAX_NAMES).
    Pull,
    /// The node's root, from files.
    Root,
}

/// What giving names to an image changes.
struct Named {
    /// Images that lost a name to it.
    losers: Vec<String>,
    changes: Vec<NameChange>,
}

enum NameChange {
    Put(String, u64),
    Drop(String),
}

impl NameChange {
    fn of<'a>(&'a self, id: &'a str) -> Change<'a> {
        match self {
            Self::Put(name, age) => Change::PutName(name, id, *age),
            Self::Drop(name) => Change::DropName(name),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(crate) fn open(root: &Path, pinned: BTreeSet<String>) -> Result<Arc<Self>, ImageError> {
        let copies = Copies::new(root);
        let [layers, staging, retired] = ["layers", "staging", "retired"].map(|name| root.join(name));
        clear_for_directory(&trash(root), Links::Refused)?;
        for dir in [root, &layers, &staging, &retired, copies.dir()] {
            let links = if dir == root || dir == layers { Links::Followed } else { Links::Refused };
            clear_for_directory(dir, links)?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| ImageError::io("make directory", dir, e))?;
        }
        // Layers hold setuid files: no user of the node may reach them.
        std::fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|e| ImageError::io("chmod", root, e))?;
        remove::sweep(&trash(root)).map_err(|e| ImageError::io("sweep", &trash(root), e))?;
        for name in names(&staging)? {
            discard(&staging.join(name), root)?;
        }
        let path = root.join("index.redb");
        let (index, found) = match Index::open(&path) {
            Err(ImageError::NoSpace { .. }) if reconcile::give_up_reserve(root) => Index::open(&path)?,
            opened => opened?,
        };
        reconcile::take_up(&index, found, &copies, &layers)?;
        let (state, unkept) = State::from_index(&index, &pinned)?;
        if !unkept.is_empty() {
            // An older podwright's.
            index.commit(&unkept.iter().map(|(id, said)| Change::PutSaid(id, said)).collect::<Vec<_>>())?;
        }
        let store = Self {
            root: root.to_owned(),
            index,
            copies,
            lacking: Mutex::default(),
            pinned,
            writer: Mutex::default(),
            leases: Mutex::default(),
            state: RwLock::new(Arc::new(state)),
        };
        store.reconcile()?;
        reconcile::reserve(root);
        if let Err(error) = store.sweep_retired() {
            // Log: They could not be removed.
            // Do: See `error`; the next removal tries again.
            tracing::warn!(%error, "damaged directories of repaired layers stay");
        }
        Ok(Arc::new(store))
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn publish(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The overlay lower directory of a layer.
    pub(crate) fn layer_fs(&self, key: &str) -> PathBuf {
        self.layer_dir(key).join("fs")
    }

    /// Whether a layer's directory is there, and no link to another's.
    pub(super) fn has_layer(&self, key: &str) -> bool {
        self.layer_fs(key).symlink_metadata().is_ok_and(|there| there.is_dir())
    }

    /// A layer's directory: `fs`, the recipe, and what the layer itself replaced.
    pub(crate) fn layer_dir(&self, key: &str) -> PathBuf {
        self.layers_dir().join(key)
    }

    /// Keeps layers, present or not, from being swept.
    pub(crate) fn lease(self: &Arc<Self>, keys: Vec<String>) -> Lease {
        let mut leases = lock(&self.leases);
        for key in &keys {
            *leases.layers.entry(key.clone()).or_default() += 1;
        }
        Lease { store: Arc::clone(self), keys, image: None }
    }

    /// Keeps an image's layers for a container. The look-up and the count are one step against a removal.
    pub(crate) fn hold(
        self: &Arc<Self>,
        find: impl FnOnce(&State) -> Result<Entry, ImageError>,
    ) -> Result<(Entry, Lease), ImageError> {
        let mut leases = lock(&self.leases);
        let entry = find(&self.state())?;
        let keys = keys(&entry.record);
        for key in &keys {
            *leases.layers.entry(key.clone()).or_default() += 1;
        }
        let id = entry.image.id.as_str().to_owned();
        *leases.images.entry(id.clone()).or_default() += 1;
        Ok((entry, Lease { store: Arc::clone(self), keys, image: Some(id) }))
    }

    /// Makes a staged layer visible.
    pub(crate) fn add_layer(
        &self,
        key: &str,
        staging: Staging,
        unpacked: &Unpacked,
        served: Option<Served>,
    ) -> Result<(), ImageError> {
        let writer = lock(&self.writer);
        if self.state().layers.contains_key(key) {
            // Another was faster, from another place.
            drop(writer);
            return served.map_or(Ok(()), |served| self.add_served(key, served));
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let served = served.into_iter().collect();
        let record = LayerRecord { bytes: unpacked.bytes, inodes: unpacked.inodes, since, served };
        copies::write_layer(staging.path(), &record, &unpacked.implied)?;
        // What an earlier removal could not take away.
        self.clear(key)?;
        staging.publish(&self.layer_dir(key))?;
        let mut state = (*self.state()).clone();
        state.layers.insert(key.to_owned(), record.clone());
        let back = self.relist(&mut state);
        let layer = [Change::PutLayer(key, &record, &unpacked.implied)];
        let images = back.iter().map(|(id, record)| Change::PutImage(id, record));
        if let Err(error) = self.index.commit(&layer.into_iter().chain(images).collect::<Vec<_>>()) {
            if let Err(stays) = self.discard(&self.layer_dir(key)) {
                // Log: The disk failed twice. The next pull of the layer, or the next start, takes the directory away.
                // Do: See `stays`.
                tracing::warn!(layer = key, %stays, "a layer that could not be indexed stays");
            }
            return Err(error);
        }
        self.copy(&state, back.iter().map(|(id, _)| id));
        self.publish(state);
        Ok(())
    }

    /// Remembers that a blob was seen to unpack to a layer that is here, and who served it.
    pub(crate) fn add_served(&self, key: &str, served: Served) -> Result<(), ImageError> {
        let _writer = lock(&self.writer);
        let mut state = (*self.state()).clone();
        let Some(record) = state.layers.get_mut(key) else { return Ok(()) };
        if record.add_served(served) {
            self.index.commit(&[Change::PutLayer(key, record, &[])])?;
            let copied = self
                .index
                .implied(key)
                .and_then(|implied| copies::write_layer(&self.layer_dir(key), record, &implied));
            reconcile::told(copied);
            self.publish(state);
        }
        Ok(())
    }

    /// Makes an image visible, or gives a known one further names. Its layers must be present and leased.
    pub(crate) fn add_image(&self, new: NewImage) -> Result<(), ImageError> {
        let _writer = lock(&self.writer);
        let state = self.state();
        if let Some(key) = keys(&new.record).iter().find(|key| !state.layers.contains_key(*key)) {
            return Err(ImageError::Index {
                operation: "add an image",
                reason: format!("layer {key} is absent"),
            });
        }
        let mut state = (*state).clone();
        let Named { losers, changes: named } = self.name(&mut state, &new.id, &new.names, new.giver)?;
        let said = new.file.to_stored(&new.config);
        let mut changes = vec![
            Change::PutImage(&new.id, &new.record),
            Change::PutConfig(&new.id, &new.config),
            Change::PutSaid(&new.id, &said),
        ];
        changes.extend(named.iter().map(|change| change.of(&new.id)));
        self.index.commit(&changes)?;
        state.put(&new.id, Arc::new(new.record), &new.file, &self.pinned);
        for loser in &losers {
            state.rename(loser, &self.pinned);
        }
        reconcile::told(self.copies.put_config(&new.id, &new.config));
        self.copy(&state, losers.iter().chain([&new.id]));
        lock(&self.lacking).remove(&new.id);
        // A hold that is taken now sees the new state; one taken before holds the same layers.
        self.publish(state);
        Ok(())
    }

    /// Gives a listed image further names; false: it is not there any more.
    pub(crate) fn add_names(&self, id: &str, names: &[String], giver: Giver) -> Result<bool, ImageError> {
        let _writer = lock(&self.writer);
        let mut state = (*self.state()).clone();
        if state.images.get(id).is_none_or(|e| e.record.presence != Presence::Listed) {
            return Ok(false);
        }
        let Named { losers, changes } = self.name(&mut state, id, names, giver)?;
        if changes.is_empty() {
            return Ok(true);
        }
        self.index.commit(&changes.iter().map(|change| change.of(id)).collect::<Vec<_>>())?;
        for loser in &losers {
            state.rename(loser, &self.pinned);
        }
        state.rename(id, &self.pinned);
        self.copy(&state, losers.iter().map(String::as_str).chain([id]));
        self.publish(state);
        Ok(true)
    }

    /// Gives an image those of the names that it has not, and takes from it what is too many then.
    fn name(&self, state: &mut State, id: &str, names: &[String], giver: Giver) -> Result<Named, ImageError> {
        let fresh: Vec<&String> =
            names.iter().filter(|n| state.names.get(*n).is_none_or(|known| known != id)).collect();
        let surplus = match giver {
            Giver::Pull => state.surplus(id, &fresh, &self.pinned),
            Giver::Root => Vec::new(),
        };
        let mut named = Named { losers: Vec::new(), changes: Vec::new() };
        for name in surplus {
            // Log: Pulls give an image at most 100 names.
            tracing::info!(image = id, name, "an image has too many names, its oldest goes");
            state.forget(&name);
            named.changes.push(NameChange::Drop(name));
        }
        if giver == Giver::Pull && !fresh.is_empty() {
            state.check_listed(&fresh)?;
        }
        for name in fresh {
            let age = state.next_age();
            named.losers.extend(state.name(name, id));
            named.changes.push(NameChange::Put(name.clone(), age));
        }
        Ok(named)
    }

    /// Removes an image with all its names. While containers hold it, its record stays unlisted, so that their layers
    /// survive a restart. Returns the unpacked bytes of the layers that went.
    pub(crate) fn remove_image(self: &Arc<Self>, id: &str) -> Result<u64, ImageError> {
        let own = self.state().images.get(id).map(|entry| keys(&entry.record)).unwrap_or_default();
        {
            let _writer = lock(&self.writer);
            let leases = lock(&self.leases);
            let old = self.state();
            let Some(entry) = old.images.get(id) else { return Ok(0) };
            let names: Vec<&String> = old.names.iter().filter(|(_, t)| *t == id).map(|(n, _)| n).collect();
            let mut changes: Vec<Change<'_>> = names.iter().map(|n| Change::DropName(n)).collect();
            let mut state = (*old).clone();
            for name in &names {
                state.forget(name);
            }
            let record = ImageRecord { presence: Presence::Removed, ..(*entry.record).clone() };
            if leases.images.contains_key(id) {
                changes.push(Change::PutImage(id, &record));
                if let Some(kept) = state.images.get_mut(id) {
                    kept.record = Arc::new(record.clone());
                }
                state.rename(id, &self.pinned);
            } else {
                changes.push(Change::DropImage(id));
                state.images.remove(id);
            }
            self.publish(state);
            drop(leases);
            if let Err(error) = self.commit_removal(&changes) {
                self.publish((*old).clone());
                return Err(error);
            }
            self.copy(&self.state(), [id]);
        }
        self.reap(&own)
    }

    /// Drops removed images that nobody holds any more, and then the layers that nothing needs; returns the layers' bytes.
    /// Fails when one of `own` cannot be deleted.
    pub(crate) fn reap(self: &Arc<Self>, own: &[String]) -> Result<u64, ImageError> {
        {
            let _writer = lock(&self.writer);
            let leases = lock(&self.leases);
            let mut state = (*self.state()).clone();
            let mut lacking = lock(&self.lacking);
            lacking.retain(|_, since| since.elapsed() < KEEP_UNREFERENCED);
            let gone: Vec<String> = state
                .images
                .iter()
                .filter(|(id, e)| {
                    let is_wanted = match e.record.presence {
                        Presence::Listed => true,
                        Presence::Removed => false,
                        Presence::Lacking => lacking.contains_key(*id),
                    };
                    !is_wanted && !leases.images.contains_key(*id)
                })
                .map(|(id, _)| id.clone())
                .collect();
            drop((leases, lacking));
            if !gone.is_empty() {
                let names: Vec<String> = state
                    .names
                    .iter()
                    .filter(|(_, id)| gone.contains(id))
                    .map(|(name, _)| name.clone())
                    .collect();
                let images = gone.iter().map(|id| Change::DropImage(id));
                self.commit_removal(
                    &images.chain(names.iter().map(|name| Change::DropName(name))).collect::<Vec<_>>(),
                )?;
                names.iter().for_each(|name| state.forget(name));
                state.images.retain(|id, _| !gone.contains(id));
                self.copy(&state, &gone);
                self.publish(state);
            }
        }
        self.sweep_of(Duration::ZERO, own)
    }

    /// Deletes layers that no image, no lease and no overlay of this machine needs and that are at least `age` old; returns
    /// their bytes. What cannot be deleted is a layer without an image again, for the next try.
    pub(crate) fn sweep(self: &Arc<Self>, age: Duration) -> Result<u64, ImageError> {
        self.sweep_of(age, &[])
    }

    /// The same; fails when one of `own` cannot be deleted. Of others it is not the caller's business.
    fn sweep_of(self: &Arc<Self>, age: Duration, own: &[String]) -> Result<u64, ImageError> {
        let _writer = lock(&self.writer);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let unneeded = |state: &State, used: &dyn Fn(&str) -> bool| -> Vec<String> {
            let needed = state.referenced();
            let is_old = |record: &LayerRecord| now.saturating_sub(record.since) >= age.as_secs();
            let layers = state.layers.iter().filter(|(_, record)| is_old(record)).map(|(key, _)| key);
            layers.filter(|key| !needed.contains(*key) && !used(key)).cloned().collect()
        };
        if unneeded(&self.state(), &|_| false).is_empty() {
            self.sweep_retired()?;
            return Ok(0);
        }
        // Of a container whose image is lost, nobody has a lease.
        let mounted = mend::mounted_layers()?;
        let leases = lock(&self.leases);
        let old = self.state();
        let gone = unneeded(&old, &|key| leases.layers.contains_key(key) || mounted.contains(key));
        let mut state = (*old).clone();
        state.layers.retain(|key, _| !gone.contains(key));
        // Out of the snapshot while the leases are locked: a pull that comes now fetches the layer anew.
        self.publish(state);
        drop(leases);
        let (mut freed, mut first) = (0, None);
        let implied: Vec<_> = gone.iter().map(|key| self.index.implied(key)).collect();
        let changes: Vec<Change<'_>> = gone.iter().map(|key| Change::DropLayer(key)).collect();
        if let Err(error) = self.commit_removal(&changes) {
            self.publish((*old).clone());
            return Err(error);
        }
        for (key, implied) in gone.iter().zip(implied) {
            let Some(record) = old.layers.get(key) else { continue };
            match self.discard(&self.layer_dir(key)) {
                Ok(()) => freed += record.bytes,
                Err(error) => {
                    let again = implied
                        .and_then(|implied| self.index.commit(&[Change::PutLayer(key, record, &implied)]));
                    if again.is_ok() {
                        let mut state = (*self.state()).clone();
                        state.layers.insert(key.clone(), record.clone());
                        self.publish(state);
                    }
                    if own.contains(key) {
                        first.get_or_insert(error);
                    } else {
                        // Log: Tried again at the next removal. The disk refuses it, or somebody has made it immutable.
                        // Do: See `error`.
                        tracing::warn!(layer = key, %error, "a layer that nothing needs cannot be deleted");
                    }
                }
            }
        }
        reconcile::reserve(&self.root);
        self.sweep_retired()?;
        first.map_or(Ok(freed), Err)
    }

    /// Commits what makes room, also where there is none: then the reserve is given up for it.
    fn commit_removal(&self, changes: &[Change<'_>]) -> Result<(), ImageError> {
        match self.index.commit(changes) {
            Err(ImageError::NoSpace { .. }) if reconcile::give_up_reserve(&self.root) => {
                self.index.commit(changes)
            }
            done => done,
        }
    }

    /// Brings the copies of images up to date.
    pub(super) fn copy(&self, state: &State, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        for id in ids {
            let id = id.as_ref();
            reconcile::told(match state.images.get(id) {
                Some(entry) => {
                    self.copies.put(id, &entry.record, state.aged_names(id), self.index.generation())
                }
                None => self.copies.remove(id),
            });
        }
    }

    /// Takes a layer directory out of sight at once and has it deleted. Absent is fine.
    pub(super) fn discard(&self, from: &Path) -> Result<(), ImageError> {
        discard(from, &self.root)
    }
}

impl Lease {
    /// The one of its layers that has no directory any more.
    pub(crate) fn lost(&self) -> Result<Option<String>, ImageError> {
        self.store.lost_of(&self.keys)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.store.leases);
        for key in &self.keys {
            release(&mut leases.layers, key);
        }
        let last = self.image.as_ref().is_some_and(|id| release(&mut leases.images, id));
        drop(leases);
        let removed = |id: &String| {
            self.store.state().images.get(id).is_some_and(|e| e.record.presence == Presence::Removed)
        };
        if last && self.image.as_ref().is_some_and(removed) {
            let store = Arc::clone(&self.store);
            // Rare (a container whose image was removed), and the drop may run on an async thread.
            let reaping =
                std::thread::Builder::new().name("image-reap".into()).spawn(move || store.reap(&[]));
            if let Err(error) = reaping {
                // Log: They could not be removed.
                // Do: See `error`; the next removal tries again.
                tracing::warn!(%error, "layers of a removed image stay until the next removal");
            }
        }
    }
}

/// Counts down; true: it was the last.
fn release(counts: &mut HashMap<String, usize>, key: &str) -> bool {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => counts.remove(key).is_some(),
        None => false,
    }
}

pub(super) fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |e| ImageError::io("read directory", dir, e);
    std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(failed))
        .collect()
}

/// What is being deleted.
pub(super) fn trash(root: &Path) -> PathBuf {
    root.join("trash")
}

/// Has a directory deleted that is of the store at `root`.
fn discard(from: &Path, root: &Path) -> Result<(), ImageError> {
    // The caller waits for nothing: a failure is logged, and tried again at the next start.
    remove::behind(from, &trash(root)).map(drop).map_err(|e| ImageError::io("move away", from, e))
}
