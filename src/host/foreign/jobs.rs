//! The table of jobs: how many of what there may be, and what is known to hang. A job that hangs is no longer counted
//! among those of its kind, so that no number of them takes the places of others. Starts no thread, looks at no file.

use super::{Asked, ForeignError};
use crate::host::mountinfo::{self, MountEntry};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Jobs of one pod at once, those that hang included: a kubelet makes a pod's containers one after the other, so that
/// more are repetitions.
pub(super) const PER_POD: usize = 4;
/// Jobs at once on one file system that is served by others: as long as it is not known to hang, it takes no more
/// threads than this.
pub(super) const PER_FILE_SYSTEM: usize = 8;
/// Jobs at once on all that is served by others, and as many again on local file systems, and as many that wait to go
/// from the second to the first. Those that hang are none of them.
pub(super) const IN_ALL: usize = 64;
/// Threads that hang, or that nobody waits for any more, beyond which one that might become another is not begun: of a
/// pod that has one, or on a file system that others serve. Each costs some 20 KiB.
pub(super) const LOST: usize = 256;
/// A look that takes longer is taken for one that hangs. A server that is merely slow answers the next call.
pub(super) const HANGS_AFTER: Duration = Duration::from_secs(5);

/// File systems that answer from this machine's own memory and disks. Any other counts as served by somebody else.
const LOCAL: [&str; 36] = [
    "bcachefs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "mqueue",
    "nsfs",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "vfat",
    "xfs",
    "zfs",
];

/// A file system by its major and minor number.
pub(super) type Device = (u32, u32);

/// The file system that a path is on, if somebody else serves that. Going by the name alone: it asks no file system.
pub(super) fn server(mounts: &[MountEntry], path: &Path) -> Option<Device> {
    let mount = mountinfo::holding(mounts, path)?;
    // The node's own root is never taken for foreign: if it hangs, everything does.
    let is_root =
        || mountinfo::holding(mounts, Path::new("/")).is_some_and(|root| root.device == mount.device);
    let local = LOCAL.contains(&mount.fstype.as_str()) || is_root();
    (!local).then_some(mount.device)
}

/// How long a job may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It looks, which takes no time.
    Looks,
    /// It works for as long as it takes, and says so again and again.
    Works,
    /// It does nothing but wait for its turn on another file system.
    Waits,
}

/// A job under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pod: String,
    pub(super) places: Vec<PathBuf>,
    /// By whom each of them is served, as far as their names tell; looked up when it first matters.
    pub(super) served: Option<Vec<Option<Device>>>,
    /// What it looks at: one of the places, or where links have led it.
    pub(super) here: PathBuf,
    /// By whom that is served; looked up when it first matters.
    pub(super) device: Option<Option<Device>>,
    pub(super) pace: Pace,
    /// When it was last heard of.
    pub(super) since: Instant,
    /// For how long it may be silent.
    pub(super) patience: Duration,
    /// Nobody waits for it any more.
    pub(super) given_up: bool,
}

impl Job {
    pub(super) fn new(asked: &Asked, served: Option<Vec<Option<Device>>>, now: Instant) -> Self {
        Self {
            pod: asked.pod.clone(),
            places: asked.places.clone(),
            served,
            here: asked.places.first().cloned().unwrap_or_else(|| "/".into()),
            device: None,
            pace: Pace::Looks,
            since: now,
            patience: HANGS_AFTER.min(asked.limit),
            given_up: false,
        }
    }

    /// It looks there now.
    pub(super) fn goes_to(&mut self, path: &Path) {
        if self.here != path {
            path.clone_into(&mut self.here);
            self.device = None;
        }
        self.pace = Pace::Looks;
    }

    pub(super) fn hangs(&self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.since);
        match self.pace {
            Pace::Looks => self.given_up || silent >= self.patience,
            Pace::Works => silent >= self.patience,
            Pace::Waits => false,
        }
    }

    /// Hangs, or works on for nobody.
    fn is_lost(&self, now: Instant) -> bool {
        self.given_up || self.hangs(now)
    }

    fn is_on(&self, device: Device) -> bool {
        self.device == Some(Some(device))
            || self.served.as_ref().is_some_and(|served| served.contains(&Some(device)))
    }

    fn is_local(&self) -> bool {
        let served = self.served.iter().flatten().chain(&self.device);
        served.flatten().next().is_none()
    }
}

/// What becomes of who asks.
#[derive(Debug)]
pub(super) enum Admission {
    Go,
    Wait { of: &'static str, jobs: usize },
    Refuse(ForeignError),
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) last: u64,
    pub(super) running: HashMap<u64, Job>,
}

impl Jobs {
    fn count(&self, which: impl Fn(&Job) -> bool) -> usize {
        self.running.values().filter(|job| which(job)).count()
    }

    fn of_pod(&self, pod: &str) -> usize {
        self.count(|job| job.pod == pod)
    }

