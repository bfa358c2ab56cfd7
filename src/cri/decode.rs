//! Requests into the domain's words. All validation of what a client sends stands here: a message that decodes is
//! one that the domain can act on. Never touches the host.

use super::proto as pb;
use crate::model::{
    Capabilities, ContainerId, ContainerSecurity, ContainerSpec, Device, DnsConfig, GroupsPolicy,
    HugepageLimit, IdMapping, ImageRequest, ImageVolume, Mount, MountSource, NamespaceMode, Namespaces,
    PodName, PortMapping, Profile, Propagation, Protocol, Resources, RunAs, SandboxId, SandboxSecurity,
    SandboxSpec, SelinuxOptions, Timestamp, UserNamespace,
};
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

/// A field that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Dotted path of the field in the request.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

type Checked<T> = Result<T, Invalid>;

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Checked<T> {
    Err(Invalid { field, problem: problem.into() })
}

/// Longest name that becomes part of a reserved name or a CNI argument. Kubernetes' own limit is 253.
const MAX_NAME: usize = 512;
/// Linux's limit on a host name.
const MAX_HOSTNAME: usize = 64;

fn name(field: &'static str, value: &str) -> Checked<String> {
    if value.is_empty() {
        return invalid(field, "is empty");
    }
    if value.len() > MAX_NAME {
        return invalid(field, format!("is longer than {MAX_NAME} bytes"));
    }
    if value.contains(['/', '\0', '\n']) || value == "." || value == ".." {
        return invalid(field, format!("{value:?} has a slash, a line break or is a dot name"));
    }
    Ok(value.to_owned())
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

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
    let Some(metadata) = config.metadata else { return invalid("config.metadata", "is missing") };
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let namespaces = namespaces(context.namespace_options)?;
    if matches!(namespaces.pid, NamespaceMode::Target(_)) {
        return invalid(
            "config.linux.security_context.namespace_options.pid",
            "a sandbox cannot have mode TARGET",
        );
    }
    let host_network = namespaces.network == NamespaceMode::Node;
    Ok(SandboxSpec {
        id,
        name: PodName {
            name: name("config.metadata.name", &metadata.name)?,
            namespace: name("config.metadata.namespace", &metadata.namespace)?,
            uid: name("config.metadata.uid", &metadata.uid)?,
            attempt: metadata.attempt,
        },
        created_at,
        hostname: hostname(config.hostname, host_network)?,
        log_directory: optional_path("config.log_directory", &config.log_directory)?,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: if host_network { Vec::new() } else { ports(config.port_mappings)? },
        labels: sorted(config.labels),
        annotations: sorted(config.annotations),
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
            selinux: context.selinux_options.map(selinux),
        },
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
    })
}

fn hostname(hostname: String, host_network: bool) -> Checked<String> {
    if host_network {
        return Ok(String::new());
    }
    if hostname.len() > MAX_HOSTNAME || hostname.contains(['\0', '\n', '/', ' ']) {
        return invalid(
            "config.hostname",
            format!("{hostname:?} is no host name of at most {MAX_HOSTNAME} bytes"),
        );
    }
    Ok(hostname)
}

fn dns(config: pb::DnsConfig) -> Checked<DnsConfig> {
    let all = config.servers.iter().chain(&config.searches).chain(&config.options);
    for entry in all {
        if entry.contains(['\n', '\0']) {
            return invalid("config.dns_config", format!("{entry:?} has a line break"));
        }
    }
    Ok(DnsConfig { servers: config.servers, searches: config.searches, options: config.options })
}

fn ports(mappings: Vec<pb::PortMapping>) -> Checked<Vec<PortMapping>> {
    const FIELD: &str = "config.port_mappings";
    let mut ports = Vec::new();
    // A host port of 0 or less means that the pod only tells its port.
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
    if plain && !parent.contains('\0') {
        Ok(parent)
    } else {
        invalid("config.linux.cgroup_parent", format!("{parent:?} has a dot component"))
    }
}

