//! Unusual requests of a container: privilege, devices, seccomp, propagation, the host's namespaces, terminals, odd
//! logs, large and many execs, handlers, stop signals, sysctls.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::{Options, wait_for};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(20);

/// A line of `/proc/PID/status`.
fn field(status: &str, name: &str) -> String {
    status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

fn sandbox_security(config: &mut pb::PodSandboxConfig) -> &mut pb::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

async fn started(
    node: &mut Node,
    pod: &str,
    config: &pb::PodSandboxConfig,
    spec: pb::ContainerConfig,
) -> String {
    let id = node.create(pod, config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    id
}

async fn fails(node: &mut Node, id: &str, script: &str) -> bool {
    node.exec(id, &["sh", "-c", script]).await.unwrap().exit_code != 0
}

fn logged(node: &Node, pod: &str, container: &str, end: &str) {
    let found = wait_for("the log has the line", PATIENCE, || {
        node.log(pod, container).iter().any(|l| l.ends_with(end)).then_some(())
    });
    assert!(found.is_ok(), "{end:?} is not in {:?}", node.log(pod, container));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_has_all_that_the_host_can_give() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("privileged");
    let plain = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    security(&mut spec).privileged = true;
    let refusal = node.create(&plain, &config, spec.clone()).await;
    refused(refusal, Code::InvalidArgument, &["privileged"]);
    sandbox_security(&mut config).privileged = true;
    config.metadata.as_mut().unwrap().attempt = 1;
    let pod = node.run(&config).await.unwrap();
    let id = started(&mut node, &pod, &config, spec).await;
    let status = node.output(&id, &["cat", "/proc/1/status"]).await;
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&status, "CapEff:"), field(&host, "CapBnd:"));
    assert_eq!(field(&status, "CapBnd:"), field(&host, "CapBnd:"));
    assert_eq!((field(&status, "Seccomp:"), field(&status, "NoNewPrivs:")), ("0".to_owned(), "0".to_owned()));
    for device in ["/dev/fuse", "/dev/kmsg", "/dev/loop-control"] {
        if Path::new(device).exists() {
            node.output(&id, &["test", "-c", device]).await;
        }
    }
    let mounts = node.output(&id, &["cat", "/proc/mounts"]).await;
    let sys = mounts.lines().find(|l| l.contains(" /sys sysfs ")).unwrap();
    assert!(sys.contains(" rw,"), "{sys}");
    assert!(!mounts.lines().any(|l| l.contains(" /proc/")), "{mounts}");
    // Exec has the same.
    let exec = node.output(&id, &["cat", "/proc/self/status"]).await;
    assert_eq!(field(&exec, "CapEff:"), field(&host, "CapBnd:"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_its_new_name_and_no_more_than_its_permissions() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("devices");
    let pod = node.run(&config).await.unwrap();
    let device = |name: &str, permissions: &str| {
        let mut spec = container(name, &[]);
        // Not one that every container may use anyway.
        spec.devices = vec![pb::Device {
            container_path: "/dev/mine".to_owned(),
            host_path: "/dev/fuse".to_owned(),
            permissions: permissions.to_owned(),
        }];
        spec
    };
    let read = started(&mut node, &pod, &config, device("read", "r")).await;
    let all = started(&mut node, &pod, &config, device("all", "rwm")).await;
    for id in [&read, &all] {
        assert_eq!(node.output(id, &["stat", "-c", "%t:%T", "/dev/mine"]).await, "a:e5");
        node.output(id, &["sh", "-c", ": < /dev/mine"]).await;
        assert!(fails(&mut node, id, "test -e /dev/fuse").await);
    }
    assert_eq!(fails(&mut node, &read, ": > /dev/mine").await, runtime_can(Ability::DeviceRules));
    node.output(&all, &["sh", "-c", ": > /dev/mine"]).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seccomp_profile_of_the_node_denies_what_it_names() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("seccomp");
    let pod = node.run(&config).await.unwrap();
    let file = node.scratch.root().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
    std::fs::write(&file, profile).unwrap();
    let with = |name: &str, kind: pb::security_profile::ProfileType, file: &Path| {
        let mut spec = container(name, &[]);
        security(&mut spec).seccomp = Some(pb::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: file.to_string_lossy().into_owned(),
        });
        spec
    };
    use pb::security_profile::ProfileType::{Localhost, Unconfined};
    let id = started(&mut node, &pod, &config, with("denied", Localhost, &file)).await;
    let status = node.output(&id, &["cat", "/proc/1/status"]).await;
    assert_eq!(field(&status, "Seccomp:"), "2");
    assert_eq!(fails(&mut node, &id, "mkdir /tmp/new").await, runtime_can(Ability::SeccompInExec));
    node.output(&id, &["touch", "/tmp/file"]).await;
    let id = started(&mut node, &pod, &config, with("free", Unconfined, Path::new(""))).await;
    node.output(&id, &["mkdir", "/tmp/new"]).await;
    let status = node.output(&id, &["cat", "/proc/self/status"]).await;
    assert_eq!(field(&status, "Seccomp:"), "0");
    let absent = node.scratch.root().join("absent.json");
    let refusal = node.create(&pod, &config, with("absent", Localhost, &absent)).await;
    assert!(refusal.unwrap_err().message().contains("absent.json"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_of_a_seccomp_profile_are_honoured_or_refused() {
    use pb::security_profile::ProfileType::Localhost;
    let mut node = Node::with_busybox().await;
    let config = node.pod("conditions");
    let pod = node.run(&config).await.unwrap();
    let file = node.scratch.root().join("docker.json");
    let with = |name: &str, admin: bool| {
        let mut spec = container(name, &[]);
        let security = security(&mut spec);
        security.seccomp = Some(pb::SecurityProfile {
            profile_type: Localhost.into(),
            localhost_ref: file.to_string_lossy().into_owned(),
        });
        let add_capabilities = if admin { words(&["SYS_ADMIN"]) } else { Vec::new() };
        security.capabilities = Some(pb::Capability { add_capabilities, ..Default::default() });
        spec
    };
    // In Docker's format: denied to holders of the capability, and on no kernel of this age.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "comment": "",
         "includes": {"caps": ["CAP_SYS_ADMIN"]}, "excludes": {}},
        {"name": "symlink", "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "4.8"}}]}"#;
    std::fs::write(&file, profile).unwrap();
    for admin in [false, true] {
        let id = started(&mut node, &pod, &config, with(&format!("admin-{admin}"), admin)).await;
        let denied = fails(&mut node, &id, "mkdir /tmp/new").await;
        assert_eq!(denied, admin && runtime_can(Ability::SeccompInExec));
        node.output(&id, &["ln", "-s", "x", "/tmp/link"]).await;
    }
    std::fs::write(&file, profile.replace("includes", "onlyIf")).unwrap();
    let refusal = node.create(&pod, &config, with("unknown", false)).await;
    refused(refusal, Code::InvalidArgument, &["docker.json", "onlyIf"]);
    std::fs::write(&file, profile.replace("CAP_SYS_ADMIN", "CAP_SYS_ADMI")).unwrap();
    let refusal = node.create(&pod, &config, with("no-capability", false)).await;
    refused(refusal, Code::InvalidArgument, &["docker.json", "syscalls[0].includes.caps", "CAP_SYS_ADMI"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_32_bit_programs_are_denied_by_family_as_far_as_can_be() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let mut node = Node::with_busybox().await;
    let config = node.pod("sockets32");
    let pod = node.run(&config).await.unwrap();
    let program = node.scratch.root().join("sockets32");
    std::fs::write(&program, &programs().sockets32).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = container("main", &["/sockets32", "2", "38", "40"]);
    spec.mounts.push(pb::Mount {
        container_path: "/sockets32".into(),
        host_path: program.to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    });
    security(&mut spec).seccomp = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    });
    let id = started(&mut node, &pod, &config, spec).await;
    assert_eq!(node.exited(&id).await.exit_code, 0);
    let log = node.log("sockets32", "main");
    let answers: Vec<Vec<i32>> = log
        .iter()
        .map(|line| line.split_whitespace().rev().take(3).map(|word| word.parse().unwrap()).collect())
        .map(|mut answers: Vec<i32>| {
            answers.reverse();
            answers
        })
        .collect();
    // Old 32-bit programs know no other call than socketcall, whose arguments no filter sees: it must work ...
    assert_eq!(answers[0], [2, 0, 0], "{log:?}");
    for answer in &answers[1..] {
        // ... so that the filter denies these families to the direct call only,
        assert_eq!(answer[1], 1, "{log:?}");
        // and AppArmor denies them to both, where there is AppArmor.
        if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y") {
            assert_eq!(answer[2], 13, "{log:?}");
        }
    }
    node.finish().await;
}

/// Mounts of a test on the host, unmounted whatever happens.
struct HostMount(PathBuf);

impl HostMount {
    fn tmpfs(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        host(&["mount", "-t", "tmpfs", "none", &path.to_string_lossy()]);
        Self(path)
    }

    fn shared(path: PathBuf) -> Self {
        let mount = Self::tmpfs(path);
        host(&["mount", "--make-shared", &mount.0.to_string_lossy()]);
        mount
    }

    fn text(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-R").arg(&self.0).status();
    }
}

fn host(command: &[&str]) {
    let status = std::process::Command::new(command[0]).args(&command[1..]).status().unwrap();
    assert!(status.success(), "{command:?}");
}

fn bind(container: &str, host: &str, propagation: pb::MountPropagation) -> pb::Mount {
    pb::Mount {
        container_path: container.to_owned(),
        host_path: host.to_owned(),
        propagation: propagation.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_propagate_in_the_directions_that_were_asked_for() {
    let mut node = Node::with_busybox().await;
    let volume = HostMount::shared(node.scratch.root().join("volume"));
    let mut config = node.pod("propagation");
    sandbox_security(&mut config).privileged = true;
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    security(&mut spec).privileged = true;
    use pb::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    spec.mounts = vec![
        bind("/none", &volume.text(), PropagationPrivate),
        bind("/in", &volume.text(), PropagationHostToContainer),
        bind("/both", &volume.text(), PropagationBidirectional),
    ];
    let id = started(&mut node, &pod, &config, spec).await;
    let late = HostMount::tmpfs(volume.0.join("late"));
    std::fs::write(late.0.join("file"), "").unwrap();
    node.output(&id, &["test", "-e", "/in/late/file"]).await;
    node.output(&id, &["test", "-e", "/both/late/file"]).await;
    assert_eq!(fails(&mut node, &id, "test -e /none/late/file").await, runtime_can(Ability::OwnPropagation));
    let inner = "mkdir /both/inner /both/kept && mount -t tmpfs none /both/inner && touch /both/inner/x";
    node.output(&id, &["sh", "-c", inner]).await;
    assert!(volume.0.join("inner/x").exists());
    node.output(&id, &["sh", "-c", "mount -t tmpfs none /in/kept && touch /in/kept/x"]).await;
    assert_eq!(!volume.0.join("kept/x").exists(), runtime_can(Ability::OwnPropagation));
    let mounts = node.status(&id).await.unwrap().mounts;
    let told = mounts.iter().find(|m| m.container_path == "/both").unwrap();
    assert_eq!(told.propagation(), PropagationBidirectional);

    // What is private on the host cannot propagate.
    let private = HostMount::tmpfs(node.scratch.root().join("private"));
    host(&["mount", "--make-private", &private.text()]);
    let mut spec = container("private", &[]);
    security(&mut spec).privileged = true;
    spec.mounts = vec![bind("/both", &private.text(), PropagationBidirectional)];
    let refusal = node.create(&pod, &config, spec).await.unwrap_err();
    assert!(refusal.message().contains("shared"), "{refusal}");
    drop((late, private, volume));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recursive_read_only_covers_the_mounts_below() {
    let mut node = Node::with_busybox().await;
    let volume = HostMount::tmpfs(node.scratch.root().join("volume"));
    let below = HostMount::tmpfs(volume.0.join("below"));
    let config = node.pod("recursive");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    let mount = |path: &str, recursive_read_only| pb::Mount {
        readonly: true,
        recursive_read_only,
        ..bind(path, &volume.text(), pb::MountPropagation::PropagationPrivate)
    };
    spec.mounts = vec![mount("/all", true), mount("/top", false)];
    let id = started(&mut node, &pod, &config, spec).await;
    assert!(fails(&mut node, &id, "touch /all/x").await && fails(&mut node, &id, "touch /all/below/x").await);
    assert!(fails(&mut node, &id, "touch /top/x").await);
    node.output(&id, &["touch", "/top/below/x"]).await;
    let mounts = node.status(&id).await.unwrap().mounts;
    assert!(mounts.iter().any(|m| m.container_path == "/all" && m.recursive_read_only), "{mounts:?}");
    drop((below, volume));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_can_have_the_hosts_processes_and_ipc() {
    let mut node = Node::with_busybox().await;
    let options = pb::NamespaceOption {
        pid: pb::NamespaceMode::Node.into(),
        ipc: pb::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut config = node.pod("host");
    sandbox_security(&mut config).namespace_options = Some(options.clone());
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &["sh", "-c", "sleep 4101 & exec sleep 4102"]);
    security(&mut spec).namespace_options = Some(options);
    let id = started(&mut node, &pod, &config, spec).await;
    for namespace in ["pid", "ipc"] {
        let path = format!("/proc/self/ns/{namespace}");
        let here = std::fs::read_link(&path).unwrap();
        assert_eq!(node.output(&id, &["readlink", &path]).await, here.to_string_lossy());
    }
    let mine = std::process::id().to_string();
    node.output(&id, &["test", "-d", &format!("/proc/{mine}")]).await;
    let network = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(node.output(&id, &["readlink", "/proc/self/ns/net"]).await, network.to_string_lossy());
    let status = node.pod_status(&pod).await.unwrap();
    let told = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!((told.pid(), told.ipc()), (pb::NamespaceMode::Node, pb::NamespaceMode::Node));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_sees_its_targets_processes() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("debug");
    let pod = node.run(&config).await.unwrap();
    let target = started(&mut node, &pod, &config, container("main", &["sleep", "7771"])).await;
    let debug = |name: &str| {
        let mut spec = container(name, &["sleep", "7772"]);
        security(&mut spec).namespace_options = Some(pb::NamespaceOption {
            pid: pb::NamespaceMode::Target.into(),
            target_id: target.clone(),
            ..Default::default()
        });
        spec
    };
    let id = started(&mut node, &pod, &config, debug("debug")).await;
    let processes = node.output(&id, &["ps", "-o", "args"]).await;
    assert!(processes.contains("sleep 7771") && processes.contains("sleep 7772"), "{processes}");
    // Its own end does not end the target.
    node.stop(&id, 0).await.unwrap();
    let processes = node.output(&target, &["ps", "-o", "args"]).await;
    assert!(processes.contains("sleep 7771") && !processes.contains("sleep 7772"), "{processes}");
    // The target's end is the end of all that live in its namespace.
    let id = started(&mut node, &pod, &config, debug("second")).await;
    // One created before and started after it enters no other namespace, even if the target's pid is reused.
    let early = node.create(&pod, &config, debug("early")).await.unwrap();
    let bundle = node.scratch.root().join("state/containers").join(&early);
    let spec = std::fs::read(bundle.join("config.json")).unwrap();
    let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    let joined = namespaces.iter().find(|n| n["type"] == "pid").unwrap()["path"].as_str().unwrap().to_owned();
    let namespace = |path: &str| std::fs::metadata(path).unwrap().ino();
    let of_target = namespace(&format!("/proc/{}/ns/pid", node.pid(&target).await));
    assert_eq!(namespace(&joined), of_target);
    node.stop(&target, 0).await.unwrap();
    assert_eq!(node.exited(&id).await.exit_code, 137);
    node.exited(&target).await;
    assert_eq!(namespace(&joined), of_target, "held from the moment that it was looked at");
    assert!(node.start(&early).await.is_err());
    let refusal = node.create(&pod, &config, debug("late")).await;
    refused(refusal, Code::FailedPrecondition, &[&target, "not running"]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_are_logged_without_carriage_returns_and_stdin_stays_open() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("stdio");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("tty", &["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo yes; tty"]);
    (spec.tty, spec.stdin) = (true, true);
    let id = started(&mut node, &pod, &config, spec).await;
    assert_eq!(node.exited(&id).await.exit_code, 0);
    logged(&node, "stdio", "tty", " stdout F yes");
    let log = std::fs::read_to_string(node.log_path("stdio", "tty")).unwrap();
    assert!(!log.contains('\r'), "{log:?}");

    let script = ["sh", "-c", "echo up; cat; echo end"];
    let mut spec = container("open", &script);
    spec.stdin = true;
    let open = started(&mut node, &pod, &config, spec).await;
    let closed = started(&mut node, &pod, &config, container("closed", &script)).await;
    node.exited(&closed).await;
    logged(&node, "stdio", "closed", " stdout F end");
    logged(&node, "stdio", "open", " stdout F up");
    // The other one has ended by now; this one still reads.
    assert!(node.output(&open, &["ps", "-o", "comm"]).await.lines().any(|l| l == "cat"));
    assert!(!node.log("stdio", "open").iter().any(|l| l.ends_with(" end")));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_through_links_or_nowhere() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("logs");
    // As where an administrator has /var/log/pods on another disk. The pod's own directory may be no link.
    let (real, pods) = (node.scratch.root().join("elsewhere"), node.scratch.logs_dir().join("pods"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &pods).unwrap();
    config.log_directory = pods.join("logs").to_string_lossy().into_owned();
    let pod = node.run(&config).await.unwrap();
    let id = started(&mut node, &pod, &config, container("main", &["echo", "here"])).await;
    node.exited(&id).await;
    let log = std::fs::read_to_string(real.join("logs/main/0.log")).unwrap();
    assert!(log.ends_with(" stdout F here\n"), "{log}");
    // More than a pipe holds.
    let mut spec = container("quiet", &["sh", "-c", "head -c 300000 /dev/zero; exit 4"]);
    spec.log_path = String::new();
    let id = started(&mut node, &pod, &config, spec).await;
    let ended = node.exited(&id).await;
    assert_eq!((ended.exit_code, ended.log_path.as_str()), (4, ""));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_each_get_their_own_output_and_leave_no_descriptor() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("many", &[]).await;
    let pid = node.pid(&id).await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let monitor = field(&status, "PPid:");
    let comm = std::fs::read_to_string(format!("/proc/{monitor}/comm")).unwrap();
    assert_eq!(comm.trim_end(), "podwright-mon");
    let daemon = node.daemon.pid().unwrap().to_string();
    let open = |pid: &str| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // What the first call opens for good is open afterwards.
    node.output(&id, &["true"]).await;
    let before = (open(&daemon), open(&monitor));
    for round in 0..5 {
        let mut calls = Vec::new();
        for n in 0..20 {
            let mut client = node.runtime.clone();
            let text = format!("{round}-{n}");
            let cmd = words(&["sh", "-c", &format!("echo {text}; echo {text} >&2; exit {n}")]);
            let request = pb::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 60 };
            calls.push((n, text, tokio::spawn(async move { client.exec_sync(request).await })));
        }
        for (n, text, call) in calls {
            let answer = call.await.unwrap().unwrap().into_inner();
            assert_eq!(answer.exit_code, n);
            assert_eq!(answer.stdout, answer.stderr);
            assert_eq!(String::from_utf8(answer.stdout).unwrap(), format!("{text}\n"));
        }
    }
    let flat = wait_for("descriptors are closed", PATIENCE, || {
        (open(&daemon) <= before.0 && open(&monitor) <= before.1).then_some(())
    });
    assert!(flat.is_ok(), "before {before:?}, after {:?}", (open(&daemon), open(&monitor)));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_output_is_cut_so_that_the_answer_fits_the_message() {
    /// The kubelet's limit, and the default of `grpc.max_message_bytes`.
    const LIMIT: usize = 16 << 20;
    /// What a stream alone cannot have: the other one's share of the budget.
    const SHARE: usize = 16 << 10;
    let mut node = Node::with_busybox().await;
    node.runtime = node.runtime.clone().max_decoding_message_size(LIMIT);
    let (_, id) = node.running("large", &[]).await;
    let answer = node.exec(&id, &["sh", "-c", "head -c 17825792 /dev/zero; exit 3"]).await.unwrap();
    assert_eq!((answer.exit_code, answer.stderr.len()), (3, 0));
    assert!(
        answer.stdout.len() > LIMIT - SHARE - 100 && answer.stdout.len() < LIMIT,
        "{}",
        answer.stdout.len()
    );
    let both = "head -c 17825792 /dev/zero; head -c 17825792 /dev/zero >&2; exit 3";
    let answer = node.exec(&id, &["sh", "-c", both]).await.unwrap();
    assert_eq!(answer.exit_code, 3);
    // The first comer takes the rest, except the other's share.
    assert!(answer.stdout.len() + answer.stderr.len() < LIMIT);
    assert!(answer.stderr.len() >= SHARE && answer.stdout.len() >= LIMIT / 2, "{}", answer.stderr.len());
    // A little beside a lot is kept whole.
    let little = "head -c 17825792 /dev/zero; echo why >&2";
    let answer = node.exec(&id, &["sh", "-c", little]).await.unwrap();
    assert_eq!(answer.stderr, b"why\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_as_its_container_does() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("same");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    spec.working_dir = "/tmp".to_owned();
    spec.envs = vec![pb::KeyValue { key: "MINE".to_owned(), value: b"yes".to_vec() }];
    let context = security(&mut spec);
    context.run_as_username = "alice".to_owned();
    context.capabilities =
        Some(pb::Capability { drop_capabilities: words(&["CHOWN"]), ..Default::default() });
    let id = started(&mut node, &pod, &config, spec).await;
    let pid = node.pid(&id).await;
    let first = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let exec = node.output(&id, &["cat", "/proc/self/status"]).await;
    for name in ["Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "Seccomp:"]
    {
        assert_eq!(field(&exec, name), field(&first, name), "{name}");
    }
    assert_eq!(node.output(&id, &["sh", "-c", "echo $MINE $FROM_IMAGE $(pwd)"]).await, "yes yes /tmp");
    // Its output may end before it does.
    let answer = node.exec(&id, &["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 6"]).await.unwrap();
    assert_eq!(answer.exit_code, 6);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_chosen_by_name_and_have_their_own_root() {
    let runtime = Options::default().runtime;
    let own = tempfile::tempdir().unwrap();
    let root = own.path().join("state");
    let extra = format!("[runtime.handlers.other]\npath = \"{runtime}\"\nroot = \"{}\"\n", root.display());
    let mut node = Node::new(Options { extra_config: extra, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    for handler in [runtime.as_str(), "other"] {
        let config = node.pod(handler);
        let request =
            pb::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let pod = node.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        assert_eq!(node.pod_status(&pod).await.unwrap().runtime_handler, handler);
        assert!(node.list_pods().await.iter().any(|p| p.id == pod && p.runtime_handler == handler));
        let id = started(&mut node, &pod, &config, container("main", &[])).await;
        assert_eq!(root.join(&id).exists(), handler == "other");
        assert_eq!(node.output(&id, &["echo", "hi"]).await, "hi");
        if handler == "other" {
            node.daemon.crash().unwrap();
            assert_eq!(node.pod_status(&pod).await.unwrap().runtime_handler, handler);
            assert_eq!(node.output(&id, &["echo", "hi"]).await, "hi");
            node.stop(&id, 0).await.unwrap();
            // Cleaned up after beside the answer.
            wait_for("the runtime forgets it", PATIENCE, || (!root.join(&id).exists()).then_some(()))
                .unwrap();
        }
    }
    let status = node.runtime.status(pb::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let names: Vec<_> = status.runtime_handlers.iter().map(|h| h.name.as_str()).collect();
    assert!(names.contains(&"other") && names.contains(&runtime.as_str()), "{names:?}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_signal_is_the_requests_or_the_images() {
    let mut node = Node::with_busybox().await;
    push(&node.registry, "library/signal", "test", busybox().stop_signal("SIGUSR1").build());
    node.pull("docker.io/library/signal:test").await.unwrap();
    let config = node.pod("signal");
    let pod = node.run(&config).await.unwrap();
    let script = "trap 'exit 11' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; echo up; \
                  while true; do sleep 0.05; done";
    for (name, signal, code) in
        [("image", pb::Signal::RuntimeDefault, 11), ("request", pb::Signal::Sigusr2, 12)]
    {
        let mut spec = container(name, &["sh", "-c", script]);
        spec.image = Some(image_spec("docker.io/library/signal:test"));
        spec.stop_signal = signal.into();
        let id = started(&mut node, &pod, &config, spec).await;
        logged(&node, "signal", name, " up");
        node.stop(&id, 30).await.unwrap();
        let ended = node.status(&id).await.unwrap();
        assert_eq!(ended.exit_code, code, "{name}");
        let told = if code == 11 { pb::Signal::Sigusr1 } else { signal };
        assert_eq!(ended.stop_signal(), told, "{name}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_masked_unasked_and_sysctls_are_the_pods() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("sysctl");
    let key = "/proc/sys/net/ipv4/tcp_syncookies";
    let host = std::fs::read_to_string(key).unwrap();
    let other = if host.trim() == "2" { "1" } else { "2" };
    config.linux.as_mut().unwrap().sysctls =
        map(&[("net.ipv4.tcp_syncookies", other), ("kernel.shmmni", "777")]);
    let pod = node.run(&config).await.unwrap();
    let id = started(&mut node, &pod, &config, container("main", &[])).await;
    assert_eq!(node.output(&id, &["cat", key]).await, other);
    assert_eq!(node.output(&id, &["cat", "/proc/sys/kernel/shmmni"]).await, "777");
    assert_eq!(std::fs::read_to_string(key).unwrap(), host);
    let mounts = node.output(&id, &["cat", "/proc/mounts"]).await;
    assert!(!mounts.lines().any(|l| l.contains(" /proc/")), "{mounts}");
    node.finish().await;
}

/// Holders of a network namespace on this machine, by process, descriptor and mount.
fn holders(inode: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let dir = process.path();
        let Ok(comm) = std::fs::read_to_string(dir.join("comm")) else { continue };
        let who = format!("{} {}", dir.display(), comm.trim_end());
        let is_it = |path: &Path| std::fs::read_link(path).is_ok_and(|l| l.to_string_lossy() == inode);
        if is_it(&dir.join("ns/net")) {
            found.push(format!("{who}: lives in it"));
        }
        for fd in std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            if is_it(&fd.path()) {
                found.push(format!("{who}: descriptor {}", fd.file_name().display()));
            }
        }
        let mounts = std::fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
        if mounts.lines().any(|l| l.contains(&format!(" {inode} "))) {
            found.push(format!("{who}: mount"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_the_network_namespace_of_a_pod_whose_monitor_is_lost() {
    // Without its namespace the plugin cannot find what it masqueraded.
    let mut node = Node::new(Options { ip_masq: false, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("held");
    let pod = node.run(&config).await.unwrap();
    let first = started(&mut node, &pod, &config, container("main", &[])).await;
    let second = started(&mut node, &pod, &config, container("other", &[])).await;
    node.output(&first, &["true"]).await;
    let pid = node.pid(&first).await;
    let inode = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_string_lossy().into_owned();
    assert!(holders(&inode).len() >= 2, "{:?}", holders(&inode));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    host(&["kill", "-9", &field(&status, "PPid:")]);
    node.exited(&first).await;
    node.exited(&second).await;
    let pin = std::fs::read_dir(node.scratch.netns_dir()).unwrap().next().unwrap().unwrap().path();
    host(&["umount", "-l", &pin.to_string_lossy()]);
    // The init of the pod's pid namespace belongs to the pod until it is stopped; its survival does no harm.
    let others =
        || holders(&inode).into_iter().filter(|h| !h.contains(" podwright-init: lives")).collect::<Vec<_>>();
    let free = wait_for("the namespace is left", PATIENCE, || others().is_empty().then_some(()));
    assert!(free.is_ok(), "{:#?}", others());
    node.stop_pod(&pod).await.unwrap();
    let free = wait_for("the namespace is free", PATIENCE, || holders(&inode).is_empty().then_some(()));
    assert!(free.is_ok(), "{:#?}", holders(&inode));
    let ports = PathBuf::from(format!("/sys/class/net/{}/brif", node.scratch.bridge()));
    // The kernel takes an unused namespace down in its own time.
    let bare = || std::fs::read_dir(&ports).unwrap().next().is_none();
    assert!(wait_for("the bridge has no port", PATIENCE, || bare().then_some(())).is_ok());
    node.finish().await;
}
