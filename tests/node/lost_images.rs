//! Images of which something was lost: running containers go on, and a pull or nothing at all makes them whole.

use crate::support::*;
use podwright::cri::proto as pb;
use std::path::PathBuf;
use tonic::Code;

fn store(node: &Node) -> PathBuf {
    node.scratch.root().join("root/images")
}

fn layers(node: &Node) -> Vec<PathBuf> {
    std::fs::read_dir(store(node).join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

async fn is_listed(node: &mut Node) -> bool {
    let request = pb::ImageStatusRequest { image: Some(image_spec(BUSYBOX)), ..Default::default() };
    node.images.image_status(request).await.unwrap().into_inner().image.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_costs_nothing() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("lives", &[]).await;
    let pid = node.pid(&id).await;
    let index = store(&node).join("index.redb");
    let whole = std::fs::read(&index).unwrap();
    // Each page of tables and records in turn is most of what can be damaged; the header is another.
    let faults: [Option<Vec<u8>>; 4] = [
        None,
        Some(whole[..whole.len() / 2].to_vec()),
        Some(vec![b'x'; 100_000]),
        Some(whole.chunks(64).flat_map(|some| [&[!some[0]], &some[1..]].concat()).collect()),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        node.daemon.kill().unwrap();
        match fault {
            Some(bytes) => std::fs::write(&index, bytes).unwrap(),
            None => std::fs::remove_file(&index).unwrap(),
        }
        node.daemon.launch().unwrap();
        assert!(is_listed(&mut node).await, "{n}");
        assert_eq!(node.pid(&id).await, pid);
        assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
        // Also without a pull.
        let (pod, _) = node.running(&format!("new-{n}"), &[]).await;
        node.remove_pod(&pod).await.unwrap();
    }
    let set_aside = std::fs::read_dir(store(&node)).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(set_aside.filter(|name| name.to_string_lossy().contains("damaged")).count() > 0);
    node.finish().await;
}

/// As an older podwright leaves its store.
#[tokio::test(flavor = "multi_thread")]
async fn without_index_and_copies_a_running_container_keeps_its_layers() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("lives", &[]).await;
    node.daemon.kill().unwrap();
    std::fs::remove_file(store(&node).join("index.redb")).unwrap();
    std::fs::remove_dir_all(store(&node).join("records")).unwrap();
    for layer in layers(&node) {
        std::fs::remove_file(layer.join("layer.json")).unwrap();
    }
    node.daemon.launch().unwrap();
    assert!(!is_listed(&mut node).await);
    // Not yet used by anybody, so it has to be read from the layer.
    assert!(node.output(&id, &["ls", "/bin"]).await.contains("busybox"));
    node.pull(BUSYBOX).await.unwrap();
    let (pod, _) = node.running("new", &[]).await;
    node.remove_pod(&pod).await.unwrap();
    assert!(node.output(&id, &["ls", "/bin"]).await.contains("busybox"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_lost_while_the_daemon_runs_is_noticed_and_pulled_again() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("lives", &[]).await;
    let config = node.pod("new");
    let pod = node.run(&config).await.unwrap();
    // A disk that loses directories.
    for layer in layers(&node) {
        std::fs::rename(&layer, node.scratch.root().join(layer.file_name().unwrap())).unwrap();
    }
    assert!(is_listed(&mut node).await, "nobody has looked yet");
    refused(
        node.create(&pod, &config, container("c", &[])).await,
        Code::NotFound,
        &["is lost from this node's disk", "pulled again"],
    );
    assert!(!is_listed(&mut node).await, "a kubelet pulls what is not there");
    node.pull(BUSYBOX).await.unwrap();
    let new = node.create(&pod, &config, container("c", &[])).await.unwrap();
    node.start(&new).await.unwrap();
    assert_eq!(node.output(&new, &["echo", "new"]).await, "new");
    assert_eq!(node.output(&id, &["echo", "alive"]).await, "alive");
    // A pull notices by itself.
    for layer in layers(&node) {
        std::fs::rename(&layer, node.scratch.root().join("again")).unwrap();
    }
    node.pull(BUSYBOX).await.unwrap();
    node.create(&pod, &config, container("d", &[])).await.unwrap();
    node.finish().await;
}
