//! Resolves and creates directories beneath one root. The only place that turns a layer's path into a descriptor.
//!
//! Bounds: path components are counted before they are walked (`MAX_STEPS`), those behind symlinks by the longest
//! target in the layer; kept paths are limited.

use super::{
    Blame, MAX_COMPONENT, MAX_IMPLIED_PATHS, MAX_PATH, MAX_REPLACED_PATHS, MAX_STEPS, OPAQUE, clean,
};
use crate::images::error::ImageError;
use crate::images::recipe::{REPLACED, write_replaced};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Dangling symlinks followed while parents are created: the kernel's own MAXSYMLINKS.
const MAX_LINKS: usize = 40;
/// Cost of a system call for a single component, in components that the kernel walks by itself.
const CALL_STEPS: u64 = 32;
/// Tries of an openat2 that raced with a rename somewhere on the system; each is a few microseconds.
const MAX_RACES: usize = 64;

/// An open directory of the layer.
#[derive(Debug)]
pub(super) struct OpenDir {
    fd: OwnedFd,
    /// New entries take its group, so the owner must be set even if it is root.
    pub(super) setgid: bool,
    /// Its path beneath the root, without symlinks. Right as long as the descriptor is kept: what moves a directory
    /// forgets the descriptors.
    inside: Vec<u8>,
}

impl OpenDir {
    /// The path of an entry beneath the root, without symlinks before the entry itself.
    pub(super) fn inside(&self, name: &[u8]) -> Vec<u8> {
        if self.inside.is_empty() { name.to_vec() } else { [&self.inside[..], b"/", name].concat() }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An open parent and the name of an entry in it.
pub(super) type Place<'p> = (Rc<OpenDir>, &'p [u8]);

/// The tree of one layer during unpacking.
#[derive(Debug)]
pub(super) struct Tree {
    root: Rc<OpenDir>,
    /// The root as the kernel names it, to cut real paths.
    real_root: PathBuf,
    shown_root: PathBuf,
    /// Destination of files that a later entry replaces, since the recipe still refers to them.
    replaced_dir: OwnedFd,
    replaced_path: PathBuf,
    /// The replaced ones: the number of files with data so far, and the path.
    replaced: Vec<(u64, Vec<u8>)>,
    replaced_bytes: usize,
    files: u64,
    /// The last parent used: entries of a directory are consecutive.
    cached: Option<(Vec<u8>, Rc<OpenDir>)>,
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    /// Components walked.
    steps: u64,
    /// Components of the longest target of a symlink.
    longest_link: u64,
    blame: Blame,
}

/// How a path without symlinks is opened.
const DIRECT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// An upper bound of a path's components.
fn components(path: &[u8]) -> u64 {
    1 + u64::try_from(path.iter().filter(|b| **b == b'/').count()).unwrap_or(u64::MAX - 1)
}

fn opened(fd: OwnedFd, inside: Vec<u8>) -> Result<Rc<OpenDir>, Errno> {
    let setgid = fs::fstat(&fd)?.st_mode & 0o2000 != 0;
    Ok(Rc::new(OpenDir { fd, setgid, inside }))
}

/// Whether a node is an overlay whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn open_dir(dir: BorrowedFd<'_>, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for _ in 0..MAX_RACES {
        match fs::openat2(dir, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

impl Tree {
    /// Opens `<staging>/fs` and `<staging>/replaced`, which must exist.
    pub(super) fn open(staging: &Path, blame: Blame) -> Result<Self, ImageError> {
        let open = |path: &Path| {
            fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| ImageError::io("open", path, e))
        };
        let shown_root = staging.join("fs");
        let fd = open(&shown_root)?;
        let real_root =
            real_path(&fd).map_err(|e| ImageError::io("read the real path of", &shown_root, e))?;
        let replaced_path = staging.join(REPLACED);
        Ok(Self {
            root: Rc::new(OpenDir { fd, setgid: false, inside: Vec::new() }),
            real_root,
            shown_root,
            replaced_dir: open(&replaced_path)?,
            replaced_path,
            replaced: Vec::new(),
            replaced_bytes: 0,
            files: 0,
            cached: None,
            implied: BTreeSet::new(),
            implied_bytes: 0,
            steps: 0,
            longest_link: 0,
            blame,
        })
    }

    /// The path to name in an error of the host.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        self.shown_root.join(OsStr::from_bytes(path))
    }

    /// Writes down what was replaced; returns the directories that only a child's path implied, sorted.
    pub(super) fn finish(self) -> Result<Vec<Vec<u8>>, ImageError> {
        if !self.replaced.is_empty() {
            write_replaced(&self.replaced_path, &self.replaced)?;
        }
        Ok(self.implied.into_iter().collect())
    }

