//! Requests and helpers that are wrong: the right code, the cause by name, and nothing left behind.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_request_with_a_wrong_field_names_it() {
    let mut node = Node::new(Options::default()).await;
    let good = node.pod("bad");
    let missing = pb::RunPodSandboxRequest::default();
    refused(node.runtime.run_pod_sandbox(missing).await, Code::InvalidArgument, &["config"]);
    let change = |edit: fn(&mut pb::PodSandboxConfig)| {
        let mut config = good.clone();
        edit(&mut config);
        config
    };
    type Case = (fn(&mut pb::PodSandboxConfig), &'static str);
    let cases: [Case; 18] = [
        (|c| c.metadata = None, "metadata"),
        (|c| c.linux.as_mut().unwrap().cgroup_parent = "/kubepods--x.slice".into(), "cgroup_parent"),
        (|c| c.metadata.as_mut().unwrap().name.clear(), "metadata.name"),
        (|c| c.metadata.as_mut().unwrap().uid.clear(), "metadata.uid"),
        (|c| c.metadata.as_mut().unwrap().namespace = "../x".into(), "metadata.namespace"),
        (|c| c.metadata.as_mut().unwrap().name = "a;K8S_POD_NAME=x;EVIL=1".into(), "metadata.name"),
        (|c| c.metadata.as_mut().unwrap().name = "a=b".into(), "metadata.name"),
        (|c| c.metadata.as_mut().unwrap().namespace = "a;b".into(), "metadata.namespace"),
        (|c| c.metadata.as_mut().unwrap().uid = "a\nb".into(), "metadata.uid"),
        (|c| c.metadata.as_mut().unwrap().uid = "a;b".into(), "metadata.uid"),
        (|c| c.annotations = map(&[("a", &"x".repeat(2 << 20))]), "annotations"),
        (|c| c.linux.as_mut().unwrap().cgroup_parent = format!("/{}", "x".repeat(256)), "cgroup_parent"),
        (|c| c.hostname = "h".repeat(65), "hostname"),
        (|c| c.log_directory = "relative".into(), "log_directory"),
        (|c| c.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into(), "cgroup_parent"),
        (|c| c.linux.as_mut().unwrap().sysctls = map(&[("kernel.core_pattern", "x")]), "kernel.core_pattern"),
        (
            |c| {
                c.port_mappings =
                    vec![pb::PortMapping { host_port: 70_000, container_port: 1, ..Default::default() }]
            },
            "70000",
        ),
        (
            |c| c.dns_config = Some(pb::DnsConfig { servers: words(&["1\n2"]), ..Default::default() }),
            "dns_config",
        ),
    ];
    for (edit, field) in cases {
        refused(node.run(&change(edit)).await, Code::InvalidArgument, &[field]);
    }
    let request = pb::RunPodSandboxRequest { config: Some(good.clone()), runtime_handler: "nope".into() };
    refused(
        node.runtime.run_pod_sandbox(request).await,
        Code::NotFound,
        &["nope", &Options::default().runtime],
    );
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_name_no_plugin_takes_can_be_stopped_and_removed() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("odd", &[]).await;
    let root = node.scratch.root().to_owned();
    node.daemon.kill().unwrap();
    // As a version left it that took such names: a record, and no attachment.
    let spec = root.join("root/pods").join(&pod).join("spec.json");
    let text = std::fs::read_to_string(&spec).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let name = find(&mut record, "namespace").expect("the record has no name");
    name["name"] = "a;K8S_POD_NAME=x".into();
    name["uid"] = "u=1".into();
    std::fs::write(&spec, record.to_string()).unwrap();
    node.daemon.launch().unwrap();
    assert_eq!(node.pod_status(&pod).await.unwrap().metadata.unwrap().name, "a;K8S_POD_NAME=x");
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    refused(node.status(&id).await, Code::NotFound, &[]);
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

/// The first object that has this key.
fn find<'a>(value: &'a mut serde_json::Value, key: &str) -> Option<&'a mut serde_json::Value> {
    if value.get(key).is_some_and(serde_json::Value::is_string) {
        return Some(value);
    }
    value.as_object_mut()?.values_mut().find_map(|inner| find(inner, key))
}

