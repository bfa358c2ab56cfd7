//! Snapshots into answers. Pure. Derives the CRI's four container states and two sandbox states.

use super::proto as pb;
use crate::host::usage::Usage;
use crate::host::users::User;
use crate::images::{Image, ImageUser};
use crate::model::plain;
use crate::model::{
    ContainerSpec, IdMapping, Mount, MountSource, NamespaceMode, Namespaces, PodName, Propagation, Resources,
    SandboxSpec, Timestamp, UserNamespace,
};
use crate::sandbox::{ContainerSnapshot, ContainerState, Output, OutputHold, PodSnapshot, SandboxState};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Overhead of an ExecSync answer beside its output: three tags, two lengths, and the exit code, at most ten bytes
/// each.
const EXEC_ANSWER_OVERHEAD: usize = 3 + 3 * 10;

/// An ExecSync answer that fits a message of `limit` bytes. Cuts the tail of the longer stream first, so that a short
/// error message survives a long listing. gRPC would refuse the whole answer, exit code included.
pub(super) fn output(mut output: Output, limit: usize) -> (pb::ExecSyncResponse, OutputHold) {
    let room = limit.saturating_sub(EXEC_ANSWER_OVERHEAD);
    let shorter = output.stdout.len().min(output.stderr.len()).min(room / 2);
    for stream in [&mut output.stdout, &mut output.stderr] {
        stream.truncate(room - shorter);
    }
    let left = room - output.stdout.len();
    output.stderr.truncate(left);
    let Output { stdout, stderr, exit_code, hold } = output;
    (pb::ExecSyncResponse { stdout, stderr, exit_code }, hold)
}

pub(super) fn sandbox_metadata(name: &PodName) -> pb::PodSandboxMetadata {
    pb::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

pub(super) fn sandbox_state(state: &SandboxState) -> pb::PodSandboxState {
    match state {
        SandboxState::Ready { .. } => pb::PodSandboxState::SandboxReady,
        SandboxState::Preparing | SandboxState::NotReady { .. } => pb::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn sandbox(pod: &PodSnapshot) -> pb::PodSandbox {
    pb::PodSandbox {
        id: pod.spec.id.to_string(),
        metadata: Some(sandbox_metadata(&pod.spec.name)),
        state: sandbox_state(&pod.state).into(),
        created_at: pod.spec.created_at.nanos(),
        labels: map(&pod.spec.labels),
        annotations: map(&pod.spec.annotations),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(pod: &PodSnapshot) -> pb::PodSandboxStatus {
    let network = match &pod.state {
        SandboxState::Ready { network: Some(network) } => {
            let mut ips = network.ips.iter().map(ToString::to_string);
            pb::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| pb::PodIp { ip }).collect(),
            }
        }
        SandboxState::Ready { network: None } | SandboxState::Preparing | SandboxState::NotReady { .. } => {
            pb::PodSandboxNetworkStatus::default()
        }
    };
    pb::PodSandboxStatus {
        id: pod.spec.id.to_string(),
        metadata: Some(sandbox_metadata(&pod.spec.name)),
        state: sandbox_state(&pod.state).into(),
        created_at: pod.spec.created_at.nanos(),
        network: Some(network),
        linux: Some(pb::LinuxPodSandboxStatus {
            namespaces: Some(pb::Namespace { options: Some(namespaces(&pod.spec.namespaces)) }),
        }),
        labels: map(&pod.spec.labels),
        annotations: map(&pod.spec.annotations),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}

fn namespaces(namespaces: &Namespaces) -> pb::NamespaceOption {
    let target_id = match &namespaces.pid {
        NamespaceMode::Target(id) => id.to_string(),
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Node => String::new(),
    };
    pb::NamespaceOption {
        network: mode(&namespaces.network).into(),
        pid: mode(&namespaces.pid).into(),
        ipc: mode(&namespaces.ipc).into(),
        target_id,
        userns_options: namespaces.user.as_ref().map(user_namespace),
    }
}

fn mode(mode: &NamespaceMode) -> pb::NamespaceMode {
    match mode {
        NamespaceMode::Pod => pb::NamespaceMode::Pod,
        NamespaceMode::Container => pb::NamespaceMode::Container,
        NamespaceMode::Node => pb::NamespaceMode::Node,
        NamespaceMode::Target(_) => pb::NamespaceMode::Target,
    }
}

fn user_namespace(user: &UserNamespace) -> pb::UserNamespace {
    pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: user.uids.iter().map(id_mapping).collect(),
        gids: user.gids.iter().map(id_mapping).collect(),
    }
}

fn id_mapping(m: &IdMapping) -> pb::IdMapping {
    pb::IdMapping { host_id: m.host_id, container_id: m.container_id, length: m.length }
}

pub(super) fn container_state(container: &ContainerSnapshot) -> pb::ContainerState {
    match &container.state {
        ContainerState::Exited { .. } => pb::ContainerState::ContainerExited,
        _ if container.unread => pb::ContainerState::ContainerUnknown,
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            pb::ContainerState::ContainerCreated
        }
        ContainerState::Running { .. } => pb::ContainerState::ContainerRunning,
    }
}

pub(super) fn container_metadata(spec: &ContainerSpec) -> pb::ContainerMetadata {
    pb::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }
}

fn image_spec(spec: &ContainerSpec) -> pb::ImageSpec {
    pb::ImageSpec {
        image: spec.image.display.clone(),
        user_specified_image: spec.image.user_specified.clone(),
        ..Default::default()
    }
}

pub(super) fn container(container: &ContainerSnapshot) -> pb::Container {
    let spec = &container.spec;
    pb::Container {
        id: spec.id.to_string(),
        pod_sandbox_id: spec.sandbox_id.to_string(),
        metadata: Some(container_metadata(spec)),
        image: Some(image_spec(spec)),
        image_ref: spec.image.reference.clone(),
        state: container_state(container).into(),
        created_at: spec.created_at.nanos(),
        labels: map(&spec.labels),
        annotations: map(&spec.annotations),
        image_id: spec.image.id.to_string(),
    }
}

pub(super) fn container_status(container: &ContainerSnapshot, stop_signal: i32) -> pb::ContainerStatus {
    let spec = &container.spec;
    let mut status = pb::ContainerStatus {
        id: spec.id.to_string(),
        metadata: Some(container_metadata(spec)),
        state: container_state(container).into(),
        created_at: spec.created_at.nanos(),
        image: Some(image_spec(spec)),
        image_ref: spec.image.reference.clone(),
        labels: map(&spec.labels),
        annotations: map(&spec.annotations),
        mounts: spec.mounts.iter().map(mount).collect(),
        log_path: spec.log_path.as_deref().map(text).unwrap_or_default(),
        resources: Some(pb::ContainerResources {
            linux: Some(resources(&container.resources)),
            windows: None,
        }),
        image_id: spec.image.id.to_string(),
        user: container.user.as_ref().map(user),
        stop_signal,
        ..Default::default()
    };
    match &container.state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {}
        ContainerState::Running { since, .. } => status.started_at = since.nanos(),
        ContainerState::Exited { started_at, exit } => {
            status.started_at = started_at.map(|t| t.nanos()).unwrap_or_default();
            status.finished_at = exit.finished_at.nanos();
            status.exit_code = exit.code;
            exit.reason.as_str().clone_into(&mut status.reason);
            // A runtime's words of a container.
            status.message = plain::lines(&exit.message).into_owned();
        }
    }
    if status.state() == pb::ContainerState::ContainerUnknown {
        "its record cannot be read; the log of podwright says why".clone_into(&mut status.message);
    }
    status
}

