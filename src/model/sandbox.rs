//! A pod sandbox as requested.

use super::{Namespaces, Resources, SandboxId, SandboxSecurity, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// The kubelet's name of one attempt at a pod; unique on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Attempt, from 0.
    pub attempt: u32,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// A checked RunPodSandbox request, with the assigned id and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The sandbox's id.
    pub id: SandboxId,
    /// Its reserved name.
    pub name: PodName,
    /// Creation time.
    pub created_at: Timestamp,
    /// Host name in the pod; empty only for host network.
    pub hostname: String,
    /// Directory of the pod's container logs; None: no logs.
    pub log_directory: Option<PathBuf>,
    /// None: the host's resolv.conf is copied.
    pub dns: Option<DnsConfig>,
    /// Host port mappings with a host port.
    pub port_mappings: Vec<PortMapping>,
    /// Byte-identical in every answer.
    pub labels: BTreeMap<String, String>,
    /// Byte-identical in every answer.
    pub annotations: BTreeMap<String, String>,
    /// Runtime handler as requested; empty: the default.
    pub runtime_handler: String,
    /// Cgroup parent in the driver's form; empty: none.
    pub cgroup_parent: String,
    /// Namespaces of the pod.
    pub namespaces: Namespaces,
    /// Sysctls to set in the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Security context.
    pub security: SandboxSecurity,
    /// SELinux level of its containers and files, requested or assigned; None: the node had no SELinux at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_level: Option<String>,
    /// Pod overhead.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources.
    pub resources: Option<Resources>,
}

/// resolv.conf of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// nameserver lines.
    pub servers: Vec<String>,
    /// search domains.
    pub searches: Vec<String>,
    /// options.
    pub options: Vec<String>,
}

/// Transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the pod, 1 to 65535.
    pub container_port: u16,
    /// Port on the host, 1 to 65535.
    pub host_port: u16,
    /// None: all addresses.
    pub host_ip: Option<IpAddr>,
}
