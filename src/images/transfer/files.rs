//! Files by name, in a directory or in a tar, and parts of them as readers. Nothing is extracted: a name in a tar is a key
//! of a map, and links are followed within that map.

use super::spool::{Cancel, spool};
use crate::images::error::{ImageError, cut};
use crate::images::unpack::{Content, Fault, clean, contents};
use crate::images::windows::Windows;
use crate::images::worker::{Parser, cannot_start};
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries of an archive: hundreds of images with hundreds of layers.
const MAX_ENTRIES: usize = 128 << 10;
/// Links in a row. `docker save` wrote one, to the layer of another image.
const MAX_LINKS: usize = 8;
/// Documents that must not occur twice in a tar: which of them counts would be a matter of taste.
const ONCE: [&str; 5] = ["oci-layout", "index.json", "manifest.json", "config.dump", "spec.dump"];

/// Bytes of a file.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    offset: u64,
    pub(super) size: u64,
}

/// A reader of a part; independent of others of the same file.
#[derive(Debug)]
pub(super) struct PartReader {
    part: Part,
    at: u64,
}

/// Named files.
#[derive(Debug)]
pub(super) enum Files {
    Directory { path: PathBuf, name: String },
    Tar { name: String, file: Arc<File>, entries: HashMap<String, Content> },
}

impl Part {
    /// The whole of a file.
    pub(super) fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, size })
    }

    /// The file's device and inode, and where in it the part lies: parts are the same if this is.
    pub(super) fn place(&self) -> io::Result<[u64; 4]> {
        let file = self.file.metadata()?;
        Ok([file.dev(), file.ino(), self.offset, self.size])
    }

    pub(super) fn reader(&self) -> PartReader {
        PartReader { part: self.clone(), at: 0 }
    }
}

impl Read for PartReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.size - self.at).unwrap_or(usize::MAX);
        let length = into.len().min(left);
        let read = self.part.file.read_at(&mut into[..length], self.part.offset + self.at)?;
        self.at += u64::try_from(read).unwrap_or_default();
        Ok(read)
    }
}

/// Opens for reading, and waits for no writer of a FIFO.
fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or_default();
    File::options().read(true).custom_flags(flags).open(path)
}

impl Files {
    /// Opens a directory or a tar; one that is compressed, or that comes through a pipe, is spooled in `staging`, `limit`
    /// bytes of it at most.
    pub(super) fn open(
        path: &Path,
        staging: &Path,
        limit: u64,
        windows: &Arc<Windows>,
        cancel: &Cancel,
    ) -> Result<Self, ImageError> {
        let name = path.display().to_string();
        let failed = |e| ImageError::io("open", path, e);
        let kind = std::fs::metadata(path).map_err(failed)?;
        if kind.is_dir() {
            return Ok(Self::Directory { path: path.to_owned(), name });
        }
        // A FIFO without a writer must not make us wait where nobody can end it; its first byte is awaited below.
        let file = open_at_once(path).map_err(failed)?;
        let _job = windows.job();
        let file = spool(file, &name, staging, limit, windows, cancel)?;
        let bad =
            |reason: String| ImageError::BadArchive { archive: name.clone(), entry: String::new(), reason };
        let parser = Parser::start().map_err(cannot_start)?;
        let found = contents(&file, MAX_ENTRIES, parser).map_err(|fault| match fault {
            Fault::Io(e) => ImageError::io("read", path, e),
            fault => bad(format!("not a whole tar: {fault}")),
        })?;
        let mut entries = HashMap::with_capacity(found.len());
        for (path, content) in found {
            // A name that is not text is not one that a document can state.
            let Some(key) = key(&path) else { continue };
            let again = entries.insert(key.clone(), content).is_some();
            if again && ONCE.contains(&key.as_str()) {
                return Err(bad(format!("it has two entries {key}")));
            }
        }
        Ok(Self::Tar { name, file: Arc::new(file), entries })
    }

    /// For errors.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Directory { name, .. } | Self::Tar { name, .. } => name,
        }
    }

    pub(super) fn bad(&self, entry: &str, reason: impl Into<String>) -> ImageError {
        ImageError::BadArchive { archive: self.name().to_owned(), entry: cut(entry), reason: reason.into() }
    }

    pub(super) fn has(&self, entry: &str) -> Result<bool, ImageError> {
        self.find(entry).map(|part| part.is_some())
    }

    /// A regular file; None: there is none of this name.
    pub(super) fn find(&self, entry: &str) -> Result<Option<Part>, ImageError> {
        let Some(mut at) = key(entry.as_bytes()) else { return Ok(None) };
        match self {
            Self::Directory { path, .. } => {
                let path = path.join(at);
                let file = match open_at_once(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(ImageError::io("open", &path, e)),
                };
                let is_file = file.metadata().map_err(|e| ImageError::io("stat", &path, e))?.is_file();
                if !is_file {
                    return Err(self.bad(entry, "it is not a regular file"));
                }
                Part::whole(file).map(Some).map_err(|e| ImageError::io("stat", &path, e))
            }
            Self::Tar { file, entries, .. } => {
                for _ in 0..=MAX_LINKS {
                    at = match entries.get(&at) {
                        None => return Ok(None),
                        Some(Content::File { offset, size }) => {
                            return Ok(Some(Part { file: Arc::clone(file), offset: *offset, size: *size }));
                        }
                        Some(Content::Symlink(target)) => {
                            let parent = at.rfind('/').map_or("", |slash| &at[..slash]);
                            let joined = [parent.as_bytes(), b"/", target].concat();
                            key(&joined).ok_or_else(|| self.bad(entry, "its link is not text"))?
                        }
                        Some(Content::HardLink(target)) => {
                            key(target).ok_or_else(|| self.bad(entry, "its link is not text"))?
                        }
                        Some(Content::Other) => return Err(self.bad(entry, "it is not a plain file")),
                    };
                }
                Err(self.bad(entry, format!("more than {MAX_LINKS} links in a row")))
            }
        }
    }

    /// Paths of a tar's entries below a directory, sorted; none of a directory of the host.
    pub(super) fn below(&self, dir: &str) -> Vec<String> {
        let Self::Tar { entries, .. } = self else { return Vec::new() };
        let prefix = format!("{dir}/");
        let mut found: Vec<String> = entries.keys().filter(|k| k.starts_with(&prefix)).cloned().collect();
        found.sort();
        found
    }

    /// A file small enough for memory.
    pub(super) fn document(&self, entry: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let Some(part) = self.find(entry)? else {
            return Err(ImageError::NotInSource { what: cut(entry), place: self.name().to_owned() });
        };
        if part.size > limit {
            return Err(self.bad(entry, format!("larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        part.reader()
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|e| ImageError::io("read", Path::new(self.name()), e))?;
        Ok(bytes)
    }
}

/// A path as the map has it: relative, without `.` and `..`.
fn key(path: &[u8]) -> Option<String> {
    let parts: Option<Vec<&str>> =
        clean(path).into_iter().map(|part| std::str::from_utf8(part).ok()).collect();
    parts.map(|parts| parts.join("/"))
}
