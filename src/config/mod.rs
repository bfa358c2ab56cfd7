//! The daemon's configuration: every path, limit and deadline, with its default. There are no defaults elsewhere.
//!
//! Owns the keys, their meaning (the comments here generate docs/configuration.md) and the loader. Never opens the
//! files that it names.

mod deadlines;
mod limits;
mod load;
mod reference;

pub use limits::{SelinuxMode, Ulimit, annotation_fits, bytes};
pub use load::{ConfigError, load};
pub use reference::markdown;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Read by `serve` without `--config`; may be absent.
pub const DEFAULT_FILE: &str = "/etc/podwright/config.toml";
/// Suffix of the drop-in directory beside the file: `config.toml` has `config.toml.d/*.toml`, read in byte order.
pub const DROP_IN_SUFFIX: &str = ".d";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Durable state: images, records of pods, writable layers. Created with mode 0700. Must be on a file system that
    /// overlayfs accepts as upper directory, such as ext4 or xfs.
    /// Unit: absolute path.
    pub root: PathBuf,
    /// State that ends with the machine: bundles, mounts, monitors' sockets, exit records. Created with mode 0711, its
    /// content with 0700: root of a pod's user namespace must reach its bundle, so the directories above need the same.
    /// Put it on a tmpfs.
    /// Unit: absolute path.
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
    /// Unit: absolute path.
    pub socket: PathBuf,
    /// Group of the socket; its owner is root. Clients of the socket can do whatever root can.
    /// Unit: group id.
    pub socket_gid: u32,
    /// Mode of the socket.
    /// Unit: octal digits.
    pub socket_mode: String,
    /// Largest message in either direction. The kubelet's limit is 16 MiB.
    /// Unit: bytes.
    pub max_message_bytes: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, also by module: `podwright=debug,warn`.
    /// Unit: filter.
    pub level: String,
    /// One line, or one JSON object, per event, on stderr.
    /// Unit: `"text"` or `"json"`.
    pub format: LogFormat,
}

/// Format of the daemon's log.
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
    /// Path of podwright-monitor. Empty: beside the daemon's binary, else `/usr/libexec/podwright/podwright-monitor`.
    /// Unit: path.
    pub binary: PathBuf,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Handler of pods that name none. Empty: the first of crun and runc that really runs a container at start-up.
    /// Unit: handler.
    pub default: String,
    /// Limit of one call of the OCI runtime, which is then killed.
    /// Unit: seconds.
    pub timeout_seconds: u64,
    /// Enables checkpoint and restore. Needs a CRIU that supports the kernel (`criu check`) and an OCI runtime that can
    /// use it. `false`: these calls answer Unimplemented.
    pub criu: bool,
    /// Lets CreateContainer continue containers from images that are checkpoints. The author of such an image decides
    /// what CRIU does as root and which rights the processes have. Enable it only if everyone who may run pods, and
    /// every registry that they may name, is trusted like root. Checkpoint archives in files of the node do not need
    /// it.
    pub restore_images: bool,
    /// RuntimeClass handlers by name.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[runtime.handlers.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// Program: an absolute path, or a name looked up in PATH. Empty: the handler's name.
    /// Unit: path.
    pub path: PathBuf,
    /// The runtime's own state directory (`--root`). Empty: `<state>/runtime/NAME`.
    /// Unit: path.
    pub root: PathBuf,
    /// Global arguments before the subcommand.
    /// Unit: strings.
    pub args: Vec<String>,
    /// Pod annotations that the OCI runtime sees in the `config.json` of each container, such as `io.katacontainers.*`;
    /// a final `*` matches any rest. Others than the kubelet's are hidden by default, since they may enable features of
    /// a runtime.
    /// Unit: names.
    pub pod_annotations: Vec<String>,
    /// The same for annotations of containers, which override those of the pod.
    /// Unit: names.
    pub container_annotations: Vec<String>,
    /// Gives privileged containers only the devices that they request, not all of the host's.
    pub privileged_without_host_devices: bool,
}

/// `[cgroups]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroups {
    /// Cgroup driver. `auto`: systemd where it is process 1 and `/run/systemd/system` exists, else cgroupfs. Must be
    /// the kubelet's `cgroupDriver`; a kubelet that asks its runtime gets this answer. A pod with a cgroup parent in
    /// the other driver's form is refused.
    /// Unit: `"auto"`, `"cgroupfs"` or `"systemd"`.
    pub driver: CgroupDriver,
    /// Parent of pods that name none, such as crictl's; the kubelet always names one. Empty: `/podwright`, or
    /// `podwright.slice` with systemd.
    /// Unit: cgroup path or slice.
    pub default_parent: String,
}

