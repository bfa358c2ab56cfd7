//! What a container changed in its root file system, from the upper directory of its overlay: a tar of what is new or
//! changed, and the paths that it removed. Its processes are frozen meanwhile. Never follows a link.

use super::{CHANGES, DELETED};
use crate::sandbox::error::SandboxError;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tar::{Builder, EntryType, Header};

/// Extended attributes that overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Its mark of a directory that hides what is below.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Its mark of a directory that was renamed: its files stay in the layer below, under the old name.
const REDIRECT: &str = "trusted.overlay.redirect";
/// PAX keyword of an extended attribute.
const PAX_XATTR: &str = "SCHILY.xattr.";
/// Longest value of an extended attribute (XATTR_SIZE_MAX), and of the list of their names.
const XATTR_BYTES: usize = 64 << 10;

/// Writes both files into `dir`; without removals there is only the tar. `layers` are the lower directories, bottom first.
pub(super) fn write(
    upper: &Path,
    layers: &[PathBuf],
    dir: &Path,
    until: Instant,
) -> Result<(), SandboxError> {
    let tar = dir.join(CHANGES);
    let file = File::create(&tar).map_err(SandboxError::io("make", &tar))?;
    let mut walk = Walk {
        upper,
        layers,
        tar: Builder::new(BufWriter::new(file)),
        deleted: BTreeSet::new(),
        links: HashMap::new(),
        until,
    };
    walk.directory(Path::new("")).map_err(SandboxError::io("pack the changes in", upper))?;
    let deleted = std::mem::take(&mut walk.deleted);
    let written = walk.tar.into_inner().and_then(|mut file| file.flush());
    written.map_err(SandboxError::io("write", &tar))?;
    if deleted.is_empty() {
        return Ok(());
    }
    let path = dir.join(DELETED);
    let text = serde_json::to_vec(&deleted).map_err(|e| SandboxError::io("encode", &path)(e.into()))?;
    std::fs::write(&path, text).map_err(SandboxError::io("write", &path))
}

struct Walk<'a, W: io::Write> {
    upper: &'a Path,
    layers: &'a [PathBuf],
    tar: Builder<W>,
    /// Absolute, as the container saw them.
    deleted: BTreeSet<String>,
    /// Files with several names: the first one.
    links: HashMap<(u64, u64), PathBuf>,
    until: Instant,
}

