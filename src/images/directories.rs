//! The directories-only layer on top of an image. A layer with `a/b/file` but no entries for `a` and `a/b` does not
//! define their metadata; overlayfs would show the unpacker's defaults. If a lower layer defines them, a tiny layer on
//! top repeats them. Blocking.

use super::digest::Digest;
use super::error::ImageError;
use super::staging::Staging;
use super::store::Store;
use super::unpack::{Meta, OPAQUE, Unpacked, apply_dir, is_whiteout, read_dir};
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A layer, opened, with what it only implies.
struct Level {
    root: OwnedFd,
    implied: HashSet<Vec<u8>>,
}

/// One level's information about a path.
enum Says {
    Nothing,
    /// It hides everything below.
    Hidden,
    Directory {
        meta: Meta,
        implied: bool,
        opaque: bool,
    },
}

/// The merged view of a directory.
enum Merged {
    Absent,
    /// The topmost explicit metadata, or the unpacker's own; and whether the topmost level only implied it.
    Present {
        meta: Meta,
        from_below: bool,
    },
}

/// A built directories layer.
#[derive(Debug)]
pub(crate) struct Directories {
    pub(crate) key: String,
    pub(crate) staging: Staging,
    pub(crate) unpacked: Unpacked,
}

fn plain() -> Meta {
    Meta { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
}

/// Builds the layer for a stack (bottom first), if one is needed.
pub(crate) fn build(store: &Store, stack: &[String]) -> Result<Option<Directories>, ImageError> {
    let mut candidates = BTreeSet::new();
    let mut levels = Vec::new();
    for key in stack.iter().rev() {
        let implied: HashSet<Vec<u8>> = store.index().implied(key)?.into_iter().collect();
        candidates.extend(implied.iter().cloned());
        let path = store.layer_fs(key);
        let root = open(rustix::fs::CWD, path.as_os_str().as_bytes())
            .map_err(|e| ImageError::io("open", &path, e))?;
        levels.push(Level { root, implied });
    }
    let failed = |e: Errno| ImageError::io("read directories of", store.root(), e);
    let mut wanted: BTreeMap<Vec<u8>, Meta> = BTreeMap::new();
    for path in candidates {
        let Merged::Present { meta, from_below: true } = merged(&levels, &path).map_err(failed)? else {
            continue;
        };
        if (meta.mode, meta.uid, meta.gid) == (0o755, 0, 0) && meta.xattrs.is_empty() {
            continue;
        }
        wanted.insert(path.clone(), meta);
        // Its parents become topmost too, and must look as they do now.
        let mut above = path.as_slice();
        while let Some(slash) = above.iter().rposition(|b| *b == b'/') {
            above = &above[..slash];
            if !wanted.contains_key(above)
                && let Merged::Present { meta, .. } = merged(&levels, above).map_err(failed)?
            {
                wanted.insert(above.to_vec(), meta);
            }
        }
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let staging = Staging::new(&store.staging_dir())?;
    make(&staging.fs(), &wanted)?;
    let count = u64::try_from(wanted.len()).unwrap_or_default() + 1;
    Ok(Some(Directories {
        key: key(&wanted),
        staging,
        unpacked: Unpacked { bytes: count * 4096, inodes: count, implied: Vec::new() },
    }))
}

fn open(dir: impl rustix::fd::AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn merged(levels: &[Level], path: &[u8]) -> Result<Merged, Errno> {
    let mut implied_above = false;
    for level in levels {
        match says(level, path)? {
            Says::Nothing => {}
            Says::Hidden => break,
            Says::Directory { meta, implied: false, .. } => {
                return Ok(Merged::Present { meta, from_below: implied_above });
            }
            Says::Directory { opaque, .. } => {
                implied_above = true;
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(if implied_above { Merged::Present { meta: plain(), from_below: false } } else { Merged::Absent })
}

fn says(level: &Level, path: &[u8]) -> Result<Says, Errno> {
    let mut dir =
        fs::openat(&level.root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut opaque = is_opaque(&dir);
    for part in path.split(|b| *b == b'/') {
        match fs::statat(&dir, part, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(if opaque { Says::Hidden } else { Says::Nothing }),
            Err(e) => return Err(e),
            Ok(stat)
                if is_whiteout(&stat) || FileType::from_raw_mode(stat.st_mode) != FileType::Directory =>
            {
                return Ok(Says::Hidden);
            }
            Ok(_) => {}
        }
        dir = open(&dir, part)?;
        opaque |= is_opaque(&dir);
    }
    Ok(Says::Directory { meta: read_dir(&dir)?, implied: level.implied.contains(path), opaque })
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    fs::fgetxattr(dir, OPAQUE, &mut value[..]).is_ok_and(|n| n == 1 && value == *b"y")
}

fn make(root: &Path, wanted: &BTreeMap<Vec<u8>, Meta>) -> Result<(), ImageError> {
    for path in wanted.keys() {
        let path = root.join(OsStr::from_bytes(path));
        std::fs::create_dir(&path).map_err(|e| ImageError::io("make directory", &path, e))?;
    }
    // Children first: making them changed the times above.
    for (path, meta) in wanted.iter().rev() {
        let path = root.join(OsStr::from_bytes(path));
        let dir = std::fs::File::open(&path).map_err(|e| ImageError::io("open", &path, e))?;
        apply_dir(&dir, meta, &path)?;
    }
    Ok(())
}

/// The key of a directories layer on disk; Err: the path of something in it that is no directory.
pub(crate) fn key_of(root: &Path) -> Result<Result<String, Vec<u8>>, ImageError> {
    let mut found: BTreeMap<Vec<u8>, Meta> = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let shown = root.join(OsStr::from_bytes(&path));
        for entry in std::fs::read_dir(&shown).map_err(|e| ImageError::io("read directory", &shown, e))? {
            let name = entry.map_err(|e| ImageError::io("read directory", &shown, e))?.file_name();
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let inside = [&path[..], slash, name.as_bytes()].concat();
            let shown = root.join(OsStr::from_bytes(&inside));
            let dir = match open(rustix::fs::CWD, shown.as_os_str().as_bytes()) {
                Ok(dir) => dir,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Err(inside)),
                Err(e) => return Err(ImageError::io("open", &shown, e)),
            };
            let meta = read_dir(&dir).map_err(|e| ImageError::io("look at", &shown, e))?;
            found.insert(inside.clone(), meta);
            pending.push(inside);
        }
    }
    Ok(Ok(key(&found)))
}

/// The layer's key is the digest of its content in a form that no tar has.
fn key(wanted: &BTreeMap<Vec<u8>, Meta>) -> String {
    let mut text = b"podwright directories 1\n".to_vec();
    for (path, meta) in wanted {
        text.extend(
            format!(
                "{:o} {} {} {:?} {:?} {:?}\n",
                meta.mode, meta.uid, meta.gid, meta.mtime, meta.xattrs, path
            )
            .bytes(),
        );
    }
    Digest::sha256(&text).hex().to_owned()
}
