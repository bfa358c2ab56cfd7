//! Disk usage of a directory tree, by a walk: allocated bytes and inodes, a file with several names once. Reads only;
//! never follows a symlink or crosses a mount, never leaves the tree, and handles trees of any shape and any change
//! meanwhile, in slices.

use super::walk::{self, Failed, Visitor, Walk};
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, CWD, FileType, RawDirEntry, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::CStr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a block in stat(2), whatever the file system's own are.
const STAT_BLOCK: u64 = 512;
/// Usage of a tree.
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
    let mut measuring = Measuring::begin(root)?;
    loop {
        if let Some(usage) = measuring.slice(SLICE) {
            return Ok(usage);
        }
    }
}

/// For an uninterrupted measurement.
const SLICE: Duration = Duration::from_secs(1);
/// Files with several names that are remembered, so that they count once: about 8 MiB. Each name of a further one
/// counts as its share of the file.
const MAX_LINKED: usize = 1 << 18;

/// A measurement in progress. It can be abandoned at any time.
#[derive(Debug)]
pub struct Measuring(Walk<Sum>);

impl Measuring {
    /// Begins to measure what is in a directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn begin(root: &Path) -> std::io::Result<Self> {
        let mut walk = Walk::new(Sum::new());
        match walk.enter(walk::open(CWD, root)?) {
            Ok(()) => Ok(Self(walk)),
            Err(Failed::Read(error)) => Err(error.into()),
            Err(Failed::Visit(never)) => match never {},
        }
    }

    /// Continues for about this long; returns the figure at the end.
    pub fn slice(&mut self, time: Duration) -> Option<Usage> {
        match self.0.slice(Instant::now() + time) {
            Ok(true) => None,
            Ok(false) => Some(self.0.visitor.sum()),
            Err(never) => match never {},
        }
    }
}

#[derive(Debug)]
struct Sum {
    usage: Usage,
    max_linked: usize,
    /// Files with several names that were counted.
    seen: HashSet<(u64, u64)>,
    /// Inodes of files of which each name is counted as a share, in 2^-32.
    shares: u64,
}

impl Sum {
    fn new() -> Self {
        Self { usage: Usage::default(), max_linked: MAX_LINKED, seen: HashSet::new(), shares: 0 }
    }

    fn sum(&self) -> Usage {
        let inodes = self.shares.saturating_add(1 << 31) >> 32;
        self.usage.plus(Usage { bytes: 0, inodes })
    }
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
        let bytes = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(STAT_BLOCK);
        // A directory's links are its subdirectories.
        if !is_directory && stat.st_nlink > 1 {
            let identity = (stat.st_dev, stat.st_ino);
            if self.seen.contains(&identity) {
                return Ok(false);
            }
            if self.seen.len() >= self.max_linked {
                self.usage = self.usage.plus(Usage { bytes: bytes / stat.st_nlink, inodes: 0 });
                self.shares = self.shares.saturating_add((1 << 32) / stat.st_nlink);
                return Ok(false);
            }
            self.seen.insert(identity);
        }
        self.usage = self.usage.plus(Usage { bytes, inodes: 1 });
        Ok(is_directory)
    }

    /// It has been counted itself.
    fn unreadable(&mut self, _: &OwnedFd, _: &CStr, _: Errno) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::walk::{MAX_OPEN, make_a_chain, make_a_deep_tree};
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use std::os::unix::fs::symlink;

    /// The output of `du`, in the same terms.
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
        let mut walk = Walk::new(Sum::new());
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

    #[test]
    fn a_chain_of_19000_directories_is_measured_on_a_small_stack() {
        let root = tempfile::tempdir().unwrap();
        make_a_chain(root.path(), 19_000);
        let path = root.path().to_owned();
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let measured = small.spawn(move || measure(&path).unwrap()).unwrap().join().unwrap();
        assert_eq!(measured.inodes, 19_000);
        crate::host::remove::tree(root.path()).unwrap();
    }

    #[test]
    fn a_wide_directory_is_measured_in_slices_and_few_names_are_held() {
        let root = tempfile::tempdir().unwrap();
        for at in 0..9000 {
            std::fs::create_dir(root.path().join(at.to_string())).unwrap();
        }
        let mut measuring = Measuring::begin(root.path()).unwrap();
        let mut slices = 1;
        let usage = loop {
            match measuring.slice(Duration::ZERO) {
                Some(usage) => break usage,
                None => slices += 1,
            }
        };
        // A step of a slice is a directory, so there are at least as many.
        assert!(slices > 9000, "{slices}");
        assert_eq!(usage, measure(root.path()).unwrap());
        assert_eq!(usage.inodes, 9000);
    }

    #[test]
    fn files_with_several_names_count_once_beyond_those_that_are_remembered() {
        let root = tempfile::tempdir().unwrap();
        for at in 0..10 {
            let file = root.path().join(at.to_string());
            std::fs::write(&file, vec![1; 12_288]).unwrap();
            for name in ["b", "c"] {
                std::fs::hard_link(&file, root.path().join(format!("{at}{name}"))).unwrap();
            }
        }
        let whole = measure(root.path()).unwrap();
        let sum = Sum { max_linked: 3, ..Sum::new() };
        let few = walk::whole(sum, walk::open(CWD, root.path()).unwrap()).map_err(|_| ()).unwrap();
        assert_eq!((few.sum(), few.seen.len()), (whole, 3));
    }

    #[test]
    fn what_is_mounted_in_a_tree_is_not_walked() {
        let root = tempfile::tempdir().unwrap();
        let point = root.path().join("point");
        std::fs::create_dir(&point).unwrap();
        let no_data: Option<&CStr> = None;
        rustix::mount::mount("none", &point, "tmpfs", rustix::mount::MountFlags::empty(), no_data).unwrap();
        std::fs::write(point.join("file"), "x").unwrap();
        let measured = measure(root.path());
        let removed = crate::host::remove::tree(root.path()).map_err(|e| e.to_string());
        let kept = point.join("file").exists();
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(measured.unwrap(), Usage::default());
        assert!(kept, "not of the tree");
        assert!(removed.as_ref().is_err_and(|e| e.contains("point") && e.contains("mounted")), "{removed:?}");
    }
}
