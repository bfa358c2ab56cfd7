//! A disk that is full at each point of a pull: the answer says so, nothing is left, and the next pull works once there
//! is room, without a restart.

use super::fixture::{Content, Layer, Packing, left_over, names, open, small, tar};
use super::server::Server;
use crate::images::{ImageError, Images};
use std::fs::File;
use std::path::{Path, PathBuf};

/// One page of a tmpfs.
const PAGE: u64 = 4096;

/// A small file system of its own, unmounted when dropped.
pub(super) struct Disk(tempfile::TempDir);

impl Disk {
    pub(super) fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.0.path().join("images")
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves room for so many pages.
    pub(super) fn fill_but(&self, pages: u64) {
        let file = File::create(self.ballast()).unwrap();
        let take = self.free().saturating_sub(pages * PAGE);
        if take > 0 {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
        }
    }

    pub(super) fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that a failed test's open files do not keep it.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Waits until staging is empty and every layer has its record: one that was not indexed is moved to staging and
/// deleted on its own thread, and another layer of a failed pull may still be in progress. Complete layers are kept for
/// a retry.
async fn is_clean(images: &Images, root: &Path) {
    let begun = std::time::Instant::now();
    loop {
        let staging = left_over(images, root).await;
        let mut known: Vec<String> = images.inner.store.state().layers.keys().cloned().collect();
        let mut there = names(root, "layers");
        known.sort();
        there.sort();
        if staging.is_empty() && there == known {
            return;
        }
        assert!(begun.elapsed().as_secs() < 30, "staging {staging:?}, layers {there:?}, indexed {known:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_disk_fills_up_the_pull_says_so_and_the_next_one_works() {
    // Layers as large as the records of them, so that every stage is met by some amount of room.
    let mut content = Content::default();
    let files = |n: usize| -> Vec<(String, String)> {
        (0..n).map(|i| (format!("dir/file-{i}"), "x".repeat(5000))).collect()
    };
    let layers: Vec<Layer> = [3, 5]
        .iter()
        .map(|n| {
            let files = files(*n);
            let files: Vec<(&str, &str)> = files.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
            Layer::new(&tar(&files), Packing::Gzip)
        })
        .collect();
    let padding = format!(r#"{{"Labels":{{"padding":"{}"}}}}"#, "p".repeat(20_000));
    let (_, id) = content.add("t", &layers, &padding);
    let server = Server::serving(content);
    let name = server.name("x:t");
    let (mut failures, mut stages) = (0, std::collections::BTreeSet::new());
    for pages in 0.. {
        let disk = Disk::new("size=16m");
        let images = open(&disk.store());
        disk.fill_but(pages);
        let pulled = images.pull(&name, None).await;
        is_clean(&images, &disk.store()).await;
        match pulled {
            Ok(_) => break,
            Err(ImageError::NoSpace { operation, .. }) => stages.insert(operation),
            Err(error) => panic!("with {pages} pages: {error:?}"),
        };
        assert!(images.list().is_empty());
        failures += 1;
        disk.make_room();
        assert_eq!(images.pull(&name, None).await.unwrap().as_str(), id.as_str(), "with {pages} pages");
        is_clean(&images, &disk.store()).await;
        // The next daemon finds it, too.
        drop(images);
        assert_eq!(open(&disk.store()).list().len(), 1);
    }
    assert!(failures > 10, "{failures}");
    assert!(stages.len() > 1, "{stages:?}");
    assert!(stages.contains("write the image index"), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_inodes_says_so_and_recovers() {
    let (content, _, id) = small();
    let server = Server::serving(content);
    let name = server.name("x:t");
    // What the store itself takes is less than eight.
    for inodes in 8..13 {
        let disk = Disk::new(&format!("size=16m,nr_inodes={inodes}"));
        let images = open(&disk.store());
        let Err(error) = images.pull(&name, None).await else {
            assert!(inodes > 8);
            return;
        };
        assert!(matches!(error, ImageError::NoSpace { .. }), "{error:?}");
        is_clean(&images, &disk.store()).await;
        let more = std::process::Command::new("mount")
            .args(["-o", "remount,nr_inodes=1000"])
            .arg(disk.0.path())
            .status();
        assert!(more.unwrap().success());
        assert_eq!(images.pull(&name, None).await.unwrap().as_str(), id.as_str());
    }
}
