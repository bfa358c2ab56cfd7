//! Images as read-only volumes.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{
    Artifact, Compression, Entry, FilesBuilder, Format, ImageBuilder, Index, LayerBuilder, Options,
};
use std::path::Path;
use tonic::{Code, Status};

/// The image that is mounted.
const MODEL: &str = "docker.io/library/model:1";

/// Two layers, and a link that leads out of the image.
fn push_model(node: &Node) {
    let lower = LayerBuilder::new()
        .entries([
            Entry::dir("weights"),
            Entry::file("weights/old", &b"old"[..]),
            Entry::file("name", &b"lower"[..]),
        ])
        .build(Compression::Gzip)
        .unwrap();
    let upper = LayerBuilder::new()
        .entries([
            Entry::whiteout("weights/old"),
            Entry::file("weights/new", &b"new"[..]),
            Entry::file("run", &b"#!/bin/sh\necho ran\n"[..]).mode(0o755),
            Entry::file("name", &b"upper"[..]),
            Entry::symlink("escape", "../../../../../../etc"),
            Entry::symlink("inside", "/weights"),
        ])
        .build(Compression::Zstd)
        .unwrap();
    push(&node.registry, "library/model", "1", ImageBuilder::new().layer(&lower).layer(&upper).build());
}

fn volume(image: &str, at: &str, sub_path: &str) -> pb::Mount {
    pb::Mount {
        container_path: at.to_owned(),
        readonly: true,
        image: Some(image_spec(image)),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

fn with(name: &str, mounts: Vec<pb::Mount>) -> pb::ContainerConfig {
    pb::ContainerConfig { mounts, ..container(name, &["sleep", "1000000"]) }
}

/// Mount points below the node's directory that are an image's.
fn mounted(node: &Node) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = node.scratch.root().to_string_lossy().into_owned();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| point.starts_with(&root) && point.contains("/volumes/"))
        .map(str::to_owned)
        .collect()
}

async fn remove_image(node: &mut Node, image: &str) {
    node.images.remove_image(pb::RemoveImageRequest { image: Some(image_spec(image)) }).await.unwrap();
}

