//! Timestamps when the wall clock is wrong and set right: what a kubelet compares with its own clock is the wall clock's,
//! and attempts keep their order. libfaketime is the clock that can be set.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Daemon;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const HOUR: i64 = 3_600_000_000_000;

/// A daemon whose wall clock is as far from the true one as the file `offset` says ("+3d", "+0"), and at that file's
/// word: with the daemon's own path, it is the daemon.
fn with_a_settable_clock(dir: &Path) -> (PathBuf, PathBuf) {
    let (script, offset) = (dir.join("podwright-faketime"), dir.join("offset"));
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "{library}: install Debian's package faketime");
    let daemon = podwright_testkit::daemon::default_binary();
    let text = format!(
        "#!/bin/sh\nexport LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1\n\
         export FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1\nexec {} \"$@\"\n",
        offset.display(),
        daemon.display(),
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(&offset, "+0\n").unwrap();
    (script, offset)
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn is_near(timestamp: i64, instant: i64) -> bool {
    (timestamp - instant).abs() < HOUR
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_spoils_nothing_made_after_it_was_set_right() {
    let mut node = Node::with_busybox().await;
    let (script, offset) = with_a_settable_clock(node.scratch.root());
    node.daemon.kill().unwrap();
    node.daemon = Daemon::start_binary(&node.scratch, &script).unwrap();
    let ahead = now() + 72 * HOUR;
    std::fs::write(&offset, "+3d\n").unwrap();
    let config = node.pod("early");
    let early = node.run(&config).await.unwrap();
    let first = node.create(&early, &config, container("main", &["true"])).await.unwrap();
    node.start(&first).await.unwrap();
    let first_status = node.exited(&first).await;
    assert!(is_near(first_status.created_at, ahead), "the clock was not set: {first_status:?}");

    std::fs::write(&offset, "+0\n").unwrap();
    let (pod, id) = node.running("late", &[]).await;
    let made = node.pod_status(&pod).await.unwrap().created_at;
    assert!(is_near(made, now()), "a pod made now was made {} h from now", (made - now()) / HOUR);
    let status = node.status(&id).await.unwrap();
    assert!(is_near(status.created_at, now()) && is_near(status.started_at, now()), "{status:?}");
    let mut ends = container("ends", &["true"]);
    ends.metadata.as_mut().unwrap().attempt = 1;
    let late = node.pod("late");
    let ended = node.create(&pod, &late, ends).await.unwrap();
    node.start(&ended).await.unwrap();
    let ended = node.exited(&ended).await;
    assert!(is_near(ended.finished_at, now()), "{ended:?}");

    // The newest attempt is the newest by created_at, in the daemon that saw the clock go back and in the next one; what
    // it started is dated by the wall clock.
    for attempt in 1..3 {
        let mut again = container("main", &["true"]);
        again.metadata.as_mut().unwrap().attempt = attempt;
        let again = node.create(&early, &config, again).await.unwrap();
        node.start(&again).await.unwrap();
        let again = node.exited(&again).await;
        assert!(again.created_at > first_status.created_at, "attempt {attempt} is older than the first");
        assert!(is_near(again.started_at, now()), "{again:?}");
        let mut config = config.clone();
        config.metadata.as_mut().unwrap().attempt = attempt;
        let attempt_of_pod = node.run(&config).await.unwrap();
        let newest = node.pod_status(&attempt_of_pod).await.unwrap().created_at;
        for pod in node.list_pods().await {
            let of_same = pod.metadata.as_ref().unwrap().name == "early" && pod.id != attempt_of_pod;
            assert!(!of_same || pod.created_at < newest, "{pod:?}");
        }
        node.daemon.crash().unwrap();
    }
    let stats = pb::ContainerStatsRequest { container_id: id };
    let stats = node.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(is_near(stats.cpu.unwrap().timestamp, now()));
    node.finish().await;
}
