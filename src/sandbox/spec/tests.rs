use super::fixture::fixture;
use crate::host::devices::{NodeKind, Owner, ResolvedDevice};
use crate::host::security::selinux::Label;
use crate::host::security::{Cap, CapSet};
use crate::model::{
    Capabilities, ContainerId, HugepageLimit, NamespaceMode, Profile, Propagation, SelinuxOptions,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::*;

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_typical_container_is_the_golden_spec() {
    let f = fixture();
    let mut spec = f.json();
    // Sets have no order.
    assert_eq!(strings(&spec["process"]["capabilities"]["bounding"]).len(), 14);
    spec["process"].as_object_mut().unwrap().remove("capabilities");
    let golden: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(spec, golden, "{}", serde_json::to_string_pretty(&spec).unwrap());
}

#[test]
fn arguments_follow_the_request_then_the_image() {
    let cases: [(&[&str], &[&str], &[&str]); 4] = [
        (&["c"], &["a"], &["c", "a"]),
        (&["c"], &[], &["c"]),
        (&[], &["a"], &["/entry", "a"]),
        (&[], &[], &["/entry", "cmd"]),
    ];
    for (command, args, expected) in cases {
        let mut f = fixture();
        f.container.command = command.iter().map(|s| (*s).to_owned()).collect();
        f.container.args = args.iter().map(|s| (*s).to_owned()).collect();
        assert_eq!(f.json()["process"]["args"], json!(expected));
    }
    let mut f = fixture();
    f.container.command.clear();
    f.container.args.clear();
    f.image = ImageProcess::default();
    assert_eq!(f.error(), "no command specified");
    f.container.command = vec!["a\0b".into()];
    assert!(f.error().contains("NUL"));
}

#[test]
fn the_request_overrides_variables_by_name() {
    let mut f = fixture();
    f.container.tty = true;
    f.container.envs =
        vec![("A".into(), "1".into()), ("A".into(), "2".into()), ("HOSTNAME".into(), "x".into())];
    assert_eq!(
        f.json()["process"]["env"],
        json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "A=2",
            "B=image",
            "HOSTNAME=x",
            "TERM=xterm"
        ])
    );
    f.image.env = vec!["PATH=/image".into()];
    assert_eq!(f.json()["process"]["env"][0], "PATH=/image");
    f.container.envs = vec![("A=B".into(), "1".into())];
    assert!(f.error().contains("A=B"));
    f.container.envs = vec![("A".into(), "secret\0".into())];
    assert!(f.error().contains("NUL") && !f.error().contains("secret"));
}

#[test]
fn the_working_directory_is_absolute_and_never_a_descriptor() {
    for (asked, expected) in [("", "/srv"), ("/a/../b", "/b"), ("rel", "/rel")] {
        let mut f = fixture();
        f.container.working_dir = asked.into();
        assert_eq!(f.json()["process"]["cwd"], expected);
    }
    let mut f = fixture();
    f.image.working_dir = "/proc/self/fd/7".into();
    assert!(f.error().contains("/proc/self/fd/7"));
    f.image.working_dir = String::new();
    assert_eq!(f.json()["process"]["cwd"], "/");
}

