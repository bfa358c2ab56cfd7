//! Applies tar entries to a tree: files, links, devices, whiteouts. Owns the order of what is set and the counting.
//!
//! Bounds: entries with their headers, bytes in whole blocks (what a sparse file's ranges touch, not what they hold), and the
//! paths of directories whose times wait for the end. An entry costs a fixed number of system calls, beside those for its
//! data, its attributes and the steps of its path, which `tree` counts.

use super::entries::Entries;
use super::meta::{self, Meta};
use super::parsed::{Parsed, Parser, Source};
use super::sparse::Map;
#[cfg(any(test, fuzzing))]
use super::tar::TarReader;
use super::tar::{Entry, Kind};
use super::tree::{OpenDir, Tree, is_whiteout};
use super::{Blame, Limits, MAX_DIR_PATHS, OPAQUE};
use crate::images::error::ImageError;
use crate::images::recipe::{RECIPE, Recorder};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{self, AtFlags, Dev, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
#[cfg(any(test, fuzzing))]
use std::io::BufRead;
use std::path::Path;

/// Prefix of a whiteout, from the OCI image specification ("Representing Changes").
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout that hides all siblings below.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Prefix of the names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Allocation unit for the count of used bytes: that of every common file system.
const UNIT: u64 = 4096;
/// What an allocation takes beside its bytes, about.
const ALLOCATION: usize = 16;
/// Targets of symbolic links, in bytes over a layer: a file system takes a millisecond for each that does not fit an inode.
/// A layer of half a million links has a third of this.
const MAX_LINK_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// What an unpacked layer takes and needs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes on disk, in whole units.
    pub(crate) bytes: u64,
    /// Inodes.
    pub(crate) inodes: u64,
    /// Directories that only a child's path implied; their metadata is that of a lower layer.
    pub(crate) implied: Vec<Vec<u8>>,
}

/// What becomes of files' data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Written,
    /// Files get their size only.
    Left,
}

/// Unpacks `source` into `<staging>/fs`, reading it to its end, and writes its recipe. What it means is said by `parser`.
/// `layer` names it in errors.
pub(crate) fn unpack_parsed(
    source: impl Source,
    parser: impl Parser,
    staging: &Path,
    layer: &str,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let blame = Blame::new(layer);
    let recorder = Recorder::create(&staging.join(RECIPE))?;
    apply(Parsed::new(source, parser, recorder, blame.clone()), staging, blame, limits, Content::Written)
}

/// As `unpack_parsed`, parsing by itself.
#[cfg(any(test, fuzzing))]
pub(crate) fn unpack(
    source: impl BufRead,
    staging: &Path,
    layer: &str,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let (blame, recorder) = (Blame::new(layer), Recorder::create(&staging.join(RECIPE))?);
    let tar = TarReader::new(source, recorder, blame.clone());
    apply(tar, staging, blame, limits, Content::Written)
}

/// Unpacks `source` as `unpack` does, but for the data of its files: holes of their size stand for it. To see what a
/// layer's files should look like, by the code that made them.
pub(crate) fn skeleton(
    source: impl Source,
    parser: impl Parser,
    staging: &Path,
    layer: &str,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let blame = Blame::new(layer);
    let tar = Parsed::new(source, parser, Recorder::off(), blame.clone());
    apply(tar, staging, blame, limits, Content::Left)
}

/// Unpacks `source` without a recipe: what is never exported nor verified.
pub(crate) fn unrecorded(
    source: impl Source,
    parser: impl Parser,
    staging: &Path,
    layer: &str,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let blame = Blame::new(layer);
    let tar = Parsed::new(source, parser, Recorder::off(), blame.clone());
    apply(tar, staging, blame, limits, Content::Written)
}

