//! Bringing a sandbox up and down. `bring_up` stops at the first error; `tear_down` is idempotent, continues after
//! errors and reports them all. Both work from the record alone, so they serve recovery too. `pod` decides when.

use super::files::PodFiles;
use super::idmap;
use super::node::Node;
use super::private::{make_private_dir, remove_tree};
use super::room;
use super::selinux;
use crate::config::{annotation_fits, bytes};
use crate::host::monitor::{self, Events, LaunchRequest, Monitor, MonitorError, NamespaceRequest};
use crate::host::network::{Attachment, PodNetwork};
use crate::host::rootfs;
use crate::model::{ContainerId, NamespaceMode, SandboxSpec, UserNamespace};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::phase::Dying;
use crate::sandbox::words::record::PodState;
use crate::sandbox::words::state::SandboxState;
use podwright_monitor_proto::ProcessId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long StopPodSandbox waits for killed containers before it reports them. The kubelet's limit for the call is two
/// minutes, and it repeats the call.
const KILL_WAIT: Duration = Duration::from_secs(30);

/// A sandbox that is up.
#[derive(Debug)]
pub(in crate::sandbox) struct BroughtUp {
    pub(in crate::sandbox) monitor: Monitor,
    pub(in crate::sandbox) events: Events,
    pub(in crate::sandbox) network: Option<PodNetwork>,
}

/// Record, monitor with namespaces, files and /dev/shm side by side; then the network.
pub(in crate::sandbox) async fn bring_up(
    node: Arc<Node>,
    spec: Arc<SandboxSpec>,
) -> Result<BroughtUp, SandboxError> {
    let begun = Instant::now();
    let (own, exit_dir) = (node.clone(), node.places.exit_dir(&spec.id));
    blocking(move |off| {
        room::check(off, &own.config, room::For::Start, 0)?;
        make_private_dir(off, &exit_dir)
    })
    .await?;
    // Only the record knows the place of a cgroup.
    let record_first = node.cgroups.init_leaf(&spec)?.is_some();
    if record_first {
        node.metrics.step("run_pod_sandbox", "record", record(&node, &spec)).await?;
    }
    let (recorded, launched, files) = tokio::join!(
        async {
            match record_first {
                true => Ok(()),
                false => node.metrics.step("run_pod_sandbox", "record", record(&node, &spec)).await,
            }
        },
        node.metrics.step("run_pod_sandbox", "monitor", launch(&node, &spec)),
        node.metrics.step("run_pod_sandbox", "files", write_files(&node, &spec)),
    );
    recorded?;
    files?;
    let (monitor, events) = launched?;
    node.metrics.observe("run_pod_sandbox", "before_network", begun);
    let network = match spec.namespaces.network {
        NamespaceMode::Node => None,
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Target(_) => {
            let attachment = attachment(&node, &spec);
            Some(node.metrics.step("run_pod_sandbox", "network", node.network.attach(&attachment)).await?)
        }
    };
    if let Some(network) = &network {
        node.metrics.plugin_time("run_pod_sandbox", network.plugin_time);
    }
    node.metrics.observe("run_pod_sandbox", "total", begun);
    Ok(BroughtUp { monitor, events, network })
}

/// As [`bring_up`], with the record of what came of it: a pod that a restart would not find ready is not answered as one.
pub(in crate::sandbox) async fn bring_up_and_record(
    node: Arc<Node>,
    spec: Arc<SandboxSpec>,
) -> Result<BroughtUp, SandboxError> {
    let up = bring_up(node.clone(), spec.clone()).await?;
    let sandbox = SandboxState::Ready { network: up.network.clone() };
    let state = PodState { sandbox, limits: None, monitor: Some(up.monitor.info().process) };
    write_state(&node, &spec, state).await?;
    Ok(up)
}

async fn record(node: &Arc<Node>, spec: &Arc<SandboxSpec>) -> Result<(), SandboxError> {
    let (node, spec) = (node.clone(), spec.clone());
    blocking(move |off| Ok(node.records.write_pod(off, &spec)?)).await
}

async fn launch(node: &Arc<Node>, spec: &SandboxSpec) -> Result<(Monitor, Events), SandboxError> {
    let own_network = spec.namespaces.network != NamespaceMode::Node;
    let launched = monitor::launch(LaunchRequest {
        binary: node.monitor_binary.clone(),
        sandbox_id: spec.id.to_string(),
        dir: node.places.pod_dir(&spec.id),
        exit_dir: node.places.exit_dir(&spec.id),
        namespaces: NamespaceRequest {
            net: own_network.then(|| text(&node.places.netns(&spec.id))),
            ipc: spec.namespaces.ipc != NamespaceMode::Node,
            uts: own_network,
            pid: spec.namespaces.pid == NamespaceMode::Pod,
            user: spec.namespaces.user.as_ref().map(idmap::for_monitor),
        },
        hostname: (own_network && !spec.hostname.is_empty()).then(|| spec.hostname.clone()),
        sysctls: sysctls(node, spec),
        log_max_line: Some(node.config.containers.log_line_bytes),
        init_cgroups: init_cgroups(node, spec).await?,
    });
    Ok(launched.await?)
}

