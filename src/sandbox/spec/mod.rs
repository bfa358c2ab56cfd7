//! The OCI runtime spec of one container: policy as a pure function of request and host.
//!
//! Owns every rule of what a container gets. Never does I/O: `host` has resolved names, paths and devices, which arrive
//! in [`Inputs`].

mod capabilities;
mod error;
mod linux;
mod mounts;
mod process;
mod resources;
mod selinux;
mod size;

pub use capabilities::{ContainerCapabilities, capabilities};
pub use error::SpecError;
pub use process::apparmor;
pub use resources::linux_resources;
pub use selinux::{SelinuxLabels, selinux_labels};
pub use size::{MAX_CONFIG_BYTES, MAX_PROCESS_BYTES, check_command, encode};

use crate::config::{Containers, Handler, annotation_fits};
use crate::host::cdi;
use crate::host::cgroups::CgroupMode;
use crate::host::devices::ResolvedDevice;
use crate::host::mountinfo::MountEntry;
use crate::host::security::CapSet;
use crate::host::security::seccomp::NodeProfile;
use crate::host::security::selinux::Contexts;
use crate::host::users::User;
use crate::model::{ContainerSpec, IdMapping, SandboxSpec};
use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, LinuxBlockIo, LinuxResources, RootBuilder, Spec, SpecBuilder,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the OCI runtime spec that is written: what runc 1.1 and crun 1.8 read.
const OCI_VERSION: &str = "1.0.2";

/// Container annotations that the OCI runtime sees without the handler's permission: the kubelet's own. Others could
/// enable features of a runtime (`run.oci.*`, `org.systemd.property.*`).
const PASSED_ANNOTATIONS: [&str; 2] = ["io.kubernetes.container.", "io.kubernetes.pod."];

/// All inputs of a spec.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// The pod.
    pub sandbox: &'a SandboxSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// What [`judge`] made of both.
    pub judged: &'a Judged,
    /// The image's process settings.
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
    /// Requested devices, also by CDI, resolved.
    pub devices: &'a [ResolvedDevice],
    /// Other changes of CDI devices.
    pub cdi: &'a cdi::Edits,
    /// Every device of the host, including those that appear later, for a privileged container.
    pub host_devices: Option<&'a [ResolvedDevice]>,
    /// Its class of block I/O.
    pub block_io: Option<&'a LinuxBlockIo>,
    /// Its class of cache and memory bandwidth.
    pub rdt_class: Option<&'a str>,
    /// Mounts of the daemon's namespace, for propagation.
    pub mounts: &'a [MountEntry],
    /// Seccomp, resolved.
    pub seccomp: Seccomp,
    /// The mounted root.
    pub rootfs: &'a Path,
    /// The cgroup's path.
    pub cgroup: &'a Path,
    /// Settings of the handler.
    pub handler: &'a Handler,
}

impl Inputs<'_> {
    /// SELinux labels; None if containers get none.
    fn selinux(&self) -> Option<SelinuxLabels> {
        let contexts = self.host.selinux.as_ref()?;
        Some(selinux_labels(contexts, self.sandbox, Some(&self.container.security)))
    }
}

/// Seccomp of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Unconfined,
    /// podwright's default for the container's capabilities.
    RuntimeDefault,
    /// A loaded profile of the node.
    Profile(Box<NodeProfile>),
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
    /// The kernel, and the runtime if one is given, support recursive read-only mounts.
    pub recursive_read_only: bool,
    /// The runtime knows `slave` and `shared` as propagation of the root's mounts, and no `rslave` and `rshared`.
    pub plain_propagation: bool,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// The default AppArmor profile, if there is one.
    pub apparmor_default: Option<String>,
    /// The policy's labels for containers; None: they get none.
    pub selinux: Option<Arc<Contexts>>,
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

/// A request that the host can fulfil, as far as that is known before anything of the container is made.
#[derive(Debug, Clone)]
pub struct Judged {
    /// What it may do.
    pub capabilities: ContainerCapabilities,
    /// Its limits, without device rules.
    pub resources: LinuxResources,
}

/// Judges a request against the host, once, before anything is created or looked up for the container. Its limits are judged
/// already ([`linux_resources`]): a caller that asks for the impossible hears of it before its image is looked up.
///
/// # Errors
/// If the request contradicts itself or the host cannot fulfil it. Nothing is weakened silently.
pub fn judge(
    sandbox: &SandboxSpec,
    container: &ContainerSpec,
    resources: LinuxResources,
    host: &HostFacts,
    config: &Containers,
) -> Result<Judged, SpecError> {
    let security = &container.security;
    if security.privileged && !sandbox.security.privileged {
        return Err(SpecError::PrivilegedContainer);
    }
    let capabilities = capabilities(&config.capabilities, security, host.bounding)?;
    mounts::check(container, host)?;
    process::check(container, host)?;
    Ok(Judged { capabilities, resources })
}

