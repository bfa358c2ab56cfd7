//! Usage and limits of containers' writable layers. Readers get the last figure and never wait for a walk.
//!
//! Where the file system counts by itself (project quotas), it is queried. Elsewhere one low-priority thread walks the
//! layers of the containers whose figures are read, the more rarely the more a walk costs. Never changes a layer;
//! [`Meter`] decides whom to measure when, without I/O.

use super::metrics::PodMetrics;
use crate::config::Config;
use crate::host::quota::{Limits, Projects, QuotaError};
use crate::host::usage::{self, Measuring, Usage};
use crate::model::{ContainerId, Timestamp};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

/// Twenty seconds follow a walk of one second: at most a twentieth of one disk queue is ours.
const COST_FACTOR: u32 = 20;
/// A layer is measured for this many periods after a reader's last query: a regular reader finds figures younger than a
/// period, and one who went away costs nothing.
const LINGER: u32 = 3;
/// How long one layer is walked before the next one's turn, so that millions of files in one delay no other's figure.
const SLICE: Duration = Duration::from_millis(100);
/// How long a reader waits for a container's first figure, which only a just started daemon lacks.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// A figure and when it was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Its usage.
    pub usage: Usage,
    /// When.
    pub at: Timestamp,
}

/// The writable layers of this node.
#[derive(Debug)]
pub struct WritableLayers {
    /// Their parent directory.
    root: PathBuf,
    /// The name of their file system for the kubelet.
    file_system: PathBuf,
    projects: Option<Projects>,
    limits: Limits,
    period: Duration,
    meters: Mutex<HashMap<ContainerId, Meter>>,
    /// A layer is due.
    changed: Notify,
    /// Something was measured.
    measured: watch::Sender<()>,
}

/// When a container's layer is walked.
#[derive(Debug)]
struct Meter {
    /// The file system counts it: it is never walked.
    counted: bool,
    last: Option<Measured>,
    /// The next walk is no earlier.
    next: Instant,
    /// Not queried since.
    idle_from: Instant,
    /// No more changes once this is true; one more walk is the last.
    ended: bool,
    settled: bool,
    /// A walk to continue at this layer's next turn.
    under_way: Option<Walk>,
}

/// A walk through a layer.
#[derive(Debug)]
struct Walk {
    measuring: Measuring,
    /// When its figure was true.
    at: Timestamp,
    begun: Instant,
    /// On it alone.
    spent: Duration,
}

impl Walk {
    fn begin(upper: &Path, at: Timestamp, begun: Instant) -> std::io::Result<Self> {
        Ok(Self { measuring: Measuring::begin(upper)?, at, begun, spent: Duration::ZERO })
    }
}

impl Meter {
    fn new(now: Instant, counted: bool) -> Self {
        Self { counted, last: None, next: now, idle_from: now, ended: false, settled: false, under_way: None }
    }

    /// When the next walk is due; None: no reader.
    fn due(&self) -> Option<Instant> {
        let wanted = self.last.is_none() || self.ended || self.next < self.idle_from;
        (wanted && !self.settled && !self.counted).then_some(self.next)
    }

    fn asked(&mut self, now: Instant, period: Duration) {
        let pause = self.next.saturating_duration_since(now).max(period);
        self.idle_from = now + pause * LINGER;
    }

    fn ended(&mut self, now: Instant) {
        (self.ended, self.settled, self.next) = (true, false, now);
    }

    /// A walk that began at `begun`, complete at `ended` or not, has done this much work.
    fn walked(
        &mut self,
        found: Option<Measured>,
        begun: Instant,
        spent: Duration,
        now: Instant,
        period: Duration,
    ) {
        self.last = found.or(self.last);
        // One that ended during the walk is walked once more.
        self.settled = self.ended && self.next <= begun;
        self.next = now + period.max(spent * COST_FACTOR);
    }
}

