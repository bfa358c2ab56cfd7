//! Pods with user namespaces of their own: ids inside and on the host, volumes, sharing, restarts, refusals.

use crate::streaming::{client, text};
use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{Compression, Entry, LayerBuilder, Options};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use tonic::Code;

/// How many ids a kubelet gives a pod.
const COUNT: u32 = 65_536;

/// A node whose runtime can have them. Where it cannot, such a pod is refused.
async fn node() -> Option<Node> {
    let mut node = Node::with_busybox().await;
    if runtime_can(Ability::UserNamespaces) {
        return Some(node);
    }
    let config = pod(&node, "refused", 1 << 20);
    refused(node.run(&config).await, Code::FailedPrecondition, &["user namespace", "EACCES"]);
    node.finish().await;
    None
}

fn range(first: u32, length: u32) -> Vec<pb::IdMapping> {
    vec![pb::IdMapping { host_id: first, container_id: 0, length }]
}

fn mapped(first: u32) -> Option<pb::UserNamespace> {
    let mode = pb::NamespaceMode::Pod.into();
    Some(pb::UserNamespace { mode, uids: range(first, COUNT), gids: range(first, COUNT) })
}

fn options(config: &mut pb::PodSandboxConfig) -> &mut pb::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

/// A pod whose root is `first` on the host.
fn pod(node: &Node, name: &str, first: u32) -> pb::PodSandboxConfig {
    let mut config = node.pod(name);
    options(&mut config).userns_options = mapped(first);
    config
}

/// A container of such a pod.
fn inside(name: &str, first: u32, command: &[&str]) -> pb::ContainerConfig {
    let mut config = container(name, command);
    security(&mut config).namespace_options.get_or_insert_default().userns_options = mapped(first);
    config
}

/// The pod and its one container, which runs.
async fn running(node: &mut Node, name: &str, first: u32) -> (String, String) {
    let config = pod(node, name, first);
    let pod = node.run(&config).await.unwrap();
    let id = node.create(&pod, &config, inside("main", first, &["sleep", "1000000"])).await.unwrap();
    node.start(&id).await.unwrap();
    (pod, id)
}

fn volume(host: &Path, at: &str, first: u32) -> pb::Mount {
    pb::Mount {
        container_path: at.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        uid_mappings: range(first, COUNT),
        gid_mappings: range(first, COUNT),
        ..Default::default()
    }
}

/// The upper directory of a container's writable layer.
fn upper(node: &Node, id: &str) -> PathBuf {
    node.scratch.root().join("root/containers").join(id).join("upper")
}

