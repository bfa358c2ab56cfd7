//! Cgroups of containers: which hierarchy the host has, where a container's cgroup lies, its processes and removal.
//!
//! Owns only leaves that end in a container's or a pod's id. Creates none but that of a pod's own process 1 (those of
//! containers the OCI runtime does), never touches a parent: the kubelet owns those.

mod details;
mod hasten;
mod make;
mod place;
mod rate;
mod stats;
mod tree;

pub use details::{CgroupDetails, DeviceIo, HugePages};
pub use place::{Driver, Leaf, init_leaf, leaf, parent_path};
pub use stats::{CgroupStats, MemoryStats, Pressure, PressureLine, PressureStats};

use self::rate::Rates;
use super::mountinfo;
use crate::host::offload::OffThread;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::hierarchies;
use podwright_sys::{pidfd, proc};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// In a scope that systemd made for it, crun puts limits and processes into a cgroup of its own, which systemd does not
/// touch (`run.oci.systemd.subgroup` in crun(1)).
const CRUN_SUBGROUP: &str = "container";
/// Where the kernel lists its sizes of huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";
/// Where cgroup file systems are mounted.
const MOUNT_ROOT: &str = "/sys/fs/cgroup";
/// Rounds of "signal every process" in a cgroup that cannot be killed as one. Each round catches what forked in the
/// last; frozen processes do not fork, so two are the rule.
const MAX_KILL_ROUNDS: usize = 16;
/// Processes that are held at once while they are signalled, a descriptor each.
const HELD_PROCESSES: usize = 128;

/// A process for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    pid: i32,
    start_time: u64,
}

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing is mounted where cgroups should be.
    #[error("no cgroup hierarchy is mounted below {MOUNT_ROOT}")]
    NotMounted,
    /// A parent in systemd's style.
    #[error(
        "cgroup_parent {parent:?} is a systemd slice but the cgroup driver is cgroupfs: give the kubelet \
         cgroupDriver: cgroupfs, or set cgroups.driver = \"systemd\" in podwright's configuration"
    )]
    SliceParent {
        /// As given.
        parent: String,
    },
    /// A parent in cgroupfs' style.
    #[error(
        "cgroup_parent {parent:?} is not a systemd slice but the cgroup driver is systemd: give the kubelet \
         cgroupDriver: systemd, or set cgroups.driver = \"cgroupfs\" in podwright's configuration"
    )]
    PathParent {
        /// As given.
        parent: String,
    },
    /// A parent that is neither.
    #[error("cgroup_parent {parent:?} is neither a path without \"..\" nor the name of a systemd slice")]
    BadParent {
        /// As given.
        parent: String,
    },
    /// A file could not be read or written.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// `read`, `write`, `make`, `remove`, `list`.
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
        cause: std::io::Error,
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

