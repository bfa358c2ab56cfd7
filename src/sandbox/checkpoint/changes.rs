//! What a container changed in its root file system, from the upper directory of its overlay: a tar of what is new or
//! changed, and the paths that it removed. Its processes are frozen meanwhile. Never follows a link.

use crate::host::foreign::{Moving, Progress};
use crate::host::walk::{self, Failed, Visitor};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::layout::{CHANGES, DELETED};
use podwright_sys::path::reopen_regular;
use rustix::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags, Stat, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
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

/// Longest path that is packed: longer ones could not be unpacked when the container is restored.
const MAX_PATH: usize = 4095;
/// Bytes of the paths that are remembered: of what was removed, and of files that may have further names. A container that
/// removed a million files has some 50 MiB.
const MAX_PATHS: usize = 64 << 20;

/// Writes both files into `dir`; without removals there is only the tar. `layers` are the lower directories, bottom first.
pub(super) fn write(
    upper: &Path,
    layers: &[PathBuf],
    dir: &Path,
    until: Instant,
    progress: Option<&Progress>,
) -> Result<(), SandboxError> {
    let tar = dir.join(CHANGES);
    let file = File::create(&tar).map_err(SandboxError::io("make", &tar))?;
    let changes = Changes {
        layers,
        tar: Builder::new(BufWriter::new(Moving::new(file, progress))),
        inside: PathBuf::new(),
        deleted: BTreeSet::new(),
        links: HashMap::new(),
        remembered: 0,
        until,
    };
    let failed = SandboxError::io("pack the changes in", upper);
    let root = walk::open(CWD, upper).map_err(|e| SandboxError::io("open", upper)(e.into()))?;
    let changes = walk::whole(changes, root).map_err(|error| match error {
        Failed::Read(error) => failed(error.into()),
        Failed::Visit(error) => failed(error),
    })?;
    let written = changes.tar.into_inner().and_then(|mut file| file.flush());
    written.map_err(SandboxError::io("write", &tar))?;
    if changes.deleted.is_empty() {
        return Ok(());
    }
    let path = dir.join(DELETED);
    let text =
        serde_json::to_vec(&changes.deleted).map_err(|e| SandboxError::io("encode", &path)(e.into()))?;
    std::fs::write(&path, text).map_err(SandboxError::io("write", &path))
}

/// What is packed, by the one way through trees that others made.
struct Changes<'a, W: io::Write> {
    layers: &'a [PathBuf],
    tar: Builder<W>,
    /// Where the walk is.
    inside: PathBuf,
    /// Absolute, as the container saw them.
    deleted: BTreeSet<String>,
    /// Files with several names: the first one.
    links: HashMap<(u64, u64), PathBuf>,
    /// Bytes in both.
    remembered: usize,
    until: Instant,
}

impl<W: io::Write> Visitor for Changes<'_, W> {
    type Error = io::Error;

    fn entry(&mut self, directory: &OwnedFd, own: &Stat, entry: &RawDirEntry<'_>) -> io::Result<bool> {
        if Instant::now() > self.until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the checkpoint's time is over"));
        }
        let name = entry.file_name();
        let path = self.inside.join(OsStr::from_bytes(name.to_bytes()));
        if path.as_os_str().len() > MAX_PATH {
            return Err(refused(&path, "has a path too long to be packed"));
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_whiteout(&stat) {
            self.delete(&path)?;
            return Ok(false);
        }
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory && stat.st_dev != own.st_dev {
            return Err(refused(&path, "is mounted there, and no change of the container's"));
        }
        self.pack(&path, directory, name, &stat)?;
        if is_directory {
            let here = Name(directory, name);
            if here.attribute(REDIRECT)?.is_some() {
                return Err(refused(&path, "is a renamed directory (redirect_dir), which cannot be packed"));
            }
            if here.attribute(OPAQUE)?.is_some() {
                self.hidden(&path, &walk::open_in(directory, name)?)?;
            }
        }
        Ok(is_directory)
    }

    fn entered(&mut self, name: &CStr) {
        self.inside.push(OsStr::from_bytes(name.to_bytes()));
    }

    fn left(&mut self) {
        self.inside.pop();
    }

    fn unreadable(&mut self, _: &OwnedFd, name: &CStr, error: Errno) -> io::Result<()> {
        let path = self.inside.join(OsStr::from_bytes(name.to_bytes()));
        Err(io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", shown(&path))))
    }
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{} {why}", shown(path)))
}

