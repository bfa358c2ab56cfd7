//! Exports images from the store. Reproduces layers as their original tars, so an exported image has the same id; the
//! compressed blobs are not kept, so its manifest is a new one.

use super::docker::{CONFIG, LAYER, MANIFEST, Saved, manifest};
use super::layout::{IMAGE_NAME, REF_NAME, VERSION};
use super::sink::{Sink, Written};
use super::spool::Cancel;
use super::target::Target;
use crate::images::digest::Digest;
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use crate::images::reference::{Reference, Target as Named};
use crate::images::store::Store;
use crate::images::{Hold, ImageKind, Images, recipe};
use crate::model::ImageId;
use serde::Serialize;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// The form of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// A tar of an OCI layout.
    #[default]
    OciArchive,
    /// An OCI layout, in a new or empty directory.
    OciLayout,
    /// The format that `docker load` of any age reads.
    DockerArchive,
}

/// How to export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// The form.
    pub format: Format,
    /// Whether layers are compressed; not in a docker archive.
    pub gzip: bool,
}

/// An image to be written, held meanwhile.
struct Item {
    hold: Hold,
    tags: Vec<String>,
}

/// `index.json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

impl Images {
    /// Writes images to a file, a pipe (such as `/proc/<pid>/fd/1`) or a directory, and returns their ids. An image
    /// requested by a tag is written with that name, by its id with all its tags, by a digest without a name. An
    /// existing file is replaced when the new one is complete.
    ///
    /// # Errors
    /// `NotFound`; `NoRecipe` for a layer that an older podwright unpacked; `DamagedLayer` for one whose files have
    /// changed; if the target cannot be written.
    pub async fn export(
        &self,
        names: &[String],
        to: &Path,
        options: ExportOptions,
    ) -> Result<Vec<ImageId>, ImageError> {
        if options.gzip && options.format == Format::DockerArchive {
            return Err(ImageError::Unsupported {
                what: to.display().to_string(),
                reason: "a docker archive has no compressed layers".into(),
            });
        }
        let mut items: Vec<Item> = Vec::new();
        for name in names {
            let item = self.item(name)?;
            match items.iter_mut().find(|known| known.hold.image().id == item.hold.image().id) {
                Some(known) => known.tags.extend(item.tags),
                None => items.push(item),
            }
        }
        for item in &mut items {
            item.tags.sort();
            item.tags.dedup();
        }
        let ids = items.iter().map(|item| item.hold.image().id.clone()).collect();
        let cancel = Cancel::default();
        let _guard = cancel.guard();
        let (store, to) = (Arc::clone(&self.inner.store), to.to_owned());
        let path = to.clone();
        self.inner.archives.run(&path, move || write(&store, &items, &to, options, &cancel)).await?;
        Ok(ids)
    }

    fn item(&self, name: &str) -> Result<Item, ImageError> {
        let hold = self.hold(name)?;
        let refuse =
            |reason: &str| Err(ImageError::Unsupported { what: name.to_owned(), reason: reason.to_owned() });
        match hold.image().kind {
            ImageKind::Image => {}
            ImageKind::Artifact { .. } => {
                return refuse("an artifact cannot be exported, its blobs are not kept");
            }
            ImageKind::Checkpoint => {
                return refuse("a checkpoint cannot be exported, the manifest that says so is not kept");
            }
        }
        // An image that `hold` found by a name that reads as a tag and is one of the image's.
        let named = Reference::parse(name).ok().map(|r| (r.to_string(), matches!(r.target(), Named::Tag(_))));
        let tags = match named {
            Some((tag, true)) if hold.image().repo_tags.contains(&tag) => vec![tag],
            Some((_, false)) => Vec::new(),
            _ => hold.image().repo_tags.clone(),
        };
        Ok(Item { hold, tags })
    }
}

fn write(
    store: &Store,
    items: &[Item],
    to: &Path,
    options: ExportOptions,
    cancel: &Cancel,
) -> Result<(), ImageError> {
    if options.format == Format::OciLayout {
        let mut export =
            Export { store, options, cancel, sink: Sink::directory(to)?, layers: HashMap::new() };
        return export.layout(items);
    }
    let (target, file) = Target::open(to, &store.staging_dir())?;
    let mut export = Export { store, options, cancel, sink: Sink::tar(file, to), layers: HashMap::new() };
    match options.format {
        Format::DockerArchive => export.docker(items)?,
        Format::OciArchive | Format::OciLayout => export.layout(items)?,
    }
    match export.sink.finish()? {
        Some(file) => target.finish(file, cancel),
        None => Ok(()),
    }
}

