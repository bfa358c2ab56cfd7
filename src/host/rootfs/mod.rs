//! A container's root file system: an overlay mount of its image's layers, and the tmpfs of a pod's /dev/shm.
//!
//! Owns the mount calls. Never chooses layers; creates only the directories that mapped ids need during a mount
//! (`idmap`).
//!
//! The new mount API takes one `lowerdir+` per layer (Linux 6.7), so the 4 KiB limit of mount(2)'s option string does
//! not apply. Older kernels get mount(2) with every layer named by an open descriptor, which keeps that string short.

mod error;
mod idmap;
mod volume;

pub use error::RootfsError;
pub use idmap::{IdMap, supports_idmap};
pub use podwright_sys::userns::IdRange;
pub use volume::{Detached, clone_mapped, mount_read_only};

use crate::host::offload::OffThread;
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
/// Inodes of the tmpfs of a pod's files: its root, three files, and room for programs that replace them.
const FILE_INODES: &str = "8";
/// Unmounts of one path before giving up; more than one only if something stacked a mount on ours.
const MAX_STACKED_MOUNTS: usize = 16;

/// An overlay that is to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Layers, bottom first.
    pub lowers: &'a [PathBuf],
    /// Directory that takes what is written.
    pub upper: &'a Path,
    /// Overlayfs's own directory beside it.
    pub work: &'a Path,
    /// Mount point.
    pub target: &'a Path,
    /// Each is `key` or `key=value`, such as `volatile`, or `context=` with an SELinux label.
    pub options: &'a [&'a str],
    /// The mapping of a user namespace: the layers' files belong to the ids outside, and so does what is written.
    pub idmap: Option<&'a IdMap>,
    /// Quotas of the upper directory apply to every writer. Overlayfs writes with its mounter's rights, and ext4 lets
    /// CAP_SYS_RESOURCE exceed every limit.
    pub within_quota: bool,
}

/// Mounts an overlay.
///
/// # Errors
/// If a directory is missing or the kernel refuses; then nothing is left mounted.
pub fn mount(_: &OffThread, overlay: &Overlay<'_>) -> Result<(), RootfsError> {
    let _rights = overlay.within_quota.then(WithoutResource::begin);
    match overlay.idmap {
        Some(map) => idmap::mount(overlay, map),
        None => mount_as_is(overlay),
    }
}

fn mount_as_is(overlay: &Overlay<'_>) -> Result<(), RootfsError> {
    let Overlay { lowers, upper, work, target, options, .. } = *overlay;
    if lowers.is_empty() {
        return Err(RootfsError::NoLayers { target: target.to_owned() });
    }
    if !checks_options() {
        return mount_by_page(lowers, Some((upper, work)), target, options);
    }
    match mount_by_fsconfig(overlay) {
        // A kernel before 6.7 does not know `lowerdir+`; one before 5.2 has no fsopen(2).
        Err(e) if lacks_lowerdir_plus(&e) => mount_by_page(lowers, Some((upper, work)), target, options),
        done => done,
    }
}

/// The calling thread without CAP_SYS_RESOURCE in effect, until dropped.
struct WithoutResource(Option<rustix::thread::CapabilitySets>);

impl WithoutResource {
    fn begin() -> Self {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        let Ok(had) = capabilities(None) else { return Self(None) };
        let effective = had.effective.difference(CapabilitySet::SYS_RESOURCE);
        let changed =
            effective != had.effective && set_capabilities(None, CapabilitySets { effective, ..had }).is_ok();
        Self(changed.then_some(had))
    }
}

impl Drop for WithoutResource {
    fn drop(&mut self) {
        // A permitted capability can always be made effective again.
        if let Some(had) = self.0.take()
            && let Err(error) = rustix::thread::set_capabilities(None, had)
        {
            // Log: A thread could not regain the capability that it dropped for one mount, and continues without.
            // Do: Restart the daemon and report it.
            tracing::error!(%error, "a thread lost CAP_SYS_RESOURCE");
        }
    }
}

/// Whether overlayfs checks options one by one (Linux 6.5). Before, the kernel collects them unseen and refuses them
/// all together at the mount, so an unknown one is not recognised; until then it accepts anything.
fn checks_options() -> bool {
    static CHECKS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CHECKS.get_or_init(|| {
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        // If fsopen(2) itself fails, the mount gives the reason.
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

fn mount_by_fsconfig(overlay: &Overlay<'_>) -> Result<(), RootfsError> {
    let Overlay { lowers, upper, work, target, options, .. } = *overlay;
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
        match option.split_once('=') {
            // Of a label; the kernel removes the quotes.
            Some((key, value)) if value.contains(',') => {
                let _ = write!(data, "{key}=\"{value}\"");
            }
            _ => data.push_str(option),
        }
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
        // The kernel does not say which one it refuses.
        let detail =
            if options.is_empty() { String::new() } else { format!(" (options {})", options.join(",")) };
        RootfsError::Mount {
            fstype: "overlay",
            step: "mount",
            target: target.to_owned(),
            cause: e.into(),
            detail,
        }
    })
}

/// Mounts a tmpfs of `bytes` on `target`, as a pod's /dev/shm: mode 1777, nosuid, nodev, noexec. It belongs to `owner`,
/// uid and gid, or to root.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_shm(
    _: &OffThread,
    target: &Path,
    bytes: u64,
    owner: Option<(u32, u32)>,
) -> Result<(), RootfsError> {
    let mut context = Context::open("tmpfs", target)?;
    context.set("source", "shm")?;
    context.set("mode", "1777")?;
    context.set("size", &bytes.to_string())?;
    if let Some((uid, gid)) = owner {
        context.set("uid", &uid.to_string())?;
        context.set("gid", &gid.to_string())?;
    }
    context.finish(
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Mounts a tmpfs of `bytes` on `target` for the files that a pod's containers share: mode 0700, nosuid, nodev, noexec.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_files(_: &OffThread, target: &Path, bytes: u64) -> Result<(), RootfsError> {
    let mut context = Context::open("tmpfs", target)?;
    context.set("source", "pod-files")?;
    context.set("mode", "0700")?;
    context.set("size", &bytes.to_string())?;
    context.set("nr_inodes", FILE_INODES)?;
    context.finish(
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Detaches whatever is mounted on `target`. A missing or unmounted path is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(_: &OffThread, target: &Path) -> Result<(), RootfsError> {
    idmap::clear(target)?;
    detach(target)
}

fn detach(target: &Path) -> Result<(), RootfsError> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(RootfsError::Unmount { target: target.to_owned(), cause: e.into() }),
        }
    }
    Err(RootfsError::Unmount { target: target.to_owned(), cause: Errno::BUSY.into() })
}

