//! The way through a directory tree that others may change meanwhile: no symlink is followed, the tree is not left, and
//! trees of any depth take no more than a few open directories.
//!
//! Never judges what is found: that is the visitor's.

use rustix::fd::OwnedFd;
use rustix::fs::{self, Mode, OFlags, RawDir, RawDirEntry, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// Directories held open at once. Deeper ones are left by `..`, so that a tree of any depth takes no more than this.
pub(super) const MAX_OPEN: usize = 32;
/// Entries are read in pieces of this many bytes, as the C library does.
const READ: usize = 32 << 10;

/// Who looks at what is found.
pub(super) trait Visitor {
    /// What ends a walk.
    type Error;

    /// Looks at an entry of an open directory, of which `own` tells; true: it is a directory to go into.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        own: &Stat,
        entry: &RawDirEntry<'_>,
    ) -> Result<bool, Self::Error>;

    /// What has this name in an open directory was one to go into, but cannot be opened or read.
    fn unreadable(&mut self, directory: &OwnedFd, name: &CStr, error: Errno) -> Result<(), Self::Error>;
}

/// Why what is in a directory was not looked at.
#[derive(Debug)]
pub(super) enum Failed<E> {
    /// It cannot be read.
    Read(Errno),
    /// The visitor ends the walk.
    Visit(E),
}

/// A directory on the way down.
struct Level {
    /// Open, or given up for the sake of [`MAX_OPEN`].
    directory: Option<OwnedFd>,
    /// Device and inode, by which it is known again.
    identity: (u64, u64),
    /// Directories in it that are still to be walked.
    left: Vec<CString>,
}

/// A walk under way.
pub(super) struct Walk<V> {
    pub(super) visitor: V,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl<V: Visitor> Walk<V> {
    pub(super) fn new(visitor: V) -> Self {
        Self { visitor, levels: Vec::new(), buffer: Vec::with_capacity(READ) }
    }

    /// One step down, or one up; false at the end.
    pub(super) fn step(&mut self) -> Result<bool, V::Error> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let Some(directory) = level.directory.take() else {
            // Its way back was lost: what was below it moved away.
            self.levels.pop();
            return Ok(true);
        };
        let Some(name) = level.left.pop() else {
            level.directory = Some(directory);
            self.leave();
            return Ok(true);
        };
        let parent = self.levels.len() - 1;
        let entered = open(&directory, name.as_c_str()).map_err(Failed::Read).and_then(|c| self.enter(c));
        match entered {
            Err(Failed::Visit(error)) => return Err(error),
            Err(Failed::Read(error)) => self.visitor.unreadable(&directory, &name, error)?,
            // The parent is given up.
            Ok(()) if parent + 1 >= MAX_OPEN => return Ok(true),
            Ok(()) => {}
        }
        if let Some(level) = self.levels.get_mut(parent) {
            level.directory = Some(directory);
        }
        Ok(true)
    }

    /// Looks at what is in a directory and makes it the deepest level.
    pub(super) fn enter(&mut self, directory: OwnedFd) -> Result<(), Failed<V::Error>> {
        let own = fs::fstat(&directory).map_err(Failed::Read)?;
        let mut left = Vec::new();
        let mut entries = RawDir::new(&directory, self.buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Failed::Read)?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            if self.visitor.entry(&directory, &own, &entry).map_err(Failed::Visit)? {
                left.push(name.to_owned());
            }
        }
        self.levels.push(Level { directory: Some(directory), identity: (own.st_dev, own.st_ino), left });
        Ok(())
    }

    /// How deep it is.
    #[cfg(test)]
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    fn leave(&mut self) {
        let Some(done) = self.levels.pop() else { return };
        let Some(parent) = self.levels.last_mut() else { return };
        if parent.directory.is_some() {
            return;
        }
        let up = done.directory.and_then(|below| open(&below, c"..").ok());
        parent.directory = up.filter(|up| {
            // It may have been moved: `..` is then another directory, outside the tree even.
            fs::fstat(up).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == parent.identity)
        });
    }
}

/// Goes through all that is in an open directory.
pub(super) fn whole<V: Visitor>(visitor: V, root: OwnedFd) -> Result<V, Failed<V::Error>> {
    let mut walk = Walk::new(visitor);
    walk.enter(root)?;
    while walk.step().map_err(Failed::Visit)? {}
    Ok(walk.visitor)
}

/// Opens a directory without touching its access time.
pub(super) fn open(at: impl rustix::fd::AsFd, path: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(&at, path, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may.
        Err(Errno::PERM) => fs::openat(&at, path, flags, Mode::empty()),
        opened => opened,
    }
}

/// Goes down 60 levels of a tree that is deeper than a path may be long and than directories are held open. At each,
/// `look` gets the open directory and the names of the three in it, of which the second has the next level. Returns the
/// deepest.
#[cfg(test)]
pub(super) fn down_a_deep_tree(root: &std::path::Path, look: impl Fn(&OwnedFd, [&str; 3])) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = fs::open(root, flags, Mode::empty()).unwrap();
    let down = "m".repeat(200);
    for _ in 0..60 {
        look(&at, ["aa", &down, "zz"]);
        at = fs::openat(&at, &down, flags, Mode::empty()).unwrap();
    }
    at
}

/// Makes such a tree; returns its deepest directory.
#[cfg(test)]
pub(super) fn make_a_deep_tree(root: &std::path::Path) -> OwnedFd {
    down_a_deep_tree(root, |at, names| {
        for name in names {
            fs::mkdirat(at, name, Mode::RWXU).unwrap();
        }
    })
}
