//! Whether the kernel killed a process of a container's memory cgroup for lack of memory.
//!
//! On v2 the kernel reports changes of the counter (inotify), so a kill is known while the cgroup exists: systemd
//! removes a scope as soon as it is empty, perhaps before we learn of its last process's end. For anything later, the
//! parent's counter includes all below it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// The counter of v2, `oom_kill N` among others.
const V2_FILE: &str = "memory.events";

/// The counter of v1.
const V1_FILE: &str = "memory.oom_control";

/// Room for the changes of one read; the rest comes with the next.
const EVENTS_BYTES: usize = 512;

/// The counter of one container. Its cgroup is new, so the counter begins at 0.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: PathBuf,
    /// It was seen above 0.
    grown: bool,
    parent: Option<Parent>,
    /// Its watch, on v2.
    watch: Option<i32>,
    /// It changed, and vanished before it could be read.
    missed: bool,
}

/// The counter of the cgroup above, on v2 where it includes the container's.
#[derive(Debug)]
struct Parent {
    file: PathBuf,
    /// The count already reported.
    accounted: u64,
}

impl OomCounter {
    /// For a container's cgroup, a path relative to the root of every hierarchy, before anything runs in it; `None` if
    /// the host has no such hierarchy.
    pub(crate) fn at(cgroup: &str) -> Option<Self> {
        let relative = cgroup.trim_start_matches('/');
        let (v2, v1) = (Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/memory"));
        if v2.join("cgroup.controllers").exists() {
            return Some(Self::new(v2.join(relative).join(V2_FILE)));
        }
        v1.is_dir().then(|| Self::new(v1.join(relative).join(V1_FILE)))
    }

    /// Finds the memory cgroup of a just created process; `None` if it has none or is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let unified = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/unified"
        };
        Some(Self::new(counter_file(&cgroups, unified)?))
    }

    fn new(file: PathBuf) -> Self {
        let above = file.parent().and_then(Path::parent).map(|dir| dir.join(V2_FILE));
        let parent = above.filter(|_| file.ends_with(V2_FILE)).and_then(|file| {
            let accounted = read(&file)?;
            Some(Parent { file, accounted })
        });
        Self { file, grown: false, parent, watch: None, missed: false }
    }

    /// Reads the counter while the cgroup exists; false if it does not.
    pub(crate) fn look(&mut self) -> bool {
        let found = read(&self.file);
        self.grown |= found.is_some_and(|kills| kills > 0);
        found.is_some()
    }

    /// Whether the kernel killed a process of the container, whose init has ended, `killed` by SIGKILL or not. Call it
    /// after [`OomWatch::serve`].
    pub(crate) fn verdict(&mut self, killed: bool) -> bool {
        if self.look() || self.grown || !(killed || self.missed) {
            return self.grown;
        }
        // Its cgroup vanished first. Then the parent's counter decides, unless another container's kill was reported
        // before.
        self.parent
            .as_ref()
            .is_some_and(|parent| read(&parent.file).is_some_and(|now| now > parent.accounted))
    }

    /// Marks the parent's current count as reported.
    fn account(&mut self) {
        if let Some(parent) = &mut self.parent
            && let Some(now) = read(&parent.file)
        {
            parent.accounted = now;
        }
    }
}

/// The watch over all containers' counters.
#[derive(Debug, Default)]
pub(crate) struct OomWatch {
    /// Created with the first counter that can be watched.
    inotify: Option<OwnedFd>,
}

impl OomWatch {
    /// The descriptor that becomes readable when a counter may have changed.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Watches a counter whose cgroup exists now. Without a watch it is still read at the end.
    pub(crate) fn add(&mut self, counter: &mut OomCounter) {
        if !counter.file.ends_with(V2_FILE) {
            // v1 has no such notification, and only the daemon removes its cgroups.
            return;
        }
        if self.inotify.is_none() {
            self.inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        }
        if let Some(inotify) = &self.inotify {
            counter.watch = inotify::add_watch(inotify, &counter.file, WatchFlags::MODIFY).ok();
        }
        counter.look();
    }

