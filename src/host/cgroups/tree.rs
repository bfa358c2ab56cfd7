//! Walks over a cgroup and those below it, which their container may have made: as deep as it likes, with paths longer than
//! any system call takes. So it goes from directory to directory by descriptor, two at a time, without recursion; what it
//! keeps for a cgroup is its name, of which the kernel keeps a hundred times as much.

use super::CgroupError;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts to remove a tree in which last processes are still being reaped, with [`REMOVE_PAUSE`] between.
const REMOVE_ATTEMPTS: usize = 50;
/// Half a second in all: an exiting process leaves its cgroup within milliseconds.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A cgroup on the way down.
struct Level {
    /// Empty for the first.
    name: CString,
    /// Those below it that were not visited yet.
    left: Vec<CString>,
}

/// Where a walk is.
struct Walk<'a> {
    top: &'a Path,
    levels: Vec<Level>,
}

impl Walk<'_> {
    /// An error there, with no more of the path than fits a line.
    fn failed(&self, operation: &'static str, below: Option<&CStr>, cause: Errno) -> CgroupError {
        let names: Vec<&CStr> =
            self.levels.iter().skip(1).map(|level| level.name.as_c_str()).chain(below).collect();
        let shown = |name: &CStr| name.to_bytes().escape_ascii().to_string();
        let path: PathBuf = match names.as_slice() {
            [] => self.top.to_owned(),
            [name] => self.top.join(shown(name)),
            [_, between @ .., name] => {
                self.top.join(format!("({} more)", between.len() + 1)).join(shown(name))
            }
        };
        CgroupError::Io { operation, path, cause: cause.into() }
    }
}

/// Calls `enter` with each directory of the tree, the upper ones first, and `leave` with that above it and its name when
/// all below it were visited; not for the first. What is gone is left out.
fn walk(
    top: &Path,
    mut enter: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> Result<(), Errno>,
) -> Result<(), CgroupError> {
    let mut walk = Walk { top, levels: Vec::new() };
    let mut here = match openat(CWD, top, DIRECTORY, Mode::empty()) {
        Ok(here) => here,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(walk.failed("open", None, error)),
    };
    enter(here.as_fd()).map_err(|error| walk.failed("read", None, error))?;
    let left = children(&here).map_err(|error| walk.failed("list", None, error))?;
    walk.levels.push(Level { name: CString::default(), left });
    while let Some(level) = walk.levels.last_mut() {
        if let Some(name) = level.left.pop() {
            let found = match openat(&here, &name, DIRECTORY, Mode::empty()) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::NODEV) => continue,
                Err(error) => return Err(walk.failed("open", Some(&name), error)),
            };
            enter(found.as_fd()).map_err(|error| walk.failed("read", Some(&name), error))?;
            let left = children(&found).map_err(|error| walk.failed("list", Some(&name), error))?;
            walk.levels.push(Level { name, left });
            here = found;
        } else if let Some(done) = walk.levels.pop()
            && !walk.levels.is_empty()
        {
            // Cgroups cannot be moved to another parent.
            here = openat(&here, "..", DIRECTORY, Mode::empty())
                .map_err(|error| walk.failed("open", Some(&done.name), error))?;
            leave(here.as_fd(), &done.name)
                .map_err(|error| walk.failed("remove", Some(&done.name), error))?;
        }
    }
    Ok(())
}

/// Names of the cgroups directly below one.
fn children(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    // Of its name and its own `.`: the kernel (kernfs) counts one more for each below.
    if fstat(dir)?.st_nlink == 2 {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Adds the processes of a cgroup and of all below it.
pub(super) fn collect_pids(top: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    walk(
        top,
        |dir| {
            let file = openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let mut text = String::new();
            match file.and_then(|file| read_all(&file, &mut text)) {
                // A cgroup that goes meanwhile has none, and one whose kind is `threaded` tells none.
                Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
            // 0 is a process outside our pid namespace.
            pids.extend(text.lines().filter_map(|l| l.trim().parse::<i32>().ok()).filter(|p| *p > 0));
            Ok(())
        },
        |_, _| Ok(()),
    )
}

/// Thaws a cgroup of v1's freezer hierarchy and all below it, the upper ones first: one is frozen as long as one above it
/// is.
pub(super) fn thaw(top: &Path) -> Result<(), CgroupError> {
    walk(
        top,
        |dir| {
            let file = openat(dir, "freezer.state", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            match file.and_then(|file| rustix::io::write(&file, b"THAWED")) {
                Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
                Err(error) => Err(error),
            }
        },
        |_, _| Ok(()),
    )
}

fn read_all(file: &OwnedFd, text: &mut String) -> Result<(), Errno> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    text.push_str(&String::from_utf8_lossy(&bytes));
    Ok(())
}

/// Removes the cgroups below one, except those that have processes, and those above them.
pub(super) fn remove_below(top: &Path) -> Result<(), CgroupError> {
    walk(
        top,
        |_| Ok(()),
        |above, name| match unlinkat(above, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY) => Ok(()),
            Err(error) => Err(error),
        },
    )
}

/// Removes a cgroup and all below it.
pub(super) fn remove(top: &Path) -> Result<(), CgroupError> {
    let mut attempt = 1;
    loop {
        remove_below(top)?;
        match std::fs::remove_dir(top) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && attempt < REMOVE_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(cause) => return Err(CgroupError::Io { operation: "remove", path: top.to_owned(), cause }),
        }
    }
}
