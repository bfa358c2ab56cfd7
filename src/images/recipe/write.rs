//! Writing a recipe while a layer is unpacked. Streams; holds one piece of headers and one extent.

use super::{LEVEL, MAGIC, MAX_INLINE, REPLACED_INDEX, REPLACED_MAGIC, VERSION};
use crate::images::error::ImageError;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Takes down where each byte of a tar went.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// None: no recipe is wanted.
    open: Option<Open>,
}

struct Open {
    path: PathBuf,
    out: zstd::stream::write::Encoder<'static, File>,
    inline: Vec<u8>,
    /// The file whose data follows: its path, until its first segment is written.
    named: Option<Vec<u8>>,
    extent: Option<Extent>,
    total: u64,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("path", &self.path).field("total", &self.total).finish_non_exhaustive()
    }
}

struct Extent {
    offset: u64,
    length: u64,
    crc: crc32fast::Hasher,
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl Recorder {
    /// Begins a recipe at `path`, which must not exist.
    pub(crate) fn create(path: &Path) -> Result<Self, ImageError> {
        let create = || -> io::Result<Open> {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            let mut out = zstd::stream::write::Encoder::new(file, LEVEL)?;
            out.include_checksum(true)?;
            out.write_all(MAGIC)?;
            out.write_all(&[VERSION])?;
            let inline = Vec::with_capacity(MAX_INLINE);
            Ok(Open { path: path.to_owned(), out, inline, named: None, extent: None, total: 0 })
        };
        Ok(Self { open: Some(create().map_err(|e| ImageError::io("create", path, e))?) })
    }

    /// Records nothing.
    pub(crate) fn off() -> Self {
        Self { open: None }
    }

    /// Bytes that are not on disk.
    pub(crate) fn inline(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.with(|open| open.inline(bytes))
    }

    /// The following data goes into the file at `path`, relative to the layer's root and without symlinks.
    pub(crate) fn file(&mut self, path: &[u8]) {
        if let Some(open) = &mut self.open {
            open.named = Some(path.to_vec());
        }
    }

    /// Data of the current file, and where in it.
    pub(crate) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.with(|open| open.data(offset, bytes))
    }

    /// The file's data has ended.
    pub(crate) fn end_file(&mut self) -> Result<(), ImageError> {
        self.with(Open::end_file)
    }

    /// Ends the recipe; returns its bytes on disk.
    pub(crate) fn finish(self) -> Result<u64, ImageError> {
        let Some(mut open) = self.open else { return Ok(0) };
        let path = std::mem::take(&mut open.path);
        let finish = || -> io::Result<u64> {
            open.flush_inline()?;
            open.out.write_all(b"E")?;
            open.out.write_all(&open.total.to_le_bytes())?;
            Ok(open.out.finish()?.metadata()?.len())
        };
        finish().map_err(|e| ImageError::io("write", &path, e))
    }

    fn with(&mut self, work: impl FnOnce(&mut Open) -> io::Result<()>) -> Result<(), ImageError> {
        match &mut self.open {
            Some(open) => work(open).map_err(|e| ImageError::io("write", &open.path, e)),
            None => Ok(()),
        }
    }
}

impl Open {
    fn inline(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.total += length(bytes);
        while !bytes.is_empty() {
            let take = bytes.len().min(MAX_INLINE - self.inline.len());
            self.inline.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.inline.len() == MAX_INLINE {
                self.flush_inline()?;
            }
        }
        Ok(())
    }

    fn flush_inline(&mut self) -> io::Result<()> {
        if self.inline.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(self.inline.len()).map_err(io::Error::other)?;
        self.out.write_all(b"I")?;
        self.out.write_all(&count.to_le_bytes())?;
        self.out.write_all(&self.inline)?;
        self.inline.clear();
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.total += length(bytes);
        if self.extent.as_ref().is_some_and(|e| e.offset + e.length != offset) {
            self.end_extent()?;
        }
        let extent =
            self.extent.get_or_insert_with(|| Extent { offset, length: 0, crc: crc32fast::Hasher::new() });
        extent.length += length(bytes);
        extent.crc.update(bytes);
        Ok(())
    }

    fn end_extent(&mut self) -> io::Result<()> {
        let Some(extent) = self.extent.take() else { return Ok(()) };
        self.flush_inline()?;
        match self.named.take() {
            Some(path) => {
                let count = u16::try_from(path.len()).map_err(io::Error::other)?;
                self.out.write_all(b"F")?;
                self.out.write_all(&count.to_le_bytes())?;
                self.out.write_all(&path)?;
            }
            None => self.out.write_all(b"C")?,
        }
        self.out.write_all(&extent.offset.to_le_bytes())?;
        self.out.write_all(&extent.length.to_le_bytes())?;
        self.out.write_all(&extent.crc.finalize().to_le_bytes())
    }

    fn end_file(&mut self) -> io::Result<()> {
        self.end_extent()?;
        self.named = None;
        Ok(())
    }
}

/// Writes the list of replaced files, in the order of the numbers in `replaced`, counted from 1: (the number of files
/// with data in the recipe by then, the path).
pub(crate) fn write_replaced(directory: &Path, replaced: &[(u64, Vec<u8>)]) -> Result<(), ImageError> {
    let path = directory.join(REPLACED_INDEX);
    let mut bytes = REPLACED_MAGIC.to_vec();
    bytes.push(VERSION);
    for (until, place) in replaced {
        bytes.extend(until.to_le_bytes());
        bytes.extend(u16::try_from(place.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(place);
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    bytes.extend(crc.finalize().to_le_bytes());
    std::fs::write(&path, &bytes).map_err(|e| ImageError::io("write", &path, e))
}
