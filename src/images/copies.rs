//! Copies of what the index says, beside what it is said of: `layer.json` in a layer's directory, and for each image
//! `records/<id>.json` and its config, `records/<id>.config`. A lost or damaged index is made again from them. Blocking.
//!
//! They are never read while there is an index. A copy may be behind it after a crash, by the last change: then a name or an
//! image that was removed is back, and an image that came last has to be pulled again. None widens who may have what, since
//! callers' proofs are kept nowhere.

use super::digest::Digest;
use super::error::ImageError;
use super::index::{ImageRecord, LayerRecord};
use super::manifest::MAX_CONFIG;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Version of the files. A newer one is left alone and not read.
const VERSION: u32 = 1;
/// The copy of a layer, in its directory.
const LAYER: &str = "layer.json";
/// Bytes of a copy that is read: the paths of the directories that a layer implies are the most of it.
const MAX_COPY: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct LayerCopy {
    version: u32,
    record: LayerRecord,
    /// Paths of implied directories, NUL between them, in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    implied: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ImageCopy {
    version: u32,
    id: String,
    record: ImageRecord,
    /// Its names, and the place of each in the order in which names were given.
    names: BTreeMap<String, u64>,
    /// The commit of the index after which it was written.
    #[serde(default)]
    generation: u64,
}

/// A layer's record and its implied directories.
pub(super) type CopiedLayer = (LayerRecord, Vec<Vec<u8>>);

/// An image as its copy has it.
#[derive(Debug)]
pub(super) struct CopiedImage {
    pub(super) id: String,
    pub(super) record: ImageRecord,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) config: Vec<u8>,
    pub(super) generation: u64,
}

/// The directory of the images' copies.
#[derive(Debug)]
pub(super) struct Copies(PathBuf);

/// Writes a layer's copy into its directory, which nobody may see half.
pub(super) fn write_layer(dir: &Path, record: &LayerRecord, implied: &[Vec<u8>]) -> Result<(), ImageError> {
    let copy =
        LayerCopy { version: VERSION, record: record.clone(), implied: STANDARD.encode(implied.join(&0)) };
    write_json(&dir.join(LAYER), &copy)
}

pub(super) fn has_layer(dir: &Path) -> bool {
    dir.join(LAYER).symlink_metadata().is_ok()
}

/// None: there is no copy.
pub(super) fn read_layer(dir: &Path) -> Result<Option<CopiedLayer>, ImageError> {
    let path = dir.join(LAYER);
    let Some(LayerCopy { version, record, implied }) = read_json(&path)? else { return Ok(None) };
    check_version(&path, version)?;
    let implied = STANDARD.decode(implied).map_err(|e| ImageError::io("read", &path, io::Error::other(e)))?;
    let implied = implied.split(|b| *b == 0).filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect();
    Ok(Some((record, implied)))
}

impl Copies {
    pub(super) fn new(root: &Path) -> Self {
        Self(root.join("records"))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    fn path(&self, id: &str, ending: &str) -> PathBuf {
        self.0.join(format!("{}.{ending}", id.strip_prefix("sha256:").unwrap_or(id)))
    }

    pub(super) fn put(
        &self,
        id: &str,
        record: &ImageRecord,
        names: BTreeMap<String, u64>,
        generation: u64,
    ) -> Result<(), ImageError> {
        let (id_of, record) = (id.to_owned(), record.clone());
        let copy = ImageCopy { version: VERSION, id: id_of, record, names, generation };
        write_json(&self.path(id, "json"), &copy)
    }

    pub(super) fn put_config(&self, id: &str, config: &[u8]) -> Result<(), ImageError> {
        write(&self.path(id, "config"), config)
    }

    /// Absent is fine.
    pub(super) fn remove(&self, id: &str) -> Result<(), ImageError> {
        for path in [self.path(id, "json"), self.path(id, "config")] {
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(ImageError::io("remove", &path, e)),
            }
        }
        Ok(())
    }

    /// Removes what is of no image that is wanted, and what a crash has left.
    pub(super) fn sweep(&self, is_wanted: impl Fn(&str) -> bool) -> Result<(), ImageError> {
        for name in super::store::names(&self.0)? {
            let of = name.strip_suffix(".json").or_else(|| name.strip_suffix(".config"));
            if of.is_some_and(|hex| is_wanted(&format!("sha256:{hex}"))) {
                continue;
            }
            let path = self.0.join(name);
            std::fs::remove_file(&path).map_err(|e| ImageError::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// Ids of the images that have a copy.
    pub(super) fn ids(&self) -> Result<BTreeSet<String>, ImageError> {
        let names = super::store::names(&self.0)?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
            .map(|hex| format!("sha256:{hex}"))
            .collect())
    }

    /// An image, if both its files are whole.
    pub(super) fn read(&self, id: &str) -> Result<Option<CopiedImage>, ImageError> {
        let path = self.path(id, "json");
        let Some(copy) = read_json::<ImageCopy>(&path)? else { return Ok(None) };
        let ImageCopy { version, id: of, record, names, generation } = copy;
        check_version(&path, version)?;
        let at = self.path(id, "config");
        let Some(config) = read(&at, MAX_CONFIG)? else { return Ok(None) };
        let wrong = |what: &str| Err(ImageError::io("read", &path, io::Error::other(what.to_owned())));
        if of != id {
            return wrong("it is of another image");
        }
        // The id of an artifact is its manifest's digest; of any other image its config's.
        let is_its = match &record.artifact {
            Some(described) => described.digest.of_same_kind(&config) == described.digest,
            None => Digest::sha256(&config).as_str() == id,
        };
        if !is_its {
            return wrong("its config is another one");
        }
        Ok(Some(CopiedImage { id: of, record, names, config, generation }))
    }
}

fn check_version(path: &Path, version: u32) -> Result<(), ImageError> {
    match version {
        VERSION => Ok(()),
        _ => Err(ImageError::io(
            "read",
            path,
            io::Error::other(format!("version {version}, known is {VERSION}")),
        )),
    }
}

fn write_json(path: &Path, copy: &impl Serialize) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(copy).map_err(|e| ImageError::io("write", path, io::Error::from(e)))?;
    write(path, &bytes)
}

/// Written beside and moved into place. Not synced: what a crash takes is made again from the index, or pulled.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let new = path.with_extension("new");
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&new, path));
    written.map_err(|e| ImageError::io("write", path, e))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let Some(bytes) = read(path, MAX_COPY)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| ImageError::io("read", path, io::Error::from(e)))
}

fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, ImageError> {
    // Neither a link nor a pipe is one of ours, and opening a pipe would wait.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::io("open", path, e)),
    };
    if !file.metadata().map_err(|e| ImageError::io("stat", path, e))?.is_file() {
        return Err(ImageError::io("read", path, io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| ImageError::io("read", path, e))?;
    match u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        true => Err(ImageError::io("read", path, io::Error::other(format!("it has more than {most} bytes")))),
        false => Ok(Some(bytes)),
    }
}
