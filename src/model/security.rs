//! Requested namespaces, users, capabilities and profiles of a sandbox or a container.

use super::{ContainerId, IdMapping};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The user of processes that work on other people's bytes. Who has a user's id may signal its processes: Kubernetes takes ids
/// up to 2^31-1 for containers, and `host::users` gives this one to none. It owns no file.
pub const WORKER_UID: u32 = 0xF0F0_F0F1;

/// The owner of a container's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// Shared by the pod's containers.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// The namespace of another container in the pod.
    Target(ContainerId),
}

/// The namespaces of a sandbox or container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Pod or Node.
    pub network: NamespaceMode,
    /// Any mode.
    pub pid: NamespaceMode,
    /// Pod or Node.
    pub ipc: NamespaceMode,
    /// None: the host's user namespace.
    pub user: Option<UserNamespace>,
}

/// A pod's own user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Uid ranges; one of them contains id 0.
    pub uids: Vec<IdMapping>,
    /// Gid ranges; one of them contains id 0.
    pub gids: Vec<IdMapping>,
}

impl UserNamespace {
    /// Uid and gid on the host of root in the namespace.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((IdMapping::on_host(&self.uids, 0)?, IdMapping::on_host(&self.gids, 0)?))
    }
}

/// The user before the image's passwd is consulted. Precedence: `uid`, `username`, the image's User.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// run_as_user.
    pub uid: Option<u32>,
    /// run_as_group; needs a user.
    pub gid: Option<u32>,
    /// run_as_username.
    pub username: Option<String>,
    /// supplemental_groups.
    pub supplemental_groups: Vec<u32>,
    /// Whether the image's group memberships are added.
    pub groups_policy: GroupsPolicy,
}

/// The role of the image's /etc/group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupsPolicy {
    /// Adds group memberships of the image to the requested ones.
    #[default]
    Merge,
    /// Only those asked for.
    Strict,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No confinement (also the meaning of an absent seccomp profile in CRI).
    #[default]
    Unconfined,
    /// podwright's own default.
    RuntimeDefault,
    /// A profile on the node: a file path (seccomp) or a loaded profile's name (AppArmor).
    Localhost(String),
}

/// SELinux label parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// user part.
    pub user: String,
    /// role part.
    pub role: String,
    /// type part.
    pub kind: String,
    /// level part.
    pub level: String,
}

/// Capabilities to add to and drop from the configured default set; names with or without `CAP_`, or `ALL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped; `ALL` first empties the default set.
    pub drop: Vec<String>,
    /// Added to the ambient set too.
    pub add_ambient: Vec<String>,
}

/// A sandbox's requested security context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSecurity {
    /// A privileged container needs a privileged sandbox.
    pub privileged: bool,
    /// Seccomp of the sandbox (there is no pause process; kept for the record).
    pub seccomp: Profile,
    /// SELinux label of the pod.
    pub selinux: Option<SelinuxOptions>,
}

/// A container's requested security context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Namespaces; network and ipc follow the sandbox's.
    pub namespaces: Namespaces,
    /// User and groups.
    pub run_as: RunAs,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// The root file system is mounted read-only.
    pub readonly_rootfs: bool,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Paths hidden from the container, exactly as sent.
    pub masked_paths: Vec<PathBuf>,
    /// Read-only paths, exactly as sent.
    pub readonly_paths: Vec<PathBuf>,
    /// Seccomp profile.
    pub seccomp: Profile,
    /// AppArmor profile; None: not requested.
    pub apparmor: Option<Profile>,
    /// SELinux label.
    pub selinux: Option<SelinuxOptions>,
}
