//! What a directory tree takes on its file system, by a walk: allocated bytes and inodes, a file with several names
//! once. Reads only; never follows a symlink, never leaves the tree, and takes trees of any depth and any change
//! meanwhile.

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::path::Path;

/// Directories held open at once. Deeper ones are left by `..`, so that a tree of any depth takes no more than this.
const MAX_OPEN: usize = 32;
/// Bytes of a block as stat(2) counts them, whatever the file system's own are.
const STAT_BLOCK: u64 = 512;
/// Entries are read in pieces of this many bytes, as the C library does.
const READ: usize = 32 << 10;

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
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

/// Measures what is in the directory, without the directory itself. What vanishes meanwhile is not counted.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn measure(root: &Path) -> std::io::Result<Usage> {
    let mut walk = Walk::new();
    walk.enter(open(CWD, root)?)?;
    while walk.step() {}
    Ok(walk.usage)
}

struct Walk {
    usage: Usage,
    /// Files with several names that were counted.
    seen: HashSet<(u64, u64)>,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Walk {
    fn new() -> Self {
        Self {
            usage: Usage::default(),
            seen: HashSet::new(),
            levels: Vec::new(),
            buffer: Vec::with_capacity(READ),
        }
    }

    /// One step down, or one up; false at the end.
    fn step(&mut self) -> bool {
        let Some(level) = self.levels.last_mut() else { return false };
        let Some(directory) = &level.directory else {
            // Its way back was lost: what was below it moved away.
            self.levels.pop();
            return true;
        };
        match level.left.pop() {
            // One that vanished, or became something else.
            Some(name) => match open(directory, name.as_c_str()) {
                Ok(child) => {
                    if self.levels.len() >= MAX_OPEN
                        && let Some(level) = self.levels.last_mut()
                    {
                        level.directory = None;
                    }
                    // A directory that cannot be read has been counted itself.
                    let _ = self.enter(child);
                }
                Err(_) => return true,
            },
            None => self.leave(),
        }
        true
    }

    /// Counts what is in a directory and makes it the deepest level.
    fn enter(&mut self, directory: OwnedFd) -> Result<(), Errno> {
        let own = fs::fstat(&directory)?;
        let mut left = Vec::new();
        let mut entries = RawDir::new(&directory, self.buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let Ok(stat) = fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != own.st_dev {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            // A directory's links are its subdirectories.
            if !is_directory && stat.st_nlink > 1 && !self.seen.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            self.usage = self.usage.plus(Usage { bytes: blocks.saturating_mul(STAT_BLOCK), inodes: 1 });
            if is_directory {
                left.push(name.to_owned());
            }
        }
        self.levels.push(Level { directory: Some(directory), identity: (own.st_dev, own.st_ino), left });
        Ok(())
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

/// Opens a directory without touching its access time.
fn open(at: impl rustix::fd::AsFd, path: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(&at, path, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may.
        Err(Errno::PERM) => fs::openat(&at, path, flags, Mode::empty()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// What `du` says, in the same terms.
    fn du(path: &Path) -> Usage {
        let count = |unit: &str| -> u64 {
            let out = std::process::Command::new("du").args(["-s", unit]).arg(path).output().unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        let own = fs::stat(path).unwrap();
        let own = u64::try_from(own.st_blocks).unwrap() * STAT_BLOCK;
        Usage { bytes: count("-B512") * STAT_BLOCK - own, inodes: count("--inodes") - 1 }
    }

    #[test]
    fn a_tree_is_measured_as_du_does_it_with_hard_links_once() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert_eq!(measure(root.path()).unwrap(), Usage::default());
        std::fs::create_dir_all(at("a/b/c")).unwrap();
        std::fs::write(at("a/file"), vec![7; 300_000]).unwrap();
        let before = measure(root.path()).unwrap();
        std::fs::hard_link(at("a/file"), at("a/b/again")).unwrap();
        assert_eq!(measure(root.path()).unwrap(), before, "a second name takes nothing");
        std::fs::write(at("a/b/c/other"), "x").unwrap();
        symlink("/usr", at("link")).unwrap();
        rustix::fs::mknodat(CWD, at("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        // A hole takes nothing.
        std::fs::File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        let measured = measure(root.path()).unwrap();
        assert_eq!(measured, du(root.path()));
        assert_eq!(measured.inodes, 8);
        assert!(measured.bytes < 1 << 20, "{measured:?}");
    }

    #[test]
    fn a_tree_deeper_than_path_max_and_open_directories_is_walked_whole() {
        let root = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = fs::open(root.path(), flags, Mode::empty()).unwrap();
        let down = "m".repeat(200);
        for _ in 0..60 {
            for name in ["aa", &down, "zz"] {
                fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = fs::openat(&at, &down, flags, Mode::empty()).unwrap();
        }
        fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        assert_eq!(measure(root.path()).unwrap().inodes, 181);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let root = tempfile::tempdir().unwrap();
        assert!(measure(&root.path().join("absent")).is_err());
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(measure(&root.path().join("file")).is_err());
    }

    #[test]
    fn a_way_back_that_was_moved_is_not_followed() {
        let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = root.path().join("d/".repeat(MAX_OPEN + 8));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::create_dir(root.path().join("d/sibling")).unwrap();
        let mut walk = Walk::new();
        walk.enter(open(CWD, root.path()).unwrap()).unwrap();
        while walk.levels.len() < MAX_OPEN + 4 {
            assert!(walk.step());
        }
        std::fs::create_dir_all(elsewhere.path().join("full")).unwrap();
        let moved = root.path().join("d/".repeat(MAX_OPEN + 2));
        std::fs::rename(&moved, elsewhere.path().join("full/moved")).unwrap();
        while walk.step() {}
        // Eight levels more below the open ones; the moved part, once inside, is counted; `full` is not.
        assert_eq!(walk.usage.inodes, u64::try_from(MAX_OPEN + 8 + 1).unwrap());
    }
}
