//! Where logs are written: below the pod's log directory, whatever links others plant there.

use crate::support::*;
use podwright::cri::proto as pb;
use std::os::unix::fs::symlink;
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn no_log_is_written_through_a_link_below_the_pods_log_directory() {
    let mut node = Node::with_busybox().await;
    let trap = tempfile::tempdir().unwrap();
    let config = node.pod("linked");
    let pod = node.run(&config).await.unwrap();
    let logs = node.scratch.logs_dir().join("linked");
    let forever = "while true; do echo said; sleep 0.05; done";
    let id = node.create(&pod, &config, container("main", &["sh", "-c", forever])).await.unwrap();
    node.start(&id).await.unwrap();
    let reopen = pb::ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime.reopen_container_log(reopen.clone()).await.unwrap();
    let plant = |at: &Path| {
        std::fs::rename(at, at.with_extension("real")).unwrap();
        symlink(trap.path(), at).unwrap();
    };
    plant(&logs.join("main"));
    let refused = node.runtime.reopen_container_log(reopen.clone()).await.unwrap_err();
    assert!(refused.message().contains("no link is followed"), "{refused}");
    // At create, and for the directory itself.
    symlink(trap.path(), logs.join("second")).unwrap();
    let second = node.create(&pod, &config, container("second", &["echo", "x"])).await.unwrap();
    let refused = node.start(&second).await.unwrap_err();
    assert!(refused.message().contains("no link is followed"), "{refused}");
    plant(&logs);
    assert!(node.runtime.reopen_container_log(reopen).await.is_err());
    let third = node.create(&pod, &config, container("third", &["echo", "x"])).await.unwrap();
    assert!(node.start(&third).await.is_err());
    assert_eq!(std::fs::read_dir(trap.path()).unwrap().count(), 0);
    // The container goes on, and so does its log.
    let log = logs.with_extension("real").join("main.real/0.log");
    let before = std::fs::metadata(&log).unwrap().len();
    let written = || (std::fs::metadata(&log).unwrap().len() > before).then_some(());
    podwright_testkit::wait_for("more of the log", std::time::Duration::from_secs(30), written).unwrap();
    node.finish().await;
}
