//! A container's root file system: an overlay mount of its image's layers, and the tmpfs of a pod's /dev/shm.
//!
//! Owns the mount calls. Never makes or removes directories, and never decides which layers there are.
//!
//! The new mount API takes one `lowerdir+` a layer (Linux 6.7), so the 4 KiB limit of mount(2)'s option string does
//! not bite. Older kernels get mount(2) with every layer named by an open descriptor, which keeps that string short.

mod volume;

pub use volume::mount_read_only;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// fsconfig(2) copies a string value of at most 256 bytes, NUL included (fs/fsopen.c).
const MAX_FSCONFIG_VALUE: usize = 255;
/// mount(2) takes one page of options (fs/namespace.c, copy_mount_options).
const MAX_MOUNT_DATA: usize = 4095;
/// Unmounts of one path before giving up; more than one only where something stacked a mount on ours.
const MAX_STACKED_MOUNTS: usize = 16;

/// Why a root file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// An overlay needs at least one layer.
    #[error("mount overlay on {}: the image has no layer", target.display())]
    NoLayers {
        /// Mount point.
        target: PathBuf,
    },
    /// A directory could not be opened.
    #[error("open {} for a mount: {cause}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// The kernel refused an option.
    #[error("set {fstype} option {key}={value:?} for {}: {cause}{detail}", target.display())]
    Option {
        /// File system type.
        fstype: &'static str,
        /// Option name.
        key: String,
        /// Option value.
        value: String,
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
        /// The kernel's own words, where it gave some.
        detail: String,
    },
    /// The option string of mount(2) would exceed one page.
    #[error("mount overlay on {}: options of {layers} layers take {bytes} bytes, more than a page", target.display())]
    TooManyLayers {
        /// Mount point.
        target: PathBuf,
        /// Number of layers.
        layers: usize,
        /// Bytes.
        bytes: usize,
    },
    /// The mount failed.
    #[error("{step} of {fstype} on {}: {cause}{detail}", target.display())]
    Mount {
        /// File system type.
        fstype: &'static str,
        /// System call.
        step: &'static str,
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
        /// The kernel's own words, where it gave some.
        detail: String,
    },
    /// The unmount failed.
    #[error("unmount {}: {cause}", target.display())]
    Unmount {
        /// Mount point.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// It could not be found out whether a path is a mount point.
    #[error("look whether {} is a mount point: {cause}", target.display())]
    Inspect {
        /// The path.
        target: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
}

/// Mounts an overlay of `lowers` (bottom layer first) with `upper` and `work` on `target`. Each of `options` is
/// `key` or `key=value`, such as `volatile`.
///
/// # Errors
/// When a directory is missing or the kernel refuses; nothing is left mounted then.
pub fn mount(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    options: &[&str],
) -> Result<(), RootfsError> {
    if lowers.is_empty() {
        return Err(RootfsError::NoLayers { target: target.to_owned() });
    }
    if !checks_options() {
        return mount_by_page(lowers, Some((upper, work)), target, options);
    }
    match mount_by_fsconfig(lowers, upper, work, target, options) {
        // A kernel before 6.7 does not know `lowerdir+`; one before 5.2 has no fsopen(2).
        Err(e) if lacks_lowerdir_plus(&e) => mount_by_page(lowers, Some((upper, work)), target, options),
        done => done,
    }
}

/// Whether overlayfs looks at options one by one (Linux 6.5). Before, the kernel collects them unseen and refuses them
/// all together at the mount, so that an unknown one cannot be told; then it takes anything here.
fn checks_options() -> bool {
    static CHECKS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CHECKS.get_or_init(|| {
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        // Where fsopen(2) itself fails, the mount tells why.
        fs.map_or(true, |fs| rustix::mount::fsconfig_set_flag(&fs, "podwright-asks").is_err())
    })
}

fn lacks_lowerdir_plus(error: &RootfsError) -> bool {
    match error {
        RootfsError::Option { key, cause, detail, .. } => {
            key == "lowerdir+"
                && cause.raw_os_error() == Some(Errno::INVAL.raw_os_error())
                && (detail.is_empty() || detail.contains("Unknown parameter"))
        }
        RootfsError::Mount { step, cause, .. } => {
            *step == "fsopen" && cause.raw_os_error() == Some(Errno::NOSYS.raw_os_error())
        }
        _ => false,
    }
}

fn mount_by_fsconfig(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
    options: &[&str],
) -> Result<(), RootfsError> {
    let mut context = Context::open("overlay", target)?;
    context.set("source", "overlay")?;
    for lower in lowers.iter().rev() {
        context.set_path("lowerdir+", lower)?;
    }
    context.set_path("upperdir", upper)?;
    context.set_path("workdir", work)?;
    for option in options {
        context.set_option(option)?;
    }
    context.finish(MountAttrFlags::empty())
}

/// mount(2), with descriptors as the names of directories. The descriptors live until the call returns. Without an
/// upper and a work directory the mount is read-only.
fn mount_by_page(
    lowers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    target: &Path,
    options: &[&str],
) -> Result<(), RootfsError> {
    let mut held = Vec::with_capacity(lowers.len() + 2);
    let mut name = |path: &Path| -> Result<String, RootfsError> {
        let fd = open_dir(path)?;
        let name = fd_path(&fd);
        held.push(fd);
        Ok(name)
    };
    let mut data = String::from("lowerdir=");
    for (i, lower) in lowers.iter().rev().enumerate() {
        if i > 0 {
            data.push(':');
        }
        data.push_str(&name(lower)?);
    }
    let mut flags = volume::FLAGS;
    if let Some((upper, work)) = writable {
        // write! to a String cannot fail.
        let _ = write!(data, ",upperdir={},workdir={}", name(upper)?, name(work)?);
        flags = rustix::mount::MountFlags::empty();
    }
    for option in options {
        data.push(',');
        data.push_str(option);
    }
    if data.len() > MAX_MOUNT_DATA {
        return Err(RootfsError::TooManyLayers {
            target: target.to_owned(),
            layers: lowers.len(),
            bytes: data.len(),
        });
    }
    let data = std::ffi::CString::new(data).map_err(|e| RootfsError::Mount {
        fstype: "overlay",
        step: "mount",
        target: target.to_owned(),
        cause: e.into(),
        detail: String::new(),
    })?;
    rustix::mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str())).map_err(|e| {
        RootfsError::Mount {
            fstype: "overlay",
            step: "mount",
            target: target.to_owned(),
            cause: e.into(),
            detail: String::new(),
        }
    })
}

