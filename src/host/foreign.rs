//! Work on places that are not podwright's own: whatever path of the host a request names. Behind one may be a server
//! that is gone or a file system whose program never answers; a call there hangs in the kernel, where nothing ends it.
//!
//! So it has threads of its own, one a job, of which a pod, a file system and the whole node have so many; who asks waits
//! for no longer than its limit. What hangs is remembered until it comes back, and refused at once meanwhile. Never does
//! work of our own (bundles, layers, records), and a job gets nothing that it could still write to when it is late: it
//! returns descriptors and values, which are dropped when nobody waits for them any more.

use super::mountinfo::{self, MountEntry};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Jobs of one pod at once: a kubelet makes a pod's containers one after the other, so that more are repetitions.
const PER_POD: usize = 4;
/// Jobs at once on one file system that is served by others: as long as it is not known to hang, it takes no more
/// threads than this.
const PER_FILE_SYSTEM: usize = 8;
/// Jobs at once on all that is served by others, and as many again on local file systems, which so have theirs whatever
/// hangs elsewhere. A thread that hangs costs some 20 KiB.
const IN_ALL: usize = 64;
/// A look that takes longer is taken for one that hangs. A server that is merely slow answers the next call.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// How often who waits looks again whether what it waits for hangs by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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

/// Why there is no answer from a place.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// It hung before, and still does.
    #[error(
        "{} is not looked at: a look at {} hangs since {} s, and so do {others} more there; the server or program behind \
         its file system does not answer. podwright tries again when one of them comes back",
        path.display(), hung.display(), since.as_secs()
    )]
    Hangs {
        /// What was asked for.
        path: PathBuf,
        /// What hangs: the same, or something else on its file system.
        hung: PathBuf,
        /// For how long.
        since: Duration,
        /// Other looks that hang there.
        others: usize,
    },
    /// It does not answer.
    #[error("{} did not answer within {} s: the server or program behind its file system hangs", path.display(), limit.as_secs())]
    Silent {
        /// What was being looked at.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// There was no thread for it.
    #[error("{}: {jobs} looks at host paths {of} were still under way after {} s", path.display(), limit.as_secs())]
    Busy {
        /// What was asked for.
        path: PathBuf,
        /// Whose.
        of: &'static str,
        /// How many there may be.
        jobs: usize,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The kernel gave no thread.
    #[error("start a thread that looks at {}: {source}", path.display())]
    Thread {
        /// What was asked for.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A fault of ours.
    #[error("looking at {} panicked", path.display())]
    Panicked {
        /// What was asked for.
        path: PathBuf,
    },
}

/// What a job is about.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The pod that it is done for.
    pub pod: String,
    /// What will be looked at, in this order; not empty.
    pub places: Vec<PathBuf>,
    /// When the caller has to have an answer.
    pub limit: Duration,
}

/// The threads, and what is known of them.
#[derive(Debug, Clone, Default)]
pub struct Foreign(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    /// One has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Jobs {
    last: u64,
    running: HashMap<u64, Job>,
}

#[derive(Debug)]
struct Job {
    pod: String,
    places: Vec<PathBuf>,
    /// By whom each of them is served; looked up when it first matters.
    served: Option<Served>,
    /// The place that is looked at.
    at: usize,
    /// Since when.
    since: Instant,
    /// For how long that is no hanging.
    patience: Duration,
}

impl Job {
    fn place(&self) -> &Path {
        self.places.get(self.at).map_or(Path::new("/"), PathBuf::as_path)
    }

    fn hangs(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.patience
    }

    /// Where it is, and by whom that is served.
    fn device(&self) -> Option<Device> {
        self.served.as_ref()?.get(self.at).copied().flatten()
    }

    fn is_on(&self, device: Device) -> bool {
        self.served.as_ref().is_some_and(|served| served.contains(&Some(device)))
    }

    fn is_local(&self) -> bool {
        self.served.as_ref().is_none_or(is_local)
    }
}

/// A file system by its major and minor number.
type Device = (u32, u32);
/// For each place the file system that it is on, if somebody else serves that.
type Served = Vec<Option<Device>>;

fn is_local(served: &Served) -> bool {
    served.iter().all(Option::is_none)
}

/// By which a job says where it is.
#[derive(Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    number: u64,
    limit: Duration,
}

impl Progress {
    /// It is now at the place of that number, for a look that takes no time.
    pub fn at(&self, place: usize) {
        self.note(place, HANGS_AFTER.min(self.limit));
    }

