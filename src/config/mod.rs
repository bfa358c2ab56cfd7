//! The daemon's configuration: every path, limit and deadline, with its default. There are no defaults elsewhere.
//!
//! Owns the key names (docs/configuration.md is checked against them) and the loader. Never opens what it names.

mod limits;
mod load;

pub use limits::{Ulimit, annotation_fits, bytes};
pub use load::{ConfigError, load};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where `serve` looks when `--config` is not given; absent is fine.
pub const DEFAULT_FILE: &str = "/etc/podwright/config.toml";
/// Drop-ins in a directory beside the file: `config.toml` has `config.toml.d/*.toml`, read in byte order.
pub const DROP_IN_SUFFIX: &str = ".d";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Durable state: images, records, writable layers.
    pub root: PathBuf,
    /// State that dies with the machine: bundles, mounts, sockets.
    pub state: PathBuf,
    /// The CRI socket.
    pub grpc: Grpc,
    /// Logging.
    pub log: Log,
    /// The pod monitor.
    pub monitor: Monitor,
    /// OCI runtimes.
    pub runtime: Runtime,
    /// Cgroups.
    pub cgroups: Cgroups,
    /// Container defaults.
    pub containers: Containers,
    /// CNI.
    pub network: Network,
    /// Images and registries.
    pub images: Images,
    /// Exec, attach and port-forward.
    pub streaming: Streaming,
    /// Prometheus.
    pub metrics: Metrics,
}

/// `[grpc]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Unix socket of both CRI services.
    pub socket: PathBuf,
    /// Group of the socket.
    pub socket_gid: u32,
    /// Mode of the socket, in octal digits.
    pub socket_mode: String,
    /// Largest message in either direction, bytes. The kubelet's own limit is 16 MiB.
    pub max_message_bytes: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// tracing filter: `info`, `podwright=debug,warn`.
    pub level: String,
    /// Text or JSON lines.
    pub format: LogFormat,
}

/// Format of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// `[monitor]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// Path of podwright-monitor; empty: beside the daemon's own binary, else in /usr/libexec/podwright.
    pub binary: PathBuf,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// The handler for pods that name none; empty: the first of crun, runc that passes the start-up probe.
    pub default: String,
    /// Seconds that one call of the OCI runtime may take.
    pub timeout_seconds: u64,
    /// RuntimeClass handlers by name.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[runtime.handlers.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// Program, absolute or looked up in PATH; empty: the handler's name.
    pub path: PathBuf,
    /// The runtime's state directory; empty: `<state>/runtime/<handler>`.
    pub root: PathBuf,
    /// Global arguments before the subcommand.
    pub args: Vec<String>,
    /// Annotations of pods that the OCI runtime sees, by name; a final `*` stands for any rest.
    pub pod_annotations: Vec<String>,
    /// Annotations of containers that it sees, the same.
    pub container_annotations: Vec<String>,
    /// Give privileged containers no devices of the host.
    pub privileged_without_host_devices: bool,
}

/// `[cgroups]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroups {
    /// Who makes cgroups; must be the kubelet's cgroupDriver.
    pub driver: CgroupDriver,
    /// Parent of pods that name none; empty: `/podwright`, or `podwright.slice` with systemd.
    pub default_parent: String,
}

/// The cgroup driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it is process 1, else cgroupfs.
    Auto,
    /// Directories made by the OCI runtime.
    Cgroupfs,
    /// Scopes made by systemd for the OCI runtime.
    Systemd,
}

