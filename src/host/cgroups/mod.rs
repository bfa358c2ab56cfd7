//! Cgroups of containers: which hierarchy the host has, where a container's cgroup lies, its processes and removal.
//!
//! Owns only leaves that end in a container's id. Never creates a cgroup (the OCI runtime does), never touches a
//! parent: the kubelet owns those.

mod hasten;
mod stats;

pub use stats::{CgroupStats, MemoryStats, Pressure, PressureLine, PressureStats};

use super::mountinfo;
use crate::model::ContainerId;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::hierarchies;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Where cgroup file systems are mounted.
const MOUNT_ROOT: &str = "/sys/fs/cgroup";
/// Rounds of "signal every process" in a cgroup that cannot be killed as one. Each round catches what forked in the
/// last; frozen processes do not fork, so two are the rule.
const MAX_KILL_ROUNDS: usize = 16;
/// Attempts to remove a cgroup whose last processes are still being reaped, with [`REMOVE_PAUSE`] between.
const REMOVE_ATTEMPTS: usize = 50;
/// Half a second in all: an exiting process leaves its cgroup within milliseconds.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing is mounted where cgroups should be.
    #[error("no cgroup hierarchy is mounted below {MOUNT_ROOT}")]
    NotMounted,
    /// A parent in systemd's style.
    #[error(
        "cgroup parent {parent:?} is a systemd slice but the cgroup driver is cgroupfs; give the kubelet cgroupDriver: cgroupfs"
    )]
    SliceParent {
        /// As given.
        parent: String,
    },
    /// A parent that is no plain path.
    #[error("cgroup parent {parent:?} is not a path without \"..\"")]
    BadParent {
        /// As given.
        parent: String,
    },
    /// A file could not be read or written.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// `read`, `write`, `remove`, `list`.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A process could not be signalled.
    #[error("kill process {pid} of cgroup {}: {cause}", path.display())]
    Kill {
        /// Process.
        pid: i32,
        /// The cgroup.
        path: PathBuf,
        /// Cause.
        cause: nix::Error,
    },
    /// The freezer refused.
    #[error("{operation} cgroup {}: {cause}", path.display())]
    Freezer {
        /// `freeze` or `thaw`.
        operation: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Cause.
        cause: cgroups_rs::fs::error::Error,
    },
    /// Processes fork faster than they are killed.
    #[error("cgroup {} still has processes after {MAX_KILL_ROUNDS} rounds of SIGKILL", path.display())]
    StillAlive {
        /// The cgroup.
        path: PathBuf,
    },
}

/// Which hierarchies a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// One hierarchy a controller.
    V1,
    /// Controllers on v1, and a v2 tree beside them.
    Hybrid,
    /// The unified hierarchy.
    V2,
}

/// The path of one container's cgroup, relative to the root of every hierarchy. Only [`leaf`] makes one, so it always
/// ends in a container's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf(PathBuf);

impl Leaf {
    /// The absolute path within a hierarchy, as the OCI runtime's `cgroupsPath`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// The cgroup of container `id` with the cgroupfs driver: `<parent>/<id>`.
///
/// # Errors
/// When the parent is a systemd slice or has `..`.
pub fn leaf(parent: &str, default_parent: &str, id: &ContainerId) -> Result<Leaf, CgroupError> {
    let parent = if parent.is_empty() { default_parent } else { parent };
    let mut path = PathBuf::from("/");
    for component in Path::new(parent).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(CgroupError::BadParent { parent: parent.to_owned() });
            }
        }
    }
    // The kubelet sends the whole slice path, and a slice may lie below a plain directory: the base name tells.
    if path.extension().is_some_and(|extension| extension == "slice") {
        return Err(CgroupError::SliceParent { parent: parent.to_owned() });
    }
    path.push(id.as_str());
    Ok(Leaf(path))
}

