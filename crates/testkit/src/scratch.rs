//! A node in a directory: everything that a daemon under test reads and writes.
//!
//! Owns the directory `/run/podwright-test/<id>` with the daemon's configuration,
//! a CNI network of its own (bridge, subnet, address records), its own place for
//! network namespaces and its own cgroup parent, all named after the id, so that
//! [`crate::ledger`] can find and [`crate::teardown`] can remove every trace.
//! It never starts the daemon and never touches the host's own CNI or images.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::programs::workspace;
use crate::shared::{base, host_ports_mark, lock, take_subnet};
use crate::{certs_d, host_ports, teardown};

/// The file by which a scratch node is known again from its directory alone.
const RECORD: &str = "scratch.json";

/// Parameters of a scratch node.
#[derive(Debug, Clone)]
pub struct Options {
    /// The registry that stand-in names lead to; none: pulls fail.
    pub registry: Option<SocketAddr>,
    /// Hosts that lead to it.
    pub hosts: Vec<String>,
    /// Whether pods reach beyond the bridge by masquerading (iptables rules).
    pub ip_masq: bool,
    /// Whether the daemon serves /metrics, on a free loopback port.
    pub metrics: bool,
    /// The OCI runtime that pods get by default: `PODWRIGHT_TEST_RUNTIME`, or runc.
    pub runtime: String,
    /// The cgroup driver: `PODWRIGHT_TEST_CGROUP_DRIVER`, or cgroupfs.
    pub cgroup_driver: CgroupDriver,
    /// Further TOML for a drop-in, `config.toml.d/50-test.toml`.
    pub extra_config: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registry: None,
            hosts: certs_d::STAND_IN_HOSTS.iter().map(|host| (*host).to_owned()).collect(),
            ip_masq: true,
            metrics: true,
            // crun refuses hosts that mount cgroup v1 and v2 together; runc takes both.
            runtime: std::env::var("PODWRIGHT_TEST_RUNTIME").unwrap_or_else(|_| "runc".to_owned()),
            cgroup_driver: CgroupDriver::from_environment(),
            extra_config: String::new(),
        }
    }
}

/// The daemon's `cgroups.driver`, and with it the form of cgroup parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Plain directories.
    #[default]
    Cgroupfs,
    /// Slices and scopes; needs systemd as process 1.
    Systemd,
}

impl CgroupDriver {
    fn from_environment() -> Self {
        match std::env::var("PODWRIGHT_TEST_CGROUP_DRIVER").as_deref() {
            Ok("systemd") => Self::Systemd,
            _ => Self::Cgroupfs,
        }
    }

    /// As configured.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// The content of [`RECORD`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    id: String,
    octet: u8,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    cgroup_driver: CgroupDriver,
}

/// Prefix of all nodes' ids; six hexadecimal digits follow.
pub(crate) const ID_PREFIX: &str = "podw";

/// A scratch node. Dropping it removes every trace of it.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    record: Record,
    keep: bool,
}

impl Scratch {
    /// A node with the default [`Options`].
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn new() -> Result<Self> {
        Self::with(&Options::default())
    }

