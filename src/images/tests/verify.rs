//! Damage of every kind, done to real layers: it is named, and the repair fetches only that layer. Needs root.

use super::fixture::{Content, Layer, Packing, names, open, tar};
use super::server::Server;
use crate::host::rootfs;
use crate::images::index::Change;
use crate::images::unpack::tests::{dir, entry, file, hard_link, pax, symlink};
use crate::images::{Damage, Depth, ImageError, Images, Repair, Subject, VerifyEvent, VerifySummary};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink as link};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tar::EntryType;

/// A store with one image of two layers, the upper of which has every kind of entry, and its registry.
struct Node {
    root: tempfile::TempDir,
    images: Images,
    server: Server,
    id: String,
    layer: Layer,
}

/// A layer of its own for each test: an overlay of one with the same key would keep the directories of all.
fn everything() -> Vec<u8> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let own = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    [
        dir("d/"),
        file("d/file", &"content ".repeat(5000)),
        hard_link("d/linked", "d/file"),
        symlink("link", "d/file"),
        entry(EntryType::Char, "null", "", ""),
        pax(&[("SCHILY.xattr.user.colour", b"green")]),
        file("coloured", &own),
        file("etc/.wh.gone", ""),
        file("o/.wh..wh..opq", ""),
        file("twice", "first"),
        file("twice", "second"),
        vec![0; 1024],
    ]
    .concat()
}

impl Node {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path());
        let mut content = Content::default();
        let bottom =
            Layer::new(&tar(&[("etc/", ""), ("etc/gone", "x"), ("o/", ""), ("o/x", "x")]), Packing::Gzip);
        let layer = Layer::new(&everything(), Packing::Zstd);
        let (_, id) = content.add("t", &[bottom, layer.clone()], "{}");
        let server = Server::serving(content);
        images.pull(&server.name("x:t"), None).await.unwrap();
        Self { root, images, server, id: id.to_string(), layer }
    }

    fn layer_dir(&self) -> PathBuf {
        self.root.path().join("layers").join(self.layer.diff_id.hex())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.layer_dir().join("fs").join(path)
    }

    /// Verifies; the damage as text, and the totals.
    async fn verify(&self, repair: Repair) -> (Vec<String>, VerifySummary) {
        let mut told = Vec::new();
        let summary = self
            .images
            .verify(&[], repair, |event| match event {
                VerifyEvent::Damaged { findings, .. } => {
                    told.extend(findings.iter().map(ToString::to_string))
                }
                VerifyEvent::RepairFailed { error, .. } | VerifyEvent::Unknown { error, .. } => {
                    told.push(error.to_string());
                }
                _ => {}
            })
            .await
            .unwrap();
        assert!(names(self.root.path(), "staging").iter().all(|n| n.parse::<u64>().is_ok()));
        (told, summary)
    }

    fn blob_asks(&self) -> Vec<String> {
        let asks = self.server.asks();
        asks.iter().filter(|a| a.path.contains("/blobs/")).map(|a| a.path.clone()).collect()
    }
}

