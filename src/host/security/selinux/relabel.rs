//! Labels on files: of one, or of a tree, as SELinux's attribute.
//!
//! A tree may be changed by others meanwhile, those who are to be confined included. So no symbolic link is ever
//! followed, neither on the way to the tree nor in it: each file is named by its open directory and its last name. What
//! is mounted in the tree is somebody else's, and keeps its labels.

use super::SelinuxError;
use crate::host::walk::{self, Failed, Visitor};
use podwright_sys::path::open_without_links;
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, RawDirEntry, Stat, StatxAttributes, StatxFlags, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// SELinux's attribute.
const ATTRIBUTE: &str = "security.selinux";
/// The system's own places, which are never relabelled: programs of the host would lose access to them. go-selinux has
/// the same list; what is below is the pod's own choice.
const FORBIDDEN: [&str; 26] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/var",
    "/var/lib",
    "/var/log",
];
/// Room for a label that is compared. A longer one counts as different.
const LABEL: usize = 1024;

/// What the label of a tree's root says of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: every file is looked at.
    Root,
    /// Everything: a tree whose root has the label is left as it is.
    Tree,
}

/// Labels a path, which has no symbolic link in it, and all that is below. A file that has the label already is not
/// written to, so that what was interrupted goes on where it was; the root comes last. File systems without labels are
/// left out. Blocking, for as long as the tree is large; `moves` is called for each file.
///
/// # Errors
/// When the path is the system's own, or a file cannot be labelled. What vanishes meanwhile is none.
pub fn relabel(root: &Path, label: &str, known: Known, moves: &dyn Fn()) -> Result<(), SelinuxError> {
    if FORBIDDEN.iter().any(|path| Path::new(path) == root) {
        return Err(SelinuxError::Forbidden { path: root.to_owned() });
    }
    let labels = Labels { label, moves };
    let failed = |cause: std::io::Error| labels.failed(root, cause);
    let file = open_without_links(root, OFlags::PATH).map_err(failed)?;
    let whole = File::Open(&file);
    if known == Known::Tree && labels.are_on(whole) {
        return Ok(());
    }
    let stat = fs::fstat(&file).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        labels.walk(walk::open(&file, c".").map_err(|e| failed(e.into()))?)?;
    }
    labels.put_on(whole).map(drop)
}

/// Labels one file or directory of our own, without what is in it. A file system without labels is left as it is.
///
/// # Errors
/// When it cannot be labelled.
pub fn label_file(path: &Path, label: &str) -> Result<(), SelinuxError> {
    let labels = Labels { label, moves: &|| {} };
    let file = fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| labels.failed(path, error.into()))?;
    labels.put_on(File::Open(&file)).map(drop)
}

/// A file by what cannot be exchanged for another one meanwhile.
#[derive(Clone, Copy)]
enum File<'a> {
    /// Open, perhaps only as a place (`O_PATH`).
    Open(&'a OwnedFd),
    /// What has the name in an open directory, be it a symbolic link.
    In(&'a OwnedFd, &'a CStr),
}

impl File<'_> {
    /// A name for the kernel: attributes of what is open only as a place cannot be had by its descriptor.
    fn name(self) -> CString {
        let name = match self {
            Self::Open(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes(),
            Self::In(directory, name) => {
                let directory = format!("/proc/self/fd/{}/", directory.as_raw_fd());
                [directory.as_bytes(), name.to_bytes()].concat()
            }
        };
        // Neither part has a NUL.
        CString::new(name).unwrap_or_default()
    }

    /// A path for people.
    fn shown(self) -> PathBuf {
        let (file, name) = match self {
            Self::Open(file) => (file, c""),
            Self::In(directory, name) => (directory, name),
        };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        if name.is_empty() { path } else { path.join(OsStr::from_bytes(name.to_bytes())) }
    }

    fn get(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            // That name is a link, to the file.
            Self::Open(_) => fs::getxattr(self.name(), ATTRIBUTE, buffer),
            Self::In(..) => fs::lgetxattr(self.name(), ATTRIBUTE, buffer),
        }
    }

    fn set(self, value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(_) => fs::setxattr(self.name(), ATTRIBUTE, value, XattrFlags::empty()),
            Self::In(..) => fs::lsetxattr(self.name(), ATTRIBUTE, value, XattrFlags::empty()),
        }
    }
}

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Labelled,
    /// Its file system has no labels, or the file is gone.
    LeftOut,
}