fn tmp(at: &str) -> pb::Mount {
    pb::Mount { container_path: at.into(), host_path: "/tmp".into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_request_with_a_wrong_field_names_it() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("bad");
    let pod = node.run(&config).await.unwrap();
    type Case = (fn(&mut pb::ContainerConfig), Code, &'static str);
    let cases: [Case; 19] = [
        (|c| c.metadata = None, Code::InvalidArgument, "metadata"),
        (|c| c.metadata.as_mut().unwrap().name.clear(), Code::InvalidArgument, "metadata.name"),
        (|c| c.image = None, Code::InvalidArgument, "image"),
        (|c| c.image = Some(image_spec("docker.io/library/absent:1")), Code::NotFound, "absent:1"),
        (|c| c.log_path = "../../etc/x".into(), Code::InvalidArgument, "log_path"),
        (
            |c| security(c).run_as_group = Some(pb::Int64Value { value: 5 }),
            Code::InvalidArgument,
            "run_as_group",
        ),
        (
            |c| security(c).run_as_user = Some(pb::Int64Value { value: 1 << 32 }),
            Code::InvalidArgument,
            "run_as_user",
        ),
        (|c| security(c).run_as_username = "nobody-knows".into(), Code::InvalidArgument, "nobody-knows"),
        (
            |c| {
                security(c).capabilities =
                    Some(pb::Capability { add_capabilities: words(&["NO_SUCH"]), ..Default::default() });
            },
            Code::InvalidArgument,
            "NO_SUCH",
        ),
        (
            |c| {
                c.mounts = vec![pb::Mount {
                    container_path: "/x".into(),
                    // No directory can be made there.
                    host_path: "/proc/no/such/dir".into(),
                    ..Default::default()
                }]
            },
            Code::InvalidArgument,
            "/proc/no/such/dir",
        ),
        (|c| security(c).privileged = true, Code::InvalidArgument, "privileged"),
        (|c| c.mounts = vec![tmp("/a/b"), tmp("/a//b/")], Code::InvalidArgument, "config.mounts"),
        (
            |c| c.mounts = vec![pb::Mount { mount_options: words(&["dev"]), ..tmp("/a") }],
            Code::InvalidArgument,
            "mount_options",
        ),
        (
            |c| c.envs = vec![pb::KeyValue { key: "HOME".into(), value: b"/\nroot::0:0".to_vec() }],
            Code::InvalidArgument,
            "config.envs",
        ),
        (|c| c.command = words(&["sleep\0", "1"]), Code::InvalidArgument, "config.command"),
        (|c| security(c).masked_paths = words(&["proc"]), Code::InvalidArgument, "masked_paths"),
        (|c| c.working_dir = "/proc/self/fd/7".into(), Code::InvalidArgument, "config.working_dir"),
        (
            |c| {
                c.devices = vec![pb::Device {
                    container_path: "/dev/x".into(),
                    host_path: "/dev/no-such".into(),
                    permissions: "rw".into(),
                }]
            },
            Code::InvalidArgument,
            "/dev/no-such",
        ),
        (
            |c| {
                security(c).seccomp = Some(pb::SecurityProfile {
                    profile_type: pb::security_profile::ProfileType::Localhost.into(),
                    localhost_ref: "/no/such/profile.json".into(),
                });
            },
            Code::InvalidArgument,
            "/no/such/profile.json",
        ),
    ];
    for (edit, code, says) in cases {
        let mut spec = container("main", &[]);
        edit(&mut spec);
        refused(node.create(&pod, &config, spec).await, code, &[says]);
        assert!(node.list_containers().await.is_empty());
    }
    let unknown = "e".repeat(64);
    refused(node.create(&unknown, &config, container("main", &[])).await, Code::NotFound, &[&unknown]);
    refused(node.start(&unknown).await, Code::NotFound, &[&unknown]);
    refused(node.exec(&unknown, &["true"]).await, Code::NotFound, &[&unknown]);
    refused(node.exec("", &["true"]).await, Code::InvalidArgument, &["container_id"]);
    node.stop_pod(&pod).await.unwrap();
    let late = node.create(&pod, &config, container("main", &[])).await;
    refused(late, Code::FailedPrecondition, &["not ready", &pod]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_of_a_request_leads_through_procfs_into_a_process() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("procfs");
    let pod = node.run(&config).await.unwrap();
    let link = node.scratch.root().join("link");
    std::os::unix::fs::symlink("/proc/self/exe", &link).unwrap();
    let link = link.to_string_lossy().into_owned();
    // Of a process that root may look into, as not every machine's process 1 is.
    let root = format!("/proc/{}/root", std::process::id());
    for path in ["/proc/self/exe", "/proc/thread-self/root/etc", &root, "/proc/self/fd/1", &link] {
        let mut mounts = container("main", &[]);
        let (container_path, host_path) = ("/x".to_owned(), path.to_owned());
        mounts.mounts = vec![pb::Mount { container_path, host_path, ..Default::default() }];
        let mut devices = container("main", &[]);
        devices.devices = vec![pb::Device {
            container_path: "/dev/x".into(),
            host_path: path.into(),
            permissions: "rw".into(),
        }];
        let mut seccomp = container("main", &[]);
        security(&mut seccomp).seccomp = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::Localhost.into(),
            localhost_ref: path.into(),
        });
        for spec in [mounts, devices, seccomp] {
            let created = node.create(&pod, &config, spec).await;
            refused(created, Code::InvalidArgument, &["/proc/", "link of procfs"]);
        }
    }
    // A log there would be the monitor's.
    let logs = pb::PodSandboxConfig {
        log_directory: format!("/proc/self/root{}/logs/of-procfs", node.scratch.root().display()),
        ..node.pod("logs")
    };
    let pod = node.run(&logs).await.unwrap();
    let id = node.create(&pod, &logs, container("main", &[])).await.unwrap();
    let error = node.start(&id).await.unwrap_err();
    assert!(error.message().contains("log"), "{error}");
    assert!(!node.scratch.logs_dir().join("of-procfs").exists());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_tell_no_more_of_a_request_than_anybody_reads() {
    let mut node = Node::with_busybox().await;
    let (pod, _) = node.running("long", &[]).await;
    let config = node.pod("long");
    let long = "a".repeat(1 << 20);
    let mut image = container("main", &[]);
    image.image = Some(image_spec(&long));
    let mut user_specified = container("main", &[]);
    user_specified.image.as_mut().unwrap().user_specified_image = long.clone();
    let mut mount = container("main", &[]);
    mount.mounts = vec![pb::Mount {
        container_path: format!("/{long}"),
        host_path: "/tmp".into(),
        ..Default::default()
    }];
    let errors = [
        (node.create(&pod, &config, image).await.unwrap_err(), Code::NotFound, "pull it"),
        (node.create(&pod, &config, user_specified).await.unwrap_err(), Code::InvalidArgument, "1024"),
        (node.create(&pod, &config, mount).await.unwrap_err(), Code::InvalidArgument, "container_path"),
        (node.create(&long, &config, container("main", &[])).await.unwrap_err(), Code::NotFound, "not found"),
        (node.status(&long).await.unwrap_err(), Code::NotFound, "not found"),
        (node.pod_status(&long).await.unwrap_err(), Code::NotFound, "not found"),
        (node.start(&long).await.unwrap_err(), Code::NotFound, "not found"),
        (node.exec(&long, &["true"]).await.unwrap_err(), Code::NotFound, "not found"),
    ];
    for (error, code, says) in errors {
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().len() < 2000 && error.message().contains(says), "{error}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_command_is_a_start_error() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("command");
    let pod = node.run(&config).await.unwrap();
    let id = node.create(&pod, &config, container("main", &["/no/such/program"])).await.unwrap();
    refused(node.start(&id).await, Code::InvalidArgument, &["/no/such/program"]);
    let status = node.status(&id).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("/no/such/program"), "{}", status.message);
    let (_, running) = node.running("other", &[]).await;
    refused(node.exec(&running, &["/no/such/program"]).await, Code::InvalidArgument, &["/no/such/program"]);
    node.finish().await;
}

/// Puts a plugin before the real ones in the daemon's search path.
fn plugin(node: &Node, script: &str) {
    let dir = node.scratch.root().join("bad-plugins");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("bad");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let conf = node.scratch.cni_conf_dir();
    for entry in std::fs::read_dir(&conf).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let list = r#"{"cniVersion":"1.0.0","name":"bad","plugins":[{"type":"bad"}]}"#;
    std::fs::write(conf.join("10-bad.conflist"), list).unwrap();
}

async fn with_plugin(script: &str) -> Node {
    let options = Options {
        extra_config: "[network]\nadd_timeout_seconds = 1\ndel_timeout_seconds = 1\n".to_owned(),
        ..Default::default()
    };
    let mut node = Node::new(options).await;
    node.daemon.stop().unwrap();
    plugin(&node, script);
    let drop_in = node.scratch.root().join("config.toml.d/60-plugins.toml");
    let dir = node.scratch.root().join("bad-plugins");
    std::fs::write(drop_in, format!("[network]\nbin_dirs = [{:?}]\n", dir.to_string_lossy())).unwrap();
    node.daemon.launch().unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_is_told_with_its_own_words() {
    let script = r#"if [ "$CNI_COMMAND" = ADD ]; then echo '{"code":7,"msg":"no more addresses","details":"pool x"}'; exit 1; fi"#;
    let mut node = with_plugin(script).await;
    let config = node.pod("failing");
    refused(node.run(&config).await, Code::Unavailable, &["bad", "no more addresses", "pool x"]);
    assert!(node.list_pods().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_is_killed_and_other_calls_go_on() {
    let script = r#"if [ "$CNI_COMMAND" = ADD ]; then sleep 3600; fi"#;
    let mut node = with_plugin(script).await;
    let config = node.pod("hanging");
    let mut client = node.runtime.clone();
    let request = pb::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let hanging = tokio::spawn(async move { client.run_pod_sandbox(request).await });
    assert!(node.list_pods().await.is_empty());
    refused(hanging.await.unwrap(), Code::DeadlineExceeded, &["bad", "ADD"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_missing_is_named() {
    let options = Options {
        extra_config: "[runtime.handlers.gone]\npath = \"/no/such/runtime\"\n".to_owned(),
        ..Default::default()
    };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("gone");
    let request = pb::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "gone".into() };
    let pod = match node.runtime.run_pod_sandbox(request).await {
        // Refused at once, or at the first container: either way it is named.
        Err(status) => return assert!(status.message().contains("/no/such/runtime"), "{status}"),
        Ok(pod) => pod.into_inner().pod_sandbox_id,
    };
    let id = node.create(&pod, &config, container("main", &[])).await.unwrap();
    refused(node.start(&id).await, Code::FailedPrecondition, &["/no/such/runtime"]);
    assert!(!Path::new("/no/such/runtime").exists());
    node.finish().await;
}
