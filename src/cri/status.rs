//! The one table from errors to gRPC codes. Every match is exhaustive, so a new error needs a code here.
//!
//! Codes as a kubelet understands them. NotFound: the object is gone. DeadlineExceeded of ExecSync: a failed probe.
//! Unimplemented: fall back. It also parses the first word of some messages (k8s.io/cri-api `pkg/errors`).

use super::decode::Invalid;
use crate::host::blockio::BlockIoError;
use crate::host::cdi::CdiError;
use crate::host::cgroups::CgroupError;
use crate::host::command::CommandError;
use crate::host::criu::CriuError;
use crate::host::devices::DeviceError;
use crate::host::foreign::ForeignError;
use crate::host::monitor::{ErrorKind, MonitorError};
use crate::host::network::{Fault, NetworkError};
use crate::host::oci::OciError;
use crate::host::quota::QuotaError;
use crate::host::rootfs::RootfsError;
use crate::host::security::apparmor::AppArmorError;
use crate::host::security::seccomp::SeccompError;
use crate::host::security::selinux::SelinuxError;
use crate::host::users::UserError;
use crate::images::ImageError;
use crate::model::plain;
use crate::sandbox::spec::SpecError;
use crate::sandbox::{CheckpointError, RecordError, SandboxError, VolumeError};
use crate::streaming::{StreamingError, TokenError};
use std::io;
use tonic::{Code, Status};

/// cri-api's ErrRegistryUnavailable, which becomes a pod's waiting reason.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// cri-api's ErrSignatureValidationFailed, the same.
const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";
/// What OCI runtimes (runc, crun, youki) say when a program is not in the container.
const NO_SUCH_PROGRAM: [&str; 4] =
    ["executable file not found", "no such file or directory", "executable file `", "' not found in $PATH"];

/// Bytes of a message, which travels in a header: some clients take no more than 8 or 16 KiB of those. Of a longer one the
/// beginning and the end are told, for what a request echoes is mostly in the middle.
const MAX_WORDS: usize = 4 << 10;

fn words(text: &str) -> String {
    plain::ends(text, MAX_WORDS).into_owned()
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Status::invalid_argument(words(&plain::lines(&error.to_string())))
    }
}

/// The status of an error of pods and containers.
#[must_use]
pub fn status(error: &SandboxError) -> Status {
    match error {
        SandboxError::Image(error) => image_status(error),
        // Containers and images shape some of the words, and a person reads them in a pod's events.
        error => Status::new(code(error), words(&plain::lines(&error.to_string()))),
    }
}

/// The status of an error of images.
#[must_use]
pub fn image_status(error: &ImageError) -> Status {
    let (code, word) = image_code(error);
    let message = if word.is_empty() { error.to_string() } else { format!("{word}: {error}") };
    Status::new(code, words(&plain::one_line(&message)))
}

