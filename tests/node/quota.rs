//! Project quotas: usage that the file system counts, and limits of writable layers. They need a kernel with quotas
//! for the file system, which the guest of `tests/vm/run.sh` has to have; elsewhere only the refusal is proved.

use crate::support::*;
use crate::usage::used;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own in a file, unmounted when dropped.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// None where the kernel does not mount it.
    fn new(make: &[&str], option: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let made = Command::new(make[0]).args(&make[1..]).arg(&image).output().unwrap();
        assert!(made.status.success(), "{make:?}: {}", String::from_utf8_lossy(&made.stderr));
        let mounted = Command::new("mount").args(["-o", option]).arg(&image).arg(&at).output().unwrap();
        if mounted.status.success() {
            return Some(Self { dir });
        }
        let says = String::from_utf8_lossy(&mounted.stderr);
        assert!(
            std::env::var_os("PODWRIGHT_TEST_QUOTAS").is_none(),
            "this machine has to have quotas: {says}"
        );
        None
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that a failed test's open files do not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.at()).status();
    }
}

const EXT4: [&str; 6] = ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"];
const XFS: [&str; 2] = ["mkfs.xfs", "-q"];

fn options(root: &Path, containers: &str) -> Options {
    let extra_config = format!("root = \"{}\"\n[containers]\n{containers}", root.join("root").display());
    Options { extra_config, ..Options::default() }
}

async fn mode(node: &mut Node) -> String {
    let request = pb::StatusRequest { verbose: true };
    node.runtime.status(request).await.unwrap().into_inner().info["writableLayers"].clone()
}

async fn write(node: &mut Node, id: &str, file: &str, mebibytes: u32) -> (i32, String) {
    let script = format!("dd if=/dev/zero of={file} bs=1M count={mebibytes} && sync {file}");
    let answer = node.exec(id, &["sh", "-c", &script]).await.unwrap();
    (answer.exit_code, String::from_utf8_lossy(&answer.stderr).into_owned())
}

async fn counts_and_limits(disk: &Disk, refusal: &str) {
    let limits = "writable_layer_limit_bytes = 20971520\nwritable_layer_limit_inodes = 200\n";
    let mut node = Node::new(options(&disk.at(), limits)).await;
    node.pull(BUSYBOX).await.unwrap();
    assert_eq!(mode(&mut node).await, "\"project quota with limits\"");
    let (pod, id) = node.running("limited", &[]).await;
    let before = used(&node.layer(&id).await.unwrap());
    assert_eq!(write(&mut node, &id, "/some", 8).await.0, 0);
    // Exact, and at once.
    let (bytes, inodes) = used(&node.layer(&id).await.unwrap());
    assert!((8 << 20..9 << 20).contains(&(bytes - before.0)), "{before:?} {bytes}");
    assert_eq!(inodes, before.1 + 1);
    assert_eq!(used(&node.file_systems().await.1), (bytes, inodes));
    // Usage beyond the limit is refused only to its own container.
    let (code, says) = write(&mut node, &id, "/much", 30).await;
    assert!(code != 0 && says.contains(refusal), "{code} {says}");
    let (bytes, _) = used(&node.layer(&id).await.unwrap());
    assert!(bytes <= 20 << 20, "{bytes}");
    let config = node.pod("limited");
    let other = node.create(&pod, &config, container("other", &[])).await.unwrap();
    node.start(&other).await.unwrap();
    assert_eq!(write(&mut node, &other, "/much", 15).await.0, 0);
    // Files, too.
    let script = "i=0; while [ $i -lt 300 ]; do : > /f$i || exit 9; i=$((i+1)); done";
    assert_ne!(node.exec(&other, &["sh", "-c", script]).await.unwrap().exit_code, 0);
    assert!(used(&node.layer(&other).await.unwrap()).1 <= 200);
    // What is removed may be written again.
    node.output(&id, &["rm", "/some", "/much"]).await;
    assert_eq!(write(&mut node, &id, "/again", 15).await.0, 0);

    // A new daemon reads the ids back.
    let layers = disk.at().join("root/containers");
    let ids = || -> Vec<String> {
        let listed =
            Command::new("lsattr").args(["-p", "-d"]).args([layers.join(&id), layers.join(&other)]).output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        listed.lines().map(|l| l.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let before = ids();
    assert_eq!(before.len(), 2);
    assert!(before[0] != before[1] && before.iter().all(|id| id.starts_with("2000000")), "{before:?}");
    node.daemon.restart().unwrap();
    assert!(used(&node.layer(&id).await.unwrap()).0 >= 15 << 20);
    let (_, third) = node.running("third", &[]).await;
    let id_of = |id: &str| {
        let listed = Command::new("lsattr").args(["-p", "-d"]).arg(layers.join(id)).output().unwrap();
        String::from_utf8(listed.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert!(!before.contains(&id_of(&third)), "an id is shared");
    node.finish().await;
    // The trash directory itself stays.
    let left = std::fs::read_dir(&layers).unwrap().flatten().filter(|entry| entry.file_name() != ".trash");
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_counts_and_limits_writable_layers() {
    let Some(disk) = Disk::new(&EXT4, "prjquota") else { return };
    counts_and_limits(&disk, "quota").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_counts_and_limits_writable_layers() {
    let Some(disk) = Disk::new(&XFS, "prjquota") else { return };
    counts_and_limits(&disk, "o space left").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_project_quotas_a_limit_is_refused_at_start_and_usage_is_walked() {
    // No kernel counts projects here.
    let Some(disk) = Disk::new(&["mkfs.ext4", "-q", "-O", "^quota"], "noquota") else { panic!("no ext4") };
    let mut node = Node::new(options(&disk.at(), "")).await;
    assert_eq!(mode(&mut node).await, "\"walk\"");
    node.daemon.stop().unwrap();
    let drop_in = node.scratch.root().join("config.toml.d/60-limit.toml");
    std::fs::write(&drop_in, "[containers]\nwritable_layer_limit_bytes = 1000000\n").unwrap();
    assert!(node.daemon.launch().is_err());
    let _ = node.daemon.stop();
    let log = node.daemon.log();
    assert!(log.contains("writable_layer_limit_bytes is set") && log.contains("mkfs.ext4"), "{log}");
    std::fs::remove_file(drop_in).unwrap();
    node.daemon.launch().unwrap();
    node.finish().await;
}
