//! The pod network with real CNI plugins: dual stack, host ports, bandwidth, changes of the configuration, STATUS, GC,
//! CHECK, plugins that hang. Faults by chance are in `churn`.

use crate::host_network::{HostNetwork, executable, inside, isolated};
use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{Options, http, patience, wait_for};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
/// Debian's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A bridge with host-local addresses, and what comes after it.
fn conflist(node: &Node, name: &str, subnets: &[&str], more: &[Value]) -> Value {
    let ranges: Vec<_> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": name, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "dataDir": node.scratch.ipam_dir(), "ranges": ranges,
                  "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
    })];
    plugins.extend_from_slice(more);
    json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins })
}

/// Puts a file into the configuration directory as installers do, by a rename.
fn install(node: &Node, file: &str, content: &Value) {
    let new = node.scratch.root().join("new-conf");
    std::fs::write(&new, content.to_string()).unwrap();
    std::fs::rename(new, node.scratch.cni_conf_dir().join(file)).unwrap();
}

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

impl Node {
    async fn network_status(&mut self) -> (pb::RuntimeCondition, Value) {
        let request = pb::StatusRequest { verbose: true };
        let answer = self.runtime.status(request).await.unwrap().into_inner();
        let conditions = answer.status.unwrap().conditions;
        let ready = conditions.into_iter().find(|c| c.r#type == "NetworkReady").unwrap();
        (ready, serde_json::from_str(&answer.info["cniconfig"]).unwrap())
    }

    /// Waits until what Status says of the network is so.
    async fn network_becomes(&mut self, what: &str, is_so: impl Fn(&pb::RuntimeCondition, &Value) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE * patience();
        loop {
            let (ready, config) = self.network_status().await;
            if is_so(&ready, &config) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {ready:?} {config}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ips(&mut self, pod: &str) -> Vec<IpAddr> {
        let network = self.pod_status(pod).await.unwrap().network.unwrap();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        std::iter::once(network.ip).chain(more).map(|ip| ip.parse().unwrap()).collect()
    }

    async fn gone(&mut self, pod: &str) {
        self.stop_pod(pod).await.unwrap();
        self.remove_pod(pod).await.unwrap();
    }

    fn netns(&self, pod: &str) -> PathBuf {
        self.scratch.netns_dir().join(format!("podwright-{pod}"))
    }

    /// Addresses that host-local holds for a network.
    fn leases(&self, network: &str) -> Vec<String> {
        let dir = std::fs::read_dir(self.scratch.ipam_dir().join(network)).into_iter().flatten();
        let names = dir.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }
}

/// Answers datagrams in a pod until it is dropped.
struct Echo {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(netns: &Path, port: u16) -> Self {
        let socket = inside(netns, move || UdpSocket::bind(("::", port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn connects(host: &HostNetwork, ip: &str, port: u16) -> bool {
    let address = SocketAddr::new(ip.parse().unwrap(), port);
    host.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok())
}

fn echoes(host: &HostNetwork, ip: &str, port: u16) -> bool {
    let address = SocketAddr::new(ip.parse().unwrap(), port);
    host.run(move || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 8];
        socket.connect(address).is_ok()
            && socket.send(b"ping").is_ok()
            && socket.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"ping")
    })
}

fn comes(what: &str, check: impl Fn() -> bool) {
    wait_for(what, PATIENCE, || check().then_some(())).unwrap();
}

fn mapping(protocol: pb::Protocol, host_port: i32, container_port: i32, host_ip: &str) -> pb::PortMapping {
    let (protocol, host_ip) = (protocol.into(), host_ip.to_owned());
    pb::PortMapping { protocol, host_port, container_port, host_ip }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dual_stack_pod_has_both_addresses_and_host_ports_of_every_kind() {
    let (mut node, host) = isolated(Options::default()).await;
    let (v4, v6) = (format!("{}0/24", node.scratch.subnet_prefix()), "fd00:88::/64");
    let network = conflist(&node, "dual", &[&v4, v6], &[portmap(), json!({ "type": "firewall" })]);
    install(&node, "05-dual.conflist", &network);
    node.network_becomes("dual", |_, config| config["network"] == "dual").await;

    let mut config = node.pod("dual");
    use pb::Protocol::{Sctp, Tcp, Udp};
    let gateways = [format!("{}1", node.scratch.subnet_prefix()), "fd00:88::1".to_owned()];
    config.port_mappings = vec![
        mapping(Tcp, 30080, 8080, ""),
        mapping(Udp, 30053, 8053, ""),
        mapping(Sctp, 30132, 8132, ""),
        mapping(Tcp, 30081, 8081, "127.0.0.1"),
        mapping(Udp, 30054, 8053, &gateways[1]),
        // Told only, not mapped.
        mapping(Tcp, 0, 8083, ""),
    ];
    let pod = node.run(&config).await.unwrap();
    let ips = node.ips(&pod).await;
    assert_eq!(ips.len(), 2);
    assert!(ips[0].to_string().starts_with(&node.scratch.subnet_prefix()), "{ips:?}");
    assert!(ips[1].to_string().starts_with("fd00:88::"), "{ips:?}");

    let netns = node.netns(&pod);
    let listeners = inside(&netns, || [8080u16, 8081].map(|port| TcpListener::bind(("::", port)).unwrap()));
    let echo = Echo::start(&netns, 8053);
    for gateway in &gateways {
        // The kernel may still check for duplicate IPv6 addresses.
        comes("the TCP port leads into the pod", || connects(&host, gateway, 30080));
        comes("the UDP port leads into the pod", || echoes(&host, gateway, 30053));
    }
    assert!(connects(&host, "127.0.0.1", 30080) && echoes(&host, "127.0.0.1", 30053));
    // One address only.
    assert!(connects(&host, "127.0.0.1", 30081) && !connects(&host, &gateways[0], 30081));
    assert!(echoes(&host, &gateways[1], 30054) && !echoes(&host, &gateways[0], 30054));
    // Not every kernel has SCTP sockets, but each that filters has it as a word.
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = host.tool(program, &["-t", "nat"]);
        let leads = |word: &str, to: &str| {
            let to = format!(":{to}");
            rules.lines().any(|r| r.contains("--to-destination") && r.contains(word) && r.ends_with(&to))
        };
        assert!(leads("-p sctp", "8132") && leads("-p tcp", "8080"), "{rules}");
        assert!(!rules.contains(":8083"), "{rules}");
    }

    // A daemon that starts later reports and removes the same.
    node.daemon.crash().unwrap();
    assert_eq!(node.ips(&pod).await, ips);
    drop((listeners, echo));
    node.gone(&pod).await;
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = host.tool(program, &[]);
        let left: Vec<_> =
            rules.lines().filter(|l| l.contains("CNI-DN-") || l.contains("name: \\\"dual\\\"")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(!connects(&host, "127.0.0.1", 30080));
    assert_eq!(node.leases("dual"), Vec::<String>::new());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn annotations_limit_a_pods_bandwidth() {
    let (mut node, host) = isolated(Options::default()).await;
    let subnet = format!("{}0/24", node.scratch.subnet_prefix());
    let shaper = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    install(&node, "05-slow.conflist", &conflist(&node, "slow", &[&subnet], &[shaper]));
    node.network_becomes("slow", |_, config| config["network"] == "slow").await;
    let mut config = node.pod("slow");
    let annotate = |config: &mut pb::PodSandboxConfig, ingress: &str| {
        config.annotations =
            map(&[("kubernetes.io/ingress-bandwidth", ingress), ("kubernetes.io/egress-bandwidth", "7M")]);
    };
    annotate(&mut config, "10");
    refused(node.run(&config).await, Code::InvalidArgument, &["kubernetes.io/ingress-bandwidth", "1k to 1P"]);
    assert!(node.list_pods().await.is_empty() && node.leases("slow").is_empty());

    annotate(&mut config, "5M");
    let pod = node.run(&config).await.unwrap();
    let queues = host.tool("tc", &["qdisc", "show"]);
    let limits = |rate: &str| queues.lines().any(|line| line.contains("tbf") && line.contains(rate));
    assert!(limits("rate 5Mbit") && limits("rate 7Mbit"), "{queues}");
    node.gone(&pod).await;
    let queues = host.tool("tc", &["qdisc", "show"]);
    assert!(!queues.contains("tbf"), "{queues}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_configuration_is_for_new_pods_alone() {
    let (mut node, host) = isolated(Options::default()).await;
    let first = node.run(&node.pod("first")).await.unwrap();
    let old = node.scratch.id().to_owned();
    assert!(node.ips(&first).await[0].to_string().starts_with(&node.scratch.subnet_prefix()));
    // The first of several files by name applies; broken ones are skipped and reported.
    std::fs::write(node.scratch.cni_conf_dir().join("01-broken.conflist"), "{").unwrap();
    install(&node, "20-later.conflist", &conflist(&node, "later", &["10.201.0.0/24"], &[]));
    install(&node, "05-new.conflist", &conflist(&node, "new", &["10.200.0.0/24"], &[portmap()]));
    node.network_becomes("new", |_, config| {
        config["network"] == "new"
            && config["skippedFiles"][0].as_str().is_some_and(|f| f.starts_with("01-broken"))
    })
    .await;
    let mut with_port = node.pod("second");
    with_port.port_mappings = vec![mapping(pb::Protocol::Tcp, 30090, 80, "")];
    let second = node.run(&with_port).await.unwrap();
    assert!(node.ips(&second).await[0].to_string().starts_with("10.200.0."));
    assert_eq!(node.pod_status(&first).await.unwrap().state(), pb::PodSandboxState::SandboxReady);

    // No file is left of either network, and the daemon is another one.
    install(&node, "05-new.conflist", &conflist(&node, "newest", &["10.202.0.0/24"], &[]));
    std::fs::remove_file(node.scratch.cni_conf_dir().join("10-scratch.conflist")).unwrap();
    node.network_becomes("newest", |_, config| config["network"] == "newest").await;
    node.daemon.crash().unwrap();
    assert_eq!((node.leases(&old).len(), node.leases("new").len()), (1, 1));
    node.gone(&first).await;
    assert_eq!((node.leases(&old).len(), node.leases("new").len()), (0, 1));
    assert!(host.tool("iptables-save", &["-t", "nat"]).contains("30090"));
    node.gone(&second).await;
    assert!(node.leases("new").is_empty());
    assert!(!host.tool("iptables-save", &["-t", "nat"]).contains("30090"));
    let third = node.run(&node.pod("third")).await.unwrap();
    assert!(node.ips(&third).await[0].to_string().starts_with("10.202.0."));
    node.finish().await;
}

/// Two bridges for each pod; the second has two addresses to give, one of which is the bridge's own.
async fn two_networks() -> (Node, HostNetwork) {
    let extra_config = "[network]\nmax_conf_num = 2\n".to_owned();
    let (mut node, host) = isolated(Options { extra_config, ..Default::default() }).await;
    let first = conflist(&node, "first", &[&format!("{}0/24", node.scratch.subnet_prefix())], &[portmap()]);
    install(&node, "05-first.conflist", &first);
    let mut second = conflist(&node, "second", &["10.203.0.0/30"], &[]);
    // The pod has one default route.
    second["plugins"][0]["ipam"].as_object_mut().unwrap().remove("routes");
    install(&node, "06-second.conflist", &second);
    node.network_becomes("both", |ready, config| {
        ready.status && config["network"] == "first" && config["furtherNetworks"][0]["network"] == "second"
    })
    .await;
    (node, host)
}

/// Addresses of a pod's interface.
fn addresses(netns: &Path, interface: &'static str) -> String {
    inside(netns, move || crate::host_network::tool("ip", &["-o", "-4", "address", "show", "dev", interface]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_two_networks_has_an_interface_of_each() {
    let (mut node, host) = two_networks().await;
    let mut config = node.pod("both");
    config.port_mappings = vec![mapping(pb::Protocol::Tcp, 30070, 8080, "")];
    let pod = node.run(&config).await.unwrap();
    let ips = node.ips(&pod).await;
    assert!(ips.len() == 1 && ips[0].to_string().starts_with(&node.scratch.subnet_prefix()), "{ips:?}");
    let netns = node.netns(&pod);
    assert!(addresses(&netns, "eth0").contains(&format!("inet {}/24", ips[0])));
    assert!(addresses(&netns, "eth1").contains("inet 10.203.0.2/30"));
    let listener = inside(&netns, || TcpListener::bind("0.0.0.0:8080").unwrap());
    comes("the port leads into the pod", || connects(&host, "127.0.0.1", 30070));
    assert!(connects(&host, "10.203.0.2", 8080));
    drop(listener);

    // A daemon that no longer knows either network reports the same of the pod, and detaches it from both.
    std::fs::remove_file(node.scratch.cni_conf_dir().join("05-first.conflist")).unwrap();
    std::fs::remove_file(node.scratch.cni_conf_dir().join("06-second.conflist")).unwrap();
    node.daemon.crash().unwrap();
    assert_eq!(node.ips(&pod).await, ips);
    let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let answer = node.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    let info: Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let told = &info["network"]["further"][0];
    assert_eq!((&told["interface"], &told["ips"][0]), (&json!("eth1"), &json!("10.203.0.2")));
    let stats = node.pod_stats(&pod).await.unwrap();
    let usage = stats.linux.unwrap().network.unwrap();
    assert_eq!(usage.default_interface.unwrap().name, "eth0");
    assert_eq!(usage.interfaces.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), ["eth1"]);
    assert_eq!((node.leases("first").len(), node.leases("second").len()), (1, 1));
    node.gone(&pod).await;
    assert_eq!((node.leases("first").len(), node.leases("second").len()), (0, 0));
    assert!(!host.tool("iptables-save", &["-t", "nat"]).contains("30070"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_second_network_refuses_is_in_neither() {
    let (mut node, host) = two_networks().await;
    let first = node.run(&node.pod("first")).await.unwrap();
    let mut config = node.pod("second");
    config.port_mappings = vec![mapping(pb::Protocol::Tcp, 30071, 8080, "")];
    let says = ["CNI plugin bridge of network second: ADD", "no IP addresses available"];
    refused(node.run(&config).await, Code::Unavailable, &says);
    assert_eq!(node.list_pods().await.len(), 1);
    assert_eq!((node.leases("first").len(), node.leases("second").len()), (1, 1));
    assert!(!host.tool("iptables-save", &["-t", "nat"]).contains("30071"));
    node.gone(&first).await;
    let second = node.run(&config).await.unwrap();
    assert!(addresses(&node.netns(&second), "eth1").contains("10.203.0.2/30"));
    node.gone(&second).await;
    node.finish().await;
}

/// A directory before that of the real plugins, with a program in it.
fn plugin(name: &str, script: &str) -> (tempfile::TempDir, Options) {
    let dir = tempfile::tempdir().unwrap();
    let text = script.replace("@DIR@", &dir.path().display().to_string()).replace("@PLUGINS@", PLUGINS);
    executable(&dir.path().join(name), &text);
    let dirs = format!("bin_dirs = [\"{}\", \"{PLUGINS}\"]", dir.path().display());
    let extra_config = format!("[network]\nadd_timeout_seconds = 3\ndel_timeout_seconds = 3\n{dirs}\n");
    (dir, Options { extra_config, ..Default::default() })
}

/// A bridge as newer ones are: it says how it is, and collects. ADD and DEL are the real one's.
const NEWER_BRIDGE: &str = r#"#!/bin/sh
case $CNI_COMMAND in
STATUS)
    if [ -e @DIR@/sick ]; then echo '{"code":50,"msg":"the address store is full"}'; exit 1; fi ;;
GC) cat >@DIR@/gc.new && mv @DIR@/gc.new @DIR@/gc ;;
*) sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/g' | @PLUGINS@/bridge ;;
esac
"#;

fn newer(node: &Node) -> Value {
    let subnet = format!("{}0/24", node.scratch.subnet_prefix());
    let mut network = conflist(node, node.scratch.bridge(), &[&subnet], &[]);
    network["cniVersion"] = "1.1.0".into();
    network["plugins"][0]["type"] = "newer".into();
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plugins_say_of_themselves_is_the_nodes_readiness() {
    let (dir, options) = plugin("newer", NEWER_BRIDGE);
    let sick = dir.path().join("sick");
    std::fs::write(&sick, "").unwrap();
    let mut node = Node::new(options).await;
    install(&node, "10-scratch.conflist", &newer(&node));
    let says = "Network plugin returns error: CNI plugin newer of network";
    node.network_becomes("not ready", |ready, _| {
        !ready.status
            && ready.reason == "NetworkPluginNotReady"
            && ready.message.starts_with(says)
            && ready.message.ends_with("STATUS: the address store is full (code 50)")
    })
    .await;
    // A pod that needs no network runs nevertheless.
    let mut config = node.pod("host");
    let options = pb::NamespaceOption { network: pb::NamespaceMode::Node.into(), ..Default::default() };
    config.linux.get_or_insert_default().security_context =
        Some(pb::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    node.run(&config).await.unwrap();
    std::fs::remove_file(&sick).unwrap();
    node.network_becomes("ready", |ready, _| ready.status && ready.message.is_empty()).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_collects_with_the_pods_that_are_there() {
    let (dir, options) = plugin("newer", NEWER_BRIDGE);
    let mut node = Node::new(options).await;
    install(&node, "10-scratch.conflist", &newer(&node));
    node.network_becomes("ready", |ready, config| ready.status && config["cniVersion"] == "1.1.0").await;
    let (kept, lost) =
        (node.run(&node.pod("kept")).await.unwrap(), node.run(&node.pod("lost")).await.unwrap());
    let network = node.scratch.id().to_owned();
    assert_eq!(node.leases(&network).len(), 2);
    node.daemon.kill().unwrap();
    // Its end will never be requested.
    std::fs::remove_dir_all(node.scratch.root().join("root/pods").join(&lost)).unwrap();
    let gc = dir.path().join("gc");
    let _ = std::fs::remove_file(&gc);
    node.daemon.launch().unwrap();
    comes("GC is called", || gc.exists());
    let sent: Value = serde_json::from_slice(&std::fs::read(&gc).unwrap()).unwrap();
    assert_eq!(sent["cni.dev/valid-attachments"], json!([{ "containerID": kept, "ifname": "eth0" }]));
    assert_eq!(node.leases(&network).len(), 1);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_finds_out_whose_network_is_gone() {
    // The plugin removes masquerading by the addresses of the interface, which will not be there.
    let mut node = Node::new(Options { ip_masq: false, ..Default::default() }).await;
    let (well, hurt) =
        (node.run(&node.pod("well")).await.unwrap(), node.run(&node.pod("hurt")).await.unwrap());
    inside(&node.netns(&hurt), || crate::host_network::tool("ip", &["link", "delete", "eth0"]));
    node.daemon.crash().unwrap();
    let address = node.scratch.metrics().unwrap();
    comes("CHECK has been called for both", || {
        let text = String::from_utf8(http::get(address, "/metrics").unwrap()).unwrap();
        let count = |outcome: &str| {
            let sample = format!(
                "podwright_cni_call_seconds_count{{outcome=\"{outcome}\",plugin=\"bridge\",verb=\"CHECK\"}} 1"
            );
            text.contains(&sample)
        };
        count("done") && count("failed")
    });
    comes("it is told", || node.daemon.log().contains("a pod's network is not as it was made"));
    let log = node.daemon.log();
    let told: Vec<_> = log.lines().filter(|l| l.contains("a pod's network is not as it was made")).collect();
    assert!(told.len() == 1 && told[0].contains(&hurt) && !told[0].contains(&well), "{told:?}");
    // Only reported: the containers may not need it.
    assert_eq!(node.pod_status(&hurt).await.unwrap().state(), pb::PodSandboxState::SandboxReady);
    node.finish().await;
}

/// A bridge that waits in ADD of the pod `waits` until it is allowed to go on.
const WAITING_BRIDGE: &str = r#"#!/bin/sh
case $CNI_COMMAND$CNI_ARGS in
ADD*K8S_POD_NAME=waits*)
    echo $$ >@DIR@/pid
    while [ ! -e @DIR@/go ]; do sleep 0.05; done ;;
esac
exec @PLUGINS@/bridge
"#;

type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// A node with that bridge, and the call that waits for it.
struct Waiting {
    node: Node,
    call: tokio::task::JoinHandle<Answer<pb::RunPodSandboxResponse>>,
    /// Of the plugin.
    pid: String,
    dir: tempfile::TempDir,
}

impl Waiting {
    async fn new() -> Self {
        let (dir, options) = plugin("bridge", WAITING_BRIDGE);
        let node = Node::new(options).await;
        let mut client = node.runtime.clone();
        let request = pb::RunPodSandboxRequest { config: Some(node.pod("waits")), ..Default::default() };
        let call = tokio::spawn(async move { client.run_pod_sandbox(request).await });
        let pid = || std::fs::read_to_string(dir.path().join("pid")).ok().filter(|text| text.ends_with('\n'));
        let pid = wait_for("the plugin waits", PATIENCE, pid).unwrap();
        Self { node, call, pid, dir }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_costs_its_own_pod_alone() {
    let Waiting { mut node, call: waiting, dir: _dir, .. } = Waiting::new().await;
    let other = node.run(&node.pod("other")).await.unwrap();
    assert!(!waiting.is_finished());
    node.gone(&other).await;
    let answer = waiting.await.unwrap();
    let says = ["CNI plugin bridge", "ADD for pod waits_default_uid-waits_0", "no answer within 3s"];
    refused(answer, Code::DeadlineExceeded, &says);
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_does_not_outlive_its_daemon() {
    let Waiting { mut node, call: waiting, pid, dir } = Waiting::new().await;
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    node.daemon.kill().unwrap();
    assert!(waiting.await.unwrap().is_err());
    assert!(process.exists());
    node.daemon.launch().unwrap();
    comes("the plugin is gone", || !process.exists());
    // Were it still there, it would take an address now.
    std::fs::write(dir.path().join("go"), "").unwrap();
    let pods = node.list_pods().await;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].state(), pb::PodSandboxState::SandboxNotready);
    node.gone(&pods[0].id).await;
    assert!(node.leases(node.scratch.id()).is_empty());
    node.run(&node.pod("waits")).await.unwrap();
    node.finish().await;
}
