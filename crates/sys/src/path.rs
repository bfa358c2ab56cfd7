//! Paths under foreign control, resolved inside a root that they cannot leave (openat2).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat, openat2,
};

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

/// Opens what `place` (`O_PATH`) holds with other flags, if it is a regular file; None: it is not. The open of a device may
/// have effects (a watchdog, a tape, a serial line), and that of a pipe waits, so neither is opened to find out.
///
/// # Errors
/// The kernel's.
pub fn reopen_regular(place: BorrowedFd<'_>, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    if FileType::from_raw_mode(fstat(place)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    // The way to the open file is a link itself.
    let flags = flags.difference(OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    Ok(Some(openat(CWD, format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty())?))
}

/// Opens the directory `below` of the directory `top` (`O_PATH`). Neither `top` nor anything below it may be a symbolic
/// link; its parents may, unless they are magic links of procfs. With a mode, missing directories are created.
///
/// # Errors
/// The kernel's: ENOTDIR for a link, ELOOP for a magic one. `InvalidInput` for a path with `..` or an absolute one below.
pub fn open_directory_without_links(top: &Path, below: &Path, make: Option<Mode>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A slash at the end would have a link followed.
    let top: std::path::PathBuf = top.components().collect();
    if make.is_some() {
        make_directories(&top)?;
    }
    // Those of procfs would lead into this process: to its root, its descriptors.
    let mut here = resolve(CWD, &top, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
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

/// Creates a directory with its missing parents, but not behind a magic link.
fn make_directories(path: &Path) -> io::Result<()> {
    let existing = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        resolve(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
    };
    let is_absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    for above in path.ancestors() {
        match existing(if above == Path::new("") { Path::new(".") } else { above }) {
            Err(error) if is_absent(&error) => {}
            found => {
                found?;
                break;
            }
        }
    }
    std::fs::DirBuilder::new().recursive(true).create(path)
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

    #[test]
    fn nothing_but_a_regular_file_is_opened_to_find_out_what_it_is() {
        let dir = std::env::temp_dir().join(format!("podwright-sys-regular-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), "text").unwrap();
        symlink("file", dir.join("link")).unwrap();
        rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        // The open of a terminal that nobody has is ENXIO: it was not opened.
        let tty = rustix::fs::makedev(5, 0);
        rustix::fs::mknodat(CWD, dir.join("tty"), FileType::CharacterDevice, Mode::RWXU, tty).unwrap();
        let reopened = |name: &str, flags| {
            let place = openat(CWD, dir.join(name), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
            reopen_regular(place.as_fd(), flags).unwrap()
        };
        let mut text = String::new();
        use std::io::Read as _;
        let file = reopened("file", OFlags::RDONLY | OFlags::NOFOLLOW).unwrap();
        std::fs::File::from(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        for name in ["link", "fifo", "tty"] {
            assert!(reopened(name, OFlags::WRONLY).is_none(), "{name}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn no_directory_is_made_or_opened_behind_a_magic_link() {
        let dir = std::env::temp_dir().join(format!("podwright-sys-magic-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let root = open_root(&dir).unwrap();
        let mode = Some(Mode::from_raw_mode(0o755));
        for top in [
            format!("/proc/self/fd/{}/logs", root.as_raw_fd()),
            format!("/proc/self/root{}/logs", dir.display()),
            format!("/proc/self/root{}/a/b/logs", dir.display()),
        ] {
            let refused = open_directory_without_links(Path::new(&top), Path::new("x"), mode).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()), "{top}");
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        open_directory_without_links(&dir.join("logs/a"), Path::new("x"), mode).unwrap();
        assert!(dir.join("logs/a/x").is_dir());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
