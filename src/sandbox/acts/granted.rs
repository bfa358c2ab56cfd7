//! What a container is given from the host besides its image: profiles, devices, what CDI adds. Looked up, and refused,
//! before anything of the container is made. Keeps nothing: a container's specification comes from the live request.

use super::node::Node;
use super::selinux;
use super::sources::look_apart;
use crate::host::blockio::{self, BlockIoError};
use crate::host::cdi::{self, Edits};
use crate::host::cgroups::CgroupMode;
use crate::host::devices::{self, Owner, ResolvedDevice};
use crate::host::foreign::Progress;
use crate::host::kernel;
use crate::host::security::seccomp::{self, Machine};
use crate::model::{ContainerSpec, Device, Profile, SandboxSpec};
use crate::sandbox::offload::blocking;
use crate::sandbox::spec::{self, Judged, Seccomp};
use crate::sandbox::words::error::SandboxError;
use oci_spec::runtime::{LinuxBlockIo, LinuxResources};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long each of the look-ups may take, within what is left for the call: device files and profiles lie on local file
/// systems.
const LIMIT: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Debug)]
pub(in crate::sandbox) struct Granted {
    /// Capabilities and limits.
    pub(in crate::sandbox) judged: Judged,
    /// Seccomp.
    pub(in crate::sandbox) seccomp: Seccomp,
    /// Devices asked for, and those of CDI.
    pub(in crate::sandbox) devices: Vec<ResolvedDevice>,
    /// What CDI devices change besides.
    pub(in crate::sandbox) cdi: Edits,
    /// Class of block I/O.
    pub(in crate::sandbox) block_io: Option<LinuxBlockIo>,
    /// Class of cache and memory bandwidth.
    pub(in crate::sandbox) rdt_class: Option<String>,
}

/// Judges the request against what the host has, and looks up what it names, before the call has to be answered.
pub(in crate::sandbox) async fn grant(
    node: &Arc<Node>,
    pod: &SandboxSpec,
    container: &ContainerSpec,
    limits: LinuxResources,
    until: Instant,
) -> Result<Granted, SandboxError> {
    let security = &container.security;
    let facts = node.handlers.facts_for(&pod.runtime_handler);
    let judged = spec::judge(pod, container, limits, &facts, &node.config.containers)?;
    selinux::check(node, pod, Some(security))?;
    let apparmor = spec::apparmor(security, &facts)?;
    if let Some(profile) = apparmor.filter(|_| security.apparmor != Some(Profile::Unconfined)) {
        let ensured = async { Ok(node.apparmor.ensure(&profile).await?) };
        within_limit(container, until, ensured).await?;
    }
    let seccomp = match &security.seccomp {
        Profile::Unconfined => Seccomp::Unconfined,
        Profile::RuntimeDefault => Seccomp::RuntimeDefault,
        Profile::Localhost(path) => {
            let path = PathBuf::from(path);
            let place = path.clone();
            let machine = Machine { arch: std::env::consts::ARCH, kernel: kernel::running() };
            let load =
                move |_: Option<&Progress>| -> Result<_, SandboxError> { Ok(seccomp::load(&path, machine)?) };
            let loaded = look_apart(node, pod.id.as_str(), vec![place], limit(node, until), load);
            Seccomp::Profile(Box::new(loaded.await?))
        }
    };
    let rdt_class = class(pod, container, &RDT).map(rdt_class).transpose()?;
    let block_io = block_io(node, pod, container, until).await?;
    if container.devices.is_empty() && container.cdi_devices.is_empty() {
        let (devices, cdi) = (Vec::new(), Edits::default());
        return Ok(Granted { judged, seccomp, devices, cdi, block_io, rdt_class });
    }
    let owner = owner(node, container);
    let dirs = node.config.containers.cdi_spec_dirs.clone();
    let (asked, names) = (container.devices.clone(), container.cdi_devices.clone());
    let places: Vec<_> = asked.iter().map(|device| device.host_path.clone()).collect();
    let found = move |progress: Option<&Progress>| {
        let cdi = cdi::resolve(&dirs, &names)?;
        let at = |number| progress.into_iter().for_each(|progress| progress.at(number));
        let mut devices = devices::resolve(&asked, at)?;
        if let Some(owner) = &owner {
            devices.iter_mut().for_each(|device| device.owner = owner(device.owner));
        }
        for node in &cdi.device_nodes {
            let device = cdi_device(node)?;
            devices.retain(|known| known.container_path != device.container_path);
            devices.push(device);
        }
        Ok((devices, cdi))
    };
    let (devices, cdi) = match places.is_empty() {
        // What specifications of the node name is the node's own.
        true => within_limit(container, until, blocking(move |_| found(None))).await?,
        false => look_apart(node, pod.id.as_str(), places, limit(node, until), found).await?,
    };
    Ok(Granted { judged, seccomp, devices, cdi, block_io, rdt_class })
}

