//! The domain's vocabulary: ids, requested sandboxes and containers, resources, time.
//!
//! Owns plain data that `cri::decode` has checked and that goes into records. Never does I/O, never knows gRPC types.

mod container;
mod id;
pub mod plain;
pub mod random;
mod resources;
mod sandbox;
mod security;
mod terminal;
mod time;

pub use container::{
    ContainerSpec, Device, IdMapping, ImageRequest, ImageVolume, Mount, MountSource, Propagation,
    ResolvedImage, Restore,
};
pub use id::{ContainerId, IdError, ImageId, SandboxId};
pub use resources::{HugepageLimit, Resources};
pub use sandbox::{DnsConfig, PodName, PortMapping, Protocol, SandboxSpec};
pub use security::{
    Capabilities, ContainerSecurity, GroupsPolicy, NamespaceMode, Namespaces, Profile, RunAs,
    SandboxSecurity, SelinuxOptions, UserNamespace, WORKER_UID,
};
pub use terminal::TerminalSize;
pub use time::{Clock, Timestamp};
