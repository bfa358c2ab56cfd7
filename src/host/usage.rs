//! What a directory tree takes on its file system, by a walk: allocated bytes and inodes, a file with several names
//! once. Reads only; never follows a symlink, never leaves the tree, and takes trees of any depth and any change
//! meanwhile.

use super::walk::{self, Failed, Visitor};
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, CWD, FileType, RawDirEntry, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::CStr;
use std::path::Path;

/// Bytes of a block as stat(2) counts them, whatever the file system's own are.
const STAT_BLOCK: u64 = 512;
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

/// Measures what is in the directory, without the directory itself. What vanishes meanwhile is not counted.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn measure(root: &Path) -> std::io::Result<Usage> {
    match walk::whole(Sum::default(), walk::open(CWD, root)?) {
        Ok(sum) => Ok(sum.usage),
        Err(Failed::Read(error)) => Err(error.into()),
        Err(Failed::Visit(never)) => match never {},
    }
}

#[derive(Default)]
struct Sum {
    usage: Usage,
    /// Files with several names that were counted.
    seen: HashSet<(u64, u64)>,
}

impl Visitor for Sum {
    type Error = Infallible;

    fn entry(
        &mut self,
        directory: &OwnedFd,
        own: &Stat,
        entry: &RawDirEntry<'_>,
    ) -> Result<bool, Infallible> {
        let Ok(stat) = fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(false);
        };
        if stat.st_dev != own.st_dev {
            return Ok(false);
        }
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // A directory's links are its subdirectories.
        if !is_directory && stat.st_nlink > 1 && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(false);
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        self.usage = self.usage.plus(Usage { bytes: blocks.saturating_mul(STAT_BLOCK), inodes: 1 });
        Ok(is_directory)
    }

    /// It has been counted itself.
    fn unreadable(&mut self, _: &OwnedFd, _: &CStr, _: Errno) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::walk::{MAX_OPEN, Walk, make_a_deep_tree};
    use super::*;
    use rustix::fs::{Mode, OFlags};
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
        let at = make_a_deep_tree(root.path());
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
        let mut walk = Walk::new(Sum::default());
        walk.enter(walk::open(CWD, root.path()).unwrap()).unwrap();
        while walk.depth() < MAX_OPEN + 4 {
            assert!(walk.step().unwrap());
        }
        std::fs::create_dir_all(elsewhere.path().join("full")).unwrap();
        let moved = root.path().join("d/".repeat(MAX_OPEN + 2));
        std::fs::rename(&moved, elsewhere.path().join("full/moved")).unwrap();
        while walk.step().unwrap() {}
        // Eight levels more below the open ones; the moved part, once inside, is counted; `full` is not.
        assert_eq!(walk.visitor.usage.inodes, u64::try_from(MAX_OPEN + 8 + 1).unwrap());
    }
}