impl<W: io::Write> Walk<'_, W> {
    /// What is in a directory, by name; the directory itself has been written.
    fn directory(&mut self, inside: &Path) -> io::Result<()> {
        let mut names: Vec<_> = std::fs::read_dir(self.upper.join(inside))?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in &names {
            if Instant::now() > self.until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the checkpoint's time is over"));
            }
            let path = inside.join(name);
            let full = self.upper.join(&path);
            let meta = std::fs::symlink_metadata(&full)?;
            if is_whiteout(&meta) {
                self.delete(&path);
                continue;
            }
            self.entry(&path, &full, &meta)?;
            if meta.is_dir() {
                if attribute(&full, REDIRECT)?.is_some() {
                    let why =
                        format!("{}: a renamed directory (redirect_dir) cannot be packed", path.display());
                    return Err(io::Error::new(io::ErrorKind::Unsupported, why));
                }
                if attribute(&full, OPAQUE)?.is_some() {
                    self.hidden(&path)?;
                }
                self.directory(&path)?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, path: &Path) {
        self.deleted.insert(Path::new("/").join(path).to_string_lossy().into_owned());
    }

    /// A directory was removed and made anew: what its layers have there and it has not is gone.
    fn hidden(&mut self, path: &Path) -> io::Result<()> {
        for layer in self.layers {
            let below = layer.join(path);
            if !std::fs::symlink_metadata(&below).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            for entry in std::fs::read_dir(&below)? {
                let entry = entry?;
                let name = path.join(entry.file_name());
                if std::fs::symlink_metadata(self.upper.join(&name)).is_err()
                    && !is_whiteout(&entry.metadata()?)
                {
                    self.delete(&name);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, full: &Path, meta: &Metadata) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or_default());
        header.set_size(0);
        let kind = meta.file_type();
        if meta.nlink() > 1 && !meta.is_dir() {
            let key = (meta.dev(), meta.ino());
            if let Some(first) = self.links.get(&key) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, path, first);
            }
            self.links.insert(key, path.to_owned());
        }
        self.attributes(full)?;
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar.append_data(&mut header, path, io::empty())
        } else if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(CWD, full, flags, Mode::empty())?);
            // Exactly that many, even if somebody else changed it meanwhile: the header is written already.
            let exact = file.take(meta.len()).chain(io::repeat(0)).take(meta.len());
            self.tar.append_data(&mut header, path, exact)
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = std::fs::read_link(full)?;
            self.tar.append_link(&mut header, path, target)
        } else if kind.is_char_device() || kind.is_block_device() {
            header.set_entry_type(if kind.is_char_device() { EntryType::Char } else { EntryType::Block });
            header.set_device_major(rustix::fs::major(meta.rdev()))?;
            header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
            self.tar.append_data(&mut header, path, io::empty())
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            self.tar.append_data(&mut header, path, io::empty())
        } else {
            // A socket is its process's: CRIU has it.
            Ok(())
        }
    }

    /// Those that a layer may carry, as the header before the entry's own.
    fn attributes(&mut self, full: &Path) -> io::Result<()> {
        let mut names = vec![0; XATTR_BYTES];
        let length = match rustix::fs::llistxattr(full, &mut names[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            // SELinux's label is the container's of the moment.
            if name.starts_with(OVERLAY) || name == b"security.selinux" {
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            if let Some(value) = attribute(full, &name)? {
                found.push((format!("{PAX_XATTR}{name}"), value));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.tar.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_BYTES];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// overlayfs' mark of a removed file.
fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// The removals as the beginning of a layer's tar, to be read before the changes.
pub(super) fn whiteouts(deleted: &[String]) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for path in deleted {
        let path = Path::new(path.trim_start_matches('/'));
        let Some(name) = path.file_name() else { continue };
        let mut marked = b".wh.".to_vec();
        marked.extend_from_slice(OsStr::as_bytes(name));
        let path = path.with_file_name(std::ffi::OsString::from_vec(marked));
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        tar.append_data(&mut header, path, io::empty())?;
    }
    let mut bytes = tar.into_inner()?;
    // Without the two blocks by which a tar ends.
    bytes.truncate(bytes.len().saturating_sub(1024));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn whiteout(path: &Path) {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, path, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    }

    #[test]
    fn changes_and_removals_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower, out) =
            (dir.path().join("upper"), dir.path().join("lower"), dir.path().join("out"));
        for path in [upper.join("a/new"), lower.join("a/anew"), upper.join("a/anew"), out.clone()] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(upper.join("a/file"), "text").unwrap();
        std::fs::hard_link(upper.join("a/file"), upper.join("a/second")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", upper.join("link")).unwrap();
        whiteout(&upper.join("a/gone"));
        // Removed and made anew: of what was below, only `kept` is there again.
        std::fs::write(lower.join("a/anew/kept"), "").unwrap();
        std::fs::write(lower.join("a/anew/lost"), "").unwrap();
        std::fs::write(upper.join("a/anew/kept"), "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join("a/anew"), OPAQUE, b"y", flags).unwrap();
        rustix::fs::lsetxattr(upper.join("a/file"), "user.note", b"said", flags).unwrap();
        write(&upper, &[lower], &out, Instant::now() + Duration::from_secs(60)).unwrap();

        let deleted: Vec<String> =
            serde_json::from_slice(&std::fs::read(out.join(DELETED)).unwrap()).unwrap();
        assert_eq!(deleted, ["/a/anew/lost", "/a/gone"]);
        let mut archive = tar::Archive::new(File::open(out.join(CHANGES)).unwrap());
        let mut entries = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let noted = entry
                .pax_extensions()
                .unwrap()
                .into_iter()
                .flatten()
                .flatten()
                .any(|e| (e.key(), e.value_bytes()) == (Ok("SCHILY.xattr.user.note"), &b"said"[..]));
            let path = entry.path().unwrap().display().to_string();
            assert_eq!(noted, path == "a/file", "{path}");
            entries.push((path, entry.header().entry_type()));
        }
        use EntryType::{Directory, Link, Regular, Symlink};
        let expected = [
            ("a", Directory),
            ("a/anew", Directory),
            ("a/anew/kept", Regular),
            ("a/file", Regular),
            ("a/new", Directory),
            ("a/second", Link),
            ("link", Symlink),
        ];
        let expected: Vec<_> = expected.map(|(path, kind)| (path.to_owned(), kind)).into();
        assert_eq!(entries, expected);

        let prefix = whiteouts(&deleted).unwrap();
        assert_eq!(prefix.len() % 512, 0);
        let both = prefix.chain(File::open(out.join(CHANGES)).unwrap());
        let mut archive = tar::Archive::new(both);
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names[..3], ["a/anew/.wh.lost", "a/.wh.gone", "a"]);
        let late = write(&upper, &[], &out, Instant::now()).unwrap_err();
        assert!(late.to_string().contains("time is over"), "{late}");
    }
}
