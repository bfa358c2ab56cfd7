//! The way of the host to a path that a request names, step by step: each name is looked up in the directory that was
//! found before, links are followed by their text, and before another file system is entered the table of what hangs is
//! asked. Follows no link below a process in procfs: those lead to the files, the root and the descriptors of processes, the
//! daemon's own among them; `/proc/self` is process 1 of the host here. Makes nothing but missing directories.

use super::{ForeignError, Progress};
use rustix::fd::OwnedFd;
use rustix::fs::{self, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// Links on one way, as the kernel has it (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Names on one way that are still to go: the longest path has no more, and each link may add a path.
const MAX_NAMES: usize = 4096;

/// Inode of the top directory of each procfs (`PROC_ROOT_INO` in linux/proc_ns.h, procfs's number since its beginning).
const PROC_ROOT_INO: u64 = 1;

/// What a path names.
#[derive(Debug)]
pub struct Found {
    /// Its path without links.
    pub path: PathBuf,
    /// Held as a place (`O_PATH`).
    pub file: OwnedFd,
}

/// What becomes of names that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// An error.
    Refused,
    /// Each becomes a directory; but not those that a link's text has.
    Made,
}

/// A name on the way; whether it is of the path itself, not of a link.
type Name = (OsString, bool);

struct Way<'a> {
    progress: &'a Progress,
    path: PathBuf,
    here: OwnedFd,
    left: Vec<Name>,
    links: usize,
    /// The next name is somewhere else than the one before.
    jumped: bool,
    /// Another mount than the root's was entered.
    crossed: bool,
    missing: Missing,
}

/// Why a way ends.
enum End {
    Refused(ForeignError),
    Failed(Errno),
}