/// Annotations that name a class: of a container, and of its pod for one of its containers or for all.
struct ClassAnnotations {
    container: &'static str,
    pod: &'static str,
}

/// As containerd and CRI-O read them (goresctrl).
const BLOCK_IO: ClassAnnotations = ClassAnnotations {
    container: "io.kubernetes.cri.blockio-class",
    pod: "blockio.resources.beta.kubernetes.io",
};
const RDT: ClassAnnotations =
    ClassAnnotations { container: "io.kubernetes.cri.rdt-class", pod: "rdt.resources.beta.kubernetes.io" };

fn class<'a>(
    pod: &'a SandboxSpec,
    container: &'a ContainerSpec,
    names: &ClassAnnotations,
) -> Option<&'a str> {
    let of_pod = |kind: &str| pod.annotations.get(&format!("{}/{kind}", names.pod));
    let found = container
        .annotations
        .get(names.container)
        .or_else(|| of_pod(&format!("container.{}", container.name)))
        .or_else(|| of_pod("pod"));
    found.map(String::as_str).filter(|class| !class.is_empty())
}

/// Where the kernel's resctrl file system is.
const RESCTRL: &str = "/sys/fs/resctrl";

/// Classes of cache and memory bandwidth are directories of resctrl, made by whoever divides the machine.
fn rdt_class(class: &str) -> Result<String, SandboxError> {
    let refuse = |reason| SandboxError::Rdt { class: class.chars().take(80).collect(), reason };
    if class.contains(['/', '\0']) || matches!(class, "." | ".." | "info" | "mon_groups" | "mon_data") {
        return Err(refuse("it is no name of a class"));
    }
    let root = Path::new(RESCTRL);
    if !root.join("schemata").exists() {
        return Err(refuse("/sys/fs/resctrl is not mounted, or the processor has no RDT"));
    }
    if !root.join(class).join("schemata").exists() {
        return Err(refuse("there is no such directory in /sys/fs/resctrl"));
    }
    Ok(class.to_owned())
}

async fn block_io(
    node: &Arc<Node>,
    pod: &SandboxSpec,
    container: &ContainerSpec,
    until: Instant,
) -> Result<Option<LinuxBlockIo>, SandboxError> {
    let Some(name) = class(pod, container, &BLOCK_IO) else { return Ok(None) };
    let controller = if node.handlers.facts.cgroups == CgroupMode::V2 { "io" } else { "blkio" };
    let name = name.to_owned();
    if !node.cgroups.kernel.has_controller(controller) {
        return Err(BlockIoError::NoController { class: name, controller }.into());
    }
    let file = node.config.containers.blockio_config_file.clone();
    let found = blocking(move |_| Ok(blockio::class(&file, &name)?));
    within_limit(container, until, found).await.map(Some)
}

/// Whose devices that the pod asks for become, if that is configured.
fn owner(node: &Node, container: &ContainerSpec) -> Option<impl Fn(Owner) -> Owner + Send + 'static> {
    let run_as = &container.security.run_as;
    let (uid, gid) = (run_as.uid, run_as.gid);
    node.config
        .containers
        .device_ownership_from_security_context
        .then_some(move |host: Owner| Owner { uid: uid.or(host.uid), gid: gid.or(host.gid) })
}

/// How long a look may take.
fn limit(node: &Node, until: Instant) -> Duration {
    LIMIT.min(node.config.host_path_limit()).min(until.saturating_duration_since(Instant::now()))
}

async fn within_limit<T>(
    container: &ContainerSpec,
    until: Instant,
    work: impl Future<Output = Result<T, SandboxError>>,
) -> Result<T, SandboxError> {
    let limit = LIMIT.min(until.saturating_duration_since(Instant::now()));
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => {
            let id = container.id.to_string();
            Err(SandboxError::StepTimeout { step: "looking up profiles and devices", id, limit })
        }
    }
}

/// A device node of a specification, filled up from the host's.
fn cdi_device(node: &cdi::DeviceNode) -> Result<ResolvedDevice, SandboxError> {
    let permissions = node.permissions.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "rwm".to_owned());
    let host_path = node.host_path.clone().unwrap_or_else(|| node.path.clone());
    let asked = Device { container_path: node.path.clone(), host_path, permissions };
    let mut device = devices::one(&asked)?;
    device.major = node.major.unwrap_or(device.major);
    device.minor = node.minor.unwrap_or(device.minor);
    device.mode = node.file_mode.unwrap_or(device.mode);
    device.owner = devices::Owner { uid: node.uid, gid: node.gid };
    Ok(device)
}
