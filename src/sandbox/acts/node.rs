//! The mechanisms shared by all pods. Holds handles and does nothing: what an act needs of them it takes.

use super::execs::Execs;
use super::handlers::Handlers;
use super::metrics::PodMetrics;
use super::places::Places;
use super::pod_cgroups::PodCgroups;
use super::records::Records;
use super::trials::UserNamespaces;
use super::writable::WritableLayers;
use crate::config::Config;
use crate::host::foreign::Foreign;
use crate::host::network::Network;
use crate::host::security::apparmor::AppArmor;
use crate::host::security::selinux::Selinux;
use crate::images::Images;
use crate::model::Clock;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything below the domain, wired once in `daemon`.
#[derive(Debug)]
pub struct Node {
    /// Configuration.
    pub config: Config,
    /// Directories.
    pub places: Places,
    /// Records.
    pub records: Records,
    /// CNI.
    pub network: Network,
    /// Images.
    pub images: Images,
    /// OCI runtimes.
    pub handlers: Handlers,
    /// Cgroups.
    pub cgroups: PodCgroups,
    /// AppArmor profiles.
    pub apparmor: AppArmor,
    /// SELinux, if containers are labelled.
    pub selinux: Option<Selinux>,
    /// The monitor's program.
    pub monitor_binary: PathBuf,
    /// Timestamps.
    pub clock: Clock,
    /// Step times.
    pub metrics: PodMetrics,
    /// Threads for paths of the host that requests name.
    pub foreign: Foreign,
    /// Usage of writable layers.
    pub layers: Arc<WritableLayers>,
    /// Commands in containers.
    pub execs: Execs,
    /// Whether pods can have user namespaces.
    pub user_namespaces: UserNamespaces,
}