/// `[containers]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Containers {
    /// Capabilities of a container that asks for none.
    pub capabilities: Vec<String>,
    /// Bytes of one log record's content; longer lines are split into partial records.
    pub log_line_bytes: u32,
    /// Processes in a container; 0: no limit.
    pub pids_limit: i64,
    /// Bytes kept of each stream of an ExecSync; the rest is drained.
    pub exec_output_bytes: usize,
    /// Seconds to wait for output that a child of an ended ExecSync still holds.
    pub exec_drain_seconds: u64,
    /// Size of a pod's /dev/shm, bytes.
    pub shm_bytes: u64,
    /// Seconds between two measurements of a container's writable layer, where that takes a walk.
    pub usage_period_seconds: u64,
    /// Bytes that a container may write into its own layer; 0: no limit. Needs project quotas.
    pub writable_layer_limit_bytes: u64,
    /// Files, directories and links that a container may have in its own layer; 0: no limit. Needs project quotas.
    pub writable_layer_limit_inodes: u64,
    /// First of the project ids that writable layers get where there are project quotas.
    pub project_id_first: u32,
    /// How many project ids; 0: project quotas are not used.
    pub project_id_count: u32,
    /// Limits of processes, `name=soft:hard`; of others, those of the daemon.
    pub default_ulimits: Vec<String>,
    /// Give devices that a pod asks for to whom its container runs as.
    pub device_ownership_from_security_context: bool,
    /// Classes of block I/O, in goresctrl's form; empty: there are none.
    pub blockio_config_file: PathBuf,
    /// AppArmor profile of containers that ask for none; podwright-default is loaded when it is needed. Empty: none.
    pub apparmor_profile: String,
    /// Directories with CDI specifications; a later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Host paths that a mount of them does not make when they are missing, but is refused.
    pub absent_mount_sources_to_reject: Vec<PathBuf>,
    /// Let pods bind ports below 1024 without a capability.
    pub unprivileged_ports: bool,
    /// Let pods send ICMP echo without a capability.
    pub unprivileged_icmp: bool,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// CNI configuration directory, watched.
    pub conf_dir: PathBuf,
    /// Plugin directories, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// libcni-compatible result cache.
    pub cache_dir: PathBuf,
    /// Where pod network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// Seconds that one plugin may take for ADD, CHECK or STATUS.
    pub add_timeout_seconds: u64,
    /// Seconds that one plugin may take for DEL.
    pub del_timeout_seconds: u64,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Directories with `<host>/hosts.toml`, the first that has the host wins.
    pub certs_dirs: Vec<PathBuf>,
    /// CRI-O's and podman's registries.conf (version 2, with its drop-ins), for registries that have no hosts.toml; empty: not read.
    pub registries_conf: PathBuf,
    /// Files in the format of docker's config.json with credentials of the node, used where the kubelet sends none for a host;
    /// the first that has an entry for it wins. Whoever may run a pod on the node may pull with them.
    pub auth_files: Vec<PathBuf>,
    /// Which images must be signed by whom; `.json`: containers-policy.json(5). Read for each pull. Empty: no policy.
    pub signature_policy: PathBuf,
    /// Layers downloaded at once, all pulls together.
    pub max_concurrent_downloads: usize,
    /// Layers downloaded at once from one registry; 0: only the limit of all.
    pub max_concurrent_downloads_per_registry: usize,
    /// Compressed size from which a layer is fetched in parts side by side, from hosts that serve ranges; each such download
    /// buffers up to 16 MiB. 0: never.
    pub parallel_range_bytes: u64,
    /// Bytes a second of all downloads together; 0: no limit.
    pub max_bytes_per_second: u64,
    /// Bytes a second below which a registry host counts as stalled, measured over progress_timeout_seconds of waiting for it;
    /// 0: any byte is progress.
    pub min_bytes_per_second: u64,
    /// Seconds to connect to a registry.
    pub connect_timeout_seconds: u64,
    /// Seconds without a byte from the registry after which a pull fails.
    pub progress_timeout_seconds: u64,
    /// Unpacked bytes of one layer, a guard against bombs.
    pub max_layer_bytes: u64,
    /// Entries of one layer.
    pub max_layer_entries: u64,
    /// Images that the kubelet must not collect.
    pub pinned: Vec<String>,
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Address of the HTTP listener for exec, attach and port-forward. Port 0: one that the kernel chooses.
    pub address: String,
    /// Serve over TLS.
    pub tls: bool,
    /// PEM certificate chain for TLS, read anew when it changes; empty: one is made at start.
    pub cert_file: PathBuf,
    /// PEM key of the certificate.
    pub key_file: PathBuf,
    /// Sessions at once.
    pub max_sessions: usize,
    /// Seconds from a client's connection to the end of its handshake.
    pub handshake_timeout_seconds: u64,
    /// Seconds for a client to open the streams of its session.
    pub creation_timeout_seconds: u64,
    /// Seconds without a byte in either direction after which a session ends.
    pub idle_timeout_seconds: u64,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Address of the HTTP listener with /metrics and /healthz; empty: none.
    pub address: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/podwright".into(),
            state: "/run/podwright".into(),
            grpc: Grpc::default(),
            log: Log::default(),
            monitor: Monitor::default(),
            runtime: Runtime::default(),
            cgroups: Cgroups::default(),
            containers: Containers::default(),
            network: Network::default(),
            images: Images::default(),
            streaming: Streaming::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            socket: "/run/podwright/podwright.sock".into(),
            socket_gid: 0,
            socket_mode: "0660".into(),
            max_message_bytes: 16 << 20,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Self { binary: PathBuf::new() }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        let handlers =
            ["crun", "runc"].into_iter().map(|name| (name.to_owned(), Handler::default())).collect();
        // Two minutes is the kubelet's own limit for CreateContainer and StartContainer.
        Self { default: String::new(), timeout_seconds: 120, handlers }
    }
}