    /// So few jobs that no limit can be reached whatever they are, and none that hangs. Nothing need be looked up then.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        self.running.len() < PER_FILE_SYSTEM && !self.running.values().any(|job| job.is_lost(now))
    }

    /// The same for one more of a pod.
    pub(super) fn is_quiet_for(&self, pod: &str, now: Instant) -> bool {
        self.is_quiet(now) && self.of_pod(pod) < PER_POD
    }

    /// Whether [`Self::look_up`] has something to do.
    pub(super) fn are_unknown(&self) -> bool {
        self.running.values().any(|job| job.served.is_none() || job.device.is_none())
    }

    pub(super) fn look_up(&mut self, mounts: &[MountEntry]) {
        for job in self.running.values_mut() {
            if job.served.is_none() {
                job.served = Some(job.places.iter().map(|place| server(mounts, place)).collect());
            }
            if job.device.is_none() {
                job.device = Some(server(mounts, &job.here));
            }
        }
    }

    /// Whether one more job may begin, whose places are served so.
    pub(super) fn judge(&self, asked: &Asked, served: &[Option<Device>], now: Instant) -> Admission {
        let first = asked.places.first().map_or(Path::new("/"), PathBuf::as_path);
        for (path, device) in asked.places.iter().zip(served) {
            if let Some(error) = self.known_to_hang(path, *device, now) {
                return Admission::Refuse(error);
            }
        }
        let foreign = served.iter().any(Option::is_some);
        if let Some(error) = self.too_many_lost(first, &asked.pod, foreign, None, now) {
            return Admission::Refuse(error);
        }
        if self.of_pod(&asked.pod) >= PER_POD {
            return match self.count(|job| job.pod == asked.pod && job.hangs(now)) >= PER_POD {
                true => Admission::Refuse(self.lost(first, "of this pod", PER_POD)),
                false => Admission::Wait { of: "of this pod", jobs: PER_POD },
            };
        }
        let devices: Vec<Device> = served.iter().flatten().copied().collect();
        self.room(&devices, None, now)
    }

    /// Whether the job of that number, to which links or mounts have shown another way, may look there.
    pub(super) fn judge_way(
        &self,
        number: u64,
        path: &Path,
        device: Option<Device>,
        now: Instant,
    ) -> Admission {
        let Some(own) = self.running.get(&number) else { return Admission::Go };
        if let Some(error) = self.known_to_hang(path, device, now) {
            return Admission::Refuse(error);
        }
        let Some(device) = device else { return Admission::Go };
        if let Some(error) = self.too_many_lost(path, &own.pod, true, Some(number), now) {
            return Admission::Refuse(error);
        }
        match self.room(&[device], Some(number), now) {
            Admission::Wait { .. } if self.count(|job| job.pace == Pace::Waits) >= IN_ALL => {
                let path = path.to_owned();
                let (of, limit) = ("that wait for another file system", Duration::ZERO);
                Admission::Refuse(ForeignError::Busy { path, of, jobs: IN_ALL, limit })
            }
            other => other,
        }
    }

    /// The error, if a job hangs at `path` or anywhere on the file system that somebody else serves it from.
    fn known_to_hang(&self, path: &Path, device: Option<Device>, now: Instant) -> Option<ForeignError> {
        let there =
            |job: &&Job| path.starts_with(&job.here) || (device.is_some() && job.device == Some(device));
        let hung = self.running.values().filter(|job| job.hangs(now)).filter(there);
        let hung: Vec<&Job> = hung.collect();
        let first = hung.iter().min_by_key(|job| job.since)?;
        Some(ForeignError::Hangs {
            path: path.to_owned(),
            hung: first.here.clone(),
            since: now.saturating_duration_since(first.since),
            others: hung.len() - 1,
        })
    }

    fn too_many_lost(
        &self,
        path: &Path,
        pod: &str,
        foreign: bool,
        but: Option<u64>,
        now: Instant,
    ) -> Option<ForeignError> {
        let lost =
            || self.running.iter().filter(move |(number, job)| but != Some(**number) && job.is_lost(now));
        let many = lost().count() >= LOST && (foreign || lost().any(|(_, job)| job.pod == pod));
        many.then(|| self.lost(path, "of this node", LOST))
    }

    fn lost(&self, path: &Path, of: &'static str, jobs: usize) -> ForeignError {
        let eldest = self.running.values().min_by_key(|job| job.since);
        let eldest = eldest.map_or_else(PathBuf::new, |job| job.here.clone());
        ForeignError::Lost { path: path.to_owned(), of, jobs, eldest }
    }

    /// Whether there is a thread left for a job on these file systems of others'; on local ones, if there are none.
    fn room(&self, devices: &[Device], but: Option<u64>, now: Instant) -> Admission {
        let counted = |which: &dyn Fn(&Job) -> bool| {
            let others = self.running.iter().filter(|(number, _)| but != Some(**number));
            others.filter(|(_, job)| job.pace != Pace::Waits && !job.is_lost(now) && which(job)).count()
        };
        if devices.iter().any(|device| counted(&|job| job.is_on(*device)) >= PER_FILE_SYSTEM) {
            return Admission::Wait { of: "on its file system", jobs: PER_FILE_SYSTEM };
        }
        if counted(&|job| job.is_local() == devices.is_empty()) >= IN_ALL {
            return Admission::Wait { of: "of this node", jobs: IN_ALL };
        }
        Admission::Go
    }
}
