//! The place of cgroups: the driver, and the paths that follow from a pod's parent.
//!
//! Pure except [`Driver::choose`]. A path follows from the parent's form alone, so cgroups from before a change of the
//! driver are still found. Only the OCI runtime talks to systemd, never we.

use super::CgroupError;
use crate::config::{self, CgroupDriver};
use crate::model::{ContainerId, SandboxId};
use std::path::{Component, Path, PathBuf};

/// Exists while systemd is the system's manager (sd_booted(3)).
const SYSTEMD_RUNS: &str = "run/systemd/system";
/// Name of process 1.
const PROCESS_1: &str = "proc/1/comm";
/// systemd's unit types for containers of cgroups, and for cgroups of processes that it did not start.
const SLICE: &str = ".slice";
/// Prefix of our scopes' names, as `cri-containerd` and `crio` are others': tools distinguish runtimes by it.
const SCOPE_PREFIX: &str = "podwright";

/// The cgroup driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The OCI runtime creates directories.
    Cgroupfs,
    /// The OCI runtime has systemd make scopes.
    Systemd,
}

impl Driver {
    /// The configured driver, or the one that fits this host.
    #[must_use]
    pub fn choose(configured: CgroupDriver) -> Self {
        Self::choose_at(configured, Path::new("/"))
    }

    fn choose_at(configured: CgroupDriver, root: &Path) -> Self {
        let systemd = || {
            let process_1 = std::fs::read_to_string(root.join(PROCESS_1)).unwrap_or_default();
            root.join(SYSTEMD_RUNS).is_dir() && process_1.trim() == "systemd"
        };
        match configured {
            CgroupDriver::Systemd => Self::Systemd,
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Auto if systemd() => Self::Systemd,
            CgroupDriver::Auto => Self::Cgroupfs,
        }
    }

    /// The name in the kubelet's and our own configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    /// Default parent of pods that name none.
    #[must_use]
    pub fn default_parent(self) -> &'static str {
        match self {
            Self::Cgroupfs => "/podwright",
            Self::Systemd => "podwright.slice",
        }
    }

    /// The driver, and the parent of pods that name none.
    ///
    /// # Errors
    /// When the configured parent is of the other driver's form, or malformed.
    pub fn settle(config: &config::Cgroups) -> Result<(Self, String), CgroupError> {
        let driver = Self::choose(config.driver);
        let parent = match config.default_parent.as_str() {
            "" => driver.default_parent(),
            configured => configured,
        };
        driver.check(parent)?;
        Ok((driver, parent.to_owned()))
    }

    /// Whether containers can be put below `parent`.
    ///
    /// # Errors
    /// If it has the other driver's form, or is malformed.
    pub fn check(self, parent: &str) -> Result<(), CgroupError> {
        parent_path(parent)?;
        match (self, is_slice(Path::new(parent))) {
            (Self::Cgroupfs, true) => Err(CgroupError::SliceParent { parent: parent.to_owned() }),
            (Self::Systemd, false) => Err(CgroupError::PathParent { parent: parent.to_owned() }),
            (Self::Cgroupfs, false) | (Self::Systemd, true) => Ok(()),
        }
    }

    /// The OCI `cgroupsPath` of `name` below `parent`, both of this driver's form.
    #[must_use]
    pub fn oci_path(self, parent: &str, name: &str) -> PathBuf {
        match self {
            Self::Cgroupfs => Path::new(parent).join(name),
            Self::Systemd => format!("{}:{SCOPE_PREFIX}:{name}", base(Path::new(parent))).into(),
        }
    }
}

/// One container's cgroup, or that of a pod's own process 1. Only [`leaf`] and [`init_leaf`] create one, so it always
/// ends in an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    path: PathBuf,
    oci: PathBuf,
}

impl Leaf {
    /// Its absolute path, relative to the root of every hierarchy.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether systemd creates its parent.
    #[must_use]
    pub(super) fn is_below_slice(&self) -> bool {
        self.path.parent().is_some_and(is_slice)
    }

    /// The OCI runtime's `cgroupsPath`.
    #[must_use]
    pub fn oci(&self) -> &Path {
        &self.oci
    }
}

/// The cgroup of container `id`: `<parent>/<id>`, or below a slice `podwright-<id>.scope`.
///
/// # Errors
/// When the parent is malformed.
pub fn leaf(parent: &str, id: &ContainerId) -> Result<Leaf, CgroupError> {
    let mut path = parent_path(parent)?;
    if is_slice(&path) {
        let oci = Driver::Systemd.oci_path(parent, id.as_str());
        path.push(format!("{SCOPE_PREFIX}-{id}.scope"));
        return Ok(Leaf { path, oci });
    }
    path.push(id.as_str());
    Ok(Leaf { oci: path.clone(), path })
}

/// The cgroup of a start-up probe of an OCI runtime.
pub(super) fn probe_leaf(parent: &str, name: &str) -> Result<Leaf, CgroupError> {
    let mut path = parent_path(parent)?;
    if is_slice(&path) {
        let oci = Driver::Systemd.oci_path(parent, name);
        path.push(format!("{SCOPE_PREFIX}-{name}.scope"));
        return Ok(Leaf { path, oci });
    }
    path.push(name);
    Ok(Leaf { oci: path.clone(), path })
}