/// The host's hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mode: CgroupMode,
    /// v1: mount point by controller. Empty on v2.
    v1: BTreeMap<String, PathBuf>,
    /// v1: mount points of hierarchies without a controller (`name=systemd`), in which OCI runtimes make cgroups too.
    named: Vec<PathBuf>,
    /// The v2 tree.
    v2: Option<PathBuf>,
    /// Sizes of huge pages as cgroup files name them: `2MB`.
    page_sizes: Vec<String>,
    rates: Arc<Rates>,
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
        let found = Self::from_mounts(&mounts, hierarchies::is_cgroup2_unified_mode())?;
        Ok(Self { page_sizes: page_sizes(Path::new(HUGE_PAGES)), ..found })
    }

    fn from_mounts(mounts: &[mountinfo::MountEntry], unified: bool) -> Result<Self, CgroupError> {
        let below = |mount: &&mountinfo::MountEntry| mount.mount_point.starts_with(MOUNT_ROOT);
        let v2 = mounts
            .iter()
            .filter(below)
            .find(|mount| mount.fstype == "cgroup2")
            .map(|mount| mount.mount_point.clone());
        let mut v1 = BTreeMap::new();
        let mut named = Vec::new();
        for mount in mounts.iter().filter(below).filter(|mount| mount.fstype == "cgroup") {
            if mount.super_options.iter().any(|option| option.starts_with("name=")) {
                named.push(mount.mount_point.clone());
            }
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
            named.clear();
        }
        Ok(Self { mode, v1, named, v2, page_sizes: Vec::new(), rates: Arc::default() })
    }

    /// The kind of hierarchy.
    #[must_use]
    pub fn mode(&self) -> CgroupMode {
        self.mode
    }

    /// Whether containers can be limited by `controller` (`memory`, `hugetlb`, ...).
    #[must_use]
    pub fn has_controller(&self, controller: &str) -> bool {
        self.controllers().iter().any(|known| known == controller)
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

    /// The directory of a cgroup under one controller.
    fn dir(&self, controller: &str, cgroup: &Path) -> Option<PathBuf> {
        let root = match self.mode {
            CgroupMode::V2 => self.v2.as_ref(),
            CgroupMode::V1 | CgroupMode::Hybrid => self.v1.get(controller),
        }?;
        Some(root.join(cgroup.strip_prefix("/").unwrap_or(cgroup)))
    }

    /// On v2, the directory that has a cgroup's limits, and with them its figures.
    fn limited_dir(&self, cgroup: &Path) -> PathBuf {
        let dir = self.dir("", cgroup).unwrap_or_default();
        if cgroup.extension().is_some_and(|extension| extension == "scope") {
            let inner = dir.join(CRUN_SUBGROUP);
            if inner.is_dir() {
                return inner;
            }
        }
        dir
    }

    /// Every directory of `leaf` that exists.
    fn dirs(&self, leaf: &Leaf) -> Vec<PathBuf> {
        let path = leaf.path();
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut dirs: Vec<_> =
            self.v1.values().chain(&self.named).chain(&self.v2).map(|root| root.join(relative)).collect();
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

    /// Names of the controllers that containers can be limited by.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        match (self.mode, &self.v2) {
            (CgroupMode::V2, Some(root)) => std::fs::read_to_string(root.join("cgroup.controllers"))
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            _ => self.v1.keys().cloned().collect(),
        }
    }

    /// Sizes of huge pages as limits name them: `2MB`.
    #[must_use]
    pub fn page_sizes(&self) -> &[String] {
        &self.page_sizes
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
            tree::collect_pids(&dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends SIGKILL to every process of the cgroup. They may still be on their way out when this returns.
    ///
    /// # Errors
    /// When a process cannot be signalled or they fork faster than they are killed.
    pub fn kill_all(&self, _: &OffThread, leaf: &Leaf) -> Result<(), CgroupError> {
        if let (CgroupMode::V2, Some(dir)) = (self.mode, self.dir("", leaf.path())) {
            let file = dir.join("cgroup.kill");
            match std::fs::write(&file, "1") {
                Ok(()) => return Ok(()),
                // Gone, or a kernel before 5.14: then one by one, which finds nothing in a cgroup that is gone.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(cause) => return Err(CgroupError::Io { operation: "write", path: file, cause }),
            }
        }
        let freezer = self
            .dir("freezer", leaf.path())
            .filter(|dir| self.mode != CgroupMode::V2 && dir.join("freezer.state").exists())
            .map(|dir| (FreezerController::new(dir.clone(), dir.clone(), false), dir));
        let mut signalled = HashSet::new();
        for _ in 0..MAX_KILL_ROUNDS {
            if let Some((freezer, dir)) = &freezer {
                let failed = |cause| CgroupError::Freezer { operation: "freeze", path: dir.clone(), cause };
                freezer.freeze().map_err(failed)?;
            }
            let round = self.signal_new(leaf, &mut signalled);
            if let Some((freezer, dir)) = &freezer {
                let failed = |cause| CgroupError::Freezer { operation: "thaw", path: dir.clone(), cause };
                freezer.thaw().map_err(failed)?;
                tree::thaw(dir)?;
            }
            if round? == 0 {
                return Ok(());
            }
        }
        Err(CgroupError::StillAlive { path: leaf.path().to_owned() })
    }

    /// Lets processes run that the container has frozen, itself or in cgroups below its own: on v1 a frozen process does
    /// not die of SIGKILL.
    ///
    /// # Errors
    /// When one of the cgroups cannot be written.
    pub fn thaw(&self, _: &OffThread, leaf: &Leaf) -> Result<(), CgroupError> {
        match self.dir("freezer", leaf.path()) {
            Some(dir) if self.mode != CgroupMode::V2 => tree::thaw(&dir),
            Some(_) | None => Ok(()),
        }
    }

    /// Signals what is not in `signalled` yet; the number of those.
    fn signal_new(&self, leaf: &Leaf, signalled: &mut HashSet<Process>) -> Result<usize, CgroupError> {
        let mut new = 0;
        for some in self.pids(leaf)?.chunks(HELD_PROCESSES) {
            new += self.signal(leaf, some, signalled)?;
        }
        Ok(new)
    }

    /// Signals processes that were in the cgroup, if they still are: each is held first and looked for once more, since
    /// its pid may be another's by now.
    fn signal(
        &self,
        leaf: &Leaf,
        listed: &[i32],
        signalled: &mut HashSet<Process>,
    ) -> Result<usize, CgroupError> {
        let failed = |pid, cause| CgroupError::Kill { pid, path: leaf.path().to_owned(), cause };
        let is_gone = |error: &std::io::Error| error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
        let mut held = Vec::new();
        for pid in listed.iter().copied() {
            let Ok(number) = u32::try_from(pid) else { continue };
            match pidfd::open(number) {
                Ok(process) => held.push((pid, number, process)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(failed(pid, error)),
            }
        }
        let still = self.pids(leaf)?;
        let mut new = 0;
        for (pid, number, process) in held {
            // One that is gone has no start time, and needs no signal.
            let Ok(start_time) = proc::start_time(number) else { continue };
            if still.binary_search(&pid).is_err() || !signalled.insert(Process { pid, start_time }) {
                continue;
            }
            match pidfd::send_signal(process.as_fd(), pidfd::SIGKILL) {
                Ok(()) => new += 1,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(failed(pid, error)),
            }
        }
        Ok(new)
    }

    /// Removes what is left of the container's cgroup, with those below it. What is gone is fine.
    ///
    /// # Errors
    /// When a process still holds it.
    pub fn remove(&self, _: &OffThread, leaf: &Leaf) -> Result<(), CgroupError> {
        self.dirs(leaf).iter().try_for_each(|dir| tree::remove(dir))
    }

    /// Kills and removes what a start-up probe of an OCI runtime left behind; `name` is the probe's, `parent` where it
    /// ran. What stays is logged.
    pub fn clear_probe(&self, off: &OffThread, parent: &str, name: &str) {
        let cleared = place::probe_leaf(parent, name).and_then(|leaf| {
            self.kill_all(off, &leaf)?;
            self.remove(off, &leaf)
        });
        if let Err(error) = cleared {
            // Log: The OCI runtime failed in a test of the daemon's start, and what it left cannot be removed.
            // Do: Remove the cgroup by hand, or reboot.
            tracing::warn!(probe = name, %error, "the cgroup of a start-up probe stays");
        }
    }

    /// Removes the cgroups below the container's, which an OCI runtime would look for by path: there may be more than a
    /// path has room for. Those that have processes stay.
    ///
    /// # Errors
    /// When they cannot be listed or removed.
    pub fn remove_below(&self, _: &OffThread, leaf: &Leaf) -> Result<(), CgroupError> {
        self.dirs(leaf).iter().try_for_each(|dir| tree::remove_below(dir))
    }

    /// Usage of a container's or pod's cgroup, a path as that of a [`Leaf`].
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn stats(&self, cgroup: &Path) -> Result<CgroupStats, CgroupError> {
        match self.mode {
            CgroupMode::V2 => stats::read_v2(&self.limited_dir(cgroup)),
            CgroupMode::V1 | CgroupMode::Hybrid => stats::read_v1(&|controller| self.dir(controller, cgroup)),
        }
    }

    /// More of it, at the price of some ten files.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn details(&self, cgroup: &Path) -> Result<CgroupDetails, CgroupError> {
        let sizes = &self.page_sizes;
        match self.mode {
            CgroupMode::V2 => details::read_v2(&self.limited_dir(cgroup), sizes),
            CgroupMode::V1 | CgroupMode::Hybrid => {
                details::read_v1(&|controller| self.dir(controller, cgroup), sizes)
            }
        }
    }

    /// CPU time a second, in nanoseconds, since an earlier call for the same cgroup; `used_ns` is what was read now.
    /// None at first.
    #[must_use]
    pub fn cpu_rate(&self, cgroup: &Path, used_ns: u64) -> Option<u64> {
        self.rates.observe(cgroup, used_ns, Instant::now())
    }
}

/// The kernel's sizes of huge pages, as cgroup files name them.
fn page_sizes(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    // mem_fmt in mm/hugetlb_cgroup.c: whole units, the largest that fits.
    let named = |kib: u64| match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    };
    sizes.into_iter().map(named).collect()
}

/// Options of a v1 superblock that are not controllers.
fn is_controller(option: &str) -> bool {
    !matches!(option, "rw" | "ro" | "xattr" | "none" | "noprefix" | "clone_children" | "cpuset_v2_mode")
        && !option.contains('=')
}

#[cfg(test)]
mod tests;
