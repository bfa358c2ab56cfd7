//! Turns the tar stream of one layer into a directory that overlayfs can use as a lower layer.
//!
//! Owns the reading of tar (`header`, `tar`, `contents`), its half in a process without rights (`parse`, `wire`, `parsed`), and
//! its application beneath one root (`apply`, `tree`). The input is hostile:
//! every parent is resolved by `openat2(RESOLVE_IN_ROOT)`, the last component is never followed, and names, records, entries
//! and bytes have caps.
//!
//! Bounds of one layer: the tar's bytes and entries (`Limits`; headers that precede an entry count as entries), the blocks
//! that files take on disk (holes of sparse files excepted), the components of paths that are walked (`MAX_STEPS`), and the
//! paths that are kept in memory. What is not bounded by these is linear in the bytes of the tar.
//!
//! Never knows of registries, digests or the index.

mod apply;
mod contents;
mod entries;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod header;
mod meta;
mod parse;
mod parsed;
mod pax;
mod sparse;
mod tar;
mod tree;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use apply::unpack;
pub(crate) use apply::{Unpacked, skeleton, unpack_parsed, unrecorded};
pub(crate) use contents::{Content, Fault, contents};
pub(crate) use meta::{Meta, OPAQUE, apply_dir, read_dir};
pub(crate) use parse::parse;
pub(crate) use parsed::{Parser, Source};
pub(crate) use tree::is_whiteout;
pub(crate) use wire::{PIECE, plain, where_it_is};

use super::error::ImageError;

/// Caps of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Unpacked bytes, tar framing included.
    pub(crate) bytes: u64,
    /// Entries.
    pub(crate) entries: u64,
}

/// Longest path, bytes: PATH_MAX with its NUL. Longer ones could not be opened by their own name.
pub(crate) const MAX_PATH: usize = 4095;
/// Longest component, bytes: NAME_MAX.
const MAX_COMPONENT: usize = 255;
/// One PAX header: Go's archive/tar refuses more than 1 MiB too.
const MAX_PAX: u64 = 1 << 20;
/// Headers (PAX, global, long names) before one entry: the formats know four kinds, and nobody writes one of them twice.
const MAX_HEADERS: u64 = 8;
/// Extended attributes of one entry: images have one or two, and file systems that take a list of them walk it.
const MAX_XATTRS: usize = 1024;
/// Names of an entry's extended attributes, bytes with their NULs: the kernel's XATTR_LIST_MAX.
const MAX_XATTR_NAMES: usize = 64 << 10;
/// One value of an extended attribute, bytes: the kernel's XATTR_SIZE_MAX.
const MAX_XATTR_VALUE: usize = 64 << 10;
/// Components of paths that the kernel may walk for one layer, each some 30 ns: half a minute. Four million entries with
/// ten components each take 40 million; a path through 40 links to paths of 2000 components each takes 80,000 alone.
/// Unit tests reach it in a moment.
const MAX_STEPS: u64 = if cfg!(test) { 1 << 24 } else { 1 << 30 };
/// One GNU long name record; a path may have MAX_PATH, the rest is slack for padding.
const MAX_LONG_NAME: u64 = 8 << 10;
/// Data ranges of a sparse file; the map is kept in memory.
const MAX_SPARSE: usize = 64 << 10;
/// Paths of directories whose times are set at the end are kept in memory: this many bytes.
const MAX_DIR_PATHS: usize = 64 << 20;
/// Paths of implied directories go into the index: this many bytes.
const MAX_IMPLIED_PATHS: usize = 1 << 20;
/// Paths of what the layer itself replaces are kept in memory until its end: this many bytes.
const MAX_REPLACED_PATHS: usize = 64 << 20;

/// Splits a path into its components: no empty ones, no `.`; `..` takes back the one before, and stops at the root.
pub(crate) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}

/// Makes this layer's errors.
#[derive(Debug, Clone)]
pub(crate) struct Blame {
    layer: String,
}

impl Blame {
    pub(crate) fn new(layer: &str) -> Self {
        Self { layer: layer.to_owned() }
    }

    pub(crate) fn corrupt(&self, reason: impl Into<String>) -> ImageError {
        ImageError::CorruptLayer { layer: self.layer.clone(), reason: reason.into() }
    }

    pub(crate) fn hostile(&self, entry: &[u8], reason: &'static str) -> ImageError {
        let entry = super::error::cut(&String::from_utf8_lossy(entry));
        ImageError::HostileEntry { layer: self.layer.clone(), entry, reason }
    }

    pub(crate) fn limit(&self, what: &str, limit: u64, unit: &'static str) -> ImageError {
        ImageError::Limit { what: format!("{what} of layer {}", self.layer), limit, unit }
    }

    /// An error of the stream: the one it carries, or corruption.
    pub(crate) fn stream(&self, error: &std::io::Error) -> ImageError {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ImageError>())
            .cloned()
            .unwrap_or_else(|| self.corrupt(error.to_string()))
    }
}
