//! Compares two trees of files by names and metadata, directory by directory. Reads no file's data and follows no
//! symlink.

use super::check::{finding, stopped};
use super::found::{Damage, Finding};
use crate::images::error::ImageError;
use crate::images::unpack::is_whiteout;
use rustix::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Findings reported per layer; more add nothing.
const MAX_FINDINGS: usize = 64;

/// A tree, opened.
struct Tree<'p> {
    root: OwnedFd,
    shown: &'p Path,
}

/// One directory of it.
struct Directory<'p> {
    fd: OwnedFd,
    shown: &'p Path,
}

impl<'p> Tree<'p> {
    fn open(path: &'p Path) -> Result<Self, ImageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root =
            fs::open(path, flags, Mode::empty()).map_err(|e| ImageError::io("open directory", path, e))?;
        Ok(Self { root, shown: path })
    }

    /// Opens a directory by its path; an empty one is the root.
    fn directory(&self, path: &[u8]) -> Result<Directory<'p>, ImageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = if path.is_empty() { b"." } else { path };
        loop {
            match fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => {
                    let fd = other.map_err(|e| ImageError::io("open a directory of", self.shown, e))?;
                    return Ok(Directory { fd, shown: self.shown });
                }
            }
        }
    }
}

impl Directory<'_> {
    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> ImageError {
        let shown = self.shown.to_owned();
        move |e| ImageError::io(operation, &shown, e)
    }

    fn names(&self) -> Result<BTreeSet<CString>, ImageError> {
        let failed = self.failed("read a directory of");
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&self.fd).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.insert(entry.file_name().to_owned());
            }
        }
        Ok(names)
    }

    fn stat(&self, name: &CString) -> Result<Stat, ImageError> {
        fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("look at a file of"))
    }

    fn target(&self, name: &CString) -> Result<CString, ImageError> {
        fs::readlinkat(&self.fd, name, Vec::new()).map_err(self.failed("read a symbolic link of"))
    }

    /// Extended attributes of an entry, or of the directory itself.
    fn attributes(&self, name: Option<&CString>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ImageError> {
        let failed = self.failed("read extended attributes of");
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.map_or(b".", |name| name.to_bytes()));
        let length = match fs::llistxattr_query(&path[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(e) => return Err(failed(e)),
        };
        let mut attributes = BTreeMap::new();
        if length == 0 {
            return Ok(attributes);
        }
        let mut list = vec![0u8; length];
        let length = fs::llistxattr(&path[..], &mut list[..]).map_err(&failed)?;
        for name in list[..length].split(|b| *b == 0).filter(|name| !name.is_empty() && !hosts(name)) {
            let length = fs::lgetxattr_query(&path[..], name).map_err(&failed)?;
            let mut value = vec![0u8; length];
            if length > 0 {
                fs::lgetxattr(&path[..], name, &mut value[..]).map_err(&failed)?;
            }
            attributes.insert(name.to_vec(), value);
        }
        Ok(attributes)
    }
}

/// Attributes that the host gives to files by itself: labels and measurements.
fn hosts(name: &[u8]) -> bool {
    matches!(name, b"security.selinux" | b"security.ima" | b"security.evm" | b"security.SMACK64")
}

fn kind(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        _ if is_whiteout(stat) => "a whiteout",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::Unknown => "something unknown",
    }
}

