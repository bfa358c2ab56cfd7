//! Writable layers that their container made as deep as it can: nothing of ours may go through them by recursion.

use crate::support::*;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use std::path::Path;
use std::time::Duration;

/// Seconds, on a disk without other users.
const PATIENCE: Duration = Duration::from_secs(300);
/// Some 19,000 directories in one another, from chains of 512 that are moved into one another: no path of it is longer
/// than a path may be.
const DEEP: &str = "p=d; for i in 1 2 3 4 5 6 7 8 9; do p=$p/$p; done; mkdir -p /deep/all; \
     for i in $(seq 38); do mkdir -p /deep/next/$p && mv /deep/all /deep/next/$p/all && mv /deep/next /deep/all || exit 1; \
     done; echo made";

/// The same from outside.
fn make_a_chain(root: &Path, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, root, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_19000_levels_deep_is_measured_and_removed() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("deep", &[]).await;
    let made = node.exec_within(&id, &["sh", "-c", DEEP], 120).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&made.stdout).trim(), "made", "{made:?}");
    node.layer_of(&id, 19_000 * 4096).await;
    let daemon = node.daemon.pid();
    node.remove(&id).await.unwrap();
    let layers = node.scratch.root().join("root").join("containers");
    assert!(!layers.join(&id).exists());
    podwright_testkit::wait_for("the layer is gone from the disk", PATIENCE, || {
        is_empty(&layers.join(".trash")).then_some(())
    })
    .unwrap();
    assert_eq!(node.daemon.pid(), daemon, "it lives on");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_deep_layer_that_no_record_knows_opens_the_socket_and_removes_it() {
    let mut node = Node::with_busybox().await;
    node.daemon.kill().unwrap();
    let layers = node.scratch.root().join("root").join("containers");
    let (orphan, half) = (layers.join("a".repeat(64)), layers.join(".trash").join("b".repeat(64)));
    for dir in [orphan.join("upper"), half.clone()] {
        std::fs::create_dir_all(&dir).unwrap();
        make_a_chain(&dir, 19_000);
    }
    node.daemon.launch().unwrap();
    let (_, id) = node.running("after", &[]).await;
    assert_eq!(node.output(&id, &["echo", "yes"]).await, "yes");
    assert!(!orphan.exists());
    podwright_testkit::wait_for("the layers are gone from the disk", PATIENCE, || {
        is_empty(&layers.join(".trash")).then_some(())
    })
    .unwrap();
    node.finish().await;
}
