//! What a runtime handler's settings and the node's defaults change in a container: annotations, /dev/shm, limits of
//! processes, devices of privileged containers, classes of block I/O.

use crate::containers::update;
use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use tonic::Code;

/// The OCI specification that the runtime was given.
async fn oci(node: &mut Node, id: &str) -> serde_json::Value {
    let request = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = node.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["runtimeSpec"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_handler_reach_its_containers() {
    let runtime = Options::default().runtime;
    let extra_config = format!(
        "[runtime.handlers.special]\npath = \"{runtime}\"\nprivileged_without_host_devices = true\n\
         pod_annotations = [\"vendor.example/*\", \"shm-size.crio.io\"]\n\
         [containers]\ndefault_ulimits = [\"fsize=1000000:2000000\", \"core=0\"]\n\
         device_ownership_from_security_context = true\n"
    );
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    for (handler, attempt) in [("special", 0), ("", 1)] {
        let special = handler == "special";
        let mut config = node.pod("handler");
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.annotations =
            map(&[("vendor.example/x", "1"), ("other.example/y", "2"), ("shm-size.crio.io", "8Mi")]);
        config.linux.as_mut().unwrap().security_context =
            Some(pb::LinuxSandboxSecurityContext { privileged: true, ..Default::default() });
        let request =
            pb::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let pod = node.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        let mut spec = container("plain", &[]);
        spec.annotations = map(&[("run.oci.keep_original_groups", "1")]);
        spec.devices = vec![pb::Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/fuse".into(),
            permissions: "rw".into(),
        }];
        security(&mut spec).run_as_user = Some(pb::Int64Value { value: 1000 });
        let id = node.create(&pod, &config, spec).await.unwrap();
        node.start(&id).await.unwrap();
        let annotations = oci(&mut node, &id).await["annotations"].clone();
        assert_eq!(annotations["vendor.example/x"] == "1", special, "{annotations}");
        for unseen in ["other.example/y", "run.oci.keep_original_groups"] {
            assert!(annotations[unseen].is_null(), "{annotations}");
        }
        for name in ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"] {
            assert_eq!(annotations[name], pod.as_str());
        }
        let shm = node.output(&id, &["sh", "-c", "df -k /dev/shm | tail -1"]).await;
        let expected = if special { "8192" } else { "65536" };
        assert!(shm.split_whitespace().any(|word| word == expected), "{shm}");
        // The first process, and one of an exec. (Not nofile: Go's runtime in older runc raises it by itself.)
        for process in ["1", "self"] {
            let limits = node.output(&id, &["cat", &format!("/proc/{process}/limits")]).await;
            for (name, expected) in [("Max file size", "1000000 2000000"), ("Max core file size", "0 0")] {
                let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
                let values: Vec<_> = line.split_whitespace().take(2).collect();
                assert_eq!(values.join(" "), expected, "{process}: {name}");
            }
        }
        assert_eq!(node.output(&id, &["stat", "-c", "%u %g", "/dev/mine"]).await, "1000 0");
        node.output(&id, &["sh", "-c", ": <>/dev/mine"]).await;
        let mut privileged = container("privileged", &[]);
        security(&mut privileged).privileged = true;
        let id = node.create(&pod, &config, privileged).await.unwrap();
        node.start(&id).await.unwrap();
        let has_fuse = node.exec(&id, &["test", "-e", "/dev/fuse"]).await.unwrap().exit_code == 0;
        assert_eq!(has_fuse, !special);
    }
    let mut config = node.pod("size");
    config.annotations = map(&[("shm-size.crio.io", "much")]);
    let request = pb::RunPodSandboxRequest { config: Some(config), runtime_handler: "special".to_owned() };
    refused(
        node.runtime.run_pod_sandbox(request).await,
        Code::InvalidArgument,
        &["shm-size.crio.io", "much"],
    );
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_the_node_does_not_have_is_refused() {
    let mut node = Node::with_busybox().await;
    let mut config = node.pod("classes");
    config.annotations = map(&[("rdt.resources.beta.kubernetes.io/container.of-pod", "no-such-class")]);
    let pod = node.run(&config).await.unwrap();
    let asks = |name: &str, annotation: &str| {
        let mut spec = container(name, &[]);
        spec.annotations = map(&[(annotation, "no-such-class")]);
        spec
    };
    for (spec, says) in [
        (asks("a", "io.kubernetes.cri.blockio-class"), "block I/O class"),
        (asks("b", "io.kubernetes.cri.rdt-class"), "RDT class"),
        (container("of-pod", &[]), "RDT class"),
    ] {
        let refusal = node.create(&pod, &config, spec).await;
        refused(refusal, Code::FailedPrecondition, &[says, "no-such-class"]);
    }
    assert!(node.list_containers().await.is_empty());
    node.create(&pod, &config, container("other", &[])).await.unwrap();
    node.finish().await;
}

/// Name and number of a disk of this machine.
fn disk() -> Option<(String, String)> {
    let mut disks = std::fs::read_dir("/sys/block").ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let read = |what| std::fs::read_to_string(entry.path().join(what)).ok().map(|t| t.trim().to_owned());
        let virtual_one = ["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind));
        (!virtual_one && read("size")? != "0").then_some((name, read("dev")?))
    });
    disks.next()
}

