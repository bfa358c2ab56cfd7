//! What can go wrong with sandboxes and containers. One variant a cause, the mechanism's own error inside; the gRPC
//! code stands in `cri::status`.

use super::checkpoint_error::CheckpointError;
use super::record::RecordError;
use super::state::SandboxState;
use super::volumes::VolumeError;
use crate::host::blockio::BlockIoError;
use crate::host::cdi::CdiError;
use crate::host::cgroups::CgroupError;
use crate::host::devices::DeviceError;
use crate::host::foreign::ForeignError;
use crate::host::monitor::MonitorError;
use crate::host::network::NetworkError;
use crate::host::oci::OciError;
use crate::host::quota::QuotaError;
use crate::host::remove::RemoveError;
use crate::host::rootfs::RootfsError;
use crate::host::security::apparmor::AppArmorError;
use crate::host::security::seccomp::SeccompError;
use crate::host::security::selinux::SelinuxError;
use crate::host::users::UserError;
use crate::images::ImageError;
use crate::model::{IdError, PodName, SandboxId};
use crate::sandbox::spec::SpecError;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the domain.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No sandbox has this id or prefix.
    #[error("pod sandbox {0:?} not found")]
    SandboxNotFound(String),
    /// No container has this id or prefix.
    #[error("container {0:?} not found")]
    ContainerNotFound(String),
    /// Several objects share the prefix.
    #[error("{kind} id prefix {prefix:?} is ambiguous: it fits {count}")]
    AmbiguousId {
        /// pod sandbox or container.
        kind: &'static str,
        /// What was given.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// This node, or the handler's runtime, has no user namespaces for pods.
    #[error("a pod with a user namespace of its own cannot run here: {why}")]
    NoUserNamespaces {
        /// What trying said.
        why: String,
    },
    /// One more, and a list of all would not fit a message.
    #[error(
        "{kind} {whose} would take {all} bytes in a list, with their labels and annotations, more than {most} (a part of \
         grpc.max_message_bytes)"
    )]
    TooLongToList {
        /// pods or containers.
        kind: &'static str,
        /// Of one pod or all.
        whose: &'static str,
        /// With it.
        all: usize,
        /// The limit.
        most: usize,
    },
    /// As many ExecSync calls run as there is memory for.
    #[error(
        "{most} commands of ExecSync run for {whose}, more do not fit containers.exec_memory_bytes: try again"
    )]
    TooManyExecs {
        /// One pod or all.
        whose: &'static str,
        /// The limit.
        most: usize,
    },
    /// As many large process descriptions lie in `state` as there is room for.
    #[error("commands with environments of more than {most} bytes are being started in {whose}: try again")]
    TooLargeExecs {
        /// One pod or all.
        whose: &'static str,
        /// The limit.
        most: usize,
    },
    /// The file system of `state` has nothing left but its reserve.
    #[error(
        "no room in {}: {free} bytes are free, which are kept for commands, stops and removals; a container's \
         configuration would take more. Remove containers with large environments, or enlarge the file system",
        state.display()
    )]
    StateFull {
        /// The configured directory.
        state: PathBuf,
        /// What is left.
        free: u64,
    },
    /// The containers of a pod have large OCI configurations.
    #[error(
        "the OCI configurations of this pod's containers would have {all} bytes together, with the environments of their \
         images, more than {most}"
    )]
    PodConfigs {
        /// With the new one.
        all: u64,
        /// The limit.
        most: u64,
    },
    /// The sandbox's name is in use by one that differs or is not ready.
    #[error("pod sandbox name {name} is in use by {id}, {why}")]
    SandboxNameTaken {
        /// The name.
        name: Box<PodName>,
        /// Who has it.
        id: SandboxId,
        /// Why it cannot be handed out again.
        why: &'static str,
    },
    /// The container's name is in use in this sandbox.
    #[error(
        "container name {name} attempt {attempt} is in use in pod sandbox {sandbox} by container {id}, {why}"
    )]
    ContainerNameTaken {
        /// The name.
        name: String,
        /// The attempt.
        attempt: u32,
        /// The sandbox.
        sandbox: SandboxId,
        /// Who has it.
        id: String,
        /// Why it cannot be handed out again.
        why: &'static str,
    },
    /// The sandbox is in no state for this.
    #[error("cannot {operation} in pod sandbox {id}: it is {state}")]
    SandboxState {
        /// What was asked.
        operation: &'static str,
        /// The sandbox.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// The container is in no state for this.
    #[error("cannot {operation} container {id}: it is {state}")]
    ContainerState {
        /// What was asked.
        operation: &'static str,
        /// The container.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// No such RuntimeClass handler.
    #[error("runtime handler {handler:?} is not configured; known handlers: {known}")]
    UnknownHandler {
        /// As asked.
        handler: String,
        /// What there is.
        known: String,
    },
    /// A target container that cannot lend its pid namespace.
    #[error("target container {target} of pid namespace mode TARGET: {why}")]
    Target {
        /// The target.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// An annotation that is obeyed has a value that cannot be.
    #[error("config.annotations: {name}: {problem}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A mount's source.
    #[error("mount {container_path}: source {host_path}: {source}")]
    MountSource {
        /// Where it was to go.
        container_path: PathBuf,
        /// What was asked.
        host_path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A path of the host that a request names does not answer.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// A volume of the host's stays where it was mounted.
    #[error("unmount {}: its file system does not answer", .0.display())]
    StillMounted(PathBuf),
    /// A mount's image. The first word is cri-api's ErrImageVolumeMountFailed (`pkg/errors`).
    #[error("ImageVolumeMountFailed: mount {container_path} of image {image:?}: {cause}")]
    ImageVolume {
        /// Where it was to go.
        container_path: PathBuf,
        /// What was asked.
        image: String,
        /// The cause.
        cause: Box<VolumeError>,
    },
    /// ExecSync took too long.
    #[error("command in container {container} timed out after {} s and was killed", .timeout.as_secs())]
    ExecTimeout {
        /// The container.
        container: String,
        /// What was allowed.
        timeout: Duration,
    },
    /// A port of a pod that cannot be reached.
    #[error("connect to port {port} of pod sandbox {sandbox}: {source}")]
    Connect {
        /// The sandbox.
        sandbox: SandboxId,
        /// The port.
        port: u16,
        /// The cause.
        source: std::io::Error,
    },
    /// A container's processes do not die.
    #[error("container {id} is still there after {} s: {processes}", .waited.as_secs())]
    Unkillable {
        /// The container.
        id: String,
        /// What is known of its processes.
        processes: String,
        /// How long it was waited.
        waited: Duration,
    },
    /// Something of an ended container cannot be removed.
    #[error(
        "something of the ended container {id} is still there after {} s, which the daemon goes on trying to remove: {why}",
        .waited.as_secs()
    )]
    Unclean {
        /// The container.
        id: String,
        /// What kept it.
        why: String,
        /// How long it was waited.
        waited: Duration,
    },
    /// The pod's monitor is gone.
    #[error("pod sandbox {0} has lost its monitor: stop and remove it")]
    MonitorLost(SandboxId),
    /// The pod's monitor may live, but cannot be asked.
    #[error("the monitor of pod sandbox {0} cannot be reached, which the daemon goes on trying: try again")]
    MonitorUnknown(SandboxId),
    /// A container whose start failed when nobody listened.
    #[error("the start of container {0} failed while no daemon listened; its runtime.log may say why")]
    StartUnseen(String),
    /// A bug of ours; the panic itself is in the daemon's log.
    #[error("{0} ended abnormally, which is a bug in podwright; its log says where")]
    Panicked(&'static str),
    /// The work was given up: the daemon ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A step took longer than it may.
    #[error("{step} of container {id} took longer than {} s", .limit.as_secs())]
    StepTimeout {
        /// The step.
        step: &'static str,
        /// The container.
        id: String,
        /// The limit.
        limit: Duration,
    },
    /// Several things failed on the way down.
    #[error("{}", join(.0))]
    Several(Vec<SandboxError>),
    /// A file operation.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A new id could not be made.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// CNI.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The OCI runtime.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The OCI specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// An image that no container is made of.
    #[error("image {image} cannot be run: {problem}")]
    ImageContent {
        /// As people know it.
        image: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// A tree cannot be removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// The quota of a writable layer.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A seccomp profile of the node.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// An AppArmor profile.
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    /// A label that was asked for.
    #[error("{field}: {cause}")]
    SelinuxLabel {
        /// The part that the policy does not know.
        field: &'static str,
        /// The cause.
        cause: SelinuxError,
    },
    /// A volume that asks for the container's label.
    #[error("mount {container_path}: selinux_relabel: {cause}")]
    Relabel {
        /// Where it was to go.
        container_path: PathBuf,
        /// The cause.
        cause: SelinuxError,
    },
    /// SELinux.
    #[error(transparent)]
    Selinux(#[from] SelinuxError),
    /// Devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Devices of CDI.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A class of block I/O.
    #[error(transparent)]
    BlockIo(#[from] BlockIoError),
    /// A class of cache and memory bandwidth.
    #[error("RDT class {class:?}: {reason}")]
    Rdt {
        /// The class.
        class: String,
        /// Why not.
        reason: &'static str,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn join(errors: &[SandboxError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl SandboxError {
    /// Of a pod in this state without a monitor to ask.
    pub(in crate::sandbox) fn no_monitor(id: &SandboxId, state: &SandboxState) -> Self {
        match state {
            SandboxState::Ready { .. } => Self::MonitorUnknown(id.clone()),
            SandboxState::Preparing | SandboxState::NotReady { .. } => Self::MonitorLost(id.clone()),
        }
    }

    /// One error of many; None of none.
    #[must_use]
    pub fn all(mut errors: Vec<Self>) -> Option<Self> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }

    /// Wraps a file operation's error.
    pub(in crate::sandbox) fn io(
        operation: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}
