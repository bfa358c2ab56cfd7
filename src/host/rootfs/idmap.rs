//! Overlays for user namespaces: the layers stay unchanged on disk, for all containers, and mounts with mapped ids show
//! them to one. On disk, the container's files have the outer ids, as seen from the host.

use super::{Overlay, RootfsError, mount_as_is, open_dir};
use crate::host::offload::OffThread;
use crate::host::remove;
use podwright_sys::userns::{self, IdRange, Propagation, Reach};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};
use std::fs::Permissions;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Before Linux 6.15, overlayfs takes only layers that are mounted somewhere. Found out by the first mount.
static WANTS_ATTACHED: AtomicBool = AtomicBool::new(false);

/// The mapping of a user namespace. Cheap to reuse: one for all containers of a pod.
#[derive(Debug)]
pub struct IdMap {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
    /// Any user namespace with this mapping.
    namespace: OwnedFd,
}

impl IdMap {
    /// A mapping, with a user namespace that exists for its sake. Blocking, for a fork's time.
    ///
    /// # Errors
    /// If the kernel refuses the mapping, or creates no more user namespaces.
    pub fn new(uids: Vec<IdRange>, gids: Vec<IdRange>) -> Result<Self, RootfsError> {
        let namespace = userns::with_mappings(&uids, &gids).map_err(|cause| not_made(&uids, &gids, cause))?;
        Ok(Self { uids, gids, namespace })
    }

    /// The same, with a UTS namespace that belongs to the user namespace.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_uts(uids: Vec<IdRange>, gids: Vec<IdRange>) -> Result<(Self, OwnedFd), RootfsError> {
        let (namespace, uts) =
            userns::with_mappings_and_uts(&uids, &gids).map_err(|cause| not_made(&uids, &gids, cause))?;
        Ok((Self { uids, gids, namespace }, uts))
    }

    /// The mapping of an existing user namespace, such as the pod's own.
    #[must_use]
    pub fn of(namespace: OwnedFd, uids: Vec<IdRange>, gids: Vec<IdRange>) -> Self {
        Self { uids, gids, namespace }
    }

    /// Whether it consists of these ranges.
    #[must_use]
    pub fn is_of(&self, uids: &[IdRange], gids: &[IdRange]) -> bool {
        self.uids == uids && self.gids == gids
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// The host ids of root inside; None: nobody.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((outside(&self.uids, 0)?, outside(&self.gids, 0)?))
    }
}

fn not_made(uids: &[IdRange], gids: &[IdRange], cause: std::io::Error) -> RootfsError {
    let text = |ranges: &[IdRange]| {
        let ranges = ranges.iter().map(|r| format!("{}:{}:{}", r.inside, r.outside, r.count));
        ranges.collect::<Vec<_>>().join(",")
    };
    RootfsError::UserNamespace { mapping: format!("uids {}, gids {}", text(uids), text(gids)), cause }
}

fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    ranges.iter().find_map(|r| {
        id.checked_sub(r.inside).filter(|n| *n < r.count).and_then(|n| r.outside.checked_add(n))
    })
}

pub(super) fn mount(overlay: &Overlay<'_>, map: &IdMap) -> Result<(), RootfsError> {
    // The upper directory becomes the container's `/`.
    if let Some((uid, gid)) = map.root() {
        std::os::unix::fs::chown(overlay.upper, Some(uid), Some(gid))
            .map_err(directory("change the owner of", overlay.upper))?;
    }
    with_mapped(overlay.lowers, map, overlay.target, |lowers| {
        let done = mount_as_is(&Overlay { lowers, ..*overlay });
        if done.as_ref().is_err_and(is_invalid) {
            // Remains of the attempt: a mark of `volatile` would make the next one fail.
            let left = overlay.work.join("work");
            remove::tree(&left).map_err(|error| directory("remove", &left)(error.into()))?;
        }
        done
    })
}

/// Has `mount` mount on `target` with paths of the layers that show mapped ids.
pub(super) fn with_mapped(
    layers: &[PathBuf],
    map: &IdMap,
    target: &Path,
    mount: impl Fn(&[PathBuf]) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let mounts = layers.iter().map(|layer| mapped(layer, map)).collect::<Result<Vec<_>, _>>()?;
    let paths: Vec<PathBuf> =
        mounts.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into()).collect();
    if !WANTS_ATTACHED.load(Ordering::Relaxed) {
        match mount(&paths) {
            Err(error) if is_invalid(&error) => {}
            done => return done,
        }
    }
    attached(&mounts, target, || mount(&paths).map_err(|e| explained(e, layers)))?;
    WANTS_ATTACHED.store(true, Ordering::Relaxed);
    Ok(())
}

