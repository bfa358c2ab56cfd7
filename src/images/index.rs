//! The durable index: a redb file with images, names and layers. Owns the tables and their record types; the directories
//! are `store`'s.

use super::digest::Digest;
use super::error::ImageError;
use super::index_check::{self, Verdict};
use super::manifest::{ConfigFile, Descriptor};
use super::set_aside::set_aside;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Version of the tables and records. A newer file is refused, never guessed at.
const SCHEMA: u64 = 1;
/// redb's page cache, bytes: the index is read once at start, and the daemon must idle small.
const CACHE: usize = 1 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Image id → `ImageRecord` as JSON.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
/// Image id → config blob as it came.
const CONFIGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("configs");
/// Image id → what its config says, as `ConfigFile::to_stored` has it. An older podwright leaves it as it is.
const SAID: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("said");
/// `registry/repository:tag` or `registry/repository@digest` → image id.
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
/// Name → its place in the order in which names were given; an older podwright gave it: 0.
const AGES: TableDefinition<'_, &str, u64> = TableDefinition::new("ages");
/// Layer key (hex) → `LayerRecord` as JSON.
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
/// Layer key → paths of implied directories, NUL between them.
const IMPLIED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("implied");

/// Whether an image is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Presence {
    /// In lists.
    Listed,
    /// Removed, but a container may still need its layers.
    Removed,
    /// A layer was lost: listed again when that is back.
    Lacking,
}

/// An image on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) presence: Presence,
    pub(crate) manifest: Digest,
    /// Compressed bytes of manifest, config and layers.
    pub(crate) size: u64,
    /// Bottom first.
    pub(crate) diff_ids: Vec<Digest>,
    /// The compressed layers, to fetch a lost one again.
    pub(crate) blobs: Vec<Descriptor>,
    /// Key of the directories-only layer on top, where one is needed.
    pub(crate) directories: Option<String>,
    /// The config of an artifact, whose id is the manifest's digest and whose diff ids are keys of files (`artifact`);
    /// None: a container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact: Option<Descriptor>,
    /// Its files are those of a container's checkpoint.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_checkpoint: bool,
}

impl ImageRecord {
    /// What the stored config says, as far as it was kept, else read by a worker. That of an artifact may be anything and
    /// says nothing. Blocking.
    pub(crate) fn config_file(
        &self,
        id: &str,
        config: &[u8],
        said: Option<&[u8]>,
    ) -> Result<ConfigFile, ImageError> {
        if self.artifact.is_some() {
            return Ok(ConfigFile::default());
        }
        match said.and_then(|said| ConfigFile::from_stored(said, config)) {
            Some(file) => Ok(file),
            None => ConfigFile::read(id, config),
        }
    }
}

/// A layer on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Seconds since the epoch when it was made.
    pub(crate) since: u64,
    /// Blobs that were seen to unpack to it, the latest last. Empty: files of this machine, or an older podwright.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) served: Vec<Served>,
}

/// A blob, and the host that has served the whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) blob: Digest,
    /// URL of its API; empty: several hosts had a part in it.
    pub(crate) host: String,
}

/// Pairs of blob and host kept of a layer: a base image may be at a few registries, in a few compressions. Of one that is
/// forgotten the blob is fetched again to know.
const MAX_SERVED: usize = 16;

impl LayerRecord {
    /// Whether the blob is known to unpack to this layer.
    pub(crate) fn is_of(&self, blob: &Digest) -> bool {
        self.served.iter().any(|served| served.blob == *blob)
    }

    /// Whether the host has served the blob.
    pub(crate) fn is_from(&self, blob: &Digest, host: &str) -> bool {
        self.served.iter().any(|served| served.blob == *blob && served.host == host)
    }

    /// Remembers what was served; false: it is known.
    pub(crate) fn add_served(&mut self, served: Served) -> bool {
        if self.served.contains(&served) {
            return false;
        }
        if self.served.len() >= MAX_SERVED {
            self.served.remove(0);
        }
        self.served.push(served);
        true
    }
}

/// What there is beside images.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) names: Vec<(String, String)>,
    pub(crate) ages: Vec<(String, u64)>,
    pub(crate) layers: Vec<(String, LayerRecord)>,
}

/// An image as it is kept.
#[derive(Debug)]
pub(crate) struct StoredImage {
    pub(crate) id: String,
    pub(crate) record: ImageRecord,
    pub(crate) config: Vec<u8>,
    pub(crate) said: Option<Vec<u8>>,
}