fn apply(
    mut tar: impl Entries,
    staging: &Path,
    blame: Blame,
    limits: Limits,
    content: Content,
) -> Result<Unpacked, ImageError> {
    let mut apply = Apply {
        tree: Tree::open(staging, blame.clone())?,
        blame,
        limits,
        content,
        entries: 0,
        bytes: UNIT,
        inodes: 1,
        dir_times: Vec::new(),
        dir_bytes: 0,
        link_bytes: 0,
    };
    while let Some(entry) = tar.next()? {
        apply.entry(&mut tar, entry)?;
    }
    tar.drain()?;
    let recipe = tar.end()?.finish()?;
    let mut unpacked = apply.finish()?;
    unpacked.bytes += recipe.div_ceil(UNIT) * UNIT;
    Ok(unpacked)
}

/// A directory, by its path without symlinks, and its mtime.
struct DirTime {
    path: Box<[u8]>,
    mtime: (i64, u32),
}

struct Apply {
    tree: Tree,
    blame: Blame,
    limits: Limits,
    content: Content,
    entries: u64,
    bytes: u64,
    inodes: u64,
    /// Directory times are set last, as every child changes them.
    dir_times: Vec<DirTime>,
    dir_bytes: usize,
    /// Bytes of all targets of symbolic links.
    link_bytes: u64,
}

