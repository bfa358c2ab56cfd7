//! `podwright status` and `podwright pods` as people and scripts use them.

use crate::support::Node;
use podwright_testkit::daemon::default_binary;
use serde_json::Value;
use std::process::{Command, Output};

fn podwright(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(default_binary());
    command.args(arguments).arg("--config").arg(node.scratch.config_file()).output().unwrap()
}

fn json(node: &Node, command: &str) -> Value {
    let output = podwright(node, &[command, "--output", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_daemon_tells_what_it_is_and_has() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("shown", &["sleep", "1000"]).await;
    let status = json(&node, "status");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], node.daemon.pid().unwrap());
    assert_eq!(status["pods"], serde_json::json!({ "ready": 1, "not_ready": 0 }));
    assert_eq!(status["containers"], serde_json::json!({ "created": 0, "running": 1, "exited": 0 }));
    assert_eq!(status["sessions"], serde_json::json!([]));
    let conditions = status["conditions"].as_array().unwrap();
    assert!(conditions.len() == 2 && conditions.iter().all(|condition| condition["ok"] == true));
    let shown = text(&podwright(&node, &["status"]).stdout);
    assert!(shown.contains("1 ready, 0 not ready") && shown.contains("RuntimeReady yes"), "{shown}");

    let pods = json(&node, "pods");
    let shown = &pods["pods"][0];
    assert_eq!((&shown["id"], &shown["name"]), (&Value::from(pod.as_str()), &Value::from("shown")));
    assert_eq!(shown["containers"][0]["pid"], node.pid(&id).await);
    node.stop(&id, 0).await.unwrap();
    let table = text(&podwright(&node, &["pods", &pod[..12]]).stdout);
    assert!(table.contains("exited (Error 137)"), "{table}");
    let output = podwright(&node, &["pods", "nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nope"), "{}", text(&output.stderr));

    node.daemon.stop().unwrap();
    for command in ["status", "pods"] {
        let output = podwright(&node, &[command]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains("no daemon answers at"), "{}", text(&output.stderr));
    }
    node.daemon.launch().unwrap();
    node.finish().await;
}
