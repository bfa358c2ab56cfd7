//! The processes that work on other people's bytes: what they are, what they cannot do, and that they go.

use crate::support::*;
use podwright_testkit::{Compression, Entry, Image, ImageBuilder, LayerBuilder, Options, wait_for};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tonic::Code;

/// How long a state that must come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry that serves one image, but of its layer only the first half; the rest comes, or the connection ends, when it
/// is told.
struct Stalling {
    address: SocketAddr,
    go_on: mpsc::Sender<bool>,
}

impl Stalling {
    fn start(image: Image) -> Self {
        Self::serving(image, false)
    }

    /// With `again`, the layer is served whole to whoever asks for it again.
    fn serving(image: Image, again: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (go_on, told) = mpsc::channel();
        std::thread::spawn(move || {
            let told = Arc::new(Mutex::new(Some(told)));
            for connection in listener.incoming() {
                let (image, mut connection, told) = (image.clone(), connection.unwrap(), Arc::clone(&told));
                std::thread::spawn(move || while serve(&image, &mut connection, &told, again).is_some() {});
            }
        });
        Self { address, go_on }
    }

    fn name(&self) -> String {
        format!("{}/stalling/image:t", self.address)
    }
}

/// Answers one request; None: there will be none.
fn serve(
    image: &Image,
    connection: &mut TcpStream,
    told: &Mutex<Option<mpsc::Receiver<bool>>>,
    again: bool,
) -> Option<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap();
    let (method, rest) = request.split_once(' ').unwrap();
    let path = rest.split(' ').next().unwrap();
    let layer = &image.layers[0];
    let (kind, body): (&str, &[u8]) = match path {
        path if path.contains("/manifests/") => (image.media_type, &image.manifest.bytes),
        path if path.ends_with(&image.config.digest) => ("application/octet-stream", &image.config.bytes),
        path if path.ends_with(&layer.digest) => ("application/octet-stream", &layer.blob),
        _ => ("text/plain", b""),
    };
    let digest = if kind == image.media_type {
        format!("Docker-Content-Digest: {}\r\n", image.manifest.digest)
    } else {
        String::new()
    };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{digest}Content-Length: {}\r\n\r\n", body.len());
    connection.write_all(head.as_bytes()).ok()?;
    if method == "HEAD" {
        return Some(());
    }
    if path.ends_with(&layer.digest) {
        connection.write_all(&body[..body.len() / 2]).ok()?;
        let told = told.lock().unwrap().take();
        match told {
            Some(told) if told.recv().ok()? => {}
            None if again => {}
            // Whoever asks again, asks a registry that has gone.
            _ => return None,
        }
        connection.write_all(&body[body.len() / 2..]).ok()?;
        return Some(());
    }
    connection.write_all(body).ok()
}

/// An image of one layer whose half is several pipes full.
fn large() -> Image {
    let mut content = vec![0u8; 8 << 20];
    let mut state = 1u64;
    for byte in &mut content {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
    let layer = LayerBuilder::new().entries([Entry::dir("d"), Entry::file("d/f", content)]);
    ImageBuilder::new().layer(&layer.build(Compression::Gzip).unwrap()).build()
}

/// The user of workers.
const USER: &str = "4042322161\t4042322161\t4042322161\t4042322161";

/// Name of the process that workers are forked from.
const ZYGOTE: &str = "worker-zygote";

/// Name of the process that asks registries.
const CLIENT: &str = "registry-client";

/// Workers of the daemon, with what they are forked from: pid → the lines of its status.
fn family(daemon: u32) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        if !read("cmdline").starts_with("podwright-worker\0") {
            continue;
        }
        let status: BTreeMap<String, String> = read("status")
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        if status.get("PPid").is_some_and(|parent| *parent == daemon.to_string()) {
            found.insert(pid, status);
        }
    }
    found
}

/// What works on layers: without what they are forked from, and what speaks HTTP for a pull.
fn workers(daemon: u32) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut found = family(daemon);
    found.retain(|_, status| ![ZYGOTE, CLIENT].contains(&&*status["Name"]));
    found
}

fn zygotes(daemon: u32) -> Vec<u32> {
    family(daemon).into_iter().filter(|(_, status)| status["Name"] == ZYGOTE).map(|(pid, _)| pid).collect()
}

fn clients(daemon: u32) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut found = family(daemon);
    found.retain(|_, status| status["Name"] == CLIENT);
    found
}

/// The kernel's names of connections to `address`, of whoever has made them.
fn connections_to(address: SocketAddr) -> Vec<String> {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|line| line[2].ends_with(&port)).map(|line| format!("socket:[{}]", line[9])).collect()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// What a process has open: the kernel's name of each.
fn open_files(pid: u32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open = open.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap());
    open.map(|path| path.into_os_string().into_string().unwrap()).collect()
}

