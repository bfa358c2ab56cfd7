//! The file systems of `root` and `state`: writable, usable by overlayfs, idmapped, with quotas, with space.

use super::Finding;
use super::scratch::{Scratch, existing};
use crate::config::Config;
use crate::host::mountinfo;
use crate::host::offload::in_place;
use crate::host::quota::{Limits, Projects};
use crate::host::rootfs::{self, Overlay};
use std::io;
use std::path::Path;

/// Free share below which a kubelet evicts pods for images (`imagefs.available<15%`).
const LITTLE_ROOM_PERCENT: u64 = 15;
/// Free inodes below which it does so.
const LITTLE_INODES_PERCENT: u64 = 5;

pub(super) fn all(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    match Scratch::near(&config.root) {
        Err(error) => found.push(unwritable("root", &config.root, &error)),
        Ok(scratch) => {
            found.push(Finding::ok("root", place(&config.root)));
            found.extend(open_to_others("mode of root", &config.root, 0o700));
            found.push(overlay(&config.root, try_overlay(&scratch)));
            found.push(idmap(in_place(|off| rootfs::supports_idmap(off, scratch.path()))));
            found.push(quota(config, &scratch));
            found.push(room(&config.root));
        }
    }
    match Scratch::near(&config.state) {
        Err(error) => found.push(unwritable("state", &config.state, &error)),
        Ok(_) => {
            found.push(state(&config.state));
            // Containers of pods with user namespaces go through it.
            found.extend(open_to_others("mode of state", &config.state, 0o711));
        }
    }
    found
}

/// `/var/lib/podwright on ext4 at /`.
fn place(path: &Path) -> String {
    match mountinfo::read().as_deref().map(|mounts| mountinfo::holding(mounts, path)) {
        Ok(Some(mount)) => {
            format!("{} on {} mounted at {}", path.display(), mount.fstype, mount.mount_point.display())
        }
        _ => path.display().to_string(),
    }
}

fn unwritable(key: &str, path: &Path, error: &io::Error) -> Finding {
    let dir = existing(path);
    let found = format!("{} cannot be made: {}: {error}", path.display(), dir.display());
    let remedy = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            let mount = mountinfo::read().ok().and_then(|mounts| {
                mountinfo::holding(&mounts, dir).map(|mount| mount.mount_point.display().to_string())
            });
            let mount = mount.unwrap_or_else(|| "/".to_owned());
            format!(
                "mount -o remount,rw {mount}\nor set {key} to a directory on a file system that can be written"
            )
        }
        io::ErrorKind::StorageFull => format!("make room: df {}; du -xsh {}/*", dir.display(), dir.display()),
        _ => format!("ls -ld {}\nor set {key} to another directory", dir.display()),
    };
    Finding::fail(key, found, remedy)
}

/// A directory that exists with a mode which lets others read what containers have in their environments.
fn open_to_others(key: &'static str, path: &Path, most: u32) -> Option<Finding> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = match std::fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        // The daemon makes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Finding::unknown(key, &format!("the mode of {}", path.display()), error)),
    };
    let remedy = format!("chmod {most:o} {}\nor start the daemon, which does so", path.display());
    let found = format!("{} has mode {mode:o}: others than root can look into it", path.display());
    (mode & !most != 0).then(|| Finding::warn(key, found, remedy))
}

fn try_overlay(scratch: &Scratch) -> Result<(), String> {
    let make = |name| scratch.make(name).map_err(|e| e.to_string());
    let (lower, upper, work, target) = (make("lower")?, make("upper")?, make("work")?, make("merged")?);
    std::fs::write(lower.join("file"), "below").map_err(|e| e.to_string())?;
    let overlay = Overlay {
        lowers: std::slice::from_ref(&lower),
        upper: &upper,
        work: &work,
        target: &target,
        options: &[],
        idmap: None,
        within_quota: false,
    };
    in_place(|off| rootfs::mount(off, &overlay)).map_err(|e| e.to_string())?;
    // File systems that overlayfs only half supports cannot store whiteouts.
    let used =
        std::fs::write(target.join("file"), "above").and_then(|()| std::fs::remove_file(target.join("file")));
    let unmounted = in_place(|off| rootfs::unmount(off, &target)).map_err(|e| e.to_string());
    used.map_err(|e| e.to_string()).and(unmounted)
}

fn overlay(root: &Path, tried: Result<(), String>) -> Finding {
    let name = "overlay on root";
    match tried {
        Ok(()) => Finding::ok(name, "mounted, written to, unmounted"),
        Err(error) => Finding::fail(
            name,
            format!("{}: {error}", place(root)),
            "modprobe overlay\nor put root on ext4, or on xfs made with ftype=1 (xfs_info says); another overlay will not do",
        ),
    }
}