/// Detaches the topmost mount; without one it is an error.
fn detach_one(target: &Path) -> Result<(), RootfsError> {
    rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|e| RootfsError::Unmount { target: target.to_owned(), cause: e.into() })
}

/// Whether `target` is the root of a mount. A missing path is not.
///
/// # Errors
/// If the path cannot be examined.
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

    /// A path that fsconfig would truncate, or in which overlayfs would see an escape, goes by descriptor.
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

    /// A mount that is attached nowhere.
    fn detached(&self, attributes: MountAttrFlags) -> Result<OwnedFd, RootfsError> {
        rustix::mount::fsconfig_create(&self.fs).map_err(|e| self.failed("create", e))?;
        rustix::mount::fsmount(&self.fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|e| self.failed("fsmount", e))
    }

    fn finish(self, attributes: MountAttrFlags) -> Result<(), RootfsError> {
        let mount = self.detached(attributes)?;
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

    /// The kernel's messages on the context: `e overlay: ...`, one per read.
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
    use crate::host::offload::here;
    use std::fs;

    struct Dirs {
        root: tempfile::TempDir,
        lowers: Vec<PathBuf>,
    }

    impl Drop for Dirs {
        fn drop(&mut self) {
            unmount(&here(), &self.at("merged")).unwrap();
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
            self.with(options, |overlay| super::mount(&here(), overlay))
        }

        fn with(
            &self,
            options: &[&str],
            mount: impl FnOnce(&Overlay<'_>) -> Result<(), RootfsError>,
        ) -> Result<(), RootfsError> {
            mount(&Overlay {
                lowers: &self.lowers,
                upper: &self.at("upper"),
                work: &self.at("work"),
                target: &self.at("merged"),
                options,
                idmap: None,
                within_quota: true,
            })
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

    fn by_page(overlay: &Overlay<'_>) -> Result<(), RootfsError> {
        let Overlay { lowers, upper, work, target, options, .. } = *overlay;
        mount_by_page(lowers, Some((upper, work)), target, options)
    }

    #[test]
    fn the_old_call_mounts_a_hundred_and_more_layers_too() {
        let dirs = Dirs::new(150, "");
        dirs.with(&[], by_page).unwrap();
        dirs.assert_merged();
    }

    #[test]
    fn a_hundred_and_more_layers_with_long_paths_mount() {
        let long = "d".repeat(120);
        let dirs = Dirs::new(128, &format!("{long}/{long}/{long}/"));
        dirs.mount(&[]).unwrap();
        dirs.assert_merged();
        unmount(&here(), &dirs.at("merged")).unwrap();
        dirs.with(&[], by_page).unwrap();
        dirs.assert_merged();
    }

    #[test]
    fn a_thread_has_its_rights_again_after_a_mount_within_quotas() {
        let before = rustix::thread::capabilities(None).unwrap();
        let dirs = Dirs::new(1, "");
        dirs.mount(&[]).unwrap();
        assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
        let rights = WithoutResource::begin();
        let during = rustix::thread::capabilities(None).unwrap().effective;
        assert!(!during.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
        drop(rights);
        assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
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
        unmount(&here(), &dirs.at("merged")).unwrap();
        unmount(&here(), &dirs.at("merged")).unwrap();
        unmount(&here(), &dirs.at("never")).unwrap();
        assert!(!is_mounted(&dirs.at("never")).unwrap());
    }

    #[test]
    fn shm_has_its_size_mode_and_flags() {
        let dirs = Dirs::new(1, "");
        let target = dirs.at("merged");
        mount_shm(&here(), &target, 1 << 20, None).unwrap();
        let stat = rustix::fs::statvfs(&target).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 1 << 20);
        let flags = rustix::fs::StatVfsMountFlags::NOSUID
            | rustix::fs::StatVfsMountFlags::NODEV
            | rustix::fs::StatVfsMountFlags::NOEXEC;
        assert!(stat.f_flag.contains(flags));
        assert_eq!(rustix::fs::stat(&target).unwrap().st_mode & 0o7777, 0o1777);
    }
}
