//! The daemon's configuration: every path, limit and deadline, with its default. There are no defaults elsewhere.
//!
//! Owns the key names, what they mean (docs/configuration.md is made of the comments here) and the loader. Never opens what it names.

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

/// Where `serve` looks when `--config` is not given; absent is fine.
pub const DEFAULT_FILE: &str = "/etc/podwright/config.toml";
/// Drop-ins in a directory beside the file: `config.toml` has `config.toml.d/*.toml`, read in byte order.
pub const DROP_IN_SUFFIX: &str = ".d";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Durable state: images, records of pods, writable layers. Made with mode 0700. Must be on a file system that
    /// overlayfs accepts for its upper directory, such as ext4 or xfs.
    /// Unit: absolute path.
    pub root: PathBuf,
    /// State that ends with the machine: bundles, mounts, monitors' sockets, exit records. Made with mode 0711, what is
    /// in it with 0700: root of a pod's user namespace has to get through to its bundle. The directories above it have
    /// to let it through, too. Put it on a tmpfs.
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
    /// Group of the socket. Its owner is root. Who may connect may do what root may.
    /// Unit: group id.
    pub socket_gid: u32,
    /// Mode of the socket.
    /// Unit: octal digits.
    pub socket_mode: String,
    /// Largest message in either direction. The kubelet's own limit is 16 MiB.
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
    /// One line, or one JSON object, an event. Logs go to stderr.
    /// Unit: `"text"` or `"json"`.
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
    /// podwright-monitor. Empty: beside the daemon's own binary, else `/usr/libexec/podwright/podwright-monitor`.
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
    /// What one call of the OCI runtime may take. It is killed after that.
    /// Unit: seconds.
    pub timeout_seconds: u64,
    /// Let containers be checkpointed and restored. Needs CRIU that works on the kernel (`criu check`), and an OCI runtime
    /// that can use it. `false`: these calls answer Unimplemented.
    pub criu: bool,
    /// Let CreateContainer continue containers from images that are checkpoints. Whoever makes such an image decides what
    /// CRIU does as root, and with which rights the processes come back. Only where all who may run pods, and all registries
    /// that these may name, are trusted like root; archives in files of the node need no such trust in others.
    pub restore_images: bool,
    /// RuntimeClass handlers by name.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[runtime.handlers.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// Program: absolute, or a name that is looked up in PATH. Empty: the handler's name.
    /// Unit: path.
    pub path: PathBuf,
    /// The runtime's own state directory (`--root`). Empty: `<state>/runtime/NAME`.
    /// Unit: path.
    pub root: PathBuf,
    /// Global arguments before the subcommand.
    /// Unit: strings.
    pub args: Vec<String>,
    /// Annotations of pods that the OCI runtime finds in each of their containers' `config.json`, such as
    /// `io.katacontainers.*`. A final `*` stands for any rest. Without this it sees the kubelet's own only: others may
    /// switch features of a runtime on.
    /// Unit: names.
    pub pod_annotations: Vec<String>,
    /// The same for annotations of containers. One of a container wins over one of its pod.
    /// Unit: names.
    pub container_annotations: Vec<String>,
    /// A privileged container gets the devices that it asks for, not all of the host's.
    pub privileged_without_host_devices: bool,
}

/// `[cgroups]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroups {
    /// Who makes cgroups. `auto`: systemd where it is process 1 and `/run/systemd/system` exists, else cgroupfs. Has to
    /// be the kubelet's `cgroupDriver`; a kubelet that asks its runtime gets this answer. A pod whose cgroup parent is
    /// of the other driver's form is refused.
    /// Unit: `"auto"`, `"cgroupfs"` or `"systemd"`.
    pub driver: CgroupDriver,
    /// Parent of pods that name none, as those of crictl do; the kubelet always names one. Empty: `/podwright`, or
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
    /// Directories made by the OCI runtime.
    Cgroupfs,
    /// Scopes made by systemd for the OCI runtime.
    Systemd,
}