/// One change of a transaction.
#[derive(Debug)]
pub(crate) enum Change<'a> {
    /// Adds or replaces an image.
    PutImage(&'a str, &'a ImageRecord),
    /// Adds or replaces a config.
    PutConfig(&'a str, &'a [u8]),
    /// Adds or replaces what a config says.
    PutSaid(&'a str, &'a [u8]),
    /// Points a name to an image, with its place in the order of names.
    PutName(&'a str, &'a str, u64),
    /// Drops a name.
    DropName(&'a str),
    /// Drops an image and its config.
    DropImage(&'a str),
    /// Adds a layer with its implied directories.
    PutLayer(&'a str, &'a LayerRecord, &'a [Vec<u8>]),
    /// Drops a layer.
    DropLayer(&'a str),
}

/// The open index.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    /// None: it has to be opened again. redb takes nothing any more after an I/O error, such as a full disk's.
    database: RwLock<Option<Database>>,
    /// Number of the latest commit. Copies of entries carry it: one with a higher number is of a later index than this.
    generation: AtomicU64,
}

const GENERATION: &str = "generation";

fn failed(operation: &'static str, path: &Path, error: redb::Error) -> ImageError {
    match error {
        redb::Error::Io(e) => ImageError::io(operation, path, e),
        e => ImageError::Index { operation, reason: e.to_string() },
    }
}

/// What was there to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Index,
    /// None, or a damaged one, which is set aside now.
    Nothing,
}

/// Whether it says that the file is not a whole index.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => true,
        // redb's answer to a file that begins otherwise.
        redb::Error::Io(e) => e.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

impl Index {
    /// Opens the index, or makes a new one where there is none that can be read.
    pub(crate) fn open(path: &Path) -> Result<(Self, Found), ImageError> {
        // A link to a file on another disk is one as well.
        let is_file = std::fs::metadata(path).map(|there| there.is_file());
        if path.symlink_metadata().is_ok() && !is_file.is_ok_and(|is_file| is_file) {
            set_aside(path, "it is not a regular file")?;
        }
        if std::fs::metadata(path).is_ok_and(|there| there.len() > 0) {
            match index_check::check(path) {
                Verdict::Whole => {}
                Verdict::Damaged(reason) => set_aside(path, &reason)?,
                // Log: The worker that looks first could not; the index is opened all the same.
                // Do: Nothing, if the daemon runs.
                Verdict::Unknown(reason) => tracing::warn!(reason, "the image index could not be looked at"),
            }
        }
        if let Some(opened) = Self::open_once(path)? {
            return Ok(opened);
        }
        let again = Self::open_once(path)?;
        again.ok_or_else(|| ImageError::Index { operation: "open", reason: "a new one is damaged".into() })
    }

    /// None: it is damaged, and set aside now.
    fn open_once(path: &Path) -> Result<Option<(Self, Found)>, ImageError> {
        let open = || -> Result<(Database, Option<u64>, u64), redb::Error> {
            let database = Database::builder().set_cache_size(CACHE).create(path)?;
            let write = database.begin_write()?;
            let (found, generation) = {
                let mut meta = write.open_table(META)?;
                let found = meta.get("schema")?.map(|v| v.value());
                let generation = meta.get(GENERATION)?.map_or(0, |v| v.value());
                if found.is_none() {
                    meta.insert("schema", SCHEMA)?;
                }
                write.open_table(IMAGES)?;
                write.open_table(CONFIGS)?;
                write.open_table(SAID)?;
                write.open_table(NAMES)?;
                write.open_table(AGES)?;
                write.open_table(LAYERS)?;
                write.open_table(IMPLIED)?;
                (found, generation)
            };
            if found.unwrap_or(SCHEMA) == SCHEMA {
                write.commit()?;
            }
            Ok((database, found, generation))
        };
        let (database, found, generation) = match open() {
            Ok(opened) => opened,
            Err(error) if is_damage(&error) => return set_aside(path, &error.to_string()).map(|()| None),
            Err(error) => return Err(failed("open the image index", path, error)),
        };
        let (database, generation) = (RwLock::new(Some(database)), AtomicU64::new(generation));
        let index = Self { path: path.to_owned(), database, generation };
        match found {
            None => Ok(Some((index, Found::Nothing))),
            Some(SCHEMA) => Ok(Some((index, Found::Index))),
            Some(other) => {
                let reason = format!(
                    "{} has schema {other}, this daemon knows {SCHEMA}: start the podwright that wrote it, or a newer one",
                    path.display()
                );
                Err(ImageError::Index { operation: "open", reason })
            }
        }
    }

    /// The number of the latest commit.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Has the next commit be later than that one.
    pub(crate) fn continue_after(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::Relaxed);
    }

    /// Works on the database. After an I/O error it is opened again, now or at the next call.
    fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, ImageError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.reopen().map_err(|e| failed(operation, &self.path, e))?;
        }
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            // Another's error came between.
            return Err(ImageError::Index { operation, reason: "it is being opened again".into() });
        };
        let done = work(database);
        drop(guard);
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = &done {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            if let Err(error) = self.reopen() {
                // Log: After a disk error; tried at each change.
                // Do: Free the disk, or mount it writable.
                tracing::warn!(%error, "the image index cannot be opened again yet");
            }
        }
        done.map_err(|e| failed(operation, &self.path, e))
    }

    fn reopen(&self) -> Result<(), redb::Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(Database::builder().set_cache_size(CACHE).open(&self.path)?);
        }
        Ok(())
    }

    /// Reads everything; hands the images over one by one, since all their configs together may take much.
    pub(crate) fn load(&self, mut each: impl FnMut(StoredImage)) -> Result<Contents, ImageError> {
        let read = |database: &Database| -> Result<_, redb::Error> {
            let read = database.begin_read()?;
            let (configs, mut contents) = (read.open_table(CONFIGS)?, Contents::default());
            let said = read.open_table(SAID)?;
            let mut broken = Vec::new();
            for item in read.open_table(IMAGES)?.iter()? {
                let (id, record) = item?;
                let config = configs.get(id.value())?;
                match (serde_json::from_slice(record.value()), config) {
                    (Ok(record), Some(config)) => {
                        each(StoredImage {
                            id: id.value().to_owned(),
                            record,
                            config: config.value().to_vec(),
                            said: said.get(id.value())?.map(|said| said.value().to_vec()),
                        });
                    }
                    _ => broken.push(id.value().to_owned()),
                }
            }
            for item in read.open_table(NAMES)?.iter()? {
                let (name, id) = item?;
                contents.names.push((name.value().to_owned(), id.value().to_owned()));
            }
            for item in read.open_table(AGES)?.iter()? {
                let (name, age) = item?;
                contents.ages.push((name.value().to_owned(), age.value()));
            }
            for item in read.open_table(LAYERS)?.iter()? {
                let (key, record) = item?;
                match serde_json::from_slice(record.value()) {
                    Ok(record) => contents.layers.push((key.value().to_owned(), record)),
                    Err(_) => broken.push(key.value().to_owned()),
                }
            }
            Ok((contents, broken))
        };
        let (contents, broken) = self.with("read the image index", read)?;
        for key in broken {
            // Log: One image is forgotten.
            // Do: Nothing: the kubelet pulls it.
            tracing::warn!(key, "unreadable record in the image index, its image has to be pulled again");
        }
        Ok(contents)
    }

    /// Applies all changes or none; durable when it returns.
    pub(crate) fn commit(&self, changes: &[Change<'_>]) -> Result<(), ImageError> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let write = |database: &Database| -> Result<(), redb::Error> {
            let write = database.begin_write()?;
            {
                write.open_table(META)?.insert(GENERATION, generation)?;
                let (mut images, mut configs) = (write.open_table(IMAGES)?, write.open_table(CONFIGS)?);
                let mut said = write.open_table(SAID)?;
                let (mut names, mut ages) = (write.open_table(NAMES)?, write.open_table(AGES)?);
                let (mut layers, mut implied) = (write.open_table(LAYERS)?, write.open_table(IMPLIED)?);
                for change in changes {
                    match change {
                        Change::PutImage(id, record) => {
                            images.insert(*id, json(record)?.as_slice())?;
                        }
                        Change::PutConfig(id, config) => {
                            configs.insert(*id, *config)?;
                        }
                        Change::PutSaid(id, what) => {
                            said.insert(*id, *what)?;
                        }
                        Change::PutName(name, id, age) => {
                            names.insert(*name, *id)?;
                            ages.insert(*name, *age)?;
                        }
                        Change::DropName(name) => {
                            names.remove(*name)?;
                            ages.remove(*name)?;
                        }
                        Change::DropImage(id) => {
                            images.remove(*id)?;
                            configs.remove(*id)?;
                            said.remove(*id)?;
                        }
                        Change::PutLayer(key, record, paths) => {
                            layers.insert(*key, json(record)?.as_slice())?;
                            if !paths.is_empty() {
                                implied.insert(*key, paths.join(&0).as_slice())?;
                            }
                        }
                        Change::DropLayer(key) => {
                            layers.remove(*key)?;
                            implied.remove(*key)?;
                        }
                    }
                }
            }
            Ok(write.commit()?)
        };
        self.with("write the image index", write)
    }

    /// A config blob.
    pub(crate) fn config(&self, id: &str) -> Result<Option<Vec<u8>>, ImageError> {
        self.get(CONFIGS, id)
    }

    /// What is kept of what a config says.
    pub(crate) fn said(&self, id: &str) -> Result<Option<Vec<u8>>, ImageError> {
        self.get(SAID, id)
    }

    /// A layer's implied directories.
    pub(crate) fn implied(&self, key: &str) -> Result<Vec<Vec<u8>>, ImageError> {
        let joined = self.get(IMPLIED, key)?.unwrap_or_default();
        Ok(joined.split(|b| *b == 0).filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect())
    }

    fn get(&self, table: TableDefinition<'_, &str, &[u8]>, key: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let read = |database: &Database| -> Result<_, redb::Error> {
            let read = database.begin_read()?;
            let found = read.open_table(table)?.get(key)?;
            Ok(found.map(|v| v.value().to_vec()))
        };
        self.with("read the image index", read)
    }
}

fn json(record: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(record).map_err(|e| redb::Error::Io(e.into()))
}