/// The status of an error of URLs for streams.
pub(super) fn streaming_status(error: &StreamingError) -> Status {
    let code = match error {
        // A kubelet turns it into "too many requests".
        StreamingError::Token(TokenError::Full) => Code::ResourceExhausted,
        StreamingError::Token(TokenError::CommandTooLong(_)) => Code::InvalidArgument,
        StreamingError::Token(TokenError::Random(_)) => Code::Internal,
        StreamingError::Listen { .. } | StreamingError::Tls(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn code(error: &SandboxError) -> Code {
    match error {
        SandboxError::SandboxNotFound(_) | SandboxError::ContainerNotFound(_) => Code::NotFound,
        SandboxError::UnknownHandler { .. } => Code::NotFound,
        SandboxError::AmbiguousId { .. } | SandboxError::Annotation { .. } => Code::InvalidArgument,
        SandboxError::SandboxNameTaken { .. } | SandboxError::ContainerNameTaken { .. } => {
            Code::AlreadyExists
        }
        SandboxError::SandboxState { .. } | SandboxError::ContainerState { .. } => Code::FailedPrecondition,
        SandboxError::Target { .. } | SandboxError::NoUserNamespaces { .. } => Code::FailedPrecondition,
        SandboxError::MountSource { source, .. } => match source.kind() {
            // Nothing is there, and no directory can be created: below a file, or at the end of a dead link; or it is what
            // not even root may look into, such as another process's root.
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::PermissionDenied => Code::InvalidArgument,
            _ => io_code(source),
        },
        SandboxError::Foreign(error) => foreign_code(error),
        SandboxError::StillMounted(_) => Code::Unavailable,
        SandboxError::ImageVolume { cause, .. } => volume_code(cause),
        SandboxError::ExecTimeout { .. } | SandboxError::StepTimeout { .. } => Code::DeadlineExceeded,
        SandboxError::Unkillable { .. } | SandboxError::Unclean { .. } => Code::DeadlineExceeded,
        SandboxError::TooManyExecs { .. } | SandboxError::TooLongToList { .. } => Code::ResourceExhausted,
        SandboxError::TooLargeExecs { .. }
        | SandboxError::StateFull { .. }
        | SandboxError::PodConfigs { .. } => Code::ResourceExhausted,
        SandboxError::MonitorLost(_) => Code::FailedPrecondition,
        SandboxError::MonitorUnknown(_) => Code::Unavailable,
        SandboxError::StartUnseen(_) | SandboxError::Panicked(_) => Code::Internal,
        SandboxError::ShuttingDown => Code::Unavailable,
        // The first error is the cause; the others occurred while undoing it.
        SandboxError::Several(errors) => errors.first().map_or(Code::Internal, code),
        SandboxError::Io { source, .. } => io_code(source),
        SandboxError::Connect { .. } => Code::Unavailable,
        SandboxError::Id(_) => Code::Internal,
        SandboxError::Image(error) => image_code(error).0,
        SandboxError::Network(error) => network_code(error),
        SandboxError::Monitor(error) => monitor_code(error),
        SandboxError::Oci(error) => oci_code(error),
        SandboxError::Spec(error) => spec_code(error),
        SandboxError::Rootfs(error) => rootfs_code(error),
        SandboxError::Quota(error) => quota_code(error),
        SandboxError::Remove(_) => Code::Internal,
        SandboxError::ImageContent { .. } => Code::InvalidArgument,
        SandboxError::User(error) => user_code(error),
        SandboxError::Seccomp(error) => seccomp_code(error),
        SandboxError::AppArmor(error) => apparmor_code(error),
        SandboxError::SelinuxLabel { cause, .. } | SandboxError::Relabel { cause, .. } => selinux_code(cause),
        SandboxError::Selinux(error) => selinux_code(error),
        SandboxError::Device(error) => device_code(error),
        SandboxError::Cdi(error) => cdi_code(error),
        SandboxError::BlockIo(error) => block_io_code(error),
        SandboxError::Rdt { .. } => Code::FailedPrecondition,
        SandboxError::Cgroup(error) => cgroup_code(error),
        SandboxError::Checkpoint(error) => checkpoint_code(error),
        SandboxError::Record(error) => match error {
            RecordError::Io { source, .. } => io_code(source),
            RecordError::Malformed { .. } | RecordError::Version { .. } => Code::DataLoss,
        },
    }
}

fn foreign_code(error: &ForeignError) -> Code {
    match error {
        ForeignError::Hangs { .. } | ForeignError::Lost { .. } => Code::Unavailable,
        ForeignError::Silent { .. } | ForeignError::Busy { .. } => Code::DeadlineExceeded,
        ForeignError::Thread { source, .. } => io_code(source),
        ForeignError::Procfs { .. } => Code::InvalidArgument,
        ForeignError::Panicked { .. } => Code::Internal,
    }
}

fn checkpoint_code(error: &CheckpointError) -> Code {
    match error {
        CheckpointError::Criu(CriuError::Off) => Code::Unimplemented,
        CheckpointError::Criu(CriuError::Missing | CriuError::Refused(_)) => Code::FailedPrecondition,
        CheckpointError::Criu(CriuError::Command(error)) => command_code(error),
        CheckpointError::Request { .. } => Code::InvalidArgument,
        CheckpointError::Busy(_) => Code::Aborted,
        CheckpointError::Mismatch { .. } => Code::FailedPrecondition,
        CheckpointError::Malformed { .. } => Code::DataLoss,
        CheckpointError::NoRoom { .. } => Code::ResourceExhausted,
        CheckpointError::Image { .. } => Code::NotFound,
        CheckpointError::Start { error, .. } => monitor_code(error),
        CheckpointError::ImagesOff(_) => Code::FailedPrecondition,
        CheckpointError::StillFrozen { .. } => Code::Internal,
    }
}

fn command_code(error: &CommandError) -> Code {
    match error {
        CommandError::Timeout { .. } => Code::DeadlineExceeded,
        CommandError::Start { source, .. } | CommandError::Io { source, .. } => io_code(source),
        CommandError::TooMuchOutput { .. } | CommandError::Failed { .. } => Code::Unknown,
    }
}

fn volume_code(error: &VolumeError) -> Code {
    match error {
        VolumeError::Writable | VolumeError::SubPath { .. } | VolumeError::NotDirectory { .. } => {
            Code::InvalidArgument
        }
        VolumeError::Image(error) => image_code(error).0,
        VolumeError::NotHeld => Code::NotFound,
        VolumeError::Mount(error) => rootfs_code(error),
        VolumeError::Io { source, .. } => io_code(source),
    }
}

fn io_code(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Code::ResourceExhausted
        }
        _ => match error.raw_os_error() {
            // EMFILE, ENFILE, EAGAIN of fork.
            Some(24 | 23 | 11) => Code::ResourceExhausted,
            _ => Code::Internal,
        },
    }
}

fn quota_code(error: &QuotaError) -> Code {
    match error {
        QuotaError::Io { source, .. } => io_code(source),
        QuotaError::NotEnforced { .. } => Code::FailedPrecondition,
        QuotaError::NoId { .. } => Code::ResourceExhausted,
    }
}

fn image_code(error: &ImageError) -> (Code, &'static str) {
    let code = match error {
        ImageError::Malformed { .. } | ImageError::Ambiguous { .. } | ImageError::BadArchive { .. } => {
            Code::InvalidArgument
        }
        ImageError::NotFound { .. }
        | ImageError::LayerLost { .. }
        | ImageError::NotAtRegistry { .. }
        | ImageError::NotInSource { .. } => Code::NotFound,
        ImageError::Unauthorized { .. } | ImageError::Token { .. } => Code::PermissionDenied,
        ImageError::RateLimited { .. } => Code::ResourceExhausted,
        ImageError::Unavailable { .. } | ImageError::Stalled { .. } | ImageError::TooSlow { .. } => {
            // The kubelet looks for this word at the front, and only Unknown arrives without "rpc error" before it.
            return (Code::Unknown, REGISTRY_UNAVAILABLE);
        }
        ImageError::Protocol { .. } | ImageError::Redirect { .. } | ImageError::NotAsked { .. } => {
            Code::Unknown
        }
        ImageError::DigestMismatch { .. }
        | ImageError::SizeMismatch { .. }
        | ImageError::BadManifest { .. }
        | ImageError::CorruptLayer { .. }
        | ImageError::HostileEntry { .. }
        | ImageError::DamagedLayer { .. } => Code::DataLoss,
        ImageError::Unsupported { .. } | ImageError::NoRecipe { .. } | ImageError::PeerStore { .. } => {
            Code::FailedPrecondition
        }
        ImageError::Limit { .. } | ImageError::NoSpace { .. } => Code::ResourceExhausted,
        ImageError::Io { source, .. } => io_code(source),
        ImageError::Index { .. } => Code::Internal,
        // The kubelet looks at the beginning of a pull's error, which is the message only if the code is Unknown
        // (cri-client's remote_image.go).
        ImageError::Signature { .. } => return (Code::Unknown, SIGNATURE_VALIDATION_FAILED),
        ImageError::Policy { .. } | ImageError::Hosts { .. } | ImageError::Blocked { .. } => {
            Code::FailedPrecondition
        }
        ImageError::Interrupted { .. } => Code::Aborted,
        ImageError::Busy { .. } => Code::Unavailable,
    };
    (code, "")
}

fn network_code(error: &NetworkError) -> Code {
    match error {
        NetworkError::NotConfigured { .. } => Code::Unavailable,
        NetworkError::Plugin { fault, .. } => match &**fault {
            Fault::Timeout { .. } => Code::DeadlineExceeded,
            Fault::Missing { .. } => Code::FailedPrecondition,
            Fault::Refused { .. } | Fault::Failed { .. } | Fault::NotRun { .. } | Fault::BadResult { .. } => {
                Code::Unavailable
            }
        },
        NetworkError::NoAddress { .. } => Code::Unavailable,
        NetworkError::Annotation { .. } | NetworkError::Argument { .. } => Code::InvalidArgument,
        NetworkError::Cache { source, .. } | NetworkError::Generate { source, .. } => io_code(source),
        NetworkError::Template { .. } => Code::FailedPrecondition,
        NetworkError::NotUndone { error, .. } => network_code(error),
        NetworkError::NotDetached(failures) => failures.0.first().map_or(Code::Internal, network_code),
    }
}

fn monitor_code(error: &MonitorError) -> Code {
    match error {
        MonitorError::Spawn { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => Code::FailedPrecondition,
            _ => io_code(source),
        },
        MonitorError::NotRunning { .. } | MonitorError::Gone { .. } => Code::FailedPrecondition,
        MonitorError::Record { source, .. }
        | MonitorError::Connect { source, .. }
        | MonitorError::Sweep { source, .. } => io_code(source),
        MonitorError::Version { .. } | MonitorError::TooOld { .. } | MonitorError::Outdated { .. } => {
            Code::FailedPrecondition
        }
        MonitorError::Unresponsive { .. } => Code::DeadlineExceeded,
        MonitorError::Refused { kind, message, .. } => match kind {
            ErrorKind::Runtime { .. } if NO_SUCH_PROGRAM.iter().any(|words| message.contains(words)) => {
                Code::InvalidArgument
            }
            ErrorKind::Runtime { .. } => Code::Unknown,
            ErrorKind::Deadline => Code::DeadlineExceeded,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::NotRunning | ErrorKind::StillRunning => Code::FailedPrecondition,
            ErrorKind::TooMany => Code::ResourceExhausted,
            ErrorKind::Invalid | ErrorKind::Namespace | ErrorKind::Io => Code::Internal,
        },
        MonitorError::Mismatch { .. } | MonitorError::Encode { .. } => Code::Internal,
    }
}

fn oci_code(error: &OciError) -> Code {
    match error {
        OciError::Missing { .. } | OciError::NoneWorks { .. } => Code::FailedPrecondition,
        OciError::Failed { .. } => Code::Unknown,
        OciError::NoCommand { .. } => Code::Unimplemented,
        OciError::Command { error, .. } => command_code(error),
        OciError::Probe { source, .. } => io_code(source),
    }
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::NoCommand
        | SpecError::PrivilegedContainer
        | SpecError::Nul { .. }
        | SpecError::EnvName { .. }
        | SpecError::ProcessTooLarge { .. }
        | SpecError::ConfigTooLarge { .. }
        | SpecError::WorkingDir { .. }
        | SpecError::UnknownCapability { .. }
        | SpecError::MountPath { .. }
        | SpecError::DuplicateMount { .. }
        | SpecError::Propagation { .. }
        | SpecError::MappedBidirectional { .. }
        | SpecError::UnmappedId { .. }
        | SpecError::RecursiveReadOnly { .. }
        | SpecError::MountOption { .. }
        | SpecError::Resource { .. } => Code::InvalidArgument,
        SpecError::CapabilityNotAvailable { .. }
        | SpecError::MissingNamespace { .. }
        | SpecError::NoAppArmor { .. } => Code::FailedPrecondition,
        SpecError::UnresolvedMount { .. } | SpecError::Ulimit { .. } | SpecError::Oci(_) => Code::Internal,
    }
}

