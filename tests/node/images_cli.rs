//! `podwright images …` as people and scripts use it, with the daemon up and down.

use crate::support::*;
use podwright_testkit::daemon::default_binary;
use podwright_testkit::{Compression, Entry, ImageBuilder, LayerBuilder, Options};
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Its output; it must have gone well.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Its complaint; it must have failed.
    #[track_caller]
    fn failed(self, says: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        for word in says {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
        self.err
    }
}

fn images(node: &Node, arguments: &[&str]) -> Ran {
    images_with(node, arguments, b"")
}

fn images_with(node: &Node, arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(default_binary())
        .arg("images")
        .args(arguments)
        .arg("--config")
        .arg(node.scratch.config_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that reads nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Two images that share busybox's layer.
fn push_pair(node: &Node) {
    let layer = |name: &str| {
        let file = Entry::file(name, vec![1u8; 300_000]);
        LayerBuilder::new().entry(file).build(Compression::Gzip).unwrap()
    };
    for name in ["one", "two"] {
        let image =
            busybox().layer(&layer(name)).config_field("created", "2026-01-02T03:04:05Z".into()).build();
        push(&node.registry, &format!("team/{name}"), "1", image);
    }
}

fn reference(node: &Node, name: &str) -> String {
    format!("{}/team/{name}:1", node.registry.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn list_tells_sharing_and_use() {
    let mut node = Node::with_busybox().await;
    push_pair(&node);
    for name in ["one", "two"] {
        node.pull(&reference(&node, name)).await.unwrap();
    }
    let (pod, _) = node.running("user", &[]).await;
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        let all = images(&node, &["ls", "--json"]).json();
        assert_eq!(all["images"].as_array().unwrap().len(), 3, "{daemon}: {all:#}");
        let one = images(&node, &["ls", &reference(&node, "one"), "--json"]).json();
        let one = &one["images"][0];
        assert_eq!(one["layers"][0]["images"], 3, "{daemon}: busybox's layer is in all: {one:#}");
        assert_eq!((&one["layers"][1]["images"], &one["containers"]), (&1.into(), &0.into()));
        assert_eq!(one["own_bytes"], one["layers"][1]["bytes"]);
        assert_eq!(one["shared_bytes"], one["layers"][0]["bytes"]);
        assert_eq!(one["created"], "2026-01-02T03:04:05Z");
        let used = images(&node, &["ls", "busybox:test", "--json"]).json();
        assert_eq!(used["images"][0]["containers"], 1, "{daemon}");
        let table = images(&node, &["ls", "--config", "x"]);
        assert_eq!(table.code, Some(2), "an option that is given twice is wrong usage");
        let table = images(&node, &["ls"]).ok();
        let row = table.lines().find(|l| l.starts_with(BUSYBOX)).unwrap_or_else(|| panic!("{table}"));
        assert!(row.ends_with("  1"), "used by one: {row}");
        assert!(table.contains("2026-01-02 03:04") && table.contains("3 layers in the store"), "{table}");
        let id = images(&node, &["ls", "-q", "busybox"]).ok();
        assert!(id.starts_with("sha256:") && id.lines().count() == 1, "{id}");
        images(&node, &["ls", "absent"]).failed(&["podwright: image \"absent\" is not in the local store"]);
    }
    node.daemon.launch().unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_and_collect_spare_what_containers_use() {
    let mut node = Node::with_busybox().await;
    push_pair(&node);
    for name in ["one", "two"] {
        node.pull(&reference(&node, name)).await.unwrap();
    }
    let (_, container) = node.running("user", &[]).await;
    // Unused ones: with the daemon up and with it down.
    let told = images(&node, &["gc", "--unused", "--dry-run"]).ok();
    assert!(told.contains("team/one:1") && told.contains("team/two:1") && !told.contains(BUSYBOX), "{told}");
    assert!(told.contains("would free") && told.contains("2 images and 2 layers"), "{told}");
    assert!(images(&node, &["gc"]).ok().contains("nothing to delete"));
    let gone = images(&node, &["rm", &reference(&node, "one"), "absent:1"]);
    assert!(gone.out.contains("removed sha256:") && gone.out.contains("freed"), "{gone:?}");
    gone.failed(&["absent:1", "not in the local store"]);
    node.daemon.stop().unwrap();
    let freed = images(&node, &["gc", "--unused", "--json"]).json();
    assert_eq!(freed["images"].as_array().unwrap().len(), 1, "{freed:#}");
    assert!(freed["images"][0]["names"].to_string().contains("team/two:1"), "{freed:#}");
    assert!(freed["freed_bytes"].as_u64().unwrap() >= 300_000, "{freed:#}");
    let staging = node.scratch.root().join("root/images/staging");
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0, "what was freed is off the disk");
    // The container goes on through a removal while its daemon is away.
    let told = images(&node, &["rm", BUSYBOX]).ok();
    assert!(told.contains("in use by 1 container"), "{told}");
    images(&node, &["ls", BUSYBOX]).failed(&["not in the local store"]);
    assert!(images(&node, &["gc", "--unused"]).ok().contains("nothing to delete"));
    node.daemon.launch().unwrap();
    assert_eq!(node.output(&container, &["echo", "still"]).await, "still");
    assert!(images(&node, &["gc", "--unused"]).ok().contains("nothing to delete"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_daemon_nothing_is_deleted_on_a_guess() {
    let mut node = Node::with_busybox().await;
    let (_, container) = node.running("user", &[]).await;
    node.daemon.stop().unwrap();
    let pods = node.scratch.root().join("root/pods");
    let pod = std::fs::read_dir(&pods).unwrap().next().unwrap().unwrap().path();
    let record = pod.join("containers").join(&container).join("spec.json");
    let good = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    for command in [&["rm", BUSYBOX][..], &["gc"], &["gc", "--unused"]] {
        images(&node, command).failed(&["nothing is deleted while the daemon is down", "spec.json"]);
    }
    assert!(images(&node, &["ls"]).ok().contains(BUSYBOX));
    std::fs::write(&record, good).unwrap();
    node.daemon.launch().unwrap();
    assert_eq!(node.output(&container, &["echo", "still"]).await, "still");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_shows_progress_and_prints_the_id() {
    let mut node = Node::new(Options::default()).await;
    push_pair(&node);
    let (one, two) = (reference(&node, "one"), reference(&node, "two"));
    let pulled = images(&node, &["pull", &one]);
    let (id, log) = (pulled.out.clone(), pulled.err.clone());
    assert_eq!(images(&node, &["ls", "-q", &one]).ok(), id);
    pulled.ok();
    assert!(log.contains(&format!("{one}: 2 layers to fetch")) && log.contains("; 0 present"), "{log}");
    assert_eq!(log.matches("unpacked").count(), 2, "{log}");
    let host = node.registry.address().to_string();
    assert!(log.contains(&format!("from {host} in ")), "{log}");
    // The same again, and one that shares a layer, without a daemon.
    assert!(images(&node, &["pull", &one]).err.contains("nothing had to be fetched"));
    node.daemon.stop().unwrap();
    let pulled = images(&node, &["pull", &two]);
    assert!(pulled.err.contains("1 layer to fetch") && pulled.err.contains("; 1 present"), "{pulled:?}");
    let id = pulled.ok();
    // The daemon finds what was pulled.
    node.daemon.launch().unwrap();
    assert_eq!(node.pull(&two).await.unwrap(), id.trim_end());
    for (name, says) in [
        ("docker.io/UPPER/case:tag", &["UPPER"][..]),
        ("127.0.0.1:1/x:1", &["podwright: registry 127.0.0.1:1 is unavailable"]),
        (&format!("{host}/library/busybox:absent"), &["busybox:absent", "not found"]),
    ] {
        images(&node, &["pull", name]).failed(says);
    }
    assert_eq!(images(&node, &["pull"]).code, Some(2));
    images(&node, &["pull", &one, "--creds", "alice"]).failed(&["no password for \"alice\""]);
    images_with(&node, &["pull", &one, "--creds-stdin"], b"nonsense\n").failed(&["USER:PASS"]);
    images_with(&node, &["pull", &one, "--creds-stdin"], b"alice:secret\n").ok();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_pull_the_same_see_the_same_and_one_may_leave() {
    let mut node = Node::new(Options {
        extra_config: "[images]\nmax_bytes_per_second = 2000000\n".into(),
        ..Options::default()
    })
    .await;
    // Noise does not compress: some seconds at that rate.
    let mut seed = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_be_bytes()[0]
    })
    .take(8 << 20)
    .collect();
    let layer = LayerBuilder::new().entry(Entry::file("noise", noise)).build(Compression::None).unwrap();
    push(&node.registry, "team/slow", "1", ImageBuilder::new().layer(&layer).build());
    let slow = reference(&node, "slow");
    let mut first = Command::new(default_binary())
        .args(["images", "pull", &slow, "--config"])
        .arg(node.scratch.config_file())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(first.stderr.take().unwrap()), &mut line)
        .unwrap();
    assert!(line.contains("1 layer to fetch, 8.3 MB"), "{line}");
    let second = {
        let (config, slow) = (node.scratch.config_file(), slow.clone());
        std::thread::spawn(move || {
            let pull = Command::new(default_binary())
                .args(["images", "pull", &slow, "--config"])
                .arg(config)
                .output();
            pull.unwrap()
        })
    };
    // The first leaves, as by Ctrl-C, once the second waits too: alone it would end the pull. The daemon binds its socket
    // under this name and renames it: one entry is the listener's.
    let bound = node.scratch.socket().with_extension("new").to_string_lossy().into_owned();
    let connections = || std::fs::read_to_string("/proc/net/unix").unwrap().matches(&bound).count();
    let patience = std::time::Duration::from_secs(20);
    podwright_testkit::wait_for("both are connected", patience, || (connections() >= 3).then_some(()))
        .unwrap();
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130));
    let second = second.join().unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let metrics = node.pull(&slow).await.unwrap();
    assert_eq!(metrics, String::from_utf8(second.stdout).unwrap().trim_end());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_name_files_credentials_and_answers() {
    let mut node = Node::new(Options {
        extra_config: "[images]\nauth_files = [\"/run/podwright-test-auth/absent.json\"]\n".into(),
        ..Options::default()
    })
    .await;
    let registry = node.registry.address().to_string();
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        let found = images(&node, &["endpoints", "busybox:test", "--probe", "--json"]).json();
        assert_eq!(found["reference"], BUSYBOX);
        let first = &found["endpoints"][0];
        assert_eq!(first["probe"]["status"], 200, "{daemon}: {first:#}");
        assert!(first["probe"]["digest"].as_str().unwrap().starts_with("sha256:"), "{first:#}");
        let hosts = node.scratch.certs_dir().join("docker.io/hosts.toml");
        assert_eq!(first["configured_in"], hosts.to_string_lossy().as_ref());
        let text = images(&node, &["endpoints", "busybox:test"]).ok();
        for line in [
            format!("1. http://{registry}/v2/library/busybox"),
            format!("named by     {}", hosts.display()),
            "credentials  none".to_owned(),
            format!("present  {}", hosts.display()),
            "absent   /run/podwright-test-auth/absent.json".to_owned(),
        ] {
            assert!(text.contains(&line), "{line:?} is not in\n{text}");
        }
        let absent = images(&node, &["endpoints", &format!("{registry}/library/busybox:absent"), "--probe"]);
        assert!(absent.out.contains("HTTP 404") && absent.out.contains("this is the default"), "{absent:?}");
        absent.failed(&["no endpoint has", "busybox:absent"]);
        let nobody = images(&node, &["endpoints", "127.0.0.1:1/x:1", "--probe"]);
        assert!(nobody.out.contains("none in") && nobody.out.contains("unavailable"), "{nobody:?}");
        nobody.failed(&["no endpoint has"]);
        images(&node, &["endpoints", "docker.io/UPPER/x"]).failed(&["malformed"]);
    }
    // An unusable file is reported, but not its secrets.
    let certs = node.scratch.certs_dir().join("r.example");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(certs.join("hosts.toml"), "server = 1").unwrap();
    images(&node, &["endpoints", "r.example/x:1"]).failed(&["r.example/hosts.toml"]);
    let auth = node.scratch.root().join("auth.json");
    std::fs::write(&auth, r#"{"auths":{"s.example/team":{"username":"alice","password":"hunter2"}}}"#)
        .unwrap();
    let drop_in = node.scratch.root().join("config.toml.d/60-auth.toml");
    std::fs::write(&drop_in, format!("[images]\nauth_files = [{auth:?}]\n")).unwrap();
    let found = images(&node, &["endpoints", "s.example/team/x:1"]).ok();
    let entry = format!("credentials  {}, entry \"s.example/team\"", auth.display());
    assert!(found.contains(&entry) && !found.contains("hunter2"), "{found}");
    node.daemon.launch().unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_named_must_answer() {
    let mut node = Node::with_busybox().await;
    let run = |socket: &str| {
        let output =
            Command::new(default_binary()).args(["images", "ls", "--socket", socket]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    };
    assert!(run(&node.scratch.endpoint()).ok().contains(BUSYBOX));
    let socket = node.scratch.socket();
    // A daemon that has its lock but is not to be reached there.
    std::fs::rename(&socket, socket.with_extension("away")).unwrap();
    images(&node, &["ls"]).failed(&["no daemon answers at", "another podwright serves from"]);
    std::fs::rename(socket.with_extension("away"), &socket).unwrap();
    node.daemon.stop().unwrap();
    run(&socket.to_string_lossy()).failed(&["connect to the daemon at", "No such file"]);
    node.daemon.launch().unwrap();
    node.finish().await;
}

/// An image as the tar of an OCI layout.
fn archive(image: &podwright_testkit::Image, name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).unwrap());
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).unwrap();
    };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": image.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.bytes.len(),
            "annotations": { "io.containerd.image.name": name },
        }],
    });
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", index.to_string().as_bytes());
    let blobs =
        [(&image.manifest.digest, &image.manifest.bytes), (&image.config.digest, &image.config.bytes)];
    for (digest, bytes) in blobs {
        add(&format!("blobs/{}", digest.replace(':', "/")), bytes);
    }
    for layer in &image.layers {
        add(&format!("blobs/{}", layer.digest.replace(':', "/")), &layer.blob);
    }
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_takes_files_and_both_kinds_of_standard_input() {
    let mut node = Node::new(Options::default()).await;
    let name = "r.example/loaded:1";
    let bytes = archive(&busybox().build(), name);
    let file = node.scratch.root().join("image.tar");
    std::fs::write(&file, &bytes).unwrap();
    let file = file.to_string_lossy().into_owned();
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        let told = images(&node, &["load", &file]).ok();
        assert!(told.starts_with("loaded sha256:") && told.contains(name), "{daemon}: {told}");
        let told = images_with(&node, &["load", "--name", "r.example/piped:1"], &bytes).ok();
        assert!(told.contains("r.example/piped:1"), "{daemon}: {told}");
        let redirected = Command::new(default_binary())
            .args(["images", "load", "-", "--config"])
            .arg(node.scratch.config_file())
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        assert!(redirected.status.success(), "{}", String::from_utf8_lossy(&redirected.stderr));
        let found = images(&node, &["ls", "--json"]).json();
        assert_eq!(found["images"].as_array().unwrap().len(), 1, "{found:#}");
        images(&node, &["load", "/nonexistent.tar"]).failed(&["read /nonexistent.tar: No such file"]);
        images_with(&node, &["load"], b"no archive at all").failed(&["podwright: "]);
        // The next round begins without it.
        images(&node, &["rm", name]).ok();
    }
    // What was loaded before the first start of a daemon is what its pods run.
    images(&node, &["load", &file, "--name", BUSYBOX]).ok();
    node.daemon.launch().unwrap();
    let (_, id) = node.running("loaded", &[]).await;
    assert_eq!(node.output(&id, &["echo", "yes"]).await, "yes");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_from_says_what_it_cannot_read() {
    let mut node = Node::new(Options::default()).await;
    let empty = node.scratch.root().join("peer");
    std::fs::create_dir_all(&empty).unwrap();
    let empty = empty.to_string_lossy().into_owned();
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        for peer in ["containerd", "crio"] {
            images(&node, &["import-from", peer, "--root", &empty]).failed(&["podwright: ", &empty]);
            let absent = format!("{empty}/absent");
            images(&node, &["import-from", peer, "--root", &absent]).failed(&[&absent, "No such file"]);
        }
        assert_eq!(images(&node, &["import-from", "docker"]).code, Some(2));
    }
    node.daemon.launch().unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_damage_and_repairs_it() {
    let mut node = Node::new(Options::default()).await;
    push_pair(&node);
    let one = reference(&node, "one");
    node.pull(&one).await.unwrap();
    let whole = images(&node, &["verify"]).ok();
    assert!(whole.contains("3 good, 0 damaged") && whole.lines().count() == 1, "{whole}");
    let listed = images(&node, &["ls", "--json", &one]).json();
    let key = listed["images"][0]["layers"][1]["diff_id"].as_str().unwrap()["sha256:".len()..].to_owned();
    let file = node.scratch.root().join(format!("root/images/layers/{key}/fs/one"));
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        std::fs::write(&file, "damaged").unwrap();
        let found = images(&node, &["verify", "--no-repair", &one]);
        assert!(found.out.contains(&format!("layer {key}: damaged: ")), "{daemon}: {found:?}");
        assert!(found.out.contains("2 good, 1 damaged, 0 repaired"), "{found:?}");
        found.failed(&[]);
        let repaired = images(&node, &["verify", "--json"]).json();
        assert_eq!(repaired["summary"]["repaired"], 1, "{daemon}: {repaired:#}");
        assert_eq!(std::fs::read(&file).unwrap(), vec![1u8; 300_000]);
        images(&node, &["verify", "absent:1"]).failed(&["\"absent:1\" is not in the local store"]);
    }
    node.daemon.launch().unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_can_be_loaded() {
    let mut node = Node::with_busybox().await;
    let id = images(&node, &["ls", "-q"]).ok();
    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.daemon.stop().unwrap();
        }
        for format in ["oci", "docker", "oci-dir"] {
            let to = node.scratch.root().join(format!("{daemon}-{format}"));
            let to = to.to_string_lossy().into_owned();
            let told = images(&node, &["export", BUSYBOX, "--format", format, "-o", &to]);
            assert!(told.err.contains(&format!("exported {}", id.trim_end())), "{told:?}");
            told.ok();
            images(&node, &["rm", BUSYBOX]).ok();
            assert!(images(&node, &["load", &to]).ok().contains(BUSYBOX), "{daemon}, {format}");
            assert_eq!(images(&node, &["ls", "-q"]).ok(), id, "{daemon}, {format}");
        }
        // From one command to the other.
        let mut export = Command::new(default_binary())
            .args(["images", "export", BUSYBOX, "-o", "-", "--config"])
            .arg(node.scratch.config_file())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut export.stdout.take().unwrap(), &mut tar).unwrap();
        assert!(export.wait().unwrap().success());
        assert!(
            images_with(&node, &["load", "--name", "r.example/y:1"], &tar).ok().contains("r.example/y:1")
        );
        images(&node, &["export", "absent:1", "-o", "/tmp/x"]).failed(&["not in the local store"]);
        images(&node, &["export", BUSYBOX, "-o", "/nonexistent/x"]).failed(&["/nonexistent/x"]);
    }
    assert_eq!(images(&node, &["export", BUSYBOX]).code, Some(2));
    node.daemon.launch().unwrap();
    node.finish().await;
}
