//! Removes trees of any shape with bounded memory and descriptors: deep directories are moved up before they are
//! emptied. Never follows a symlink and never leaves the tree.

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::io;
use std::path::Path;

/// Directories open at once; deeper ones are moved to the top first.
const MAX_OPEN: usize = 32;

/// Removes the directory at `path` and all in it. Absent is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(fs::unlink(path)?),
        Err(e) => return Err(e.into()),
    };
    let mut moved = 0u64;
    // A pass may move directories to the top, behind the reader's back; it ends when one finds nothing.
    while empty(&top, &top, 0, &mut moved)? > 0 {}
    match fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Empties `dir`; returns the number of entries that it met.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<u64> {
    let mut met = 0;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        met += 1;
        if entry.file_type() != FileType::Directory {
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if depth >= MAX_OPEN {
            move_up(dir, name, top, moved)?;
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = fs::openat(dir, name, flags, Mode::empty())?;
        while empty(&child, top, depth + 1, moved)? > 0 {}
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    }
    Ok(met)
}

fn move_up(dir: &OwnedFd, name: &std::ffi::CStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match fs::renameat_with(dir, name, top, format!("moved-{moved}"), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_path_max_goes() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("deep");
        std::fs::create_dir(&top).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = fs::open(&top, flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            fs::mkdirat(&at, "dd", Mode::RWXU).unwrap();
            fs::symlinkat("/etc", &at, "link").unwrap();
            at = fs::openat(&at, "dd", flags, Mode::empty()).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(Path::new("/etc/passwd").exists());
        remove_tree(&top).unwrap();
    }
}