/// The limits of a container for a device, as its cgroup has them: bytes read and writes, in a second.
fn throttles(pid: u64, number: &str) -> (Option<String>, Option<String>) {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |controller: &str| {
        cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next()? == controller).then(|| parts.next().unwrap().to_owned())
        })
    };
    let value = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(number).map(str::to_owned));
        line.map(|rest| rest.trim().to_owned())
    };
    if let Some(path) = of("blkio") {
        let read = |what| {
            std::fs::read_to_string(format!("/sys/fs/cgroup/blkio{path}/blkio.throttle.{what}_device"))
        };
        return (value(read("read_bps").unwrap()), value(read("write_iops").unwrap()));
    }
    let path = format!("/sys/fs/cgroup{}/io.max", of("").unwrap());
    let all = value(std::fs::read_to_string(path).unwrap()).unwrap_or_default();
    let word = |key: &str| all.split(' ').find_map(|word| word.strip_prefix(key).map(str::to_owned));
    (word("rbps="), word("wiops="))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_block_io_limits_the_disk() {
    let Some((name, number)) = disk() else { return };
    let classes = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "Classes:\n  slow:\n    - Devices: [/dev/{name}]\n      ThrottleReadBps: 1Mi\n      ThrottleWriteIOPS: 100\n"
    );
    std::fs::write(classes.path(), text).unwrap();
    let extra_config = format!("[containers]\nblockio_config_file = {:?}\n", classes.path());
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let mut config = node.pod("blockio");
    config.annotations = map(&[("blockio.resources.beta.kubernetes.io/container.of-pod", "slow")]);
    let pod = node.run(&config).await.unwrap();
    let mut own = container("own", &[]);
    own.annotations = map(&[("io.kubernetes.cri.blockio-class", "slow")]);
    let slow = (Some("1048576".to_owned()), Some("100".to_owned()));
    for (spec, expected) in [
        (own, slow.clone()),
        (container("of-pod", &[]), slow.clone()),
        (container("free", &[]), (None, None)),
    ] {
        let id = node.create(&pod, &config, spec).await.unwrap();
        node.start(&id).await.unwrap();
        let pid = node.pid(&id).await;
        assert_eq!(throttles(pid, &number), expected);
        // Other limits change beside them.
        let shares = pb::LinuxContainerResources { cpu_shares: 300, ..Default::default() };
        update(&mut node, &id, shares).await.unwrap();
        assert_eq!(throttles(pid, &number), expected);
    }
    let mut fast = container("fast", &[]);
    fast.annotations = map(&[("io.kubernetes.cri.blockio-class", "fast")]);
    refused(node.create(&pod, &config, fast).await, Code::InvalidArgument, &["fast", "is not in"]);
    node.finish().await;
}