impl Default for Cgroups {
    fn default() -> Self {
        Self { driver: CgroupDriver::Auto, default_parent: String::new() }
    }
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            // containerd's default set (pkg/oci/spec.go), which users' images expect.
            capabilities: [
                "CHOWN",
                "DAC_OVERRIDE",
                "FSETID",
                "FOWNER",
                "MKNOD",
                "NET_RAW",
                "SETGID",
                "SETUID",
                "SETFCAP",
                "SETPCAP",
                "NET_BIND_SERVICE",
                "SYS_CHROOT",
                "KILL",
                "AUDIT_WRITE",
            ]
            .map(str::to_owned)
            .to_vec(),
            log_line_bytes: 16 << 10,
            pids_limit: 0,
            exec_output_bytes: 16 << 20,
            exec_drain_seconds: 2,
            shm_bytes: 64 << 20,
            // containerd's stats_collect_period, and the kubelet's own.
            usage_period_seconds: 10,
            writable_layer_limit_bytes: 0,
            writable_layer_limit_inodes: 0,
            // Far above those of people's /etc/projid and of the kubelet's volumes, which count from 1048577.
            project_id_first: 2_000_000_000,
            project_id_count: 1_000_000,
            default_ulimits: Vec::new(),
            device_ownership_from_security_context: false,
            blockio_config_file: PathBuf::new(),
            apparmor_profile: "podwright-default".into(),
            // As both peers, and what device plugins write to.
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            absent_mount_sources_to_reject: Vec::new(),
            unprivileged_ports: true,
            unprivileged_icmp: true,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/libexec/cni".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            netns_dir: "/run/netns".into(),
            // The kubelet gives RunPodSandbox four minutes; leave some for the rest of it.
            add_timeout_seconds: 180,
            del_timeout_seconds: 60,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            certs_dirs: vec![
                "/etc/podwright/certs.d".into(),
                "/etc/containerd/certs.d".into(),
                "/etc/docker/certs.d".into(),
            ],
            // Where every program of the containers family looks; absent is fine.
            registries_conf: "/etc/containers/registries.conf".into(),
            // Not root's ~/.docker/config.json: a person's login would silently become every pod's.
            auth_files: vec!["/etc/podwright/auth.json".into()],
            // A policy that one node found in /etc/containers and another did not would be worse than none.
            signature_policy: PathBuf::new(),
            max_concurrent_downloads: 8,
            // CRI-O's number for one image; the rest is left to other registries.
            max_concurrent_downloads_per_registry: 6,
            // Off: it helps where one connection is slower than the line, and costs memory everywhere.
            parallel_range_bytes: 0,
            max_bytes_per_second: 0,
            // A registry that sends a byte now and then would hold a pull for ever.
            min_bytes_per_second: 1024,
            connect_timeout_seconds: 30,
            // containerd's image_pull_progress_timeout.
            progress_timeout_seconds: 300,
            max_layer_bytes: 64 << 30,
            max_layer_entries: 4_000_000,
            pinned: Vec::new(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            // Peers': only the kubelet and crictl of this node connect.
            address: "127.0.0.1:0".into(),
            tls: false,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            max_sessions: 1024,
            handshake_timeout_seconds: 10,
            // Peers' StreamCreationTimeout and StreamIdleTimeout.
            creation_timeout_seconds: 30,
            idle_timeout_seconds: 4 * 3600,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { address: "127.0.0.1:9615".into() }
    }
}

impl Config {
    /// Deadline of one call of the OCI runtime.
    #[must_use]
    pub fn runtime_timeout(&self) -> Duration {
        Duration::from_secs(self.runtime.timeout_seconds)
    }
}
