//! What a person wants to know of the images beyond what CRI tells: what they take on disk, shared or not, and who uses
//! them. Reads only.

use super::Images;
use super::error::ImageError;
use super::image::Image;
use super::index::{LayerRecord, Presence};
use super::offload::blocking;
use super::reference::{Reference, Target};
use super::state::{Entry, State, keys};
use super::store::Store;
use std::collections::HashMap;
use std::sync::Arc;

/// The store's content.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Images, in the order of their ids.
    pub images: Vec<Details>,
    /// Unpacked bytes of all layers, each counted once.
    pub layer_bytes: u64,
    /// Number of layers, with those that no image needs.
    pub layers: usize,
}

/// One image.
#[derive(Debug, Clone)]
pub struct Details {
    /// The image.
    pub image: Arc<Image>,
    /// Its layers on disk, bottom first.
    pub layers: Vec<LayerUse>,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// Containers that use it.
    pub containers: usize,
}

/// A layer on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUse {
    /// diffID; `directories:<key>` for the store's own directories-only layer.
    pub diff_id: String,
    /// Unpacked bytes.
    pub bytes: u64,
    /// Images that have it, removed ones that a container still uses too.
    pub images: usize,
}

impl Details {
    /// Bytes of layers that no other image has.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        self.layers.iter().filter(|l| l.images <= 1).map(|l| l.bytes).sum()
    }

    /// Bytes of layers that other images have too.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        self.layers.iter().filter(|l| l.images > 1).map(|l| l.bytes).sum()
    }
}

impl Images {
    /// The images that `name` means: all for an empty one, all tags for a repository, else one, as [`Images::status`].
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Malformed`, or when the index cannot be read.
    pub async fn details(&self, name: &str) -> Result<Stored, ImageError> {
        let (store, name) = (Arc::clone(&self.inner.store), name.to_owned());
        blocking(move || {
            let state = store.state();
            let (images, uses) = (wanted(&state, &name)?, state.layer_uses());
            Ok(Stored {
                images: images.into_iter().map(|e| details(&store, &uses, e)).collect::<Result<_, _>>()?,
                layer_bytes: state.layers.values().map(|l| l.bytes).sum(),
                layers: state.layers.len(),
            })
        })
        .await
    }
}

fn wanted<'a>(state: &'a State, name: &str) -> Result<Vec<&'a Entry>, ImageError> {
    let listed = || state.images.values().filter(|e| e.record.presence == Presence::Listed);
    if name.is_empty() {
        return Ok(listed().collect());
    }
    // A name without a tag: `latest` was added by the parser.
    if let Ok(reference) = Reference::parse(name)
        && matches!(reference.target(), Target::Tag(tag) if !name.ends_with(tag.as_str()))
    {
        let repository = reference.name();
        let of =
            |name: &String| name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']));
        let found: Vec<_> = listed().filter(|e| e.image.names().any(of)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(vec![state.find(name)?])
}

fn details(store: &Store, uses: &HashMap<String, LayerUse>, entry: &Entry) -> Result<Details, ImageError> {
    let id = entry.image.id.as_str();
    let (config, said) = (store.index().config(id)?.unwrap_or_default(), store.index().said(id)?);
    // One that is damaged has no time.
    let file = entry.record.config_file(id, &config, said.as_deref());
    Ok(Details {
        image: Arc::clone(&entry.image),
        layers: keys(&entry.record).iter().filter_map(|key| uses.get(key).cloned()).collect(),
        created: file.ok().and_then(|file| file.created),
        containers: store.containers(id),
    })
}

impl State {
    /// Every layer by its key, with the number of images that have it.
    pub(super) fn layer_uses(&self) -> HashMap<String, LayerUse> {
        let layer = |(key, record): (&String, &LayerRecord)| {
            let layer = LayerUse { diff_id: format!("sha256:{key}"), bytes: record.bytes, images: 0 };
            (key.clone(), layer)
        };
        let mut uses: HashMap<String, LayerUse> = self.layers.iter().map(layer).collect();
        for entry in self.images.values() {
            for key in keys(&entry.record) {
                if let Some(layer) = uses.get_mut(&key) {
                    layer.images += 1;
                    if entry.record.directories.as_ref() == Some(&key) {
                        layer.diff_id = format!("directories:{key}");
                    }
                }
            }
        }
        uses
    }
}