impl WritableLayers {
    /// Examines the file system of the layers below the configured root, and creates their parent directory.
    ///
    /// # Errors
    /// If a limit is configured that the file system would not enforce, or it cannot be examined.
    pub fn open(config: &Config) -> Result<Self, QuotaError> {
        use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
        let root = config.root.join("containers");
        let failed = |source| QuotaError::Io { operation: "make directory", path: root.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed)?;
        let limits = Limits {
            bytes: config.containers.writable_layer_limit_bytes,
            inodes: config.containers.writable_layer_limit_inodes,
        };
        let first = config.containers.project_id_first;
        let range = first..first.saturating_add(config.containers.project_id_count);
        let projects = Projects::detect(&root, range, limits)?;
        // The kubelet takes two names for two file systems and would evict by each of them.
        let images = config.root.join("images");
        let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
        let file_system = if device(&images) == device(&root) { images } else { root.clone() };
        let (measured, _) = watch::channel(());
        let layers = Self {
            root,
            file_system,
            projects,
            limits,
            period: Duration::from_secs(config.containers.usage_period_seconds),
            meters: Mutex::default(),
            changed: Notify::new(),
            measured,
        };
        // Log: At start: how usage is measured.
        tracing::info!(mode = layers.mode(), directory = %layers.root.display(), "usage of writable layers");
        Ok(layers)
    }