/// Mounts a tmpfs of `bytes` on `target`, as a pod's /dev/shm: mode 1777, nosuid, nodev, noexec.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_shm(target: &Path, bytes: u64) -> Result<(), RootfsError> {
    let mut context = Context::open("tmpfs", target)?;
    context.set("source", "shm")?;
    context.set("mode", "1777")?;
    context.set("size", &bytes.to_string())?;
    context.finish(
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Detaches whatever is mounted on `target`. A path that is gone or not mounted is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> Result<(), RootfsError> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(RootfsError::Unmount { target: target.to_owned(), cause: e.into() }),
        }
    }
    Err(RootfsError::Unmount { target: target.to_owned(), cause: Errno::BUSY.into() })
}

/// Whether `target` is the root of a mount. A missing path is not.
///
/// # Errors
/// When the path cannot be looked at.
pub fn is_mounted(target: &Path) -> Result<bool, RootfsError> {
    match rustix::fs::statx(CWD, target, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(RootfsError::Inspect { target: target.to_owned(), cause: e.into() }),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, RootfsError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| RootfsError::Open { path: path.to_owned(), cause: e.into() })
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A file system context of the new mount API on its way to `target`.
struct Context<'a> {
    fs: OwnedFd,
    fstype: &'static str,
    target: &'a Path,
    /// Directories that were named by descriptor, open until the superblock holds them.
    held: Vec<OwnedFd>,
}