/// A clone of the layer's mount that shows it with mapped ids, attached nowhere.
fn mapped(layer: &Path, map: &IdMap) -> Result<OwnedFd, RootfsError> {
    let failed = |cause: std::io::Error| {
        let why = match Errno::from_io_error(&cause) {
            Some(Errno::NOSYS) => "the kernel knows no mounts with mapped ids (Linux 5.12)",
            Some(Errno::INVAL) => {
                "its file system, or this kernel's version of it, does not support mapped ids"
            }
            _ => "a mount with mapped ids was refused",
        };
        RootfsError::IdMap { layer: layer.to_owned(), why, cause }
    };
    let clone = userns::clone_mount(open_dir(layer)?.as_fd(), Reach::Mount).map_err(failed)?;
    userns::map_mount(clone.as_fd(), map.namespace.as_fd(), Propagation::Private, Reach::Mount)
        .map_err(failed)?;
    Ok(clone)
}

/// With the layers mounted one upon the other on a directory of their own during the call: overlayfs makes its own
/// mounts of them.
fn attached(
    layers: &[OwnedFd],
    target: &Path,
    mount: impl FnOnce() -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let Some(first) = layers.first() else { return mount() };
    let place = place(target);
    std::fs::create_dir(&place).map_err(directory("make directory", &place))?;
    let mounted = layers
        .iter()
        .try_for_each(|layer| {
            rustix::mount::move_mount(layer, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| directory("mount a layer on", &place)(e.into()))
        })
        .and_then(|()| mount());
    // The first with all that is mounted on it.
    let bottom = format!("/proc/self/fd/{}", first.as_raw_fd());
    let _ = rustix::mount::unmount(bottom.as_str(), UnmountFlags::DETACH);
    let cleared = clear(target);
    mounted.and(cleared)
}

fn explained(error: RootfsError, layers: &[PathBuf]) -> RootfsError {
    match error {
        RootfsError::Mount { cause, .. } if Errno::from_io_error(&cause) == Some(Errno::INVAL) => {
            RootfsError::IdMap {
                layer: layers.first().cloned().unwrap_or_default(),
                why: "overlayfs does not take layers with mapped ids (Linux 5.19)",
                cause,
            }
        }
        error => error,
    }
}

/// Temporary place for the layers of a mount on `target`.
fn place(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".layers");
    name.into()
}

/// Removes the remains of a daemon that was killed while it mounted on `target`.
pub(super) fn clear(target: &Path) -> Result<(), RootfsError> {
    let place = place(target);
    loop {
        match rustix::fs::rmdir(&place) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            // One mount at a time: there are as many as the image has layers.
            Err(Errno::BUSY) => super::detach_one(&place)?,
            Err(e) => return Err(directory("remove", &place)(e.into())),
        }
    }
}

fn is_invalid(error: &RootfsError) -> bool {
    match error {
        RootfsError::Mount { cause, .. } | RootfsError::Option { cause, .. } => {
            Errno::from_io_error(cause) == Some(Errno::INVAL)
        }
        _ => false,
    }
}

pub(super) fn directory(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RootfsError {
    let path = path.to_owned();
    move |cause| RootfsError::Directory { operation, path, cause }
}

/// Ids of the probe: any that are not 0 will do.
const PROBE: IdRange = IdRange { inside: 0, outside: 1_000_000, count: 1 };

/// Name of its directory; the process' id follows. The next daemon removes that of a killed one.
const PROBE_PREFIX: &str = "idmap-probe-";

/// Tests whether overlays of layers below `parent`, and a tmpfs like volumes, can be mounted with mapped ids; the error
/// gives the reason. Creates a directory there and removes it.
///
/// # Errors
/// The mount's result.
pub fn supports_idmap(off: &OffThread, parent: &Path) -> Result<(), RootfsError> {
    super::volume::supports_tmpfs(&IdMap::new(vec![PROBE], vec![PROBE])?)?;
    for entry in std::fs::read_dir(parent).map_err(directory("read", parent))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PROBE_PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_probe(off, &entry.path())?;
        }
    }
    let scratch = parent.join(format!("{PROBE_PREFIX}{}", std::process::id()));
    let made = try_in(off, &scratch);
    made.and(remove_probe(off, &scratch))
}

