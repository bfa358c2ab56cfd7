//! Walks a directory tree that others may change meanwhile: follows no symlink, crosses no mount, never leaves the
//! tree. Trees of any shape take a few open directories and a bounded number of names, and the walk can be done in
//! slices. `remove` has its own walk, since it may change the tree.
//!
//! Never judges entries: the visitor does.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::time::Instant;

/// Directories held open at once. Deeper ones are left by `..`, so that a tree of any depth takes no more than this.
pub(crate) const MAX_OPEN: usize = 32;
/// Entries are read in pieces of this many bytes, as the C library does.
const READ: usize = 32 << 10;
/// Entries of one step: some milliseconds, so that a slice also ends in a directory of millions.
const STEP_ENTRIES: usize = 2048;
/// Names of directories remembered, in all levels together: at most 2 MiB. When these are reached, a directory is read
/// on only after its last one was walked.
const MAX_NAMES: usize = 8192;
/// Levels that are remembered, about 60 MiB of them: a tree that deep takes gigabytes of disk for its directories.
const MAX_LEVELS: usize = 1 << 20;

/// Visitor of the entries.
pub(crate) trait Visitor {
    /// Why a walk ends.
    type Error;

    /// Visits an entry of an open directory, described by `own`; true: it is a directory to enter.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        own: &Stat,
        entry: &RawDirEntry<'_>,
    ) -> Result<bool, Self::Error>;

    /// The walk enters the directory of this name.
    fn entered(&mut self, _name: &CStr) {}

    /// The walk leaves the deepest directory that it went into.
    fn left(&mut self) {}

    /// The entry of this name in an open directory was to be entered, but cannot be opened or read.
    fn unreadable(&mut self, directory: &OwnedFd, name: &CStr, error: Errno) -> Result<(), Self::Error>;
}

/// Why a directory's content was not visited.
#[derive(Debug)]
pub(crate) enum Failed<E> {
    /// It cannot be read.
    Read(Errno),
    /// The visitor ends the walk.
    Visit(E),
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    /// Open, or given up for the sake of [`MAX_OPEN`].
    directory: Option<OwnedFd>,
    /// Device and inode, which identify it.
    identity: (u64, u64),
    /// Directories in it that were found and are still to be walked.
    left: Vec<CString>,
    /// Where reading continues, as the file system counts; None: all was read.
    rest: Option<u64>,
}

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Walk<V> {
    pub(crate) visitor: V,
    levels: Vec<Level>,
    /// Names in all levels.
    names: usize,
    buffer: Vec<u8>,
}

impl<V: Visitor> Walk<V> {
    pub(crate) fn new(visitor: V) -> Self {
        Self { visitor, levels: Vec::new(), names: 0, buffer: Vec::with_capacity(READ) }
    }

