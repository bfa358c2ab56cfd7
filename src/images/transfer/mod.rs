//! Images from and to places that are not registries: archives, layouts, the stores of other runtimes.
//!
//! ```text
//! files (directory or tar, spooled if compressed) ─► layout / docker ─┐
//! stores of other runtimes ─► peers/ ────────────────────────────────┴─► offers ─► bring ─► image
//! image ─► export ─► sink (tar or directory) ─► target (file, pipe or directory)
//! ```
//!
//! Owns what these formats look like and which names they give. Everything that comes goes through the pipeline of pulls and
//! is verified there; nothing is ever extracted by the names in an archive.

mod archive;
mod docker;
mod export;
mod files;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod layout;
mod offer;
mod peers;
mod sink;
mod spool;
mod target;

#[cfg(test)]
mod export_tests;
#[cfg(test)]
mod tests;

pub use archive::Archive;
pub(super) use docker::Saved;
pub use export::{ExportOptions, Format};
pub(super) use layout::Marker;
pub use peers::{Imported, Peer};

use super::Images;
use super::error::ImageError;
use super::reference::Reference;
use super::windows::Windows;
use crate::model::ImageId;
use files::Files;
use offer::Offer;
use spool::{Cancel, Form};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// What to do with the images of an archive.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The name that the image gets instead of those in the archive, which must hold one image then.
    pub name: Option<String>,
}

/// An image that was loaded or imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: ImageId,
    /// The names that it got: normalised tags and `name@digest`; empty: it is known by its id alone.
    pub names: Vec<String>,
}

impl Images {
    /// Loads all images for this node's platform from an OCI layout (directory or tar) or from an archive of `docker save`.
    /// A tar may be compressed with gzip or zstd, and `path` may be a pipe, such as `/proc/<pid>/fd/0`; both are written to a
    /// nameless file in the store first.
    ///
    /// # Errors
    /// The first of [`ImageError`]; images loaded before it stay.
    pub async fn load(&self, path: &Path, options: LoadOptions) -> Result<Vec<Loaded>, ImageError> {
        let name = options.name.as_deref().map(Reference::parse).transpose()?;
        let cancel = Cancel::default();
        let _guard = cancel.guard();
        let (from, staging, limit) =
            (path.to_owned(), self.inner.store.staging_dir(), self.inner.limits.bytes);
        let windows = Arc::clone(&self.inner.windows);
        let work = move || offers(Arc::new(Files::open(&from, &staging, limit, &windows, &cancel)?));
        let mut offers = self.inner.archives.run(path, work).await?;
        if let Some(name) = name {
            let [offer] = offers.as_mut_slice() else {
                return Err(ImageError::BadArchive {
                    archive: path.display().to_string(),
                    entry: String::new(),
                    reason: format!("it holds {} images, the name {name} can be given to one", offers.len()),
                });
            };
            offer.rename(&name);
        }
        let mut loaded = Vec::new();
        for offer in offers {
            loaded.push(offer.bring(&self.inner).await?);
        }
        Ok(loaded)
    }
}

/// A tar as it is, or decompressed; `name` stands for it in errors.
pub(super) fn plain(
    tar: impl Read + Send + 'static,
    name: &str,
    windows: &Arc<Windows>,
) -> Result<Box<dyn Read>, ImageError> {
    match spool::decoder(std::io::BufReader::new(tar), name, windows)? {
        Form::Plain(source) => Ok(Box::new(source)),
        Form::Compressed(decoded) => Ok(Box::new(decoded)),
    }
}

/// The images of an archive. An OCI layout goes first, since newer docker archives are both.
fn offers(files: Arc<Files>) -> Result<Vec<Offer>, ImageError> {
    if files.has("oci-layout")? {
        return layout::offers(files);
    }
    if files.has("manifest.json")? {
        return docker::offers(&files);
    }
    Err(files
        .bad("", "it is no OCI layout (no entry oci-layout) and no docker archive (no entry manifest.json)"))
}
