//! Images that are made to reach the host, or to keep it busy, by what their layers and their config say.

use crate::support::*;
use podwright_testkit::{Compression, Entry, LayerBuilder, Options};
use serde_json::{Map, Value, json};
use std::path::Path;
use tonic::Code;

/// All names below a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_dev_proc_or_sys_is_a_link_is_refused_and_the_host_untouched() {
    let mut node = Node::with_busybox().await;
    let trap = node.scratch.root().join("trap");
    std::fs::create_dir(&trap).unwrap();
    // runc removed this and made its own.
    std::fs::write(trap.join("ptmx"), "the host's").unwrap();
    let absolute = trap.to_string_lossy().into_owned();
    let relative = format!("{}{absolute}", "../".repeat(20).trim_end_matches('/'));
    let config = node.pod("links");
    let pod = node.run(&config).await.unwrap();
    for (number, (place, target)) in ["dev", "proc", "sys"]
        .iter()
        .flat_map(|place| [(place, absolute.as_str()), (place, relative.as_str()), (place, "tmp")])
        .enumerate()
    {
        let layer =
            LayerBuilder::new().entry(Entry::symlink(place, target)).build(Compression::Gzip).unwrap();
        let tag = number.to_string();
        push(&node.registry, "library/link", &tag, busybox().layer(&layer).build());
        let image = format!("docker.io/library/link:{tag}");
        node.pull(&image).await.unwrap();
        let mut container = container(&format!("c{number}"), &[]);
        container.image = Some(image_spec(&image));
        let made = node.create(&pod, &config, container).await;
        refused(made, Code::InvalidArgument, &[&image, &format!("/{place} is a symbolic link")]);
    }
    assert_eq!(names(&trap), ["ptmx"]);
    assert_eq!(std::fs::read_to_string(trap.join("ptmx")).unwrap(), "the host's");
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_too_many_volumes_is_refused_when_it_is_pulled() {
    let mut node = Node::new(Options::default()).await;
    let deep: Map<String, Value> =
        (0..200).map(|n| (format!("/{n}{}", "/d".repeat(1000)), json!({}))).collect();
    let many: Map<String, Value> = (0..1000).map(|n| (format!("/{n}"), json!({}))).collect();
    for (tag, volumes, says) in [("deep", deep, "directories"), ("many", many, "1000 Volumes")] {
        push(&node.registry, "library/volumes", tag, busybox().process("Volumes", volumes.into()).build());
        let pulled = node.pull(&format!("docker.io/library/volumes:{tag}")).await;
        refused(pulled, Code::DataLoss, &["library/volumes", says]);
    }
    node.finish().await;
}
