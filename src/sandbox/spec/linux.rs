//! Namespaces, devices, seccomp, hidden paths.

use super::capabilities::ContainerCapabilities;
use super::{Inputs, Seccomp, SpecError};
use crate::host::cgroups::CgroupMode;
use crate::host::devices::{NodeKind, ResolvedDevice};
use crate::host::security::seccomp::{SeccompArch, default_profile};
use crate::host::users::User;
use crate::model::{IdMapping, NamespaceMode};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxIntelRdt, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType,
};
use std::path::{Path, PathBuf};

pub(super) fn build(
    inputs: &Inputs<'_>,
    capabilities: &ContainerCapabilities,
    propagation: Option<&'static str>,
) -> Result<Linux, SpecError> {
    let security = &inputs.container.security;
    let mut resources = inputs.judged.resources.clone();
    let devices = devices(inputs);
    let devices = devices.as_slice();
    resources.set_devices(Some(device_rules(inputs.host_devices.is_some(), devices)?));
    resources.set_block_io(inputs.block_io.cloned());
    let hidden = |paths: &[PathBuf]| -> Vec<String> {
        if security.privileged {
            return Vec::new();
        }
        paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(inputs)?)
        .devices(devices.iter().map(|d| device(d, inputs.user)).collect::<Result<Vec<_>, _>>()?)
        .resources(resources)
        .cgroups_path(inputs.cgroup)
        .masked_paths(hidden(&security.masked_paths))
        .readonly_paths(hidden(&security.readonly_paths))
        .build()?;
    let seccomp = match &inputs.seccomp {
        _ if security.privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => Some(default_profile(capabilities.given, SeccompArch::native())),
        Seccomp::Profile(profile) => Some(profile.for_container(capabilities.given)),
    };
    let (uids, gids) = match &inputs.sandbox.namespaces.user {
        Some(user) => (Some(mappings(&user.uids)?), Some(mappings(&user.gids)?)),
        None => (None, None),
    };
    linux
        .set_seccomp(seccomp)
        .set_rootfs_propagation(propagation.map(str::to_owned))
        .set_uid_mappings(uids)
        .set_gid_mappings(gids)
        .set_intel_rdt(inputs.rdt_class.map(rdt))
        .set_mount_label(inputs.selinux().map(|labels| labels.mount.to_string()));
    Ok(linux)
}

fn rdt(class: &str) -> LinuxIntelRdt {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(Some(class.to_owned()));
    rdt
}

/// Whether the container gets a cgroup namespace of its own: on v2, unless privileged.
pub(super) fn has_cgroup_namespace(inputs: &Inputs<'_>) -> bool {
    inputs.host.cgroups == CgroupMode::V2 && !inputs.container.security.privileged
}

fn namespaces(inputs: &Inputs<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    use LinuxNamespaceType as Kind;
    let (asked, pod) = (&inputs.container.security.namespaces, inputs.namespaces);
    let mut all = vec![namespace(Kind::Mount, None)?];
    let network = pod_or_node(&inputs.sandbox.namespaces.network, pod.network.as_deref(), "network")?;
    if let Some(path) = network {
        all.push(namespace(Kind::Network, Some(path))?);
    }
    // A pod on the host's network keeps the host's name.
    if let Some(path) = pod.uts.as_deref() {
        all.push(namespace(Kind::Uts, Some(path))?);
    } else if network.is_some() {
        return Err(SpecError::MissingNamespace { kind: "uts" });
    }
    if let Some(path) = pod_or_node(&inputs.sandbox.namespaces.ipc, pod.ipc.as_deref(), "ipc")? {
        all.push(namespace(Kind::Ipc, Some(path))?);
    }
    let missing = SpecError::MissingNamespace { kind: "pid" };
    match &asked.pid {
        NamespaceMode::Container => all.push(namespace(Kind::Pid, None)?),
        NamespaceMode::Node => {}
        NamespaceMode::Pod => all.push(namespace(Kind::Pid, Some(pod.pid.as_deref().ok_or(missing)?))?),
        NamespaceMode::Target(_) => {
            all.push(namespace(Kind::Pid, Some(pod.target_pid.as_deref().ok_or(missing)?))?);
        }
    }
    if has_cgroup_namespace(inputs) {
        all.push(namespace(Kind::Cgroup, None)?);
    }
    if inputs.sandbox.namespaces.user.is_some() {
        let path = pod.user.as_deref().ok_or(SpecError::MissingNamespace { kind: "user" })?;
        all.push(namespace(Kind::User, Some(path))?);
    }
    Ok(all)
}

/// None for the host's namespace; an error if the pod's own is missing, never the host's instead.
fn pod_or_node<'a>(
    mode: &NamespaceMode,
    path: Option<&'a Path>,
    kind: &'static str,
) -> Result<Option<&'a Path>, SpecError> {
    match mode {
        NamespaceMode::Node => Ok(None),
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Target(_) => {
            path.map(Some).ok_or(SpecError::MissingNamespace { kind })
        }
    }
}

fn namespace(kind: LinuxNamespaceType, path: Option<&Path>) -> Result<LinuxNamespace, OciSpecError> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path).build(),
        None => builder.build(),
    }
}

fn mappings(ranges: &[IdMapping]) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    ranges
        .iter()
        .map(|range| {
            LinuxIdMappingBuilder::default()
                .host_id(range.host_id)
                .container_id(range.container_id)
                .size(range.length)
                .build()
        })
        .collect()
}

fn kind(device: &ResolvedDevice) -> LinuxDeviceType {
    match device.kind {
        NodeKind::Char => LinuxDeviceType::C,
        NodeKind::Block => LinuxDeviceType::B,
    }
}

/// The requested devices, and the host's if the container gets them.
fn devices(inputs: &Inputs<'_>) -> Vec<ResolvedDevice> {
    let host = inputs.host_devices.unwrap_or_default();
    let asked = |path: &Path| inputs.devices.iter().any(|device| device.container_path == path);
    host.iter().filter(|device| !asked(&device.container_path)).chain(inputs.devices).cloned().collect()
}

fn device(device: &ResolvedDevice, user: &User) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(&device.container_path)
        .typ(kind(device))
        .major(device.major)
        .minor(device.minor)
        .file_mode(device.mode)
        .uid(device.owner.uid.unwrap_or(user.uid))
        .gid(device.owner.gid.unwrap_or(user.gid))
        .build()
}

/// Nothing, then the requested ones; the OCI runtime adds its default devices. With the host's: everything.
fn device_rules(
    all_of_host: bool,
    devices: &[ResolvedDevice],
) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let everything = |allow| LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm").build();
    if all_of_host {
        return Ok(vec![everything(true)?]);
    }
    let mut rules = vec![everything(false)?];
    for device in devices {
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(kind(device))
                .major(device.major)
                .minor(device.minor)
                .access(&device.permissions)
                .build()?,
        );
    }
    Ok(rules)
}
