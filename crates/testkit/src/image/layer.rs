//! Layers: tar entries as a test states them, hostile ones included.
//!
//! Owns the tar and PAX encoding of [`Entry`] and the compression of the whole. It never sorts, corrects or completes
//! its input.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result};
use tar::{EntryType, Header};

use super::sha256;

/// One tar entry. Names are written as given: absolute, with `..`, anything.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    target: Vec<u8>,
    device: (u32, u32),
    data: Arc<[u8]>,
    pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: impl AsRef<[u8]>, kind: EntryType, mode: u32) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            target: Vec::new(),
            device: (0, 0),
            data: Arc::from([]),
            pax: Vec::new(),
        }
    }

    /// A regular file, mode 0644.
    pub fn file(path: impl AsRef<[u8]>, data: impl Into<Arc<[u8]>>) -> Self {
        Self { data: data.into(), ..Self::new(path, EntryType::Regular, 0o644) }
    }

    /// A directory, mode 0755.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, EntryType::Directory, 0o755)
    }

    /// A symbolic link with any target.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { target: target.as_ref().to_vec(), ..Self::new(path, EntryType::Symlink, 0o777) }
    }

    /// A hard link to an earlier entry, or to anything else.
    pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { target: target.as_ref().to_vec(), ..Self::new(path, EntryType::Link, 0o755) }
    }

    /// A character device.
    pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, EntryType::Char, 0o666) }
    }

    /// A block device.
    pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, EntryType::Block, 0o660) }
    }

    /// A named pipe.
    pub fn fifo(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, EntryType::Fifo, 0o644)
    }

    /// A whiteout: `dir/name` of the lower layers is hidden (OCI image spec, layer.md).
    #[must_use]
    pub fn whiteout(path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(d, n)| (d, n));
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        Self::file(format!("{prefix}.wh.{name}"), [])
    }

    /// An opaque whiteout: everything that lower layers have in `dir` is hidden.
    #[must_use]
    pub fn opaque(dir: &str) -> Self {
        Self::file(format!("{}/.wh..wh..opq", dir.trim_end_matches('/')), [])
    }

    /// Permission bits, with setuid, setgid and sticky.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Numeric owner and group.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// Modification time, seconds since 1970.
    #[must_use]
    pub fn mtime(self, seconds: u64) -> Self {
        Self { mtime: seconds, ..self }
    }

    /// An extended attribute, as the PAX record `SCHILY.xattr.<name>`.
    #[must_use]
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Any PAX record.
    #[must_use]
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }

    fn append_to(&self, tar: &mut tar::Builder<Vec<u8>>) -> Result<()> {
        let mut pax = self.pax.clone();
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_size(self.data.len() as u64);
        if matches!(self.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(self.device.0)?;
            header.set_device_minor(self.device.1)?;
        }
        // The fields are filled by hand: the tar crate rightly refuses `..` and absolute names.
        let old = header.as_old_mut();
        if !fill(&mut old.name, &self.path) {
            pax.push(("path".to_owned(), self.path.clone()));
        }
        if !fill(&mut old.linkname, &self.target) {
            pax.push(("linkpath".to_owned(), self.target.clone()));
        }
        header.set_cksum();
        if !pax.is_empty() {
            tar.append_pax_extensions(pax.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        tar.append(&header, &*self.data)?;
        Ok(())
    }
}

/// Copies `value` into a tar field as far as it fits; false if it was cut.
fn fill(field: &mut [u8; 100], value: &[u8]) -> bool {
    let n = value.len().min(field.len());
    field.fill(0);
    field[..n].copy_from_slice(&value[..n]);
    n == value.len()
}

/// How a layer's tar travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one member.
    Gzip,
    /// zstd, one frame. Only OCI manifests have a media type for it.
    Zstd,
}

/// A finished layer. Clones share the bytes.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As it is stored in a registry.
    pub blob: Arc<[u8]>,
    /// Digest of [`Self::blob`].
    pub digest: String,
    /// Digest of the tar before compression.
    pub diff_id: String,
    /// The kind of the blob.
    pub compression: Compression,
}

/// Collects entries in order.
#[derive(Debug, Default, Clone)]
pub struct LayerBuilder {
    entries: Vec<Entry>,
}

impl LayerBuilder {
    /// A layer without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one entry after the others.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    /// Adds several.
    #[must_use]
    pub fn entries(mut self, entries: impl IntoIterator<Item = Entry>) -> Self {
        self.entries.extend(entries);
        self
    }

    /// The tar, uncompressed.
    ///
    /// # Errors
    /// Fails when a number does not fit its tar field.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            let name = || format!("tar entry {:?}", String::from_utf8_lossy(&entry.path));
            entry.append_to(&mut tar).with_context(name)?;
        }
        tar.into_inner().context("close tar")
    }

    /// Encodes and compresses.
    ///
    /// # Errors
    /// As [`Self::tar`].
    pub fn build(&self, compression: Compression) -> Result<Layer> {
        Layer::from_tar(&self.tar()?, compression)
    }
}

impl Layer {
    /// A layer of bytes that claim to be a tar: for broken archives.
    ///
    /// # Errors
    /// Fails when the compressor does.
    pub fn from_tar(tar: &[u8], compression: Compression) -> Result<Self> {
        let blob = match compression {
            Compression::None => tar.to_vec(),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(tar)?;
                gzip.finish()?
            }
            Compression::Zstd => zstd::encode_all(tar, 1)?,
        };
        Ok(Self { digest: sha256(&blob), diff_id: sha256(tar), blob: blob.into(), compression })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap();
        entries.map(|e| String::from_utf8_lossy(&e.unwrap().path_bytes()).into_owned()).collect()
    }

    #[test]
    fn keeps_hostile_and_long_names() {
        let long = "d/".repeat(80) + "end";
        let tar = LayerBuilder::new()
            .entry(Entry::file("../../etc/passwd", *b"x"))
            .entry(Entry::file("/abs", *b""))
            .entry(Entry::file(&long, *b""))
            .entry(Entry::whiteout("a/b"))
            .entry(Entry::opaque("a"))
            .tar()
            .unwrap();
        assert_eq!(names(&tar), ["../../etc/passwd", "/abs", &long, "a/.wh.b", "a/.wh..wh..opq"]);
    }

    #[test]
    fn xattrs_become_pax_records() {
        let tar = LayerBuilder::new().entry(Entry::file("f", *b"").xattr("user.k", b"v\0w")).tar().unwrap();
        let mut archive = tar::Archive::new(&*tar);
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let records: Vec<_> = entry
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|r| r.map(|r| (r.key().unwrap().to_owned(), r.value_bytes().to_vec())).unwrap())
            .collect();
        assert_eq!(records, [("SCHILY.xattr.user.k".to_owned(), b"v\0w".to_vec())]);
    }

    #[test]
    fn compression_keeps_the_diff_id() {
        let layer = LayerBuilder::new().entry(Entry::dir("d"));
        let [gzip, zstd] = [Compression::Gzip, Compression::Zstd].map(|c| layer.build(c).unwrap());
        assert_eq!(gzip.diff_id, zstd.diff_id);
        assert_ne!(gzip.digest, zstd.digest);
        assert_eq!(zstd::decode_all(&*zstd.blob).unwrap(), layer.tar().unwrap());
    }
}
