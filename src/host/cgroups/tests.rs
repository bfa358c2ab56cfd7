use super::*;
use crate::host::offload::here;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

fn id() -> crate::model::ContainerId {
    crate::model::ContainerId::random().unwrap()
}

/// A leaf of our own in every hierarchy of this host, gone at the end.
struct Made {
    cgroups: Cgroups,
    leaf: Leaf,
    parent: String,
}

impl Made {
    fn new(name: &str) -> Self {
        let cgroups = Cgroups::detect().unwrap();
        let parent = format!("/podwright-test-{name}-{}", std::process::id());
        let leaf = leaf(&parent, &id()).unwrap();
        for root in cgroups.v1.values().chain(&cgroups.v2) {
            let dir = root.join(leaf.path().strip_prefix("/").unwrap());
            std::fs::create_dir_all(&dir).unwrap();
            // On v2 a cgroup has the controllers that those above it pass on.
            for above in [root.as_path(), dir.parent().unwrap()] {
                if above.join("cgroup.controllers").exists() {
                    let _ = std::fs::write(above.join("cgroup.subtree_control"), "+memory +pids");
                }
            }
            if dir.join("cpuset.cpus").exists() {
                for level in [dir.parent().unwrap(), &dir] {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let above = std::fs::read_to_string(level.parent().unwrap().join(file)).unwrap();
                        std::fs::write(level.join(file), above.trim()).unwrap();
                    }
                }
            }
        }
        Self { cgroups, leaf, parent }
    }

    /// The script waits for a line, which comes once it is in the cgroup.
    fn run(&self, script: &str) -> Child {
        let script = format!("read go; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        for dir in self.cgroups.dirs(&self.leaf) {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.cgroups.kill_all(&here(), &self.leaf);
        let _ = self.cgroups.remove(&here(), &self.leaf);
        for root in self.cgroups.v1.values().chain(&self.cgroups.named).chain(&self.cgroups.v2) {
            let _ = std::fs::remove_dir(root.join(self.parent.trim_start_matches('/')));
        }
    }
}

