//! RunPodSandbox: a PodSandboxConfig into a [`SandboxSpec`].

use super::resources::resources;
use super::security::{check_user_namespace, namespaces, seccomp, selinux};
use super::{Checked, MAX_PATH, container_path, invalid, metadata, pod_name, shown, sorted};
use crate::cri::proto as pb;
use crate::model::{
    DnsConfig, NamespaceMode, Namespaces, PodName, PortMapping, Protocol, SandboxId, SandboxSecurity,
    SandboxSpec, Timestamp,
};
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

/// Linux's limit on a host name.
const MAX_HOSTNAME: usize = 64;
/// Linux's NAME_MAX, the limit of a cgroup's name.
const MAX_FILE_NAME: usize = 255;
/// Leaves room in a path for the hierarchy above it and the container's cgroup below it.
const MAX_CGROUP_PARENT: usize = MAX_PATH / 2;

/// Bytes of a pod's resolv.conf, which lies in memory. Kubernetes allows 3 servers and 2 KiB of search domains.
const MAX_DNS: usize = 64 << 10;

/// RunPodSandbox.
///
/// # Errors
/// Names the field that is wrong.
pub fn sandbox(
    config: Option<pb::PodSandboxConfig>,
    runtime_handler: String,
    id: SandboxId,
    created_at: Timestamp,
) -> Checked<SandboxSpec> {
    let Some(config) = config else { return invalid("config", "is missing") };
    let Some(names) = config.metadata else { return invalid("config.metadata", "is missing") };
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let namespaces = namespaces(context.namespace_options)?;
    if matches!(namespaces.pid, NamespaceMode::Target(_)) {
        return invalid(
            "config.linux.security_context.namespace_options.pid",
            "a sandbox cannot have mode TARGET",
        );
    }
    check_user_namespace(&namespaces)?;
    let host_network = namespaces.network == NamespaceMode::Node;
    Ok(SandboxSpec {
        id,
        name: PodName {
            name: pod_name("config.metadata.name", &names.name)?,
            namespace: pod_name("config.metadata.namespace", &names.namespace)?,
            uid: pod_name("config.metadata.uid", &names.uid)?,
            attempt: names.attempt,
        },
        created_at,
        hostname: hostname(config.hostname, host_network)?,
        log_directory: log_directory(&config.log_directory)?,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: if host_network { Vec::new() } else { ports(config.port_mappings)? },
        labels: metadata("config.labels", config.labels)?,
        annotations: metadata("config.annotations", config.annotations)?,
        runtime_handler,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        sysctls: sysctls(linux.sysctls, &namespaces)?,
        namespaces,
        security: SandboxSecurity {
            privileged: context.privileged,
            seccomp: seccomp(
                "config.linux.security_context.seccomp",
                context.seccomp,
                #[allow(deprecated)]
                &context.seccomp_profile_path,
            )?,
            selinux: selinux("config.linux.security_context.selinux_options", context.selinux_options)?,
        },
        // Set by the caller, who knows the other pods.
        selinux_level: None,
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
    })
}

fn log_directory(path: &str) -> Checked<Option<PathBuf>> {
    if path.is_empty() { Ok(None) } else { container_path("config.log_directory", path).map(Some) }
}

fn hostname(hostname: String, host_network: bool) -> Checked<String> {
    if host_network {
        return Ok(String::new());
    }
    if hostname.len() > MAX_HOSTNAME
        || hostname.contains(|c: char| c.is_ascii_control() || matches!(c, '/' | ' '))
    {
        return invalid(
            "config.hostname",
            format!("{hostname:?} is no host name of at most {MAX_HOSTNAME} bytes"),
        );
    }
    Ok(hostname)
}

fn dns(config: pb::DnsConfig) -> Checked<DnsConfig> {
    let all = || config.servers.iter().chain(&config.searches).chain(&config.options);
    let bytes: usize = all().map(|entry| entry.len() + "nameserver \n".len()).sum();
    if bytes > MAX_DNS {
        return invalid("config.dns_config", format!("has {bytes} bytes, more than {MAX_DNS}"));
    }
    for entry in all() {
        if entry.contains(|c: char| c.is_ascii_control()) {
            return invalid("config.dns_config", format!("{entry:?} has a control character"));
        }
    }
    Ok(DnsConfig { servers: config.servers, searches: config.searches, options: config.options })
}

fn ports(mappings: Vec<pb::PortMapping>) -> Checked<Vec<PortMapping>> {
    const FIELD: &str = "config.port_mappings";
    let mut ports = Vec::new();
    // With a host port of 0 or less the pod only declares its port.
    for mapping in mappings.into_iter().filter(|m| m.host_port > 0) {
        let port = |value: i32| match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => invalid(FIELD, format!("port {value} is not in 1 to 65535")),
        };
        ports.push(PortMapping {
            protocol: match pb::Protocol::try_from(mapping.protocol) {
                Ok(pb::Protocol::Tcp) => Protocol::Tcp,
                Ok(pb::Protocol::Udp) => Protocol::Udp,
                Ok(pb::Protocol::Sctp) => Protocol::Sctp,
                Err(_) => return invalid(FIELD, format!("protocol {} is unknown", mapping.protocol)),
            },
            container_port: port(mapping.container_port)?,
            host_port: port(mapping.host_port)?,
            host_ip: match mapping.host_ip.as_str() {
                "" => None,
                ip => match ip.parse() {
                    Ok(ip) => Some(ip),
                    Err(_) => return invalid(FIELD, format!("host_ip {ip:?} is no IP address")),
                },
            },
        });
    }
    Ok(ports)
}

fn cgroup_parent(parent: String) -> Checked<String> {
    let plain =
        Path::new(&parent).components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let field = "config.linux.cgroup_parent";
    if !plain || parent.contains('\0') {
        return invalid(field, format!("{:?} has a dot component", shown(&parent)));
    }
    if parent.len() > MAX_CGROUP_PARENT || parent.split('/').any(|part| part.len() > MAX_FILE_NAME) {
        return invalid(field, format!("{:?}… or a part of it is too long", shown(&parent)));
    }
    Ok(parent)
}

/// Namespaced sysctls, the same set as in containerd, CRI-O and the kubelet.
fn sysctls(asked: HashMap<String, String>, namespaces: &Namespaces) -> Checked<BTreeMap<String, String>> {
    const FIELD: &str = "config.linux.sysctls";
    for (key, value) in &asked {
        let dotted = key.replace('/', ".");
        let well_formed = !dotted.is_empty()
            && dotted.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !dotted.split('.').any(str::is_empty);
        if !well_formed {
            return invalid(FIELD, format!("{:?} is no sysctl name", shown(key)));
        }
        if value.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return invalid(FIELD, format!("the value of {key} has a control character"));
        }
        let of_ipc = dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted == "kernel.sem"
            || dotted.starts_with("fs.mqueue.");
        let of_net = dotted.starts_with("net.");
        match (of_net, of_ipc) {
            (true, _) if namespaces.network == NamespaceMode::Node => {
                return invalid(
                    FIELD,
                    format!("{key} would change the host: the pod uses the host's network"),
                );
            }
            (_, true) if namespaces.ipc == NamespaceMode::Node => {
                return invalid(FIELD, format!("{key} would change the host: the pod uses the host's IPC"));
            }
            (false, false) => {
                return invalid(FIELD, format!("{key} is not namespaced and would change the host"));
            }
            (true, _) | (_, true) => {}
        }
    }
    Ok(sorted(asked))
}