fn rootfs_code(error: &RootfsError) -> Code {
    match error {
        RootfsError::NoLayers { .. }
        | RootfsError::TooManyLayers { .. }
        | RootfsError::IdMap { .. }
        | RootfsError::Volume { .. } => Code::FailedPrecondition,
        RootfsError::Open { cause, .. }
        | RootfsError::Option { cause, .. }
        | RootfsError::Mount { cause, .. }
        | RootfsError::Unmount { cause, .. }
        | RootfsError::UserNamespace { cause, .. }
        | RootfsError::Directory { cause, .. }
        | RootfsError::Inspect { cause, .. } => io_code(cause),
    }
}

fn user_code(error: &UserError) -> Code {
    match error {
        UserError::GroupWithoutUser { .. }
        | UserError::OutOfRange { .. }
        | UserError::Unknown { .. }
        | UserError::NotRegular { .. }
        | UserError::TooManyGroups { .. }
        | UserError::TooLarge { .. } => Code::InvalidArgument,
        UserError::Read { cause, .. } => io_code(cause),
    }
}

fn seccomp_code(error: &SeccompError) -> Code {
    match error {
        SeccompError::NotAbsolute { .. }
        | SeccompError::Read { .. }
        | SeccompError::NotRegular { .. }
        | SeccompError::TooLarge { .. }
        | SeccompError::Parse { .. } => Code::InvalidArgument,
    }
}