fn gone(pids: &[u32]) {
    wait_for("the workers end", PATIENCE, || {
        let left = pids.iter().any(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with("podwright-worker\0")
        });
        (!left).then_some(())
    })
    .unwrap();
}

/// Starts a pull that stalls, and waits until both workers of its layer have given up their rights.
async fn stalled(node: &Node, registry: &Stalling) -> (tokio::task::JoinHandle<bool>, Vec<u32>) {
    let (name, mut images) = (registry.name(), node.images.clone());
    let pull = tokio::spawn(async move {
        let request =
            podwright::cri::proto::PullImageRequest { image: Some(image_spec(&name)), ..Default::default() };
        images.pull_image(request).await.is_ok()
    });
    let daemon = node.daemon.pid().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let found = tokio::task::spawn_blocking(move || {
        wait_for("two confined workers", PATIENCE, || {
            let found = workers(daemon);
            (found.len() == 2 && found.values().all(|status| status["Seccomp"] == "2")).then_some(found)
        })
        .unwrap()
    })
    .await
    .unwrap();
    for (pid, status) in &found {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set}: {status:?}");
        }
        assert_eq!((&*status["NoNewPrivs"], &*status["Groups"]), ("1", ""), "{status:?}");
        assert_eq!((&*status["Uid"], &*status["Gid"]), (USER, USER));
        assert_eq!(status["Threads"], "1");
        let open = open_files(*pid);
        // The memory is that in which a parser sees its tar, or what a decompressor reads and writes.
        let known = ["pipe:", "socket:", "/dev/null", "/memfd:shown", "/memfd:shared"];
        let strange = |path: &String| !known.iter().any(|known| path.starts_with(known));
        assert!(!open.iter().any(strange) && open.len() <= 8, "{open:?}");
        // Nothing that another worker has, or what it was forked from.
        for path in open.iter().filter(|path| *path != "/dev/null") {
            assert!(seen.insert(path.clone()), "{path} is open twice: {open:?}");
        }
        assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    }
    (pull, found.into_keys().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_worked_on_by_processes_without_rights() {
    let mut node = Node::new(Options::default()).await;
    let registry = Stalling::start(large());
    let (pull, pids) = stalled(&node, &registry).await;
    registry.go_on.send(true).unwrap();
    assert!(pull.await.unwrap(), "the pull ends well");
    gone(&pids);
    assert!(node.pull(&registry.name()).await.is_ok(), "the image is there");
    node.finish().await;
}

/// What workers are forked from has given up what they have, holds nothing, is replaced when it dies, and takes no worker with
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn workers_are_forked_from_a_process_without_rights() {
    let mut node = Node::new(Options::default()).await;
    let daemon = node.daemon.pid().unwrap();
    assert!(zygotes(daemon).is_empty(), "before anybody needs it");
    let registry = Stalling::start(large());
    let (pull, pids) = stalled(&node, &registry).await;
    let family = family(daemon);
    let [zygote] = zygotes(daemon)[..] else { panic!("one: {family:?}") };
    let status = &family[&zygote];
    assert_eq!((&*status["Uid"], &*status["NoNewPrivs"], &*status["Threads"]), (USER, "1", "1"));
    assert!(
        ["CapPrm", "CapEff", "CapBnd"].iter().all(|set| status[*set] == "0000000000000000"),
        "{status:?}"
    );
    let mut open = open_files(zygote);
    open.retain(|path| path != "/dev/null");
    assert!(matches!(&open[..], [one] if one.starts_with("socket:")), "{open:?}");
    for pid in &pids {
        assert!(!open_files(*pid).contains(&open[0]), "a worker reaches it");
    }
    assert_eq!(std::fs::read(format!("/proc/{zygote}/environ")).unwrap(), b"");
    // Who is nobody in a container of the host's PID namespace is not a worker's user.
    let by_nobody = |pid: u32| {
        use std::os::unix::process::CommandExt as _;
        let mut kill = std::process::Command::new("/bin/kill");
        kill.arg("-0").arg(pid.to_string()).uid(65534).gid(65534).stderr(std::process::Stdio::null());
        kill.status().unwrap().success()
    };
    assert!(!pids.iter().chain([&zygote]).any(|pid| by_nobody(*pid)), "nobody can signal them");
    kill(zygote);
    // The next one needs a new one, and the first goes on.
    let next = LayerBuilder::new().entries([Entry::file("n", &b"n"[..])]).build(Compression::Gzip).unwrap();
    push(&node.registry, "library/next", "t", ImageBuilder::new().layer(&next).build());
    node.pull(&format!("{}/library/next:t", node.registry.address())).await.unwrap();
    assert!(zygotes(daemon).iter().any(|pid| *pid != zygote), "it was replaced");
    registry.go_on.send(true).unwrap();
    assert!(pull.await.unwrap(), "the first pull ends well");
    gone(&pids);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_the_daemon() {
    let mut node = Node::new(Options::default()).await;
    let registry = Stalling::start(large());
    let (_pull, mut pids) = stalled(&node, &registry).await;
    pids.extend(zygotes(node.daemon.pid().unwrap()));
    pids.extend(clients(node.daemon.pid().unwrap()).into_keys());
    assert_eq!(pids.len(), 4);
    node.daemon.kill().unwrap();
    gone(&pids);
    node.daemon.launch().unwrap();
    node.finish().await;
}

/// What a registry sends is read by a process that has a connection, and nothing else; the daemon has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_by_a_process_without_rights() {
    let node = Node::new(Options::default()).await;
    let registry = Stalling::start(large());
    let (pull, mut pids) = stalled(&node, &registry).await;
    let daemon = node.daemon.pid().unwrap();
    let clients = clients(daemon);
    let [(client, status)] = &clients.iter().collect::<Vec<_>>()[..] else { panic!("one: {clients:?}") };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set}: {status:?}");
    }
    let rights = ["NoNewPrivs", "Seccomp", "Groups", "Threads"].map(|key| &*status[key]);
    assert_eq!(rights, ["1", "2", "", "1"], "{status:?}");
    assert_eq!((&*status["Uid"], &*status["Gid"]), (USER, USER));
    assert_eq!(std::fs::read(format!("/proc/{client}/environ")).unwrap(), b"");
    let connections = connections_to(registry.address);
    assert!(!connections.is_empty());
    let (ours, theirs) = (open_files(daemon), open_files(**client));
    assert!(!connections.iter().any(|one| ours.contains(one)), "the daemon has {connections:?}");
    assert!(connections.iter().any(|one| theirs.contains(one)), "{connections:?}: {theirs:?}");
    let known = |path: &String| {
        path.starts_with("socket:")
            || path.starts_with("anon_inode:[event")
            || path == "/dev/null"
            || path.starts_with("/memfd:shared")
    };
    assert!(theirs.iter().all(known), "{theirs:?}");
    registry.go_on.send(true).unwrap();
    assert!(pull.await.unwrap(), "the pull ends well");
    pids.push(**client);
    gone(&pids);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_client_that_is_killed_costs_a_retry() {
    let node = Node::new(Options::default()).await;
    let registry = Stalling::serving(large(), true);
    let (pull, pids) = stalled(&node, &registry).await;
    for client in clients(node.daemon.pid().unwrap()).into_keys() {
        kill(client);
    }
    assert!(pull.await.unwrap(), "the pull ends well");
    gone(&pids);
    node.finish().await;
}