fn idmap<E: std::fmt::Display>(supported: Result<(), E>) -> Finding {
    let name = "idmapped mounts";
    match supported {
        Ok(()) => Finding::ok(name, "overlays with mapped ids can be mounted"),
        Err(error) => Finding::warn(
            name,
            format!("{error}: pods with hostUsers: false are refused"),
            "use Linux 5.19 or newer and a root on ext4, xfs or btrfs (tmpfs from 6.3 on)",
        ),
    }
}

fn quota(config: &Config, scratch: &Scratch) -> Finding {
    let name = "project quotas";
    let first = config.containers.project_id_first;
    let range = first..first.saturating_add(config.containers.project_id_count);
    let limits = Limits {
        bytes: config.containers.writable_layer_limit_bytes,
        inodes: config.containers.writable_layer_limit_inodes,
    };
    let remedy = "xfs: mount with -o prjquota; ext4: mkfs.ext4 -O quota,project -E quotatype=prjquota, mount with -o prjquota\nor take writable_layer_limit_bytes and _inodes out of [containers]";
    match Projects::detect(scratch.path(), range, limits) {
        Ok(Some(_)) => Finding::ok(name, "on: usage of containers costs nothing to know"),
        Ok(None) => Finding::ok(name, "off: usage of containers is walked"),
        Err(error) => Finding::fail(name, error.to_string(), remedy),
    }
}

fn room(root: &Path) -> Finding {
    let name = "room";
    match rustix::fs::statvfs(existing(root)) {
        Ok(fs) => {
            judge_room(root, fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize, fs.f_favail, fs.f_files)
        }
        Err(error) => {
            Finding::fail(name, io::Error::from(error).to_string(), format!("df {}", root.display()))
        }
    }
}

fn judge_room(root: &Path, free: u64, all: u64, free_inodes: u64, inodes: u64) -> Finding {
    let name = "room";
    let percent = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole).unwrap_or(100);
    let gigabytes = |bytes: u64| bytes / 1_000_000_000;
    let found = format!(
        "{} of {} GB and {} % of the inodes are free at {}",
        gigabytes(free),
        gigabytes(all),
        percent(free_inodes, inodes),
        root.display()
    );
    if percent(free, all) < LITTLE_ROOM_PERCENT || percent(free_inodes, inodes) < LITTLE_INODES_PERCENT {
        let remedy = "podwright images gc --unused\nor a larger disk";
        return Finding::warn(name, format!("{found}: the kubelet evicts pods"), remedy);
    }
    Finding::ok(name, found)
}

fn state(path: &Path) -> Finding {
    let mounts = match mountinfo::read() {
        Ok(mounts) => mounts,
        Err(error) => return Finding::unknown("state", "which file system it is on", error),
    };
    match mountinfo::holding(&mounts, path).map(|mount| mount.fstype.as_str()) {
        Some("tmpfs") | None => Finding::ok("state", place(path)),
        Some(_) => Finding::warn(
            "state",
            format!("{}, which a reboot does not clear", place(path)),
            "set state to a directory on a tmpfs; /run is one where systemd runs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn little_room_is_told() {
        let root = Path::new("/r");
        assert_eq!(judge_room(root, 50, 100, 50, 100).verdict, Verdict::Ok);
        assert!(matches!(judge_room(root, 14, 100, 50, 100).verdict, Verdict::Warn { .. }));
        assert!(matches!(judge_room(root, 50, 100, 4, 100).verdict, Verdict::Warn { .. }));
        // btrfs has no number of inodes.
        assert_eq!(judge_room(root, 50, 100, 0, 0).verdict, Verdict::Ok);
    }

    #[test]
    fn a_directory_that_others_can_read_is_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let judged = |mode: u32, most| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            open_to_others("root", dir.path(), most)
        };
        assert!(judged(0o700, 0o700).is_none() && judged(0o711, 0o711).is_none());
        for (mode, most) in [(0o755, 0o700), (0o711, 0o700), (0o755, 0o711)] {
            let finding = judged(mode, most).unwrap();
            let Verdict::Warn { remedy } = &finding.verdict else { panic!("{finding:?}") };
            assert!(remedy.contains(&format!("chmod {most:o}")), "{remedy}");
        }
        // The daemon makes it.
        assert!(open_to_others("root", &dir.path().join("absent"), 0o700).is_none());
        std::fs::write(dir.path().join("file"), "").unwrap();
        let finding = open_to_others("root", &dir.path().join("file/below"), 0o700).unwrap();
        assert!(finding.found.starts_with("unknown"), "{finding:?}");
    }

    #[test]
    fn a_read_only_file_system_is_told_with_its_mount() {
        let error = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let finding = unwritable("root", Path::new("/proc/none"), &error);
        let Verdict::Fail { remedy } = finding.verdict else { panic!("{finding:?}") };
        assert!(remedy.starts_with("mount -o remount,rw /proc\n"), "{remedy}");
    }
}
