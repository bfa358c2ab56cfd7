//! What a pod sees of podwright's own processes: the process 1 of a PID namespace that its containers share, which is worth
//! nothing, and no other.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::CgroupDriver;

/// First id of a pod with a user namespace, and how many.
const RANGE: (u32, u32) = (200_000, 65_536);

fn user_namespace() -> pb::UserNamespace {
    let range = || vec![pb::IdMapping { host_id: RANGE.0, container_id: 0, length: RANGE.1 }];
    pb::UserNamespace { mode: pb::NamespaceMode::Pod.into(), uids: range(), gids: range() }
}

/// A running container that may trace the processes of its pod, as the Kubernetes documentation on shared process
/// namespaces has it.
async fn tracer(node: &mut Node, name: &str, mapped: bool) -> (String, String) {
    let user = || mapped.then(user_namespace);
    let mut config = node.pod(name);
    let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    linux.namespace_options.get_or_insert_default().userns_options = user();
    let pod = node.run(&config).await.unwrap();
    let mut spec = container("main", &[]);
    let context = security(&mut spec);
    context.capabilities.get_or_insert_default().add_capabilities = words(&["SYS_PTRACE"]);
    // The confinement must hold without AppArmor, whose default profile hides process 1 on some hosts.
    context.apparmor = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    let options = context.namespace_options.get_or_insert_default();
    (options.pid, options.userns_options) = (pb::NamespaceMode::Pod.into(), user());
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    (pod, id)
}

/// Properties that every observer sees.
async fn looks_like_nothing(node: &mut Node, id: &str) {
    let status = node.output(id, &["cat", "/proc/1/status"]).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let command = node.output(id, &["sh", "-c", "tr '\\0' '|' < /proc/1/cmdline; cat /proc/1/comm"]).await;
    assert_eq!(command, "podwright-init|podwright-init");
    let mounts = node.output(id, &["cat", "/proc/1/mountinfo"]).await;
    assert!(mounts.lines().count() == 1 && mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    // No other process of ours is in there: all others are the container's own.
    let others = node.output(id, &["sh", "-c", "cat /proc/[0-9]*/comm | sort -u"]).await;
    let known = ["podwright-init", "sleep", "sh", "cat", "sort"];
    assert!(others.lines().all(|name| known.contains(&name)), "{others}");
}

async fn fails(node: &mut Node, id: &str, script: &str) -> String {
    let answer = node.exec(id, &["sh", "-c", script]).await.unwrap();
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_ne!(answer.exit_code, 0, "{script}: {}", String::from_utf8_lossy(&answer.stdout));
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn process_1_of_a_shared_pid_namespace_leads_nowhere() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = tracer(&mut node, "traced", false).await;
    looks_like_nothing(&mut node, &id).await;
    // A process that may trace can look into it, and finds nothing.
    let script =
        "ls -A /proc/1/root/ /proc/1/fd/ | grep -v ':$' | grep .; cat /proc/1/environ; readlink /proc/1/cwd";
    assert_eq!(node.output(&id, &["sh", "-c", script]).await, "/");
    let said = fails(&mut node, &id, "echo x > /proc/1/root/x").await;
    assert!(said.contains("Read-only file system"), "{said}");
    fails(&mut node, &id, "cat /proc/1/root/etc/shadow").await;
    let exe = "chmod 700 /proc/1/exe";
    let said = fails(&mut node, &id, exe).await;
    assert!(said.contains("Read-only file system"), "{said}");
    fails(&mut node, &id, "echo x >> /proc/1/exe").await;
    // It counts for the pod.
    let record = node.scratch.root().join("state/pods").join(&pod).join("monitor.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", record["init"]["pid"])).unwrap();
    let leaf = format!("{}/podwright-init-{pod}", node.scratch.cgroup_parent());
    if node.scratch.cgroup_driver() == CgroupDriver::Cgroupfs {
        let in_pod = cgroups.lines().filter(|line| line.ends_with(&leaf)).count();
        assert!(in_pod > 0 && in_pod + 1 >= cgroups.lines().count(), "{cgroups}");
    }
    // And goes with it.
    node.stop_pod(&pod).await.unwrap();
    for root in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let left = root.path().join(leaf.trim_start_matches('/'));
        assert!(!left.exists(), "{}", left.display());
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_in_a_pods_user_namespace_are_none_over_its_process_1() {
    if !runtime_can(Ability::UserNamespaces) {
        return;
    }
    let mut node = Node::with_busybox().await;
    let (_, id) = tracer(&mut node, "mapped", true).await;
    looks_like_nothing(&mut node, &id).await;
    for link in ["root", "cwd", "exe", "ns/mnt", "fd"] {
        fails(&mut node, &id, &format!("ls -l /proc/1/{link}/ || readlink /proc/1/{link}")).await;
    }
    for script in [
        "cat /proc/1/maps | grep .",
        "cat /proc/1/mem",
        "cat /proc/1/environ",
        "echo 9 > /proc/1/oom_score_adj",
    ] {
        fails(&mut node, &id, script).await;
    }
    node.finish().await;
}