    /// The mode: `project quota`, `project quota with limits` or `walk`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match (&self.projects, self.limits.any()) {
            (None, _) => "walk",
            (Some(_), false) => "project quota",
            (Some(_), true) => "project quota with limits",
        }
    }

    /// The path that names the layers' file system, the images' own if they share one.
    #[must_use]
    pub fn file_system(&self) -> &Path {
        &self.file_system
    }

    /// The limits of each layer.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Call it with a layer's directory before anything is in it. Blocking.
    ///
    /// # Errors
    /// When it cannot be given its limits; without limits a failure is only logged.
    pub(in crate::sandbox) fn adopt(&self, directory: &Path) -> Result<(), QuotaError> {
        let Some(projects) = &self.projects else { return Ok(()) };
        match projects.assign(directory, self.limits) {
            Ok(_) => Ok(()),
            Err(error) if self.limits.any() => Err(error),
            Err(error) => {
                // Log: It got no project id.
                // Do: See `error`.
                tracing::warn!(%error, "the usage of a writable layer has to be walked");
                Ok(())
            }
        }
    }

    /// A new layer, small enough to be measured at once. Blocking.
    pub(in crate::sandbox) fn begin(&self, id: &ContainerId) {
        let begun = Instant::now();
        let mut meter = Meter::new(begun, self.project(id).is_some());
        if !meter.counted {
            meter.walked(self.walk(id), begun, Duration::ZERO, begun, self.period);
        }
        self.meters().insert(id.clone(), meter);
    }

    /// A layer of an earlier daemon.
    pub(in crate::sandbox) fn recover(&self, id: &ContainerId, ended: bool) {
        let mut meter = Meter::new(Instant::now(), self.project(id).is_some());
        meter.ended = ended;
        self.meters().insert(id.clone(), meter);
        self.changed.notify_one();
    }

    /// The container has ended: its layer changes no more.
    pub(in crate::sandbox) fn ended(&self, id: &ContainerId) {
        if let Some(meter) = self.meters().get_mut(id) {
            meter.ended(Instant::now());
        }
        self.changed.notify_one();
    }

    /// The layer's directory is gone.
    pub(in crate::sandbox) fn forget(&self, id: &ContainerId) {
        self.meters().remove(id);
        if let Some(projects) = &self.projects {
            projects.release(&self.directory(id));
        }
    }

    /// The last figure of a container's layer; None: there is none yet, or no such layer.
    pub async fn usage(&self, id: &ContainerId) -> Option<Measured> {
        if let Some(now) = self.counted(id) {
            return Some(now);
        }
        let mut measured = self.measured.subscribe();
        let known = |layers: &Self| -> Option<Option<Measured>> {
            let mut meters = layers.meters();
            let meter = meters.get_mut(id)?;
            meter.asked(Instant::now(), layers.period);
            Some(meter.last)
        };
        let last = known(self)?;
        self.changed.notify_one();
        if last.is_some() {
            return last;
        }
        let first = async {
            while measured.changed().await.is_ok() {
                match known(self) {
                    Some(None) => {}
                    found => return found.flatten(),
                }
            }
            None
        };
        tokio::time::timeout(FIRST_WAIT, first).await.unwrap_or_default()
    }

    /// The sum of all layers, ended ones too; its time is that of the oldest figure that may have changed since.
    #[must_use]
    pub fn total(&self) -> Measured {
        let now = Timestamp::now();
        let mut total = Measured { usage: Usage::default(), at: now };
        let ids: Vec<ContainerId> = self.meters().keys().cloned().collect();
        for id in ids {
            if let Some(counted) = self.counted(&id) {
                total.usage = total.usage.plus(counted.usage);
                continue;
            }
            let mut meters = self.meters();
            let Some(meter) = meters.get_mut(&id) else { continue };
            meter.asked(Instant::now(), self.period);
            let Some(last) = meter.last else { continue };
            total.usage = total.usage.plus(last.usage);
            if !meter.settled {
                total.at = total.at.min(last.at);
            }
        }
        self.changed.notify_one();
        total
    }

    /// Starts the task that walks, for as long as the daemon lives.
    pub fn start(self: &Arc<Self>, metrics: PodMetrics) {
        tokio::spawn(run(self.clone(), metrics));
    }

    fn directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn project(&self, id: &ContainerId) -> Option<u32> {
        self.projects.as_ref()?.id(&self.directory(id))
    }

    /// The file system's own figure; if it stops giving any, the layer is walked from then on.
    fn counted(&self, id: &ContainerId) -> Option<Measured> {
        let (projects, project) = (self.projects.as_ref()?, self.project(id)?);
        if !self.meters().get(id).is_some_and(|m| m.counted) {
            return None;
        }
        match projects.usage(project) {
            Ok(used) => Some(Measured {
                usage: Usage { bytes: used.bytes, inodes: used.inodes },
                at: Timestamp::now(),
            }),
            Err(error) => {
                // Log: Quotas were turned off. The usage is walked.
                // Do: Nothing, or turn quotas on and restart the daemon.
                tracing::warn!(container = %id, %error, "the file system no longer reports a project's usage");
                if let Some(meter) = self.meters().get_mut(id) {
                    meter.counted = false;
                }
                None
            }
        }
    }

    fn walk(&self, id: &ContainerId) -> Option<Measured> {
        let at = Timestamp::now();
        match usage::measure(&self.upper(id)) {
            Ok(usage) => Some(Measured { usage, at }),
            Err(error) => {
                tracing::debug!(container = %id, %error, "cannot measure a writable layer");
                None
            }
        }
    }

    /// Walks one container's layer for a while, if it is due; it stays due until the walk is complete.
    fn walk_due(&self, id: &ContainerId, metrics: &PodMetrics) {
        let begun = Instant::now();
        let under_way = match self.meters().get_mut(id) {
            Some(meter) if meter.due().is_some_and(|due| due <= begun) => meter.under_way.take(),
            _ => return,
        };
        let walk = under_way.map_or_else(|| Walk::begin(&self.upper(id), Timestamp::now(), begun), Ok);
        let (found, spent, first) = match walk {
            Ok(mut walk) => {
                let usage = walk.measuring.slice(SLICE);
                walk.spent += begun.elapsed();
                let Some(usage) = usage else {
                    if let Some(meter) = self.meters().get_mut(id) {
                        meter.under_way = Some(walk);
                    }
                    return;
                };
                (Some(Measured { usage, at: walk.at }), walk.spent, walk.begun)
            }
            Err(error) => {
                tracing::debug!(container = %id, %error, "cannot measure a writable layer");
                (None, begun.elapsed(), begun)
            }
        };
        if let Some(meter) = self.meters().get_mut(id) {
            meter.walked(found, first, spent, Instant::now(), self.period);
        }
        self.measured.send_replace(());
        metrics.spent("writable_layer", "walk", spent);
    }

    fn upper(&self, id: &ContainerId) -> PathBuf {
        self.directory(id).join("upper")
    }

    /// Due times, the earliest first.
    fn schedule(&self) -> Vec<(Instant, ContainerId)> {
        let mut due: Vec<_> =
            self.meters().iter().filter_map(|(id, meter)| Some((meter.due()?, id.clone()))).collect();
        due.sort_by_key(|(at, _)| *at);
        due
    }

    fn meters(&self) -> MutexGuard<'_, HashMap<ContainerId, Meter>> {
        // Every section leaves the table whole.
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(layers: Arc<WritableLayers>, metrics: PodMetrics) {
    loop {
        let schedule = layers.schedule();
        let now = Instant::now();
        match schedule.first() {
            None => layers.changed.notified().await,
            Some((at, _)) if *at > now => {
                // Whichever comes first.
                let _ = tokio::time::timeout_at(*at, layers.changed.notified()).await;
            }
            Some(_) => {
                let due = schedule.into_iter().take_while(|(at, _)| *at <= now).map(|(_, id)| id).collect();
                round(&layers, due, &metrics).await;
            }
        }
    }
}