    /// Continues until the end or the time; false: at the end.
    pub(crate) fn slice(&mut self, until: Instant) -> Result<bool, V::Error> {
        while self.step()? {
            if Instant::now() >= until {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One step down, one up, or some entries on; false at the end.
    pub(crate) fn step(&mut self) -> Result<bool, V::Error> {
        let deep = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let Some(directory) = level.directory.take() else {
            // Its way back was lost: what was below it moved away.
            self.names -= level.left.len();
            self.levels.pop();
            if deep > 1 {
                self.visitor.left();
            }
            return Ok(true);
        };
        let parent = deep - 1;
        if let Some(name) = level.left.pop() {
            self.names -= 1;
            let entered = match open_in(&directory, &name) {
                // The kernel's error for a path that is too long; this one is in levels.
                Ok(_) if parent + 1 >= MAX_LEVELS => Err(Failed::Read(Errno::NAMETOOLONG)),
                Ok(child) => {
                    self.visitor.entered(&name);
                    self.enter(child).inspect_err(|_| self.visitor.left())
                }
                Err(error) => Err(Failed::Read(error)),
            };
            match entered {
                Err(Failed::Visit(error)) => return Err(error),
                Err(Failed::Read(error)) => self.visitor.unreadable(&directory, &name, error)?,
                // The parent is given up.
                Ok(()) if parent + 1 >= MAX_OPEN => return Ok(true),
                Ok(()) => {}
            }
        } else if let Some(from) = level.rest.take() {
            match self.read(&directory, from) {
                Ok((_, left, rest)) => {
                    if let Some(level) = self.levels.get_mut(parent) {
                        (level.left, level.rest) = (left, rest);
                    }
                }
                Err(Failed::Visit(error)) => return Err(error),
                Err(Failed::Read(error)) => self.visitor.unreadable(&directory, c".", error)?,
            }
        } else {
            level.directory = Some(directory);
            self.leave();
            return Ok(true);
        }
        if let Some(level) = self.levels.get_mut(parent) {
            level.directory = Some(directory);
        }
        Ok(true)
    }

    /// Visits the first entries of a directory and makes it the deepest level.
    pub(crate) fn enter(&mut self, directory: OwnedFd) -> Result<(), Failed<V::Error>> {
        let (own, left, rest) = self.read(&directory, 0)?;
        let identity = (own.st_dev, own.st_ino);
        self.levels.push(Level { directory: Some(directory), identity, left, rest });
        Ok(())
    }

    /// Visits the next entries of a directory; returns the directories among them, and where to continue.
    #[expect(clippy::type_complexity, reason = "three results of one reading, used at once")]
    fn read(
        &mut self,
        directory: &OwnedFd,
        from: u64,
    ) -> Result<(Stat, Vec<CString>, Option<u64>), Failed<V::Error>> {
        let own = fs::fstat(directory).map_err(Failed::Read)?;
        fs::seek(directory, SeekFrom::Start(from)).map_err(Failed::Read)?;
        let room = MAX_NAMES.saturating_sub(self.names).max(1);
        let (mut left, mut rest, mut looked) = (Vec::new(), None, 0);
        let mut entries = RawDir::new(directory, self.buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Failed::Read)?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            if self.visitor.entry(directory, &own, &entry).map_err(Failed::Visit)? {
                left.push(name.to_owned());
            }
            looked += 1;
            if left.len() >= room || looked >= STEP_ENTRIES {
                rest = Some(entry.next_entry_cookie());
                break;
            }
        }
        self.names += left.len();
        Ok((own, left, rest))
    }

    /// How deep it is.
    #[cfg(test)]
    pub(crate) fn depth(&self) -> usize {
        self.levels.len()
    }

    fn leave(&mut self) {
        let Some(done) = self.levels.pop() else { return };
        let Some(parent) = self.levels.last_mut() else { return };
        self.visitor.left();
        if parent.directory.is_some() {
            return;
        }
        let up = done.directory.and_then(|below| open(&below, c"..").ok());
        parent.directory = up.filter(|up| {
            // It may have been moved: `..` is then another directory, perhaps outside the tree.
            fs::fstat(up).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == parent.identity)
        });
    }
}

/// Visits everything in an open directory.
pub(crate) fn whole<V: Visitor>(visitor: V, root: OwnedFd) -> Result<V, Failed<V::Error>> {
    let mut walk = Walk::new(visitor);
    walk.enter(root)?;
    while walk.step().map_err(Failed::Visit)? {}
    Ok(walk.visitor)
}

/// Opens a directory without touching its access time.
pub(crate) fn open(at: impl AsFd, path: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    without_a_trace(|flags| fs::openat(&at, path, flags, Mode::empty()))
}

/// Opens a directory of this name in an open one, without touching its access time. A mount there gives `XDEV`.
pub(crate) fn open_in(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    without_a_trace(|flags| {
        loop {
            match fs::openat2(&at, name, flags, Mode::empty(), how) {
                Err(Errno::INTR) => {}
                opened => return opened,
            }
        }
    })
}

fn without_a_trace(open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(flags | OFlags::NOATIME) {
        // Only the owner may.
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// Descends 60 levels of a tree deeper than a path may be long and than directories are held open. At each, `look` gets
/// the open directory and the names of the three in it, of which the second has the next level. Returns the deepest.
#[cfg(test)]
pub(crate) fn down_a_deep_tree(root: &std::path::Path, look: impl Fn(&OwnedFd, [&str; 3])) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = fs::open(root, flags, Mode::empty()).unwrap();
    let down = "m".repeat(200);
    for _ in 0..60 {
        look(&at, ["aa", &down, "zz"]);
        at = fs::openat(&at, &down, flags, Mode::empty()).unwrap();
    }
    at
}

/// Creates such a tree; returns its deepest directory.
#[cfg(test)]
pub(crate) fn make_a_deep_tree(root: &std::path::Path) -> OwnedFd {
    down_a_deep_tree(root, |at, names| {
        for name in names {
            fs::mkdirat(at, name, Mode::RWXU).unwrap();
        }
    })
}

/// Creates a chain of this many directories named `d`, without any path longer than one.
#[cfg(test)]
pub(crate) fn make_a_chain(root: &std::path::Path, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = fs::open(root, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = fs::openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}
