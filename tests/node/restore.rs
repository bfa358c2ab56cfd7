//! Containers that CreateContainer lets continue from the checkpoint of another one: from its archive, and from an image of
//! it. With the stand-in of `checkpoint` everywhere, with CRIU where it works.

use crate::checkpoint::{
    COUNT, QUICK, checkpoint, criu_works, goes_on, pod_request, restore_request, stand_in,
};
use crate::support::*;
use podwright::cri::proto as pb;
use podwright::cri::proto::runtime_service_client::RuntimeServiceClient;
use podwright_testkit::image::sha256;
use podwright_testkit::{Options, wait_for};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IMAGES_ON: &str = "[runtime]\nrestore_images = true\n";

fn of_image(name: &str, image: impl Into<PathBuf>) -> pb::ContainerConfig {
    let mut config = container(name, &[]);
    config.image = Some(image_spec(&image.into().to_string_lossy()));
    config
}

fn with_mount(mut config: pb::ContainerConfig, host: &Path) -> pb::ContainerConfig {
    let host_path = host.to_string_lossy().into_owned();
    config.mounts.push(pb::Mount { container_path: "/data".into(), host_path, ..Default::default() });
    config
}

/// What a node has of containers on disk.
fn on_disk(node: &Node) -> usize {
    let root = node.scratch.root();
    ["root/containers", "state/containers"]
        .iter()
        .map(|dir| std::fs::read_dir(root.join(dir)).map_or(0, Iterator::count))
        .sum()
}

/// Starts the daemon again; a call that the old one did not answer may have left its connection half closed.
fn relaunch(node: &mut Node) {
    node.daemon.launch().unwrap();
    node.runtime = RuntimeServiceClient::new(connect(&node.scratch.socket()));
}

/// Makes an image of an archive, as `buildah` does of checkpoints, and pulls it.
async fn image_of(node: &mut Node, archive: &Path, tag: &str) -> String {
    let layer = std::fs::read(archive).unwrap();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        sha256(&layer)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}],"annotations":{{"io.kubernetes.cri-o.annotations.checkpoint.name":"main"}}}}"#,
        sha256(config.as_bytes()),
        config.len(),
        sha256(&layer),
        layer.len()
    );
    let blobs = [config.as_bytes(), &layer];
    node.registry.push_raw("library/frozen", tag, MANIFEST, manifest.as_bytes(), &blobs).unwrap();
    node.pull(&format!("docker.io/library/frozen:{tag}")).await.unwrap()
}