/// One label, and the ways to put it on files.
#[derive(Clone, Copy)]
struct Labels<'a> {
    label: &'a str,
    moves: &'a dyn Fn(),
}

impl Labels<'_> {
    fn are_on(&self, file: File<'_>) -> bool {
        let mut buffer = [0; LABEL];
        let Ok(length) = file.get(&mut buffer) else { return false };
        let found = buffer.get(..length).unwrap_or_default();
        found.strip_suffix(b"\0").unwrap_or(found) == self.label.as_bytes()
    }

    fn put_on(&self, file: File<'_>) -> Result<Outcome, SelinuxError> {
        if self.are_on(file) {
            return Ok(Outcome::Labelled);
        }
        match file.set(self.label.as_bytes()) {
            Ok(()) => Ok(Outcome::Labelled),
            Err(Errno::OPNOTSUPP | Errno::NOENT) => Ok(Outcome::LeftOut),
            Err(error) => Err(self.failed(&file.shown(), error.into())),
        }
    }

    /// Labels what is in a directory, at any depth.
    fn walk(self, root: OwnedFd) -> Result<(), SelinuxError> {
        let shown = File::Open(&root).shown();
        walk::whole(self, root).map(drop).map_err(|failed| match failed {
            Failed::Read(error) => self.failed(&shown, error.into()),
            Failed::Visit(error) => error,
        })
    }

    fn failed(&self, path: &Path, cause: std::io::Error) -> SelinuxError {
        SelinuxError::Set { path: path.to_owned(), label: self.label.to_owned(), cause }
    }
}

