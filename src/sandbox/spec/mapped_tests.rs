//! Containers of pods with a user namespace of their own.

use super::fixture::{Fixture, fixture};
use super::*;
use crate::host::mountinfo;
use crate::model::{NamespaceMode, Propagation, UserNamespace};
use serde_json::json;

fn mapped(length: u32) -> Fixture {
    let mut f = fixture();
    let range = vec![IdMapping { host_id: 100_000, container_id: 0, length }];
    f.sandbox.namespaces.user = Some(UserNamespace { uids: range.clone(), gids: range });
    f.container.security.namespaces.user = f.sandbox.namespaces.user.clone();
    f.namespaces.user = Some("/proc/7/fd/3".into());
    f
}

#[test]
fn the_pods_user_namespace_is_joined_and_told() {
    let f = mapped(65_536);
    let linux = f.json()["linux"].clone();
    let user =
        linux["namespaces"].as_array().unwrap().iter().find(|ns| ns["type"] == "user").unwrap().clone();
    assert_eq!(user["path"], "/proc/7/fd/3");
    let range = json!([{ "hostID": 100_000, "containerID": 0, "size": 65_536 }]);
    assert_eq!((&linux["uidMappings"], &linux["gidMappings"]), (&range, &range));
    let mut f = mapped(65_536);
    // Never the host's in its stead.
    f.namespaces.user = None;
    assert!(f.error().contains("user namespace"), "{}", f.error());
}

#[test]
fn ids_that_no_process_could_have_are_named() {
    let mut f = mapped(10);
    f.user.uid = 10;
    assert!(f.error().contains("user 10 is not mapped"), "{}", f.error());
    f.user.uid = 9;
    f.user.additional_gids = vec![0, 50];
    assert!(f.error().contains("group 50 is not mapped"), "{}", f.error());
    f.user.additional_gids = vec![9];
    assert!(f.spec().is_ok());
    assert!(f.options("/dev/pts").unwrap().contains("gid=5"));
    // Nobody is in the group of terminals there.
    f = mapped(1);
    assert!(!f.options("/dev/pts").unwrap().contains("gid=5"));
}

#[test]
fn flags_that_the_kernel_has_locked_are_kept() {
    let mut f = mapped(65_536);
    f.mounts = mountinfo::parse(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
         2 1 0:2 / /run rw,nosuid,nodev,relatime shared:1 - tmpfs tmpfs rw\n\
         3 1 0:3 / /cd ro,relatime shared:2 - iso9660 /dev/sr0 ro\n",
    );
    f.files.hosts = Some("/run/pod/hosts".into());
    f.mount("/run/token", "/token").readonly = true;
    f.mount("/cd/data", "/data");
    f.mount("/srv/data", "/plain");
    let with = |path: &str| f.options(path).unwrap();
    assert_eq!(with("/token"), "rbind,rprivate,ro,nosuid,nodev");
    assert_eq!(with("/etc/hosts"), "rbind,rprivate,rw,nosuid,nodev,noexec");
    assert_eq!(with("/data"), "rbind,rprivate,ro");
    assert_eq!(with("/plain"), "rbind,rprivate,rw");
    f.sandbox.namespaces.user = None;
    assert_eq!(f.options("/token").unwrap(), "rbind,rprivate,ro,nosuid,nodev");
    assert_eq!(f.options("/data").unwrap(), "rbind,rprivate,ro");
}

#[test]
fn on_the_hosts_network_the_hosts_sysfs_is_bound_read_only() {
    let mut f = mapped(65_536);
    assert_eq!(f.options("/sys").unwrap(), "nosuid,noexec,nodev,ro");
    f.sandbox.namespaces.network = NamespaceMode::Node;
    f.namespaces.network = None;
    f.namespaces.uts = None;
    assert_eq!(f.options("/sys").unwrap(), "rbind,rprivate,nosuid,noexec,nodev,rro");
}

#[test]
fn mounts_that_should_reach_the_host_are_refused_and_mappings_are_not_the_runtimes() {
    let mut f = mapped(65_536);
    let mount = f.mount("/shared/data", "/data");
    mount.uid_mappings = vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    mount.gid_mappings = mount.uid_mappings.clone();
    let spec = f.json();
    let made =
        spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/data").unwrap().clone();
    assert_eq!(made.get("uidMappings"), None, "{made}");
    f.container.mounts[0].propagation = Propagation::HostToContainer;
    assert_eq!(f.options("/data").unwrap(), "rbind,rslave,rw");
    f.container.mounts[0].propagation = Propagation::Bidirectional;
    assert!(f.error().contains("BIDIRECTIONAL"), "{}", f.error());
}