/// The host's hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mode: CgroupMode,
    /// v1: mount point by controller. Empty on v2.
    v1: BTreeMap<String, PathBuf>,
    /// The v2 tree.
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the mounted hierarchies.
    ///
    /// # Errors
    /// When there is none.
    pub fn detect() -> Result<Self, CgroupError> {
        let mounts = mountinfo::read().map_err(|cause| CgroupError::Io {
            operation: "read",
            path: "/proc/self/mountinfo".into(),
            cause,
        })?;
        Self::from_mounts(&mounts, hierarchies::is_cgroup2_unified_mode())
    }

    fn from_mounts(mounts: &[mountinfo::MountEntry], unified: bool) -> Result<Self, CgroupError> {
        let below = |mount: &&mountinfo::MountEntry| mount.mount_point.starts_with(MOUNT_ROOT);
        let v2 = mounts
            .iter()
            .filter(below)
            .find(|mount| mount.fstype == "cgroup2")
            .map(|mount| mount.mount_point.clone());
        let mut v1 = BTreeMap::new();
        for mount in mounts.iter().filter(below).filter(|mount| mount.fstype == "cgroup") {
            for option in mount.super_options.iter().filter(|option| is_controller(option)) {
                v1.entry(option.clone()).or_insert_with(|| mount.mount_point.clone());
            }
        }
        let mode = match (unified, v1.is_empty(), &v2) {
            (true, _, Some(_)) => CgroupMode::V2,
            (false, false, Some(_)) => CgroupMode::Hybrid,
            (false, false, None) => CgroupMode::V1,
            (true, _, None) | (false, true, _) => return Err(CgroupError::NotMounted),
        };
        if mode == CgroupMode::V2 {
            v1.clear();
        }
        Ok(Self { mode, v1, v2 })
    }

    /// The kind of hierarchy.
    #[must_use]
    pub fn mode(&self) -> CgroupMode {
        self.mode
    }

    /// Whether containers can be limited by `controller` (`memory`, `hugetlb`, ...).
    #[must_use]
    pub fn has_controller(&self, controller: &str) -> bool {
        match (self.mode, &self.v2) {
            (CgroupMode::V2, Some(root)) => std::fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|known| known == controller)),
            _ => self.v1.contains_key(controller),
        }
    }

    /// Whether swap is accounted, so that a swap limit can be set.
    #[must_use]
    pub fn accounts_swap(&self) -> bool {
        match self.mode {
            // The root has no memory.swap.max to look for; a kernel with swap has /proc/swaps and accounts it.
            CgroupMode::V2 => self.has_controller("memory") && Path::new("/proc/swaps").exists(),
            CgroupMode::V1 | CgroupMode::Hybrid => {
                self.v1.get("memory").is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists())
            }
        }
    }

    /// The directory of `leaf` under one controller.
    fn dir(&self, controller: &str, leaf: &Leaf) -> Option<PathBuf> {
        let root = match self.mode {
            CgroupMode::V2 => self.v2.as_ref(),
            CgroupMode::V1 | CgroupMode::Hybrid => self.v1.get(controller),
        }?;
        Some(root.join(leaf.0.strip_prefix("/").unwrap_or(&leaf.0)))
    }

    /// Every directory of `leaf` that exists.
    fn dirs(&self, leaf: &Leaf) -> Vec<PathBuf> {
        let relative = leaf.0.strip_prefix("/").unwrap_or(&leaf.0);
        let mut dirs: Vec<_> = self.v1.values().chain(&self.v2).map(|root| root.join(relative)).collect();
        dirs.sort();
        dirs.dedup();
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// Has the kernel prepare for the moves that an OCI runtime is about to make, which shortens these by a grace
    /// period. Blocks for that long; to be run beside the runtime.
    pub fn hasten_moves(&self) {
        // The v2 tree first: a v1 hierarchy is as good, but may be mounted under any name.
        hasten::hasten(self.v2.iter().chain(self.v1.values()).cloned());
    }

    /// Whether any hierarchy has the cgroup.
    #[must_use]
    pub fn exists(&self, leaf: &Leaf) -> bool {
        !self.dirs(leaf).is_empty()
    }

    /// The processes in the container's cgroup and below it, sorted. Empty if it is gone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pids(&self, leaf: &Leaf) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for dir in self.dirs(leaf) {
            collect_pids(&dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends SIGKILL to every process of the cgroup. They may still be on their way out when this returns.
    ///
    /// # Errors
    /// When a process cannot be signalled or they fork faster than they are killed.
    pub fn kill_all(&self, leaf: &Leaf) -> Result<(), CgroupError> {
        if let (CgroupMode::V2, Some(dir)) = (self.mode, self.dir("", leaf)) {
            let file = dir.join("cgroup.kill");
            match std::fs::write(&file, "1") {
                Ok(()) => return Ok(()),
                // Gone, or a kernel before 5.14: then one by one, which finds nothing in a cgroup that is gone.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(cause) => return Err(CgroupError::Io { operation: "write", path: file, cause }),
            }
        }
        let freezer = self
            .dir("freezer", leaf)
            .filter(|dir| self.mode != CgroupMode::V2 && dir.join("freezer.state").exists())
            .map(|dir| (FreezerController::new(dir.clone(), dir.clone(), false), dir));
        let mut signalled = Vec::new();
        for _ in 0..MAX_KILL_ROUNDS {
            if let Some((freezer, dir)) = &freezer {
                let failed = |cause| CgroupError::Freezer { operation: "freeze", path: dir.clone(), cause };
                freezer.freeze().map_err(failed)?;
            }
            let round = self.signal_new(leaf, &mut signalled);
            if let Some((freezer, dir)) = &freezer {
                let failed = |cause| CgroupError::Freezer { operation: "thaw", path: dir.clone(), cause };
                freezer.thaw().map_err(failed)?;
            }
            if round? == 0 {
                return Ok(());
            }
        }
        Err(CgroupError::StillAlive { path: leaf.0.clone() })
    }

    /// Signals what is not in `signalled` yet; the number of those.
    fn signal_new(&self, leaf: &Leaf, signalled: &mut Vec<i32>) -> Result<usize, CgroupError> {
        let mut new = 0;
        for pid in self.pids(leaf)? {
            if signalled.contains(&pid) {
                continue;
            }
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(cause) => return Err(CgroupError::Kill { pid, path: leaf.0.clone(), cause }),
            }
            signalled.push(pid);
            new += 1;
        }
        Ok(new)
    }

    /// Removes what is left of the container's cgroup, with those below it. What is gone is fine.
    ///
    /// # Errors
    /// When a process still holds it.
    pub fn remove(&self, leaf: &Leaf) -> Result<(), CgroupError> {
        for dir in self.dirs(leaf) {
            remove_tree(&dir)?;
        }
        Ok(())
    }

    /// Usage of the container.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn stats(&self, leaf: &Leaf) -> Result<CgroupStats, CgroupError> {
        match self.mode {
            CgroupMode::V2 => stats::read_v2(&self.dir("", leaf).unwrap_or_default()),
            CgroupMode::V1 | CgroupMode::Hybrid => stats::read_v1(&|controller| self.dir(controller, leaf)),
        }
    }
}

/// Options of a v1 superblock that are not controllers.
fn is_controller(option: &str) -> bool {
    !matches!(option, "rw" | "ro" | "xattr" | "none" | "noprefix" | "clone_children" | "cpuset_v2_mode")
        && !option.contains('=')
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |cause| CgroupError::Io { operation: "list", path: dir.to_owned(), cause };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    let file = dir.join("cgroup.procs");
    match stats::text(&file)? {
        // 0 is a process outside our pid namespace.
        Some(text) => {
            pids.extend(text.lines().filter_map(|l| l.trim().parse::<i32>().ok()).filter(|p| *p > 0))
        }
        None => return Ok(()),
    }
    for child in children(dir)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    let mut attempt = 1;
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && attempt < REMOVE_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(cause) => {
                return Err(CgroupError::Io { operation: "remove", path: dir.to_owned(), cause });
            }
        }
    }
}

#[cfg(test)]
mod tests;