/// Whether something is mounted there. A kernel that does not say it (before Linux 5.8) does not go in either.
fn is_mount_point(directory: &OwnedFd, name: &CStr) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    fs::statx(directory, name, flags, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

impl Visitor for Labels<'_> {
    type Error = SelinuxError;

    fn entry(
        &mut self,
        directory: &OwnedFd,
        _: &Stat,
        entry: &RawDirEntry<'_>,
    ) -> Result<bool, SelinuxError> {
        (self.moves)();
        let name = entry.file_name();
        if is_mount_point(directory, name) {
            return Ok(false);
        }
        let outcome = self.put_on(File::In(directory, name))?;
        let kind = match entry.file_type() {
            FileType::Unknown => fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            known => known,
        };
        Ok(outcome == Outcome::Labelled && kind == FileType::Directory)
    }

    fn unreadable(&mut self, directory: &OwnedFd, name: &CStr, error: Errno) -> Result<(), SelinuxError> {
        match error {
            // It vanished, or became something else.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Ok(()),
            // Something was mounted there meanwhile.
            Errno::XDEV => Ok(()),
            error => Err(self.failed(&File::In(directory, name).shown(), error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::walk::{down_a_deep_tree, make_a_deep_tree};
    use std::os::unix::fs::symlink;

    fn relabel(root: &Path, label: &str, known: Known) -> Result<(), SelinuxError> {
        let told = std::cell::Cell::new(0);
        super::relabel(root, label, known, &|| told.set(told.get() + 1))?;
        let has_files = std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
        assert!(
            told.get() > 0 || !has_files || known == Known::Tree,
            "nobody could tell it from one that hangs"
        );
        Ok(())
    }

    const LABEL_A: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    const LABEL_B: &str = "system_u:object_r:container_file_t:s0:c3,c4";

    fn label_of(path: &Path) -> Option<String> {
        let mut buffer = [0; 256];
        let length = fs::lgetxattr(path, ATTRIBUTE, &mut buffer[..]).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    #[test]
    fn a_tree_is_labelled_whole_and_links_are_labelled_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "").unwrap();
        std::fs::write(root.join("a/b/file"), "").unwrap();
        std::fs::write(root.join("a/unreadable"), "").unwrap();
        symlink(&outside, root.join("a/out")).unwrap();
        symlink("../../outside/secret", root.join("a/file-out")).unwrap();
        rustix::fs::mknodat(fs::CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        relabel(&root, LABEL_A, Known::Root).unwrap();
        for name in ["", "a", "a/b", "a/b/file", "a/unreadable", "a/out", "a/file-out", "fifo"] {
            assert_eq!(label_of(&root.join(name)).as_deref(), Some(LABEL_A), "{name}");
        }
        assert_eq!((label_of(&outside), label_of(&outside.join("secret"))), (None, None));
        // One that goes through a link is refused.
        let error = relabel(&root.join("a/out/secret"), LABEL_A, Known::Root).unwrap_err();
        assert!(matches!(error, SelinuxError::Set { .. }), "{error}");
        assert_eq!(label_of(&outside.join("secret")), None);
    }

    #[test]
    fn a_tree_whose_root_has_the_label_is_only_skipped_when_that_says_everything() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        label_file(&root, LABEL_B).unwrap();
        assert_eq!(label_of(&root.join("file")), None);
        relabel(&root, LABEL_B, Known::Tree).unwrap();
        assert_eq!(label_of(&root.join("file")), None);
        relabel(&root, LABEL_B, Known::Root).unwrap();
        assert_eq!(label_of(&root.join("file")).as_deref(), Some(LABEL_B));
        relabel(&root.join("file"), LABEL_A, Known::Tree).unwrap();
        assert_eq!(label_of(&root.join("file")).as_deref(), Some(LABEL_A));
        assert_eq!(label_of(&root).as_deref(), Some(LABEL_B));
    }

    #[test]
    fn a_tree_deeper_than_path_max_and_open_directories_is_labelled_whole() {
        let root = tempfile::tempdir().unwrap();
        make_a_deep_tree(root.path());
        relabel(&root.path().canonicalize().unwrap(), LABEL_A, Known::Root).unwrap();
        down_a_deep_tree(root.path(), |at, names| {
            for name in names {
                let labels = Labels { label: LABEL_A, moves: &|| {} };
                assert!(labels.are_on(File::In(at, &CString::new(name).unwrap())), "{name:?}");
            }
        });
    }

    #[test]
    fn what_is_mounted_in_a_tree_keeps_its_labels() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let point = root.join("point");
        std::fs::create_dir(&point).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        let no_data: Option<&CStr> = None;
        // A part of the same file system, and of another one.
        for (source, kind, flags) in [
            (root.join("other"), "none", rustix::mount::MountFlags::BIND),
            (PathBuf::from("none"), "tmpfs", rustix::mount::MountFlags::empty()),
        ] {
            let _ = std::fs::create_dir(root.join("other"));
            rustix::mount::mount(&source, &point, kind, flags, no_data).unwrap();
            std::fs::write(point.join("in"), "").unwrap();
            let outside = root.join("other");
            std::fs::rename(&outside, root.with_extension("away")).unwrap();
            let done = relabel(&root, LABEL_B, Known::Root);
            let labels = [label_of(&point), label_of(&point.join("in"))];
            std::fs::rename(root.with_extension("away"), &outside).unwrap();
            rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
            done.unwrap();
            assert!(labels.iter().all(|label| label.as_deref() != Some(LABEL_B)), "{kind}: {labels:?}");
            assert_eq!(label_of(&root.join("file")).as_deref(), Some(LABEL_B));
        }
    }

    #[test]
    fn what_has_no_labels_is_left_out_and_the_systems_own_is_refused() {
        // procfs has no attributes.
        relabel(Path::new("/proc/sys/kernel"), LABEL_A, Known::Root).unwrap();
        for path in ["/", "/usr", "/etc", "/var/lib"] {
            let error = relabel(Path::new(path), LABEL_A, Known::Root).unwrap_err();
            assert!(matches!(error, SelinuxError::Forbidden { .. }), "{path}: {error}");
        }
        let error = relabel(Path::new("/nonexistent/x"), LABEL_A, Known::Root).unwrap_err();
        assert!(error.to_string().starts_with("label /nonexistent/x system_u:"), "{error}");
    }
}
