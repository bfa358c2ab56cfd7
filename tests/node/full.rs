//! A disk that is full: every call says so by its code and its message, leaves nothing, and works again once there is
//! room, without a restart.

use crate::support::*;
use podwright_testkit::Options;
use std::path::PathBuf;
use std::process::Command;
use tonic::Code;

/// A small file system of its own for the daemon's root, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// Leaves room for so many pages.
    fn fill_but(&self, pages: u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        let file = std::fs::File::create(self.0.path().join("ballast")).unwrap();
        let take = (stat.f_bavail - pages) * stat.f_frsize;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }

    /// Names of what is in a directory of the root, but for the trash, which stays.
    fn names(&self, dir: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root().join(dir)).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|path| !path.ends_with(".trash")).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that a failed test's open files do not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_leaves_nothing_and_is_got_over() {
    let disk = Disk::new();
    let extra_config = format!("root = \"{}\"\n", disk.root().display());
    let mut node = Node::new(Options { extra_config, ..Options::default() }).await;

    disk.fill_but(0);
    refused(node.pull(BUSYBOX).await, Code::ResourceExhausted, &["no space left", "images"]);
    disk.make_room();
    node.pull(BUSYBOX).await.unwrap();

    let config = node.pod("full");
    disk.fill_but(0);
    refused(node.run(&config).await, Code::ResourceExhausted, &["No space left", "pods"]);
    assert!(node.list_pods().await.is_empty());
    assert_eq!(disk.names("pods"), Vec::<PathBuf>::new());
    disk.make_room();
    let pod = node.run(&config).await.unwrap();

    // With ever more room: the record, then the state, then the layer.
    for pages in 0.. {
        disk.fill_but(pages);
        let created = node.create(&pod, &config, container("main", &[])).await;
        if let Ok(id) = created {
            // What it writes has no room, and that is its own matter.
            node.start(&id).await.unwrap();
            let answer =
                node.exec(&id, &["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=30"]).await.unwrap();
            assert_ne!(answer.exit_code, 0);
            assert!(String::from_utf8_lossy(&answer.stderr).contains("o space left"));
            disk.make_room();
            node.remove(&id).await.unwrap();
            assert!(pages > 0);
            break;
        }
        refused(created, Code::ResourceExhausted, &["No space left"]);
        assert!(node.list_containers().await.is_empty());
        assert_eq!(disk.names("containers"), Vec::<PathBuf>::new());
        let records = disk.names(&format!("pods/{pod}/containers"));
        assert_eq!(records, Vec::<PathBuf>::new(), "with {pages} pages");
        disk.make_room();
        let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
        node.remove(&id).await.unwrap();
    }

    // A full disk prevents neither stopping nor removing.
    let id = node.create(&pod, &config, container("last", &[])).await.unwrap();
    node.start(&id).await.unwrap();
    disk.fill_but(0);
    node.stop(&id, 0).await.unwrap();
    node.remove(&id).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    assert_eq!(disk.names("pods"), Vec::<PathBuf>::new());
    disk.make_room();
    node.finish().await;
}
