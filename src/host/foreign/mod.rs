//! Work on places that are not podwright's own: whatever path of the host a request names. Behind one may be a server
//! that is gone or a file system whose program never answers; a call there hangs in the kernel, where nothing ends it.
//!
//! So it has threads of its own, one a job, of which a pod, a file system and the whole node have so many; who asks waits
//! for no longer than its limit. What hangs is remembered until it comes back, and refused at once meanwhile. Never does
//! work of our own (bundles, layers, records), and a job gets nothing that it could still write to when it is late: it
//! returns descriptors and values, which are dropped when nobody waits for them any more.

mod jobs;
mod way;

pub use way::{Found, Missing, find};

use super::mountinfo;
use crate::host::offload::{OffThread, in_place};
use jobs::{Admission, Device, HANGS_AFTER, Job, Jobs, Pace, server};
use podwright_sys::apart::{self, Outbox};
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// The name of a process for such work.
const PROCESS: &CStr = c"podwright-look";
/// How often who waits looks again whether what it waits for hangs by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    /// There are so many that hang.
    #[error(
        "{} is not looked at: {jobs} looks at host paths {of} hang or go on with nobody waiting for them, first one at \
         {}. podwright tries again when one of them comes back",
        path.display(), eldest.display()
    )]
    Lost {
        /// What was asked for.
        path: PathBuf,
        /// Whose.
        of: &'static str,
        /// How many there may be.
        jobs: usize,
        /// Where the eldest is.
        eldest: PathBuf,
    },
    /// It leads into a process.
    #[error(
        "{} is a link of procfs, which leads to what a process has, perhaps podwright itself: nothing of the host is \
         found that way",
        link.display()
    )]
    Procfs {
        /// The link on the way.
        link: PathBuf,
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
    /// One has ended: for those who ask, and for jobs on their way.
    ended: Notify,
    ended_too: Condvar,
}

/// By which a job says where it is.
#[derive(Debug, Clone)]
pub struct Progress {
    shared: Arc<Shared>,
    number: u64,
    until: Instant,
}

impl Progress {
    /// It is now at the place of that number, for a look that takes no time.
    pub fn at(&self, place: usize) {
        self.change(|job| {
            if let Some(place) = job.places.get(place).cloned() {
                job.goes_to(&place);
            }
        });
    }

    /// From now on it works where it is, for as long as it takes, and says with [`Self::moves`] that it does.
    pub fn works(&self) {
        self.change(|job| job.pace = Pace::Works);
    }

    /// It still does.
    pub fn moves(&self) {
        self.change(|_| {});
    }

    /// It looks at a path now, which is beside or below the one before.
    fn looks_at(&self, path: &Path) {
        self.change(|job| job.goes_to(path));
    }

    fn change(&self, how: impl FnOnce(&mut Job)) {
        if let Some(job) = self.shared.lock().running.get_mut(&self.number) {
            how(job);
            (job.since, job.patience) = (Instant::now(), HANGS_AFTER);
        }
    }

    /// It would look at a path now that may be on any file system; waits for its turn there.
    fn goes_to(&self, path: &Path) -> Result<(), ForeignError> {
        let mut jobs = self.shared.lock();
        loop {
            let now = Instant::now();
            let Some(job) = jobs.running.get_mut(&self.number) else { return Ok(()) };
            job.goes_to(path);
            (job.pace, job.since) = (Pace::Waits, now);
            let verdict = match jobs.is_quiet(now) {
                true => Admission::Go,
                false => {
                    drop(jobs);
                    let mounts = mountinfo::read().unwrap_or_default();
                    jobs = self.shared.lock();
                    jobs.look_up(&mounts);
                    jobs.judge_way(self.number, path, server(&mounts, path), now)
                }
            };
            match verdict {
                Admission::Go => {
                    if let Some(job) = jobs.running.get_mut(&self.number) {
                        (job.pace, job.since) = (Pace::Looks, Instant::now());
                    }
                    return Ok(());
                }
                Admission::Refuse(error) => return Err(error),
                Admission::Wait { of, jobs } if Instant::now() >= self.until => {
                    let (path, limit) = (path.to_owned(), Duration::ZERO);
                    return Err(ForeignError::Busy { path, of, jobs, limit });
                }
                Admission::Wait { .. } => {}
            }
            let waited = self.shared.ended_too.wait_timeout(jobs, LOOK_AGAIN);
            jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A reader or writer of a place that is worked on: each piece that passes says that the work goes on.
#[derive(Debug)]
pub struct Moving<T> {
    inner: T,
    progress: Option<Progress>,
}

impl<T> Moving<T> {
    /// Without progress: as it is.
    pub fn new(inner: T, progress: Option<&Progress>) -> Self {
        Self { inner, progress: progress.cloned() }
    }

    fn moves(&self) {
        self.progress.iter().for_each(Progress::moves);
    }
}

impl<T: io::Read> io::Read for Moving<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.moves();
        self.inner.read(buffer)
    }
}

impl<T: io::Write> io::Write for Moving<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.moves();
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.moves();
        self.inner.flush()
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
        self.shared.ended_too.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Every section leaves the table whole.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry, if there may be one more. `served` is kept between the tries of one job.
    fn admit(
        self: &Arc<Self>,
        asked: &Asked,
        served: &mut Option<Vec<Option<Device>>>,
    ) -> Result<Entry, Admission> {
        let now = Instant::now();
        let mut jobs = self.lock();
        if !jobs.is_quiet_for(&asked.pod, now) {
            if served.is_none() || jobs.are_unknown() {
                drop(jobs);
                // Only now: there may be thousands of mounts. It asks no file system.
                let mounts = mountinfo::read().unwrap_or_default();
                jobs = self.lock();
                jobs.look_up(&mounts);
                served.get_or_insert_with(|| asked.places.iter().map(|p| server(&mounts, p)).collect());
            }
            match jobs.judge(asked, served.as_deref().unwrap_or_default(), now) {
                Admission::Go => {}
                other => return Err(other),
            }
        }
        Ok(self.enter(&mut jobs, asked, served.clone(), now))
    }