fn owner(path: &Path) -> (u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_ids_are_others_on_the_host_and_of_no_other_pod() {
    let Some(mut node) = node().await else { return };
    let status = node.runtime.status(pb::StatusRequest { verbose: false }).await.unwrap().into_inner();
    for handler in status.runtime_handlers.iter().filter(|h| h.name.is_empty() || h.name == "runc") {
        assert!(handler.features.unwrap().user_namespaces, "{}: {}", handler.name, node.daemon.log());
    }
    assert!(status.features.unwrap().user_namespaces_host_network);
    let (first, one) = running(&mut node, "one", 200_000).await;
    let (_, two) = running(&mut node, "two", 300_000).await;
    for (id, root) in [(&one, 200_000), (&two, 300_000)] {
        let map = node.output(id, &["cat", "/proc/self/uid_map", "/proc/self/gid_map"]).await;
        let expected = [0, root, COUNT, 0, root, COUNT].map(|n: u32| n.to_string());
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), expected);
        let init = node.pid(id).await;
        assert_eq!(owner(&PathBuf::from(format!("/proc/{init}"))), (root, root));
        // The image's files belong to their owners in the image, new ones to their writer.
        assert_eq!(node.output(id, &["stat", "-c", "%u:%g", "/", "/bin/busybox"]).await, "0:0\n0:0");
        let script = "echo x > /tmp/new && chown 1000:50 /tmp/new && rm /etc/group && stat -c %u:%g /tmp/new";
        assert_eq!(node.output(id, &["sh", "-c", script]).await, "1000:50");
        assert_eq!(owner(&upper(&node, id)), (root, root));
        // The bundle admits root of the pod, a group of the node; nobody can read its environment.
        let config = node.scratch.root().join("state/containers").join(id).join("config.json");
        assert_eq!(std::fs::metadata(config).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(owner(&upper(&node, id).join("tmp/new")), (root + 1000, root + 50));
        // What all of the pod's containers share is theirs.
        let script = "echo 10.0.0.1 x >> /etc/hosts && echo ok > /dev/shm/f && stat -c %u:%a /dev/shm && \
            stat -c %u /etc/resolv.conf && cat /proc/sys/net/ipv4/ping_group_range";
        let said = node.output(id, &["sh", "-c", script]).await;
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0:1777", "0", "0", "65535"]);
    }
    assert_eq!(node.output(&one, &["cat", "/dev/shm/f"]).await, "ok");
    let told = node.pod_status(&first).await.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(told.userns_options, mapped(200_000));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_outputs_and_terminals_are_the_containers_own() {
    let Some(mut node) = node().await else { return };
    let root = 200_000;
    let config = pod(&node, "users", root);
    let pod = node.run(&config).await.unwrap();
    // A non-root user reopens its output, which belongs to it.
    let mut alice = inside("alice", root, &["sh", "-c", "id > /dev/stdout; echo wrong > /dev/stderr; cat"]);
    security(&mut alice).run_as_username = "alice".to_owned();
    (alice.stdin, alice.stdin_once) = (true, true);
    let alice = node.create(&pod, &config, alice).await.unwrap();
    node.start(&alice).await.unwrap();
    let said = node.output(&alice, &["sh", "-c", "id -u > /dev/stdout; id -G"]).await;
    assert_eq!(said, "1000\n1000 50");
    for transport in ["spdy", "websocket"] {
        let url = node.exec_url(&alice, &["sh", "-c", "cat > /dev/stdout; exit 3"], false, true).await;
        let output = client(transport, &["-stdin", "stream", &url], b"typed").await;
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("typed", Some(3)));
        let url = node.exec_url(&alice, &["sh", "-c", "stat -c %u $(tty); id -u"], true, true).await;
        let output = client(transport, &["-tty", "-stdin", "stream", &url], b"").await;
        assert_eq!(text(&output.stdout).replace('\r', ""), "1000\n1000\n", "{}", text(&output.stderr));
    }
    let request =
        pb::AttachRequest { container_id: alice.clone(), stdin: true, stdout: true, ..Default::default() };
    let url = node.runtime.attach(request).await.unwrap().into_inner().url;
    let output = client("spdy", &["-stdin", "stream", &url], b"attached\n").await;
    assert_eq!(text(&output.stdout), "attached\n", "{}", text(&output.stderr));
    assert_eq!(node.exited(&alice).await.exit_code, 0);
    let log = node.log("users", "alice").join("\n");
    for line in ["stdout F uid=1000(alice) gid=1000(alice) groups=50(staff),1000(alice)", "stderr F wrong"] {
        assert!(log.contains(line), "{log}");
    }
    // A terminal of its own.
    let mut terminal = inside("terminal", root, &["sh", "-c", "stat -c %u:%g $(tty); sleep 1000000"]);
    terminal.tty = true;
    let terminal = node.create(&pod, &config, terminal).await.unwrap();
    node.start(&terminal).await.unwrap();
    podwright_testkit::wait_for("the terminal's owner", std::time::Duration::from_secs(20), || {
        node.log("users", "terminal").iter().any(|l| l.contains("0:5")).then_some(())
    })
    .unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_have_the_pods_ids_where_they_are_mapped() {
    let Some(mut node) = node().await else { return };
    let layer = LayerBuilder::new()
        .entry(Entry::file("data", &b"of an image"[..]).owner(7, 8))
        .build(Compression::Gzip);
    let image = busybox().volume("/declared/deep").build();
    push(&node.registry, "library/declares", "1", image);
    let image = podwright_testkit::ImageBuilder::new().layer(&layer.unwrap()).build();
    push(&node.registry, "library/data", "1", image);
    node.pull("docker.io/library/declares:1").await.unwrap();
    node.pull("docker.io/library/data:1").await.unwrap();
    let root = 200_000;
    let shared = node.scratch.root().join("shared");
    std::fs::create_dir(&shared).unwrap();
    // Only its owner can reach it on the host.
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(shared.join("of-5"), "five").unwrap();
    chown(shared.join("of-5"), Some(5), Some(6)).unwrap();
    let read_only = pb::Mount { readonly: true, ..volume(&shared, "/read-only", root) };
    let plain = pb::Mount {
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
        ..volume(&shared.join("of-5"), "/plain", root)
    };
    let of_image = pb::Mount {
        image: Some(image_spec("docker.io/library/data:1")),
        host_path: String::new(),
        readonly: true,
        ..volume(Path::new(""), "/image", root)
    };
    let mounts = vec![
        volume(&shared, "/shared", root),
        volume(&shared.join("of-5"), "/file", root),
        read_only,
        plain,
        of_image,
    ];
    let config = pod(&node, "volumes", root);
    let pod = node.run(&config).await.unwrap();
    let mut spec = inside("main", root, &["sleep", "1000000"]);
    spec.image = Some(image_spec("docker.io/library/declares:1"));
    spec.mounts = mounts.clone();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let paths = [
        "/shared",
        "/shared/of-5",
        "/file",
        "/read-only/of-5",
        "/plain",
        "/image/data",
        "/declared",
        "/declared/deep",
    ];
    let mut stat = vec!["stat", "-c", "%u:%g"];
    stat.extend(paths);
    let found = node.output(&id, &stat).await;
    let expected = ["0:0", "5:6", "5:6", "5:6", "65534:65534", "7:8", "0:0", "0:0"];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{paths:?}");
    node.output(
        &id,
        &["sh", "-c", "echo x > /shared/new && chown 9:9 /shared/new && echo y > /declared/deep/z"],
    )
    .await;
    assert_eq!(owner(&shared.join("new")), (9, 9), "on the volume the ids are those of the container");
    assert_eq!(owner(&upper(&node, &id).join("declared/deep/z")), (root, root));
    for path in ["/read-only/x", "/image/x"] {
        let written = node.exec(&id, &["sh", "-c", &format!("echo x > {path}")]).await.unwrap();
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        assert!(said.contains("Read-only file system"), "{path}: {said}");
    }
    // Told as asked.
    let told = node.status(&id).await.unwrap().mounts;
    for (asked, told) in mounts.iter().zip(&told) {
        assert_eq!((&asked.uid_mappings, &asked.gid_mappings), (&told.uid_mappings, &told.gid_mappings));
    }
    node.remove(&id).await.unwrap();
    assert_eq!(std::fs::read_to_string(shared.join("of-5")).unwrap(), "five");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_pod_outlives_a_killed_daemon() {
    let Some(mut node) = node().await else { return };
    let root = 200_000;
    let config = pod(&node, "outlive", root);
    let pod = node.run(&config).await.unwrap();
    let shared = node.scratch.root().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let serve = ["httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc"];
    let mut spec = inside("main", root, &serve);
    spec.mounts = vec![volume(&shared, "/shared", root)];
    let id = node.create(&pod, &config, spec).await.unwrap();
    let waiting = node.create(&pod, &config, inside("waiting", root, &["id"])).await.unwrap();
    node.start(&id).await.unwrap();
    node.daemon.crash().unwrap();
    assert_eq!(
        node.output(&id, &["cat", "/proc/self/uid_map"]).await.split_whitespace().nth(1),
        Some("200000")
    );
    node.output(&id, &["sh", "-c", "echo x > /shared/new; dd if=/dev/zero of=/tmp/big bs=1M count=3"]).await;
    assert_eq!(owner(&shared.join("new")), (0, 0));
    node.start(&waiting).await.unwrap();
    assert_eq!(node.exited(&waiting).await.exit_code, 0);
    assert!(node.log("outlive", "waiting")[0].ends_with("uid=0(root) gid=0(root) groups=0(root)"));
    // One that is made by the new daemon is in the same namespaces.
    let later = node.create(&pod, &config, inside("later", root, &["sleep", "1000000"])).await.unwrap();
    node.start(&later).await.unwrap();
    let namespaces = |pid: u64| {
        ["user", "net", "ipc", "uts"]
            .map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap())
    };
    let (one, two) = (node.pid(&id).await, node.pid(&later).await);
    assert_eq!(namespaces(one), namespaces(two));
    let request = pb::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![] };
    let url = node.runtime.port_forward(request).await.unwrap().into_inner().url;
    let output = client("websocket", &["-path", "/group", "forward", &url, "80"], b"").await;
    assert!(text(&output.stdout).contains("alice"), "{}", text(&output.stderr));
    node.layer_of(&id, 3 << 20).await;
    let stats = pb::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
    node.daemon.crash().unwrap();
    node.stop(&later, 0).await.unwrap();
    let record: serde_json::Value = serde_json::from_slice(
        &std::fs::read(node.scratch.root().join("root/pods").join(&pod).join("spec.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(record["namespaces"]["user"]["uids"][0]["host_id"], root);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pids_are_shared_and_privileges_end_at_the_namespace() {
    let Some(mut node) = node().await else { return };
    let root = 200_000;
    let mut config = pod(&node, "shared", root);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = node.run(&config).await.unwrap();
    let mut spec = inside("main", root, &["sleep", "1000000"]);
    security(&mut spec).privileged = true;
    security(&mut spec).namespace_options.as_mut().unwrap().pid = pb::NamespaceMode::Pod.into();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let seen = node.output(&id, &["ps", "-o", "pid,user,comm"]).await;
    assert!(seen.lines().any(|l| l.split_whitespace().eq(["1", "root", "podwright-init"])), "{seen}");
    // All rights over what is the pod's, none over what is the host's.
    let own = "hostname other && ip link set lo down && mount -t tmpfs x /tmp && mkdir /tmp/d && hostname";
    assert_eq!(node.output(&id, &["sh", "-c", own]).await, "other");
    for host in ["mknod /tmp/null c 1 3", "echo 1 > /proc/sys/vm/drop_caches"] {
        assert_ne!(node.exec(&id, &["sh", "-c", host]).await.unwrap().exit_code, 0, "{host}");
    }
    let mut target = inside("target", root, &["sleep", "1000000"]);
    let options = security(&mut target).namespace_options.as_mut().unwrap();
    (options.pid, options.target_id) = (pb::NamespaceMode::Target.into(), id.clone());
    let target = node.create(&pod, &config, target).await.unwrap();
    node.start(&target).await.unwrap();
    assert!(node.output(&target, &["ps", "-o", "comm"]).await.contains("podwright-init"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_network_goes_with_ids_of_its_own() {
    let Some(mut node) = node().await else { return };
    let root = 200_000;
    let mut config = pod(&node, "host-network", root);
    options(&mut config).network = pb::NamespaceMode::Node.into();
    let pod = node.run(&config).await.unwrap();
    let mut spec = inside("main", root, &["sleep", "1000000"]);
    security(&mut spec).namespace_options.as_mut().unwrap().network = pb::NamespaceMode::Node.into();
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let init = node.pid(&id).await;
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    assert_eq!(namespace(&init.to_string(), "net"), namespace("self", "net"));
    assert_ne!(namespace(&init.to_string(), "user"), namespace("self", "user"));
    assert_eq!(node.output(&id, &["ls", "-d", "/sys/class/net/lo"]).await, "/sys/class/net/lo");
    let written = node.exec(&id, &["sh", "-c", "echo 1 > /sys/kernel/profiling"]).await.unwrap();
    assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only file system"));
    let mounts = node.output(&id, &["grep", " /sys", "/proc/self/mounts"]).await;
    assert!(
        mounts.lines().all(|l| l
            .split(' ')
            .nth(3)
            .unwrap()
            .split(',')
            .any(|o| o == "ro" || l.contains("tmpfs"))),
        "{mounts}"
    );
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mapped_is_refused_with_its_name_and_leaves_nothing() {
    let Some(mut node) = node().await else { return };
    let root = 200_000;
    let field = "namespace_options.userns_options";
    let code = Code::InvalidArgument;
    let mut bad = Vec::new();
    let two = [range(root, 10), range(300_000, 10)].concat();
    let part = vec![pb::IdMapping { host_id: root, container_id: 1, length: COUNT }];
    for uids in [Vec::new(), two, part, range(root, 0), range(u32::MAX, 2)] {
        bad.push(pb::UserNamespace { uids: uids.clone(), ..mapped(root).unwrap() });
        bad.push(pb::UserNamespace { gids: uids, ..mapped(root).unwrap() });
    }
    for mode in [pb::NamespaceMode::Container, pb::NamespaceMode::Target] {
        bad.push(pb::UserNamespace { mode: mode.into(), ..mapped(root).unwrap() });
    }
    for userns in bad {
        let mut config = node.pod("refused");
        options(&mut config).userns_options = Some(userns);
        refused(node.run(&config).await, code, &[field]);
    }
    let host = i32::from(pb::NamespaceMode::Node);
    for (pid, ipc) in [(host, 0), (0, host)] {
        let mut config = pod(&node, "refused", root);
        (options(&mut config).pid, options(&mut config).ipc) = (pid, ipc);
        refused(node.run(&config).await, code, &[field, "NODE"]);
    }
    assert!(node.list_pods().await.is_empty());

    let config = pod(&node, "one", root);
    let one = node.run(&config).await.unwrap();
    let plain = node.pod("plain");
    let none = node.run(&plain).await.unwrap();
    let sleep = ["sleep", "1"];
    // Another's mapping, none in a pod that has one, one in a pod that has none.
    refused(
        node.create(&one, &config, inside("c", 300_000, &sleep)).await,
        code,
        &[field, "300000", "200000"],
    );
    refused(node.create(&one, &config, container("c", &sleep)).await, code, &[field, "none"]);
    refused(node.create(&none, &plain, inside("c", root, &sleep)).await, code, &[field, "none"]);
    let mut stranger = inside("c", root, &sleep);
    security(&mut stranger).run_as_user = Some(pb::Int64Value { value: 70_000 });
    refused(node.create(&one, &config, stranger).await, code, &["user 70000", "not mapped"]);
    let mut stranger = inside("c", root, &sleep);
    security(&mut stranger).supplemental_groups = vec![70_001];
    refused(node.create(&one, &config, stranger).await, code, &["group 70001", "not mapped"]);
    let mut with = async |mount: pb::Mount, code: Code, says: &[&str]| {
        let mut spec = inside("c", root, &sleep);
        spec.mounts = vec![mount];
        refused(node.create(&one, &config, spec).await, code, says);
    };
    let half = pb::Mount { gid_mappings: Vec::new(), ..volume(Path::new("/etc"), "/v", root) };
    with(half, code, &["config.mounts", "/v", "gid_mappings"]).await;
    let propagation = pb::MountPropagation::PropagationBidirectional.into();
    let up = pb::Mount { propagation, ..volume(Path::new("/etc"), "/v", root) };
    with(up, code, &["/v", "BIDIRECTIONAL"]).await;
    with(volume(Path::new("/proc/sys"), "/v", root), Code::FailedPrecondition, &["/proc/sys", "(proc)"])
        .await;
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}

/// Whether Status says that pods of the handler can have them.
async fn told(node: &mut Node, handler: &str) -> bool {
    let status = node.runtime.status(pb::StatusRequest::default()).await.unwrap().into_inner();
    let told = status.runtime_handlers.into_iter().find(|h| h.name == handler);
    told.and_then(|h| h.features).is_some_and(|features| features.user_namespaces)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_failed_once_does_not_decide_for_the_daemons_life() {
    let dir = tempfile::tempdir().unwrap();
    let (script, failed) = (dir.path().join("flaky"), dir.path().join("failed"));
    let runtime = Options::default().runtime;
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *run*probe-userns-flaky*) if [ ! -e {failed} ]; then\n\
         touch {failed}; echo 'cannot allocate memory' >&2; exit 1; fi;; esac\nexec {runtime} \"$@\"\n",
        failed = failed.display(),
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let extra_config = format!("[runtime.handlers.flaky]\npath = \"{}\"\n", script.display());
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    assert!(!told(&mut node, "flaky").await);
    assert!(failed.exists());
    // As a runtime that has memory again; one that never can is the same after the second trial.
    let deadline =
        tokio::time::Instant::now() + std::time::Duration::from_mins(1) * podwright_testkit::patience();
    while runtime_can(Ability::UserNamespaces) && !told(&mut node, "flaky").await {
        assert!(tokio::time::Instant::now() < deadline, "{}", node.daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    node.finish().await;
}
