//! What a container's writable layer takes, as the kubelet sees it.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::time::Duration;

/// Longer than the period between two walks.
const PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    pub(crate) async fn layer(&mut self, id: &str) -> Option<pb::FilesystemUsage> {
        let request = pb::ContainerStatsRequest { container_id: id.to_owned() };
        let stats = self.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        stats.writable_layer
    }

    /// Asks until the layer takes at least so much.
    pub(crate) async fn layer_of(&mut self, id: &str, bytes: u64) -> pb::FilesystemUsage {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(layer) = self.layer(id).await
                && used(&layer).0 >= bytes
            {
                return layer;
            }
            assert!(tokio::time::Instant::now() < deadline, "the layer never takes {bytes} bytes");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stats_of_all(&mut self) -> Vec<pb::ContainerStats> {
        let request = pb::ListContainerStatsRequest::default();
        self.runtime.list_container_stats(request).await.unwrap().into_inner().stats
    }

    pub(crate) async fn file_systems(&mut self) -> (pb::FilesystemUsage, pb::FilesystemUsage) {
        let answer = self.images.image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap().into_inner();
        (answer.image_filesystems[0].clone(), answer.container_filesystems[0].clone())
    }
}

pub(crate) fn used(usage: &pb::FilesystemUsage) -> (u64, u64) {
    (usage.used_bytes.unwrap().value, usage.inodes_used.unwrap().value)
}

fn name(usage: &pb::FilesystemUsage) -> &str {
    &usage.fs_id.as_ref().unwrap().mountpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_pods_files_is_bounded_counted_and_its_own() {
    let mut node = Node::new(Options {
        extra_config: "[containers]\nusage_period_seconds = 1\n".into(),
        ..Options::default()
    })
    .await;
    node.pull(BUSYBOX).await.unwrap();
    let (pod, id) = node.running("fills", &[]).await;
    let (_, other) = node.running("other", &[]).await;
    let before = used(&node.layer(&id).await.unwrap()).0;
    let script = "for f in resolv.conf hostname hosts; do dd if=/dev/zero of=/etc/$f bs=64k count=512; done; \
                  wc -c /etc/resolv.conf /etc/hostname /etc/hosts | tail -1";
    let filled = node.exec(&id, &["sh", "-c", script]).await.unwrap();
    let (words, errors) =
        (String::from_utf8(filled.stdout).unwrap(), String::from_utf8(filled.stderr).unwrap());
    assert_eq!(errors.matches("No space left on device").count(), 3, "{errors}");
    let total: u64 = words.split_whitespace().next().unwrap().parse().unwrap();
    assert!((200 << 10..1 << 20).contains(&total), "{words}");
    // Reported with the pod's one container only.
    let layer = node.layer_of(&id, before + (200 << 10)).await;
    assert!(used(&layer).0 < before + (1 << 20));
    assert!(used(&node.layer(&other).await.unwrap()).0 < 200 << 10);
    // Its neighbour has its own files, and room.
    let script = "echo 10.0.0.1 name >> /etc/hosts && cat /etc/hostname";
    assert_eq!(node.output(&other, &["sh", "-c", script]).await, "other");
    // A second container of the pod has the same files, also with another daemon.
    node.daemon.kill().unwrap();
    node.daemon.launch().unwrap();
    let second = node.create(&pod, &node.pod("fills"), container("second", &[])).await.unwrap();
    node.start(&second).await.unwrap();
    let sizes = ["sh", "-c", "wc -c /etc/resolv.conf /etc/hostname /etc/hosts | tail -1"];
    let words = node.output(&second, &sizes).await;
    assert_eq!(words.split_whitespace().next(), Some(total.to_string().as_str()), "{words}");
    assert!(node.layer_of(&id, before + (200 << 10)).await.timestamp >= layer.timestamp);
    assert!(used(&node.layer(&second).await.unwrap()).0 < 200 << 10);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writable_layer_is_measured_and_summed() {
    let mut node = Node::new(Options {
        extra_config: "[containers]\nusage_period_seconds = 1\n".into(),
        ..Options::default()
    })
    .await;
    node.pull(BUSYBOX).await.unwrap();
    let (_, id) = node.running("writes", &[]).await;
    let before = node.layer(&id).await.expect("a container is measured when it is made");
    // Two names of one file, and one that is not in the layer.
    let script = "dd if=/dev/zero of=/big bs=1M count=4 && ln /big /again && echo x > /dev/shm/elsewhere";
    node.output(&id, &["sh", "-c", script]).await;
    let layer = node.layer_of(&id, 4 << 20).await;
    assert!(layer.timestamp > before.timestamp);
    let (bytes, inodes) = used(&layer);
    assert!(bytes < 5 << 20, "{bytes}");
    // The OCI runtime made mount points in it, too.
    let upper = node.scratch.root().join("root/containers").join(&id).join("upper");
    let found =
        std::process::Command::new("find").arg(&upper).args(["-mindepth", "1", "-printf", "%i\n"]).output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    let distinct: std::collections::HashSet<_> = found.lines().collect();
    assert_eq!(inodes, u64::try_from(distinct.len()).unwrap());
    assert!(distinct.len() < found.lines().count());
    let (images, containers) = node.file_systems().await;
    // To the kubelet, two names would be two file systems.
    assert_eq!((name(&images), name(&layer)), (name(&containers), name(&containers)));
    assert_eq!(used(&containers), (bytes, inodes));
    assert!(used(&images).0 > 0 && used(&images).0 != bytes);

    // A new daemon knows nothing and finds out by itself.
    node.daemon.restart().unwrap();
    assert_eq!(used(&node.layer_of(&id, 4 << 20).await), (bytes, inodes));
    // An ended container's layer still counts, until it is removed.
    node.stop(&id, 0).await.unwrap();
    node.exited(&id).await;
    assert!(used(&node.file_systems().await.1).0 >= 4 << 20);
    // So it is listed, with nothing that only a process has.
    let stats = node.stats_of_all().await;
    assert_eq!(stats.iter().map(|s| s.attributes.as_ref().unwrap().id.as_str()).collect::<Vec<_>>(), [&id]);
    assert_eq!((stats[0].cpu, stats[0].memory, stats[0].swap), (None, None, None));
    assert_eq!(used(stats[0].writable_layer.as_ref().unwrap()), (bytes, inodes));
    node.remove(&id).await.unwrap();
    assert_eq!(used(&node.file_systems().await.1), (0, 0));
    assert!(node.stats_of_all().await.is_empty());
    node.finish().await;
}
