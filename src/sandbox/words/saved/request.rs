//! What was requested: `spec.json` of pods and containers.

use super::{Saved, structure, variants};
use crate::model::{self as live, ContainerId, ImageId, SandboxId, Timestamp};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

structure! {
    live::SandboxSpec { id: SandboxId, name: PodName, created_at: Timestamp }
    else default {
        hostname: String,
        log_directory: Option<PathBuf>,
        dns: Option<DnsConfig>,
        port_mappings: Vec<PortMapping>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        runtime_handler: String,
        cgroup_parent: String,
        namespaces: Namespaces,
        sysctls: BTreeMap<String, String>,
        security: SandboxSecurity,
        #[serde(skip_serializing_if = "Option::is_none")]
        selinux_level: Option<String>,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    }
}

structure! { live::PodName { name: String, namespace: String, uid: String } else default { attempt: u32 } }

structure! {
    live::DnsConfig {} else default { servers: Vec<String>, searches: Vec<String>, options: Vec<String> }
}

variants! { live::Protocol { Tcp, Udp, Sctp, } }

structure! {
    live::PortMapping { protocol: Protocol, container_port: u16, host_port: u16 }
    else default { host_ip: Option<IpAddr> }
}

structure! {
    live::ContainerSpec {
        id: ContainerId,
        sandbox_id: SandboxId,
        name: String,
        created_at: Timestamp,
        image: ImageRequest,
    }
    else default {
        attempt: u32,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        envs: Vec<(String, String)>,
        mounts: Vec<Mount>,
        devices: Vec<Device>,
        cdi_devices: Vec<String>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        log_path: Option<PathBuf>,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        resources: Resources,
        security: ContainerSecurity,
        stop_signal: Option<i32>,
        restore: Option<Restore>,
    }
}

/// The checkpoint that a container continues from.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::sandbox) enum Restore {
    Directory(PathBuf),
    Archive(PathBuf),
    Image(ImageId),
    /// As long as there were only directories.
    #[serde(untagged)]
    Path(PathBuf),
}

impl Saved<live::Restore> for Restore {
    fn save(live: &live::Restore) -> Self {
        match live.clone() {
            live::Restore::Directory(path) => Self::Directory(path),
            live::Restore::Archive(path) => Self::Archive(path),
            live::Restore::Image(id) => Self::Image(id),
        }
    }

    fn live(self) -> live::Restore {
        match self {
            Self::Directory(path) | Self::Path(path) => live::Restore::Directory(path),
            Self::Archive(path) => live::Restore::Archive(path),
            Self::Image(id) => live::Restore::Image(id),
        }
    }
}

structure! {
    live::ImageRequest { id: ImageId }
    else default { requested: String, user_specified: String, reference: String, display: String }
}

variants! {
    #[derive(Default)]
    live::Propagation { #[default] Private, HostToContainer, Bidirectional, }
}

structure! { live::IdMapping { host_id: u32, container_id: u32, length: u32 } }

variants! { live::MountSource { Host(path: PathBuf), Image(volume: Box<ImageVolume>), } }

structure! {
    live::ImageVolume { image: String }
    else default { user_specified: String, sub_path: String, resolved: Option<ResolvedImage> }
}

structure! { live::ResolvedImage { id: ImageId } else default { reference: String } }

structure! {
    live::Mount { container_path: PathBuf, source: MountSource }
    else default {
        readonly: bool,
        recursive_read_only: bool,
        selinux_relabel: bool,
        propagation: Propagation,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        options: Vec<String>,
    }
}

structure! { live::Device { container_path: PathBuf, host_path: PathBuf } else default { permissions: String } }

structure! {
    #[derive(Default)]
    live::Resources {}
    else default {
        cpu_period: i64,
        cpu_quota: i64,
        cpu_shares: i64,
        memory_limit: i64,
        memory_swap_limit: i64,
        oom_score_adj: i64,
        cpuset_cpus: String,
        cpuset_mems: String,
        hugepage_limits: Vec<HugepageLimit>,
        unified: BTreeMap<String, String>,
    }
}

structure! { live::HugepageLimit { page_size: String, limit: u64 } }

variants! {
    #[derive(Default)]
    live::NamespaceMode { #[default] Pod, Container, Node, Target(id: ContainerId), }
}

structure! {
    #[derive(Default)]
    live::Namespaces {}
    else default {
        network: NamespaceMode,
        pid: NamespaceMode,
        ipc: NamespaceMode,
        user: Option<UserNamespace>,
    }
}

structure! { live::UserNamespace { uids: Vec<IdMapping>, gids: Vec<IdMapping> } }

structure! {
    #[derive(Default)]
    live::RunAs {}
    else default {
        uid: Option<u32>,
        gid: Option<u32>,
        username: Option<String>,
        supplemental_groups: Vec<u32>,
        groups_policy: GroupsPolicy,
    }
}

variants! {
    #[derive(Default)]
    live::GroupsPolicy { #[default] Merge, Strict, }
}

variants! {
    #[derive(Default)]
    live::Profile { #[default] Unconfined, RuntimeDefault, Localhost(name: String), }
}

structure! {
    live::SelinuxOptions {} else default { user: String, role: String, kind: String, level: String }
}

structure! {
    #[derive(Default)]
    live::Capabilities {}
    else default { add: Vec<String>, drop: Vec<String>, add_ambient: Vec<String> }
}

structure! {
    #[derive(Default)]
    live::SandboxSecurity {}
    else default { privileged: bool, seccomp: Profile, selinux: Option<SelinuxOptions> }
}

structure! {
    #[derive(Default)]
    live::ContainerSecurity {}
    else default {
        privileged: bool,
        namespaces: Namespaces,
        run_as: RunAs,
        capabilities: Capabilities,
        readonly_rootfs: bool,
        no_new_privs: bool,
        masked_paths: Vec<PathBuf>,
        readonly_paths: Vec<PathBuf>,
        seccomp: Profile,
        apparmor: Option<Profile>,
        selinux: Option<SelinuxOptions>,
    }
}