fn user(user: &User) -> pb::ContainerUser {
    pb::ContainerUser {
        linux: Some(pb::LinuxContainerUser {
            uid: i64::from(user.uid),
            gid: i64::from(user.gid),
            supplemental_groups: user.additional_gids.iter().map(|g| i64::from(*g)).collect(),
        }),
    }
}

fn mount(m: &Mount) -> pb::Mount {
    let (host_path, image, image_sub_path) = match &m.source {
        MountSource::Host(path) => (text(path), None, String::new()),
        MountSource::Image(volume) => {
            let image = pb::ImageSpec {
                image: volume.image.clone(),
                user_specified_image: volume.user_specified.clone(),
                image_ref: volume.resolved.as_ref().map(|r| r.reference.clone()).unwrap_or_default(),
                ..Default::default()
            };
            (String::new(), Some(image), volume.sub_path.clone())
        }
    };
    pb::Mount {
        container_path: text(&m.container_path),
        host_path,
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: match m.propagation {
            Propagation::Private => pb::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => pb::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => pb::MountPropagation::PropagationBidirectional,
        }
        .into(),
        uid_mappings: m.uid_mappings.iter().map(id_mapping).collect(),
        gid_mappings: m.gid_mappings.iter().map(id_mapping).collect(),
        recursive_read_only: m.recursive_read_only,
        image,
        image_sub_path,
        mount_options: m.options.clone(),
    }
}

pub(super) fn resources(r: &Resources) -> pb::LinuxContainerResources {
    pb::LinuxContainerResources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit_in_bytes: r.memory_limit,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        hugepage_limits: r
            .hugepage_limits
            .iter()
            .map(|h| pb::HugepageLimit { page_size: h.page_size.clone(), limit: h.limit })
            .collect(),
        unified: map(&r.unified),
        memory_swap_limit_in_bytes: r.memory_swap_limit,
    }
}

pub(super) fn image(image: &Image) -> pb::Image {
    let (uid, username) = match &image.user {
        Some(ImageUser::Uid(uid)) => (Some(pb::Int64Value { value: *uid }), String::new()),
        Some(ImageUser::Name(name)) => (None, name.clone()),
        None => (None, String::new()),
    };
    pb::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// Whether an object's labels have all of the selector's.
pub(super) fn selected(labels: &BTreeMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a sandbox passes a list filter. `None` in the filter means any.
pub(super) fn sandbox_passes(
    spec: &SandboxSpec,
    state: &SandboxState,
    filter: &pb::PodSandboxFilter,
) -> bool {
    spec.id.as_str().starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(sandbox_state(state)))
        && selected(&spec.labels, &filter.label_selector)
}

/// Whether a container passes a list filter.
pub(super) fn container_passes(container: &ContainerSnapshot, filter: &pb::ContainerFilter) -> bool {
    let spec = &container.spec;
    spec.id.as_str().starts_with(&filter.id)
        && spec.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(container_state(container)))
        && selected(&spec.labels, &filter.label_selector)
}

/// Usage of a file system.
pub(super) fn file_system(name: &Path, used: Usage, at: Timestamp) -> pb::FilesystemUsage {
    pb::FilesystemUsage {
        timestamp: at.nanos(),
        fs_id: Some(pb::FilesystemIdentifier { mountpoint: name.to_string_lossy().into_owned() }),
        used_bytes: Some(pb::UInt64Value { value: used.bytes }),
        inodes_used: Some(pb::UInt64Value { value: used.inodes }),
    }
}