    fn enter(
        self: &Arc<Self>,
        jobs: &mut Jobs,
        asked: &Asked,
        served: Option<Vec<Option<Device>>>,
        now: Instant,
    ) -> Entry {
        jobs.last += 1;
        let number = jobs.last;
        jobs.running.insert(number, Job::new(asked, served, now));
        Entry { shared: self.clone(), number }
    }
}

impl Foreign {
    /// Gives something back that a pod had of a place, which is never refused: on a thread of its own, counted like any
    /// other, and waited for no longer than the limit. None: it goes on behind.
    ///
    /// # Errors
    /// When there is no thread.
    pub async fn release<T: Send + 'static>(
        &self,
        asked: Asked,
        work: impl Fn(&OffThread) -> T + Send + 'static,
    ) -> Result<Option<T>, ForeignError> {
        let path = asked.places.first().cloned().unwrap_or_default();
        let entry = self.0.enter(&mut self.0.lock(), &asked, None, Instant::now());
        let until = tokio::time::Instant::now() + asked.limit;
        match self.start(entry, asked, until, move |_| apart::run(PROCESS, |_| in_place(&work))).await {
            Err(ForeignError::Silent { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(Ok((done, _))) => Ok(Some(done)),
            Ok(Err(source)) => Err(ForeignError::Thread { path, source }),
        }
    }

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
        let until = tokio::time::Instant::now() + asked.limit;
        let entry = self.entry(&asked, until).await?;
        self.start(entry, asked, until, work).await
    }

    /// As [`Self::run`], but in a process of its own that shares this one's memory and none of its descriptors: when it
    /// hangs where no signal ends it, this process can still end, and no lock or socket stays. With the result come the
    /// files that the work has put into its outbox, in their order. `work` may neither capture nor return descriptors,
    /// nor wake a task; it is dropped here.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn apart<T: Send + 'static>(
        &self,
        asked: Asked,
        work: impl Fn(&Progress, &Outbox<'_>) -> T + Send + 'static,
    ) -> Result<(T, Vec<OwnedFd>), ForeignError> {
        let path = asked.places.first().cloned().unwrap_or_default();
        let work = move |progress: &Progress| apart::run(PROCESS, |outbox| work(progress, outbox));
        self.run(asked, work).await?.map_err(|source| ForeignError::Thread { path, source })
    }

    async fn start<T: Send + 'static>(
        &self,
        entry: Entry,
        asked: Asked,
        until: tokio::time::Instant,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> Result<T, ForeignError> {
        let first = asked.places.first().cloned().unwrap_or_default();
        let number = entry.number;
        let progress = Progress { shared: self.0.clone(), number, until: until.into_std() };
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

    /// Nobody waits for the job any more: from now on it hangs, unless it says that it works. Where it is; `first` if it
    /// has just ended.
    fn given_up(&self, number: u64, first: PathBuf) -> PathBuf {
        let mut jobs = self.0.lock();
        let Some(job) = jobs.running.get_mut(&number) else { return first };
        job.given_up = true;
        job.here.clone()
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
mod tests;