async fn try_mounts(node: &mut Node, pod: &str, mounts: Vec<pb::Mount>) -> Result<String, Status> {
    let config = node.pod("volumes");
    node.create(pod, &config, with("refused", mounts)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_whole_and_in_parts_and_cannot_be_written() {
    let mut node = Node::with_busybox().await;
    push_model(&node);
    let image = node.pull(MODEL).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let mounts = vec![
        volume(&image, "/model", ""),
        volume(MODEL, "/part", "weights"),
        volume(MODEL, "/linked", "inside"),
        // One layer.
        volume(BUSYBOX, "/busybox", ""),
    ];
    let id = node.create(&pod, &config, with("main", mounts.clone())).await.unwrap();
    assert_eq!(mounted(&node).len(), 2, "one mount an image: {:?}", mounted(&node));
    node.start(&id).await.unwrap();
    assert_eq!(
        node.output(&id, &["ls", "/model/weights", "/part", "/linked"]).await.matches("new").count(),
        3
    );
    assert_eq!(node.output(&id, &["cat", "/model/name"]).await, "upper");
    assert_eq!(node.output(&id, &["/model/run"]).await, "ran");
    assert_eq!(node.output(&id, &["/busybox/bin/busybox", "echo", "yes"]).await, "yes");
    for path in ["/model/x", "/part/x", "/busybox/bin/busybox"] {
        let written = node.exec(&id, &["sh", "-c", &format!("echo x > {path}")]).await.unwrap();
        assert_ne!(written.exit_code, 0);
        let said = String::from_utf8_lossy(&written.stderr).into_owned();
        assert!(said.contains("Read-only file system"), "{said}");
    }
    // Reported as requested, with what it resolved to.
    let told = node.status(&id).await.unwrap().mounts;
    assert_eq!(told.len(), 4);
    for (asked, told) in mounts.iter().zip(&told) {
        assert_eq!((&told.container_path, told.readonly), (&asked.container_path, true));
        assert_eq!(told.image_sub_path, asked.image_sub_path);
        let (told, asked) = (told.image.as_ref().unwrap(), asked.image.as_ref().unwrap());
        assert_eq!(told.image, asked.image);
        assert!(told.image_ref.contains("@sha256:"), "{}", told.image_ref);
    }
    node.remove(&id).await.unwrap();
    assert!(mounted(&node).is_empty(), "{:?}", mounted(&node));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_and_rights_in_a_volume_mean_nothing() {
    let mut node = Node::with_busybox().await;
    let busybox = std::fs::read("/usr/bin/busybox").unwrap();
    let layer = LayerBuilder::new()
        .entries([
            // /dev/zero.
            Entry::char_device("zero", 1, 5).mode(0o666),
            Entry::file("busybox", busybox).mode(0o4755),
        ])
        .build(Compression::Gzip)
        .unwrap();
    push(&node.registry, "library/rights", "1", ImageBuilder::new().layer(&layer).build());
    let image = "docker.io/library/rights:1";
    node.pull(image).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let noexec = pb::Mount { mount_options: vec!["noexec".into()], ..volume(image, "/quiet", "") };
    let mut asked = with("main", vec![volume(image, "/v", ""), noexec]);
    asked.linux.get_or_insert_default().security_context.get_or_insert_default().run_as_user =
        Some(pb::Int64Value { value: 1000 });
    let id = node.create(&pod, &config, asked).await.unwrap();
    node.start(&id).await.unwrap();
    for (at, flags) in
        [("/v", &["ro", "nodev", "nosuid"][..]), ("/quiet", &["ro", "nodev", "nosuid", "noexec"])]
    {
        let table = node.output(&id, &["grep", &format!(" {at} "), "/proc/self/mounts"]).await;
        let options: Vec<&str> = table.split(' ').nth(3).unwrap().split(',').collect();
        assert!(flags.iter().all(|flag| options.contains(flag)), "{table}");
    }
    let read = node.exec(&id, &["head", "-c", "1", "/v/zero"]).await.unwrap();
    assert!(read.exit_code != 0 && read.stdout.is_empty(), "{read:?}");
    // Programs run, but nobody becomes root by them.
    let su = node.exec(&id, &["/v/busybox", "su", "-c", "id"]).await.unwrap();
    let said = String::from_utf8_lossy(&su.stderr).into_owned();
    assert!(su.exit_code != 0 && said.contains("must be suid"), "{su:?}");
    let quiet = node.exec(&id, &["/quiet/busybox", "id"]).await;
    assert!(quiet.is_err() || quiet.is_ok_and(|answer| answer.exit_code != 0));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_says_why_in_words_that_a_kubelet_knows() {
    let mut node = Node::with_busybox().await;
    push_model(&node);
    node.pull(MODEL).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let absent = volume("docker.io/library/absent:1", "/v", "");
    let (code, word) = (Code::InvalidArgument, "ImageVolumeMountFailed");
    refused(
        try_mounts(&mut node, &pod, vec![absent]).await,
        Code::NotFound,
        &[word, "library/absent:1", "/v"],
    );
    for sub_path in ["absent", "weights/old", "escape", "../../etc/passwd"] {
        let mounts = vec![volume(BUSYBOX, "/b", ""), volume(MODEL, "/v", sub_path)];
        refused(try_mounts(&mut node, &pod, mounts).await, code, &[word, sub_path, MODEL]);
    }
    let mounts = vec![volume(MODEL, "/v", "name")];
    refused(try_mounts(&mut node, &pod, mounts).await, code, &[word, "name", "not a directory"]);
    let writable = pb::Mount { readonly: false, ..volume(MODEL, "/v", "") };
    refused(try_mounts(&mut node, &pod, vec![writable]).await, code, &[word, "readonly"]);
    let both = pb::Mount { host_path: "/etc".to_owned(), ..volume(MODEL, "/v", "") };
    refused(try_mounts(&mut node, &pod, vec![both]).await, code, &["host_path"]);
    assert!(mounted(&node).is_empty(), "{:?}", mounted(&node));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_image_stays_a_volume_over_a_daemons_death_until_its_container_goes() {
    let mut node = Node::with_busybox().await;
    push_model(&node);
    node.pull(MODEL).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let mounts = vec![volume(MODEL, "/model", "")];
    let id = node.create(&pod, &config, with("main", mounts.clone())).await.unwrap();
    let waiting = node.create(&pod, &config, with("waiting", mounts)).await.unwrap();
    node.start(&id).await.unwrap();
    let layers = node.scratch.root().join("root/images/layers");
    let count = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    let all = count(&layers);
    node.daemon.crash().unwrap();
    remove_image(&mut node, MODEL).await;
    assert_eq!(node.output(&id, &["cat", "/model/weights/new"]).await, "new");
    node.daemon.crash().unwrap();
    assert_eq!(count(&layers), all);
    assert_eq!(node.output(&id, &["cat", "/model/weights/new"]).await, "new");
    node.start(&waiting).await.unwrap();
    assert_eq!(node.output(&waiting, &["cat", "/model/weights/new"]).await, "new");
    for id in [&id, &waiting] {
        assert_eq!(count(&layers), all);
        node.remove(id).await.unwrap();
    }
    podwright_testkit::wait_for("its layers are gone", std::time::Duration::from_secs(30), || {
        (count(&layers) == all - 2).then_some(())
    })
    .unwrap();
    assert!(mounted(&node).is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_volumes_are_made_leaves_none() {
    let mut node = Node::new(Options::default()).await;
    node.pull(BUSYBOX).await.unwrap();
    push_model(&node);
    node.pull(MODEL).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    for round in 0..8u64 {
        let mut client = node.runtime.clone();
        let mounts = vec![volume(MODEL, "/model", ""), volume(BUSYBOX, "/b", "bin")];
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(with(&format!("c{round}"), mounts)),
            sandbox_config: Some(config.clone()),
        };
        let work = tokio::spawn(async move { client.create_container(request).await });
        // Not a wait for something: the moment of the kill, spread over the whole creation.
        tokio::time::sleep(std::time::Duration::from_millis(round * 3)).await;
        node.daemon.crash().unwrap();
        let _ = work.await.unwrap();
    }
    for created in node.list_containers().await {
        node.remove(&created.id).await.unwrap();
    }
    assert!(mounted(&node).is_empty(), "{:?}", mounted(&node));
    node.finish().await;
}

fn weights() -> FilesBuilder {
    FilesBuilder::new("application/vnd.example.model")
        .file(Some("model/weights.bin"), "application/octet-stream", &vec![7; 3 << 20])
        .file(Some("model/card.md"), "text/markdown", b"card")
        .file(Some("readme"), "application/vnd.oci.image.layer.v1.tar+gzip", b"not a tar")
        .file(None, "text/plain", b"nameless")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifacts_files_are_a_volume() {
    let mut node = Node::with_busybox().await;
    let artifact = weights().build();
    let (digest, nameless) = (artifact.manifest.digest.clone(), artifact.layers[3].digest.clone());
    let index = Index::new(Format::Oci, vec![artifact]);
    node.registry.push("library/weights", "1", &Artifact::Index(index)).unwrap();
    let name = "docker.io/library/weights:1";
    let id = node.pull(name).await.unwrap();
    assert_eq!(id, digest, "the id is the manifest's digest");
    node.pull(&format!("docker.io/library/weights@{digest}")).await.unwrap();
    let listed =
        node.images.list_images(pb::ListImagesRequest { filter: None }).await.unwrap().into_inner().images;
    let listed = listed.iter().find(|image| image.id == id).unwrap();
    assert_eq!(listed.repo_tags, [name]);
    assert_eq!(listed.repo_digests.len(), 2);
    assert!(listed.size > 3 << 20);

    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let mut of_artifact = container("main", &["sleep", "1000000"]);
    of_artifact.image = Some(image_spec(name));
    let made = node.create(&pod, &config, of_artifact).await;
    refused(made, Code::FailedPrecondition, &["library/weights:1", "volume"]);

    let mounts = vec![volume(&id, "/all", ""), volume(&id, "/model", "model")];
    let id = node.create(&pod, &config, with("main", mounts)).await.unwrap();
    node.start(&id).await.unwrap();
    node.daemon.crash().unwrap();
    remove_image(&mut node, name).await;
    let nameless = nameless.strip_prefix("sha256:").unwrap();
    assert_eq!(node.output(&id, &["cat", "/model/card.md", "/all/readme"]).await, "cardnot a tar");
    assert_eq!(node.output(&id, &["cat", &format!("/all/{nameless}")]).await, "nameless");
    let stat = node.output(&id, &["stat", "-c", "%a %u %s %Y", "/all/model/weights.bin"]).await;
    assert_eq!(stat, format!("644 0 {} 0", 3 << 20));
    let absent = vec![volume(BUSYBOX, "/b", "readme")];
    refused(try_mounts(&mut node, &pod, absent).await, Code::InvalidArgument, &["readme"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_whose_files_lie_outside_or_upon_each_other_is_refused() {
    let mut node = Node::new(Options::default()).await;
    let text = "text/plain";
    let hostile = [
        ("up", weights().file(Some("../../etc/passwd"), text, b"x").build(), "outside"),
        ("absolute", weights().file(Some("/etc/passwd"), text, b"x").build(), "outside"),
        ("twice", weights().file(Some("readme"), text, b"x").build(), "another"),
        ("below", weights().file(Some("readme/x"), text, b"x").build(), "another"),
    ];
    for (tag, artifact, says) in hostile {
        push(&node.registry, "library/hostile", tag, artifact);
        let pulled = node.pull(&format!("docker.io/library/hostile:{tag}")).await;
        refused(pulled, Code::DataLoss, &["library/hostile", says]);
    }
    // No files: nothing to mount.
    push(&node.registry, "library/empty", "1", FilesBuilder::new("application/vnd.example").build());
    node.pull("docker.io/library/empty:1").await.unwrap();
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("volumes");
    let pod = node.run(&config).await.unwrap();
    let mounts = vec![volume("docker.io/library/empty:1", "/v", "")];
    refused(
        try_mounts(&mut node, &pod, mounts).await,
        Code::FailedPrecondition,
        &["ImageVolumeMountFailed", "no layer"],
    );
    node.finish().await;
}