#[test]
fn capabilities_are_added_and_dropped_within_the_bounding_set() {
    let bounding = CapSet::ALL.without(Cap::SYS_RESOURCE);
    let of = |add: &[&str], drop: &[&str]| {
        let mut f = fixture();
        f.host.bounding = bounding;
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        f.container.security.capabilities =
            Capabilities { add: owned(add), drop: owned(drop), add_ambient: Vec::new() };
        f.spec().map(|_| strings(&f.json()["process"]["capabilities"]["effective"]))
    };
    assert_eq!(of(&["ALL"], &[]).unwrap().len(), 40);
    assert_eq!(of(&["all"], &["CAP_NET_RAW"]).unwrap().len(), 39);
    assert!(of(&[], &["ALL"]).unwrap().is_empty());
    assert_eq!(of(&["net_admin"], &["ALL"]).unwrap(), BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
    assert!(!of(&[], &["CHOWN"]).unwrap().contains("CAP_CHOWN"));
    assert!(of(&["NO_SUCH"], &[]).unwrap_err().to_string().contains("NO_SUCH"));
    assert!(of(&[], &["NO_SUCH"]).is_err());
    assert!(of(&["SYS_RESOURCE"], &[]).unwrap_err().to_string().contains("SYS_RESOURCE"));
}

#[test]
fn ambient_and_inheritable_hold_only_what_was_asked() {
    let mut f = fixture();
    assert_eq!(f.json()["process"]["capabilities"]["inheritable"], json!([]));
    assert_eq!(f.json()["process"]["capabilities"]["ambient"], json!([]));
    f.container.security.capabilities.add_ambient = vec!["NET_ADMIN".into()];
    let caps = &f.json()["process"]["capabilities"];
    assert_eq!(caps["ambient"], json!(["CAP_NET_ADMIN"]));
    assert!(strings(&caps["effective"]).contains("CAP_NET_ADMIN"));
}

#[test]
fn all_ambient_capabilities_are_all_that_can_be_given() {
    let mut f = fixture();
    f.host.bounding = CapSet::ALL.without(Cap::SYS_RESOURCE);
    f.container.security.capabilities.add_ambient = vec!["all".into()];
    let caps = &f.json()["process"]["capabilities"];
    assert_eq!(strings(&caps["ambient"]).len(), 40);
    assert_eq!(strings(&caps["ambient"]), strings(&caps["effective"]));
}

#[test]
fn what_cdi_adds_replaces_what_was_there() {
    use crate::host::cdi::{Edits, Hook, HookPoint};
    let mut f = fixture();
    f.mount("/host", "/opt/driver");
    let hook = |hook_name, timeout, env| Hook {
        hook_name,
        path: "/hook".into(),
        args: vec!["hook".into()],
        env,
        timeout,
    };
    f.cdi.env = vec!["A=cdi".into(), "NEW=1".into()];
    f.cdi.mounts = vec![cdi::Mount {
        host_path: "/driver".into(),
        container_path: "/opt/driver".into(),
        kind: None,
        options: vec!["ro".into()],
    }];
    f.cdi.hooks = vec![
        hook(HookPoint::CreateContainer, Some(5), Vec::new()),
        hook(HookPoint::Poststop, Some(0), vec!["OWN=1".into()]),
    ];
    f.cdi.additional_gids = vec![7, 0, 7];
    f.devices = vec![ResolvedDevice { owner: Owner { uid: None, gid: None }, ..device("/dev/a", 3) }];
    f.user.uid = 1000;
    let spec = f.json();
    let env = strings(&spec["process"]["env"]);
    assert!(env.contains("A=cdi") && env.contains("NEW=1") && !env.contains("A=cri"), "{env:?}");
    assert_eq!(f.options("/opt/driver").unwrap(), "ro,rbind");
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([0, 7]));
    // Without one of its own, a runtime would give a hook the environment of the container.
    let env = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let at_create = json!({"path": "/hook", "args": ["hook"], "env": env, "timeout": 5});
    assert_eq!(spec["hooks"]["createContainer"][0], at_create);
    let at_end = json!({"path": "/hook", "args": ["hook"], "env": ["OWN=1"]});
    assert_eq!(spec["hooks"]["poststop"][0], at_end);
    assert_eq!(spec["hooks"]["prestart"], Value::Null);
    assert_eq!(spec["linux"]["devices"][0]["uid"], 1000);
    f.cdi = Edits::default();
    assert_eq!(f.json()["hooks"], Value::Null);
}

fn device(path: &str, minor: u32) -> ResolvedDevice {
    ResolvedDevice {
        container_path: path.into(),
        kind: NodeKind::Char,
        major: 1,
        minor,
        mode: 0o666,
        owner: Owner { uid: Some(0), gid: Some(0) },
        permissions: "rw".into(),
    }
}

