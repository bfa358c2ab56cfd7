//! Containers: processes, users, files, limits, logs, ends.

use crate::support::*;
use podwright::cri::proto as pb;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_from_created_to_removed() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("life");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    spec.labels = map(&[("a", "b")]);
    spec.annotations = map(&[("c", "d")]);
    let id = node.create(&pod, &config, spec).await.unwrap();
    let created = node.status(&id).await.unwrap();
    assert_eq!(created.state(), pb::ContainerState::ContainerCreated);
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0);
    node.start(&id).await.unwrap();
    let ended = node.exited(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(ended.finished_at >= ended.started_at && ended.started_at > ended.created_at);
    assert_eq!((ended.labels["a"].as_str(), ended.annotations["c"].as_str()), ("b", "d"));
    assert_eq!(ended.log_path, node.log_path("life", "main").to_string_lossy());
    assert!(ended.image_ref.contains("@sha256:"), "{}", ended.image_ref);
    let log = node.log("life", "main");
    assert!(log.iter().any(|l| l.ends_with(" stdout F out")), "{log:?}");
    assert!(log.iter().any(|l| l.ends_with(" stderr F err")), "{log:?}");
    refused(node.start(&id).await, Code::FailedPrecondition, &["start", &id, "exited"]);
    node.remove(&id).await.unwrap();
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_environment_and_directory_come_from_image_and_request() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("env");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    spec.working_dir = "/tmp".to_owned();
    spec.envs = vec![
        pb::KeyValue { key: "MINE".to_owned(), value: b"1 2".to_vec() },
        pb::KeyValue { key: "FROM_IMAGE".to_owned(), value: b"no".to_vec() },
    ];
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    // The image's Cmd runs, since the request gives none.
    assert_eq!(node.output(&id, &["cat", "/proc/1/comm"]).await, "sleep");
    assert_eq!(node.output(&id, &["pwd"]).await, "/tmp");
    let env = node.output(&id, &["env"]).await;
    for line in ["MINE=1 2", "FROM_IMAGE=no", "HOSTNAME=env", PATH] {
        assert!(env.lines().any(|l| l == line), "{line} is not in {env}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_those_of_the_image() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("users");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    let context = security(&mut spec);
    context.run_as_username = "alice".to_owned();
    context.supplemental_groups = vec![77];
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["id", "-u"]).await, "1000");
    assert_eq!(node.output(&id, &["id", "-g"]).await, "1000");
    let groups = node.output(&id, &["id", "-G"]).await;
    let groups: Vec<_> = groups.split(' ').collect();
    assert!(groups.contains(&"50") && groups.contains(&"77"), "{groups:?}");
    let user = node.status(&id).await.unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn security_settings_reach_the_process() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("secure");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    let context = security(&mut spec);
    context.readonly_rootfs = true;
    context.no_new_privs = true;
    context.capabilities = Some(pb::Capability {
        add_capabilities: words(&["NET_ADMIN"]),
        drop_capabilities: words(&["ALL"]),
        ..Default::default()
    });
    context.seccomp = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    });
    context.masked_paths = words(&["/proc/version"]);
    context.readonly_paths = words(&["/proc/sys"]);
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let status = node.output(&id, &["cat", "/proc/1/status"]).await;
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    // NET_ADMIN is capability 12.
    assert_eq!(field("CapEff:"), "0000000000001000");
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    assert_ne!(node.exec(&id, &["touch", "/file"]).await.unwrap().exit_code, 0);
    assert_ne!(node.exec(&id, &["sh", "-c", "echo 1 > /proc/sys/kernel/shmmni"]).await.unwrap().exit_code, 0);
    assert_eq!(node.output(&id, &["wc", "-c", "/proc/version"]).await, "0 /proc/version");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_there_and_read_only_means_it() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("mounts");
    let pod = node.run(&config).await.unwrap();
    let host = node.scratch.root().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "content").unwrap();
    let host = host.to_string_lossy().into_owned();
    let mut spec = container("main", &[]);
    spec.mounts = vec![
        pb::Mount { container_path: "/rw".into(), host_path: host.clone(), ..Default::default() },
        pb::Mount {
            container_path: "/ro".into(),
            host_path: host.clone(),
            readonly: true,
            ..Default::default()
        },
    ];
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["cat", "/ro/file"]).await, "content");
    assert_ne!(node.exec(&id, &["touch", "/ro/new"]).await.unwrap().exit_code, 0);
    node.output(&id, &["sh", "-c", "echo more > /rw/new"]).await;
    assert_eq!(std::fs::read_to_string(format!("{host}/new")).unwrap(), "more\n");
    let mounts = node.status(&id).await.unwrap().mounts;
    assert!(mounts.iter().any(|m| m.container_path == "/ro" && m.readonly), "{mounts:?}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_cgroup() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("limits");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    spec.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let pid = node.pid(&id).await;
    assert_eq!(cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    let quota = cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    let reported = node.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((reported.cpu_shares, reported.memory_limit_in_bytes), (512, 64 << 20));
    node.finish().await;
}

pub(crate) async fn update(
    node: &mut Node,
    id: &str,
    linux: pb::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = pb::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    node.runtime.update_container_resources(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_before_the_start_and_while_it_runs() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("resize");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    let limits = pb::LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    spec.linux.get_or_insert_default().resources = Some(limits);
    let id = node.create(&pod, &config, spec).await.unwrap();
    let memory = |bytes| pb::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    update(&mut node, &id, memory(96 << 20)).await.unwrap();
    node.start(&id).await.unwrap();
    let request = pb::ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = node.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let pid = info["pid"].as_u64().unwrap();
    let limit = || cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit(), (96 << 20).to_string());
    update(&mut node, &id, memory(128 << 20)).await.unwrap();
    assert_eq!(limit(), (128 << 20).to_string());
    refused(update(&mut node, &id, memory(-5)).await, Code::InvalidArgument, &["memory_limit_in_bytes"]);
    // Less than it uses, which the kernel refuses or the runtime does: then nothing else of the request stays either.
    let weight = || cgroup_value(pid, "cpu", "cpu.shares", "cpu.weight");
    let before = weight();
    let both = pb::LinuxContainerResources { cpu_shares: 2048, ..memory(1) };
    assert!(update(&mut node, &id, both).await.is_err());
    assert_eq!((limit(), weight()), ((128 << 20).to_string(), before));
    node.daemon.crash().unwrap();
    let reported = node.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((reported.cpu_shares, reported.memory_limit_in_bytes), (512, 128 << 20));
    node.stop(&id, 0).await.unwrap();
    refused(update(&mut node, &id, memory(64 << 20)).await, Code::FailedPrecondition, &["update", "exited"]);
    let unknown = "e".repeat(64);
    refused(update(&mut node, &unknown, memory(64 << 20)).await, Code::NotFound, &[&unknown]);
    node.finish().await;
}

/// Reads a limit of a process's cgroup, v1 or v2.
fn cgroup_value(pid: u64, controller: &str, v1: &str, v2: &str) -> String {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        if controllers.split(',').any(|c| c == controller) {
            let file = format!("/sys/fs/cgroup/{controller}{path}/{v1}");
            return std::fs::read_to_string(file).unwrap().trim().to_owned();
        }
    }
    let path = cgroups.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
    std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{v2}")).unwrap().trim().to_owned()
}

