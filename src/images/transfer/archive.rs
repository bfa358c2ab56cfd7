//! An archive that is not an image, for reading single files. Extracts nothing by the names in it.

use super::files::Files;
use super::spool::Cancel;
use crate::images::Images;
use crate::images::error::ImageError;
use std::io::Read;
use std::path::Path;

/// A tar inside a file.
#[derive(Debug)]
pub struct Archive(Files);

impl Images {
    /// Opens a tar for reading single files; first writes one compressed with gzip or zstd to a nameless file in the
    /// store, within the byte limit of a layer. Blocking.
    ///
    /// # Errors
    /// When it cannot be read, is no plain file, or no whole tar.
    pub fn archive(&self, path: &Path) -> Result<Archive, ImageError> {
        let inner = &self.inner;
        let is_file = std::fs::metadata(path).map_err(|e| ImageError::io("open", path, e))?.is_file();
        if !is_file {
            return Err(ImageError::BadArchive {
                archive: path.display().to_string(),
                entry: String::new(),
                reason: "it is not a plain file".into(),
            });
        }
        {
            let (staging, limit) = (inner.store.staging_dir(), inner.limits.bytes);
            Files::open(path, &staging, limit, &inner.windows, &Cancel::default()).map(Archive)
        }
    }
}

impl Archive {
    /// A file that fits into memory; None: no such name.
    ///
    /// # Errors
    /// If it is larger than `limit` bytes, or not a plain file.
    pub fn document(&self, entry: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        if self.0.has(entry)? { self.0.document(entry, limit).map(Some) } else { Ok(None) }
    }

    /// A file's size in bytes and its content; None: no such name.
    ///
    /// # Errors
    /// When it is no plain file.
    pub fn file(&self, entry: &str) -> Result<Option<(u64, impl Read + use<>)>, ImageError> {
        Ok(self.0.find(entry)?.map(|part| (part.size, part.reader())))
    }

    /// Paths of the entries below a directory, sorted.
    #[must_use]
    pub fn below(&self, dir: &str) -> Vec<String> {
        self.0.below(dir)
    }
}