    /// It is now at the place of that number, for work that may well take as long as the caller waits.
    pub fn working_at(&self, place: usize) {
        self.note(place, self.limit);
    }

    fn note(&self, place: usize, patience: Duration) {
        if let Some(job) = self.shared.lock().running.get_mut(&self.number) {
            let given_up = job.patience.is_zero();
            job.patience = if given_up { Duration::ZERO } else { patience };
            (job.at, job.since) = (place, Instant::now());
        }
    }
}

/// A job's entry; gone with it.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.lock().running.remove(&self.number);
        self.shared.ended.notify_waiters();
    }
}

/// What becomes of who asks.
#[derive(Debug)]
enum Admission {
    Go,
    Wait { of: &'static str, jobs: usize },
    Refuse(ForeignError),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Every section leaves the table whole.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry, if there may be one more. `served` is kept between the tries of one job.
    fn admit(self: &Arc<Self>, asked: &Asked, served: &mut Option<Served>) -> Result<Entry, Admission> {
        let now = Instant::now();
        let mut jobs = self.lock();
        if !jobs.is_quiet(&asked.pod, now) {
            if served.is_none() || jobs.running.values().any(|job| job.served.is_none()) {
                drop(jobs);
                // Only now: there may be thousands of mounts. It asks no file system.
                let mounts = mountinfo::read().unwrap_or_default();
                jobs = self.lock();
                jobs.look_up(&mounts);
                served.get_or_insert_with(|| of_places(&mounts, &asked.places));
            }
            match jobs.judge(asked, served.as_ref().unwrap_or(&Vec::new()), now) {
                Admission::Go => {}
                other => return Err(other),
            }
        }
        jobs.last += 1;
        let number = jobs.last;
        let (pod, places) = (asked.pod.clone(), asked.places.clone());
        let patience = HANGS_AFTER.min(asked.limit);
        let served = served.clone();
        jobs.running.insert(number, Job { pod, places, served, at: 0, since: now, patience });
        Ok(Entry { shared: self.clone(), number })
    }
}

impl Jobs {
    /// So few jobs that no limit can be reached whatever they are, and none that hangs.
    fn is_quiet(&self, pod: &str, now: Instant) -> bool {
        let of_pod = self.running.values().filter(|job| job.pod == pod).count();
        self.running.len() < PER_FILE_SYSTEM
            && of_pod < PER_POD
            && !self.running.values().any(|job| job.hangs(now))
    }

    fn look_up(&mut self, mounts: &[MountEntry]) {
        for job in self.running.values_mut().filter(|job| job.served.is_none()) {
            job.served = Some(of_places(mounts, &job.places));
        }
    }

    fn judge(&self, asked: &Asked, served: &Served, now: Instant) -> Admission {
        for (path, device) in asked.places.iter().zip(served) {
            let hung =
                self.running.values().filter(|job| job.hangs(now)).filter(|job| {
                    path.starts_with(job.place()) || (device.is_some() && job.device() == *device)
                });
            let hung: Vec<&Job> = hung.collect();
            let Some(first) = hung.iter().min_by_key(|job| job.since) else { continue };
            return Admission::Refuse(ForeignError::Hangs {
                path: path.clone(),
                hung: first.place().to_owned(),
                since: now.saturating_duration_since(first.since),
                others: hung.len() - 1,
            });
        }
        let count = |which: &dyn Fn(&Job) -> bool| self.running.values().filter(|job| which(job)).count();
        if count(&|job| job.pod == asked.pod) >= PER_POD {
            return Admission::Wait { of: "of this pod", jobs: PER_POD };
        }
        if served.iter().flatten().any(|device| count(&|job| job.is_on(*device)) >= PER_FILE_SYSTEM) {
            return Admission::Wait { of: "on its file system", jobs: PER_FILE_SYSTEM };
        }
        if count(&|job| job.is_local() == is_local(served)) >= IN_ALL {
            return Admission::Wait { of: "of this node", jobs: IN_ALL };
        }
        Admission::Go
    }
}

fn of_places(mounts: &[MountEntry], places: &[PathBuf]) -> Served {
    let root = mountinfo::holding(mounts, Path::new("/"));
    let served = |path: &PathBuf| {
        let mount = mountinfo::holding(mounts, path)?;
        // Going by the name alone. The node's own root is never taken for foreign: if it hangs, everything does.
        let local =
            LOCAL.contains(&mount.fstype.as_str()) || root.is_some_and(|root| root.device == mount.device);
        (!local).then_some(mount.device)
    };
    places.iter().map(served).collect()
}

impl Foreign {
    /// Does `work` on a thread of its own, as soon as there may be one more, and waits for it no longer than the limit.
    /// Work that is late goes on, and what it returns is dropped.
    ///
    /// # Errors
    /// When a place is known to hang, or there was no answer in time.
    pub async fn run<T: Send + 'static>(
        &self,
        asked: Asked,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> Result<T, ForeignError> {
        let first = asked.places.first().cloned().unwrap_or_default();
        let until = tokio::time::Instant::now() + asked.limit;
        let entry = self.entry(&asked, until).await?;
        let number = entry.number;
        let progress = Progress { shared: self.0.clone(), number, limit: asked.limit };
        let (tell, told) = oneshot::channel();
        let body = move || {
            let result = work(&progress);
            if tell.is_closed() {
                // Closing what it opened may hang as well, and is still this job's.
                drop(result);
                return drop(entry);
            }
            // First, so that nobody who has the answer is refused for the job that gave it.
            drop(entry);
            let _ = tell.send(result);
        };
        let started = std::thread::Builder::new().name("host-path".to_owned()).spawn(body);
        started.map_err(|source| ForeignError::Thread { path: first.clone(), source })?;
        match tokio::time::timeout_at(until, told).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(ForeignError::Panicked { path: first }),
            Err(_) => Err(ForeignError::Silent { path: self.given_up(number, first), limit: asked.limit }),
        }
    }