#[test]
fn privileged_hides_nothing_and_needs_a_privileged_pod() {
    let mut f = fixture();
    f.container.security.privileged = true;
    f.container.security.masked_paths = vec!["/proc/kcore".into()];
    f.container.security.readonly_paths = vec!["/proc/sys".into()];
    f.seccomp = Seccomp::RuntimeDefault;
    f.host_devices = vec![device("/dev/kmsg", 11)];
    f.host.bounding = CapSet::ALL.without(Cap::SYS_RESOURCE);
    assert!(f.error().contains("no privileged container allowed"));
    f.sandbox.security.privileged = true;
    let spec = f.json();
    let linux = &spec["linux"];
    assert_eq!((&linux["maskedPaths"], &linux["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(linux["seccomp"], Value::Null);
    assert_eq!(linux["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
    assert_eq!(linux["devices"][0]["path"], "/dev/kmsg");
    assert_eq!(strings(&spec["process"]["capabilities"]["bounding"]).len(), 40);
    assert_eq!(f.options("/sys").unwrap(), "nosuid,noexec,nodev,rw");
    // Without a cgroup namespace the mount must not reset the host's options.
    let cgroup = f.options("/sys/fs/cgroup").unwrap();
    assert_eq!(cgroup, "nosuid,noexec,nodev,relatime,rw,nsdelegate,memory_recursiveprot");
}

#[test]
fn hidden_paths_are_exactly_those_sent() {
    let mut f = fixture();
    assert_eq!((&f.json()["linux"]["maskedPaths"]), &json!([]));
    f.container.security.masked_paths = vec!["/proc/kcore".into()];
    f.container.security.readonly_paths = vec!["/proc/sys".into()];
    let linux = &f.json()["linux"];
    assert_eq!(linux["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(linux["readonlyPaths"], json!(["/proc/sys"]));
}

#[test]
fn devices_come_with_their_cgroup_rule() {
    let mut f = fixture();
    f.devices = vec![device("/dev/x", 5)];
    let linux = &f.json()["linux"];
    assert_eq!(
        linux["resources"]["devices"],
        json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw" }
        ])
    );
    assert_eq!(
        (&linux["devices"][0]["path"], &linux["devices"][0]["fileMode"]),
        (&json!("/dev/x"), &json!(0o666))
    );
}

fn namespaces(f: &super::fixture::Fixture) -> Vec<(String, String)> {
    let spec = f.json();
    let list = spec["linux"]["namespaces"].as_array().unwrap().clone();
    list.iter()
        .map(|ns| (ns["type"].as_str().unwrap().to_owned(), ns["path"].as_str().unwrap_or("").to_owned()))
        .collect()
}

#[test]
fn pid_namespaces_follow_the_mode() {
    let with = |mode| {
        let mut f = fixture();
        f.container.security.namespaces.pid = mode;
        f
    };
    let pid = |f: &super::fixture::Fixture| namespaces(f).into_iter().find(|(kind, _)| kind == "pid");
    assert_eq!(pid(&with(NamespaceMode::Container)), Some(("pid".into(), String::new())));
    assert_eq!(pid(&with(NamespaceMode::Node)), None);
    let mut f = with(NamespaceMode::Pod);
    assert!(f.error().contains("pid"));
    f.namespaces.pid = Some("/ns/pid".into());
    assert_eq!(pid(&f), Some(("pid".into(), "/ns/pid".into())));
    let mut f = with(NamespaceMode::Target(ContainerId::random().unwrap()));
    f.namespaces.pid = Some("/ns/pid".into());
    assert!(f.error().contains("pid"));
    f.namespaces.target_pid = Some("/proc/7/ns/pid".into());
    assert_eq!(pid(&f), Some(("pid".into(), "/proc/7/ns/pid".into())));
}

#[test]
fn host_namespaces_are_joined_only_where_asked() {
    let mut f = fixture();
    f.namespaces.network = None;
    assert!(f.error().contains("network"));
    f.sandbox.namespaces.network = NamespaceMode::Node;
    f.namespaces.uts = None;
    f.sandbox.namespaces.ipc = NamespaceMode::Node;
    f.namespaces.ipc = None;
    let kinds: Vec<_> = namespaces(&f).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["mount", "pid", "cgroup"]);
    f.host.cgroups = CgroupMode::Hybrid;
    assert_eq!(namespaces(&f).len(), 2);
}

#[test]
fn a_requested_mount_replaces_a_default_at_its_path() {
    let mut f = fixture();
    f.mount("/h/hosts", "/etc/hosts").readonly = true;
    f.mount("/h/shm", "/dev//shm/");
    assert_eq!(f.options("/etc/hosts").unwrap(), "rbind,rprivate,ro");
    assert_eq!(f.options("/dev/shm").unwrap(), "rbind,rprivate,rw");
    assert!(f.options("/etc/resolv.conf").is_some());
    f.mount("/dev", "/dev");
    assert_eq!((f.options("/dev/pts"), f.options("/dev/mqueue")), (None, None));
}

#[test]
fn mounts_are_sorted_by_depth_and_checked() {
    let mut f = fixture();
    f.mount("/h/deep", "/a/b/c");
    f.mount("/h/top", "/a");
    let spec = f.spec().unwrap();
    let depths: Vec<usize> =
        spec.mounts().iter().flatten().map(|m| m.destination().components().count()).collect();
    assert!(depths.is_sorted());
    for bad in ["rel", "/a/../b", "/"] {
        let mut f = fixture();
        f.mount("/h", bad);
        assert!(f.error().contains("mount at"), "{bad}");
    }
    f.mount("/h/again", "/a/");
    assert!(f.error().contains("two mounts at /a"));
    let mut f = fixture();
    f.mount("/h", "/x").options = vec!["noexec".into(), "nosuid".into()];
    assert_eq!(f.options("/x").unwrap(), "rbind,rprivate,rw,noexec,nosuid");
    f.container.mounts[0].options = vec!["suid".into()];
    assert!(f.error().contains("suid"));
    f.container.mounts[0].options.clear();
    f.sources.clear();
    assert!(f.error().contains("not resolved"));
}

#[test]
fn propagation_needs_a_shared_or_slave_source() {
    let cases = [
        ("/plain", Propagation::Private, Some((None, "rprivate"))),
        ("/shared/x", Propagation::Bidirectional, Some((Some("rshared"), "rshared"))),
        ("/shared/x", Propagation::HostToContainer, Some((Some("rslave"), "rslave"))),
        ("/slave/x", Propagation::HostToContainer, Some((Some("rslave"), "rslave"))),
        ("/slave/x", Propagation::Bidirectional, None),
        ("/plain", Propagation::HostToContainer, None),
        ("/plain", Propagation::Bidirectional, None),
    ];
    for (source, propagation, expected) in cases {
        let mut f = fixture();
        f.mount(source, "/m").propagation = propagation;
        let found = f.spec().ok().map(|spec| {
            let root = spec.linux().as_ref().unwrap().rootfs_propagation().clone();
            (root, f.options("/m").unwrap())
        });
        let expected = expected.map(|(root, own)| (root.map(str::to_owned), format!("rbind,{own},rw")));
        assert_eq!(found, expected, "{source} {propagation:?}");
    }
    let mut f = fixture();
    f.mount("/shared/a", "/a").propagation = Propagation::Bidirectional;
    f.mount("/shared/b", "/b").propagation = Propagation::HostToContainer;
    assert_eq!(f.json()["linux"]["rootfsPropagation"], "rshared");
    // A runtime with only the specification's names; those of mounts are options, and the same everywhere.
    f.host.plain_propagation = true;
    assert_eq!(f.json()["linux"]["rootfsPropagation"], "shared");
    assert_eq!(f.options("/b").unwrap(), "rbind,rslave,rw");
    f.container.mounts.retain(|mount| mount.propagation != Propagation::Bidirectional);
    assert_eq!(f.json()["linux"]["rootfsPropagation"], "slave");
}

#[test]
fn recursive_read_only_is_exact_or_refused() {
    let mut f = fixture();
    let mount = f.mount("/shared/x", "/m");
    (mount.readonly, mount.recursive_read_only) = (true, true);
    assert_eq!(f.options("/m").unwrap(), "rbind,rprivate,rro");
    f.host.recursive_read_only = false;
    assert!(f.error().starts_with("RROUnsupported"));
    f.host.recursive_read_only = true;
    f.container.mounts[0].propagation = Propagation::HostToContainer;
    assert!(f.error().starts_with("RROUnsupported"));
    f.container.mounts[0].propagation = Propagation::Private;
    f.container.mounts[0].readonly = false;
    assert!(f.error().starts_with("RROUnsupported"));
}

#[test]
fn a_read_only_root_has_read_only_pod_files() {
    let mut f = fixture();
    f.container.security.readonly_rootfs = true;
    assert_eq!(f.json()["root"]["readonly"], true);
    assert_eq!(f.options("/etc/hostname").unwrap(), "rbind,rprivate,ro,nosuid,nodev,noexec");
}

#[test]
fn limits_are_translated() {
    let mut f = fixture();
    let r = &mut f.container.resources;
    (r.cpu_shares, r.cpu_quota, r.cpu_period) = (512, -1, 100_000);
    (r.memory_limit, r.cpuset_cpus) = (1 << 20, "0-1".into());
    r.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 1 << 21 }];
    r.unified.insert("memory.oom.group".into(), "1".into());
    f.config.pids_limit = 9;
    let resources = f.json()["linux"]["resources"].clone();
    assert_eq!(resources["cpu"], json!({ "shares": 512, "quota": -1, "period": 100_000, "cpus": "0-1" }));
    assert_eq!(resources["memory"], json!({ "limit": 1 << 20, "swap": 1 << 20 }));
    assert_eq!(resources["pids"], json!({ "limit": 9 }));
    assert_eq!(resources["hugepageLimits"], json!([{ "pageSize": "2MB", "limit": 1 << 21 }]));
    assert_eq!(resources["unified"], json!({ "memory.oom.group": "1" }));

    f.host.swap = false;
    f.host.hugetlb = false;
    let resources = f.json()["linux"]["resources"].clone();
    assert_eq!(resources["memory"], json!({ "limit": 1 << 20 }));
    assert_eq!(resources["hugepageLimits"], Value::Null);
    f.host.cgroups = CgroupMode::V1;
    assert!(f.error().contains("needs cgroup v2"));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let refused = |bend: &dyn Fn(&mut crate::model::Resources)| {
        let mut f = fixture();
        bend(&mut f.container.resources);
        f.error()
    };
    assert!(refused(&|r| r.memory_limit = -1).contains("memory_limit_in_bytes"));
    assert!(refused(&|r| (r.memory_limit, r.memory_swap_limit) = (100, 99)).contains("memory_swap_limit"));
    assert!(refused(&|r| r.cpu_shares = -2).contains("cpu_shares"));
    assert!(refused(&|r| r.oom_score_adj = 1001).contains("oom_score_adj"));
    for key in ["../memory.max", "", "memory", "nonsense.max", "cgroup.procs", "io.max"] {
        let error = refused(&|r| drop(r.unified.insert(key.into(), "1".into())));
        assert!(error.contains("unified"), "{key}: {error}");
    }
    for period in [-1, 999, 1_000_001] {
        assert!(refused(&|r| r.cpu_period = period).contains("cpu_period"));
    }
    assert!(refused(&|r| r.cpu_quota = 999).contains("cpu_quota"));
    for shares in [1, 262_145] {
        assert!(refused(&|r| r.cpu_shares = shares).contains("cpu_shares"));
    }
    assert!(refused(&|r| r.memory_swap_limit = 5).contains("needs memory_limit_in_bytes"));
    assert!(refused(&|r| r.memory_swap_limit = -2).contains("memory_swap_limit_in_bytes"));
    for list in ["a", "1-", "2-1", "1,,2", "-1", "0;1"] {
        assert!(refused(&|r| r.cpuset_cpus = list.into()).contains("cpuset_cpus"), "{list}");
        assert!(refused(&|r| r.cpuset_mems = list.into()).contains("cpuset_mems"), "{list}");
    }
    let pages = |sizes: &[&str]| {
        sizes.iter().map(|s| HugepageLimit { page_size: (*s).into(), limit: 0 }).collect::<Vec<_>>()
    };
    let error = refused(&|r| r.hugepage_limits = pages(&["64KB"]));
    assert!(error.contains("hugepage_limits") && error.contains("known: 2MB, 1GB"), "{error}");
    assert!(refused(&|r| r.hugepage_limits = pages(&["2MB", "2MB"])).contains("twice"));
}

#[test]
fn limits_at_the_edge_are_accepted() {
    let mut f = fixture();
    let r = &mut f.container.resources;
    (r.cpu_period, r.cpu_quota, r.cpu_shares) = (1_000_000, 1_000, 262_144);
    (r.memory_limit, r.memory_swap_limit) = (1 << 20, 1 << 20);
    (r.cpuset_cpus, r.cpuset_mems) = ("0-2,7,9".into(), "0".into());
    r.unified.insert("pids.max".into(), "7".into());
    f.json();
    f.container.resources.memory_swap_limit = -1;
    assert_eq!(f.json()["linux"]["resources"]["memory"], json!({ "limit": 1 << 20, "swap": -1 }));
}

#[test]
fn oom_score_adj_does_not_go_below_the_floor() {
    for (asked, floor, given) in [(-997, -1000, -997), (-997, 0, 0), (500, 0, 500)] {
        let mut f = fixture();
        f.container.resources.oom_score_adj = asked;
        f.host.oom_score_adj_floor = floor;
        assert_eq!(f.json()["process"]["oomScoreAdj"], given);
    }
}

#[test]
fn only_known_annotations_reach_the_runtime() {
    let mut f = fixture();
    for name in [
        "io.kubernetes.container.hash",
        "org.systemd.property.ExecStart",
        "run.oci.hooks",
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.cri-o.SandboxID",
        "vendor.example/ok",
        "vendor.example/exactly",
    ] {
        f.container.annotations.insert(name.into(), "evil".into());
        f.sandbox.annotations.insert(name.into(), "of the pod".into());
    }
    f.sandbox.log_directory = Some("/var/log/pods/x".into());
    f.handler.container_annotations = vec!["vendor.example/ok*".into()];
    f.handler.pod_annotations = vec!["vendor.example/exactly".into(), "vendor.example/ok".into()];
    let found = f.json()["annotations"].clone();
    assert_eq!(found["io.kubernetes.cri.sandbox-id"], "a".repeat(64));
    assert_eq!(found["io.kubernetes.cri.container-type"], "container");
    assert_eq!(found["io.kubernetes.cri-o.SandboxID"], "a".repeat(64));
    assert_eq!(found["io.kubernetes.cri.sandbox-log-directory"], "/var/log/pods/x");
    assert_eq!(found["vendor.example/ok"], "evil");
    assert_eq!(found["vendor.example/exactly"], "of the pod");
    assert_eq!(found["org.systemd.property.ExecStart"], Value::Null);
    assert_eq!(found["run.oci.hooks"], Value::Null);
    assert_eq!(found.as_object().unwrap().len(), 17);
}

#[test]
fn limits_of_processes_and_classes_are_as_configured() {
    let mut f = fixture();
    assert_eq!(f.json()["process"]["rlimits"], Value::Null);
    f.config.default_ulimits = vec!["nofile=1024:4096".into(), "memlock=unlimited".into()];
    let mut block_io = LinuxBlockIo::default();
    block_io.set_weight(Some(80));
    (f.block_io, f.rdt_class) = (Some(block_io), Some("gold".into()));
    let spec = f.json();
    assert_eq!(
        spec["process"]["rlimits"],
        json!([
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
            {"type": "RLIMIT_MEMLOCK", "soft": u64::MAX, "hard": u64::MAX}
        ])
    );
    assert_eq!(spec["linux"]["resources"]["blockIO"]["weight"], 80);
    assert_eq!(spec["linux"]["intelRdt"]["closID"], "gold");
    f.config.default_ulimits = vec!["files=1".into()];
    assert!(f.error().contains("files"));
}

#[test]
fn apparmor_is_never_dropped_in_silence() {
    let mut f = fixture();
    assert_eq!(f.json()["process"]["apparmorProfile"], Value::Null);
    for profile in [Profile::RuntimeDefault, Profile::Localhost("p".into())] {
        f.container.security.apparmor = Some(profile);
        assert!(f.error().contains("AppArmor"));
    }
    f.container.security.apparmor = Some(Profile::Unconfined);
    assert_eq!(f.json()["process"]["apparmorProfile"], Value::Null);
    f.host.apparmor = true;
    assert_eq!(f.json()["process"]["apparmorProfile"], "unconfined");
    f.container.security.apparmor = Some(Profile::Localhost("localhost/p".into()));
    assert_eq!(f.json()["process"]["apparmorProfile"], "p");
    f.host.apparmor_default = Some("d".into());
    for asked in [None, Some(Profile::RuntimeDefault)] {
        f.container.security.apparmor = asked;
        assert_eq!(f.json()["process"]["apparmorProfile"], "d");
    }
}

#[test]
fn selinux_labels_are_filled_up() {
    let mut f = fixture();
    let level = SelinuxOptions { level: "s0:c1,c2".into(), ..SelinuxOptions::default() };
    f.container.security.selinux = Some(level);
    assert_eq!(f.json()["process"]["selinuxLabel"], Value::Null);
    let label = |text| Label::parse(text).unwrap();
    f.host.selinux = Some(Arc::new(Contexts {
        process: label("system_u:system_r:container_t:s0"),
        unconfined: None,
        file: label("system_u:object_r:container_file_t:s0"),
    }));
    let spec = f.json();
    assert_eq!(spec["process"]["selinuxLabel"], "system_u:system_r:container_t:s0:c1,c2");
    assert_eq!(spec["linux"]["mountLabel"], "system_u:object_r:container_file_t:s0:c1,c2");
}

/// Ends the process that holds the pod's namespaces.
struct Holder(std::process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bundle that runs with runc: busybox as the root, namespaces of a sleeping process, facts of this host.
#[test]
fn a_built_spec_runs_with_runc() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    std::fs::create_dir_all(rootfs.join("etc")).unwrap();
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
    std::fs::create_dir(dir.path().join("shm")).unwrap();
    for name in ["hostname", "hosts", "resolv.conf"] {
        std::fs::write(dir.path().join(name), format!("pod-{name}\n")).unwrap();
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--ipc", "--uts", "sh", "-c", "hostname host-a; echo ready; read end"]);
    let holder = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut holder = Holder(holder);
    let mut line = String::new();
    let stdout = holder.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let ns = |kind: &str| Some(PathBuf::from(format!("/proc/{}/ns/{kind}", holder.0.id())));

    let mut f = fixture();
    let security = crate::host::security::HostSecurity::detect().unwrap();
    let cgroups = crate::host::cgroups::Cgroups::detect().unwrap();
    let id = ContainerId::random().unwrap();
    let leaf = crate::host::cgroups::leaf("/podwright-spec-test", &id).unwrap();
    f.host.bounding = security.bounding;
    f.host.oom_score_adj_floor = security.oom_score_adj_floor;
    f.host.cgroups = cgroups.mode();
    f.host.swap = cgroups.accounts_swap();
    f.host.hugetlb = cgroups.has_controller("hugetlb");
    f.mounts = crate::host::mountinfo::read().unwrap();
    f.namespaces = PodNamespaces { network: ns("net"), ipc: ns("ipc"), uts: ns("uts"), ..Default::default() };
    let at = |name: &str| dir.path().join(name);
    f.files = PodFiles {
        hostname: Some(at("hostname")),
        hosts: Some(at("hosts")),
        resolv_conf: Some(at("resolv.conf")),
        shm: at("shm"),
    };
    f.rootfs = rootfs;
    f.cgroup = leaf.path().to_owned();
    f.image.working_dir = "/work/dir".into();
    f.user = User { uid: 1000, gid: 5, additional_gids: vec![5, 7], home: "/".into(), username: None };
    f.seccomp = Seccomp::RuntimeDefault;
    f.devices = vec![device("/dev/extra", 5)];
    let r = &mut f.container.resources;
    (r.memory_limit, r.cpu_shares, r.cpu_quota, r.cpu_period) = (64 << 20, 512, 50_000, 100_000);
    r.oom_score_adj = 100;
    f.container.security.no_new_privs = true;
    f.container.security.masked_paths = vec!["/proc/kcore".into()];
    f.container.security.readonly_paths = vec!["/proc/sys".into()];
    let volume = f.mount(dir.path().to_str().unwrap(), "/data");
    (volume.readonly, volume.options) = (true, vec!["noexec".into()]);
    let script = "b=/bin/busybox; $b id -u; $b id -G; $b pwd; $b hostname; echo $A $B $HOSTNAME; $b cat /etc/hosts; \
        $b cat /proc/self/oom_score_adj; $b grep -E 'Seccomp:|NoNewPrivs|CapEff|CapAmb' /proc/self/status; \
        $b head -c 1 /dev/extra | $b wc -c; $b ls /data/hosts; $b touch /data/x 2>&1; \
        $b unshare -U true 2>&1 || echo no-userns; $b mount -t tmpfs x /data 2>&1 || echo no-mount; exit 3";
    f.container.command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    f.container.args.clear();
    serde_json::to_writer(std::fs::File::create(at("config.json")).unwrap(), &f.spec().unwrap()).unwrap();

    let root = at("runc-root");
    let output = Command::new("runc")
        .args([
            "--root",
            root.to_str().unwrap(),
            "run",
            "--bundle",
            dir.path().to_str().unwrap(),
            id.as_str(),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    cgroups.remove(&crate::host::offload::here(), &leaf).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{all}");
    assert!(text.starts_with("1000\n5 7\n/work/dir\nhost-a\ncri image host-a\npod-hosts\n100\n"), "{all}");
    for expected in
        ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "/data/hosts", "Read-only file system"]
    {
        assert!(text.contains(expected), "{expected} in {all}");
    }
    assert!(text.contains("no-userns") && text.contains("no-mount"), "{all}");
    for dir in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let _ = std::fs::remove_dir(dir.unwrap().path().join("podwright-spec-test"));
    }
}

#[test]
fn as_many_variables_as_a_process_may_have_make_a_spec_and_more_are_refused_soon() {
    let mut f = fixture();
    // As many searches among as many entries took minutes.
    let begun = std::time::Instant::now();
    f.image.env = (0..100_000).map(|n| format!("V{n}=")).collect();
    assert!(strings(&f.json()["process"]["env"]).len() > 100_000);
    f.image.env = (0..300_000).map(|n| format!("V{n}=")).collect();
    assert!(f.error().contains("config.envs"), "{}", f.error());
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn what_an_image_lends_as_a_volume_has_no_devices_and_no_rights() {
    use crate::model::{ImageVolume, MountSource};
    let mut f = fixture();
    let volume = ImageVolume {
        image: "docker.io/library/model:1".into(),
        user_specified: String::new(),
        sub_path: String::new(),
        resolved: None,
    };
    let mount = f.mount("/bundle/volumes/0", "/model");
    mount.source = MountSource::Image(Box::new(volume));
    mount.readonly = true;
    assert_eq!(f.options("/model").as_deref(), Some("rbind,rprivate,ro,nodev,nosuid"));
    f.container.mounts[0].options = vec!["noexec".into(), "nosuid".into()];
    assert_eq!(f.options("/model").as_deref(), Some("rbind,rprivate,ro,noexec,nosuid,nodev"));
    // A directory of the host is as the host made it.
    f.mount("/host", "/dir");
    assert_eq!(f.options("/dir").as_deref(), Some("rbind,rprivate,rw"));
}
