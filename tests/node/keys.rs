//! Kernel keys: a node on which somebody has used up root's still starts containers.

use crate::support::*;
use podwright::cri::proto as pb;
use std::os::unix::fs::PermissionsExt as _;

/// runc, on a kernel that has no room for the keyring of one more container.
const FULL: &str = r#"#!/bin/sh
words='unable to start container process: unable to join session keyring: unable to create session key: disk quota exceeded'
case " $* " in
*" --no-new-keyring "*) echo "$*" >>"$0.without" ;;
*" run "* | *" create "*)
    before=
    for word; do
        [ "$before" != --log ] || echo "{\"level\":\"error\",\"msg\":\"$words\"}" >"$word"
        before=$word
    done
    echo "level=error msg=\"runc run failed: $words\"" >&2
    exit 1
    ;;
esac
exec runc "$@"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_of_keys_keeps_no_container_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("runtime");
    std::fs::write(&script, FULL).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Its trial at the start goes the same way.
    let options = podwright_testkit::Options {
        runtime: "full".to_owned(),
        extra_config: format!("[runtime.handlers.full]\npath = \"{}\"\n", script.display()),
        ..Default::default()
    };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let tried = std::fs::read_to_string(dir.path().join("runtime.without")).unwrap_or_default();
    assert!(tried.contains("probe-"), "{tried}");
    let ids = [node.running("one", &[]).await.1, node.running("two", &[]).await.1];
    for id in &ids {
        assert_eq!(node.output(id, &["echo", "runs"]).await, "runs");
        assert_eq!(node.status(id).await.unwrap().state(), pb::ContainerState::ContainerRunning);
    }
    let told = node.daemon.log().matches("no room for keyrings of containers").count();
    assert_eq!(told, 1);
    node.finish().await;
}