/// Files of the unified hierarchy that the request names itself. v1 hosts have none, and must say so.
#[tokio::test(flavor = "multi_thread")]
async fn unified_limits_need_the_unified_hierarchy() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("unified");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    spec.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        unified: map(&[("pids.max", "77"), ("memory.high", "8388608")]),
        ..Default::default()
    });
    let created = node.create(&pod, &config, spec).await;
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let id = created.unwrap();
        node.start(&id).await.unwrap();
        let pid = node.pid(&id).await;
        assert_eq!(cgroup_value(pid, "pids", "", "pids.max"), "77");
        assert_eq!(cgroup_value(pid, "memory", "", "memory.high"), "8388608");
    } else {
        assert!(created.unwrap_err().message().contains("unified"));
    }
    node.finish().await;
}

/// Without a namespace of its own, only its cgroup identifies the container's processes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_container_leaves_no_process_in_the_pods_pid_namespace() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("shared");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &["sh", "-c", "sleep 4001 & setsid sleep 4002 & exec sleep 4003"]);
    let mut other = container("other", &[]);
    for spec in [&mut spec, &mut other] {
        security(spec).namespace_options =
            Some(pb::NamespaceOption { pid: pb::NamespaceMode::Pod.into(), ..Default::default() });
    }
    let id = node.create(&pod, &config, spec).await.unwrap();
    let other = node.create(&pod, &config, other).await.unwrap();
    node.start(&id).await.unwrap();
    node.start(&other).await.unwrap();
    node.stop(&id, 0).await.unwrap();
    let left = node.output(&other, &["ps", "-o", "args"]).await;
    assert!(!left.contains("sleep 400"), "{left}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_tell_processor_memory_and_layer() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("stats", &["sh", "-c", "i=0; while true; do i=$((i+1)); done"]).await;
    let request = pb::ContainerStatsRequest { container_id: id.clone() };
    let usage = async |node: &mut Node| {
        let answer = node.runtime.container_stats(request.clone()).await.unwrap().into_inner();
        let stats = answer.stats.unwrap();
        let cpu = stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
        (cpu, stats.memory.unwrap().working_set_bytes.unwrap().value)
    };
    let (before, memory) = usage(&mut node).await;
    assert!(memory > 0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while usage(&mut node).await.0 <= before {
        assert!(std::time::Instant::now() < deadline, "a busy container uses no processor");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_ends_as_oom_killed() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("oom");
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &["sh", "-c", "x=0123456789abcdef; while true; do x=$x$x; done"]);
    spec.linux.get_or_insert_default().resources =
        Some(pb::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let ended = node.exited(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_end_for_lack_of_memory_is_told_though_the_first_process_lived_on() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("oomchild");
    let pod = node.run(&config).await.unwrap();
    let greedy =
        "(x=0123456789abcdef; while true; do x=$x$x; done); echo survived; read end </dev/null; exit 0";
    let mut spec = container("main", &["sh", "-c", greedy]);
    spec.linux.get_or_insert_default().resources =
        Some(pb::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    let ended = node.exited(&id).await;
    assert!(node.log("oomchild", "main").iter().any(|line| line.ends_with(" survived")));
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "OOMKilled"));
    // Another container of the pod has nothing to do with it.
    let id = node.create(&pod, &config, container("other", &["sh", "-c", "kill -9 $$"])).await.unwrap();
    node.start(&id).await.unwrap();
    assert_ne!(node.exited(&id).await.reason, "OOMKilled");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_contradict_themselves_are_refused_before_anything_is_made() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("wrong");
    let pod = node.run(&config).await.unwrap();
    type Limits = pb::LinuxContainerResources;
    let page = |size: &str| vec![pb::HugepageLimit { page_size: size.to_owned(), limit: 0 }];
    let cases = [
        (
            Limits {
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 1 << 20,
                ..Default::default()
            },
            "memory_swap_limit_in_bytes",
        ),
        (Limits { memory_swap_limit_in_bytes: 1 << 20, ..Default::default() }, "memory_swap_limit_in_bytes"),
        (Limits { cpu_period: 999, ..Default::default() }, "cpu_period"),
        (Limits { cpu_quota: 999, ..Default::default() }, "cpu_quota"),
        (Limits { cpu_shares: 1, ..Default::default() }, "cpu_shares"),
        (Limits { cpuset_cpus: "0-".to_owned(), ..Default::default() }, "cpuset_cpus"),
        (Limits { hugepage_limits: page("3MB"), ..Default::default() }, "hugepage_limits"),
        (Limits { unified: map(&[("a/b.max", "1")]), ..Default::default() }, "unified"),
        (Limits { unified: map(&[("nonsense.max", "1")]), ..Default::default() }, "unified"),
    ];
    for (limits, field) in cases.clone() {
        let mut spec = container("main", &[]);
        spec.linux.get_or_insert_default().resources = Some(limits);
        refused(node.create(&pod, &config, spec).await, Code::InvalidArgument, &[field]);
    }
    assert!(node.list_containers().await.is_empty());
    let made = std::fs::read_dir(node.scratch.root().join("root/containers")).unwrap();
    assert_eq!(made.filter(|entry| entry.as_ref().unwrap().file_name() != ".trash").count(), 0);
    // A change is held against what is there.
    let mut spec = container("main", &[]);
    spec.linux.get_or_insert_default().resources =
        Some(Limits { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let id = node.create(&pod, &config, spec).await.unwrap();
    for (limits, field) in cases.into_iter().skip(2) {
        refused(update(&mut node, &id, limits).await, Code::InvalidArgument, &[field]);
    }
    let swap = Limits { memory_swap_limit_in_bytes: 1 << 20, ..Default::default() };
    refused(update(&mut node, &id, swap).await, Code::InvalidArgument, &["memory_swap_limit_in_bytes"]);
    let reported = node.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((reported.memory_limit_in_bytes, reported.cpu_shares), (64 << 20, 0));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_sends_the_stop_signal_then_kills() {
    let mut node = Node::with_busybox().await;
    let polite = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done";
    let (_, id) = node.running("polite", &["sh", "-c", polite]).await;
    up(&node, "polite");
    node.stop(&id, 30).await.unwrap();
    let ended = node.status(&id).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (pb::ContainerState::ContainerExited, 3));
    assert!(node.log("polite", "main").iter().any(|l| l.ends_with(" stdout F bye")));

    let deaf = "trap '' TERM; echo up; while true; do sleep 0.05; done";
    let (_, id) = node.running("deaf", &["sh", "-c", deaf]).await;
    up(&node, "deaf");
    node.stop(&id, 1).await.unwrap();
    assert_eq!(node.status(&id).await.unwrap().exit_code, 137);
    node.finish().await;
}

/// Waits until a container has logged `up`: then its trap is set.
fn up(node: &Node, pod: &str) {
    podwright_testkit::wait_for("the container is up", std::time::Duration::from_secs(20), || {
        node.log(pod, "main").iter().any(|l| l.ends_with(" up")).then_some(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stop_only_shortens_the_grace() {
    let mut node = Node::with_busybox().await;
    let deaf = "trap '' TERM; echo up; while true; do sleep 0.05; done";
    let (_, id) = node.running("shorter", &["sh", "-c", deaf]).await;
    up(&node, "shorter");
    let mut client = node.runtime.clone();
    let request = pb::StopContainerRequest { container_id: id.clone(), timeout: 3600 };
    let patient = tokio::spawn(async move { client.stop_container(request).await });
    node.stop(&id, 0).await.unwrap();
    patient.await.unwrap().unwrap();
    assert_eq!(node.status(&id).await.unwrap().exit_code, 137);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_tells_output_code_and_keeps_its_limits() {
    let options = podwright_testkit::Options {
        extra_config: "[containers]\nexec_output_bytes = 1000\nexec_drain_seconds = 1\n".to_owned(),
        ..Default::default()
    };
    let mut node = Node::new(options).await;
    node.pull(BUSYBOX).await.unwrap();
    let (_, id) = node.running("exec", &[]).await;
    let answer = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await.unwrap();
    assert_eq!((answer.stdout.as_slice(), answer.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(answer.exit_code, 5);
    assert_eq!(node.exec(&id, &["sh", "-c", "kill -9 $$"]).await.unwrap().exit_code, 137);
    let long = node.exec(&id, &["sh", "-c", "head -c 100000 /dev/zero; echo end >&2"]).await.unwrap();
    assert_eq!((long.stdout.len(), long.stderr.as_slice()), (1000, &b"end\n"[..]));
    refused(node.exec_within(&id, &["sleep", "4321"], 1).await, Code::DeadlineExceeded, &["timed out"]);
    let left = node.output(&id, &["ps", "-o", "args"]).await;
    assert!(!left.contains("sleep 4321"), "{left}");
    // A child that keeps the pipe does not keep the answer.
    let answer = node.exec(&id, &["sh", "-c", "sleep 5678 & echo started"]).await.unwrap();
    assert_eq!(answer.stdout, b"started\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_log_goes_on_in_a_new_file() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("rotate", &["sh", "-c", "while true; do echo line; sleep 0.02; done"]).await;
    let path = node.log_path("rotate", "main");
    let old = path.with_extension("old");
    podwright_testkit::wait_for("the log begins", std::time::Duration::from_secs(20), || {
        (!node.log("rotate", "main").is_empty()).then_some(())
    })
    .unwrap();
    std::fs::rename(&path, &old).unwrap();
    let request = pb::ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime.reopen_container_log(request.clone()).await.unwrap();
    assert!(path.exists());
    let length = std::fs::metadata(&old).unwrap().len();
    podwright_testkit::wait_for("the new log grows", std::time::Duration::from_secs(20), || {
        (node.log("rotate", "main").len() > 3).then_some(())
    })
    .unwrap();
    assert_eq!(std::fs::metadata(&old).unwrap().len(), length);
    node.stop(&id, 0).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let answer = node.runtime.reopen_container_log(request).await;
    refused(answer, Code::FailedPrecondition, &["reopen the log", "exited"]);
    assert!(!path.exists());
    node.finish().await;
}