    /// Reads the counters that changed, and marks their parents' counts as reported.
    pub(crate) fn serve<'a>(&mut self, counters: impl Iterator<Item = &'a mut OomCounter>) {
        let Some(inotify) = &self.inotify else { return };
        let mut changed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::MODIFY) {
                changed.push(event.wd());
            }
        }
        if changed.is_empty() {
            return;
        }
        let mut all: Vec<_> = counters.collect();
        let mut gone = false;
        for counter in all.iter_mut().filter(|counter| counter.watch.is_some_and(|w| changed.contains(&w))) {
            counter.missed = !counter.look();
            gone |= counter.missed;
        }
        // A kill in a vanished cgroup is not attributed yet.
        if !gone {
            all.iter_mut().for_each(|counter| counter.account());
        }
    }
}

/// Picks the v1 memory hierarchy if the process is in one, else the unified one. The root cgroup has no counter.
fn counter_file(cgroups: &str, unified: &str) -> Option<PathBuf> {
    let (mut v1, mut v2) = (None, None);
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|name| name == "memory") {
            v1 = Some(Path::new("/sys/fs/cgroup/memory").join(path).join(V1_FILE));
        } else if id == "0" && controllers.is_empty() {
            v2 = Some(Path::new(unified).join(path).join(V2_FILE));
        }
    }
    v1.or(v2)
}

fn read(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies() {
        let find = |text| counter_file(text, "/u").map(|path| path.to_string_lossy().into_owned());
        let hybrid = "4:cpu,cpuacct:/x\n2:memory:/pods/a\n0::/elsewhere\n";
        assert_eq!(find(hybrid).unwrap(), "/sys/fs/cgroup/memory/pods/a/memory.oom_control");
        assert_eq!(find("1:name=systemd:/\n0::/pods/a:b\n").unwrap(), "/u/pods/a:b/memory.events");
        assert_eq!(find("1:name=systemd:/\n"), None);
    }

    /// A pod's cgroup with two containers', as files.
    struct Cgroups(tempfile::TempDir);

    impl Cgroups {
        fn new() -> Self {
            let cgroups = Self(tempfile::tempdir().unwrap());
            for name in ["", "a", "b"] {
                std::fs::create_dir_all(cgroups.0.path().join(name)).unwrap();
                cgroups.count(name, 0);
            }
            cgroups
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.path().join(name).join(V2_FILE)
        }

        fn count(&self, name: &str, kills: u64) {
            std::fs::write(self.file(name), format!("max 7\noom 3\noom_kill {kills}\n")).unwrap();
        }

        fn watched(&self) -> ([OomCounter; 2], OomWatch) {
            let mut counters = ["a", "b"].map(|name| OomCounter::new(self.file(name)));
            let mut watch = OomWatch::default();
            counters.iter_mut().for_each(|counter| watch.add(counter));
            (counters, watch)
        }

        fn remove(&self, name: &str) {
            std::fs::remove_dir_all(self.0.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_childs_kill_is_told_at_the_end_even_when_the_cgroup_went_first() {
        let cgroups = Cgroups::new();
        let mut counter = OomCounter::new(cgroups.file("a"));
        let mut watch = OomWatch::default();
        watch.add(&mut counter);
        assert!(!counter.verdict(true));
        cgroups.count("a", 1);
        watch.serve([&mut counter].into_iter());
        cgroups.remove("a");
        assert!(counter.verdict(false));
    }

    #[test]
    fn a_childs_kill_is_told_though_the_cgroup_went_before_the_change_was_seen() {
        let cgroups = Cgroups::new();
        let (mut counters, mut watch) = cgroups.watched();
        cgroups.count("a", 1);
        cgroups.count("", 1);
        cgroups.remove("a");
        cgroups.remove("b");
        watch.serve(counters.iter_mut());
        assert!(counters[0].verdict(false) && !counters[1].verdict(false));
    }

    #[test]
    fn the_parent_tells_of_a_cgroup_that_went_first() {
        let cgroups = Cgroups::new();
        let (mut counters, mut watch) = cgroups.watched();
        // The first container's kill is reported, and not attributed to the second.
        cgroups.count("a", 1);
        cgroups.count("", 1);
        watch.serve(counters.iter_mut());
        cgroups.remove("b");
        assert!(counters[0].verdict(true) && !counters[1].verdict(true));
        cgroups.count("", 2);
        assert!(counters[1].verdict(true));
        assert!(!counters[1].verdict(false), "it was not killed");
    }
}
