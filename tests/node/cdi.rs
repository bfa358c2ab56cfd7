//! Devices by the Container Device Interface: what a specification on the node adds to a container.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::os::unix::fs::PermissionsExt as _;
use tonic::Code;

/// A node, and the directory with its specifications, `etc` and `run`, and what they name.
async fn node_with_specs() -> (Node, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let dirs = root.path();
    let extra_config =
        format!("[containers]\ncdi_spec_dirs = [{:?}, {:?}]\n", dirs.join("etc"), dirs.join("run"));
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let (driver, log, hook) = (dirs.join("driver"), dirs.join("hooks.log"), dirs.join("hook.sh"));
    std::fs::create_dir_all(&driver).unwrap();
    std::fs::write(driver.join("lib"), "the driver").unwrap();
    std::fs::write(&hook, format!("#!/bin/sh\necho \"$1 $COLOUR\" >>{}\n", log.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(dirs.join("etc")).unwrap();
    std::fs::write(dirs.join("etc/broken.json"), "{").unwrap();
    let text = format!(
        r#"
cdiVersion: "0.7.0"
kind: "example.com/accelerator"
containerEdits:
  env: ["DRIVER=/opt/driver", "FROM_IMAGE=no"]
  mounts:
    - {{ hostPath: "{driver}", containerPath: /opt/driver, options: [ro, nosuid, nodev, rbind] }}
  hooks:
    - {{ hookName: createRuntime, path: "{hook}", args: [hook.sh, create], env: ["COLOUR=red"], timeout: 10 }}
    - {{ hookName: poststop, path: "{hook}", args: [hook.sh, stop], env: ["COLOUR=blue"] }}
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{{ path: /dev/accel0, hostPath: /dev/fuse, permissions: rw, fileMode: 0o640 }}]
      env: ["ACCEL=0"]
      additionalGids: [4242]
  - name: "1"
    containerEdits:
      env: ["ACCEL=1"]
  - name: net
    containerEdits:
      netDevices: [{{ hostInterfaceName: eth7, name: fast0 }}]
"#,
        driver = driver.display(),
        hook = hook.display(),
    );
    std::fs::write(dirs.join("etc/accelerator.yaml"), text).unwrap();
    (node, root)
}

fn asks(name: &str, devices: &[&str]) -> pb::ContainerConfig {
    let mut spec = container(name, &[]);
    spec.cdi_devices = devices.iter().map(|d| pb::CdiDevice { name: (*d).to_owned() }).collect();
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_brings_what_its_specification_says() {
    let (mut node, root) = node_with_specs().await;
    let config = node.pod("cdi");
    let pod = node.run(&config).await.unwrap();
    let mut spec = asks("main", &["example.com/accelerator=0"]);
    spec.annotations = map(&[("cdi.k8s.io/plugin_1", "example.com/accelerator=0,example.com/accelerator=1")]);
    security(&mut spec).run_as_user = Some(pb::Int64Value { value: 1000 });
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let env = node.output(&id, &["sh", "-c", "echo $DRIVER $ACCEL $FROM_IMAGE"]).await;
    assert_eq!(env, "/opt/driver 1 no");
    assert_eq!(node.output(&id, &["cat", "/opt/driver/lib"]).await, "the driver");
    assert_ne!(node.exec(&id, &["touch", "/opt/driver/x"]).await.unwrap().exit_code, 0);
    assert_eq!(node.output(&id, &["stat", "-c", "%t:%T %a %u", "/dev/accel0"]).await, "a:e5 640 1000");
    node.output(&id, &["sh", "-c", ": </dev/accel0"]).await;
    assert!(node.output(&id, &["id", "-G"]).await.split(' ').any(|gid| gid == "4242"));
    let log = || std::fs::read_to_string(root.path().join("hooks.log")).unwrap_or_default();
    assert_eq!(log(), "create red\n");
    node.stop(&id, 0).await.unwrap();
    node.remove(&id).await.unwrap();
    assert_eq!(log(), "create red\nstop blue\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_given_is_refused_before_anything_is_made() {
    let (mut node, root) = node_with_specs().await;
    let config = node.pod("cdi");
    let pod = node.run(&config).await.unwrap();
    let unknown = node.create(&pod, &config, asks("a", &["example.com/accelerator=9"])).await;
    refused(unknown, Code::InvalidArgument, &["example.com/accelerator=9", "broken.json"]);
    let unsupported = node.create(&pod, &config, asks("b", &["example.com/accelerator=net"])).await;
    refused(unsupported, Code::FailedPrecondition, &["netDevices"]);
    let malformed = node.create(&pod, &config, asks("c", &["accelerator"])).await;
    refused(malformed, Code::InvalidArgument, &["CDI_devices"]);
    std::fs::create_dir(root.path().join("run")).unwrap();
    for file in ["a.json", "b.json"] {
        let twin = r#"{"cdiVersion":"0.3.0","kind":"x.y/z","devices":[{"name":"d","containerEdits":{}}]}"#;
        std::fs::write(root.path().join("run").join(file), twin).unwrap();
    }
    let conflict = node.create(&pod, &config, asks("d", &["x.y/z=d"])).await;
    refused(conflict, Code::FailedPrecondition, &["a.json", "b.json"]);
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}