/// What the kernel answers a worker that was taken over.
#[test]
fn a_worker_can_do_nothing_but_its_work() {
    for name in ["trial", "trial-registry-client"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_podwright"))
            .arg0("podwright-worker")
            .arg(name)
            .stderr(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}: {said}", output.status);
        let lines: Vec<_> = said.lines().collect();
        assert!(lines.len() >= 17, "{said}");
        for line in &lines {
            assert!(line.ends_with(": EPERM"), "{name}: {line}");
        }
    }
    // A worker's name alone makes none.
    let none = std::process::Command::new(env!("CARGO_BIN_EXE_podwright"))
        .arg0("podwright-worker")
        .arg("version")
        .output()
        .unwrap();
    assert!(!none.status.success());
}

/// Errors of streams are told as before, though they come from another process.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_layer_is_told() {
    let mut node = Node::new(Options::default()).await;
    let honest = LayerBuilder::new().entries([Entry::file("f", &b"x"[..])]);
    let plain = honest.tar().unwrap();
    let cut = honest.build(Compression::Gzip).unwrap().blob;
    for (tag, blob, words) in [
        ("cut", cut[..cut.len() - 9].to_vec(), "corrupt"),
        (
            "text",
            b"this is not a tar, and longer than a header of one has to be: ".repeat(10),
            "tar header with a bad",
        ),
        ("bzip2", b"BZh91AY&SY".to_vec(), "bzip2"),
        (
            "type",
            {
                let mut bad = plain.clone();
                bad[156] = b'Z';
                bad
            },
            "tar header with a bad checksum",
        ),
    ] {
        // The blob under its own digest, with the honest layer's diffID.
        let mut layer = honest.build(Compression::None).unwrap();
        layer.digest = podwright_testkit::image::sha256(&blob);
        layer.blob = blob.into();
        push(&node.registry, "library/bad", tag, ImageBuilder::new().layer(&layer).build());
        let result = node.pull(&format!("{}/library/bad:{tag}", node.registry.address())).await;
        refused(result, Code::DataLoss, &[&layer.digest, words]);
    }
    node.finish().await;
}