/// `[containers]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Containers {
    /// Capabilities of a container that asks for none. What a pod adds or drops is applied to these.
    /// Unit: names.
    pub capabilities: Vec<String>,
    /// Content of one log record. A longer line becomes several partial records.
    /// Unit: bytes, at least 512.
    pub log_line_bytes: u32,
    /// Limit of one container. 0: none.
    /// Unit: processes.
    pub pids_limit: i64,
    /// Kept of each stream of an ExecSync. What is beyond is read and dropped. An answer that would not fit
    /// `grpc.max_message_bytes` is cut to fit.
    /// Unit: bytes.
    pub exec_output_bytes: usize,
    /// What all ExecSync calls hold of their output together, until their clients have it. Half of it is for shares of
    /// 32 KiB, one a call, which nobody else can take: with the default 1024 calls at once, 256 in one pod; more are
    /// answered ResourceExhausted. From the other half comes what a call has beyond its share; when it is taken, output
    /// is cut as at `exec_output_bytes`, and the command goes on.
    /// Unit: bytes, at least 1 MiB.
    pub exec_memory_bytes: usize,
    /// How long an ExecSync that has ended waits for output which a child of it still holds open. An exec with streams
    /// passes such output on until it was silent for this long.
    /// Unit: seconds.
    pub exec_drain_seconds: u64,
    /// How long a look at a path of the host that a request names (a mount's source, a device, a seccomp profile) may take.
    /// One on a file system that does not answer hangs; CreateContainer is answered then, and calls for what still hangs
    /// are refused at once. A creation takes 110 s at most, the kubelet's own limit.
    /// Unit: seconds, at least 1.
    pub host_path_seconds: u64,
    /// Size of a pod's /dev/shm. A pod's annotation `shm-size.crio.io` (`1Gi`) has another one, if its handler's
    /// `pod_annotations` let it through.
    /// Unit: bytes.
    pub shm_bytes: u64,
    /// Least time between two measurements of a container's writable layer where that takes a walk, see
    /// [operations](operations.md#what-containers-write).
    /// Unit: seconds, at least 1.
    pub usage_period_seconds: u64,
    /// What a container may write into its own layer. Needs project quotas; without them the daemon does not start. 0:
    /// no limit.
    /// Unit: bytes.
    pub writable_layer_limit_bytes: u64,
    /// Files, directories and links that a container may have in its own layer, some six of overlayfs's own included.
    /// Needs project quotas. 0: no limit.
    /// Unit: inodes.
    pub writable_layer_limit_inodes: u64,
    /// First of the project ids that writable layers get where the file system has project quotas.
    /// Unit: project id.
    pub project_id_first: u32,
    /// How many. 0: project quotas are not used.
    /// Unit: ids.
    pub project_id_count: u32,
    /// Limits of a container's processes, `name=soft:hard` with the names of setrlimit(2) in small letters:
    /// `nofile=1024:4096`, `core=0`, `memlock=unlimited`. What is not named is as the daemon has it.
    /// Unit: limits.
    pub default_ulimits: Vec<String>,
    /// Devices that a container asks for belong to its `runAsUser` and `runAsGroup` instead of to their owner on the
    /// host, so that it can use them without being root.
    pub device_ownership_from_security_context: bool,
    /// Classes of block I/O in [goresctrl's form](https://github.com/intel/goresctrl/blob/main/doc/blockio.md), which
    /// both peers take. Read for each container that asks for a class. `*` and `?` only in a device's last part. Empty:
    /// a container that asks for a class is refused.
    /// Unit: absolute path.
    pub blockio_config_file: PathBuf,
    /// AppArmor profile of containers that ask for none, and of those that ask for `RuntimeDefault`.
    /// `podwright-default` is podwright's own: it is loaded when a container first needs it, unless a profile of that
    /// name is there. Any other has to be loaded by you. Empty: no default, and `RuntimeDefault` is refused. Without
    /// meaning on a host without AppArmor.
    /// Unit: profile.
    pub apparmor_profile: String,
    /// Containers get SELinux labels, each pod with categories of its own, and volumes are relabelled, see
    /// [operations](operations.md#selinux). `auto`: where the kernel has SELinux enabled and its policy knows containers.
    /// `on`: without these the daemon does not start. `off`: no labels, whatever a pod asks for.
    /// Unit: `"auto"`, `"on"` or `"off"`.
    pub selinux: SelinuxMode,
    /// Directories with CDI specifications, `.json`, `.yaml` or `.yml`. A device of a later directory wins over one of
    /// the same name in an earlier one. Read for each container that asks for a CDI device.
    /// Unit: absolute paths.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// A host path that a pod mounts and that is missing becomes a directory of mode 0755. These do not: a pod that
    /// mounts one of them is refused.
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
    /// CNI configuration. The first valid `.conflist`, `.conf` or `.json` by name counts, or the first
    /// `max_conf_num`. Watched.
    /// Unit: absolute path.
    pub conf_dir: PathBuf,
    /// How many CNI configurations each pod is attached to, in the order of their files: the first as `eth0`, the next as
    /// `eth1`. Only the first gives the pod's addresses. As containerd's `max_conf_num`, which is 1 too. 0: all.
    /// Unit: configurations.
    pub max_conf_num: usize,
    /// Template of a CNI configuration, for nodes whose network is made from the pod CIDR that the kubelet tells. It may
    /// name `{{.PodCIDR}}`, `{{.PodCIDRRanges}}` and `{{.Routes}}`, with `range`, `if`, `else` and `end`, as containerd's
    /// `conf_template` does. Written as `10-podwright-net.conflist` while `conf_dir` has no valid configuration, never over
    /// one. Empty: none is made.
    /// Unit: absolute path or empty.
    pub conf_template: PathBuf,
    /// Where plugins are looked for, in order.
    /// Unit: paths.
    pub bin_dirs: Vec<PathBuf>,
    /// Results of ADD in libcni's layout, so that DEL gets what ADD gave.
    /// Unit: absolute path.
    pub cache_dir: PathBuf,
    /// Where network namespaces of pods are pinned, as `podwright-<sandbox id>`. `ip netns` sees them in the default
    /// place.
    /// Unit: absolute path.
    pub netns_dir: PathBuf,
    /// What one plugin may take for ADD, CHECK or STATUS. The kubelet gives RunPodSandbox four minutes.
    /// Unit: seconds.
    pub add_timeout_seconds: u64,
    /// What one plugin may take for DEL.
    /// Unit: seconds.
    pub del_timeout_seconds: u64,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Directories with `<host>/hosts.toml` as containerd reads it (mirrors, CAs, client certificates). The first that
    /// has the host wins; `_default` is for all others. A directory of its own, an empty one too, also names the host:
    /// others may lead to it on this node, see [images](images.md#where-a-registry-may-lead).
    /// Unit: paths.
    pub certs_dirs: Vec<PathBuf>,
    /// CRI-O's and podman's file (version 2) with its drop-ins in `registries.conf.d`, for registries that have no
    /// hosts.toml: mirrors, `blocked`, `insecure`, rewritten names. Certificates of its hosts may lie in `certs.d`
    /// beside it. Short names and aliases are not acted on: a name without a host is Docker Hub's, as Kubernetes
    /// expects. A file that cannot be understood fails the pull. Empty: not read.
    /// Unit: path.
    pub registries_conf: PathBuf,
    /// Credentials of the node in the format of docker's `config.json` (`auths`, by `host` or `host/path`, the longest
    /// wins), for the hosts, mirrors too, for which the kubelet sends none. The first file with an entry wins.
    /// Credential helpers are not run. Whoever may run a pod on the node may pull with them.
    /// Unit: paths.
    pub auth_files: Vec<PathBuf>,
    /// Which images must be signed by which keys, see [signatures](signatures.md): podwright's own TOML, or a
    /// `containers-policy.json(5)` if the name ends in `.json`. Read for each pull, with its keys. One that cannot be
    /// used stops the start, and later fails pulls. Empty: every image is accepted.
    /// Unit: path.
    pub signature_policy: PathBuf,
    /// Layers downloaded at once, all pulls together.
    /// Unit: layers, at least 1.
    pub max_concurrent_downloads: usize,
    /// Layers downloaded at once from one registry. 0: only the limit of all.
    /// Unit: layers.
    pub max_concurrent_downloads_per_registry: usize,
    /// Compressed size from which a layer is fetched in parts of 4 MiB, four at a time over connections of their own,
    /// from hosts that serve ranges. Helps where one connection is slower than the line. Such a download buffers up to
    /// 16 MiB. 0: never.
    /// Unit: bytes.
    pub parallel_range_bytes: u64,
    /// Of all downloads together. 0: no limit.
    /// Unit: bytes a second.
    pub max_bytes_per_second: u64,
    /// A host that brings less, over `progress_timeout_seconds` of waiting for it, is left like one that brings
    /// nothing. 0: any byte will do.
    /// Unit: bytes a second.
    pub min_bytes_per_second: u64,
    /// To connect to a registry.
    /// Unit: seconds.
    pub connect_timeout_seconds: u64,
    /// Without a byte from a host, after which it is left for the next one, or the pull fails.
    /// Unit: seconds.
    pub progress_timeout_seconds: u64,
    /// Unpacked size of one layer; more is refused.
    /// Unit: bytes.
    pub max_layer_bytes: u64,
    /// Files, directories and links of one layer, and the headers before them; more are refused.
    /// Unit: entries.
    pub max_layer_entries: u64,
    /// Memory for large windows of zstd frames, of all that is decompressed at once: a layer waits until there is room for
    /// its own. One that asks for more than all of it, or than 128 MiB, is refused. Windows up to 8 MiB, the largest that
    /// zstd makes without being told to, take nothing of it.
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
    /// HTTP listener. Port 0: one that the kernel chooses. Leave it on loopback: whoever has a URL needs nothing else.
    /// Unit: IP address and port.
    pub address: String,
    /// Serve over TLS. The kubelet does not verify the certificate.
    pub tls: bool,
    /// Certificate chain, PEM. Read anew when it changes, with its key. Empty: one is made at every start.
    /// Unit: path.
    pub cert_file: PathBuf,
    /// The certificate's key, PEM.
    /// Unit: path.
    pub key_file: PathBuf,
    /// At once; a client beyond gets 503. A session takes up to 0.5 MiB while its client or its process is slow, a
    /// port-forward connection up to 5 MiB.
    /// Unit: sessions, at least 1.
    pub max_sessions: usize,
    /// From a client's connection to the end of its handshake.
    /// Unit: seconds.
    pub handshake_timeout_seconds: u64,
    /// For a client to open the streams of its session.
    /// Unit: seconds.
    pub creation_timeout_seconds: u64,
    /// Without a frame in either direction, after which a session ends.
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
            // Four of the longest answers, or a share for each of more probes than a node of 110 pods runs at once.
            exec_memory_bytes: 64 << 20,
            exec_drain_seconds: 2,
            host_path_seconds: 110,
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
            selinux: SelinuxMode::Auto,
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
            // One layer with the largest window that the zstd tool takes without being told to.
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