fn remove_probe(off: &OffThread, scratch: &Path) -> Result<(), RootfsError> {
    let unmounted = super::unmount(off, &scratch.join("merged"));
    let removed = remove::tree(scratch).map_err(|error| directory("remove", scratch)(error.into()));
    unmounted.and(removed)
}

fn try_in(off: &OffThread, scratch: &Path) -> Result<(), RootfsError> {
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| scratch.join(name));
    for path in [&lower, &upper, &work, &merged] {
        std::fs::create_dir_all(path).map_err(directory("make directory", path))?;
    }
    std::fs::set_permissions(scratch, Permissions::from_mode(0o700))
        .map_err(directory("change the mode of", scratch))?;
    let file = lower.join("file");
    std::fs::write(&file, "").map_err(directory("write", &file))?;
    let map = IdMap::new(vec![PROBE], vec![PROBE])?;
    super::mount(
        off,
        &Overlay {
            lowers: std::slice::from_ref(&lower),
            upper: &upper,
            work: &work,
            target: &merged,
            options: &[],
            idmap: Some(&map),
            within_quota: false,
        },
    )?;
    let seen = merged.join("file");
    let owner = std::fs::metadata(&seen).map_err(directory("look at", &seen))?.uid();
    if owner == PROBE.outside {
        return Ok(());
    }
    let cause = std::io::Error::other(format!("its files belong to {owner}"));
    Err(RootfsError::IdMap { layer: lower, why: "the overlay does not show mapped ids", cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::offload::here;
    use std::fs;
    use std::process::Command;

    fn range(outside: u32) -> Vec<IdRange> {
        vec![IdRange { inside: 0, outside, count: 65_536 }]
    }

    fn map(outside: u32) -> IdMap {
        IdMap::new(range(outside), range(outside)).unwrap()
    }

    fn owner(path: &Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.uid(), meta.gid())
    }

    struct Box {
        root: tempfile::TempDir,
        lowers: Vec<PathBuf>,
        mounted: Vec<PathBuf>,
    }

    impl Drop for Box {
        fn drop(&mut self) {
            for target in &self.mounted {
                crate::host::rootfs::unmount(&here(), target).unwrap();
            }
        }
    }

    impl Box {
        fn new(layers: u32) -> Self {
            let root = tempfile::tempdir().unwrap();
            // Others may pass through it: a mapped root is one of them.
            fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
            let lowers: Vec<_> = (0..layers).map(|n| root.path().join(format!("layer-{n}"))).collect();
            for (layer, n) in lowers.iter().zip(0..) {
                fs::create_dir_all(layer.join("dir")).unwrap();
                fs::write(layer.join("who"), n.to_string()).unwrap();
                fs::write(layer.join(format!("of-{n}")), "").unwrap();
                std::os::unix::fs::chown(layer.join(format!("of-{n}")), Some(n), Some(33)).unwrap();
            }
            Self { root, lowers, mounted: Vec::new() }
        }

        /// Mounts for a container; its upper directory and mount point.
        fn mount(
            &mut self,
            name: &str,
            map: &IdMap,
            mount: impl FnOnce(&Overlay<'_>, &IdMap) -> Result<(), RootfsError>,
        ) -> Result<(PathBuf, PathBuf), RootfsError> {
            let [upper, work, merged] =
                ["upper", "work", "merged"].map(|dir| self.root.path().join(name).join(dir));
            for dir in [&upper, &work, &merged] {
                fs::create_dir_all(dir).unwrap();
            }
            self.mounted.push(merged.clone());
            let overlay = Overlay {
                lowers: &self.lowers,
                upper: &upper,
                work: &work,
                target: &merged,
                options: &["volatile"],
                idmap: Some(map),
                within_quota: false,
            };
            mount(&overlay, map)?;
            assert!(!place(&merged).exists());
            Ok((upper, merged))
        }
    }

    /// The output of the namespace's root.
    fn inside(map: &IdMap, script: &str, at: &Path) -> String {
        let namespace = format!("--user={}", podwright_sys::namespace::path_of(map.namespace()));
        let out = Command::new("nsenter")
            .args([namespace.as_str(), "-S", "0", "-G", "0", "sh", "-c", script])
            .current_dir(at)
            .output()
            .unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn check(layers: u32, mount: impl Fn(&Overlay<'_>, &IdMap) -> Result<(), RootfsError>) {
        let mut made = Box::new(layers);
        let (one, two) = (map(200_000), map(300_000));
        // The same layers for both.
        let (upper, merged) = made.mount("one", &one, &mount).unwrap();
        let (other_upper, other) = made.mount("two", &two, &mount).unwrap();
        assert_eq!(inside(&one, "stat -c %u:%g . who of-1", &merged), "0:0\n0:0\n1:33");
        assert_eq!(inside(&one, "cat who", &merged), (layers - 1).to_string());
        assert_eq!(
            (owner(&merged.join("of-1")), owner(&other.join("of-1"))),
            ((200_001, 200_033), (300_001, 300_033))
        );
        // A new file, a change of a layer's file, a removal.
        inside(&one, "echo new > dir/new && echo more >> who && chown 5:6 of-0 && rm of-1", &merged);
        assert_eq!(owner(&upper), (200_000, 200_000));
        assert_eq!(owner(&upper.join("dir/new")), (200_000, 200_000));
        assert_eq!(owner(&upper.join("who")), (200_000, 200_000));
        assert_eq!(owner(&upper.join("of-0")), (200_005, 200_006));
        assert!(!merged.join("of-1").exists());
        // Neither the layers nor the other container have noticed.
        assert_eq!(owner(&made.lowers[0].join("of-0")), (0, 33));
        assert!(other.join("of-1").exists() && !other.join("dir/new").exists());
        assert_eq!(fs::read_dir(other_upper).unwrap().count(), 0);
        // Other namespaces' root may not write.
        let refused = std::panic::catch_unwind(|| inside(&two, "echo x > dir/new", &merged));
        assert!(refused.is_err());
    }

    #[test]
    fn layers_are_shared_by_containers_with_ids_of_their_own() {
        check(3, |overlay, map| {
            crate::host::rootfs::mount(&here(), &Overlay { idmap: Some(map), ..*overlay })
        });
    }

    #[test]
    fn kernels_that_want_layers_mounted_somewhere_get_them_mounted() {
        check(3, |overlay, map| {
            let layers: Vec<_> = overlay.lowers.iter().map(|layer| mapped(layer, map).unwrap()).collect();
            let lowers: Vec<PathBuf> =
                layers.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into()).collect();
            std::os::unix::fs::chown(overlay.upper, Some(map.root().unwrap().0), Some(map.root().unwrap().1))
                .unwrap();
            attached(&layers, overlay.target, || mount_as_is(&Overlay { lowers: &lowers, ..*overlay }))
        });
    }

    #[test]
    fn a_hundred_and_more_layers_mount() {
        let mut made = Box::new(128);
        let (_, merged) = made.mount("many", &map(200_000), mount).unwrap();
        assert_eq!(owner(&merged.join("of-127")), (200_127, 200_033));
        assert_eq!(fs::read_to_string(merged.join("who")).unwrap(), "127");
    }

    #[test]
    fn what_a_killed_daemon_left_mounted_goes_with_the_mount() {
        let made = Box::new(3);
        let target = made.root.path().join("merged");
        let map = map(200_000);
        fs::create_dir(&target).unwrap();
        fs::create_dir(place(&target)).unwrap();
        for layer in &made.lowers {
            let layer = mapped(layer, &map).unwrap();
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&layer, "", CWD, place(&target), flags).unwrap();
        }
        crate::host::rootfs::unmount(&here(), &target).unwrap();
        assert!(!place(&target).exists());
    }

    #[test]
    fn a_file_system_without_mapped_ids_is_told() {
        let mut made = Box::new(1);
        // procfs cannot.
        made.lowers = vec!["/proc/sys".into()];
        let error = made.mount("one", &map(200_000), mount).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, RootfsError::IdMap { .. }) && text.contains("/proc/sys"), "{text}");
    }

    #[test]
    fn the_probe_says_yes_here_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        // Remains of a killed one go, those in use by a living one stay.
        let (dead, alive) = (root.path().join("idmap-probe-99999999"), root.path().join("idmap-probe-1"));
        fs::create_dir_all(dead.join("merged")).unwrap();
        fs::create_dir(&alive).unwrap();
        supports_idmap(&here(), root.path()).unwrap();
        assert!(!dead.exists());
        fs::remove_dir(&alive).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(supports_idmap(&here(), Path::new("/proc")).is_err());
    }

    #[test]
    fn ids_are_mapped_by_ranges() {
        let ranges =
            [IdRange { inside: 0, outside: 7, count: 1 }, IdRange { inside: 10, outside: 100, count: 5 }];
        assert_eq!(outside(&ranges, 0), Some(7));
        assert_eq!(
            (outside(&ranges, 1), outside(&ranges, 14), outside(&ranges, 15)),
            (None, Some(104), None)
        );
    }
}