fn apparmor_code(error: &AppArmorError) -> Code {
    match error {
        AppArmorError::Absent { .. } | AppArmorError::NotLoaded { .. } | AppArmorError::NoParser => {
            Code::FailedPrecondition
        }
        AppArmorError::Read { cause, .. } => io_code(cause),
        AppArmorError::Parser(CommandError::Timeout { .. }) => Code::DeadlineExceeded,
        AppArmorError::Parser(_) | AppArmorError::Vanished { .. } => Code::Internal,
    }
}

fn selinux_code(error: &SelinuxError) -> Code {
    match error {
        SelinuxError::Unknown { .. } | SelinuxError::Forbidden { .. } => Code::InvalidArgument,
        SelinuxError::NoLevel => Code::ResourceExhausted,
        SelinuxError::Random(_) => Code::Internal,
        SelinuxError::Ask { cause, .. } | SelinuxError::Set { cause, .. } => io_code(cause),
    }
}

fn block_io_code(error: &BlockIoError) -> Code {
    match error {
        BlockIoError::Unknown { .. } => Code::InvalidArgument,
        BlockIoError::NotConfigured { .. }
        | BlockIoError::File { .. }
        | BlockIoError::NoController { .. } => Code::FailedPrecondition,
        BlockIoError::Oci(_) => Code::Internal,
    }
}

fn cdi_code(error: &CdiError) -> Code {
    match error {
        CdiError::Unknown { .. } => Code::InvalidArgument,
        CdiError::Conflict { .. } | CdiError::Unsupported { .. } => Code::FailedPrecondition,
    }
}

fn device_code(error: &DeviceError) -> Code {
    match error {
        DeviceError::Read { cause, .. } => match cause.kind() {
            io::ErrorKind::NotFound => Code::InvalidArgument,
            _ => io_code(cause),
        },
        DeviceError::NotDevice { .. } | DeviceError::Permissions { .. } | DeviceError::TooMany { .. } => {
            Code::InvalidArgument
        }
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::SliceParent { .. } | CgroupError::PathParent { .. } | CgroupError::BadParent { .. } => {
            Code::InvalidArgument
        }
        CgroupError::NotMounted => Code::FailedPrecondition,
        CgroupError::Io { cause, .. } => io_code(cause),
        CgroupError::Kill { .. } | CgroupError::Freezer { .. } | CgroupError::StillAlive { .. } => {
            Code::Internal
        }
    }
}
