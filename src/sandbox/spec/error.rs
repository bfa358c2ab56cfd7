//! Why no spec can be built.

use super::{MAX_CONFIG_BYTES, MAX_PROCESS_BYTES};
use std::path::PathBuf;

/// Why no spec can be built. Each is the caller's mistake or a lack of the host.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the request nor the image names a program.
    #[error("no command specified")]
    NoCommand,
    /// A privileged container in a pod that is not.
    #[error("no privileged container allowed in a sandbox that is not privileged")]
    PrivilegedContainer,
    /// A NUL byte ends a C string early.
    #[error("{what} {value:?} holds a NUL byte")]
    Nul {
        /// `argument`, `environment variable`.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// An environment name that cannot be written as `NAME=value`.
    #[error("environment variable name {name:?} is empty or holds \"=\"")]
    EnvName {
        /// As given.
        name: String,
    },
    /// More than the kernel would execute.
    #[error(
        "{what} have {bytes} bytes, more than {MAX_PROCESS_BYTES}: the kernel executes no program with so much"
    )]
    ProcessTooLarge {
        /// The fields.
        what: &'static str,
        /// What they have.
        bytes: usize,
    },
    /// An OCI configuration that would take too much of the node's memory.
    #[error(
        "config: its OCI configuration would have {bytes} bytes, more than {MAX_CONFIG_BYTES}, {largest_bytes} of them for \
         {largest}"
    )]
    ConfigTooLarge {
        /// The whole.
        bytes: usize,
        /// Its largest part.
        largest: &'static str,
        /// What that has.
        largest_bytes: usize,
    },
    /// A working directory that reaches a descriptor of the runtime (CVE-2024-21626).
    #[error("config.working_dir: {path:?} names a file descriptor")]
    WorkingDir {
        /// As given.
        path: String,
    },
    /// A capability without a name in Linux.
    #[error("config.linux.security_context.capabilities: unknown capability {name:?}")]
    UnknownCapability {
        /// As given.
        name: String,
    },
    /// A capability that the daemon does not have either.
    #[error("config.linux.security_context.capabilities: {name} is not in the daemon's bounding set")]
    CapabilityNotAvailable {
        /// Its name.
        name: &'static str,
    },
    /// A mount path that is relative or has `..`.
    #[error("config.mounts: mount at {}: the container path must be absolute and without \"..\"", path.display())]
    MountPath {
        /// Container path.
        path: PathBuf,
    },
    /// Two mounts at one path.
    #[error("config.mounts: two mounts at {}", path.display())]
    DuplicateMount {
        /// Container path.
        path: PathBuf,
    },
    /// A mount without its resolved source.
    #[error("mount at {}: its source was not resolved", path.display())]
    UnresolvedMount {
        /// Container path.
        path: PathBuf,
    },
    /// Propagation that the source's mount cannot give.
    #[error("config.mounts.propagation: mount at {}: {} is not on a {needed} mount", path.display(), source_path.display())]
    Propagation {
        /// Container path.
        path: PathBuf,
        /// Host path.
        source_path: PathBuf,
        /// `shared` or `shared or slave`.
        needed: &'static str,
    },
    /// A mount with mapped ids, or in a user namespace, that shall reach the host.
    #[error(
        "mount at {}: propagation BIDIRECTIONAL cannot be had in a user namespace: its mounts never reach the host",
        path.display()
    )]
    MappedBidirectional {
        /// Container path.
        path: PathBuf,
    },
    /// A user or group that the pod's user namespace does not map.
    #[error("{what} {id} is not mapped in the pod's user namespace: no process there can have it")]
    UnmappedId {
        /// `user` or `group`.
        what: &'static str,
        /// The id.
        id: u32,
    },
    /// An impossible recursively read-only mount. The kubelet reads the beginning of the message.
    #[error("RROUnsupported: mount at {}: {reason}", path.display())]
    RecursiveReadOnly {
        /// Container path.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A mount option other than noexec, nodev and nosuid.
    #[error("config.mounts.mount_options: mount at {}: unknown option {option:?}", path.display())]
    MountOption {
        /// Container path.
        path: PathBuf,
        /// As given.
        option: String,
    },
    /// The requested namespace does not exist.
    #[error("the {kind} namespace that the container shall join does not exist")]
    MissingNamespace {
        /// Kind.
        kind: &'static str,
    },
    /// AppArmor was requested, and the host has none.
    #[error(
        "config.linux.security_context.apparmor: profile {profile:?} is requested, but the host has no AppArmor or there is no default profile"
    )]
    NoAppArmor {
        /// Profile.
        profile: String,
    },
    /// A resource limit that contradicts itself or is out of range.
    #[error("resource {field} = {value}: {reason}")]
    Resource {
        /// Field.
        field: &'static str,
        /// As given.
        value: String,
        /// Why.
        reason: &'static str,
    },
    /// An invalid limit of the configuration, which the loader refuses.
    #[error("containers.default_ulimits: {text:?}: {reason}")]
    Ulimit {
        /// As configured.
        text: String,
        /// Why.
        reason: String,
    },
    /// The types of the OCI spec refused a value.
    #[error("assemble the OCI spec: {0}")]
    Oci(#[from] oci_spec::OciSpecError),
}
