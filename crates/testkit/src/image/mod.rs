//! Images made in memory, entry by entry.
//!
//! Owns layers ([`LayerBuilder`]), images ([`ImageBuilder`]) and indexes ([`Index`]) in OCI and Docker schema 2 form,
//! and artifacts ([`FilesBuilder`]). It never touches the disk or a registry, and never checks names: tests need
//! hostile layers.

mod files;
mod layer;
mod manifest;

pub use files::FilesBuilder;
pub use layer::{Compression, Entry, Layer, LayerBuilder};
pub use manifest::{Artifact, Blob, Format, Image, ImageBuilder, Index};

use sha2::Digest as _;

/// `sha256:` and the hexadecimal digest of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