/// A container with a mount that counts and has changed a file, its archive, and its pod gone again.
async fn frozen(node: &mut Node, data: &Path) -> PathBuf {
    let config = node.pod("source");
    let pod = node.run(&config).await.unwrap();
    let change = format!("echo kept > /made; rm /etc/group; {COUNT}");
    let asked = with_mount(container("main", &["sh", "-c", &change]), data);
    let id = node.create(&pod, &config, asked).await.unwrap();
    node.start(&id).await.unwrap();
    goes_on(node, "source", "main");
    let archive = node.scratch.root().join("main.tar");
    checkpoint(node, &id, &archive, 0).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_what_its_request_says_and_continues_from_the_archive() {
    let (mut node, dir) = stand_in(QUICK).await;
    let data = tempfile::tempdir().unwrap();
    let archive = frozen(&mut node, data.path()).await;
    let config = node.pod("new");
    let pod = node.run(&config).await.unwrap();
    let mut asked = with_mount(of_image("other", &archive), data.path());
    asked.labels = map(&[("app", "new")]);
    asked.annotations = map(&[("io.kubernetes.container.hash", "abc")]);
    asked.command = words(&["sh", "-c", COUNT]);
    let id = node.create(&pod, &config, asked.clone()).await.unwrap();
    // The same request again gets what the first one made.
    assert_eq!(node.create(&pod, &config, asked.clone()).await.unwrap(), id);
    let status = node.status(&id).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerCreated);
    assert_eq!(status.metadata.as_ref().unwrap().name, "other");
    assert_eq!((&status.labels, &status.annotations), (&asked.labels, &asked.annotations));
    assert_eq!(status.image.as_ref().unwrap().image, BUSYBOX);
    // It has its own copy of all that it needs, also after a daemon that was killed.
    std::fs::remove_file(&archive).unwrap();
    node.daemon.kill().unwrap();
    relaunch(&mut node);
    assert_eq!(node.status(&id).await.unwrap().state(), pb::ContainerState::ContainerCreated);
    // So does one that is killed while the container is being restored.
    let (hold, restored) = (dir.path().join("runtime.hold"), dir.path().join("runtime.restored"));
    std::fs::write(&hold, "").unwrap();
    let (mut client, request) =
        (node.runtime.clone(), pb::StartContainerRequest { container_id: id.clone() });
    let start = tokio::spawn(async move { client.start_container(request).await });
    wait_for("the restore begins", Duration::from_secs(20), || restored.exists().then_some(())).unwrap();
    assert_eq!(std::fs::read_to_string(&restored).unwrap(), "pages-1.img\n");
    node.daemon.kill().unwrap();
    assert!(start.await.unwrap().is_err());
    std::fs::remove_file(&hold).unwrap();
    relaunch(&mut node);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while node.status(&id).await.unwrap().state() == pb::ContainerState::ContainerCreated {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    goes_on(&node, "new", "other");
    assert_eq!(node.output(&id, &["cat", "/made"]).await, "kept");
    assert_eq!(node.output(&id, &["sh", "-c", "ls /etc/group 2>/dev/null || echo gone"]).await, "gone");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_an_archive_is_refused_and_nothing_stays() {
    let (mut node, _dir) = stand_in(QUICK).await;
    let data = tempfile::tempdir().unwrap();
    let archive = frozen(&mut node, data.path()).await;
    let config = node.pod("new");
    let pod = node.run(&config).await.unwrap();
    let good = || with_mount(of_image("main", &archive), data.path());
    let refuses = async |node: &mut Node, asked: pb::ContainerConfig, code: Code, says: &[&str]| {
        let before = on_disk(node);
        refused(node.create(&pod, &config, asked).await, code, says);
        assert_eq!((node.list_containers().await.len(), on_disk(node)), (0, before));
    };
    let without = of_image("main", &archive);
    refuses(&mut node, without, Code::FailedPrecondition, &["config.mounts", "mounts at /data", "main.tar"])
        .await;
    let mut more = good();
    more.mounts.push(pb::Mount {
        container_path: "/more".into(),
        host_path: "/tmp".into(),
        ..Default::default()
    });
    refuses(&mut node, more, Code::FailedPrecondition, &["config.mounts", "no mounts at /more"]).await;
    let mut strict = good();
    strict.mounts[0].readonly = true;
    refuses(&mut node, strict, Code::FailedPrecondition, &["config.mounts", "/data is to be read-only"])
        .await;
    let mut weaker = good();
    security(&mut weaker).capabilities =
        Some(pb::Capability { drop_capabilities: words(&["CHOWN"]), ..Default::default() });
    let says = ["config.linux.security_context", "capabilities CAP_CHOWN"];
    refuses(&mut node, weaker, Code::FailedPrecondition, &says).await;
    let absent = of_image("main", node.scratch.root().join("absent.tar"));
    refuses(&mut node, absent, Code::InvalidArgument, &["config.image.image", "absent.tar"]).await;
    let directory = of_image("main", node.scratch.root());
    refuses(&mut node, directory, Code::InvalidArgument, &["not a plain file"]).await;
    // Cut off: in a file's middle it is no archive, between two it is one, without what a checkpoint has.
    let short = node.scratch.root().join("short.tar");
    let whole = std::fs::read(&archive).unwrap();
    let (middle, between) = {
        let mut archive = tar::Archive::new(whole.as_slice());
        let mut files = archive.entries().unwrap().map(Result::unwrap).filter(|entry| entry.size() > 1);
        (files.next().unwrap().raw_file_position() + 1, files.next().unwrap().raw_header_position())
    };
    for (end, code) in [(middle, Code::InvalidArgument), (between, Code::DataLoss)] {
        std::fs::write(&short, &whole[..usize::try_from(end).unwrap()]).unwrap();
        refuses(&mut node, of_image("main", short.clone()), code, &["short.tar"]).await;
    }
    // CRIU is not let into a pod with a user namespace.
    let mut mapped = node.pod("mapped");
    let ids = pb::IdMapping { host_id: 1_000_000, container_id: 0, length: 65536 };
    let user = pb::UserNamespace { mode: pb::NamespaceMode::Pod.into(), uids: vec![ids], gids: vec![ids] };
    let security_of_pod = mapped.linux.get_or_insert_default().security_context.get_or_insert_default();
    security_of_pod.namespace_options.get_or_insert_default().userns_options = Some(user.clone());
    let in_mapped = node.run(&mapped).await.unwrap();
    let mut asked = good();
    security(&mut asked).namespace_options.as_mut().unwrap().userns_options = Some(user);
    refused(
        node.create(&in_mapped, &mapped, asked).await,
        Code::InvalidArgument,
        &["userns_options", "CRIU"],
    );
    // An image that is nowhere.
    let nowhere = node.scratch.root().join("nowhere.tar");
    let name = format!("docker.io/library/nowhere@sha256:{}", "1".repeat(64));
    let dump = format!(r#"{{"rootfsImageRef":"{name}"}}"#);
    let mut tar = tar::Builder::new(std::fs::File::create(&nowhere).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(dump.len()).unwrap());
    tar.append_data(&mut header, "config.dump", dump.as_bytes()).unwrap();
    tar.finish().unwrap();
    refuses(&mut node, of_image("main", nowhere), Code::NotFound, &[&name, "not on this node", "pull it"])
        .await;
    // The image that the container was of is gone, and the registry has it no more.
    node.images.remove_image(pb::RemoveImageRequest { image: Some(image_spec(BUSYBOX)) }).await.unwrap();
    push(&node.registry, "library/busybox", "test", busybox().cmd(&["other"]).build());
    let asked = good();
    assert!(node.create(&pod, &config, asked.clone()).await.is_ok(), "it is pulled by its digest");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_a_checkpoint_is_restored_where_that_is_switched_on() {
    let (mut node, _dir) = stand_in(QUICK).await;
    let data = tempfile::tempdir().unwrap();
    let archive = frozen(&mut node, data.path()).await;
    let image = image_of(&mut node, &archive, "one").await;
    std::fs::remove_file(&archive).unwrap();
    let config = node.pod("new");
    let pod = node.run(&config).await.unwrap();
    let mut asked = with_mount(of_image("main", &image), data.path());
    asked.command = words(&["sh", "-c", COUNT]);
    let id = node.create(&pod, &config, asked).await.unwrap();
    node.images.remove_image(pb::RemoveImageRequest { image: Some(image_spec(&image)) }).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["cat", "/made"]).await, "kept");
    assert_eq!(node.status(&id).await.unwrap().image.unwrap().image, BUSYBOX);
    let copies = node.scratch.root().join("root/containers").join(&id).join("restore/checkpoint");
    wait_for("CRIU's images are gone", Duration::from_secs(20), || (!copies.exists()).then_some(())).unwrap();
    node.finish().await;

    // By default no image decides what CRIU does.
    let mut node = Node::with_busybox().await;
    let empty = node.scratch.root().join("empty.tar");
    tar::Builder::new(std::fs::File::create(&empty).unwrap()).finish().unwrap();
    let image = image_of(&mut node, &empty, "two").await;
    let config = node.pod("off");
    let pod = node.run(&config).await.unwrap();
    let answer = node.create(&pod, &config, of_image("main", &image)).await;
    refused(answer, Code::FailedPrecondition, &["is a checkpoint", "runtime.restore_images"]);
    node.finish().await;
}

/// Namespaces that a container shares with its pod, that of PIDs only on request.
fn namespaces(pid: u64) -> Vec<PathBuf> {
    ["ipc", "uts", "net", "pid"]
        .map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap())
        .into()
}

/// It continues counting instead of starting again.
fn counts_on(node: &Node, pod: &str, container: &str) {
    goes_on(node, pod, container);
    let log = node.log(pod, container);
    let numbers: Vec<u64> = log.iter().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers[0] > 0 && numbers.is_sorted_by(|a, b| a + 1 == *b), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn criu_lets_containers_continue_from_an_archive_and_from_an_image() {
    if !criu_works() {
        return;
    }
    let mut node = Node::new(Options { extra_config: IMAGES_ON.to_owned(), ..Options::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("in"), "volume").unwrap();
    let archive = frozen(&mut node, data.path()).await;
    let image = image_of(&mut node, &archive, "one").await;
    let (pod, plain) = node.running("new", &["sh", "-c", COUNT]).await;
    let config = node.pod("new");
    let of_pod = namespaces(node.pid(&plain).await)[..3].to_vec();
    for (name, source) in [("archive", archive.clone()), ("image", PathBuf::from(&image))] {
        let asked = with_mount(of_image(name, source), data.path());
        let id = node.create(&pod, &config, asked).await.unwrap();
        node.start(&id).await.unwrap();
        counts_on(&node, "new", name);
        assert_eq!(node.output(&id, &["cat", "/made", "/data/in"]).await, "kept\nvolume");
        assert_eq!(namespaces(node.pid(&id).await)[..3], of_pod);
        node.stop(&id, 0).await.unwrap();
        assert_eq!(node.status(&id).await.unwrap().exit_code, 137);
    }
    node.finish().await;
}

/// A pod whose containers have one PID namespace, and one of them.
fn sharing(
    node: &Node,
    name: &str,
    mut config: pb::ContainerConfig,
) -> (pb::PodSandboxConfig, pb::ContainerConfig) {
    let mut pod = node.pod(name);
    let shared = pb::NamespaceMode::Pod.into();
    let of_pod = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    of_pod.namespace_options.get_or_insert_default().pid = shared;
    pod.hostname = format!("host-{name}");
    if name == "copy" {
        pod.linux.get_or_insert_default().sysctls = map(&[("kernel.shmmni", "77")]);
    }
    security(&mut config).namespace_options.get_or_insert_default().pid = shared;
    (pod, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_containers_share_the_namespaces_of_their_pod() {
    if !criu_works() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let count = ["sh", "-c", COUNT];
    let (config, asked) = sharing(&node, "source", container("main", &count));
    let pod = node.run(&config).await.unwrap();
    let first = node.create(&pod, &config, asked).await.unwrap();
    node.start(&first).await.unwrap();
    goes_on(&node, "source", "main");
    let output = tempfile::tempdir().unwrap();
    node.runtime.checkpoint_pod(pod_request(&pod, &[&first], output.path())).await.unwrap();
    let before = namespaces(node.pid(&first).await);
    let (copy, asked) = sharing(&node, "copy", container("main", &count));
    let mut request = restore_request(&node, "copy", output.path(), &["main"]);
    request.get_mut().config = Some(copy.clone());
    request.get_mut().container_configs = vec![asked];
    let made = node.runtime.restore_pod(request).await.unwrap().into_inner();
    let restored = &made.restored_containers[0].container_id;
    node.start(restored).await.unwrap();
    counts_on(&node, "copy", "main");
    let (_, beside) = sharing(&node, "copy", container("beside", &count));
    let beside = node.create(&made.pod_sandbox_id, &copy, beside).await.unwrap();
    node.start(&beside).await.unwrap();
    let found = namespaces(node.pid(restored).await);
    assert_eq!(found, namespaces(node.pid(&beside).await));
    assert!(found.iter().zip(&before).all(|(new, old)| new != old), "{found:?} {before:?}");
    // What CRIU's images say of the old pod's namespaces has not come to the new one.
    let settings = ["cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/shmmni"];
    assert_eq!(node.output(restored, &settings).await, "host-copy\n77");
    node.finish().await;
}