/// The cgroup driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it is process 1, else cgroupfs.
    Auto,
    /// Directories created by the OCI runtime.
    Cgroupfs,
    /// Scopes created by systemd for the OCI runtime.
    Systemd,
}

/// `[containers]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Containers {
    /// Capabilities of a container by default. A pod adds to these and drops from them.
    /// Unit: names.
    pub capabilities: Vec<String>,
    /// Length of one log record. A longer line becomes several partial records.
    /// Unit: bytes, at least 512.
    pub log_line_bytes: u32,
    /// Process limit of one container. 0: none.
    /// Unit: processes.
    pub pids_limit: i64,
    /// Limit of each output stream of an ExecSync; more is read and dropped. An answer beyond `grpc.max_message_bytes`
    /// is cut to fit.
    /// Unit: bytes.
    pub exec_output_bytes: usize,
    /// Output that all ExecSync calls hold together until their clients have it. Half is reserved in shares of 32 KiB
    /// per call: with the default 1024 calls at once, 256 in one pod and at most half as many as are free; further calls
    /// get ResourceExhausted. Output beyond a call's share comes from the other half, of which a pod gets no more than it
    /// leaves; then output is cut as at `exec_output_bytes`, and the command continues.
    /// Unit: bytes, at least 1 MiB.
    pub exec_memory_bytes: usize,
    /// How long an ended ExecSync waits for output that a child still holds open. An exec with streams passes such
    /// output on until it was silent for this long.
    /// Unit: seconds.
    pub exec_drain_seconds: u64,
    /// Limit on examining a host path from a request (a mount source, a device, a seccomp profile), which hangs on a
    /// file system that does not answer. CreateContainer then fails, and calls for the hanging file system are refused
    /// at once. A creation takes at most 110 s, the kubelet's own limit.
    /// Unit: seconds, at least 1.
    pub host_path_seconds: u64,
    /// Size of a pod's /dev/shm. The pod annotation `shm-size.crio.io` (`1Gi`) overrides it if the handler's
    /// `pod_annotations` allow it.
    /// Unit: bytes.
    pub shm_bytes: u64,
    /// Minimum interval between walks that measure a container's writable layer, see
    /// [operations](operations.md#what-containers-write).
    /// Unit: seconds, at least 1.
    pub usage_period_seconds: u64,
    /// Limit of a container's writable layer. Needs project quotas; without them the daemon does not start. 0: no
    /// limit.
    /// Unit: bytes.
    pub writable_layer_limit_bytes: u64,
    /// Limit of files, directories and links in a container's writable layer, including about six of overlayfs. Needs
    /// project quotas. 0: no limit.
    /// Unit: inodes.
    pub writable_layer_limit_inodes: u64,
    /// First project id for writable layers on a file system with project quotas.
    /// Unit: project id.
    pub project_id_first: u32,
    /// Number of project ids. 0: project quotas are not used.
    /// Unit: ids.
    pub project_id_count: u32,
    /// Limits of a container's processes, `name=soft:hard` with the names of setrlimit(2) in lower case:
    /// `nofile=1024:4096`, `core=0`, `memlock=unlimited`. Others are the daemon's.
    /// Unit: limits.
    pub default_ulimits: Vec<String>,
    /// Devices that a container requests belong to its `runAsUser` and `runAsGroup` instead of their owner on the host,
    /// so that a non-root user can use them.
    pub device_ownership_from_security_context: bool,
    /// Block I/O classes in [goresctrl's format](https://github.com/intel/goresctrl/blob/main/doc/blockio.md), as in
    /// containerd and CRI-O. Read for each container that requests a class. `*` and `?` only in the last part of a
    /// device path. Empty: such containers are refused.
    /// Unit: absolute path.
    pub blockio_config_file: PathBuf,
    /// AppArmor profile of containers without one and with `RuntimeDefault`. `podwright-default` is podwright's own,
    /// loaded on first use unless a profile of that name is loaded. Load any other yourself. Empty: no default, and
    /// `RuntimeDefault` is refused. No effect on a host without AppArmor.
    /// Unit: profile.
    pub apparmor_profile: String,
    /// SELinux labels for containers, with categories of their own for each pod, and relabelling of volumes, see
    /// [operations](operations.md#selinux). `auto`: if the kernel has SELinux enabled and its policy knows containers.
    /// `on`: the daemon does not start without. `off`: no labels, whatever a pod requests.
    /// Unit: `"auto"`, `"on"` or `"off"`.
    pub selinux: SelinuxMode,
    /// Directories with CDI specifications (`.json`, `.yaml`, `.yml`). A device in a later directory overrides one of
    /// the same name in an earlier one. Read for each container that requests a CDI device.
    /// Unit: absolute paths.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Missing host paths that a pod may not mount. Any other missing path becomes a directory of mode 0755.
    /// Unit: absolute paths.
    pub absent_mount_sources_to_reject: Vec<PathBuf>,
    /// Pods may bind ports below 1024 without a capability (`net.ipv4.ip_unprivileged_port_start=0` in the pod).
    pub unprivileged_ports: bool,
    /// Pods may send ICMP echo without a capability (`net.ipv4.ping_group_range` in the pod; cut to
    /// the groups that a user namespace has).
    pub unprivileged_icmp: bool,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Directory of CNI configurations, watched. The first valid `.conflist`, `.conf` or `.json` by name applies, or the
    /// first `max_conf_num`.
    /// Unit: absolute path.
    pub conf_dir: PathBuf,
    /// Number of CNI configurations for each pod, in the order of their files: the first is `eth0`, the next `eth1`.
    /// Only the first gives the pod's addresses. As containerd's `max_conf_num`, also 1 by default. 0: all.
    /// Unit: configurations.
    pub max_conf_num: usize,
    /// Template of a CNI configuration for nodes whose network follows from the kubelet's pod CIDR. It may use
    /// `{{.PodCIDR}}`, `{{.PodCIDRRanges}}` and `{{.Routes}}`, with `range`, `if`, `else` and `end`, as containerd's
    /// `conf_template`. Written as `10-podwright-net.conflist` while `conf_dir` has no valid configuration, never over
    /// one. Empty: none.
    /// Unit: absolute path or empty.
    pub conf_template: PathBuf,
    /// Directories of plugins, in order of search.
    /// Unit: paths.
    pub bin_dirs: Vec<PathBuf>,
    /// Results of ADD in libcni's layout, for DEL.
    /// Unit: absolute path.
    pub cache_dir: PathBuf,
    /// Directory where network namespaces of pods are pinned as `podwright-<sandbox id>`. `ip netns` sees them in the
    /// default place.
    /// Unit: absolute path.
    pub netns_dir: PathBuf,
    /// Limit of one plugin for ADD, CHECK or STATUS. The kubelet allows RunPodSandbox four minutes.
    /// Unit: seconds.
    pub add_timeout_seconds: u64,
    /// Limit of one plugin for DEL.
    /// Unit: seconds.
    pub del_timeout_seconds: u64,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Directories with `<host>/hosts.toml` as in containerd (mirrors, CAs, client certificates). The first that has
    /// the host applies; `_default` is for all other hosts. A host's directory, even an empty one, also allows others
    /// to lead to it on this node, see [images](images.md#where-a-registry-may-lead).
    /// Unit: paths.
    pub certs_dirs: Vec<PathBuf>,
    /// CRI-O's and podman's file (version 2) with drop-ins in `registries.conf.d`, for registries without a hosts.toml:
    /// mirrors, `blocked`, `insecure`, rewritten names. Certificates of its hosts may be in `certs.d` beside it. Short
    /// names and aliases are ignored: a name without a host is Docker Hub's, as Kubernetes expects. A faulty file fails
    /// the pull. Empty: not read.
    /// Unit: path.
    pub registries_conf: PathBuf,
    /// Credentials of the node in docker's `config.json` format (`auths` by `host` or `host/path`, the longest
    /// applies), for hosts and mirrors for which the kubelet sends none. The first file with an entry applies.
    /// Credential helpers are not run. Anyone who can run a pod on the node can pull with them.
    /// Unit: paths.
    pub auth_files: Vec<PathBuf>,
    /// Policy of required signatures, see [signatures](signatures.md): podwright's own TOML, or a
    /// `containers-policy.json(5)` if the name ends in `.json`. Read with its keys for each pull. An unusable policy
    /// stops the start, later every pull. Empty: every image is accepted.
    /// Unit: path.
    pub signature_policy: PathBuf,
    /// Layers downloaded at once by all pulls. While others wait, up to 32 that are slow or take longer than a minute
    /// continue beside them.
    /// Unit: layers, at least 1.
    pub max_concurrent_downloads: usize,
    /// Layers downloaded at once from one registry. 0: limited only by the total.
    /// Unit: layers.
    pub max_concurrent_downloads_per_registry: usize,
    /// Compressed size from which a layer is fetched in parts of 4 MiB, four at a time over separate connections, from
    /// hosts that serve ranges. Helps if one connection is slower than the line. Such a download buffers up to 16 MiB.
    /// 0: never.
    /// Unit: bytes.
    pub parallel_range_bytes: u64,
    /// Rate limit of all downloads together. 0: no limit.
    /// Unit: bytes a second.
    pub max_bytes_per_second: u64,
    /// A host slower than this over `progress_timeout_seconds` is abandoned like one that sends nothing. 0: any byte
    /// will do.
    /// Unit: bytes a second.
    pub min_bytes_per_second: u64,
    /// Limit of connecting to a registry.
    /// Unit: seconds.
    pub connect_timeout_seconds: u64,
    /// Silence of a host after which the next one is tried, or the pull fails.
    /// Unit: seconds.
    pub progress_timeout_seconds: u64,
    /// Limit of one layer's unpacked size.
    /// Unit: bytes.
    pub max_layer_bytes: u64,
    /// Limit of one layer's files, directories and links, and the headers before them.
    /// Unit: entries.
    pub max_layer_entries: u64,
    /// Memory for large zstd windows of all decompressions together: a layer waits until its window fits. A window
    /// larger than this or than 128 MiB is refused. Windows up to 8 MiB, the largest that zstd uses by default, are not
    /// counted.
    /// Unit: bytes.
    pub zstd_window_bytes: u64,
    /// Images that are reported as pinned, so that the kubelet does not collect them.
    /// Unit: references.
    pub pinned: Vec<String>,
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// HTTP listener. Port 0: chosen by the kernel. Leave it on loopback: a URL is the only credential.
    /// Unit: IP address and port.
    pub address: String,
    /// Serve over TLS. The kubelet does not verify the certificate.
    pub tls: bool,
    /// Certificate chain, PEM. Read again, with its key, when it changes. Empty: a new one at each start.
    /// Unit: path.
    pub cert_file: PathBuf,
    /// The certificate's key, PEM.
    /// Unit: path.
    pub key_file: PathBuf,
    /// Sessions at once; further clients get 503. A session takes up to 0.5 MiB while its client or process is slow.
    /// Input beyond that (up to 4 MiB per port-forward connection) takes up to 256 MiB in all sessions together; then
    /// clients are not read until there is room.
    /// Unit: sessions, at least 1.
    pub max_sessions: usize,
    /// Limit from a client's connection to the end of its handshake.
    /// Unit: seconds.
    pub handshake_timeout_seconds: u64,
    /// Limit for a client to open the streams of its session.
    /// Unit: seconds.
    pub creation_timeout_seconds: u64,
    /// Silence in both directions after which a session ends.
    /// Unit: seconds.
    pub idle_timeout_seconds: u64,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// HTTP listener with `/metrics` and `/healthz`. No authentication. Empty: none.
    /// Unit: address and port.
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
        Self { default: String::new(), timeout_seconds: 120, criu: true, restore_images: false, handlers }
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
            // Four of the longest answers, or shares for more probes than a node of 110 pods runs at once.
            exec_memory_bytes: 64 << 20,
            exec_drain_seconds: 2,
            host_path_seconds: 110,
            shm_bytes: 64 << 20,
            // As containerd's stats_collect_period and the kubelet's period.
            usage_period_seconds: 10,
            writable_layer_limit_bytes: 0,
            writable_layer_limit_inodes: 0,
            // Far above the ids in /etc/projid and of the kubelet's volumes, which begin at 1048577.
            project_id_first: 2_000_000_000,
            project_id_count: 1_000_000,
            default_ulimits: Vec::new(),
            device_ownership_from_security_context: false,
            blockio_config_file: PathBuf::new(),
            apparmor_profile: "podwright-default".into(),
            selinux: SelinuxMode::Auto,
            // As in containerd and CRI-O; device plugins write here.
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
            max_conf_num: 1,
            conf_template: PathBuf::new(),
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
            // The default of every program of the containers family; may be absent.
            registries_conf: "/etc/containers/registries.conf".into(),
            // Not root's ~/.docker/config.json: a person's login would silently become every pod's.
            auth_files: vec!["/etc/podwright/auth.json".into()],
            // A policy in /etc/containers of only some nodes would be worse than none.
            signature_policy: PathBuf::new(),
            max_concurrent_downloads: 8,
            // CRI-O's number for one image; other registries keep the rest.
            max_concurrent_downloads_per_registry: 6,
            // Off: it helps only if one connection is slower than the line, and costs memory everywhere.
            parallel_range_bytes: 0,
            max_bytes_per_second: 0,
            // A registry that sends a byte now and then would otherwise hold a pull for ever.
            min_bytes_per_second: 1024,
            connect_timeout_seconds: 30,
            // containerd's image_pull_progress_timeout.
            progress_timeout_seconds: 300,
            max_layer_bytes: 64 << 30,
            max_layer_entries: 4_000_000,
            // One layer with the largest window that the zstd tool accepts by default.
            zstd_window_bytes: 128 << 20,
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