/// Namespaced sysctls, as both peers and the kubelet know them.
fn sysctls(asked: HashMap<String, String>, namespaces: &Namespaces) -> Checked<BTreeMap<String, String>> {
    const FIELD: &str = "config.linux.sysctls";
    for (key, value) in &asked {
        let dotted = key.replace('/', ".");
        let well_formed = !dotted.is_empty()
            && dotted.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !dotted.split('.').any(str::is_empty);
        if !well_formed || value.contains('\0') {
            return invalid(FIELD, format!("{key:?} is no sysctl name"));
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

fn namespaces(options: Option<pb::NamespaceOption>) -> Checked<Namespaces> {
    let options = options.unwrap_or_default();
    Ok(Namespaces {
        network: mode("namespace_options.network", options.network, "")?,
        pid: mode("namespace_options.pid", options.pid, &options.target_id)?,
        ipc: mode("namespace_options.ipc", options.ipc, "")?,
        user: user_namespace(options.userns_options)?,
    })
}

fn mode(field: &'static str, mode: i32, target: &str) -> Checked<NamespaceMode> {
    Ok(match pb::NamespaceMode::try_from(mode) {
        Ok(pb::NamespaceMode::Pod) => NamespaceMode::Pod,
        Ok(pb::NamespaceMode::Container) => NamespaceMode::Container,
        Ok(pb::NamespaceMode::Node) => NamespaceMode::Node,
        Ok(pb::NamespaceMode::Target) => match ContainerId::parse(target) {
            Ok(id) => NamespaceMode::Target(id),
            Err(error) => return invalid("namespace_options.target_id", error.to_string()),
        },
        Err(_) => return invalid(field, format!("mode {mode} is unknown")),
    })
}

fn user_namespace(options: Option<pb::UserNamespace>) -> Checked<Option<UserNamespace>> {
    const FIELD: &str = "namespace_options.userns_options";
    let Some(options) = options else { return Ok(None) };
    match pb::NamespaceMode::try_from(options.mode) {
        Ok(pb::NamespaceMode::Node) => Ok(None),
        // Running without would give less isolation than was asked for. Status tells that no handler has them.
        Ok(pb::NamespaceMode::Pod) => invalid(FIELD, "user namespaces are not supported by this version"),
        Ok(pb::NamespaceMode::Container | pb::NamespaceMode::Target) | Err(_) => {
            invalid(FIELD, "only the modes POD and NODE are supported")
        }
    }
}

fn id_mappings(field: &'static str, mappings: &[pb::IdMapping]) -> Checked<Vec<IdMapping>> {
    mappings
        .iter()
        .map(|m| {
            let fits =
                m.host_id.checked_add(m.length).is_some() && m.container_id.checked_add(m.length).is_some();
            if m.length == 0 || !fits {
                return invalid(
                    field,
                    format!("mapping of {} ids from {} is out of range", m.length, m.host_id),
                );
            }
            Ok(IdMapping { host_id: m.host_id, container_id: m.container_id, length: m.length })
        })
        .collect()
}

fn seccomp(field: &'static str, profile: Option<pb::SecurityProfile>, old_path: &str) -> Checked<Profile> {
    if let Some(profile) = profile {
        return security_profile(field, profile);
    }
    // The field before 1.19: `localhost/<path>`, `runtime/default`, `docker/default`, `unconfined`.
    Ok(match old_path {
        "" | "unconfined" => Profile::Unconfined,
        "runtime/default" | "docker/default" => Profile::RuntimeDefault,
        path => match path.strip_prefix("localhost/") {
            Some(path) => Profile::Localhost(path.to_owned()),
            None => return invalid(field, format!("profile {path:?} is of no known kind")),
        },
    })
}

fn security_profile(field: &'static str, profile: pb::SecurityProfile) -> Checked<Profile> {
    use pb::security_profile::ProfileType;
    Ok(match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Profile::RuntimeDefault,
        Ok(ProfileType::Unconfined) => Profile::Unconfined,
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => {
            return invalid(field, "a Localhost profile needs localhost_ref");
        }
        Ok(ProfileType::Localhost) => {
            let reference = profile.localhost_ref;
            Profile::Localhost(reference.strip_prefix("localhost/").unwrap_or(&reference).to_owned())
        }
        Err(_) => return invalid(field, format!("profile type {} is unknown", profile.profile_type)),
    })
}

fn selinux(options: pb::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions { user: options.user, role: options.role, kind: options.r#type, level: options.level }
}

/// Limits, also of an update.
#[must_use]
pub fn resources(r: pb::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit: r.memory_limit_in_bytes,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus,
        cpuset_mems: r.cpuset_mems,
        hugepage_limits: r
            .hugepage_limits
            .into_iter()
            .map(|h| HugepageLimit { page_size: h.page_size, limit: h.limit })
            .collect(),
        unified: sorted(r.unified),
    }
}

/// UpdateContainerResources; absent limits change nothing.
///
/// # Errors
/// Names the field that is wrong.
pub fn update(linux: Option<pb::LinuxContainerResources>) -> Checked<Resources> {
    check_resources(resources(linux.unwrap_or_default()))
}

fn check_resources(resources: Resources) -> Checked<Resources> {
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        let value = resources.oom_score_adj;
        return invalid("config.linux.resources.oom_score_adj", format!("{value} is not in -1000 to 1000"));
    }
    for (field, value) in [
        ("config.linux.resources.memory_limit_in_bytes", resources.memory_limit),
        ("config.linux.resources.cpu_period", resources.cpu_period),
        ("config.linux.resources.cpu_shares", resources.cpu_shares),
    ] {
        if value < 0 {
            return invalid(field, format!("{value} is negative"));
        }
    }
    Ok(resources)
}

/// CreateContainer. `image` was resolved by the caller, since only the image store knows it.
///
/// # Errors
/// Names the field that is wrong.
pub fn container(
    config: pb::ContainerConfig,
    pod: &SandboxSpec,
    image: ImageRequest,
    id: ContainerId,
    created_at: Timestamp,
) -> Checked<ContainerSpec> {
    let Some(metadata) = config.metadata else { return invalid("config.metadata", "is missing") };
    let linux = config.linux.unwrap_or_default();
    let log_path = match (&pod.log_directory, config.log_path.as_str()) {
        (None, _) | (_, "") => None,
        (Some(dir), relative) => Some(dir.join(relative_path("config.log_path", relative)?)),
    };
    Ok(ContainerSpec {
        id,
        sandbox_id: pod.id.clone(),
        name: name("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
        created_at,
        image,
        command: without_nul("config.command", config.command)?,
        args: without_nul("config.args", config.args)?,
        working_dir: config.working_dir,
        envs: envs(config.envs)?,
        mounts: config.mounts.into_iter().map(mount).collect::<Checked<_>>()?,
        devices: config.devices.into_iter().map(device).collect::<Checked<_>>()?,
        cdi_devices: cdi_devices(&config.cdi_devices)?,
        labels: sorted(config.labels),
        annotations: sorted(config.annotations),
        log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: check_resources(linux.resources.map(resources).unwrap_or_default())?,
        security: container_security(linux.security_context.unwrap_or_default())?,
        stop_signal: stop_signal(config.stop_signal)?,
    })
}

fn without_nul(field: &'static str, words: Vec<String>) -> Checked<Vec<String>> {
    match words.iter().find(|w| w.contains('\0')) {
        Some(word) => invalid(field, format!("{word:?} has a NUL byte")),
        None => Ok(words),
    }
}

fn envs(envs: Vec<pb::KeyValue>) -> Checked<Vec<(String, String)>> {
    const FIELD: &str = "config.envs";
    envs.into_iter()
        .map(|kv| {
            let value = match String::from_utf8(kv.value) {
                Ok(value) => value,
                Err(_) => return invalid(FIELD, format!("the value of {:?} is not UTF-8", kv.key)),
            };
            if kv.key.is_empty() || kv.key.contains(['=', '\0', '\n']) || value.contains('\0') {
                return invalid(FIELD, format!("{:?} is no environment variable", kv.key));
            }
            Ok((kv.key, value))
        })
        .collect()
}

fn mount(m: pb::Mount) -> Checked<Mount> {
    const FIELD: &str = "config.mounts";
    let container_path = absolute(FIELD, &m.container_path)?;
    let source = match m.image {
        Some(image) if !image.image.is_empty() => {
            if !m.host_path.is_empty() {
                return invalid(
                    FIELD,
                    format!("{}: image and host_path exclude each other", m.container_path),
                );
            }
            MountSource::Image(Box::new(ImageVolume {
                image: image.image,
                user_specified: image.user_specified_image,
                sub_path: m.image_sub_path,
                resolved: None,
            }))
        }
        Some(_) | None => MountSource::Host(absolute(FIELD, &m.host_path)?),
    };
    Ok(Mount {
        container_path,
        source,
        readonly: m.readonly,
        recursive_read_only: m.recursive_read_only,
        selinux_relabel: m.selinux_relabel,
        propagation: match pb::MountPropagation::try_from(m.propagation) {
            Ok(pb::MountPropagation::PropagationPrivate) => Propagation::Private,
            Ok(pb::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
            Ok(pb::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
            Err(_) => return invalid(FIELD, format!("propagation {} is unknown", m.propagation)),
        },
        uid_mappings: id_mappings(FIELD, &m.uid_mappings)?,
        gid_mappings: id_mappings(FIELD, &m.gid_mappings)?,
        options: m.mount_options,
    })
}

fn device(d: pb::Device) -> Checked<Device> {
    const FIELD: &str = "config.devices";
    if d.permissions.is_empty() || !d.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return invalid(
            FIELD,
            format!("permissions {:?} of {} are not of r, w, m", d.permissions, d.host_path),
        );
    }
    Ok(Device {
        container_path: absolute(FIELD, &d.container_path)?,
        host_path: absolute(FIELD, &d.host_path)?,
        permissions: d.permissions,
    })
}

/// A container that asked for a device must not run without it.
fn cdi_devices(devices: &[pb::CdiDevice]) -> Checked<Vec<String>> {
    match devices.first() {
        None => Ok(Vec::new()),
        Some(device) => invalid(
            "config.CDI_devices",
            format!("{}: CDI devices are not supported by this version", device.name),
        ),
    }
}

fn absolute(field: &'static str, path: &str) -> Checked<PathBuf> {
    if !path.starts_with('/') || path.contains('\0') {
        return invalid(field, format!("{path:?} is not an absolute path"));
    }
    Ok(PathBuf::from(path))
}

fn optional_path(field: &'static str, path: &str) -> Checked<Option<PathBuf>> {
    if path.is_empty() { Ok(None) } else { absolute(field, path).map(Some) }
}

fn relative_path(field: &'static str, path: &str) -> Checked<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        && !path.contains('\0')
    {
        Ok(relative.to_owned())
    } else {
        invalid(field, format!("{path:?} leaves the log directory"))
    }
}

fn uid(field: &'static str, value: Option<pb::Int64Value>) -> Checked<Option<u32>> {
    value.map(|v| one_uid(field, v.value)).transpose()
}

fn one_uid(field: &'static str, value: i64) -> Checked<u32> {
    // 2^32-1 is the kernel's "no id".
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => invalid(field, format!("{value} is not in 0 to 4294967294")),
    }
}

fn container_security(context: pb::LinuxContainerSecurityContext) -> Checked<ContainerSecurity> {
    let username = context.run_as_username;
    let run_as = RunAs {
        uid: uid("config.linux.security_context.run_as_user", context.run_as_user)?,
        gid: uid("config.linux.security_context.run_as_group", context.run_as_group)?,
        username: Some(username).filter(|u| !u.is_empty()),
        supplemental_groups: context
            .supplemental_groups
            .into_iter()
            .map(|g| one_uid("config.linux.security_context.supplemental_groups", g))
            .collect::<Checked<_>>()?,
        groups_policy: match pb::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
            Ok(pb::SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
            Ok(pb::SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
            Err(_) => {
                return invalid("config.linux.security_context.supplemental_groups_policy", "is unknown");
            }
        },
    };
    if run_as.gid.is_some() && run_as.uid.is_none() && run_as.username.is_none() {
        return invalid(
            "config.linux.security_context.run_as_group",
            "needs run_as_user or run_as_username beside it",
        );
    }
    let capabilities = context.capabilities.unwrap_or_default();
    #[allow(deprecated)]
    let (old_seccomp, old_apparmor) = (context.seccomp_profile_path, context.apparmor_profile);
    Ok(ContainerSecurity {
        privileged: context.privileged,
        namespaces: namespaces(context.namespace_options)?,
        run_as,
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: context.masked_paths.into_iter().map(PathBuf::from).collect(),
        readonly_paths: context.readonly_paths.into_iter().map(PathBuf::from).collect(),
        seccomp: seccomp("config.linux.security_context.seccomp", context.seccomp, &old_seccomp)?,
        apparmor: apparmor(context.apparmor, &old_apparmor)?,
        selinux: context.selinux_options.map(selinux),
    })
}

fn apparmor(profile: Option<pb::SecurityProfile>, old: &str) -> Checked<Option<Profile>> {
    const FIELD: &str = "config.linux.security_context.apparmor";
    if let Some(profile) = profile {
        return security_profile(FIELD, profile).map(Some);
    }
    Ok(match old {
        "" => None,
        "runtime/default" => Some(Profile::RuntimeDefault),
        "unconfined" => Some(Profile::Unconfined),
        name => match name.strip_prefix("localhost/") {
            Some(name) => Some(Profile::Localhost(name.to_owned())),
            None => return invalid(FIELD, format!("profile {name:?} is of no known kind")),
        },
    })
}

/// CRI's signal to Linux's number; None: the runtime's default.
fn stop_signal(signal: i32) -> Checked<Option<i32>> {
    let Ok(signal) = pb::Signal::try_from(signal) else {
        return invalid("config.stop_signal", format!("{signal} is unknown"));
    };
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    if signal == pb::Signal::RuntimeDefault {
        return Ok(None);
    }
    match crate::host::oci::signal_number(&name.replace("PLUS", "+").replace("MINUS", "-")) {
        Some(number) => Ok(Some(number)),
        None => invalid("config.stop_signal", format!("{name} is not known on Linux")),
    }
}
