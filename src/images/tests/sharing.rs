//! Sharing: joined pulls, shared layers, holds, removal, crashes.

use super::fixture::{Content, Layer, Packing, config, left_over, names, open, small, tar};
use super::server::{End, Server, serve};
use crate::images::{ImageError, Images};
use std::path::Path;

/// Waits for background work, yielding to it each turn.
pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < patience, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

fn stalling(content: &Content) -> Server {
    let content = content.clone();
    Server::start(move |ask| {
        let reply = serve(&content, ask);
        let layer = ask.path.contains("/blobs/") && reply.body[0] != b'{';
        if layer { reply.ends(End::StallAt(5)) } else { reply }
    })
}

pub(super) fn layer_asks(server: &Server, content: &Content) -> usize {
    let layer = |d: &str| content.blobs.get(d).is_some_and(|b| b[0] != b'{');
    let fetched = |a: &&super::server::Ask| a.method == "GET" && a.path.rsplit('/').next().is_some_and(layer);
    server.asks().iter().filter(fetched).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_join_and_survive_a_caller_that_leaves() {
    let (content, _, id) = small();
    let server = stalling(&content);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let call = |tag: &str| {
        let (images, name) = (images.clone(), server.name(tag));
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    let first = call("x:t");
    until("both layers are asked for", || layer_asks(&server, &content) == 2).await;
    // The same image again, and another repository with the same layers.
    let (second, third) = (call("x:t"), call("y:t"));
    until("the other repository is read", || server.asks().iter().any(|a| a.path.contains("/y/blobs/")))
        .await;
    first.abort();
    let _ = first.await;
    // Lists never wait for a pull.
    assert!(images.list().is_empty() && images.status("x").is_none());
    server.release();
    assert_eq!(second.await.unwrap().unwrap().as_str(), id.as_str());
    assert_eq!(third.await.unwrap().unwrap().as_str(), id.as_str());
    assert_eq!(layer_asks(&server, &content), 2, "each layer came once");
    assert_eq!(images.status(id.as_str()).unwrap().repo_tags.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_registry_that_is_not_his() {
    let (content, _, id) = small();
    let (slow, server) = (stalling(&content), Server::serving(content.clone()));
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let call = |name: String| {
        let images = images.clone();
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    let first = call(slow.name("evil/x:t"));
    until("both layers are asked for", || layer_asks(&slow, &content) == 2).await;
    assert_eq!(call(server.name("x:t")).await.unwrap().unwrap().as_str(), id.as_str());
    assert!(!first.is_finished(), "it was waited for");
    slow.release();
    assert_eq!(first.await.unwrap().unwrap().as_str(), id.as_str());
    // What came second is known to be there all the same: its host is believed the next time.
    let asked = layer_asks(&slow, &content);
    images.pull(&slow.name("other/x:t"), None).await.unwrap();
    assert_eq!(layer_asks(&slow, &content), asked, "HEAD is enough");
    assert!(left_over(&images, root.path()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stands_still_keeps_no_slot_from_others() {
    let (content, ..) = small();
    let slow = stalling(&content);
    let mut other = Content::default();
    let (_, id) = other.add("t", &[Layer::new(&tar(&[("other", "x")]), Packing::Gzip)], "{}");
    let server = Server::serving(other);
    let root = tempfile::tempdir().unwrap();
    let config = crate::config::Images { max_concurrent_downloads: 2, ..config() };
    let mut images = Images::open(root.path(), &config).unwrap();
    let inner = std::sync::Arc::get_mut(&mut images.inner).unwrap();
    inner.downloads.look = std::time::Duration::from_millis(10);
    let call = |name: String| {
        let images = images.clone();
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    let first = call(slow.name("evil/x:t"));
    until("all slots are taken", || layer_asks(&slow, &content) == 2).await;
    assert_eq!(call(server.name("x:t")).await.unwrap().unwrap().as_str(), id.as_str());
    assert!(!first.is_finished(), "it was waited for, or given up");
    slow.release();
    first.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing() {
    let (content, ..) = small();
    let server = stalling(&content);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let call = {
        let (images, name) = (images.clone(), server.name("x:t"));
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    until("layers are staged", || names(root.path(), "staging").len() == 2).await;
    call.abort();
    let _ = call.await;
    until("the work ends", || names(root.path(), "staging").is_empty()).await;
    assert!(left_over(&images, root.path()).await.is_empty() && images.list().is_empty());
}

async fn two_images(images: &Images) -> (Server, String, String) {
    let mut content = Content::default();
    let shared = Layer::new(&tar(&[("shared", "s")]), Packing::Gzip);
    let own = |c: &str| Layer::new(&tar(&[("own", c)]), Packing::Zstd);
    let (_, a) = content.add("a", &[shared.clone(), own("a"), shared.clone()], "{}");
    let (_, b) = content.add("b", &[shared, own("b")], "{}");
    let server = Server::serving(content);
    for tag in ["a", "b"] {
        images.pull(&server.name(&format!("x:{tag}")), None).await.unwrap();
    }
    (server, a.to_string(), b.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_spares_what_others_need() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (server, a, b) = two_images(&images).await;
    assert_eq!(names(root.path(), "layers").len(), 3, "the shared layer is stored once");
    let hold = images.hold(&a).unwrap();
    assert_eq!(hold.layers().len(), 2, "a layer that occurs twice is mounted once");
    images.remove(&server.name("x:a")).await.unwrap();
    images.remove(&server.name("x:a")).await.unwrap();
    assert!(images.status(&a).is_none() && images.hold(&a).is_err() && images.list().len() == 1);
    assert!(hold.layers().iter().all(|l| l.is_dir()));

    // The hold outlives the daemon; the record is still there to restore it.
    std::mem::forget(hold);
    drop(images);
    let images = reopen(root.path());
    assert!(images.status(&a).is_none());
    let id = crate::model::ImageId::from_digest(&a);
    let hold = images.restore_hold(&id).unwrap();
    images.recovered().unwrap();
    assert!(hold.layers().iter().all(|l| l.is_dir()));
    drop(hold);
    until("the layer of the removed image goes", || names(root.path(), "layers").len() == 2).await;
    assert!(images.restore_hold(&id).is_none());
    images.remove(&b).await.unwrap();
    until("all layers go", || {
        names(root.path(), "layers").is_empty() && names(root.path(), "staging").is_empty()
    })
    .await;
    assert_eq!(images.fs_usage().used_bytes, 0);
}

/// The index is locked by the forgotten hold of the old store; a copy of the directory is what a new process sees.
fn reopen(root: &Path) -> Images {
    let copy = root.join("index.copy");
    std::fs::copy(root.join("index.redb"), &copy).unwrap();
    std::fs::rename(copy, root.join("index.redb")).unwrap();
    open(root)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_leaves_its_old_image() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let content = std::sync::Arc::new(std::sync::Mutex::new(small().0));
    let serving = std::sync::Arc::clone(&content);
    let server = Server::start(move |ask| serve(&serving.lock().unwrap(), ask));
    let old = images.pull(&server.name("x:t"), None).await.unwrap();
    content.lock().unwrap().add("t", &[Layer::new(&tar(&[("new", "")]), Packing::Plain)], "{}");
    let new = images.pull(&server.name("x:t"), None).await.unwrap();
    assert_ne!(old, new);
    assert_eq!(images.status(&server.name("x:t")).unwrap().id, new);
    let old = images.status(old.as_str()).unwrap();
    assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_half_layer() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (server, a, b) = two_images(&images).await;
    drop(images);
    // Between rename and index: an unknown directory. During unpacking: a full staging directory.
    let unknown = root.path().join("layers").join("f".repeat(64)).join("fs");
    std::fs::create_dir_all(&unknown).unwrap();
    std::fs::create_dir_all(root.path().join("staging/7/fs/half/a/layer")).unwrap();
    // And a layer that somebody deleted.
    let own = Layer::new(&tar(&[("own", "a")]), Packing::Zstd).diff_id;
    std::fs::remove_dir_all(root.path().join("layers").join(own.hex())).unwrap();

    let images = open(root.path());
    until("the unknown goes", || names(root.path(), "staging").is_empty()).await;
    assert_eq!(names(root.path(), "layers").len(), 2);
    assert!(images.status(&a).is_none() && images.status(&server.name("x:a")).is_none());
    assert!(images.status(&b).is_some(), "exactly one image is lost");
    let before = images.stats().layers.load(std::sync::atomic::Ordering::Relaxed);
    images.pull(&server.name("x:a"), None).await.unwrap();
    assert_eq!(
        images.stats().layers.load(std::sync::atomic::Ordering::Relaxed),
        before + 1,
        "only the lost layer"
    );
    assert!(matches!(images.hold("nothing"), Err(ImageError::NotFound { .. })));
}
