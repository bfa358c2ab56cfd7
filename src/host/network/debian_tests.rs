//! The real bridge, host-local and portmap plugins, in namespaces of their own.
//!
//! Needs root and the plugins that Debian's containernetworking-plugins installs; iptables for the host port.

use super::fixture::{attachment, ready_with};
use super::*;
use crate::model::Protocol;
use std::net::{TcpListener, TcpStream};
use std::process::Command as Tool;

const BIN: &str = "/usr/lib/cni";
const PORT: u16 = 39_017;

fn tool(program: &str, args: &[&str]) -> String {
    let output = Tool::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A bridge, its addresses and some namespaces; removed at the end in any case. Bridge and rules belong to the test's
/// own network namespace, so the machine's are untouched.
struct Node {
    dir: tempfile::TempDir,
    bridge: String,
    namespaces: Vec<String>,
}

impl Node {
    fn new() -> Self {
        Self::with(
            "pwt",
            &serde_json::json!([[{"subnet": "10.213.77.0/24"}], [{"subnet": "fd00:213:77::/64"}]]),
        )
    }

    fn with(prefix: &str, ranges: &serde_json::Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // At most 15 characters; unique per test and process.
        let bridge = format!("{prefix}{}", std::process::id());
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": bridge, "plugins": [
            {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": false, "ipam": {
                "type": "host-local", "dataDir": dir.path().join("ipam"),
                "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        std::fs::create_dir(dir.path().join("conf")).unwrap();
        std::fs::write(dir.path().join("conf/10-pwt.conflist"), list.to_string()).unwrap();
        Self { dir, bridge, namespaces: Vec::new() }
    }

    fn config(&self) -> config::Network {
        let path = |name: &str| self.dir.path().join(name);
        config::Network {
            conf_dir: path("conf"),
            bin_dirs: vec![BIN.into()],
            cache_dir: path("cache"),
            netns_dir: "/run/netns".into(),
            ..config::Network::default()
        }
    }

    fn namespace(&mut self) -> PathBuf {
        let name = format!("{}-{}", self.bridge, self.namespaces.len());
        tool("ip", &["netns", "add", &name]);
        let path = Path::new("/run/netns").join(&name);
        self.namespaces.push(name);
        path
    }

    /// Addresses that host-local holds.
    fn leases(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.dir.path().join("ipam").join(&self.bridge)).into_iter().flatten();
        let mut names: Vec<String> = dir
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.parse::<IpAddr>().is_ok())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for name in &self.namespaces {
            // Some are gone already.
            drop(Tool::new("ip").args(["netns", "delete", name]).output());
        }
    }
}

fn rules() -> String {
    tool("iptables", &["-w", "-t", "nat", "-S"])
}

#[test]
fn bridge_host_local_and_portmap() {
    on_a_host(pods());
}

#[test]
fn a_check_of_a_host_port_finds_what_is_gone_and_nothing_else() {
    on_a_host(checked());
}

/// Runs the daemon's part on a thread in a fresh network namespace, which plays the host's.
fn on_a_host(what: impl Future<Output = ()> + Send + 'static) {
    let host = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        tool("ip", &["link", "set", "lo", "up"]);
        // One thread, so that all children start in this namespace.
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what);
    });
    host.join().unwrap();
}

/// Runs `what` on a thread inside a pod's namespace.
fn inside<T: Send + 'static>(netns: &Path, what: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = std::fs::File::open(netns).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        what()
    });
    thread.join().unwrap()
}

fn interfaces(netns: &Path) -> String {
    inside(netns, || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap())
}

fn connects(address: &str) -> bool {
    let address = format!("{address}:{PORT}").parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(10)).is_ok()
}

async fn checked() {
    if !Path::new(BIN).join("bridge").exists() {
        eprintln!("no CNI plugins in {BIN}; nothing tested");
        return;
    }
    // One family: portmap's CHECK asks for rules of the other one, too.
    let mut node = Node::with("pwc", &serde_json::json!([[{"subnet": "10.213.78.0/24"}]]));
    let network = Network::start(&node.config()).unwrap();
    let mut web = attachment();
    let netns = node.namespace();
    web.netns = Some(netns.clone());
    web.port_mappings =
        vec![PortMapping { protocol: Protocol::Tcp, container_port: 8080, host_port: PORT, host_ip: None }];
    network.attach(&web).await.unwrap();
    assert_eq!(network.check(&web.sandbox, &netns).await.unwrap(), Checkup::Well);
    tool("iptables", &["-w", "-t", "nat", "-F"]);
    let error = network.check(&web.sandbox, &netns).await.unwrap_err().to_string();
    assert!(error.contains("portmap") && error.contains("CHECK"), "{error}");
    network.detach(&web).await.unwrap();
}