    /// Counts a file with data, in the order of the recipe.
    pub(super) fn has_data(&mut self) {
        self.files += 1;
    }

    /// Splits an entry's path into its opened parent (created if missing and `make`), and its name. None: the path is
    /// the root itself.
    pub(super) fn parent<'p>(&mut self, path: &'p [u8], make: bool) -> Result<Option<Place<'p>>, ImageError> {
        if path.len() > MAX_PATH {
            return Err(self.blame.limit("a path", 4095, "bytes"));
        }
        if path.contains(&0) {
            return Err(self.blame.hostile(path, "its path has a NUL"));
        }
        let mut parts = clean(path);
        let Some(name) = parts.pop() else { return Ok(None) };
        if name.len() > MAX_COMPONENT || parts.iter().any(|p| p.len() > MAX_COMPONENT) {
            return Err(self.blame.hostile(path, "a name in its path is longer than 255 bytes"));
        }
        if parts.is_empty() {
            return Ok(Some((Rc::clone(&self.root), name)));
        }
        let directory = parts.join(&b'/');
        if let Some((known, dir)) = &self.cached
            && *known == directory
        {
            return Ok(Some((Rc::clone(dir), name)));
        }
        let dir = match self.enter(&directory)? {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) if make => self.make_dirs(&parts, 0, path)?,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(self.blame.hostile(path, "its directory is not in this layer"));
            }
            Err(e) => return Err(self.fail("open the directory of", path, e)),
        };
        self.cached = Some((directory, Rc::clone(&dir)));
        Ok(Some((dir, name)))
    }

    /// Remembers an open directory as the likely next parent.
    pub(super) fn remember(&mut self, path: &[u8], fd: OwnedFd, setgid: bool, inside: Vec<u8>) {
        self.cached = Some((clean(path).join(&b'/'), Rc::new(OpenDir { fd, setgid, inside })));
    }

    /// The layer has a symlink to `target`.
    pub(super) fn has_link(&mut self, target: &[u8]) {
        self.longest_link = self.longest_link.max(components(target));
    }

    fn charge(&mut self, steps: u64) -> Result<(), ImageError> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_STEPS {
            return Err(self.blame.limit("the walks through paths", MAX_STEPS, "components"));
        }
        Ok(())
    }

    /// Opens a directory of the layer, following symlinks within it. The outer error is the layer's budget.
    fn enter(&mut self, path: &[u8]) -> Result<Result<Rc<OpenDir>, Errno>, ImageError> {
        let steps = components(path);
        self.charge(steps)?;
        match open_dir(self.root.fd(), path, DIRECT) {
            Ok(fd) => Ok(opened(fd, path.to_vec())),
            Err(Errno::LOOP) => {
                // The kernel follows MAXSYMLINKS of them at most.
                self.charge(steps + self.longest_link * u64::try_from(MAX_LINKS).unwrap_or(u64::MAX))?;
                Ok(self.follow(path))
            }
            Err(e) => Ok(Err(e)),
        }
    }

    fn follow(&self, path: &[u8]) -> Result<Rc<OpenDir>, Errno> {
        let fd = open_dir(self.root.fd(), path, ResolveFlags::IN_ROOT | ResolveFlags::NO_XDEV)?;
        let real = real_path(&fd)?;
        let inside = real.strip_prefix(&self.real_root).map_err(|_| Errno::XDEV)?;
        opened(fd, inside.as_os_str().as_bytes().to_vec())
    }

    /// Opens the next component of a path whose preceding components are open as `dir`.
    fn enter_next(
        &mut self,
        dir: &OpenDir,
        name: &[u8],
        path: &[u8],
    ) -> Result<Result<Rc<OpenDir>, Errno>, ImageError> {
        self.charge(CALL_STEPS)?;
        match open_dir(dir.fd(), name, DIRECT) {
            Ok(fd) => Ok(opened(fd, dir.inside(name))),
            Err(Errno::LOOP) => self.enter(path),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Opens a directory of the layer for its times, by its path without symlinks.
    pub(super) fn open_last(&self, inside: &[u8]) -> Result<OwnedFd, Errno> {
        open_dir(self.root.fd(), inside, DIRECT)
    }

    fn make_dirs(&mut self, parts: &[&[u8]], links: usize, entry: &[u8]) -> Result<Rc<OpenDir>, ImageError> {
        let mut dir = Rc::clone(&self.root);
        let mut path: Vec<u8> = Vec::new();
        for part in parts {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            dir = match self.enter_next(&dir, part, &path)? {
                Ok(next) => next,
                Err(Errno::NOENT) => match fs::mkdirat(dir.fd(), *part, Mode::from_raw_mode(0o755)) {
                    Ok(()) => self.finish_implied(&dir, part, entry, false)?,
                    Err(Errno::EXIST) => self.make_link_target(&dir, part, &path, links, entry)?,
                    Err(e) => return Err(self.fail("make the directory of", entry, e)),
                },
                Err(Errno::NOTDIR) => {
                    let stat = fs::statat(dir.fd(), *part, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|e| self.fail("look at the directory of", entry, e))?;
                    if !is_whiteout(&stat) {
                        return Err(self.blame.hostile(entry, "a parent of its path is not a directory"));
                    }
                    // Deleted below, then created again: nothing from below may show through.
                    fs::unlinkat(dir.fd(), *part, AtFlags::empty())
                        .and_then(|()| fs::mkdirat(dir.fd(), *part, Mode::from_raw_mode(0o755)))
                        .map_err(|e| self.fail("make the directory of", entry, e))?;
                    self.finish_implied(&dir, part, entry, true)?
                }
                Err(e) => return Err(self.fail("open the directory of", entry, e)),
            };
        }
        Ok(dir)
    }

    fn finish_implied(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        entry: &[u8],
        opaque: bool,
    ) -> Result<Rc<OpenDir>, ImageError> {
        let make = || -> Result<OwnedFd, Errno> {
            let fd = open_dir(parent.fd(), name, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
            if parent.setgid {
                fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT))?;
            }
            fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
            if opaque {
                fs::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty())?;
            }
            Ok(fd)
        };
        let fd = make().map_err(|e| self.fail("make the directory of", entry, e))?;
        let inside = parent.inside(name);
        self.implied_bytes += inside.len();
        if self.implied_bytes > MAX_IMPLIED_PATHS {
            return Err(self.blame.limit("the paths of implied directories", 1 << 20, "bytes"));
        }
        self.implied.insert(inside.clone());
        Ok(Rc::new(OpenDir { fd, setgid: false, inside }))
    }

    /// A component is a symlink to a missing path (often a directory of a lower layer): its target is created, within
    /// the root.
    fn make_link_target(
        &mut self,
        dir: &OpenDir,
        name: &[u8],
        path: &[u8],
        links: usize,
        entry: &[u8],
    ) -> Result<Rc<OpenDir>, ImageError> {
        if links >= MAX_LINKS {
            return Err(self.blame.hostile(entry, "its path has too many symbolic links"));
        }
        let target = fs::readlinkat(dir.fd(), name, Vec::new())
            .map_err(|_| self.blame.hostile(entry, "a parent of its path is not a directory"))?;
        let target = target.as_bytes();
        let joined = if target.starts_with(b"/") {
            target.to_vec()
        } else {
            let above = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &path[..slash]);
            [above, b"/", target].concat()
        };
        if joined.len() > MAX_PATH {
            return Err(self.blame.limit("a path", 4095, "bytes"));
        }
        self.make_dirs(&clean(&joined), links + 1, entry)
    }

    /// Removes a directory from the implied ones: it has an entry of its own.
    pub(super) fn is_explicit(&mut self, inside: &[u8]) {
        self.implied.remove(inside);
    }

    /// Removes `name` from the layer; keeps what has data, or may have. Returns whether it was a whiteout.
    pub(super) fn clear(&mut self, parent: &OpenDir, name: &[u8], entry: &[u8]) -> Result<bool, ImageError> {
        let stat = match fs::statat(parent.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(self.fail("look at", entry, e)),
        };
        // Paths through here may now lead elsewhere.
        self.cached = None;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || (kind == FileType::RegularFile && stat.st_size > 0) {
            let inside = parent.inside(name);
            self.replaced_bytes += inside.len();
            if self.replaced_bytes > MAX_REPLACED_PATHS {
                return Err(self.blame.limit("the paths of replaced entries", 64 << 20, "bytes"));
            }
            self.replaced.push((self.files, inside));
            fs::renameat(parent.fd(), name, &self.replaced_dir, self.replaced.len().to_string())
                .map_err(|e| self.fail("replace", entry, e))?;
        } else {
            fs::unlinkat(parent.fd(), name, AtFlags::empty()).map_err(|e| self.fail("replace", entry, e))?;
        }
        Ok(is_whiteout(&stat))
    }

    /// An error of the kernel at `entry`.
    pub(super) fn fail(&self, operation: &'static str, entry: &[u8], error: Errno) -> ImageError {
        match error {
            Errno::LOOP => self.blame.hostile(entry, "its path has a loop of symbolic links"),
            Errno::NAMETOOLONG => self.blame.hostile(entry, "its path is too long"),
            Errno::XDEV => self.blame.hostile(entry, "its path leaves the layer"),
            e => ImageError::io(operation, &self.shown(entry), e),
        }
    }
}

fn real_path(fd: &OwnedFd) -> Result<PathBuf, Errno> {
    use rustix::fd::AsRawFd as _;
    let path = fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(path.as_bytes())))
}
