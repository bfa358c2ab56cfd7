//! Every field of a pod's or container's configuration that can be wrong, and the name in its refusal.

use super::*;
use crate::cri::proto as pb;
use crate::model::{ContainerId, ImageId, ImageRequest, SandboxId, SandboxSpec, Timestamp};

fn text(value: &str) -> String {
    value.to_owned()
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| text(v)).collect()
}

fn pod_config() -> pb::PodSandboxConfig {
    pb::PodSandboxConfig {
        metadata: Some(pb::PodSandboxMetadata {
            name: text("pod"),
            uid: text("uid"),
            namespace: text("default"),
            attempt: 0,
        }),
        hostname: text("host"),
        log_directory: text("/var/log/pods/pod"),
        linux: Some(pb::LinuxPodSandboxConfig {
            security_context: Some(pb::LinuxSandboxSecurityContext::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pod(config: pb::PodSandboxConfig) -> Checked<SandboxSpec> {
    let id = SandboxId::parse(&"a".repeat(64)).unwrap();
    sandbox(Some(config), String::new(), id, Timestamp(1))
}

fn container_config() -> pb::ContainerConfig {
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata { name: text("main"), attempt: 0 }),
        log_path: text("main/0.log"),
        linux: Some(pb::LinuxContainerConfig {
            security_context: Some(pb::LinuxContainerSecurityContext::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn make(config: pb::ContainerConfig) -> Checked<crate::model::ContainerSpec> {
    let image = ImageRequest {
        requested: text("sha256:1"),
        user_specified: String::new(),
        id: ImageId::from_digest("sha256:1"),
        reference: text("sha256:1"),
        display: text("busybox"),
    };
    let id = ContainerId::parse(&"b".repeat(64)).unwrap();
    container(config, &pod(pod_config()).unwrap(), image, id, Timestamp(2))
}

fn context(c: &mut pb::PodSandboxConfig) -> &mut pb::LinuxSandboxSecurityContext {
    c.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn security(c: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerSecurityContext {
    c.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn limits(c: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerResources {
    c.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn mount(at: &str) -> pb::Mount {
    pb::Mount { container_path: text(at), host_path: text("/tmp"), ..Default::default() }
}

fn device(at: &str) -> pb::Device {
    pb::Device { container_path: text(at), host_path: text("/dev/null"), permissions: text("rw") }
}

fn profile(kind: pb::security_profile::ProfileType, reference: &str) -> Option<pb::SecurityProfile> {
    Some(pb::SecurityProfile { profile_type: kind.into(), localhost_ref: text(reference) })
}

fn port(host_port: i32, container_port: i32) -> pb::PortMapping {
    pb::PortMapping { host_port, container_port, ..Default::default() }
}

fn int(value: i64) -> Option<pb::Int64Value> {
    Some(pb::Int64Value { value })
}

#[test]
fn a_pod_with_a_wrong_field_is_refused_by_its_name() {
    use pb::security_profile::ProfileType::{Localhost, RuntimeDefault};
    type Case = (&'static str, fn(&mut pb::PodSandboxConfig));
    const NAME: &str = "config.metadata.name";
    const SYSCTLS: &str = "config.linux.sysctls";
    const PORTS: &str = "config.port_mappings";
    const SECCOMP: &str = "config.linux.security_context.seccomp";
    let cases: &[Case] = &[
        ("config.metadata", |c| c.metadata = None),
        (NAME, |c| c.metadata.as_mut().unwrap().name.clear()),
        (NAME, |c| c.metadata.as_mut().unwrap().name = "n".repeat(513)),
        (NAME, |c| c.metadata.as_mut().unwrap().name = text("a\nb")),
        (NAME, |c| c.metadata.as_mut().unwrap().name = text("a\0b")),
        (NAME, |c| c.metadata.as_mut().unwrap().name = text("a/b")),
        (NAME, |c| c.metadata.as_mut().unwrap().name = text("..")),
        ("config.metadata.uid", |c| c.metadata.as_mut().unwrap().uid = text("../x")),
        ("config.metadata.namespace", |c| c.metadata.as_mut().unwrap().namespace.clear()),
        ("config.hostname", |c| c.hostname = "h".repeat(65)),
        ("config.hostname", |c| c.hostname = text("a\nb")),
        ("config.hostname", |c| c.hostname = text("a\rb")),
        ("config.hostname", |c| c.hostname = text("a\0")),
        ("config.hostname", |c| c.hostname = text("a b")),
        ("config.log_directory", |c| c.log_directory = text("relative")),
        ("config.log_directory", |c| c.log_directory = text("/var/log/../../etc")),
        ("config.log_directory", |c| c.log_directory = text("/a\0b")),
        ("config.dns_config", |c| {
            c.dns_config =
                Some(pb::DnsConfig { servers: texts(&["1.1.1.1\noptions x"]), ..Default::default() });
        }),
        ("config.dns_config", |c| {
            c.dns_config = Some(pb::DnsConfig { searches: texts(&["a\r"]), ..Default::default() });
        }),
        ("config.dns_config", |c| {
            c.dns_config =
                Some(pb::DnsConfig { servers: vec![text("1.1.1.1"); 10_000], ..Default::default() });
        }),
        (PORTS, |c| c.port_mappings = vec![port(70_000, 80)]),
        (PORTS, |c| c.port_mappings = vec![port(80, 0)]),
        (PORTS, |c| c.port_mappings = vec![port(80, -1)]),
        (PORTS, |c| c.port_mappings = vec![pb::PortMapping { protocol: 7, ..port(80, 80) }]),
        (PORTS, |c| c.port_mappings = vec![pb::PortMapping { host_ip: text("localhost"), ..port(80, 80) }]),
        ("config.linux.cgroup_parent", |c| c.linux.as_mut().unwrap().cgroup_parent = text("/a/../..")),
        ("config.linux.cgroup_parent", |c| c.linux.as_mut().unwrap().cgroup_parent = text("/a\0")),
        (SYSCTLS, |c| drop(c.linux.as_mut().unwrap().sysctls.insert(text("kernel.core_pattern"), text("x")))),
        (SYSCTLS, |c| drop(c.linux.as_mut().unwrap().sysctls.insert(text("net..ipv4"), text("1")))),
        (SYSCTLS, |c| drop(c.linux.as_mut().unwrap().sysctls.insert(text("net/../kernel/x"), text("1")))),
        (SYSCTLS, |c| {
            let value = text("1+kernel.core_pattern=|/bin/x\nkernel.sysrq=1");
            drop(c.linux.as_mut().unwrap().sysctls.insert(text("kernel.shm_rmid_forced"), value));
        }),
        (SYSCTLS, |c| {
            context(c).namespace_options =
                Some(pb::NamespaceOption { network: pb::NamespaceMode::Node.into(), ..Default::default() });
            c.linux.as_mut().unwrap().sysctls.insert(text("net.ipv4.ip_forward"), text("1"));
        }),
        ("config.linux.security_context.namespace_options.pid", |c| {
            context(c).namespace_options = Some(pb::NamespaceOption {
                pid: pb::NamespaceMode::Target.into(),
                target_id: "c".repeat(64),
                ..Default::default()
            });
        }),
        ("namespace_options.ipc", |c| {
            context(c).namespace_options = Some(pb::NamespaceOption { ipc: 9, ..Default::default() });
        }),
        (SECCOMP, |c| context(c).seccomp = profile(Localhost, "")),
        (SECCOMP, |c| context(c).seccomp = profile(RuntimeDefault, "/x.json")),
        (SECCOMP, |c| {
            context(c).seccomp = Some(pb::SecurityProfile { profile_type: 9, ..Default::default() });
        }),
        ("config.linux.security_context.selinux_options", |c| {
            context(c).selinux_options =
                Some(pb::SeLinuxOption { r#type: text("spc_t:s0"), ..Default::default() });
        }),
    ];
    pod(pod_config()).unwrap();
    for (number, (field, edit)) in cases.iter().enumerate() {
        let mut config = pod_config();
        edit(&mut config);
        match pod(config) {
            Ok(_) => panic!("case {number}, {field}, is accepted"),
            Err(error) => assert_eq!(error.field, *field, "case {number}: {error}"),
        }
    }
}

#[test]
fn a_container_with_a_wrong_field_is_refused_by_its_name() {
    use pb::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    type Case = (&'static str, fn(&mut pb::ContainerConfig));
    const MOUNT_AT: &str = "config.mounts.container_path";
    const DEVICES: &str = "config.devices";
    const APPARMOR: &str = "config.linux.security_context.apparmor";
    const USER: &str = "config.linux.security_context.run_as_user";
    const GROUPS: &str = "config.linux.security_context.supplemental_groups";
    const CAPABILITIES: &str = "config.linux.security_context.capabilities";
    let cases: &[Case] = &[
        ("config.metadata", |c| c.metadata = None),
        ("config.metadata.name", |c| c.metadata.as_mut().unwrap().name = text("a/b")),
        ("config.command", |c| c.command = texts(&["sh", "-c\0"])),
        ("config.args", |c| c.args = texts(&["\0"])),
        ("config.working_dir", |c| c.working_dir = text("/a\0b")),
        ("config.working_dir", |c| c.working_dir = "/a".repeat(3000)),
        ("config.envs", |c| c.envs = vec![pb::KeyValue::default()]),
        ("config.envs", |c| c.envs = vec![pb::KeyValue { key: text("A=B"), value: Vec::new() }]),
        ("config.envs", |c| c.envs = vec![pb::KeyValue { key: text("A"), value: b"\0".to_vec() }]),
        ("config.envs", |c| c.envs = vec![pb::KeyValue { key: text("A"), value: vec![0xff] }]),
        ("config.envs", |c| {
            c.envs = vec![pb::KeyValue { key: text("HOME"), value: b"/\nroot::0:0".to_vec() }]
        }),
        ("config.mounts", |c| c.mounts = (0..2049).map(|n| mount(&format!("/{n}"))).collect()),
        (MOUNT_AT, |c| c.mounts = vec![mount("relative")]),
        (MOUNT_AT, |c| c.mounts = vec![mount("/a/../../b")]),
        (MOUNT_AT, |c| c.mounts = vec![mount("/")]),
        (MOUNT_AT, |c| c.mounts = vec![mount("/./")]),
        (MOUNT_AT, |c| c.mounts = vec![mount("/a\0")]),
        ("config.mounts.host_path", |c| c.mounts = vec![pb::Mount { host_path: text("tmp"), ..mount("/a") }]),
        ("config.mounts.host_path", |c| {
            c.mounts = vec![pb::Mount { host_path: String::new(), ..mount("/a") }]
        }),
        ("config.mounts.mount_options", |c| {
            c.mounts = vec![pb::Mount { mount_options: texts(&["noexec", "suid"]), ..mount("/a") }];
        }),
        ("config.mounts", |c| c.mounts = vec![mount("/a/b"), mount("/c"), mount("/a//b/.")]),
        ("config.mounts", |c| c.mounts = vec![pb::Mount { propagation: 9, ..mount("/a") }]),
        ("config.mounts", |c| {
            let image = Some(pb::ImageSpec { image: text("busybox"), ..Default::default() });
            c.mounts = vec![pb::Mount { image, ..mount("/a") }];
        }),
        ("config.mounts.image_sub_path", |c| {
            c.mounts = vec![pb::Mount { image_sub_path: text("x"), ..mount("/a") }];
        }),
        (DEVICES, |c| c.devices = vec![pb::Device { permissions: text("rwx"), ..device("/dev/a") }]),
        (DEVICES, |c| c.devices = vec![pb::Device { permissions: String::new(), ..device("/dev/a") }]),
        (DEVICES, |c| c.devices = vec![device("/dev/a"), device("/dev//a")]),
        ("config.devices.container_path", |c| c.devices = vec![device("/dev/../a")]),
        ("config.devices.host_path", |c| {
            c.devices = vec![pb::Device { host_path: text("null"), ..device("/dev/a") }];
        }),
        ("config.CDI_devices", |c| c.cdi_devices = vec![pb::CdiDevice { name: text("gpu") }]),
        ("config.annotations", |c| drop(c.annotations.insert(text("cdi.k8s.io/x"), text("v.com/c=0,bad")))),
        ("config.log_path", |c| c.log_path = text("../../etc/x")),
        ("config.log_path", |c| c.log_path = text("/etc/x")),
        ("config.log_path", |c| c.log_path = text("a\0")),
        ("config.log_path", |c| c.log_path = text(".")),
        ("config.log_path", |c| c.log_path = text("dir/")),
        ("config.stop_signal", |c| c.stop_signal = 999),
        ("config.linux.resources.oom_score_adj", |c| limits(c).oom_score_adj = 1001),
        ("config.linux.resources.memory_limit_in_bytes", |c| limits(c).memory_limit_in_bytes = -1),
        (USER, |c| security(c).run_as_user = int(-1)),
        (USER, |c| security(c).run_as_user = int(i64::from(u32::MAX))),
        (USER, |c| security(c).run_as_user = int(1 << 32)),
        (USER, |c| security(c).run_as_user = int(i64::MAX)),
        (USER, |c| security(c).run_as_user = int(i64::MIN)),
        ("config.linux.security_context.run_as_group", |c| security(c).run_as_group = int(5)),
        ("config.linux.security_context.run_as_group", |c| {
            security(c).run_as_user = int(1);
            security(c).run_as_group = int(1 << 40);
        }),
        ("config.linux.security_context.run_as_username", |c| {
            security(c).run_as_user = int(1);
            security(c).run_as_username = text("root");
        }),
        ("config.linux.security_context.run_as_username", |c| security(c).run_as_username = text("a:0")),
        ("config.linux.security_context.run_as_username", |c| security(c).run_as_username = text("a\nb")),
        (GROUPS, |c| security(c).supplemental_groups = vec![1, -5]),
        (GROUPS, |c| security(c).supplemental_groups = vec![1; 65_537]),
        ("config.linux.security_context.supplemental_groups_policy", |c| {
            security(c).supplemental_groups_policy = 7;
        }),
        (CAPABILITIES, |c| {
            security(c).capabilities =
                Some(pb::Capability { add_capabilities: texts(&["NO_SUCH"]), ..Default::default() });
        }),
        (CAPABILITIES, |c| {
            security(c).capabilities =
                Some(pb::Capability { drop_capabilities: texts(&["CAP_ALL"]), ..Default::default() });
        }),
        (CAPABILITIES, |c| {
            security(c).capabilities =
                Some(pb::Capability { add_ambient_capabilities: texts(&[""]), ..Default::default() });
        }),
        ("config.linux.security_context.masked_paths", |c| security(c).masked_paths = texts(&["proc/kcore"])),
        ("config.linux.security_context.masked_paths", |c| security(c).masked_paths = texts(&["/a/../b"])),
        ("config.linux.security_context.readonly_paths", |c| security(c).readonly_paths = texts(&[""])),
        ("config.linux.security_context.readonly_paths", |c| security(c).readonly_paths = texts(&["/a\0"])),
        ("config.linux.security_context.seccomp", |c| {
            #[allow(deprecated)]
            {
                security(c).seccomp_profile_path = text("strange/default");
            }
        }),
        (APPARMOR, |c| security(c).apparmor = profile(Localhost, "")),
        (APPARMOR, |c| security(c).apparmor = profile(Localhost, "localhost/")),
        (APPARMOR, |c| security(c).apparmor = profile(Localhost, "a\nb")),
        (APPARMOR, |c| security(c).apparmor = profile(RuntimeDefault, "x")),
        (APPARMOR, |c| security(c).apparmor = profile(Unconfined, "x")),
        (APPARMOR, |c| {
            security(c).apparmor = Some(pb::SecurityProfile { profile_type: 9, ..Default::default() });
        }),
        (APPARMOR, |c| {
            #[allow(deprecated)]
            {
                security(c).apparmor_profile = text("localhost/");
            }
        }),
        ("config.linux.security_context.selinux_options", |c| {
            security(c).selinux_options =
                Some(pb::SeLinuxOption { level: text("s0,c1,c2"), ..Default::default() });
        }),
        ("namespace_options.target_id", |c| {
            security(c).namespace_options = Some(pb::NamespaceOption {
                pid: pb::NamespaceMode::Target.into(),
                target_id: text("../x"),
                ..Default::default()
            });
        }),
    ];
    make(container_config()).unwrap();
    for (number, (field, edit)) in cases.iter().enumerate() {
        let mut config = container_config();
        edit(&mut config);
        match make(config) {
            Ok(_) => panic!("case {number}, {field}, is accepted"),
            Err(error) => assert_eq!(error.field, *field, "case {number}: {error}"),
        }
    }
}

#[test]
fn what_only_looks_odd_is_accepted() {
    let mut config = container_config();
    config.envs = vec![pb::KeyValue { key: text("PEM"), value: b"a\nb\n".to_vec() }];
    config.mounts =
        vec![mount("/a/./b/"), pb::Mount { mount_options: texts(&["nodev", "noexec"]), ..mount("/c") }];
    config.log_path = text("./main//0.log");
    config.annotations.insert(text("cdi.k8s.io/b"), text("v.com/c=2,v.com/c=1"));
    config.annotations.insert(text("cdi.k8s.io/a"), text("v.com/c=3"));
    config.cdi_devices = vec![pb::CdiDevice { name: text("v.com/c=1") }];
    security(&mut config).selinux_options =
        Some(pb::SeLinuxOption { level: text("s0:c1,c2"), ..Default::default() });
    #[allow(deprecated)]
    {
        security(&mut config).apparmor_profile = text("localhost/mine");
    }
    let spec = make(config).unwrap();
    assert_eq!(spec.cdi_devices, ["v.com/c=1", "v.com/c=3", "v.com/c=2"]);
    assert_eq!(spec.security.apparmor, Some(crate::model::Profile::Localhost(text("mine"))));
    // The new field overrides the old one.
    let mut config = container_config();
    security(&mut config).apparmor = profile(pb::security_profile::ProfileType::Unconfined, "");
    #[allow(deprecated)]
    {
        security(&mut config).apparmor_profile = text("localhost/mine");
    }
    assert_eq!(make(config).unwrap().security.apparmor, Some(crate::model::Profile::Unconfined));
    let mut config = pod_config();
    config.linux.as_mut().unwrap().sysctls.insert(text("net.ipv4.tcp_rmem"), text("4096\t87380 6291456"));
    config.port_mappings = vec![port(0, 80)];
    assert!(pod(config).unwrap().port_mappings.is_empty());
}