/// The end of a path, for an error.
fn shown(path: &Path) -> String {
    let text = path.as_os_str().as_bytes();
    text.get(text.len().saturating_sub(200)..).unwrap_or_default().escape_ascii().to_string()
}

impl<W: io::Write> Changes<'_, W> {
    fn remember(&mut self, bytes: usize) -> io::Result<()> {
        self.remembered += bytes;
        if self.remembered > MAX_PATHS {
            let why = format!(
                "the paths of removed files and of those with several names take more than {MAX_PATHS} bytes"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(())
    }

    fn delete(&mut self, path: &Path) -> io::Result<()> {
        self.remember(path.as_os_str().len() + 1)?;
        self.deleted.insert(Path::new("/").join(path).to_string_lossy().into_owned());
        Ok(())
    }

    /// A directory was removed and made anew: what its layers have there and it has not is gone. No link leads out of a
    /// layer: with one on the way, it has no such directory.
    fn hidden(&mut self, path: &Path, upper: &OwnedFd) -> io::Result<()> {
        for layer in self.layers {
            let root = podwright_sys::path::open_root(layer)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let below = match openat2(&root, path, flags, Mode::empty(), how) {
                Ok(below) => below,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut buffer = Vec::with_capacity(XATTR_BYTES);
            let mut entries = RawDir::new(&below, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name();
                let is_dot = name.to_bytes() == b"." || name.to_bytes() == b"..";
                if is_dot || statat(upper, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    continue;
                }
                if !is_whiteout(&statat(&below, name, AtFlags::SYMLINK_NOFOLLOW)?) {
                    self.delete(&path.join(OsStr::from_bytes(name.to_bytes())))?;
                }
            }
        }
        Ok(())
    }

    fn pack(&mut self, path: &Path, directory: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut header = Header::new_gnu();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
        header.set_size(0);
        if stat.st_nlink > 1 && kind != FileType::Directory {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, path, first);
            }
            self.remember(path.as_os_str().len())?;
            self.links.insert(key, path.to_owned());
        }
        self.attributes(Name(directory, name))?;
        match kind {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.tar.append_data(&mut header, path, io::empty())
            }
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let place = openat(directory, name, flags, Mode::empty())?;
                // A device may have taken its place meanwhile, and is not opened.
                let file = reopen_regular(place.as_fd(), OFlags::RDONLY)?;
                let file = File::from(file.ok_or(io::ErrorKind::NotFound)?);
                // Exactly that many, even if somebody else changed it meanwhile: the header is written already.
                let exact = file.take(size).chain(io::repeat(0)).take(size);
                self.tar.append_data(&mut header, path, exact)
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = readlinkat(directory, name, Vec::new())?;
                self.tar.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let is_char = kind == FileType::CharacterDevice;
                header.set_entry_type(if is_char { EntryType::Char } else { EntryType::Block });
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.tar.append_data(&mut header, path, io::empty())
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.tar.append_data(&mut header, path, io::empty())
            }
            // A socket is its process's: CRIU has it.
            _ => Ok(()),
        }
    }

    /// Those that a layer may carry, as the header before the entry's own.
    fn attributes(&mut self, of: Name<'_>) -> io::Result<()> {
        let mut names = vec![0; XATTR_BYTES];
        let length = match rustix::fs::llistxattr(of.path(), &mut names[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            // SELinux's label is the container's of the moment.
            if name.starts_with(OVERLAY) || name == b"security.selinux" {
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            if let Some(value) = of.attribute(&name)? {
                found.push((format!("{PAX_XATTR}{name}"), value));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.tar.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

/// What has a name in an open directory: attributes cannot be had by both.
#[derive(Clone, Copy)]
struct Name<'a>(&'a OwnedFd, &'a CStr);

impl Name<'_> {
    fn path(self) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.0.as_raw_fd().to_string())
            .join(OsStr::from_bytes(self.1.to_bytes()))
    }

    fn attribute(self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; XATTR_BYTES];
        match rustix::fs::lgetxattr(self.path(), name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// overlayfs' mark of a removed file.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::acts::restore::whiteouts::whiteouts;
    use std::time::Duration;

    fn make_whiteout(path: &Path) {
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
        make_whiteout(&upper.join("a/gone"));
        // Removed and made anew: of what was below, only `kept` is there again.
        std::fs::write(lower.join("a/anew/kept"), "").unwrap();
        std::fs::write(lower.join("a/anew/lost"), "").unwrap();
        std::fs::write(upper.join("a/anew/kept"), "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join("a/anew"), OPAQUE, b"y", flags).unwrap();
        rustix::fs::lsetxattr(upper.join("a/file"), "user.note", b"said", flags).unwrap();
        write(&upper, &[lower], &out, Instant::now() + Duration::from_secs(60), None).unwrap();

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
            let is_file =
                entry.header().entry_type() == EntryType::Regular && path != "a/anew/kept" && path != "a/new";
            assert_eq!(noted, is_file, "{path}");
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
        // What is in a directory has no order, but comes after it.
        let place = |path: &str| entries.iter().position(|(p, _)| p == path).unwrap();
        assert!(place("a") < place("a/anew") && place("a/anew") < place("a/anew/kept"));
        let mut names: Vec<_> = entries.iter().map(|(path, _)| path.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, expected.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>());
        for (path, kind) in
            expected.iter().filter(|(path, _)| !["a/file", "a/second"].contains(&path.as_str()))
        {
            assert_eq!(entries[place(path)].1, *kind, "{path}");
        }
        // Whichever of the two comes first is the file.
        let (first, second) =
            (place("a/file").min(place("a/second")), place("a/file").max(place("a/second")));
        assert_eq!((entries[first].1, entries[second].1), (Regular, Link));

        let mut prefix = Vec::new();
        whiteouts(deleted).read_to_end(&mut prefix).unwrap();
        let mut many = whiteouts(vec!["x".to_owned(); 100_000]);
        let (mut piece, mut whole) = ([0; 4096], 0);
        while let read @ 1.. = many.read(&mut piece).unwrap() {
            whole += read;
            assert!(many.in_memory() <= 4096, "one removal at a time is in memory");
        }
        assert_eq!(whole, 100_000 * 512);
        assert_eq!(prefix.len() % 512, 0);
        let both = prefix.chain(File::open(out.join(CHANGES)).unwrap());
        let mut archive = tar::Archive::new(both);
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names[..2], ["a/anew/.wh.lost", "a/.wh.gone"]);
        let late = write(&upper, &[], &out, Instant::now(), None).unwrap_err();
        assert!(late.to_string().contains("time is over"), "{late}");
    }

    #[test]
    fn a_chain_of_19000_directories_is_refused_on_a_small_stack() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, out) = (dir.path().join("upper"), dir.path().join("out"));
        for path in [&upper, &out] {
            std::fs::create_dir(path).unwrap();
        }
        crate::host::walk::make_a_chain(&upper, 19_000);
        let small = std::thread::Builder::new().stack_size(256 << 10);
        let packed = {
            let (upper, out) = (upper.clone(), out.clone());
            let until = Instant::now() + Duration::from_secs(60);
            small
                .spawn(move || write(&upper, &[], &out, until, None).unwrap_err().to_string())
                .unwrap()
                .join()
                .unwrap()
        };
        assert!(packed.contains("too long to be packed") && packed.len() < 1000, "{packed}");
        crate::host::remove::tree(&upper).unwrap();
    }

    #[test]
    fn links_in_a_layer_do_not_lead_to_the_hosts_names() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower, out, host) = (
            dir.path().join("upper"),
            dir.path().join("lower"),
            dir.path().join("out"),
            dir.path().join("host"),
        );
        for path in [upper.join("a/b"), lower.clone(), out.clone(), host.join("b/secret")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::os::unix::fs::symlink(&host, lower.join("a")).unwrap();
        rustix::fs::lsetxattr(upper.join("a/b"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        write(&upper, &[lower], &out, Instant::now() + Duration::from_secs(60), None).unwrap();
        assert!(!out.join(DELETED).exists());
    }
}
