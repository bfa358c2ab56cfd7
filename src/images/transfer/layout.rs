//! OCI image layouts: `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`.

use super::files::Files;
use super::offer::Offer;
use crate::images::digest::Digest;
use crate::images::document;
use crate::images::error::ImageError;
use crate::images::manifest::{Descriptor, Document, MAX_MANIFEST, Node, choose, parse};
use crate::images::reference::Reference;
use crate::images::source::{LocalBlob, LocalSource};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The one version of the layout.
pub(super) const VERSION: &str = "1.0.0";
/// containerd's annotation: the whole name.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// OCI's: a tag, or what the writer makes of it, which is often the whole name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// BuildKit's mark of an attestation.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A layout as a source.
#[derive(Debug)]
pub(super) struct Layout(pub(super) Arc<Files>);

impl LocalSource for Layout {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open(&self, descriptor: &Descriptor) -> Result<LocalBlob, ImageError> {
        let digest = &descriptor.digest;
        let algorithm = digest.as_str().split(':').next().unwrap_or_default();
        match self.0.find(&format!("blobs/{algorithm}/{}", digest.hex()))? {
            Some(part) => Ok(LocalBlob {
                digest: digest.clone(),
                size: Some(descriptor.size),
                reader: Box::new(part.reader()),
            }),
            None => {
                Err(ImageError::NotInSource { what: digest.to_string(), place: self.0.name().to_owned() })
            }
        }
    }
}

/// What says that there is a layout.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::images) struct Marker {
    pub(in crate::images) image_layout_version: String,
}

/// The images of the layout that this node can use.
pub(super) fn offers(files: Arc<Files>) -> Result<Vec<Offer>, ImageError> {
    let marker = files.document("oci-layout", MAX_MANIFEST)?;
    let marker: Marker =
        document::read(&marker).map_err(|e| e.blame(|reason| files.bad("oci-layout", reason)))?;
    if marker.image_layout_version != VERSION {
        return Err(
            files.bad("oci-layout", format!("version {}, known is {VERSION}", marker.image_layout_version))
        );
    }
    let what = format!("index.json in {}", files.name());
    let entries = match parse(&what, &files.document("index.json", MAX_MANIFEST)?)? {
        Document::Index(entries) => entries,
        Document::Manifest { .. } => return Err(files.bad("index.json", "it is a manifest, not an index")),
    };
    let source: Arc<dyn LocalSource> = Arc::new(Layout(Arc::clone(&files)));
    let offers = usable(&what, &entries)?
        .into_iter()
        .map(|(top, references)| {
            let digests = vec![top.digest.clone()];
            Offer { source: Arc::clone(&source), top, id: None, digests, references }
        })
        .collect::<Vec<_>>();
    if offers.is_empty() {
        return Err(files.bad("index.json", "it names no image"));
    }
    Ok(offers)
}

/// The entries that are images for this node, each with its names. Entries of one name are one image for several platforms;
/// of those without a name each is an image, but for other platforms'.
fn usable(what: &str, entries: &[Descriptor]) -> Result<Vec<(Descriptor, Vec<Reference>)>, ImageError> {
    let mut named: BTreeMap<String, (Reference, Vec<Descriptor>)> = BTreeMap::new();
    let mut nameless = Vec::new();
    for entry in entries.iter().filter(|e| e.annotation(REFERENCE_TYPE).is_none()) {
        match name(entry) {
            Some(name) => {
                named.entry(name.to_string()).or_insert_with(|| (name, Vec::new())).1.push(entry.clone());
            }
            None => nameless.push(entry.clone()),
        }
    }
    let mut found: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
    let mut places: HashMap<Digest, usize> = HashMap::new();
    let mut add = |top: Descriptor, name: Option<Reference>| match places.get(&top.digest) {
        Some(place) => found[*place].1.extend(name),
        None => {
            places.insert(top.digest.clone(), found.len());
            found.push((top, name.into_iter().collect()));
        }
    };
    for (name, entries) in named.into_values() {
        add(choose(&format!("{name} in {what}"), &entries, Node::here())?, Some(name));
    }
    let fits = |entry: &&Descriptor| choose(what, std::slice::from_ref(*entry), Node::here()).is_ok();
    let fitting: Vec<Descriptor> = nameless.iter().filter(fits).cloned().collect();
    if fitting.is_empty() && !nameless.is_empty() {
        // It says which platforms there are.
        choose(what, &nameless, Node::here())?;
    }
    for entry in fitting {
        add(entry, None);
    }
    Ok(found)
}

/// The name that an entry states. OCI's own annotation may hold a tag alone, which names nothing.
fn name(entry: &Descriptor) -> Option<Reference> {
    let whole = entry.annotation(IMAGE_NAME);
    let stated =
        whole.or_else(|| entry.annotation(REF_NAME).filter(|name| name.contains(['/', ':', '@'])))?;
    let parsed = Reference::parse(stated);
    if let Err(error) = &parsed {
        // Log: Its name is not valid.
        // Do: Load it with `--name`.
        tracing::warn!(%error, image = %entry.digest, "an image of a layout is loaded without its name");
    }
    parsed.ok()
}