/// Walks these layers one after the other, each for a while, on a thread of its own with lowered priority, which a pool
/// thread could not restore.
async fn round(layers: &Arc<WritableLayers>, due: Vec<ContainerId>, metrics: &PodMetrics) {
    let (done, ended) = oneshot::channel::<()>();
    let (layers, metrics) = (layers.clone(), metrics.clone());
    let thread = std::thread::Builder::new().name("usage".into()).spawn(move || {
        let _done = done;
        podwright_sys::process::give_way();
        for id in &due {
            layers.walk_due(id, &metrics);
        }
    });
    match thread {
        // The sender goes with the thread.
        Ok(_) => drop(ended.await),
        Err(error) => {
            // Log: The usage of writable layers is not reported.
            // Do: Raise the limit of processes.
            tracing::warn!(%error, "no thread to measure writable layers");
            tokio::time::sleep(FIRST_WAIT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    fn found(bytes: u64) -> Option<Measured> {
        Some(Measured { usage: Usage { bytes, inodes: 1 }, at: Timestamp(1) })
    }

    fn after(seconds: u64, now: Instant) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn a_layer_is_walked_at_once_and_then_only_for_those_who_ask() {
        let now = Instant::now();
        let mut meter = Meter::new(now, false);
        assert_eq!(meter.due(), Some(now));
        meter.walked(found(1), now, Duration::ZERO, now, PERIOD);
        assert_eq!(meter.due(), None, "nobody asked");
        meter.asked(after(60, now), PERIOD);
        let mut at = meter.due().unwrap();
        assert_eq!(at, after(10, now), "not before the period is over");
        at = at.max(after(60, now));
        let mut walks = 0;
        while meter.due().is_some() {
            meter.walked(found(2), at, Duration::ZERO, at, PERIOD);
            at = after(10, at);
            walks += 1;
        }
        assert_eq!(walks, LINGER, "who went away costs nothing");
    }

    #[test]
    fn a_walk_that_takes_long_makes_the_next_wait_long() {
        let now = Instant::now();
        let mut meter = Meter::new(now, false);
        meter.walked(found(1), now, Duration::from_secs(3), after(3, now), PERIOD);
        meter.asked(after(3, now), PERIOD);
        assert_eq!(meter.due(), Some(after(3 + 60, now)));
        // A failed walk too, and the last figure stays.
        meter.walked(None, after(63, now), Duration::from_secs(1), after(64, now), PERIOD);
        assert_eq!(meter.last, found(1));
        assert_eq!(meter.due(), Some(after(64 + 20, now)));
    }

    #[test]
    fn an_ended_container_is_walked_once_more() {
        let now = Instant::now();
        let mut meter = Meter::new(now, false);
        meter.walked(found(1), now, Duration::ZERO, now, PERIOD);
        meter.asked(after(1, now), PERIOD);
        // It ends during a walk, which may have missed its last writes.
        meter.ended(after(12, now));
        meter.walked(found(2), after(11, now), Duration::from_secs(2), after(13, now), PERIOD);
        assert!(meter.due().is_some());
        meter.walked(found(3), after(60, now), Duration::from_secs(1), after(61, now), PERIOD);
        assert_eq!((meter.due(), meter.last), (None, found(3)));
        meter.asked(after(70, now), PERIOD);
        assert_eq!(meter.due(), None);
    }

    #[test]
    fn what_the_file_system_counts_is_never_walked() {
        let mut meter = Meter::new(Instant::now(), true);
        meter.asked(Instant::now(), PERIOD);
        assert_eq!(meter.due(), None);
        meter.counted = false;
        assert!(meter.due().is_some());
    }

    fn layers(root: &Path, change: impl FnOnce(&mut Config)) -> Result<WritableLayers, QuotaError> {
        std::fs::create_dir_all(root.join("images")).unwrap();
        let mut config = Config { root: root.to_owned(), ..Config::default() };
        change(&mut config);
        WritableLayers::open(&config)
    }

    fn upper(layers: &WritableLayers, id: &ContainerId) -> PathBuf {
        let upper = layers.directory(id).join("upper");
        std::fs::create_dir_all(&upper).unwrap();
        upper
    }

    #[tokio::test]
    async fn readers_get_the_last_figure_and_new_ones_come_behind_their_back() {
        let root = tempfile::tempdir().unwrap();
        let layers = Arc::new(layers(root.path(), |_| {}).unwrap());
        assert_eq!((layers.mode(), layers.file_system()), ("walk", root.path().join("images").as_path()));
        let (new, old) = (ContainerId::random().unwrap(), ContainerId::random().unwrap());
        std::fs::write(upper(&layers, &new).join("f"), "x").unwrap();
        std::fs::write(upper(&layers, &old).join("f"), vec![1; 1 << 20]).unwrap();
        assert_eq!(layers.usage(&new).await, None, "unknown");
        layers.begin(&new);
        assert_eq!(layers.usage(&new).await.unwrap().usage.inodes, 1);
        layers.start(PodMetrics::register(&prometheus::Registry::new()).unwrap());
        layers.recover(&old, false);
        // Without a figure this waits for the walk.
        assert!(layers.usage(&old).await.unwrap().usage.bytes >= 1 << 20);
        assert_eq!(layers.total().usage.inodes, 2);
        // Its end triggers another walk, and the change shows.
        std::fs::write(upper(&layers, &new).join("g"), "x").unwrap();
        let mut measured = layers.measured.subscribe();
        layers.ended(&new);
        measured.changed().await.unwrap();
        assert_eq!(layers.usage(&new).await.unwrap().usage.inodes, 2);
        layers.forget(&new);
        assert_eq!(layers.total().usage.inodes, 1);
    }

    #[test]
    fn limits_that_nobody_would_enforce_are_refused_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let open = |bytes, inodes| {
            layers(root.path(), |config| {
                config.containers.writable_layer_limit_bytes = bytes;
                config.containers.writable_layer_limit_inodes = inodes;
                // With any file system.
                config.containers.project_id_count = 0;
            })
        };
        for (bytes, inodes, key) in [(1 << 30, 0, "limit_bytes"), (0, 5, "limit_inodes")] {
            let error = open(bytes, inodes).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("prjquota"), "{error}");
        }
        open(0, 0).unwrap();
    }
}