impl<'a> Context<'a> {
    fn open(fstype: &'static str, target: &'a Path) -> Result<Self, RootfsError> {
        let fs =
            rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| RootfsError::Mount {
                fstype,
                step: "fsopen",
                target: target.to_owned(),
                cause: e.into(),
                detail: String::new(),
            })?;
        Ok(Self { fs, fstype, target, held: Vec::new() })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), RootfsError> {
        rustix::mount::fsconfig_set_string(&self.fs, key, value).map_err(|e| self.refused(key, value, e))
    }

    fn set_option(&mut self, option: &str) -> Result<(), RootfsError> {
        match option.split_once('=') {
            Some((key, value)) => self.set(key, value),
            None => {
                rustix::mount::fsconfig_set_flag(&self.fs, option).map_err(|e| self.refused(option, "", e))
            }
        }
    }

    /// A path that fsconfig would cut, or in which overlayfs would see an escape, goes by descriptor.
    fn set_path(&mut self, key: &str, path: &Path) -> Result<(), RootfsError> {
        match path.to_str() {
            Some(text)
                if text.len() <= MAX_FSCONFIG_VALUE
                    && path.is_absolute()
                    && !text.contains(['\\', ':', ',']) =>
            {
                self.set(key, text)
            }
            _ => {
                let fd = open_dir(path)?;
                self.set(key, &fd_path(&fd))?;
                self.held.push(fd);
                Ok(())
            }
        }
    }

    fn finish(self, attributes: MountAttrFlags) -> Result<(), RootfsError> {
        rustix::mount::fsconfig_create(&self.fs).map_err(|e| self.failed("create", e))?;
        let mount = rustix::mount::fsmount(&self.fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|e| self.failed("fsmount", e))?;
        rustix::mount::move_mount(&mount, "", CWD, self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| self.failed("move_mount", e))
    }

    fn refused(&self, key: &str, value: &str, errno: Errno) -> RootfsError {
        RootfsError::Option {
            fstype: self.fstype,
            key: key.to_owned(),
            value: value.to_owned(),
            target: self.target.to_owned(),
            cause: errno.into(),
            detail: self.kernel_words(),
        }
    }

    fn failed(&self, step: &'static str, errno: Errno) -> RootfsError {
        RootfsError::Mount {
            fstype: self.fstype,
            step,
            target: self.target.to_owned(),
            cause: errno.into(),
            detail: self.kernel_words(),
        }
    }

    /// The messages that the kernel left on the context: `e overlay: ...`, one a read.
    fn kernel_words(&self) -> String {
        let mut words = String::new();
        let mut line = [0u8; 512];
        while let Ok(n @ 1..) = rustix::io::read(&self.fs, &mut line) {
            // write! to a String cannot fail.
            let _ = write!(words, " ({})", String::from_utf8_lossy(&line[..n]).trim());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Dirs {
        root: tempfile::TempDir,
        lowers: Vec<PathBuf>,
    }

    impl Drop for Dirs {
        fn drop(&mut self) {
            unmount(&self.at("merged")).unwrap();
        }
    }

    impl Dirs {
        fn new(layers: usize, prefix: &str) -> Self {
            let root = tempfile::tempdir().unwrap();
            let lowers: Vec<PathBuf> =
                (0..layers).map(|i| root.path().join(format!("{prefix}{i:064}")).join("fs")).collect();
            for (i, lower) in lowers.iter().enumerate() {
                fs::create_dir_all(lower).unwrap();
                fs::write(lower.join("who"), i.to_string()).unwrap();
                fs::write(lower.join(format!("layer{i}")), "").unwrap();
            }
            for dir in ["upper", "work", "merged"] {
                fs::create_dir(root.path().join(dir)).unwrap();
            }
            Self { root, lowers }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn mount(&self, options: &[&str]) -> Result<(), RootfsError> {
            mount(&self.lowers, &self.at("upper"), &self.at("work"), &self.at("merged"), options)
        }

        fn assert_merged(&self) {
            let merged = self.at("merged");
            let top = self.lowers.len() - 1;
            assert_eq!(fs::read_to_string(merged.join("who")).unwrap(), top.to_string());
            assert!(merged.join("layer0").exists());
            fs::write(merged.join("written"), "x").unwrap();
            assert!(self.at("upper").join("written").exists());
        }
    }

    #[test]
    fn the_top_layer_wins_and_writes_go_to_the_upper_directory() {
        let dirs = Dirs::new(3, "");
        assert!(!is_mounted(&dirs.at("merged")).unwrap());
        dirs.mount(&["volatile"]).unwrap();
        assert!(is_mounted(&dirs.at("merged")).unwrap());
        dirs.assert_merged();
    }

    #[test]
    fn a_hundred_and_more_layers_mount() {
        let dirs = Dirs::new(150, "");
        dirs.mount(&[]).unwrap();
        dirs.assert_merged();
    }

    #[test]
    fn the_old_call_mounts_a_hundred_and_more_layers_too() {
        let dirs = Dirs::new(150, "");
        let (upper, work) = (dirs.at("upper"), dirs.at("work"));
        mount_by_page(&dirs.lowers, Some((&upper, &work)), &dirs.at("merged"), &[]).unwrap();
        dirs.assert_merged();
    }

    #[test]
    fn paths_that_are_long_or_hold_separators_mount() {
        let long = "d".repeat(100);
        let dirs = Dirs::new(2, &format!("{long}/{long}/a:b,c\\d/"));
        dirs.mount(&[]).unwrap();
        dirs.assert_merged();
    }

    #[test]
    fn failures_name_the_cause_and_leave_nothing_mounted() {
        let mut dirs = Dirs::new(1, "");
        let error = dirs.mount(&["nonsense=1"]).unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
        dirs.lowers[0] = dirs.at("absent");
        let error = dirs.mount(&[]).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        dirs.lowers.clear();
        assert!(matches!(dirs.mount(&[]), Err(RootfsError::NoLayers { .. })));
        assert!(!is_mounted(&dirs.at("merged")).unwrap());
    }

    #[test]
    fn unmount_may_be_repeated_and_the_path_may_be_gone() {
        let dirs = Dirs::new(1, "");
        dirs.mount(&[]).unwrap();
        unmount(&dirs.at("merged")).unwrap();
        unmount(&dirs.at("merged")).unwrap();
        unmount(&dirs.at("never")).unwrap();
        assert!(!is_mounted(&dirs.at("never")).unwrap());
    }

    #[test]
    fn shm_has_its_size_mode_and_flags() {
        let dirs = Dirs::new(1, "");
        let target = dirs.at("merged");
        mount_shm(&target, 1 << 20).unwrap();
        let stat = rustix::fs::statvfs(&target).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 1 << 20);
        let flags = rustix::fs::StatVfsMountFlags::NOSUID
            | rustix::fs::StatVfsMountFlags::NODEV
            | rustix::fs::StatVfsMountFlags::NOEXEC;
        assert!(stat.f_flag.contains(flags));
        assert_eq!(rustix::fs::stat(&target).unwrap().st_mode & 0o7777, 0o1777);
    }
}