async fn pods() {
    if !Path::new(BIN).join("bridge").exists() {
        eprintln!("no CNI plugins in {BIN}; nothing tested");
        return;
    }
    let mut node = Node::new();
    let network = Network::start(&node.config()).unwrap();
    assert_eq!(network.readiness(), ready_with(&node.bridge));

    let mut web = attachment();
    web.netns = Some(node.namespace());
    web.port_mappings =
        vec![PortMapping { protocol: Protocol::Tcp, container_port: 8080, host_port: PORT, host_ip: None }];
    let got = network.attach(&web).await.unwrap();
    assert_eq!(got.ips.len(), 2);
    assert!(got.ips[0].is_ipv4() && got.ips[1].is_ipv6());
    assert!(got.mac.is_some());
    let ip = got.ips[0].to_string();
    let pod = web.netns.clone().unwrap();
    assert!(interfaces(&pod).contains("eth0:"));
    assert_eq!(node.leases().len(), 2);
    let mapping = format!("--to-destination {ip}:8080");
    assert!(rules().contains(&mapping), "{}", rules());

    let address = std::net::SocketAddr::new(got.ips[0], 8080);
    let listener = inside(&pod, move || TcpListener::bind(address).unwrap());
    assert!(connects("10.213.77.1"));
    assert!(connects("127.0.0.1"));
    drop(listener);

    // A second pod, whose namespace is deleted before it is detached.
    let mut lost = attachment();
    lost.netns = Some(node.namespace());
    let second = network.attach(&lost).await.unwrap();
    assert_ne!(second.ips[0], got.ips[0]);
    tool("ip", &["netns", "delete", &node.namespaces[1]]);
    network.detach(&lost).await.unwrap();
    assert_eq!(node.leases().len(), 2);

    // A third, whose daemon died and whose namespace is a plain file since the reboot.
    let mut rebooted = attachment();
    rebooted.netns = Some(node.namespace());
    network.attach(&rebooted).await.unwrap();
    drop(network);
    tool("ip", &["netns", "delete", &node.namespaces[2]]);
    let plain = node.dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    rebooted.netns = Some(plain);
    let network = Network::start(&node.config()).unwrap();
    network.detach(&rebooted).await.unwrap();
    assert_eq!(node.leases().len(), 2);

    // An ADD that fails half-way leaves nothing: portmap refuses container port 0.
    let mut refused = attachment();
    refused.netns = Some(node.namespace());
    refused.port_mappings =
        vec![PortMapping { protocol: Protocol::Tcp, container_port: 0, host_port: PORT + 1, host_ip: None }];
    let error = network.attach(&refused).await.unwrap_err().to_string();
    assert!(
        error.contains("plugin portmap of network") && error.contains("ADD for pod web_ns_u-1_0"),
        "{error}"
    );
    assert_eq!(node.leases().len(), 2);

    network.detach(&web).await.unwrap();
    assert!(!rules().contains(&mapping), "{}", rules());
    assert!(!connects("127.0.0.1"));
    assert!(!interfaces(&pod).contains("eth0:"));
    network.detach(&web).await.unwrap();
    network.detach(&lost).await.unwrap();
    assert_eq!(node.leases(), Vec::<String>::new());
    let cached = std::fs::read_dir(node.dir.path().join("cache/results")).unwrap();
    let cached: Vec<_> = cached.map(|entry| entry.unwrap().file_name()).collect();
    assert!(cached.is_empty(), "{cached:?}");

    // The next daemon collects what an earlier one left behind.
    let mut stale = attachment();
    stale.netns = Some(node.namespace());
    network.attach(&stale).await.unwrap();
    drop(network);
    let network = Network::start(&node.config()).unwrap();
    network.collect(&[]).await;
    assert_eq!(node.leases(), Vec::<String>::new());
}