/// Creates the cgroup for the pod's own process 1, which the monitor moves there.
async fn init_cgroups(node: &Arc<Node>, spec: &SandboxSpec) -> Result<Vec<PathBuf>, SandboxError> {
    let Some(leaf) = node.cgroups.init_leaf(spec)? else { return Ok(Vec::new()) };
    let node = node.clone();
    blocking(move |off| Ok(node.cgroups.kernel.make(off, &leaf)?)).await
}

/// Groups that may ping.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The pod's sysctls over containerd's defaults (enable_unprivileged_ports, enable_unprivileged_icmp).
fn sysctls(node: &Node, spec: &SandboxSpec) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if spec.namespaces.network != NamespaceMode::Node {
        if node.config.containers.unprivileged_ports {
            sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        }
        if node.config.containers.unprivileged_icmp {
            sysctls.insert(PING_GROUPS.to_owned(), "0 2147483647".to_owned());
        }
    }
    sysctls.extend(spec.sysctls.iter().map(|(k, v)| (k.replace('/', "."), v.clone())));
    if let (Some(user), Some(range)) = (&spec.namespaces.user, sysctls.get_mut(PING_GROUPS)) {
        *range = idmap::ping_group_range(range, user);
    }
    sysctls
}

async fn write_files(node: &Arc<Node>, spec: &Arc<SandboxSpec>) -> Result<(), SandboxError> {
    let (node, spec) = (node.clone(), spec.clone());
    blocking(move |off| {
        let files = PodFiles::below(&node.places.pod_dir(&spec.id));
        files.write(off, &spec)?;
        if spec.namespaces.ipc != NamespaceMode::Node {
            make_private_dir(off, &files.shm)?;
            let owner = spec.namespaces.user.as_ref().and_then(UserNamespace::root);
            rootfs::mount_shm(off, &files.shm, shm_bytes(&node, &spec)?, owner)?;
        }
        selinux::label_pod_files(off, &node, &spec)
    })
    .await
}

/// CRI-O's annotations for the size of a pod's /dev/shm, the newer first.
const SHM_SIZE: [&str; 2] = ["shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"];

/// Size of the pod's /dev/shm. Its memory is charged to the pod, so a pod may request more only if the handler allows
/// its annotation.
pub(in crate::sandbox) fn shm_bytes(node: &Node, spec: &SandboxSpec) -> Result<u64, SandboxError> {
    let allowed = node.handlers.settings_of(&spec.runtime_handler).pod_annotations;
    let asked = SHM_SIZE.into_iter().filter_map(|name| Some((name, spec.annotations.get(name)?)));
    let mut asked = asked.filter(|(name, _)| allowed.iter().any(|pattern| annotation_fits(pattern, name)));
    match asked.next() {
        None => Ok(node.config.containers.shm_bytes),
        Some((name, text)) => {
            bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| SandboxError::Annotation {
                name,
                problem: format!("{:?} is no size", text.chars().take(80).collect::<String>()),
            })
        }
    }
}

fn attachment(node: &Node, spec: &SandboxSpec) -> Attachment {
    Attachment {
        sandbox: spec.id.clone(),
        netns: Some(node.places.netns(&spec.id)).filter(|path| path.exists()),
        pod: spec.name.clone(),
        port_mappings: spec.port_mappings.clone(),
        cgroup_parent: spec.cgroup_parent.clone(),
        annotations: spec.annotations.clone(),
        dns: spec.dns.clone(),
    }
}

/// What is known of a pod's monitor.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Reach {
    /// None: it could not be connected to, or there is none.
    pub(in crate::sandbox) monitor: Option<Monitor>,
    /// As recorded.
    pub(in crate::sandbox) process: Option<ProcessId>,
}

/// Releases everything that a sandbox holds: waits for its containers (already killed by the caller) while the network
/// is detached, then ends the monitor and unmounts. The record stays.
pub(in crate::sandbox) async fn tear_down(
    node: Arc<Node>,
    spec: Arc<SandboxSpec>,
    monitor: Reach,
    dying: Vec<Dying>,
) -> Result<(), SandboxError> {
    let begun = Instant::now();
    let mut errors = Vec::new();
    let (containers, network) = tokio::join!(
        node.metrics.step("stop_pod_sandbox", "containers", await_containers(&node, &spec, dying)),
        node.metrics.step("stop_pod_sandbox", "network", detach(&node, &spec)),
    );
    if !containers.is_empty() {
        unblock(&node, &spec, &monitor).await;
    }
    errors.extend(containers);
    errors.extend(network.err());
    if errors.is_empty() {
        let ended =
            node.metrics.step("stop_pod_sandbox", "monitor", end_monitor(&node, &spec, monitor)).await;
        errors.extend(ended.err());
        let files = PodFiles::below(&node.places.pod_dir(&spec.id));
        errors.extend(blocking(move |off| files.unmount(off)).await.err());
    }
    node.metrics.observe("stop_pod_sandbox", "total", begun);
    SandboxError::all(errors).map_or(Ok(()), Err)
}

