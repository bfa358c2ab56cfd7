//! What is lost on one side: the index, a layer's directory, a removal's second half.

use super::fixture::{Content, Layer, Packing, names, open, small, tar};
use super::server::Server;
use super::sharing::layer_asks;
use crate::images::digest::Digest;
use crate::images::{ImageError, Images};
use redb::ReadableDatabase as _;
use std::path::Path;

/// What a store says of itself.
fn said(images: &Images) -> String {
    let mut all: Vec<String> = images
        .list()
        .iter()
        .map(|image| format!("{image:?} {:?}", images.raw_config(&image.id).unwrap()))
        .collect();
    all.sort();
    format!("{all:?} {:?}", images.fs_usage())
}

fn layers(root: &Path) -> Vec<String> {
    names(root, "layers")
}

/// Two images that share a layer; the second has two more names.
async fn two(images: &Images) -> (Server, Content, [Digest; 2]) {
    let shared = Layer::new(&tar(&[("shared", "s")]), Packing::Gzip);
    let own = |name: &str| Layer::new(&tar(&[("deep/own", name)]), Packing::Gzip);
    let mut content = Content::default();
    let (_, a) = content.add("a", &[shared.clone(), own("a")], r#"{"Env":["A=1"]}"#);
    let (_, b) = content.add("b", &[shared, own("b")], r#"{"StopSignal":"SIGINT"}"#);
    let server = Server::serving(content.clone());
    for name in ["x:a", "x:b", "y:b"] {
        images.pull(&server.name(name), None).await.unwrap();
    }
    (server, content, [a, b])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_or_damaged_is_made_again() {
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("index.redb");
    let images = open(root.path());
    let (server, content, [_, b]) = two(&images).await;
    let before = said(&images);
    let hold = images.hold(b.as_str()).unwrap();
    assert_eq!(hold.image().repo_tags.len(), 2);
    drop(hold);
    drop(images);
    let whole = std::fs::read(&index).unwrap();
    let mut faults: Vec<(String, Option<Vec<u8>>)> = vec![
        ("missing".into(), None),
        ("empty".into(), Some(Vec::new())),
        ("garbage".into(), Some(vec![0x5a; 9000])),
        ("cut".into(), Some(whole[..whole.len() / 2].to_vec())),
        ("one byte short".into(), Some(whole[..whole.len() - 1].to_vec())),
    ];
    for page in 0..whole.len() / 4096 {
        let mut flipped = whole.clone();
        flipped[page * 4096..][..64].iter_mut().for_each(|byte| *byte ^= 0xff);
        faults.push((format!("page {page}"), Some(flipped)));
    }
    for (fault, bytes) in faults {
        match bytes {
            Some(bytes) => std::fs::write(&index, bytes).unwrap(),
            None => std::fs::remove_file(&index).unwrap(),
        }
        let images = open(root.path());
        assert_eq!(said(&images), before, "{fault}");
        assert_eq!(layers(root.path()).len(), 3, "{fault}");
    }
    let images = open(root.path());
    let (asked, name) = (layer_asks(&server, &content), server.name("x:a"));
    images.pull(&name, None).await.unwrap();
    assert_eq!(layer_asks(&server, &content), asked, "nothing is fetched again");
    images.remove(&name).await.unwrap();
    let left = said(&images);
    drop(images);
    std::fs::remove_file(&index).unwrap();
    assert_eq!(said(&open(root.path())), left, "what was removed is not back");
}

/// Two copies may have a name, if the daemon died between them.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_with_a_name_the_later_counts() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (mut content, _, old) = small();
    let before = Server::serving(content.clone());
    images.pull(&before.name("x:t"), None).await.unwrap();
    let copy = root.path().join(format!("records/{}.json", old.hex()));
    let stale = std::fs::read(&copy).unwrap();
    let (_, new) = content.add("other", &[], "{}");
    let loaded = images.inner.store.state().names.clone();
    let tag = loaded.keys().find(|name| !name.contains('@')).unwrap();
    images.pull(&Server::serving(content).name("x:other"), None).await.unwrap();
    let store = images.inner.store.clone();
    assert!(
        store.add_names(new.as_str(), std::slice::from_ref(tag), crate::images::store::Giver::Root).unwrap()
    );
    drop((store, images));
    std::fs::write(&copy, stale).unwrap();
    std::fs::remove_file(root.path().join("index.redb")).unwrap();
    let images = open(root.path());
    assert_eq!(images.status(tag).unwrap().id.as_str(), new.as_str());
    assert!(images.status(old.as_str()).unwrap().repo_tags.is_empty());
}

fn make_fifo(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_copies_of_another_kind_keep_nobody_from_starting() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (server, _, [a, b]) = two(&images).await;
    let before = said(&images);
    let own =
        |id: &Digest| images.inner.store.state().images[id.as_str()].record.diff_ids[1].hex().to_owned();
    let (of_a, of_b) = (own(&a), own(&b));
    drop(images);
    for name in ["records", "staging", "trash", "retired"] {
        let place = root.path().join(name);
        let away = root.path().join("away");
        for make in [
            make_fifo as fn(&Path),
            |at| std::fs::write(at, "").unwrap(),
            |at| symlink("/nowhere", at).unwrap(),
        ] {
            let _ = std::fs::rename(&place, &away);
            make(&place);
            assert_eq!(said(&open(root.path())), before, "{name}");
            let _ = std::fs::remove_dir_all(&away);
        }
    }
    // The copies are pipes, and there is no index.
    std::fs::remove_file(root.path().join("index.redb")).unwrap();
    for path in [
        root.path().join(format!("records/{}.json", a.hex())),
        root.path().join(format!("records/{}.config", b.hex())),
        root.path().join(format!("layers/{of_a}/layer.json")),
    ] {
        std::fs::remove_file(&path).unwrap();
        make_fifo(&path);
    }
    let images = open(root.path());
    assert!(images.list().is_empty());
    for name in ["x:a", "x:b"] {
        images.pull(&server.name(name), None).await.unwrap();
    }
    // A layer's directory is a link to another's.
    let place = root.path().join(format!("layers/{of_b}/fs"));
    std::fs::remove_dir_all(&place).unwrap();
    symlink(root.path().join(format!("layers/{of_a}/fs")), &place).unwrap();
    let hold = images.hold(b.as_str()).unwrap();
    assert!(matches!(hold.check(), Err(ImageError::LayerLost { .. })));
    images.pull(&server.name("x:b"), None).await.unwrap();
    images.hold(b.as_str()).unwrap().check().unwrap();
    assert!(!place.is_symlink());
}

/// A backup, or the snapshot of a machine.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_older_than_the_copies_takes_them_up() {
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("index.redb");
    let images = open(root.path());
    let (content, _, first) = small();
    let server = Server::serving(content);
    images.pull(&server.name("x:t"), None).await.unwrap();
    drop(images);
    let older = std::fs::read(&index).unwrap();
    let images = open(root.path());
    let (_server, _, [a, _]) = two(&images).await;
    images.remove(first.as_str()).await.unwrap();
    let before = said(&images);
    drop(images);
    for _ in 0..2 {
        std::fs::write(&index, &older).unwrap();
        let images = open(root.path());
        assert_eq!(said(&images), before, "what came since is there, what went is not");
        images.inner.store.reap(&[]).unwrap();
        images.hold(a.as_str()).unwrap().check().unwrap();
    }
    // A copy that a crash has left of an image that was removed is no later than the index.
    let images = open(root.path());
    let copy = root.path().join(format!("records/{}.json", a.hex()));
    let left = std::fs::read(&copy).unwrap();
    images.remove(a.as_str()).await.unwrap();
    drop(images);
    std::fs::write(&copy, left).unwrap();
    assert!(open(root.path()).status(a.as_str()).is_none());
    assert!(!copy.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_no_file_is_set_aside() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("index.redb");
    let images = open(root.path());
    let _server = two(&images).await;
    let before = said(&images);
    drop(images);
    let is: [(&str, &dyn Fn()); 5] = [
        ("a directory", &|| std::fs::create_dir_all(index.join("x")).unwrap()),
        ("a link to nowhere", &|| symlink("/nowhere/x", &index).unwrap()),
        ("a link to itself", &|| symlink(&index, &index).unwrap()),
        ("a device", &|| symlink("/dev/zero", &index).unwrap()),
        ("a fifo", &|| make_fifo(&index)),
    ];
    for (what, make) in is {
        std::fs::remove_file(&index).unwrap();
        make();
        assert_eq!(said(&open(root.path())), before, "{what}");
    }
    // Of a link to a file, the file is the index.
    let elsewhere = root.path().join("elsewhere");
    std::fs::rename(&index, &elsewhere).unwrap();
    symlink(&elsewhere, &index).unwrap();
    assert_eq!(said(&open(root.path())), before);
    assert!(index.is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_a_newer_podwright_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("index.redb");
    drop(open(root.path()));
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let database = redb::Database::open(&index).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(meta).unwrap().insert("schema", 99).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = Images::open(root.path(), &super::fixture::config()).unwrap_err().to_string();
    assert!(error.contains("schema 99") && error.contains("newer"), "{error}");
    let database = redb::Database::open(&index).unwrap();
    let read = database.begin_read().unwrap();
    assert_eq!(read.open_table(meta).unwrap().get("schema").unwrap().unwrap().value(), 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_layer_costs_only_itself() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (server, content, [a, b]) = two(&images).await;
    let own = images.inner.store.state().images[a.as_str()].record.diff_ids[1].hex().to_owned();
    let place = root.path().join("layers").join(&own);
    let mut asked = layer_asks(&server, &content);
    // While nobody runs, and while the daemon does.
    let mut images = Some(images);
    for is_restarted in [true, false] {
        if is_restarted {
            images = None;
        }
        std::fs::remove_dir_all(&place).unwrap();
        let images = images.get_or_insert_with(|| open(root.path()));
        if !is_restarted {
            let hold = images.hold(a.as_str()).unwrap();
            assert!(matches!(hold.check(), Err(ImageError::LayerLost { layer, .. }) if layer == own));
        }
        // A kubelet pulls what is not there.
        assert!(images.status(a.as_str()).is_none() && images.status(&server.name("x:a")).is_none());
        images.hold(b.as_str()).unwrap().check().unwrap();
        images.inner.store.reap(&[]).unwrap();
        assert_eq!(layers(root.path()).len(), 2, "the others stay");
        images.pull(&server.name("x:a"), None).await.unwrap();
        asked += 1;
        assert_eq!(layer_asks(&server, &content), asked, "only it is fetched");
        images.hold(a.as_str()).unwrap().check().unwrap();
    }
    // A pull notices, too, though this caller has pulled the image before.
    let images = images.unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    images.pull(&server.name("x:a"), None).await.unwrap();
    images.hold(a.as_str()).unwrap().check().unwrap();
    assert_eq!(layer_asks(&server, &content), asked + 1);
    // A layer of both: the pull of one brings the other back, with all its names; also where all layers went.
    let before = said(&images);
    let shared = images.inner.store.state().images[b.as_str()].record.diff_ids[0].hex().to_owned();
    for lost in [root.path().join("layers").join(shared), root.path().join("layers")] {
        std::fs::remove_dir_all(&lost).unwrap();
        images.hold(b.as_str()).unwrap().check().unwrap_err();
        assert!(images.status(&server.name("y:b")).is_none());
        images.pull(&server.name("x:a"), None).await.unwrap();
        images.pull(&server.name("x:b"), None).await.unwrap();
        assert_eq!(said(&images), before, "{}", lost.display());
    }
}

/// What makes room must not need any.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_removed_from_a_full_disk() {
    let disk = super::full::Disk::new("size=32m");
    let images = open(&disk.store());
    let (server, _, [a, b]) = two(&images).await;
    // Left by a crash.
    std::fs::write(disk.store().join("records/x.new"), "").unwrap();
    drop(images);
    let images = open(&disk.store());
    assert!(!disk.store().join("records/x.new").exists());
    disk.fill_but(0);
    for id in [a, b] {
        images.remove(id.as_str()).await.unwrap();
    }
    assert!(layers(&disk.store()).is_empty());
    disk.make_room();
    images.pull(&server.name("x:a"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_fails_is_done_later_and_a_pull_between_works() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let (server, content, [a, b]) = two(&images).await;
    // Nothing can be moved where there is no directory.
    let trash = root.path().join("trash");
    let has_trash = trash.is_dir();
    if has_trash {
        std::fs::remove_dir(&trash).unwrap();
    }
    std::fs::write(&trash, "").unwrap();
    for id in [&a, &b] {
        images.remove(id.as_str()).await.unwrap_err();
    }
    assert!(images.list().is_empty());
    assert_eq!(layers(root.path()).len(), 3);
    let asked = layer_asks(&server, &content);
    images.pull(&server.name("x:b"), None).await.unwrap();
    images.hold(b.as_str()).unwrap().check().unwrap();
    assert_eq!(layer_asks(&server, &content), asked, "its layers are known");
    std::fs::remove_file(&trash).unwrap();
    images.remove(b.as_str()).await.unwrap();
    assert!(layers(root.path()).is_empty());
    // What cannot be deleted of one image is no other's fault.
    images.pull(&server.name("x:a"), None).await.unwrap();
    let stuck = root.path().join("layers").join(&layers(root.path())[0]);
    let immutable = |how: &str| {
        let changed = std::process::Command::new("chattr").arg(how).arg(&stuck).status();
        changed.is_ok_and(|status| status.success())
    };
    if !immutable("+i") {
        // Not on this file system.
        return;
    }
    images.remove(a.as_str()).await.unwrap_err();
    let (other, _, id) = small();
    images.pull(&Server::serving(other).name("z:t"), None).await.unwrap();
    images.remove(id.as_str()).await.unwrap();
    assert!(immutable("-i"));
    images.inner.store.reap(&[]).unwrap();
    assert!(layers(root.path()).is_empty());
}

/// What is swept must be the store's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_a_directorys_place_is_not_swept_through() {
    let root = tempfile::tempdir().unwrap();
    let others = tempfile::tempdir().unwrap();
    std::fs::create_dir(others.path().join("theirs")).unwrap();
    drop(open(root.path()));
    for name in ["staging", "trash", "retired"] {
        let place = root.path().join(name);
        let _ = std::fs::remove_dir(&place);
        std::os::unix::fs::symlink(others.path(), &place).unwrap();
        drop(open(root.path()));
        assert!(others.path().join("theirs").is_dir(), "{name}");
    }
    // Lost while the daemon runs.
    let images = open(root.path());
    for name in ["staging", "retired"] {
        std::fs::remove_dir_all(root.path().join(name)).unwrap();
    }
    let (_server, _, [a, _]) = two(&images).await;
    images.remove(a.as_str()).await.unwrap();
}