impl From<Errno> for End {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

impl From<ForeignError> for End {
    fn from(error: ForeignError) -> Self {
        Self::Refused(error)
    }
}

/// Goes to an absolute path. Blocking, for as long as a file system on the way does not answer.
///
/// # Errors
/// When a file system on the way is known to hang; within, the kernel's.
pub fn find(
    progress: &Progress,
    path: &Path,
    missing: Missing,
) -> Result<std::io::Result<Found>, ForeignError> {
    match go(progress, path, missing) {
        Ok(found) => Ok(Ok(found)),
        Err(End::Failed(error)) => Ok(Err(error.into())),
        Err(End::Refused(error)) => Err(error),
    }
}

fn go(progress: &Progress, path: &Path, missing: Missing) -> Result<Found, End> {
    let mut way = Way {
        progress,
        path: "/".into(),
        here: root()?,
        left: Vec::new(),
        links: 0,
        jumped: false,
        crossed: false,
        missing,
    };
    if !path.is_absolute() {
        return Err(Errno::INVAL.into());
    }
    way.add(path, true)?;
    while let Some(name) = way.left.pop() {
        way.step(name)?;
    }
    Ok(Found { path: way.path, file: way.here })
}

fn root() -> Result<OwnedFd, Errno> {
    fs::openat(CWD, "/", PLACE | OFlags::DIRECTORY, Mode::empty())
}

const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Way<'_> {
    /// The names of a path are the next to go.
    fn add(&mut self, path: &Path, own: bool) -> Result<(), Errno> {
        let at = self.left.len();
        self.left.extend(path.components().filter_map(|component| match component {
            Component::Normal(name) => Some((name.to_owned(), own)),
            Component::ParentDir => Some(("..".into(), own)),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        }));
        self.left.get_mut(at..).unwrap_or_default().reverse();
        if self.left.len() > MAX_NAMES { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }

    fn step(&mut self, (name, own): Name) -> Result<(), End> {
        if name == ".." {
            self.path.pop();
            self.progress.looks_at(&self.path);
            self.here = fs::openat(&self.here, "..", PLACE | OFlags::DIRECTORY, Mode::empty())?;
            return Ok(());
        }
        let next = self.path.join(&name);
        match std::mem::take(&mut self.jumped) {
            true => self.progress.goes_to(&next)?,
            false => self.progress.looks_at(&next),
        }
        let file = match self.open(&name, &next) {
            Err(End::Failed(Errno::NOENT)) if own && self.missing == Missing::Made => {
                match fs::mkdirat(&self.here, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.open(&name, &next)?
            }
            opened => opened?,
        };
        // Asks for nothing that a file system may refuse to root, as FUSE does with attributes.
        match fs::readlinkat(&file, "", Vec::new()) {
            Ok(text) if self.is_of_procfs(&file) => match self.top_of_procfs(&name, text.to_bytes())? {
                Some(target) => self.follow(&target),
                None => Err(ForeignError::Procfs { link: next }.into()),
            },
            Ok(text) => self.follow(Path::new(OsStr::from_bytes(text.to_bytes()))),
            Err(Errno::NOENT | Errno::INVAL) => {
                self.here = self.within(&name, file)?;
                self.path = next;
                Ok(())
            }
            // Even the text of another process's link may be kept from root, in a container.
            Err(Errno::ACCESS) if self.is_of_procfs(&file) => Err(ForeignError::Procfs { link: next }.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// What has the name, be it a link.
    fn open(&mut self, name: &OsStr, next: &Path) -> Result<OwnedFd, End> {
        loop {
            match fs::openat2(&self.here, name, PLACE, Mode::empty(), ResolveFlags::NO_XDEV) {
                Err(Errno::INTR) => {}
                Err(Errno::XDEV) => break,
                opened => return Ok(opened?),
            }
        }
        self.crossed = true;
        self.progress.goes_to(next)?;
        Ok(fs::openat(&self.here, name, PLACE, Mode::empty())?)
    }

    /// Where file systems are mounted as they are needed (autofs), nothing but going through a directory has them mounted.
    fn within(&self, name: &OsStr, file: OwnedFd) -> Result<OwnedFd, Errno> {
        if !self.crossed {
            return Ok(file);
        }
        let through = Path::new(name).join(".");
        match fs::openat2(&self.here, &through, PLACE, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            // No directory, or one that even root may not enter.
            Err(Errno::NOTDIR | Errno::ACCESS) => Ok(file),
            opened => opened,
        }
    }

    /// Where a link in the top directory of a procfs leads: there, links are text (`mounts` is `self/mounts`). `self` means
    /// another process to each that reads it: to people who name `/etc/mtab`, the host, whose process 1 has its mounts.
    fn top_of_procfs(&self, name: &OsStr, text: &[u8]) -> Result<Option<PathBuf>, Errno> {
        if fs::fstat(&self.here)?.st_ino != PROC_ROOT_INO {
            return Ok(None);
        }
        Ok(Some(match name.as_bytes() {
            b"self" => "1".into(),
            b"thread-self" => "1/task/1".into(),
            _ => OsStr::from_bytes(text).into(),
        }))
    }

    /// Nothing of procfs is asked by a server.
    fn is_of_procfs(&self, link: &OwnedFd) -> bool {
        // The root's own file system is no procfs.
        self.crossed && fs::fstatfs(link).is_ok_and(|found| found.f_type == fs::PROC_SUPER_MAGIC)
    }

    fn follow(&mut self, target: &Path) -> Result<(), End> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        if target.is_absolute() {
            (self.path, self.here) = ("/".into(), root()?);
        }
        self.jumped = true;
        Ok(self.add(target, false)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, Foreign};
    use super::*;
    use std::fs as std_fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::time::Duration;

    async fn find_in(path: &Path, missing: Missing) -> std::io::Result<PathBuf> {
        let asked =
            Asked { pod: "p".to_owned(), places: vec![path.to_owned()], limit: Duration::from_secs(30) };
        let path = path.to_owned();
        let found = Foreign::default().run(asked, move |progress| find(progress, &path, missing)).await;
        let found = found.unwrap().unwrap()?;
        let by_path = std_fs::symlink_metadata(&found.path)?;
        let held = std_fs::File::from(found.file).metadata()?;
        assert_eq!((by_path.dev(), by_path.ino()), (held.dev(), held.ino()));
        Ok(found.path)
    }

    #[tokio::test]
    async fn the_way_is_that_of_realpath() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std_fs::create_dir_all(root.join("a/b/c")).unwrap();
        std_fs::write(root.join("a/file"), "x").unwrap();
        symlink("a/b", root.join("relative")).unwrap();
        symlink(root.join("relative"), root.join("a/absolute")).unwrap();
        symlink("../../a/./absolute/c/..", root.join("a/b/dots")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        for path in [
            "",
            "a",
            "a/file",
            "relative",
            "a/absolute/c",
            "a/b/dots",
            "a/b/dots/c",
            "a/../relative/../file",
            "loop",
            "dangling",
            "a/file/x",
            "a/none",
        ] {
            let (expected, path) = (root.join(path).canonicalize(), root.join(path));
            match (find_in(&path, Missing::Refused).await, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert_eq!(found.raw_os_error(), expected.raw_os_error()),
                (found, expected) => panic!("{path:?}: {found:?}, {expected:?}"),
            }
        }
        for path in ["/", "/proc/sys/kernel", "/dev/null", "/proc/1/ns", "/sys/../dev/pts"] {
            let path = Path::new(path);
            let found = find_in(path, Missing::Refused).await.map_err(|e| e.raw_os_error());
            assert_eq!(found, path.canonicalize().map_err(|e| e.raw_os_error()), "{path:?}");
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_made_but_not_where_a_link_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std_fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        let made = find_in(&root.join("link/x/y"), Missing::Made).await.unwrap();
        assert_eq!(made, root.join("real/x/y"));
        assert!(made.is_dir());
        assert!(find_in(&root.join("dangling"), Missing::Made).await.is_err());
        assert!(!root.join("nothing").exists());
        assert!(find_in(&root.join("absent"), Missing::Refused).await.is_err());
        assert!(!root.join("absent").exists());
    }
    #[tokio::test]
    async fn no_link_of_procfs_is_followed_by_whatever_name_it_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let held = std_fs::File::open(dir.path()).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&held);
        let own = std::process::id();
        symlink("/proc", dir.path().join("way")).unwrap();
        let way = dir.path().canonicalize().unwrap().join("way");
        for name in [
            "self/exe".to_owned(),
            "self/cwd".to_owned(),
            "thread-self/root/etc".to_owned(),
            "1/cwd".to_owned(),
            format!("{own}/ns/net"),
            format!("{own}/fd/{fd}"),
            format!("{own}/task/{own}/fd/{fd}/made"),
            format!("sys/../{own}/root/tmp"),
        ] {
            for path in [Path::new("/proc").join(&name), way.join(&name)] {
                for missing in [Missing::Refused, Missing::Made] {
                    let asked = Asked {
                        pod: "p".to_owned(),
                        places: vec![path.clone()],
                        limit: Duration::from_secs(30),
                    };
                    let at = path.clone();
                    let found = Foreign::default().run(asked, move |p| find(p, &at, missing)).await.unwrap();
                    assert!(matches!(found, Err(ForeignError::Procfs { .. })), "{path:?}: {found:?}");
                }
            }
        }
        assert_eq!(std_fs::read_dir(dir.path()).unwrap().count(), 1);
        // What /etc/mtab leads to, and its like.
        for (path, expected) in [
            ("/proc/mounts", "/proc/1/mounts"),
            ("/proc/self/mountinfo", "/proc/1/mountinfo"),
            ("/proc/net/dev", "/proc/1/net/dev"),
            ("/proc/self", "/proc/1"),
            ("/proc/thread-self/stat", "/proc/1/task/1/stat"),
        ] {
            let found = find_in(Path::new(path), Missing::Refused).await.unwrap();
            assert_eq!(found, Path::new(expected), "{path}");
        }
    }
}
