//! Reads a bbolt database (go.etcd.io/bbolt, page format version 2) whose owner may be writing: takes no lock, and
//! [`Bolt::is_current`] says whether the data read is consistent.
//!
//! The file consists of pages. Pages 0 and 1 are meta pages; the valid one with the higher transaction id applies and
//! names the root bucket. A writer never overwrites pages that the current transaction reaches, so while the current
//! one has not changed, everything read was consistent.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// First field of a meta page.
const MAGIC: u32 = 0xed0c_daed;
/// Its format version.
const VERSION: u32 = 2;
/// Flags of pages.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// Flag of a leaf's element: a bucket.
const BUCKET: u32 = 1;
/// Bytes before the elements of a page.
const HEADER: usize = 16;
/// Bytes of an element's descriptor.
const ELEMENT: usize = 16;
/// Levels of a tree: a page holds at least two children, and a file at most 2^32 pages.
const MAX_DEPTH: usize = 32;
/// Limit of keys of one bucket. A node has some hundred images.
const MAX_KEYS: usize = 1 << 18;
/// Limit of bytes of one page with its overflow: a value, and containerd's are small.
const MAX_PAGE: u64 = 64 << 20;
/// Limit of bytes of all pages read, including repeated ones: a database of ten thousand images has about 50 MiB. All
/// branches of a hostile one may lead to the same pages.
const MAX_READ: u64 = 1 << 30;

/// Why a database could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Corrupt(&'static str),
}

/// An open database as of one transaction.
#[derive(Debug)]
pub(super) struct Bolt {
    file: File,
    page_size: u64,
    root: u64,
    transaction: u64,
    /// Of [`MAX_READ`].
    read: Cell<u64>,
}

/// A value of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Bucket(Bucket),
}

/// A bucket: its own pages, or one page within its parent's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bucket {
    Paged(u64),
    Inline(Vec<u8>),
}

struct Meta {
    page_size: u64,
    root: u64,
    transaction: u64,
}

impl Bolt {
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let file = File::open(path)?;
        let Meta { page_size, root, transaction } = newest(&file)?;
        Ok(Self { file, page_size, root, transaction, read: Cell::new(0) })
    }

    /// Whether no transaction has ended since the database was opened.
    pub(super) fn is_current(&self) -> Result<bool, Fault> {
        Ok(newest(&self.file)?.transaction == self.transaction)
    }

    pub(super) fn root(&self) -> Bucket {
        Bucket::Paged(self.root)
    }

    /// The bucket of this name within another; None: no such bucket.
    pub(super) fn bucket(&self, of: &Bucket, name: &[u8]) -> Result<Option<Bucket>, Fault> {
        Ok(self.entries(of)?.into_iter().find_map(|(key, value)| match value {
            Value::Bucket(bucket) if key == name => Some(bucket),
            _ => None,
        }))
    }

    /// All keys of a bucket with their values, in order.
    pub(super) fn entries(&self, of: &Bucket) -> Result<Vec<(Vec<u8>, Value)>, Fault> {
        let mut found = Vec::new();
        match of {
            Bucket::Inline(page) => leaf(page, &mut found)?,
            Bucket::Paged(page) => self.walk(*page, &mut found)?,
        }
        Ok(found)
    }

    /// The elements of all leaves below a page, in order.
    fn walk(&self, root: u64, found: &mut Vec<(Vec<u8>, Value)>) -> Result<(), Fault> {
        let mut left = vec![(root, 0)];
        while let Some((page, depth)) = left.pop() {
            if depth > MAX_DEPTH {
                return Err(Fault::Corrupt("a tree without end"));
            }
            let page = self.page(page)?;
            match flags(&page)? {
                f if f & LEAF != 0 => leaf(&page, found)?,
                f if f & BRANCH != 0 => {
                    for index in (0..count(&page)?).rev() {
                        left.push((u64_at(&page, HEADER + index * ELEMENT + 8)?, depth + 1));
                    }
                }
                _ => return Err(Fault::Corrupt("a page that is neither branch nor leaf")),
            }
        }
        Ok(())
    }

    /// A page with its overflow.
    fn page(&self, id: u64) -> Result<Vec<u8>, Fault> {
        let offset = id.checked_mul(self.page_size).ok_or(Fault::Corrupt("a page beyond the file"))?;
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, offset)?;
        if u64_at(&header, 0)? != id {
            return Err(Fault::Corrupt("a page that says it is another"));
        }
        let pages = 1 + u64::from(u32_at(&header, 12)?);
        let length = pages.checked_mul(self.page_size).filter(|length| *length <= MAX_PAGE);
        let length = length.and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or(Fault::Corrupt("a page that is too large"))?;
        self.read.set(self.read.get().saturating_add(u64::try_from(length).unwrap_or(u64::MAX)));
        if self.read.get() > MAX_READ {
            return Err(Fault::Corrupt("more pages than any node has"));
        }
        let mut page = vec![0; length];
        self.file.read_exact_at(&mut page, offset)?;
        Ok(page)
    }
}