/// Differences of `actual` from `expected`, ignoring times of the root and of `implied` directories, which are those of
/// the unpacking.
pub(super) fn trees(
    expected: &Path,
    actual: &Path,
    implied: &[Vec<u8>],
    stop: &AtomicBool,
) -> Result<Vec<Finding>, ImageError> {
    let (expected, actual) = (Tree::open(expected)?, Tree::open(actual)?);
    let implied: HashSet<&[u8]> = implied.iter().map(Vec::as_slice).collect();
    let mut comparison = Comparison { findings: Vec::new(), links: HashMap::new() };
    let mut directories: Vec<Vec<u8>> = vec![Vec::new()];
    let (a, b) = (expected.directory(b"")?, actual.directory(b"")?);
    let stat = |d: &Directory<'_>| fs::fstat(&d.fd).map_err(d.failed("look at"));
    comparison.metadata(b"/", (&stat(&a)?, &stat(&b)?), true);
    comparison.attributes(b"/", &a.attributes(None)?, &b.attributes(None)?);
    while let Some(path) = directories.pop() {
        if stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let (a, b) = (expected.directory(&path)?, actual.directory(&path)?);
        let mut extra = b.names()?;
        for name in a.names()? {
            let inside = if path.is_empty() {
                name.to_bytes().to_vec()
            } else {
                [&path[..], b"/", name.to_bytes()].concat()
            };
            if !extra.remove(&name) {
                comparison.add(&inside, Damage::Missing);
                continue;
            }
            let (x, y) = (a.stat(&name)?, b.stat(&name)?);
            if kind(&x) != kind(&y) {
                comparison.add(&inside, Damage::Kind { expected: kind(&x), found: kind(&y) });
                continue;
            }
            comparison.metadata(&inside, (&x, &y), implied.contains(&inside[..]));
            comparison.attributes(&inside, &a.attributes(Some(&name))?, &b.attributes(Some(&name))?);
            match FileType::from_raw_mode(x.st_mode) {
                FileType::Directory => directories.push(inside),
                FileType::Symlink if a.target(&name)? != b.target(&name)? => {
                    comparison.add(&inside, Damage::Target);
                }
                _ => {}
            }
        }
        for name in extra {
            let inside = [&path[..], if path.is_empty() { b"" } else { b"/" }, name.to_bytes()].concat();
            comparison.add(&inside, Damage::Extra);
        }
        if comparison.findings.len() >= MAX_FINDINGS {
            break;
        }
    }
    Ok(comparison.findings)
}

struct Comparison {
    findings: Vec<Finding>,
    /// Inodes with several names: the expected one's, and the found one.
    links: HashMap<u64, u64>,
}

impl Comparison {
    fn add(&mut self, path: &[u8], damage: Damage) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding(path, damage));
        }
    }

    fn metadata(&mut self, path: &[u8], (x, y): (&Stat, &Stat), any_time: bool) {
        let mode = |s: &Stat| s.st_mode & 0o7777;
        if mode(x) != mode(y) {
            self.add(path, Damage::Mode { expected: mode(x), found: mode(y) });
        }
        let owner = |s: &Stat| (s.st_uid, s.st_gid);
        if owner(x) != owner(y) {
            self.add(path, Damage::Owner { expected: owner(x), found: owner(y) });
        }
        let time = |s: &Stat| (s.st_mtime, s.st_mtime_nsec);
        if !any_time && time(x) != time(y) {
            self.add(path, Damage::Time);
        }
        let kind = FileType::from_raw_mode(x.st_mode);
        if kind == FileType::RegularFile && x.st_size != y.st_size {
            let size = |s: &Stat| u64::try_from(s.st_size).unwrap_or_default();
            self.add(path, Damage::Size { expected: size(x), found: size(y) });
        }
        if x.st_rdev != y.st_rdev {
            self.add(path, Damage::Device);
        }
        if kind != FileType::Directory {
            let same = x.st_nlink == y.st_nlink
                && (x.st_nlink == 1 || *self.links.entry(x.st_ino).or_insert(y.st_ino) == y.st_ino);
            if !same {
                self.add(path, Damage::Links);
            }
        }
    }

    fn attributes(&mut self, path: &[u8], x: &BTreeMap<Vec<u8>, Vec<u8>>, y: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let names: BTreeSet<&Vec<u8>> = x.keys().chain(y.keys()).collect();
        for name in names.into_iter().filter(|name| x.get(*name) != y.get(*name)) {
            self.add(path, Damage::Attribute { name: String::from_utf8_lossy(name).into_owned() });
        }
    }
}

/// Inodes of a tree, its root included.
pub(super) fn count(path: &Path) -> Result<u64, ImageError> {
    let tree = Tree::open(path)?;
    let (mut count, mut linked, mut directories) = (1, HashSet::new(), vec![Vec::new()]);
    while let Some(path) = directories.pop() {
        let directory = tree.directory(&path)?;
        for name in directory.names()? {
            let stat = directory.stat(&name)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                directories.push([&path[..], slash, name.to_bytes()].concat());
            } else if stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            count += 1;
        }
    }
    Ok(count)
}