/// Builds the spec.
///
/// # Errors
/// If what was found for the request does not fit it: users, mounts, namespaces. Nothing is weakened silently.
pub fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let (security, capabilities) = (&inputs.container.security, &inputs.judged.capabilities);
    check_mapped(inputs)?;
    let root = RootBuilder::default().path(inputs.rootfs).readonly(security.readonly_rootfs).build()?;
    let (mounts, propagation) = mounts::build(inputs)?;
    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .mounts(mounts)
        .process(process::build(inputs, capabilities)?)
        .annotations(annotations(inputs))
        .linux(linux::build(inputs, capabilities, propagation)?)
        .build()?;
    spec.set_hostname(None).set_hooks(hooks(inputs.cdi)?);
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

/// Hooks come from CDI alone.
fn hooks(edits: &cdi::Edits) -> Result<Option<Hooks>, SpecError> {
    if edits.hooks.is_empty() {
        return Ok(None);
    }
    let at = |point: cdi::HookPoint| {
        let hooks = edits.hooks.iter().filter(|hook| hook.hook_name == point).map(hook);
        hooks.collect::<Result<Vec<_>, _>>().map(|hooks| Some(hooks).filter(|hooks| !hooks.is_empty()))
    };
    let mut hooks = Hooks::default();
    #[allow(deprecated)]
    hooks.set_prestart(at(cdi::HookPoint::Prestart)?);
    hooks
        .set_create_runtime(at(cdi::HookPoint::CreateRuntime)?)
        .set_create_container(at(cdi::HookPoint::CreateContainer)?)
        .set_start_container(at(cdi::HookPoint::StartContainer)?)
        .set_poststart(at(cdi::HookPoint::Poststart)?)
        .set_poststop(at(cdi::HookPoint::Poststop)?);
    Ok(Some(hooks))
}

/// The environment of a hook whose specification has none: the monitors' PATH.
const HOOK_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn hook(hook: &cdi::Hook) -> Result<Hook, SpecError> {
    let mut built = HookBuilder::default().path(&hook.path).build()?;
    built.set_args(Some(hook.args.clone()).filter(|args| !args.is_empty()));
    // Never none: the OCI runtimes would have it run with the environment of the container's process, LD_PRELOAD and all,
    // but as root.
    let env = if hook.env.is_empty() { vec![HOOK_ENV.to_owned()] } else { hook.env.clone() };
    built.set_env(Some(env));
    // 0 would be no time at all to the OCI runtimes; a specification means "no limit".
    built.set_timeout(hook.timeout.filter(|seconds| *seconds > 0));
    Ok(built)
}

/// Permitted annotations, and those for runtimes such as Kata and gVisor, which know the names of both peers.
fn annotations(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let fits =
        |patterns: &[String], name: &str| patterns.iter().any(|pattern| annotation_fits(pattern, name));
    let (sandbox, container) = (inputs.sandbox, inputs.container);
    let of_pod = sandbox.annotations.iter().filter(|(name, _)| fits(&inputs.handler.pod_annotations, name));
    let of_container = container.annotations.iter().filter(|(name, _)| {
        PASSED_ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix))
            || fits(&inputs.handler.container_annotations, name)
    });
    let mut all: HashMap<String, String> =
        of_pod.chain(of_container).map(|(name, value)| (name.clone(), value.clone())).collect();
    for (name, value) in [
        ("ContainerType", "container"),
        ("ContainerID", container.id.as_str()),
        ("SandboxID", sandbox.id.as_str()),
        ("KubeName", &sandbox.name.name),
        ("Namespace", &sandbox.name.namespace),
        ("ImageName", &container.image.display),
    ] {
        all.insert(format!("io.kubernetes.cri-o.{name}"), value.to_owned());
    }
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
    if let Some(dir) = &sandbox.log_directory {
        all.insert("io.kubernetes.cri.sandbox-log-directory".to_owned(), dir.to_string_lossy().into_owned());
    }
    all
}

#[cfg(test)]
pub(super) mod fixture;
#[cfg(test)]
mod mapped_tests;
#[cfg(test)]
mod tests;
