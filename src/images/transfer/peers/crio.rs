//! containers/storage with the driver overlay, the store of CRI-O, podman and buildah. It keeps layers unpacked and,
//! beside each, the record that reproduces its tar byte by byte.

use super::tar_split::Assembly;
use super::{Candidate, broken};
use crate::images::digest::Digest;
use crate::images::error::{ImageError, cut};
use crate::images::manifest::{
    ConfigFile, Descriptor, Document, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, parse,
};
use crate::images::reference::Reference;
use crate::images::source::{LocalBlob, LocalSource};
use crate::images::transfer::files::Part;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::images::transfer::offer::Offer;

/// Bytes of `images.json` or `layers.json`; a row is about a KiB.
const MAX_ROWS: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageRow {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: String,
    #[serde(default)]
    big_data_names: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct LayerRow {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default)]
    diff_digest: String,
}

/// The store, and the place of each layer of one image.
#[derive(Debug)]
struct Stored {
    name: String,
    root: PathBuf,
    image: String,
    config: Digest,
    layers: HashMap<Digest, String>,
}

/// The images of the store.
pub(super) fn candidates(root: &Path) -> Result<Vec<Candidate>, ImageError> {
    let images: Vec<ImageRow> = rows(&root.join("overlay-images/images.json"))?;
    let layers: Vec<LayerRow> = rows(&root.join("overlay-layers/layers.json"))?;
    let layers: HashMap<&str, &LayerRow> = layers.iter().map(|l| (l.id.as_str(), l)).collect();
    let candidate = |row: ImageRow| {
        let name = row.names.iter().flatten().next().unwrap_or(&row.id);
        Candidate { name: cut(name), offer: offer(root, row, &layers) }
    };
    Ok(images.into_iter().map(candidate).collect())
}

fn rows<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>, ImageError> {
    let bytes = read(path, MAX_ROWS)?;
    serde_json::from_slice(&bytes).map_err(|e| broken(&path.display().to_string(), e.to_string()))
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let failed = |e| ImageError::io("read", path, e);
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(ImageError::Limit { what: path.display().to_string(), limit, unit: "bytes" });
    }
    Ok(bytes)
}

fn offer(root: &Path, row: ImageRow, layers: &HashMap<&str, &LayerRow>) -> Result<Offer, ImageError> {
    let name = format!("containers/storage at {}", root.display());
    if !is_id(&row.id) {
        return Err(broken(&name, format!("image id {:?}", row.id)));
    }
    let id = format!("sha256:{}", row.id);
    let manifest = read(&big_data(root, &row.id, "manifest"), MAX_MANIFEST)?;
    let Document::Manifest { config, .. } = parse(&format!("the manifest of {id} in {name}"), &manifest)?
    else {
        return Err(broken(&name, format!("the manifest of {id} is an index")));
    };
    let body = read(&big_data(root, &row.id, config.digest.as_str()), MAX_CONFIG)?;
    let file = ConfigFile::read(&format!("{id} in {name}"), &body)?;
    let chain = chain(&row.layer, layers)
        .ok_or_else(|| broken(&name, format!("the layers of {id} are not all there")))?;
    let layers = place(file.diff_ids(), &chain).ok_or_else(|| {
        let (has, wants) = (chain.len(), file.diff_ids().len());
        broken(&name, format!("{id} has {has} layers for {wants} diff ids"))
    })?;
    let size = u64::try_from(manifest.len()).unwrap_or(u64::MAX);
    let top = Descriptor::new(Digest::sha256(&manifest), size);
    let of_manifest = |key: &String| Digest::parse(key.strip_prefix("manifest-")?).ok();
    let mut digests: Vec<Digest> = row.big_data_names.iter().flatten().filter_map(of_manifest).collect();
    digests.retain(|digest| *digest == top.digest || is_index_of(root, &row.id, digest, &top.digest));
    let references = row.names.iter().flatten().filter_map(|n| Reference::parse(n).ok()).collect();
    let source =
        Arc::new(Stored { name, root: root.to_owned(), image: row.id, config: config.digest, layers });
    Ok(Offer { source, top, id: Some(id), digests, references })
}

/// Whether the store has an index of this digest that names the manifest; only then the digest means the image.
fn is_index_of(root: &Path, image: &str, digest: &Digest, manifest: &Digest) -> bool {
    let path = big_data(root, image, &format!("manifest-{digest}"));
    let Ok(body) = read(&path, MAX_MANIFEST) else { return false };
    let entries = match parse(digest.as_str(), &body) {
        Ok(Document::Index(entries)) => entries,
        Ok(Document::Manifest { .. }) | Err(_) => return false,
    };
    digest.of_same_kind(&body) == *digest && entries.iter().any(|entry| entry.digest == *manifest)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && crate::images::digest::is_hex(text)
}

/// The file of an image's datum: keys that are not plain names are in base64 behind `=`.
fn big_data(root: &Path, image: &str, key: &str) -> PathBuf {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    let file = if plain { key.to_owned() } else { format!("={}", STANDARD.encode(key)) };
    root.join("overlay-images").join(image).join(file)
}

/// The layers from the bottom to `top`.
fn chain<'l>(top: &str, layers: &HashMap<&str, &'l LayerRow>) -> Option<Vec<&'l LayerRow>> {
    let mut chain = Vec::new();
    let mut at = top;
    while !at.is_empty() {
        let layer = *layers.get(at)?;
        if chain.len() > MAX_LAYERS || !is_id(&layer.id) {
            return None;
        }
        chain.push(layer);
        at = &layer.parent;
    }
    chain.reverse();
    Some(chain)
}

/// Maps diffIDs to layer directories: by the digest that the store states, else by position.
fn place(diff_ids: &[Digest], chain: &[&LayerRow]) -> Option<HashMap<Digest, String>> {
    let mut places = HashMap::new();
    for (index, diff_id) in diff_ids.iter().enumerate() {
        let stated = chain.iter().find(|layer| layer.diff_digest == diff_id.as_str());
        let at_position =
            || chain.get(index).filter(|l| chain.len() == diff_ids.len() && l.diff_digest.is_empty());
        places.insert(diff_id.clone(), stated.or_else(at_position)?.id.clone());
    }
    Some(places)
}

impl LocalSource for Stored {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, descriptor: &Descriptor) -> Result<LocalBlob, ImageError> {
        let key = if descriptor.digest == self.config { descriptor.digest.as_str() } else { "manifest" };
        let path = big_data(&self.root, &self.image, key);
        let file = File::open(&path).map_err(|e| ImageError::io("open", &path, e))?;
        let part = Part::whole(file).map_err(|e| ImageError::io("stat", &path, e))?;
        let reader = Box::new(part.reader());
        Ok(LocalBlob { digest: descriptor.digest.clone(), size: Some(descriptor.size), reader })
    }

    /// The tar, whose digest is the diffID; the compressed blob is not kept by this store.
    fn layer(&self, diff_id: &Digest, _blob: &Descriptor) -> Result<LocalBlob, ImageError> {
        let Some(layer) = self.layers.get(diff_id) else {
            return Err(ImageError::NotInSource { what: diff_id.to_string(), place: self.name.clone() });
        };
        let recipe = self.root.join("overlay-layers").join(format!("{layer}.tar-split.gz"));
        let files = self.root.join("overlay").join(layer).join("diff");
        let reader = Box::new(Assembly::open(&recipe, &files)?);
        Ok(LocalBlob { digest: diff_id.clone(), size: None, reader })
    }
}