    /// Nobody waits for the job any more: from now on it hangs. Where it is; `first` if it has just ended.
    fn given_up(&self, number: u64, first: PathBuf) -> PathBuf {
        let mut jobs = self.0.lock();
        let Some(job) = jobs.running.get_mut(&number) else { return first };
        job.patience = Duration::ZERO;
        job.place().to_owned()
    }

    async fn entry(&self, asked: &Asked, until: tokio::time::Instant) -> Result<Entry, ForeignError> {
        let mut served = None;
        loop {
            // Before the look, so that an end after it is not missed.
            let ended = self.0.ended.notified();
            match self.0.admit(asked, &mut served) {
                Ok(entry) => return Ok(entry),
                Err(Admission::Refuse(error)) => return Err(error),
                Err(Admission::Wait { of, jobs }) if tokio::time::Instant::now() >= until => {
                    let path = asked.places.first().cloned().unwrap_or_default();
                    return Err(ForeignError::Busy { path, of, jobs, limit: asked.limit });
                }
                Err(Admission::Wait { .. } | Admission::Go) => {}
            }
            let again = (tokio::time::Instant::now() + LOOK_AGAIN).min(until);
            let _ = tokio::time::timeout_at(again, ended).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn mount(point: &str, fstype: &str, minor: u32) -> MountEntry {
        let line = format!("22 1 0:{minor} / {point} rw - {fstype} x rw");
        mountinfo::parse(&line).remove(0)
    }

    fn asked(pod: &str, place: &str) -> Asked {
        Asked { pod: pod.to_owned(), places: vec![place.into()], limit: Duration::from_secs(30) }
    }

    impl Jobs {
        fn with(mut self, pod: &str, place: &str, age: Duration) -> Self {
            self.last += 1;
            let since = Instant::now().checked_sub(age).unwrap();
            let places = vec![PathBuf::from(place)];
            let (pod, patience) = (pod.to_owned(), HANGS_AFTER);
            let job = Job { pod, places, served: None, at: 0, since, patience };
            self.running.insert(self.last, job);
            self
        }

        fn judged(&mut self, mounts: &[MountEntry], pod: &str, place: &str) -> Admission {
            let asked = asked(pod, place);
            self.look_up(mounts);
            self.judge(&asked, &of_places(mounts, &asked.places), Instant::now())
        }
    }

    fn mounts() -> Vec<MountEntry> {
        vec![
            mount("/", "ext4", 1),
            mount("/nfs/a", "nfs4", 2),
            mount("/nfs/b", "nfs4", 2),
            mount("/fuse", "fuse.x", 3),
        ]
    }

    #[test]
    fn what_hangs_is_refused_with_all_of_its_file_system_and_nothing_else() {
        let long = HANGS_AFTER * 2;
        let mut jobs = Jobs::default().with("p1", "/nfs/a/x", long).with("p2", "/link", long);
        let mut judge = |place| jobs.judged(&mounts(), "new", place);
        for place in ["/nfs/a/x", "/nfs/b/other", "/link", "/link/below"] {
            assert!(matches!(judge(place), Admission::Refuse(ForeignError::Hangs { .. })), "{place}");
        }
        for place in ["/fuse/y", "/linked", "/", "/var"] {
            assert!(matches!(judge(place), Admission::Go), "{place}");
        }
        let Admission::Refuse(error) = judge("/nfs/b") else { panic!() };
        let text = error.to_string();
        assert!(text.starts_with("/nfs/b is not looked at: a look at /nfs/a/x hangs since 10 s"), "{text}");
    }

    #[test]
    fn a_pod_a_file_system_and_the_node_have_so_many() {
        let many = |n: usize, place: &dyn Fn(usize) -> (String, String)| {
            (0..n).map(place).fold(Jobs::default(), |jobs, (pod, at)| jobs.with(&pod, &at, Duration::ZERO))
        };
        let waits = |mut jobs: Jobs, mounts: &[MountEntry], pod, place| match jobs.judged(mounts, pod, place)
        {
            Admission::Wait { of, .. } => Some(of),
            Admission::Go | Admission::Refuse(_) => None,
        };
        let own = || many(PER_POD, &|_| ("p".into(), "/x".into()));
        assert_eq!(waits(own(), &mounts(), "p", "/y"), Some("of this pod"));
        assert_eq!(waits(own(), &mounts(), "q", "/y"), None);
        let one = || many(PER_FILE_SYSTEM, &|n| (format!("p{n}"), "/nfs/a".into()));
        assert_eq!(waits(one(), &mounts(), "q", "/nfs/b"), Some("on its file system"));
        assert_eq!(waits(one(), &mounts(), "q", "/fuse"), None);
        // As many file systems as threads: what is local has its own.
        let spread = || many(IN_ALL, &|n| (format!("p{n}"), format!("/m/{n}")));
        let fuse = |n| mount(&format!("/m/{n}"), "fuse", 10 + u32::try_from(n).unwrap());
        let all = [mounts(), (0..IN_ALL).map(fuse).collect()].concat();
        assert_eq!(waits(spread(), &all, "q", "/fuse"), Some("of this node"));
        assert_eq!(waits(spread(), &all, "q", "/x"), None);
    }

    #[tokio::test]
    async fn who_waits_gets_an_answer_at_the_limit_and_the_thread_is_forgotten_when_it_is_back() {
        let foreign = Foreign::default();
        let (release, held) = mpsc::channel::<()>();
        let short = Asked { limit: Duration::from_millis(50), ..asked("p", "/some/where") };
        let hung = foreign.run(short.clone(), move |at| {
            at.at(0);
            let _ = held.recv();
        });
        let error = hung.await.unwrap_err();
        assert!(matches!(&error, ForeignError::Silent { path, .. } if path == Path::new("/some/where")));
        let refused = foreign.run(short.clone(), |_| ()).await.unwrap_err();
        assert!(matches!(refused, ForeignError::Hangs { .. }), "{refused}");
        assert!(foreign.run(asked("p", "/else/where"), |_| true).await.unwrap());
        let ended = foreign.0.ended.notified();
        drop(release);
        ended.await;
        foreign.run(short, |_| ()).await.unwrap();
    }

    #[tokio::test]
    async fn a_job_that_waits_for_another_of_its_pod_goes_on_when_that_one_ends() {
        let foreign = Foreign::default();
        let hold = |_: usize| {
            let (release, held) = mpsc::channel::<()>();
            let foreign = foreign.clone();
            let job = async move { foreign.run(asked("p", "/x"), move |_| held.recv().is_err()).await };
            (release, tokio::spawn(job))
        };
        let mut held: Vec<_> = (0..PER_POD).map(hold).collect();
        while foreign.0.lock().running.len() < PER_POD {
            tokio::task::yield_now().await;
        }
        let short = Asked { limit: Duration::from_millis(20), ..asked("p", "/y") };
        assert!(matches!(foreign.run(short, |_| ()).await, Err(ForeignError::Busy { .. })));
        let waiting = foreign.clone();
        let waiting = tokio::spawn(async move { waiting.run(asked("p", "/y"), |_| 7).await.unwrap() });
        let (release, job) = held.remove(0);
        drop(release);
        assert!(job.await.unwrap().unwrap());
        assert_eq!(waiting.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let outcome = Foreign::default().run(asked("p", "/x"), |_| -> () { panic!("on purpose") }).await;
        assert!(matches!(outcome, Err(ForeignError::Panicked { .. })));
    }
}
