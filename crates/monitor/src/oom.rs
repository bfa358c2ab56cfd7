//! Whether the kernel killed a process of a container's memory cgroup for lack of memory.

use std::path::{Path, PathBuf};

/// The counter of one container: `oom_kill N` in memory.events (v2) or memory.oom_control (v1).
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: PathBuf,
    at_start: u64,
}

impl OomCounter {
    /// Finds the memory cgroup of a process that has just been created; `None` when it has none or is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let unified = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/unified"
        };
        let file = counter_file(&cgroups, unified)?;
        let at_start = read(&file)?;
        Some(Self { file, at_start })
    }

    /// Whether the counter grew. A cgroup that is gone tells nothing: false.
    pub(crate) fn has_grown(&self) -> bool {
        read(&self.file).is_some_and(|now| now > self.at_start)
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
            v1 = Some(Path::new("/sys/fs/cgroup/memory").join(path).join("memory.oom_control"));
        } else if id == "0" && controllers.is_empty() {
            v2 = Some(Path::new(unified).join(path).join("memory.events"));
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
}
