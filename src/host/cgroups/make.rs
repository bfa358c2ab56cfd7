//! Creating the one cgroup that no OCI runtime creates: that of a pod's own process 1.

use super::{CgroupError, Cgroups, Leaf};
use crate::host::offload::OffThread;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Without these no process may enter a cgroup of v1's cpuset hierarchy.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// A file of v1's cpuset hierarchy that v2 does not have.
const ONLY_V1: &str = "cpuset.sched_load_balance";

impl Cgroups {
    /// Creates `leaf` in every hierarchy and returns its directories. Existing ones are fine. Creates missing parents
    /// as an OCI runtime does, except slices: systemd creates those, and a hierarchy without the slice is left out.
    ///
    /// # Errors
    /// If a directory cannot be created.
    pub fn make(&self, _: &OffThread, leaf: &Leaf) -> Result<Vec<PathBuf>, CgroupError> {
        let relative = leaf.path().strip_prefix("/").unwrap_or(leaf.path());
        let mut roots: Vec<_> = self.v1.values().chain(&self.v2).collect();
        roots.sort();
        roots.dedup();
        let mut made = Vec::new();
        for root in roots {
            let dir = root.join(relative);
            let slice_is_missing =
                || leaf.is_below_slice() && dir.parent().is_some_and(|parent| !parent.is_dir());
            if slice_is_missing() {
                continue;
            }
            make_below(root, relative)?;
            made.push(dir);
        }
        Ok(made)
    }
}

fn make_below(root: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for component in relative.components() {
        let parent = dir.clone();
        dir.push(component);
        match std::fs::create_dir(&dir) {
            Err(cause) if cause.kind() != ErrorKind::AlreadyExists => {
                return Err(CgroupError::Io { operation: "make", path: dir, cause });
            }
            _ => {}
        }
        for file in CPUSET.into_iter().filter(|_| parent.join(ONLY_V1).exists()) {
            inherit(&parent.join(file), &dir.join(file))?;
        }
    }
    Ok(())
}

/// Gives an empty v1 cpuset its parent's values. On v2 an empty one already means that, and a parent that keeps the
/// controller to itself has no such files.
fn inherit(from: &Path, to: &Path) -> Result<(), CgroupError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |cause| CgroupError::Io { operation, path, cause }
    };
    let own = std::fs::read_to_string(to).map_err(failed("read", to))?;
    if !own.trim().is_empty() {
        return Ok(());
    }
    let theirs = std::fs::read_to_string(from).map_err(failed("read", from))?;
    std::fs::write(to, theirs.trim()).map_err(failed("write", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_of_v2_that_keeps_its_cpuset_to_itself_gives_none_on() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(CPUSET[0]), "0-1").unwrap();
        std::fs::write(root.path().join(CPUSET[1]), "0").unwrap();
        make_below(root.path(), Path::new("pod.slice/podwright-init-x")).unwrap();
        let dir = root.path().join("pod.slice/podwright-init-x");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }
}
