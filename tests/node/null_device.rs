//! The node's null device, which every process of the node needs, stays as it is, whatever runtimes and containers do
//! with theirs. crun before 1.24 gives its standard descriptors to the process's user: `PODWRIGHT_TEST_RUNTIME=crun`.

use crate::support::*;
use podwright::cri::proto as pb;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

const DEVICE: &str = "/dev/null";

/// All that the owner of a device may change.
fn facts() -> (u32, u32, u32, u64, i64, i64) {
    let found = std::fs::metadata(DEVICE).unwrap();
    (found.uid(), found.gid(), found.mode(), found.rdev(), found.ctime(), found.ctime_nsec())
}

/// Gives the machine its device back if a test fails.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let (uid, gid, mode, ..) = facts();
        if (uid, gid, mode & 0o7777) != (0, 0, 0o666) {
            chown(DEVICE, Some(0), Some(0)).unwrap();
            std::fs::set_permissions(DEVICE, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
    }
}

/// What a hostile process does to all that it has been given.
const SPOIL: &str = "for f in /dev/null /dev/stdin /proc/self/fd/0 /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2; do \
    chown 7:7 $f; chmod 000 $f; echo x > $f; done 2>&1; sleep 1000000";

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_null_device_stays_as_it_is() {
    let _restore = Restore;
    let before = facts();
    let mut node = Node::with_busybox().await;
    // The first query tests each runtime for user namespaces.
    node.runtime.status(pb::StatusRequest::default()).await.unwrap();
    assert_eq!(facts(), before, "after the trial of user namespaces");

    let mut config = node.pod("plain");
    let plain = node.run(&config).await.unwrap();
    let mut alice = container("alice", &["sh", "-c", SPOIL]);
    security(&mut alice).run_as_username = "alice".to_owned();
    let alice = node.create(&plain, &config, alice).await.unwrap();
    node.start(&alice).await.unwrap();
    assert_eq!(facts(), before, "after the start of a container without stdin");
    node.exec(&alice, &["timeout", "1", "sh", "-c", SPOIL]).await.unwrap();
    assert_eq!(facts(), before, "after a command without stdin");
    // Of no use to an attacker is of use to programs: it is a null device still.
    let script = "cat /dev/stdin; echo x > /dev/stdin && stat -L -c %t:%T /proc/self/fd/0";
    let mut root = container("root", &["sh", "-c", script]);
    security(&mut root).run_as_username = "alice".to_owned();
    let root = node.create(&plain, &config, root).await.unwrap();
    node.start(&root).await.unwrap();
    assert_eq!(node.exited(&root).await.exit_code, 0, "{:?}", node.log("plain", "root"));
    assert!(node.log("plain", "root").join("\n").ends_with("stdout F 1:3"));

    if runtime_can(Ability::UserNamespaces) {
        config = node.pod("mapped");
        let range = vec![pb::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }];
        let mode = pb::NamespaceMode::Pod.into();
        let mapped = Some(pb::UserNamespace { mode, uids: range.clone(), gids: range });
        let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        linux.namespace_options.get_or_insert_default().userns_options.clone_from(&mapped);
        let pod = node.run(&config).await.unwrap();
        for user in ["root", "alice"] {
            let mut inside = container(user, &["sh", "-c", SPOIL]);
            let security = security(&mut inside);
            security.run_as_username = user.to_owned();
            security.namespace_options.get_or_insert_default().userns_options.clone_from(&mapped);
            let id = node.create(&pod, &config, inside).await.unwrap();
            node.start(&id).await.unwrap();
            node.exec(&id, &["timeout", "1", "sh", "-c", SPOIL]).await.unwrap();
            assert_eq!(facts(), before, "after {user} of a pod with a user namespace");
        }
    }
    node.finish().await;
    assert_eq!(facts(), before, "after all was stopped and removed");
}