/// The elements of a leaf.
fn leaf(page: &[u8], found: &mut Vec<(Vec<u8>, Value)>) -> Result<(), Fault> {
    if flags(page)? & LEAF == 0 {
        return Err(Fault::Corrupt("a page that should be a leaf"));
    }
    // Elements do not overlap, so that what is copied of a page is no more than the page.
    let mut left = page.len();
    for index in 0..count(page)? {
        let at = HEADER + index * ELEMENT;
        let field = |offset: usize| -> Result<usize, Fault> {
            usize::try_from(u32_at(page, at + offset)?)
                .map_err(|_| Fault::Corrupt("an element beyond its page"))
        };
        let (position, key_size, value_size) = (at + field(4)?, field(8)?, field(12)?);
        let bytes = |from: usize, size: usize| -> Result<&[u8], Fault> {
            let end = from.checked_add(size).ok_or(Fault::Corrupt("an element beyond its page"))?;
            page.get(from..end).ok_or(Fault::Corrupt("an element beyond its page"))
        };
        let (key, value) = (bytes(position, key_size)?, bytes(position + key_size, value_size)?);
        left = left
            .checked_sub(key.len() + value.len())
            .ok_or(Fault::Corrupt("elements that are larger than their page"))?;
        let value = if u32_at(page, at)? & BUCKET == 0 {
            Value::Bytes(value.to_vec())
        } else {
            match u64_at(value, 0)? {
                0 => Value::Bucket(Bucket::Inline(value.get(HEADER..).unwrap_or_default().to_vec())),
                root => Value::Bucket(Bucket::Paged(root)),
            }
        };
        if found.len() == MAX_KEYS {
            return Err(Fault::Corrupt("more keys than any node has"));
        }
        found.push((key.to_vec(), value));
    }
    Ok(())
}

/// The meta page that applies. Page 0 gives the position of page 1; if it is damaged, the usual sizes are tried.
fn newest(file: &File) -> Result<Meta, Fault> {
    let read = |offset: u64| -> Option<Meta> {
        let mut page = [0; HEADER + 64];
        file.read_exact_at(&mut page, offset).ok()?;
        meta(&page)
    };
    let first = read(0);
    let sizes = match &first {
        Some(meta) => vec![meta.page_size],
        None => (10..=16).map(|bits| 1 << bits).collect(),
    };
    let second = sizes.into_iter().find_map(|size| read(size).filter(|meta| meta.page_size == size));
    let of_both = first.into_iter().chain(second).max_by_key(|meta| meta.transaction);
    of_both.ok_or(Fault::Corrupt("no valid meta page"))
}

fn meta(page: &[u8]) -> Option<Meta> {
    let body = page.get(HEADER..)?;
    let sum = checksum(body.get(..56)?);
    let page_size = u64::from(u32_at(body, 8).ok()?);
    let valid = u32_at(body, 0).ok()? == MAGIC
        && u32_at(body, 4).ok()? == VERSION
        && u64_at(body, 56).ok()? == sum
        && (512..=1 << 20).contains(&page_size);
    valid.then_some(Meta { page_size, root: u64_at(body, 16).ok()?, transaction: u64_at(body, 48).ok()? })
}

/// FNV-1a.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn flags(page: &[u8]) -> Result<u16, Fault> {
    array(page, 8).map(u16::from_ne_bytes)
}

fn count(page: &[u8]) -> Result<usize, Fault> {
    array(page, 10).map(|bytes| usize::from(u16::from_ne_bytes(bytes)))
}

// bbolt maps the file into memory, so numbers have the machine's byte order.
fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Fault> {
    array(bytes, at).map(u64::from_ne_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Fault> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    field.ok_or(Fault::Corrupt("a page that is too short"))
}
