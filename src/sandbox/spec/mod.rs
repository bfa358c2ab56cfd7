//! The OCI runtime spec of one container: policy as a pure function over what was asked and what the host is.
//!
//! Owns every rule of "what does this container get". Never does I/O: names, paths and devices are resolved by `host`
//! before, and come in [`Inputs`].

mod capabilities;
mod error;
mod linux;
mod mounts;
mod process;
mod resources;

pub use capabilities::{ContainerCapabilities, capabilities};
pub use error::SpecError;
pub use resources::{check_resources, linux_resources};

use crate::config::Containers;
use crate::host::cgroups::CgroupMode;
use crate::host::devices::ResolvedDevice;
use crate::host::mountinfo::MountEntry;
use crate::host::security::CapSet;
use crate::host::users::User;
use crate::model::{ContainerSpec, IdMapping, SandboxSpec};
use oci_spec::runtime::{LinuxSeccomp, RootBuilder, Spec, SpecBuilder};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Version of the OCI runtime spec that is written: what runc 1.1 and crun 1.8 read.
const OCI_VERSION: &str = "1.0.2";

/// Container annotations that the OCI runtime sees without being allowed by the handler: the kubelet's own. Others
/// could switch features of a runtime on (`run.oci.*`, `org.systemd.property.*`).
const PASSED_ANNOTATIONS: [&str; 2] = ["io.kubernetes.container.", "io.kubernetes.pod."];

/// Everything that a spec is made from.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// The pod.
    pub sandbox: &'a SandboxSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// What the image says of its process.
    pub image: &'a ImageProcess,
    /// The resolved user.
    pub user: &'a User,
    /// Facts of the node.
    pub host: &'a HostFacts,
    /// Container defaults.
    pub config: &'a Containers,
    /// The pod's pinned namespaces.
    pub namespaces: &'a PodNamespaces,
    /// The pod's files.
    pub files: &'a PodFiles,
    /// Host directory or file of each of `container.mounts`, in the same order, symlinks followed.
    pub mount_sources: &'a [PathBuf],
    /// Volumes that the image declares, as (path in the container, host directory).
    pub volumes: &'a [(PathBuf, PathBuf)],
    /// Devices asked for, resolved.
    pub devices: &'a [ResolvedDevice],
    /// Every device of the host; used if the container is privileged.
    pub host_devices: &'a [ResolvedDevice],
    /// Mounts of the daemon's namespace, for propagation.
    pub mounts: &'a [MountEntry],
    /// Seccomp, resolved.
    pub seccomp: Seccomp,
    /// The mounted root.
    pub rootfs: &'a Path,
    /// The cgroup's path.
    pub cgroup: &'a Path,
    /// Prefixes of annotations that the handler lets through.
    pub allowed_annotations: &'a [String],
}

/// Seccomp of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Unconfined,
    /// podwright's default for the container's capabilities.
    RuntimeDefault,
    /// A loaded profile of the node.
    Profile(Box<LinuxSeccomp>),
}

/// The part of an image's config that shapes the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Cmd.
    pub cmd: Vec<String>,
    /// Env, `NAME=value`.
    pub env: Vec<String>,
    /// WorkingDir; may be empty.
    pub working_dir: String,
}

/// Facts of the node.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Capabilities that can be given.
    pub bounding: CapSet,
    /// Lowest oom_score_adj that can be given.
    pub oom_score_adj_floor: i64,
    /// Kind of cgroup hierarchy.
    pub cgroups: CgroupMode,
    /// Swap limits can be set.
    pub swap: bool,
    /// Huge page limits can be set.
    pub hugetlb: bool,
    /// The kernel's sizes of huge pages, `2MB`.
    pub page_sizes: Vec<String>,
    /// Names of cgroup controllers.
    pub controllers: Vec<String>,
    /// The kernel, and the runtime where one is meant, can make a mount read-only with all below it.
    pub recursive_read_only: bool,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// Name of the loaded default AppArmor profile, if one is.
    pub apparmor_default: Option<String>,
    /// SELinux is enabled.
    pub selinux: bool,
}

/// Pinned namespaces; None: the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNamespaces {
    /// Network.
    pub network: Option<PathBuf>,
    /// Ipc.
    pub ipc: Option<PathBuf>,
    /// Uts.
    pub uts: Option<PathBuf>,
    /// Pid namespace shared by the pod.
    pub pid: Option<PathBuf>,
    /// Pid namespace of the container that NamespaceMode TARGET names.
    pub target_pid: Option<PathBuf>,
    /// User.
    pub user: Option<PathBuf>,
}

/// Files of the pod on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// Bound on /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// Bound on /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// Bound on /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// Bound on /dev/shm: the pod's tmpfs, or the host's /dev/shm for host ipc.
    pub shm: PathBuf,
}

/// Builds the spec.
///
/// # Errors
/// When what was asked contradicts itself or the host cannot give it. Nothing is weakened in silence.
pub fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let security = &inputs.container.security;
    if security.privileged && !inputs.sandbox.security.privileged {
        return Err(SpecError::PrivilegedContainer);
    }
    check_mapped(inputs)?;
    let capabilities = capabilities(&inputs.config.capabilities, security, inputs.host.bounding)?;
    let root = RootBuilder::default().path(inputs.rootfs).readonly(security.readonly_rootfs).build()?;
    let (mounts, propagation) = mounts::build(inputs)?;
    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .mounts(mounts)
        .process(process::build(inputs, &capabilities)?)
        .annotations(annotations(inputs))
        .linux(linux::build(inputs, &capabilities, propagation)?)
        .build()?;
    spec.set_hostname(None);
    Ok(spec)
}

/// The kernel refuses a process ids that its user namespace does not map.
fn check_mapped(inputs: &Inputs<'_>) -> Result<(), SpecError> {
    let Some(namespace) = &inputs.sandbox.namespaces.user else { return Ok(()) };
    let user = inputs.user;
    if IdMapping::on_host(&namespace.uids, user.uid).is_none() {
        return Err(SpecError::UnmappedId { what: "user", id: user.uid });
    }
    let mut groups = std::iter::once(&user.gid).chain(&user.additional_gids);
    match groups.find(|gid| IdMapping::on_host(&namespace.gids, **gid).is_none()) {
        Some(gid) => Err(SpecError::UnmappedId { what: "group", id: *gid }),
        None => Ok(()),
    }
}

/// Annotations for runtimes such as Kata and gVisor, under containerd's names, and those of the container that may
/// pass.
fn annotations(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let passes = |name: &str| {
        PASSED_ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix))
            || inputs.allowed_annotations.iter().any(|prefix| name.starts_with(prefix.as_str()))
    };
    let (sandbox, container) = (inputs.sandbox, inputs.container);
    let mut all: HashMap<String, String> = container
        .annotations
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for (name, value) in [
        ("container-type", "container"),
        ("sandbox-id", sandbox.id.as_str()),
        ("sandbox-name", &sandbox.name.name),
        ("sandbox-namespace", &sandbox.name.namespace),
        ("sandbox-uid", &sandbox.name.uid),
        ("container-name", &container.name),
        ("image-name", &container.image.display),
    ] {
        all.insert(format!("io.kubernetes.cri.{name}"), value.to_owned());
    }
    all
}

#[cfg(test)]
pub(super) mod fixture;
#[cfg(test)]
mod mapped_tests;
#[cfg(test)]
mod tests;
