//! OCI artifacts: files under a manifest of their own.
//!
//! Owns their JSON (OCI image spec 1.1, "Guidelines for Artifact Usage"). It never checks names: tests need hostile
//! ones.

use serde_json::{Value, json};

use super::layer::{Compression, Layer};
use super::manifest::{Blob, Format, Image};
use super::sha256;

/// The annotation that names a file.
const TITLE: &str = "org.opencontainers.image.title";
/// The config of an artifact that needs none.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// States an artifact, file by file. It is pushed and indexed as an image is.
#[derive(Debug, Clone)]
pub struct FilesBuilder {
    artifact_type: String,
    config_type: String,
    layers: Vec<Layer>,
    descriptors: Vec<Value>,
}

impl FilesBuilder {
    /// An artifact without files.
    #[must_use]
    pub fn new(artifact_type: &str) -> Self {
        Self {
            artifact_type: artifact_type.to_owned(),
            config_type: EMPTY.to_owned(),
            layers: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// The media type of its config, in place of the empty one's.
    #[must_use]
    pub fn config_type(self, media_type: &str) -> Self {
        Self { config_type: media_type.to_owned(), ..self }
    }

    /// Adds a file; None: one without a name.
    #[must_use]
    pub fn file(mut self, title: Option<&str>, media_type: &str, content: &[u8]) -> Self {
        let digest = sha256(content);
        let annotations = title.map_or_else(|| json!({}), |title| json!({ TITLE: title }));
        self.descriptors.push(json!({
            "mediaType": media_type,
            "digest": digest,
            "size": content.len(),
            "annotations": annotations,
        }));
        let (diff_id, compression) = (digest.clone(), Compression::None);
        self.layers.push(Layer { blob: content.into(), digest, diff_id, compression });
        self
    }

    /// Writes the manifest.
    #[must_use]
    pub fn build(self) -> Image {
        let config = Blob::new(b"{}".to_vec());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": Format::Oci.manifest(),
            "artifactType": self.artifact_type,
            "config": { "mediaType": self.config_type, "digest": config.digest, "size": config.bytes.len() },
            "layers": self.descriptors,
        });
        Image::of(&manifest, config, self.layers)
    }
}
