//! Prepares the kernel for moves between cgroups, so that the OCI runtime need not wait.
//!
//! Moving a process takes `cgroup_threadgroup_rwsem` for writing. Unless this happened a moment ago, the kernel first
//! waits for an RCU grace period (percpu_down_write in kernel/locking/percpu-rwsem.c): 8 ms at HZ=250, during which the
//! runtime stands still in its first write to a `cgroup.procs`. A grace period that begins with the request passes
//! while the runtime still starts. Never moves anything.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One at a time: all others would profit from the same grace period.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Writes the daemon into its current cgroup, which the kernel treats as a move. Blocks for a grace period. After a
/// failure the runtime merely waits itself.
pub(super) fn hasten(hierarchies: impl IntoIterator<Item = PathBuf>) {
    if UNDER_WAY.swap(true, Ordering::AcqRel) {
        return;
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for root in hierarchies {
        // "0": the writing process. Read each time: it may have been moved, and must not be moved back.
        if let Some(dir) = own_dir(&own, &root)
            && std::fs::write(dir.join("cgroup.procs"), "0").is_ok()
        {
            break;
        }
    }
    UNDER_WAY.store(false, Ordering::Release);
}

/// The directory of the process whose /proc/PID/cgroup is `table`, in the hierarchy mounted on `root`: one named like a
/// controller, or the v2 tree.
fn own_dir(table: &str, root: &Path) -> Option<PathBuf> {
    let name = root.file_name()?.to_str()?;
    let path_in = |wanted: &dyn Fn(&str) -> bool| {
        table.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    let path = path_in(&|controllers| !controllers.is_empty() && controllers == name)
        .or_else(|| path_in(&|controllers| controllers.is_empty() && matches!(name, "unified" | "cgroup")))?;
    Some(root.join(path.strip_prefix('/').unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "3:pids:/a\n2:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/system.slice/podwright.service\n";

    #[test]
    fn the_own_directory_is_found_by_the_hierarchys_name() {
        let dir = |root: &str| own_dir(TABLE, Path::new(root)).map(|dir| dir.display().to_string());
        assert_eq!(dir("/sys/fs/cgroup/pids").as_deref(), Some("/sys/fs/cgroup/pids/a"));
        assert_eq!(dir("/sys/fs/cgroup/cpu,cpuacct").as_deref(), Some("/sys/fs/cgroup/cpu,cpuacct/b"));
        let service = "system.slice/podwright.service";
        assert_eq!(dir("/sys/fs/cgroup"), Some(format!("/sys/fs/cgroup/{service}")));
        assert_eq!(dir("/sys/fs/cgroup/unified"), Some(format!("/sys/fs/cgroup/unified/{service}")));
        assert_eq!(dir("/sys/fs/cgroup/memory"), None);
    }

    #[test]
    fn nothing_is_moved() {
        let cgroups = super::super::Cgroups::detect().unwrap();
        let before = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        cgroups.hasten_moves();
        assert_eq!(std::fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        assert!(!UNDER_WAY.load(Ordering::Acquire));
    }
}
