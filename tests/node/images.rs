//! Images: pull, names, ids, listing, removal, and pulls that must fail.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{Compression, Entry, ImageBuilder, LayerBuilder, Options};
use tonic::Code;

async fn image(node: &mut Node, name: &str) -> Option<pb::Image> {
    let request = pb::ImageStatusRequest { image: Some(image_spec(name)), verbose: false };
    node.images.image_status(request).await.unwrap().into_inner().image
}

async fn remove(node: &mut Node, name: &str) {
    node.images.remove_image(pb::RemoveImageRequest { image: Some(image_spec(name)) }).await.unwrap();
}

async fn list(node: &mut Node) -> Vec<pb::Image> {
    node.images.list_images(pb::ListImagesRequest { filter: None }).await.unwrap().into_inner().images
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_every_name_and_has_one_id() {
    let mut node = Node::new(Options::default()).await;
    assert!(image(&mut node, BUSYBOX).await.is_none());
    let id = node.pull(BUSYBOX).await.unwrap();
    assert!(id.starts_with("sha256:"), "{id}");
    let by_tag = image(&mut node, "busybox:test").await.unwrap();
    assert_eq!((by_tag.id.as_str(), by_tag.repo_tags.clone()), (id.as_str(), vec![BUSYBOX.to_owned()]));
    assert!(by_tag.size > 0);
    let digest = by_tag.repo_digests[0].clone();
    for name in [BUSYBOX, &id, &id["sha256:".len()..], &id["sha256:".len()..][..12], &digest] {
        assert_eq!(image(&mut node, name).await.unwrap().id, id, "{name}");
    }
    assert_eq!(node.pull(&digest).await.unwrap(), id);
    assert_eq!(list(&mut node).await.len(), 1);
    let usage = node.images.image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 100_000);
    node.daemon.crash().unwrap();
    assert_eq!(image(&mut node, BUSYBOX).await.unwrap().id, id);
    remove(&mut node, BUSYBOX).await;
    remove(&mut node, BUSYBOX).await;
    assert!(list(&mut node).await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_pull_has_no_tag() {
    let mut node = Node::new(Options::default()).await;
    let image_built = busybox().build();
    let reference = format!("docker.io/library/busybox@{}", image_built.manifest.digest);
    let id = node.pull(&reference).await.unwrap();
    let found = image(&mut node, &id).await.unwrap();
    assert!(found.repo_tags.is_empty(), "{:?}", found.repo_tags);
    assert_eq!(found.repo_digests, [reference]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_stack_with_whiteouts_links_owners_and_modes() {
    let mut node = Node::new(Options::default()).await;
    let lower = LayerBuilder::new()
        .entries([
            Entry::dir("data"),
            Entry::file("data/gone", &b"x"[..]),
            Entry::file("data/kept", &b"kept"[..]).owner(1000, 50).mode(0o640),
            Entry::dir("opaque"),
            Entry::file("opaque/hidden", &b"x"[..]),
            Entry::file("suid", &b"x"[..]).mode(0o4755),
        ])
        .build(Compression::Zstd)
        .unwrap();
    let upper = LayerBuilder::new()
        .entries([
            Entry::whiteout("data/gone"),
            Entry::opaque("opaque"),
            Entry::file("opaque/new", &b"new"[..]),
            Entry::symlink("link", "data/kept"),
            Entry::fifo("pipe"),
        ])
        .build(Compression::None)
        .unwrap();
    push(&node.registry, "library/stack", "1", busybox().layer(&lower).layer(&upper).build());
    node.pull("docker.io/library/stack:1").await.unwrap();
    let config = node.pod("stack");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &["sleep", "1000000"]);
    spec.image = Some(image_spec("docker.io/library/stack:1"));
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["ls", "/data"]).await, "kept");
    assert_eq!(node.output(&id, &["ls", "/opaque"]).await, "new");
    assert_eq!(node.output(&id, &["cat", "/link"]).await, "kept");
    assert_eq!(node.output(&id, &["stat", "-c", "%u:%g:%a", "/data/kept"]).await, "1000:50:640");
    assert_eq!(node.output(&id, &["stat", "-c", "%a", "/suid"]).await, "4755");
    assert_eq!(node.output(&id, &["stat", "-c", "%F", "/pipe"]).await, "fifo");
    let links = node.output(&id, &["stat", "-c", "%h", "/bin/busybox"]).await;
    assert!(links.parse::<u32>().unwrap() > 10, "{links}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_can_be_removed_and_its_container_goes_on() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("inuse", &[]).await;
    remove(&mut node, BUSYBOX).await;
    assert_eq!(node.output(&id, &["echo", "still"]).await, "still");
    node.daemon.crash().unwrap();
    assert_eq!(node.output(&id, &["echo", "still"]).await, "still");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_cannot_be_says_why() {
    let mut node = Node::new(Options::default()).await;
    refused(node.pull("").await, Code::InvalidArgument, &["image"]);
    refused(node.pull("docker.io/UPPER/case:tag").await, Code::InvalidArgument, &["UPPER"]);
    refused(node.pull("busybox:bad tag").await, Code::InvalidArgument, &["bad tag"]);
    refused(node.pull("busybox@sha256:1234").await, Code::InvalidArgument, &["sha256:1234"]);
    let registry = node.registry.address();
    refused(
        node.pull(&format!("{registry}/library/busybox:absent")).await,
        Code::NotFound,
        &["busybox:absent"],
    );
    let absent = format!("{registry}/library/busybox@sha256:{}", "a".repeat(64));
    refused(node.pull(&absent).await, Code::NotFound, &["sha256:aaaa"]);
    // Nobody listens there.
    refused(node.pull("127.0.0.1:1/x:1").await, Code::Unknown, &["RegistryUnavailable", "127.0.0.1:1"]);
    assert!(list(&mut node).await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_pull_and_leaves_nothing() {
    let mut node = Node::new(Options::default()).await;
    node.daemon.stop().unwrap();
    let images = node.scratch.root().join("root/images");
    std::fs::create_dir_all(&images).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&images)
        .status()
        .unwrap();
    assert!(mounted.success());
    node.daemon.launch().unwrap();
    let big =
        LayerBuilder::new().entry(Entry::file("big", vec![7u8; 16 << 20])).build(Compression::Gzip).unwrap();
    push(&node.registry, "library/big", "1", ImageBuilder::new().layer(&big).build());
    refused(node.pull("docker.io/library/big:1").await, Code::ResourceExhausted, &["space"]);
    let staged: Vec<_> = std::fs::read_dir(images.join("staging")).into_iter().flatten().flatten().collect();
    assert!(staged.is_empty(), "{staged:?}");
    // Space is there again: a small image fits.
    node.pull(BUSYBOX).await.unwrap();
    node.daemon.stop().unwrap();
    let unmounted = std::process::Command::new("umount").arg(&images).status().unwrap();
    assert!(unmounted.success());
    node.daemon.launch().unwrap();
    node.finish().await;
}
