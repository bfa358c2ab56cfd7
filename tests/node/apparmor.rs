//! AppArmor: podwright's default profile, profiles of the node, and a host without it. The kernel of the guest of
//! tests/vm has it; elsewhere only the refusals are tested.

use crate::support::*;
use pb::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
use podwright::cri::proto as pb;
use tonic::Code;

fn host_has_it() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn with(name: &str, kind: pb::security_profile::ProfileType, reference: &str) -> pb::ContainerConfig {
    let mut spec = container(name, &[]);
    security(&mut spec).apparmor =
        Some(pb::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn without_apparmor_a_profile_is_refused_and_none_is_fine() {
    if host_has_it() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let config = node.pod("none");
    let pod = node.run(&config).await.unwrap();
    for spec in [with("local", Localhost, "mine"), with("default", RuntimeDefault, "")] {
        let refusal = node.create(&pod, &config, spec).await;
        refused(refusal, Code::FailedPrecondition, &["apparmor", "no AppArmor"]);
    }
    let mut old = container("old", &[]);
    #[allow(deprecated)]
    {
        security(&mut old).apparmor_profile = "localhost/mine".to_owned();
    }
    refused(node.create(&pod, &config, old).await, Code::FailedPrecondition, &["mine"]);
    assert!(node.list_containers().await.is_empty());
    for spec in [container("plain", &[]), with("free", Unconfined, "")] {
        let id = node.create(&pod, &config, spec).await.unwrap();
        node.start(&id).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_profile_confines_what_nothing_else_does() {
    if !host_has_it() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("confined");
    config.linux.as_mut().unwrap().security_context =
        Some(pb::LinuxSandboxSecurityContext { privileged: true, ..Default::default() });
    let pod = node.run(&config).await.unwrap();
    // All capabilities, nothing masked: AppArmor alone denies now. A CRI client that names no profile gets the default.
    let all = |mut spec: pb::ContainerConfig| {
        security(&mut spec).capabilities =
            Some(pb::Capability { add_capabilities: words(&["ALL"]), ..Default::default() });
        spec
    };
    for (name, spec) in [("unasked", container("unasked", &[])), ("asked", with("asked", RuntimeDefault, ""))]
    {
        let id = node.create(&pod, &config, all(spec)).await.unwrap();
        node.start(&id).await.unwrap();
        assert_eq!(
            node.output(&id, &["cat", "/proc/1/attr/current", "/proc/self/attr/current"]).await,
            "podwright-default (enforce)\npodwright-default (enforce)",
            "{name}"
        );
        for denied in [
            "mount -t tmpfs none /tmp",
            "echo h >/proc/sysrq-trigger",
            "cat /proc/sys/kernel/core_pattern >/tmp/p && cat /tmp/p >/proc/sys/kernel/core_pattern",
            "cat /proc/sys/vm/swappiness >/tmp/p && cat /tmp/p >/proc/sys/vm/swappiness",
            "cat /proc/sys/fs/file-max >/tmp/p && cat /tmp/p >/proc/sys/fs/file-max",
            "cat /proc/irq/default_smp_affinity >/tmp/p && cat /tmp/p >/proc/irq/default_smp_affinity",
            "ls /sys/firmware/acpi",
            "ls /sys/kernel/security/apparmor",
        ] {
            let answer = node.exec(&id, &["sh", "-c", denied]).await.unwrap();
            assert_ne!(answer.exit_code, 0, "{name}: {denied} is allowed");
        }
        for allowed in [
            "echo x >/etc/new && cat /etc/new && chmod 700 /etc/new && ln -s new /etc/link && rm /etc/link",
            "echo 500 >/proc/self/oom_score_adj",
            "cat /proc/sys/net/ipv4/ip_forward >/tmp/p && cat /tmp/p >/proc/sys/net/ipv4/ip_forward",
            "cat /proc/sys/kernel/shmmni >/tmp/p && cat /tmp/p >/proc/sys/kernel/shmmni",
            "sleep 1000 & kill $! && ! wait $!",
            "cat /proc/1/environ >/dev/null",
        ] {
            let answer = node.exec(&id, &["sh", "-c", allowed]).await.unwrap();
            let said = String::from_utf8_lossy(&answer.stderr);
            assert_eq!(answer.exit_code, 0, "{name}: {allowed} is denied: {said}");
        }
        // The runtime's signals come in.
        node.stop(&id, 0).await.unwrap();
        assert_eq!(node.exited(&id).await.exit_code, 137);
    }
    let mut privileged = container("privileged", &[]);
    security(&mut privileged).privileged = true;
    for spec in [privileged, with("free", Unconfined, "")] {
        let id = node.create(&pod, &config, all(spec)).await.unwrap();
        node.start(&id).await.unwrap();
        // Since Debian 13 the runtime has a profile by its file's name, which allows all.
        let label = node.output(&id, &["cat", "/proc/1/attr/current"]).await;
        let of_runtime = format!("{} (unconfined)", podwright_testkit::Options::default().runtime);
        assert!(label == "unconfined" || label == of_runtime, "{label}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_node_has_to_be_loaded() {
    if !host_has_it() {
        return;
    }
    let mut node = Node::with_busybox().await;
    let config = node.pod("local");
    let pod = node.run(&config).await.unwrap();
    let refusal =
        node.create(&pod, &config, with("absent", Localhost, "localhost/podwright-test-none")).await;
    refused(refusal, Code::FailedPrecondition, &["podwright-test-none", "not loaded"]);
    assert!(node.list_containers().await.is_empty());
    let file = node.scratch.root().join("profile");
    let text = "profile podwright-test-ro flags=(attach_disconnected) {\n  file,\n  network,\n  capability,\n  \
                signal,\n  deny /etc/** w,\n}\n";
    std::fs::write(&file, text).unwrap();
    let load = |how: &str| {
        let done =
            std::process::Command::new("apparmor_parser").args([how, "-K"]).arg(&file).status().unwrap();
        assert!(done.success());
    };
    load("-r");
    let id = node.create(&pod, &config, with("ro", Localhost, "podwright-test-ro")).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["cat", "/proc/1/attr/current"]).await, "podwright-test-ro (enforce)");
    assert_ne!(node.exec(&id, &["touch", "/etc/x"]).await.unwrap().exit_code, 0);
    node.output(&id, &["touch", "/tmp/x"]).await;
    node.stop(&id, 0).await.unwrap();
    load("-R");
    node.finish().await;
}