/// An export under way.
struct Export<'a> {
    store: &'a Store,
    options: ExportOptions,
    cancel: &'a Cancel,
    sink: Sink,
    /// Layers written so far, by diffID.
    layers: HashMap<Digest, Descriptor>,
}

impl Export<'_> {
    fn layout(&mut self, items: &[Item]) -> Result<(), ImageError> {
        self.sink.document("oci-layout", format!(r#"{{"imageLayoutVersion":"{VERSION}"}}"#).as_bytes())?;
        let mut manifests = Vec::new();
        let blob = |written: &Written| format!("blobs/sha256/{}", written.digest.hex());
        for item in items {
            let config = self.config(item)?;
            let config = self.sink.stream(config.as_slice(), false, blob)?;
            let layers = self.layers(item, blob)?;
            let config = Descriptor::typed(CONFIG, config.digest, config.size);
            let body = manifest(config, layers).map_err(|e| unserialised(&e))?;
            let written = self.sink.stream(body.as_slice(), false, blob)?;
            let top = Descriptor::typed(MANIFEST, written.digest, written.size);
            if item.tags.is_empty() {
                manifests.push(top.clone());
            }
            // The whole name in both: podwright and containerd read one each.
            let named = |tag: &String| top.clone().annotated([(IMAGE_NAME, tag.as_str()), (REF_NAME, tag)]);
            manifests.extend(item.tags.iter().map(named));
        }
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::to_vec(&Index { schema_version: 2, media_type, manifests });
        self.sink.document("index.json", &index.map_err(|e| unserialised(&e))?).map(drop)
    }

    fn docker(&mut self, items: &[Item]) -> Result<(), ImageError> {
        let mut saved = Vec::new();
        let tar = |digest: &Digest| format!("{}.tar", digest.hex());
        for item in items {
            let config = self.config(item)?;
            let config =
                self.sink.stream(config.as_slice(), false, |w| format!("{}.json", w.digest.hex()))?;
            let layers = self.layers(item, |written| tar(&written.digest))?;
            saved.push(Saved {
                config: format!("{}.json", config.digest.hex()),
                repo_tags: Some(item.tags.clone()),
                layers: Some(layers.iter().map(|layer| tar(&layer.digest)).collect()),
            });
        }
        let saved = serde_json::to_vec(&saved).map_err(|e| unserialised(&e))?;
        self.sink.document("manifest.json", &saved).map(drop)
    }

    fn config(&self, item: &Item) -> Result<Vec<u8>, ImageError> {
        let id = &item.hold.image().id;
        let config = self.store.index().config(id.as_str())?;
        config.ok_or_else(|| ImageError::NotFound { name: id.to_string() })
    }

    /// The layers of the image's config, bottom first, each written once.
    fn layers(
        &mut self,
        item: &Item,
        name: impl Fn(&Written) -> String,
    ) -> Result<Vec<Descriptor>, ImageError> {
        let mut layers = Vec::new();
        for diff_id in &item.hold.image().diff_ids {
            let diff_id = Digest::parse(diff_id)
                .map_err(|e| ImageError::Index { operation: "export an image", reason: e.to_string() })?;
            let known = self.layers.get(&diff_id).cloned();
            let layer = match known {
                Some(layer) => layer,
                None => self.layer(&diff_id, &name)?,
            };
            self.layers.insert(diff_id, layer.clone());
            layers.push(layer);
        }
        Ok(layers)
    }

    fn layer(
        &mut self,
        diff_id: &Digest,
        name: impl Fn(&Written) -> String,
    ) -> Result<Descriptor, ImageError> {
        let fs = self.store.layer_fs(diff_id.hex());
        let tar = recipe::tar(fs.parent().unwrap_or(&fs))?;
        let tar = Stoppable { tar, cancel: self.cancel };
        let written = self.sink.stream(tar, self.options.gzip, name)?;
        if written.plain != *diff_id {
            return Err(ImageError::DigestMismatch {
                what: format!("the tar made of layer {}", diff_id.hex()),
                expected: diff_id.to_string(),
                actual: written.plain.to_string(),
            });
        }
        let media_type = if self.options.gzip { format!("{LAYER}+gzip") } else { LAYER.to_owned() };
        Ok(Descriptor::typed(&media_type, written.digest, written.size))
    }
}

fn unserialised(error: &serde_json::Error) -> ImageError {
    ImageError::Index { operation: "export an image", reason: error.to_string() }
}

/// A tar that ends when its consumer is gone.
struct Stoppable<'a, R> {
    tar: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            return Err(io::Error::other(ImageError::Interrupted { what: "the export".into() }));
        }
        self.tar.read(into)
    }
}