/// The cgroup of a pod's own process 1: `<parent>/podwright-init-<id>`, also below a slice. systemd knows no such unit
/// and leaves the directory alone; it vanishes with the slice at the latest.
///
/// # Errors
/// When the parent is malformed.
pub fn init_leaf(parent: &str, id: &SandboxId) -> Result<Leaf, CgroupError> {
    let mut path = parent_path(parent)?;
    path.push(format!("{SCOPE_PREFIX}-init-{id}"));
    Ok(Leaf { oci: path.clone(), path })
}

/// The cgroup in which a pod's containers have theirs. Of a path of slices only the last counts: systemd has a slice's
/// path in its name.
///
/// # Errors
/// When the parent is malformed.
pub fn parent_path(parent: &str) -> Result<PathBuf, CgroupError> {
    let bad = || CgroupError::BadParent { parent: parent.to_owned() };
    let mut path = PathBuf::from("/");
    for component in Path::new(parent).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(bad()),
        }
    }
    if !is_slice(&path) {
        return Ok(path);
    }
    slice_path(base(&path)).ok_or_else(bad)
}

/// The kubelet sends a whole path of slices, and one may lie below a plain directory: the last component decides.
fn is_slice(parent: &Path) -> bool {
    base(parent).ends_with(SLICE)
}

fn base(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// `a-b.slice` lies at `/a.slice/a-b.slice` (systemd.slice(5)); None: an invalid slice name.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(SLICE)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Some(path);
    }
    let well_formed = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'\\' | b'@'))
    };
    let mut prefix = String::new();
    for part in name.split('-') {
        if !well_formed(part) {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}{SLICE}"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::random().unwrap()
    }

    #[test]
    fn a_leaf_lies_below_its_parent() {
        let id = id();
        let at = |parent: &str| leaf(parent, &id).map(|leaf| leaf.path().to_owned());
        assert_eq!(
            at("/kubepods/burstable/podx").unwrap(),
            Path::new(&format!("/kubepods/burstable/podx/{id}"))
        );
        assert_eq!(at("relative/./x").unwrap(), Path::new(&format!("/relative/x/{id}")));
        assert!(matches!(at("/kubepods/../.."), Err(CgroupError::BadParent { .. })));
        let plain = leaf("/a", &id).unwrap();
        assert_eq!(plain.oci(), plain.path());
    }

    #[test]
    fn a_slices_path_is_in_its_name() {
        let id = id();
        let burstable = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for parent in
            ["kubepods-burstable-pod1_2.slice", burstable, "/elsewhere/kubepods-burstable-pod1_2.slice"]
        {
            let leaf = leaf(parent, &id).unwrap();
            assert_eq!(leaf.path(), Path::new(&format!("{burstable}/podwright-{id}.scope")));
            assert_eq!(leaf.oci(), Path::new(&format!("kubepods-burstable-pod1_2.slice:podwright:{id}")));
        }
        assert_eq!(parent_path("-.slice").unwrap(), Path::new("/"));
        assert_eq!(parent_path("system.slice").unwrap(), Path::new("/system.slice"));
        for wrong in ["-a.slice", "a-.slice", "a--b.slice", ".slice/.slice", "a b.slice"] {
            assert!(matches!(parent_path(wrong), Err(CgroupError::BadParent { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused_with_what_to_set() {
        Driver::Cgroupfs.check("/kubepods/pod1").unwrap();
        Driver::Systemd.check("/kubepods.slice/kubepods-pod1.slice").unwrap();
        let error = Driver::Cgroupfs.check("/kubepods.slice/kubepods-pod1.slice").unwrap_err().to_string();
        assert!(error.contains("cgroupDriver: cgroupfs") && error.contains("cgroups.driver = \"systemd\""));
        let error = Driver::Systemd.check("/kubepods/pod1").unwrap_err().to_string();
        assert!(error.contains("cgroupDriver: systemd") && error.contains("cgroups.driver = \"cgroupfs\""));
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            driver.check(driver.default_parent()).unwrap();
        }
    }

    #[test]
    fn the_driver_follows_the_host_unless_it_is_configured() {
        let root = tempfile::tempdir().unwrap();
        let choose = |configured| Driver::choose_at(configured, root.path());
        assert_eq!(choose(CgroupDriver::Auto), Driver::Cgroupfs);
        assert_eq!(choose(CgroupDriver::Systemd), Driver::Systemd);
        std::fs::create_dir_all(root.path().join(SYSTEMD_RUNS)).unwrap();
        assert_eq!(choose(CgroupDriver::Auto), Driver::Cgroupfs, "it may be left over, or another's");
        std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
        std::fs::write(root.path().join(PROCESS_1), "systemd\n").unwrap();
        assert_eq!(choose(CgroupDriver::Auto), Driver::Systemd);
        assert_eq!(choose(CgroupDriver::Cgroupfs), Driver::Cgroupfs);
    }
}
