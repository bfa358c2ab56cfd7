//! Image configurations, manifests and indexes around layers.
//!
//! Owns the JSON of both families (OCI image spec 1.1, Docker image manifest
//! version 2 schema 2). The same input gives the same bytes: no clock is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::layer::{Compression, Layer};
use super::sha256;

/// The creation time of every image built here: fixed, so that digests are too.
const CREATED: &str = "2024-01-01T00:00:00Z";

/// Which family of media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/vnd.oci.image.*`
    #[default]
    Oci,
    /// `application/vnd.docker.*`
    Docker,
}

impl Format {
    pub(super) fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            // Docker never defined one; this is what a registry would serve.
            (Self::Docker, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// Bytes with their digest, as a registry stores them.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:...` of `bytes`.
    pub digest: String,
    /// The content.
    pub bytes: Arc<[u8]>,
}

impl Blob {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: sha256(&bytes), bytes: bytes.into() }
    }
}

/// One platform's image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// Its media type.
    pub media_type: &'static str,
    /// The configuration; its digest is the image ID.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    platform: Value,
}

impl Image {
    /// An unchanged OCI manifest, for this machine's platform.
    pub(super) fn of(manifest: &Value, config: Blob, layers: Vec<Layer>) -> Self {
        Self {
            manifest: Blob::new(manifest.to_string().into_bytes()),
            media_type: Format::Oci.manifest(),
            config,
            layers,
            platform: json!({ "architecture": go_architecture(), "os": "linux" }),
        }
    }
}

/// Several platforms' images under one name.
#[derive(Debug, Clone)]
pub struct Index {
    /// The index document.
    pub manifest: Blob,
    /// Its media type.
    pub media_type: &'static str,
    /// Its entries.
    pub images: Vec<Image>,
}

/// What a name in a registry can refer to.
#[derive(Debug, Clone)]
pub enum Artifact {
    /// A manifest.
    Image(Image),
    /// An index of manifests.
    Index(Index),
}

impl Artifact {
    /// The digest that the name resolves to.
    #[must_use]
    pub fn digest(&self) -> &str {
        match self {
            Self::Image(image) => &image.manifest.digest,
            Self::Index(index) => &index.manifest.digest,
        }
    }
}

impl From<Image> for Artifact {
    fn from(image: Image) -> Self {
        Self::Image(image)
    }
}

impl From<Index> for Artifact {
    fn from(index: Index) -> Self {
        Self::Index(index)
    }
}

/// States an image: layers first, then the configuration of its process.
#[derive(Debug, Clone, Default)]
pub struct ImageBuilder {
    format: Format,
    layers: Vec<Layer>,
    process: Map<String, Value>,
    architecture: Option<String>,
    extra: BTreeMap<String, Value>,
}

impl ImageBuilder {
    /// An OCI image for this machine's architecture, without layers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// OCI or Docker media types.
    #[must_use]
    pub fn format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: &Layer) -> Self {
        self.layers.push(layer.clone());
        self
    }

    /// `architecture` of the configuration and the index entry, in Go's words.
    #[must_use]
    pub fn architecture(self, name: &str) -> Self {
        Self { architecture: Some(name.to_owned()), ..self }
    }

    /// `User`: name, number, or either with a group.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.process("User", json!(user))
    }

    /// `Entrypoint`.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.process("Entrypoint", json!(words))
    }

    /// `Cmd`.
    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        self.process("Cmd", json!(words))
    }

    /// `Env`, as `NAME=value`.
    #[must_use]
    pub fn env(self, variables: &[&str]) -> Self {
        self.process("Env", json!(variables))
    }

    /// `WorkingDir`.
    #[must_use]
    pub fn working_dir(self, path: &str) -> Self {
        self.process("WorkingDir", json!(path))
    }

    /// `StopSignal`.
    #[must_use]
    pub fn stop_signal(self, signal: &str) -> Self {
        self.process("StopSignal", json!(signal))
    }

    /// `ExposedPorts`, one `port/protocol`.
    #[must_use]
    pub fn exposes(self, port: &str) -> Self {
        self.process("ExposedPorts", json!({ port: {} }))
    }

    /// `Volumes`, one path.
    #[must_use]
    pub fn volume(self, path: &str) -> Self {
        self.process("Volumes", json!({ path: {} }))
    }

    /// One label: two images with equal layers and different labels have different IDs.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        let labels = self.process.entry("Labels").or_insert_with(|| json!({}));
        labels[key] = json!(value);
        self
    }

    /// Any field of the process configuration.
    #[must_use]
    pub fn process(mut self, field: &str, value: Value) -> Self {
        self.process.insert(field.to_owned(), value);
        self
    }

    /// Any top-level field of the configuration, replacing the existing one.
    #[must_use]
    pub fn config_field(mut self, field: &str, value: Value) -> Self {
        self.extra.insert(field.to_owned(), value);
        self
    }

    /// Writes configuration and manifest.
    #[must_use]
    pub fn build(self) -> Image {
        let architecture = self.architecture.unwrap_or_else(|| go_architecture().to_owned());
        let platform = json!({ "architecture": architecture, "os": "linux" });
        let mut config = json!({
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": self.process,
            "rootfs": { "type": "layers", "diff_ids": self.layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>() },
            "history": self.layers.iter().map(|_| json!({ "created": CREATED, "created_by": "podwright-testkit" })).collect::<Vec<_>>(),
        });
        for (field, value) in self.extra {
            config[field] = value;
        }
        let config = Blob::new(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest(),
            "config": {
                "mediaType": self.format.config(),
                "digest": config.digest,
                "size": config.bytes.len(),
            },
            "layers": self.layers.iter().map(|layer| json!({
                "mediaType": self.format.layer(layer.compression),
                "digest": layer.digest,
                "size": layer.blob.len(),
            })).collect::<Vec<_>>(),
        });
        Image {
            manifest: Blob::new(manifest.to_string().into_bytes()),
            media_type: self.format.manifest(),
            config,
            layers: self.layers,
            platform,
        }
    }
}

impl Index {
    /// An index of `images`, in this order.
    #[must_use]
    pub fn new(format: Format, images: Vec<Image>) -> Self {
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                json!({
                    "mediaType": image.media_type,
                    "digest": image.manifest.digest,
                    "size": image.manifest.bytes.len(),
                    "platform": image.platform,
                })
            })
            .collect();
        let document = json!({ "schemaVersion": 2, "mediaType": format.index(), "manifests": manifests });
        Self { manifest: Blob::new(document.to_string().into_bytes()), media_type: format.index(), images }
    }
}

/// This machine's architecture as image indexes name it.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Entry, LayerBuilder};

    #[test]
    fn the_same_statement_gives_the_same_digest() {
        let layer = LayerBuilder::new().entry(Entry::dir("d")).build(Compression::Gzip).unwrap();
        let build = |label: &str| ImageBuilder::new().layer(&layer).label("k", label).build().manifest.digest;
        assert_eq!(build("a"), build("a"));
        assert_ne!(build("a"), build("b"));
    }

    #[test]
    fn an_index_names_its_platforms() {
        let one = ImageBuilder::new().architecture("arm64").build();
        let index = Index::new(Format::Oci, vec![one.clone()]);
        let document: Value = serde_json::from_slice(&index.manifest.bytes).unwrap();
        assert_eq!(document["manifests"][0]["platform"]["architecture"], "arm64");
        assert_eq!(document["manifests"][0]["digest"], one.manifest.digest.as_str());
    }
}
