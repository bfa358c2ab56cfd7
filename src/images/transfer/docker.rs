//! Archives of `docker save` without an OCI layout: `manifest.json` names config and layer files. There is no manifest with
//! digests, so one is made up here.

use super::files::{Files, Part};
use super::offer::Offer;
use crate::images::digest::{Digest, is_hex};
use crate::images::document;
use crate::images::error::{ImageError, cut};
use crate::images::manifest::{ConfigFile, Descriptor, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST};
use crate::images::reference::Reference;
use crate::images::source::{LocalBlob, LocalSource};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Cursor, Read as _};
use std::path::Path;
use std::sync::Arc;

/// Images of one archive: each has its config read, and a cluster's whole mirror has some hundred.
const MAX_IMAGES: usize = 1024;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of `manifest.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::images) struct Saved {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// One image as a source.
#[derive(Debug)]
struct SavedImage {
    name: String,
    manifest: (Digest, Vec<u8>),
    parts: HashMap<Digest, Part>,
}

impl LocalSource for SavedImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, descriptor: &Descriptor) -> Result<LocalBlob, ImageError> {
        let (digest, size) = (descriptor.digest.clone(), Some(descriptor.size));
        if self.manifest.0 == digest {
            return Ok(LocalBlob { digest, size, reader: Box::new(Cursor::new(self.manifest.1.clone())) });
        }
        match self.parts.get(&digest) {
            Some(part) => Ok(LocalBlob { digest, size, reader: Box::new(part.reader()) }),
            None => Err(ImageError::NotInSource { what: digest.to_string(), place: self.name.clone() }),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// A manifest made of what an image consists of.
pub(super) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Manifest { schema_version: 2, media_type: MANIFEST, config, layers })
}

/// The images of the archive.
pub(super) fn offers(files: &Files) -> Result<Vec<Offer>, ImageError> {
    let document = files.document("manifest.json", MAX_MANIFEST)?;
    let saved: Vec<Saved> =
        document::read(&document).map_err(|e| e.blame(|reason| files.bad("manifest.json", reason)))?;
    if saved.is_empty() {
        return Err(files.bad("manifest.json", "it names no image"));
    }
    if saved.len() > MAX_IMAGES {
        return Err(files.bad("manifest.json", format!("it names more than {MAX_IMAGES} images")));
    }
    let mut described = HashMap::new();
    saved.into_iter().map(|saved| offer(files, saved, &mut described)).collect()
}

/// Layers by their places in the archive, of which a layer of many images is one: a compressed one has to be read whole.
type Described = HashMap<[u64; 4], Descriptor>;

fn offer(files: &Files, saved: Saved, described: &mut Described) -> Result<Offer, ImageError> {
    let config = files.document(&saved.config, MAX_CONFIG)?;
    let id = Digest::sha256(&config);
    // The file's name is the id, and nothing else in the archive says what the config should hash to.
    let stem = Path::new(&saved.config).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if stem.len() == 64 && is_hex(stem) && stem != id.hex() {
        return Err(ImageError::DigestMismatch {
            what: format!("{} in {}", cut(&saved.config), files.name()),
            expected: format!("sha256:{stem}"),
            actual: id.to_string(),
        });
    }
    let file = ConfigFile::read(&format!("{} in {}", cut(&saved.config), files.name()), &config)?;
    let layers = saved.layers.unwrap_or_default();
    if layers.len() != file.diff_ids().len() || layers.len() > MAX_LAYERS {
        let (has, wants) = (layers.len(), file.diff_ids().len());
        return Err(
            files.bad(&saved.config, format!("{has} layers for {wants} diff ids; at most {MAX_LAYERS}"))
        );
    }
    let mut parts = HashMap::new();
    let mut blobs = Vec::with_capacity(layers.len());
    for (layer, diff_id) in layers.iter().zip(file.diff_ids()) {
        let Some(part) = files.find(layer)? else {
            return Err(ImageError::NotInSource { what: cut(layer), place: files.name().to_owned() });
        };
        let place = part.place().map_err(|e| ImageError::io("read", Path::new(files.name()), e))?;
        let blob = match described.get(&place) {
            // What is stored as it is, is known by the diff id that its own image states.
            Some(blob) if blob.media_type != LAYER => blob.clone(),
            _ => describe(files, layer, &part, diff_id)?,
        };
        described.insert(place, blob.clone());
        parts.insert(blob.digest.clone(), part);
        blobs.push(blob);
    }
    let size = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    let manifest = manifest(Descriptor::typed(CONFIG, id.clone(), size(config.len())), blobs)
        .map_err(|e| files.bad(&saved.config, e.to_string()))?;
    if let Some(part) = files.find(&saved.config)? {
        parts.insert(id.clone(), part);
    }
    let top = Descriptor::typed(MANIFEST, Digest::sha256(&manifest), size(manifest.len()));
    let references = saved
        .repo_tags
        .unwrap_or_default()
        .iter()
        .map(|tag| Reference::parse(tag))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest = (top.digest.clone(), manifest);
    let source = Arc::new(SavedImage { name: files.name().to_owned(), manifest, parts });
    Ok(Offer { source, top, id: Some(id.to_string()), digests: Vec::new(), references })
}

/// A layer file's descriptor. Docker's are plain tars, which hash to their diffID; other tools compress them, and then only
/// reading them tells the digest.
fn describe(files: &Files, entry: &str, part: &Part, diff_id: &Digest) -> Result<Descriptor, ImageError> {
    let failed = |e| ImageError::io("read", Path::new(files.name()), e);
    let mut start = Vec::new();
    part.reader().take(4).read_to_end(&mut start).map_err(failed)?;
    let media_type = match start.as_slice() {
        [0x1f, 0x8b, ..] => format!("{LAYER}+gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => format!("{LAYER}+zstd"),
        _ => return Ok(Descriptor::typed(LAYER, diff_id.clone(), part.size)),
    };
    let (mut reader, mut hasher) = (part.reader(), crate::images::digest::Hasher::sha256());
    let mut piece = vec![0; 256 << 10];
    loop {
        match reader.read(&mut piece).map_err(failed)? {
            0 => break,
            read => hasher.update(&piece[..read]),
        }
    }
    tracing::debug!(entry, %diff_id, "compressed layer in a docker archive");
    Ok(Descriptor::typed(&media_type, hasher.finish(), part.size))
}