/// Changes a file and puts its time back.
fn quietly(path: &Path, change: impl FnOnce(&Path)) {
    let before = path.symlink_metadata().unwrap();
    change(path);
    let time = rustix::fs::Timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Changes a directory's entries and puts its time back.
fn within(node: &Node, directory: &str, change: impl FnOnce(&Node)) {
    quietly(&node.at(directory), |_| change(node));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_named_and_repaired() {
    type Harm = fn(&Node);
    let cases: &[(&str, Harm, &[&str])] = &[
        (
            "a bit",
            |n| {
                quietly(&n.at("d/file"), |path| {
                    let mut bytes = std::fs::read(path).unwrap();
                    bytes[33_333] ^= 4;
                    std::fs::write(path, bytes).unwrap();
                });
            },
            &["d/file: its content has changed"],
        ),
        (
            "truncated",
            |n| {
                quietly(&n.at("d/file"), |path| {
                    std::fs::File::options().write(true).open(path).unwrap().set_len(10).unwrap();
                });
            },
            &["d/file: 10 bytes, should be 40000", "d/linked: 10 bytes, should be 40000"],
        ),
        (
            "a file gone",
            |n| within(n, "", |n| std::fs::remove_file(n.at("coloured")).unwrap()),
            &["coloured: missing"],
        ),
        (
            "one of two links gone",
            |n| within(n, "d", |n| std::fs::remove_file(n.at("d/linked")).unwrap()),
            &["d/file: hard links differ", "d/linked: missing"],
        ),
        (
            "a link that is a copy",
            |n| {
                within(n, "d", |n| {
                    let time = n.at("d/file").metadata().unwrap().modified().unwrap();
                    let bytes = std::fs::read(n.at("d/file")).unwrap();
                    std::fs::remove_file(n.at("d/linked")).unwrap();
                    std::fs::write(n.at("d/linked"), bytes).unwrap();
                    std::fs::set_permissions(n.at("d/linked"), std::fs::Permissions::from_mode(0o644))
                        .unwrap();
                    chown(n.at("d/linked"), Some(1), Some(2)).unwrap();
                    std::fs::File::open(n.at("d/linked")).unwrap().set_modified(time).unwrap();
                });
            },
            &["d/file: hard links differ", "d/linked: hard links differ"],
        ),
        (
            "an extra file",
            |n| within(n, "d", |n| std::fs::write(n.at("d/more"), "").unwrap()),
            &["d/more: not of the layer"],
        ),
        (
            "a mode",
            |n| std::fs::set_permissions(n.at("twice"), PermissionsExt::from_mode(0o4755)).unwrap(),
            &["twice: mode 4755, should be 0644"],
        ),
        ("an owner", |n| chown(n.at("d"), Some(7), None).unwrap(), &["d: owner 7:2, should be 1:2"]),
        (
            "an attribute",
            |n| rustix::fs::setxattr(n.at("coloured"), "user.colour", b"red", XattrFlags::empty()).unwrap(),
            &["coloured: extended attribute user.colour differs"],
        ),
        (
            "a capability that nobody gave",
            |n| rustix::fs::setxattr(n.at("d"), "user.more", b"x", XattrFlags::empty()).unwrap(),
            &["d: extended attribute user.more differs"],
        ),
        (
            "a symlink's target",
            |n| {
                within(n, "", |n| {
                    let time = n.at("link").symlink_metadata().unwrap();
                    std::fs::remove_file(n.at("link")).unwrap();
                    link("/etc/shadow", n.at("link")).unwrap();
                    std::os::unix::fs::lchown(n.at("link"), Some(1), Some(2)).unwrap();
                    let time = rustix::fs::Timespec { tv_sec: time.mtime(), tv_nsec: 0 };
                    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                    rustix::fs::utimensat(CWD, n.at("link"), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                        .unwrap();
                });
            },
            &["link: target of the symbolic link differs"],
        ),
        (
            "a whiteout gone",
            |n| within(n, "etc", |n| std::fs::remove_file(n.at("etc/gone")).unwrap()),
            &["etc/gone: missing"],
        ),
        (
            "a whiteout that became a file",
            |n| {
                within(n, "etc", |n| {
                    std::fs::remove_file(n.at("etc/gone")).unwrap();
                    std::fs::write(n.at("etc/gone"), "").unwrap();
                });
            },
            &["etc/gone: a file in place of a whiteout"],
        ),
        (
            "opaque no more",
            |n| rustix::fs::removexattr(n.at("o"), "trusted.overlay.opaque").unwrap(),
            &["o: extended attribute trusted.overlay.opaque differs"],
        ),
        (
            "another device",
            |n| {
                within(n, "", |n| {
                    let time = n.at("null").symlink_metadata().unwrap();
                    std::fs::remove_file(n.at("null")).unwrap();
                    let device = rustix::fs::makedev(1, 1);
                    rustix::fs::mknodat(
                        CWD,
                        n.at("null"),
                        FileType::CharacterDevice,
                        Mode::from_raw_mode(0o644),
                        device,
                    )
                    .unwrap();
                    std::fs::set_permissions(n.at("null"), PermissionsExt::from_mode(0o644)).unwrap();
                    chown(n.at("null"), Some(1), Some(2)).unwrap();
                    let time = rustix::fs::Timespec { tv_sec: time.mtime(), tv_nsec: 0 };
                    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                    rustix::fs::utimensat(CWD, n.at("null"), &times, rustix::fs::AtFlags::empty()).unwrap();
                });
            },
            &["null: device number differs"],
        ),
        (
            "what the layer replaced",
            |n| std::fs::write(n.layer_dir().join("replaced/1"), "FIRST").unwrap(),
            &["twice: its content has changed"],
        ),
        (
            "the recipe",
            |n| {
                let path = n.layer_dir().join("recipe.zst");
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x20;
                std::fs::write(path, bytes).unwrap();
            },
            &["recipe.zst: the recipe cannot be followed"],
        ),
        ("all of it", |n| std::fs::remove_dir_all(n.layer_dir()).unwrap(), &["the directory is gone"]),
    ];
    let node = Node::new().await;
    let (told, summary) = node.verify(Repair::Yes).await;
    assert_eq!((told, summary.good, summary.weak), (Vec::new(), 4, 0), "config, two layers, directories");
    let fetched = node.blob_asks().len();
    for (count, (name, harm, findings)) in cases.iter().enumerate() {
        harm(&node);
        let (told, summary) = node.verify(Repair::No).await;
        assert_eq!(told.len(), findings.len(), "{name}: {told:?}");
        assert!(told.iter().zip(*findings).all(|(t, f)| t.starts_with(f)), "{name}: {told:?}");
        assert_eq!((summary.good, summary.damaged, summary.repaired), (3, 1, 0), "{name}");
        let (_, summary) = node.verify(Repair::Yes).await;
        assert_eq!((summary.damaged, summary.repaired), (1, 1), "{name}");
        let asked = node.blob_asks();
        assert_eq!(asked.len(), fetched + count + 1, "{name}: only that layer is fetched");
        assert!(asked.last().unwrap().ends_with(node.layer.digest().as_str()), "{name}");
        let (told, summary) = node.verify(Repair::No).await;
        assert_eq!((told, summary.good), (Vec::new(), 4), "{name}");
        assert!(names(node.root.path(), "retired").is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_and_directories_layers_are_looked_at_too() {
    let node = Node::new().await;
    let store = &node.images.inner.store;
    let good = store.index().config(&node.id).unwrap().unwrap();
    let bad = String::from_utf8(good.clone()).unwrap().replace("linux", "Linux");
    store.index().commit(&[Change::PutConfig(&node.id, bad.as_bytes())]).unwrap();
    let directories = store.state().images[&node.id].record.directories.clone().unwrap();
    let etc = store.layer_fs(&directories).join("etc");
    std::fs::set_permissions(&etc, PermissionsExt::from_mode(0o777)).unwrap();
    let (told, summary) = node.verify(Repair::Yes).await;
    assert_eq!(told, ["does not match its digest", "its directories are not those that its key names"]);
    assert_eq!((summary.good, summary.damaged, summary.repaired), (2, 2, 2));
    assert_eq!(store.index().config(&node.id).unwrap().unwrap(), good);
    assert_eq!(etc.metadata().unwrap().mode() & 0o777, 0o750);
    std::fs::write(etc.join("passwd"), "").unwrap();
    let (told, summary) = node.verify(Repair::Yes).await;
    assert_eq!((told, summary.repaired), (vec!["etc/passwd: not of the layer".to_owned()], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_older_daemon_has_its_inodes_counted() {
    let node = Node::new().await;
    std::fs::remove_file(node.layer_dir().join("recipe.zst")).unwrap();
    std::fs::remove_dir_all(node.layer_dir().join("replaced")).unwrap();
    // The replaced file was counted when it was created: the older daemon's number is too high here.
    let (told, _) = node.verify(Repair::No).await;
    assert_eq!(told, ["10 inodes, should be 11"]);
    std::fs::write(node.at("more"), "").unwrap();
    let mut depths = Vec::new();
    let tell = |event| {
        if let VerifyEvent::Good { depth, subject: Subject::Layer(_), .. } = event {
            depths.push(depth);
        }
    };
    let summary = node.images.verify(&[node.server.name("x:t")], Repair::Yes, tell).await.unwrap();
    assert_eq!((depths, summary.weak), (vec![Depth::Whole, Depth::InodesOnly, Depth::Whole], 1));
    let missing = node.images.verify(&["nothing".to_owned()], Repair::Yes, |_| {}).await;
    assert!(matches!(missing, Err(ImageError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_fails_leaves_what_there_is() {
    let Node { root, images, server, layer, .. } = Node::new().await;
    drop(server);
    let path = root.path().join("layers").join(layer.diff_id.hex()).join("fs/twice");
    std::fs::write(&path, "SECOND").unwrap();
    let (mut failed, mut damage) = (None, Vec::new());
    let summary = images
        .verify(&[], Repair::Yes, |event| match event {
            VerifyEvent::RepairFailed { subject, error } => failed = Some((subject, error)),
            VerifyEvent::Damaged { findings, .. } => damage = findings,
            _ => {}
        })
        .await
        .unwrap();
    let (subject, error) = failed.unwrap();
    assert_eq!(subject, Subject::Layer(layer.diff_id.hex().to_owned()));
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(damage.iter().any(|f| matches!(f.damage, Damage::Content { .. })), "{damage:?}");
    assert_eq!((summary.damaged, summary.repaired), (1, 0));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "SECOND");
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        rootfs::unmount(&crate::host::offload::here(), &self.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_containers_keep_what_they_have() {
    let node = Node::new().await;
    let root = node.root.path();
    let hold = node.images.hold(&node.id).unwrap();
    for dir in ["upper", "work", "merged"] {
        std::fs::create_dir(root.join(dir)).unwrap();
    }
    let merged = root.join("merged");
    let overlay = rootfs::Overlay {
        lowers: hold.layers(),
        upper: &root.join("upper"),
        work: &root.join("work"),
        target: &merged,
        options: &[],
        idmap: None,
        within_quota: false,
    };
    rootfs::mount(&crate::host::offload::here(), &overlay).unwrap();
    let mounted = Mounted(merged.clone());
    std::fs::write(node.at("twice"), "SECOND").unwrap();
    let (_, summary) = node.verify(Repair::Yes).await;
    assert_eq!(summary.repaired, 1);
    assert_eq!(std::fs::read_to_string(node.at("twice")).unwrap(), "second");
    assert_eq!(
        std::fs::read_to_string(merged.join("twice")).unwrap(),
        "SECOND",
        "the mount has its directory"
    );
    assert_eq!(names(root, "retired").len(), 1);

    // A new daemon knows of no hold; only the mount keeps the directory.
    drop(hold);
    let Node { root, images, server: _server, id, .. } = node;
    drop(images);
    let images = open(root.path());
    images.recovered().unwrap();
    assert_eq!(names(root.path(), "retired").len(), 1);
    assert_eq!(std::fs::read_to_string(merged.join("d/file")).unwrap().len(), 40_000);
    // A hold alone keeps it as well.
    let hold = images.hold(&id).unwrap();
    drop(mounted);
    images.recovered().unwrap();
    assert_eq!(names(root.path(), "retired").len(), 1);
    drop(hold);
    images.recovered().unwrap();
    assert!(names(root.path(), "retired").is_empty());
    assert!(images.verify(&[], Repair::No, |_| {}).await.unwrap().damaged == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_a_repair_leaves_one_layer() {
    let node = Node::new().await;
    let Node { root, images, server: _server, layer, .. } = node;
    drop(images);
    let (key, root) = (layer.diff_id.hex(), root.path());
    let copy = |to: &str| {
        std::fs::create_dir_all(root.join(to).join("fs")).unwrap();
    };
    // Staged; moved to the place of the exchange; exchanged, when the directory is the old one: all are swept.
    copy("staging/9");
    copy(&format!("retired/{key}-0"));
    copy(&format!("retired/{key}-1"));
    let images = open(root);
    let summary = images.verify(&[], Repair::No, |_| {}).await.unwrap();
    assert_eq!((summary.good, summary.damaged), (4, 0));
    assert!(names(root, "retired").is_empty() && root.join("layers").join(key).is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_a_directory_show_through_a_layer_that_implies_it() {
    let mut content = Content::default();
    let bottom = [pax(&[("SCHILY.xattr.user.colour", b"green")]), dir("etc/"), vec![0; 1024]].concat();
    let top = [file("etc/x", "x"), vec![0; 1024]].concat();
    content.add("t", &[Layer::new(&bottom, Packing::Gzip), Layer::new(&top, Packing::Gzip)], "{}");
    let server = Server::serving(content);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let id = images.pull(&server.name("x:t"), None).await.unwrap();
    let hold = images.hold(id.as_str()).unwrap();
    let mut value = [0u8; 5];
    let etc = hold.layers().last().unwrap().join("etc");
    assert_eq!(rustix::fs::getxattr(etc, "user.colour", &mut value[..]), Ok(5));
    assert_eq!(&value, b"green");
    assert_eq!(images.verify(&[], Repair::No, |_| {}).await.unwrap().good, 4);
}