async fn await_containers(node: &Arc<Node>, spec: &SandboxSpec, dying: Vec<Dying>) -> Vec<SandboxError> {
    let deadline = tokio::time::Instant::now() + KILL_WAIT;
    let mut errors = Vec::new();
    for mut container in dying {
        let Err(why) = container.gone_by(deadline).await else { continue };
        let id = &container.spec.id;
        let left = processes(node, spec, id).await;
        let processes = match (left.is_empty(), why.is_empty()) {
            (true, true) => "its monitor has not told its end".to_owned(),
            (true, false) => why,
            (false, true) => left,
            (false, false) => format!("{left}; {why}"),
        };
        errors.push(SandboxError::Unkillable { id: id.to_string(), processes, waited: KILL_WAIT });
    }
    errors
}

/// A monitor that does not answer tells no end of its containers either, and the pod could never be removed. It is
/// killed; its loss is then told, and the next call finds them ended.
async fn unblock(node: &Node, spec: &SandboxSpec, reach: &Reach) {
    let answers = match &reach.monitor {
        Some(monitor) => !matches!(monitor.list().await, Err(MonitorError::Unresponsive { .. })),
        None => false,
    };
    if !answers {
        // Log: The pod is being stopped and its monitor hangs.
        // Do: If it happens to several pods: look for processes in state D.
        tracing::error!(sandbox = %spec.id, "the monitor of a pod that goes down does not answer: killing it");
        monitor::kill(&node.places.pod_dir(&spec.id), reach.process);
    }
}

async fn detach(node: &Node, spec: &SandboxSpec) -> Result<(), SandboxError> {
    if spec.namespaces.network == NamespaceMode::Node {
        return Ok(());
    }
    let plugins = node.network.detach(&attachment(node, spec)).await?;
    node.metrics.plugin_time("stop_pod_sandbox", plugins);
    Ok(())
}

async fn end_monitor(node: &Arc<Node>, spec: &SandboxSpec, reach: Reach) -> Result<(), SandboxError> {
    let dir = node.places.pod_dir(&spec.id);
    let monitor = match reach.monitor {
        Some(monitor) => Some(monitor),
        None => match monitor::adopt(&dir, reach.process).await {
            Ok((monitor, _events)) => Some(monitor),
            Err(MonitorError::NotRunning { .. }) => None,
            // Its containers are gone, so that nobody needs it, whatever it is that keeps it from being asked.
            Err(error) => {
                tracing::debug!(sandbox = %spec.id, %error, "the monitor cannot be asked to end");
                monitor::kill(&dir, reach.process);
                None
            }
        },
    };
    if let Some(monitor) = monitor {
        match monitor.shutdown(true).await {
            Ok(()) | Err(MonitorError::Gone { .. }) => {}
            Err(MonitorError::Unresponsive { .. }) => monitor::kill(&dir, reach.process),
            Err(error) => return Err(error.into()),
        }
    }
    // A killed monitor leaves its pin and the pod's own PID 1 behind.
    let (pin, leaf, node) = (node.places.netns(&spec.id), node.cgroups.init_leaf(spec)?, node.clone());
    blocking(move |off| {
        monitor::sweep(off, &dir, &pin)?;
        Ok(leaf.map_or(Ok(()), |leaf| node.cgroups.kernel.remove(off, &leaf))?)
    })
    .await
}

/// The processes left in a container's cgroup, for an error message.
async fn processes(node: &Arc<Node>, pod: &SandboxSpec, id: &ContainerId) -> String {
    let Ok(leaf) = node.cgroups.leaf(pod, id) else { return String::new() };
    let node = node.clone();
    let told = blocking(move |_| {
        let pids = node.cgroups.kernel.pids(&leaf)?;
        let told = pids.iter().map(|pid| {
            let state =
                u32::try_from(*pid).ok().and_then(|pid| podwright_sys::proc::state(pid).ok()).unwrap_or('?');
            format!("pid {pid} in state {state}")
        });
        Ok(told.collect::<Vec<_>>().join(", "))
    });
    told.await.unwrap_or_default()
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Removes what is left of a pod on disk, the record last.
pub(in crate::sandbox) async fn erase(node: &Arc<Node>, spec: &SandboxSpec) -> Result<(), SandboxError> {
    let (node, id) = (node.clone(), spec.id.clone());
    blocking(move |off| {
        remove_tree(off, &node.places.pod_dir(&id))?;
        Ok(node.records.remove_pod(off, &id)?)
    })
    .await
}

/// Replaces the record of a pod's state.
pub(in crate::sandbox) async fn write_state(
    node: &Arc<Node>,
    spec: &SandboxSpec,
    state: PodState,
) -> Result<(), SandboxError> {
    let (node, id) = (node.clone(), spec.id.clone());
    blocking(move |off| Ok(node.records.write_pod_state(off, &id, &state)?)).await
}
