//! Paths under foreign control, resolved inside a root that they cannot leave (openat2).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat, openat2};

/// Attempts at a resolution that races with a rename (the kernel answers EAGAIN); repeated failure means deliberate
/// renames.
const RACE_RETRIES: u32 = 16;

/// Opens a directory by path as a root for the functions below (`O_PATH`).
///
/// # Errors
/// The kernel's.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens `path` as a process with the root directory `root` would see it: absolute paths, `..` and symbolic links all
/// resolve inside. Magic links of procfs are refused. Always close-on-exec.
///
/// # Errors
/// The kernel's; `WouldBlock` when the tree was being renamed all the time.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    resolve(root, path, flags, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` below `root`; anything that would leave it (absolute, `..`, a symbolic link) is an error.
///
/// # Errors
/// The kernel's; `CrossesDevices` (EXDEV) when the path leaves the root.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    resolve(root, path, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

/// Opens an absolute, already resolved path in which no component is a symbolic link. Always close-on-exec.
///
/// # Errors
/// The kernel's; ELOOP if a component has become a link.
pub fn open_without_links(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    // Without O_NOFOLLOW: with O_PATH it would open a link at the end of the path instead of refusing it.
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    resolve(CWD, path, flags, Mode::empty(), how)
}

/// Opens the directory `below` of the directory `top` (`O_PATH`). Neither `top` nor anything below it may be a symbolic
/// link; its parents may. With a mode, missing directories are created.
///
/// # Errors
/// The kernel's: ENOTDIR for a link. `InvalidInput` for a path with `..` or an absolute one below.
pub fn open_directory_without_links(top: &Path, below: &Path, make: Option<Mode>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A slash at the end would have a link followed.
    let top: std::path::PathBuf = top.components().collect();
    if make.is_some() {
        std::fs::DirBuilder::new().recursive(true).create(&top)?;
    }
    let mut here = openat(CWD, &top, flags, Mode::empty())?;
    for component in below.components() {
        let name = match component {
            Component::CurDir => continue,
            Component::Normal(name) => name,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        match make.map(|mode| mkdirat(&here, name, mode)) {
            None | Some(Ok(()) | Err(rustix::io::Errno::EXIST)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
        here = openat(&here, name, flags, Mode::empty())?;
    }
    Ok(here)
}

/// Creates `path` and its missing parents inside `root`, each with `mode`, and returns the last one (`O_PATH`).
/// Existing symbolic links are followed inside the root; a dangling link is an error. New directories get `owner`, uid
/// and gid, if given.
///
/// # Errors
/// The kernel's; `InvalidInput` for a path with `..`.
pub fn mkdir_all_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: Mode,
    owner: Option<(u32, u32)>,
) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut walked = std::path::PathBuf::from(".");
    let mut here = open_in_root(root, &walked, flags, Mode::empty())?;
    for component in path.components() {
        let name: &OsStr = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        match (mkdirat(here.as_fd(), name, mode), owner) {
            (Ok(()), Some((uid, gid))) => {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                chownat(here.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            (Ok(()), None) | (Err(rustix::io::Errno::EXIST), _) => {}
            (Err(error), _) => return Err(error.into()),
        }
        walked.push(name);
        here = open_in_root(root, &walked, flags, Mode::empty())?;
    }
    Ok(here)
}

fn resolve(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, mode, how) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) if tries < RACE_RETRIES => tries += 1,
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn links_and_dots_stay_inside() {
        let dir = std::env::temp_dir().join(format!("podwright-sys-path-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/name"), "inside").unwrap();
        symlink("/etc", dir.join("link")).unwrap();
        symlink("/nowhere", dir.join("dangling")).unwrap();
        let root = open_root(&dir).unwrap();
        let read = OFlags::RDONLY;
        let file = open_in_root(root.as_fd(), Path::new("/../link/name"), read, Mode::empty()).unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(file)).unwrap(), "inside");
        assert!(open_beneath(root.as_fd(), Path::new("link/name"), read, Mode::empty()).is_err());
        let real = dir.canonicalize().unwrap();
        assert!(open_without_links(&real.join("etc/name"), read).is_ok());
        for through_a_link in ["link/name", "link"] {
            assert!(open_without_links(&real.join(through_a_link), OFlags::PATH).is_err());
        }
        assert!(open_beneath(root.as_fd(), Path::new("etc/name"), read, Mode::empty()).is_ok());
        let mode = Mode::from_raw_mode(0o755);
        // A link above is followed, the directory itself and all below may be none.
        let top = dir.join("link");
        for (top, below) in [("link/", "x"), ("link", "x"), ("etc", "sub"), ("etc", "../etc"), ("etc", "/")] {
            symlink(dir.join("etc"), dir.join("etc/sub")).ok();
            let opened = open_directory_without_links(&dir.join(top), Path::new(below), Some(mode));
            assert!(opened.is_err(), "{top} {below}");
        }
        assert!(!dir.join("etc/x").exists());
        let above = dir.join("above");
        symlink(&dir, &above).unwrap();
        assert!(open_directory_without_links(&above.join("etc"), Path::new("y/z"), None).is_err());
        open_directory_without_links(&above.join("etc"), Path::new("y/z"), Some(mode)).unwrap();
        assert!(dir.join("etc/y/z").is_dir() && top.is_symlink());
        mkdir_all_in_root(root.as_fd(), Path::new("/link/a/b"), mode, None).unwrap();
        assert!(dir.join("etc/a/b").is_dir());
        assert!(mkdir_all_in_root(root.as_fd(), Path::new("dangling/x"), mode, None).is_err());
        let own = std::fs::metadata(dir.join("etc")).unwrap();
        let owner = Some((own.uid(), own.gid()));
        mkdir_all_in_root(root.as_fd(), Path::new("etc/a/c/d"), mode, owner).unwrap();
        assert_eq!(std::fs::metadata(dir.join("etc/a/c/d")).unwrap().uid(), own.uid());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