    /// A node with the default [`Options`] and a registry.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn with_registry(registry: SocketAddr) -> Result<Self> {
        Self::with(&Options { registry: Some(registry), ..Options::default() })
    }

    /// Creates the directory and writes all configuration.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or no subnet is free.
    pub fn with(options: &Options) -> Result<Self> {
        let base = base();
        std::fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
        let random = random_bytes()?;
        let id = format!("{ID_PREFIX}{:02x}{:02x}{:02x}", random[0], random[1], random[2]);
        let _lock = lock(&base)?;
        if !host_ports::exist() {
            let mark = host_ports_mark(&base);
            std::fs::write(&mark, "").with_context(|| format!("write {}", mark.display()))?;
        }
        let octet = take_subnet(&base, random[3], &id)?;
        let metrics = if options.metrics { Some(free_address()?) } else { None };
        let cgroup_driver = options.cgroup_driver;
        let record = Record { id, octet, metrics, cgroup_driver };
        let scratch = Self { root: base.join(&record.id), record, keep: false };
        scratch.write(options).with_context(|| format!("write scratch node {}", scratch.root.display()))?;
        Ok(scratch)
    }

    /// Finds a node that another process created.
    ///
    /// # Errors
    /// Fails when `root` is no scratch node.
    pub fn open(root: &Path) -> Result<Self> {
        let file = root.join(RECORD);
        let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let record = serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        Ok(Self { root: root.to_owned(), record, keep: true })
    }

    /// All nodes on this machine, of this and of other processes.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = std::fs::read_dir(base()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::open(&entry.path()).ok()).collect()
    }

    /// Leaves the node in place when this value is dropped.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.keep = true;
        self
    }

    /// The id, which is also the bridge's name and the cgroup parent's.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The node's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("cri.sock")
    }

    /// The CRI socket in the form for crictl and critest.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The daemon's log, appended to by every start.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Where `/metrics` is served, if it is.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.record.metrics
    }

    /// The `certs.d` directory.
    #[must_use]
    pub fn certs_dir(&self) -> PathBuf {
        self.root.join("certs.d")
    }

    /// The CNI configuration directory.
    #[must_use]
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.root.join("cni/net.d")
    }

    /// The host-local plugin's address records.
    #[must_use]
    pub fn ipam_dir(&self) -> PathBuf {
        self.root.join("cni/ipam")
    }

    /// libcni's result cache.
    #[must_use]
    pub fn cni_cache_dir(&self) -> PathBuf {
        self.root.join("cni/cache")
    }

    /// Where pods' network namespaces are pinned.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.root.join("netns")
    }

    /// A directory for pod logs.
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The bridge of the node's network.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.record.id
    }

    /// Prefix of every address in the node's network: `10.88.x.`
    #[must_use]
    pub fn subnet_prefix(&self) -> String {
        format!("10.88.{}.", self.record.octet)
    }

    /// The cgroup parent of pods that name none; pods of tests that do name one should stay below it.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        match self.record.cgroup_driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.record.id),
            CgroupDriver::Systemd => format!("{}.slice", self.record.id),
        }
    }

    /// A cgroup parent below [`Self::cgroup_parent`], as a kubelet gives each pod its own. The name is plain letters.
    #[must_use]
    pub fn cgroup_parent_of(&self, pod: &str) -> String {
        match self.record.cgroup_driver {
            CgroupDriver::Cgroupfs => format!("/{}/{pod}", self.record.id),
            CgroupDriver::Systemd => format!("/{0}.slice/{0}-{pod}.slice", self.record.id),
        }
    }

    /// The cgroup driver.
    #[must_use]
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.record.cgroup_driver
    }

    /// Points image names to a registry (again).
    ///
    /// # Errors
    /// Fails when a file cannot be written.
    pub fn set_registry(&self, registry: SocketAddr, hosts: &[impl AsRef<str>]) -> Result<()> {
        certs_d::write(&self.certs_dir(), registry, hosts)
    }

    /// Writes the network configuration: bridge, host-local addresses, portmap.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn write_network(&self, ip_masq: bool) -> Result<()> {
        let subnet = format!("{}0/24", self.subnet_prefix());
        let list = json!({
            "cniVersion": "1.0.0",
            "name": self.id(),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge(),
                    "isGateway": true,
                    "ipMasq": ip_masq,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.ipam_dir(),
                        "ranges": [[{ "subnet": subnet }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        let file = self.cni_conf_dir().join("10-scratch.conflist");
        std::fs::write(&file, format!("{list:#}\n")).with_context(|| format!("write {}", file.display()))
    }

    fn write(&self, options: &Options) -> Result<()> {
        for dir in [self.cni_conf_dir(), self.ipam_dir(), self.netns_dir(), self.certs_dir(), self.logs_dir()]
        {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(self.root.join(RECORD), serde_json::to_vec(&self.record)?)?;
        if let Some(registry) = options.registry {
            self.set_registry(registry, &options.hosts)?;
        }
        self.write_network(options.ip_masq)?;
        std::fs::write(self.config_file(), self.config(options))?;
        if !options.extra_config.is_empty() {
            let drop_ins = self.root.join("config.toml.d");
            std::fs::create_dir_all(&drop_ins)?;
            std::fs::write(drop_ins.join("50-test.toml"), &options.extra_config)?;
        }
        Ok(())
    }

    fn config(&self, options: &Options) -> String {
        let root = self.root.display();
        let runtime = &options.runtime;
        let metrics = self.metrics().map_or_else(String::new, |address| address.to_string());
        format!(
            r#"root = "{root}/root"
state = "{root}/state"

[grpc]
socket = "{socket}"

[monitor]
binary = "{monitor}"

[runtime]
default = "{runtime}"

[runtime.handlers.{runtime}]
path = "{runtime}"

[cgroups]
driver = "{driver}"
default_parent = "{cgroup}"

[network]
conf_dir = "{conf}"
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
cache_dir = "{cache}"
netns_dir = "{netns}"

[images]
certs_dirs = ["{certs}"]

[metrics]
address = "{metrics}"
"#,
            socket = self.socket().display(),
            monitor = monitor_binary().display(),
            driver = self.record.cgroup_driver.name(),
            cgroup = self.cgroup_parent(),
            conf = self.cni_conf_dir().display(),
            cache = self.cni_cache_dir().display(),
            netns = self.netns_dir().display(),
            certs = self.certs_dir().display(),
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            teardown::remove(self);
        }
    }
}

pub(crate) fn octet(scratch: &Scratch) -> u8 {
    scratch.record.octet
}

/// `PODWRIGHT_MONITOR`, or where `make build` puts the monitor.
fn monitor_binary() -> PathBuf {
    std::env::var_os("PODWRIGHT_MONITOR")
        .map_or_else(|| workspace().join("build/bin/podwright-monitor"), PathBuf::from)
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    listener.local_addr().context("find a free port")
}

fn random_bytes() -> Result<[u8; 4]> {
    use std::io::Read as _;
    let mut bytes = [0; 4];
    let mut source = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    source.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_share_nothing_and_leave_nothing() {
        let (a, b) = (Scratch::new().unwrap(), Scratch::new().unwrap());
        assert_ne!(a.id(), b.id());
        assert_ne!(a.subnet_prefix(), b.subnet_prefix());
        let reserved = crate::shared::subnet_file(&base(), octet(&a));
        assert!(a.config_file().exists() && reserved.exists());
        let root = a.root().to_owned();
        drop(a);
        assert!(!root.exists() && !reserved.exists() && b.config_file().exists());
    }
}