#[test]
fn the_mode_follows_what_is_mounted() {
    let v1 = "30 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
              31 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
              32 1 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    let hybrid = format!("{v1}33 1 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let v2 = "33 1 0:4 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let mode = |text: &str, unified| Cgroups::from_mounts(&mountinfo::parse(text), unified).map(|c| c.mode());
    assert_eq!(mode(v1, false).unwrap(), CgroupMode::V1);
    assert_eq!(mode(&hybrid, false).unwrap(), CgroupMode::Hybrid);
    assert_eq!(mode(v2, true).unwrap(), CgroupMode::V2);
    assert!(matches!(mode("", false), Err(CgroupError::NotMounted)));
    let found = Cgroups::from_mounts(&mountinfo::parse(v1), false).unwrap();
    assert!(found.has_controller("cpuacct") && !found.has_controller("hugetlb"));
    assert_eq!(found.named, [Path::new("/sys/fs/cgroup/systemd")]);
}

#[test]
fn processes_are_listed_killed_and_the_cgroup_removed() {
    let made = Made::new("kill");
    let mut child = made.run("sleep 1000 & sleep 1000 & wait");
    while made.cgroups.pids(&made.leaf).unwrap().len() < 3 {
        std::thread::yield_now();
    }
    made.cgroups.kill_all(&here(), &made.leaf).unwrap();
    child.wait().unwrap();
    // An OCI runtime makes one in hierarchies without controllers, too.
    for root in &made.cgroups.named {
        std::fs::create_dir_all(root.join(made.leaf.path().strip_prefix("/").unwrap())).unwrap();
    }
    made.cgroups.remove(&here(), &made.leaf).unwrap();
    assert!(!made.cgroups.exists(&made.leaf));
    assert!(made.cgroups.pids(&made.leaf).unwrap().is_empty());
    made.cgroups.kill_all(&here(), &made.leaf).unwrap();
    made.cgroups.remove(&here(), &made.leaf).unwrap();
}

/// Makes cgroups in each other below `dir`, by descriptor; that of the last one.
fn nest(dir: &Path, depth: usize) -> std::os::fd::OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let open = |at: std::os::fd::BorrowedFd<'_>, name: &Path| {
        openat(at, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    let mut here = open(CWD, dir);
    let name = "d".repeat(200);
    for _ in 0..depth {
        mkdirat(&here, &name, Mode::from_raw_mode(0o755)).unwrap();
        here = open(std::os::fd::AsFd::as_fd(&here), Path::new(&name));
    }
    here
}

#[test]
fn cgroups_deeper_than_any_path_are_looked_through_killed_and_removed() {
    let made = Made::new("deep");
    let dir = made.cgroups.dirs(&made.leaf).remove(0);
    // 200 bytes each: twice the longest path.
    let last = nest(&dir, 40);
    std::fs::create_dir(dir.join("beside")).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let procs =
        rustix::fs::openat(&last, "cgroup.procs", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
    rustix::io::write(procs.unwrap(), child.id().to_string().as_bytes()).unwrap();
    drop(last);
    assert_eq!(made.cgroups.pids(&made.leaf).unwrap(), [i32::try_from(child.id()).unwrap()]);
    // One that has a process is told, in a few words, and loses the others.
    let error = tree::remove(&dir).unwrap_err().to_string();
    assert!(error.len() < 600, "{error}");
    assert!(!dir.join("beside").exists());
    made.cgroups.kill_all(&here(), &made.leaf).unwrap();
    child.wait().unwrap();
    made.cgroups.remove_below(&here(), &made.leaf).unwrap();
    assert!(dir.is_dir() && !dir.join("d".repeat(200)).exists());
    made.cgroups.remove(&here(), &made.leaf).unwrap();
    assert!(!made.cgroups.exists(&made.leaf));
}

#[test]
fn a_process_that_is_frozen_below_its_container_is_killed() {
    let made = Made::new("frozen");
    let Some(dir) =
        made.cgroups.v1.get("freezer").map(|root| root.join(made.leaf.path().strip_prefix("/").unwrap()))
    else {
        return;
    };
    let mut child = made.run("sleep 1000");
    let inner = dir.join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
    std::fs::write(inner.join("freezer.state"), "FROZEN").unwrap();
    made.cgroups.kill_all(&here(), &made.leaf).unwrap();
    child.wait().unwrap();
    // One that was killed by somebody else while it was frozen.
    let mut child = made.run("sleep 1000");
    std::fs::write(inner.join("freezer.state"), "THAWED").unwrap();
    std::fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
    std::fs::write(inner.join("freezer.state"), "FROZEN").unwrap();
    child.kill().unwrap();
    made.cgroups.thaw(&here(), &made.leaf).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_pid_that_is_anothers_by_now_is_not_killed() {
    let made = Made::new("reused");
    let mut inside = made.run("sleep 1000");
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    // As if the listing were from before the stranger got the pid.
    let listed = [inside.id(), stranger.id()].map(|pid| i32::try_from(pid).unwrap());
    let mut signalled = HashSet::new();
    assert_eq!(made.cgroups.signal(&made.leaf, &listed, &mut signalled).unwrap(), 1);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&inside.wait().unwrap()), Some(9));
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    // A pid of the same number later is another process.
    assert_eq!(signalled.len(), 1);
}

#[test]
fn usage_is_read_from_the_running_host() {
    let made = Made::new("stats");
    let mut child = made.run("while :; do :; done");
    let stats = loop {
        let stats = made.cgroups.stats(made.leaf.path()).unwrap();
        if stats.cpu_usage_ns.is_some_and(|ns| ns > 0) {
            break stats;
        }
        std::thread::yield_now();
    };
    assert_eq!(stats.pids, Some(1));
    assert!(stats.memory.is_some());
    made.cgroups.kill_all(&here(), &made.leaf).unwrap();
    child.wait().unwrap();
}

#[test]
fn huge_page_sizes_are_named_as_cgroups_name_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(page_sizes(dir.path()), ["64KB", "2MB", "1GB"]);
    assert!(page_sizes(Path::new("/no/such/dir")).is_empty());
}

#[test]
fn a_scopes_limits_may_lie_in_it() {
    let root = tempfile::tempdir().unwrap();
    let cgroups = Cgroups {
        mode: CgroupMode::V2,
        named: Vec::new(),
        v1: BTreeMap::new(),
        v2: Some(root.path().to_owned()),
        page_sizes: Vec::new(),
        rates: Arc::default(),
    };
    let write = |cgroup: &str, limit: &str| {
        let dir = root.path().join(cgroup);
        std::fs::create_dir_all(&dir).unwrap();
        for (file, text) in [("memory.current", "5"), ("memory.stat", "anon 1"), ("memory.max", limit)] {
            std::fs::write(dir.join(file), format!("{text}\n")).unwrap();
        }
    };
    let limit = |cgroup: &str| cgroups.stats(Path::new(cgroup)).unwrap().memory.unwrap().limit;
    write("a.slice/podwright-x.scope", "100");
    assert_eq!(limit("/a.slice/podwright-x.scope"), Some(100));
    write("a.slice/podwright-x.scope", "max");
    write("a.slice/podwright-x.scope/container", "100");
    assert_eq!(limit("/a.slice/podwright-x.scope"), Some(100));
    // A container may call its own so.
    write("plain", "200");
    write("plain/container", "100");
    assert_eq!(limit("/plain"), Some(200));
}