impl Apply {
    fn entry(&mut self, tar: &mut impl Entries, entry: Entry) -> Result<(), ImageError> {
        self.entries += 1 + entry.headers;
        if self.entries > self.limits.entries {
            return Err(self.blame.limit("the entries", self.limits.entries, "entries"));
        }
        let Entry { kind, path, mode, uid, gid, mtime, xattrs, headers: _ } = entry;
        let Some((parent, name)) = self.tree.parent(&path, true)? else {
            // The root's own metadata comes from the container's upper directory.
            return Ok(());
        };
        let meta = Meta { mode, uid, gid, mtime, xattrs };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&parent, name, &path, &meta);
        }
        match kind {
            Kind::File { size, sparse } => self.file(tar, &parent, name, &path, &meta, size, sparse),
            Kind::Directory => self.directory(&parent, name, &path, &meta),
            Kind::HardLink(target) => self.hard_link(&parent, name, &path, &target),
            Kind::Symlink(target) => {
                self.link_bytes += u64::try_from(target.len()).unwrap_or(u64::MAX);
                if self.link_bytes > MAX_LINK_BYTES {
                    return Err(self.blame.limit("the targets of symbolic links", MAX_LINK_BYTES, "bytes"));
                }
                if target.is_empty() || target.contains(&0) || target.len() > super::MAX_PATH {
                    return Err(self.blame.hostile(&path, "its target is not a path"));
                }
                self.node(&parent, name, &path, &meta, true, |dir, name| {
                    fs::symlinkat(&target[..], dir.fd(), name)
                })?;
                self.tree.has_link(&target);
                Ok(())
            }
            Kind::Char(major, minor) => {
                self.device(&parent, name, &path, &meta, FileType::CharacterDevice, (major, minor))
            }
            Kind::Block(major, minor) => {
                self.device(&parent, name, &path, &meta, FileType::BlockDevice, (major, minor))
            }
            Kind::Fifo => self.device(&parent, name, &path, &meta, FileType::Fifo, (0, 0)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call; the parts of one entry")]
    fn file(
        &mut self,
        tar: &mut impl Entries,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
        size: u64,
        sparse: Option<Map>,
    ) -> Result<(), ImageError> {
        let apparent = sparse.as_ref().map_or(size, |m| m.real_size);
        if apparent > self.limits.bytes {
            return Err(self.blame.limit("a file", self.limits.bytes, "bytes"));
        }
        self.count(sparse.as_ref().map_or(size.div_ceil(UNIT), |map| map.units(UNIT)).saturating_mul(UNIT))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(parent.fd(), name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {
                self.tree.clear(parent, name, path)?;
                fs::openat(parent.fd(), name, flags, Mode::RUSR | Mode::WUSR)
            }
            other => other,
        }
        .map_err(|e| self.tree.fail("create", path, e))?;
        if size > 0 {
            tar.goes_into(&parent.inside(name));
        }
        let tree = &self.tree;
        match (self.content, sparse) {
            (Content::Written, None) => {
                let mut at = 0;
                tar.data(|recorder, bytes| {
                    write_all(&fd, bytes).map_err(|e| tree.fail("write", path, e))?;
                    recorder.data(at, bytes)?;
                    at += u64::try_from(bytes.len()).unwrap_or_default();
                    Ok(())
                })?;
            }
            (Content::Written, Some(map)) => {
                let mut writer = SparseWriter { fd: &fd, ranges: map.ranges.into_iter(), at: 0, left: 0 };
                tar.data(|recorder, mut bytes| {
                    while !bytes.is_empty() {
                        let (at, length) = writer.write(bytes).map_err(|e| tree.fail("write", path, e))?;
                        recorder.data(at, &bytes[..length])?;
                        bytes = &bytes[length..];
                    }
                    Ok(())
                })?;
                fs::ftruncate(&fd, map.real_size).map_err(|e| self.tree.fail("set the size of", path, e))?;
            }
            (Content::Left, _) => {
                fs::ftruncate(&fd, apparent).map_err(|e| self.tree.fail("set the size of", path, e))?;
            }
        }
        if size > 0 {
            tar.end_file()?;
            self.tree.has_data();
        }
        let chown = parent.setgid || meta.uid != 0 || meta.gid != 0;
        meta::apply_fd(fd.as_fd(), meta, chown, &self.tree.shown(path))?;
        fs::futimens(&fd, &meta::times(meta.mtime)).map_err(|e| self.tree.fail("set times of", path, e))
    }

    fn directory(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
    ) -> Result<(), ImageError> {
        let make = |tree: &Tree| {
            fs::mkdirat(parent.fd(), name, Mode::RWXU).map_err(|e| tree.fail("make directory", path, e))
        };
        let mut opaque = false;
        match fs::mkdirat(parent.fd(), name, Mode::RWXU) {
            Ok(()) => self.count(UNIT)?,
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| self.tree.fail("look at", path, e))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = self.tree.clear(parent, name, path)?;
                    make(&self.tree)?;
                    self.count(UNIT)?;
                }
            }
            Err(e) => return Err(self.tree.fail("make directory", path, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent.fd(), name, flags, Mode::empty())
            .map_err(|e| self.tree.fail("open directory", path, e))?;
        meta::apply_fd(fd.as_fd(), meta, true, &self.tree.shown(path))?;
        if opaque {
            self.set_opaque(&fd, path)?;
        }
        self.tree.is_explicit(&parent.inside(name));
        let inside = parent.inside(name);
        match self.dir_times.last_mut() {
            // The same once more.
            Some(last) if *last.path == *inside => {
                last.mtime = meta.mtime;
                self.tree.remember(path, fd, meta.mode & 0o2000 != 0, inside);
                return Ok(());
            }
            _ => {}
        }
        self.dir_bytes += inside.len() + size_of::<DirTime>() + ALLOCATION;
        if self.dir_bytes > MAX_DIR_PATHS {
            return Err(self.blame.limit("the paths of directories", 64 << 20, "bytes"));
        }
        self.dir_times.push(DirTime { path: inside.clone().into(), mtime: meta.mtime });
        self.tree.remember(path, fd, meta.mode & 0o2000 != 0, inside);
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        target: &[u8],
    ) -> Result<(), ImageError> {
        let Some((from, from_name)) = self.tree.parent(target, false)? else {
            return Err(self.blame.hostile(path, "it is a hard link to the root"));
        };
        let same = |tree: &Tree| -> Result<bool, ImageError> {
            let stat = |dir: &OpenDir, name: &[u8]| fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
            match (stat(&from, from_name), stat(parent, name)) {
                (Ok(a), Ok(b)) => Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)),
                (Err(e), _) if e != Errno::NOENT => Err(tree.fail("look at the target of", path, e)),
                _ => Ok(false),
            }
        };
        // Without AT_SYMLINK_FOLLOW a link to a symlink links the symlink itself.
        let link = || fs::linkat(from.fd(), from_name, parent.fd(), name, AtFlags::empty());
        let made = match link() {
            Err(Errno::EXIST) if same(&self.tree)? => return Ok(()),
            Err(Errno::EXIST) => {
                self.tree.clear(parent, name, path)?;
                link()
            }
            other => other,
        };
        match made {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => {
                Err(self.blame.hostile(path, "it is a hard link to what is not in this layer"))
            }
            Err(Errno::PERM) => Err(self.blame.hostile(path, "it is a hard link to a directory")),
            Err(e) => Err(self.tree.fail("make hard link", path, e)),
        }
    }

    fn device(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), ImageError> {
        let device: Dev = fs::makedev(major, minor);
        self.node(parent, name, path, meta, false, |dir, name| {
            fs::mknodat(dir.fd(), name, kind, Mode::RUSR | Mode::WUSR, device)
        })
    }

    fn node(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
        symlink: bool,
        make: impl Fn(&OpenDir, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), ImageError> {
        self.count(0)?;
        match make(parent, name) {
            Err(Errno::EXIST) => {
                self.tree.clear(parent, name, path)?;
                make(parent, name)
            }
            other => other,
        }
        .map_err(|e| self.tree.fail("create", path, e))?;
        meta::apply_at(parent.fd(), name, meta, symlink, &self.tree.shown(path))
    }

    fn whiteout(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
    ) -> Result<(), ImageError> {
        if name == OPAQUE_WHITEOUT {
            return fs::fsetxattr(parent.fd(), OPAQUE, b"y", XattrFlags::empty())
                .map_err(|e| self.tree.fail("make opaque the directory of", path, e));
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.blame.hostile(path, "it is a whiteout of no name"));
        }
        match fs::statat(parent.fd(), hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                let owner =
                    Meta { mode: 0, mtime: meta.mtime, uid: meta.uid, gid: meta.gid, xattrs: Vec::new() };
                self.device(parent, hidden, path, &owner, FileType::CharacterDevice, (0, 0))
            }
            // The layer has the name itself: it hides a file below anyhow, and a directory when it is opaque.
            Ok(stat)
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && !is_whiteout(&stat) =>
            {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = fs::openat(parent.fd(), hidden, flags, Mode::empty())
                    .map_err(|e| self.tree.fail("open directory", path, e))?;
                self.set_opaque(&fd, path)
            }
            Ok(_) => Ok(()),
            Err(e) => Err(self.tree.fail("look at", path, e)),
        }
    }

    fn set_opaque(&self, fd: &OwnedFd, path: &[u8]) -> Result<(), ImageError> {
        fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())
            .map_err(|e| self.tree.fail("make opaque", path, e))
    }

    fn count(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.inodes += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(self.blame.limit("the content", self.limits.bytes, "bytes"));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked, ImageError> {
        for DirTime { path, mtime } in std::mem::take(&mut self.dir_times) {
            match self.tree.open_last(&path) {
                Ok(fd) => fs::futimens(&fd, &meta::times(mtime))
                    .map_err(|e| self.tree.fail("set times of directory", &path, e))?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(self.tree.fail("set times of directory", &path, e)),
            }
        }
        let implied = self.tree.finish()?;
        let extra = u64::try_from(implied.len()).unwrap_or_default();
        Ok(Unpacked { bytes: self.bytes + extra * UNIT, inodes: self.inodes + extra, implied })
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Puts the stored bytes of a sparse file where its map says.
struct SparseWriter<'f> {
    fd: &'f OwnedFd,
    ranges: std::vec::IntoIter<(u64, u64)>,
    at: u64,
    left: u64,
}

impl SparseWriter<'_> {
    /// Writes a part of `bytes`, which are not empty; says where, and how much.
    fn write(&mut self, bytes: &[u8]) -> Result<(u64, usize), Errno> {
        while self.left == 0 {
            // The map was checked to add up to the stored bytes.
            let Some((offset, length)) = self.ranges.next() else { return Err(Errno::INVAL) };
            (self.at, self.left) = (offset, length);
        }
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let written = rustix::io::pwrite(self.fd, &bytes[..take], self.at)?;
        let (at, step) = (self.at, u64::try_from(written).unwrap_or_default());
        self.at += step;
        self.left -= step;
        Ok((at, written))
    }
}
