//! The format of a CDI specification (CDI 1.1.0), JSON or YAML, and what makes one valid.
//!
//! Owns parsing and checks. Never looks for files, never touches a device.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// To the kernel it means that an id stays as it is.
const NO_ID: u32 = u32::MAX;

/// One specification file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Specification {
    pub(super) cdi_version: String,
    /// `vendor/class`.
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For every container that gets one of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a device changes in a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Host files and directories.
    pub mounts: Vec<Mount>,
    /// Programs that the OCI runtime runs.
    pub hooks: Vec<Hook>,
    /// Groups of the process.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    /// Network interfaces to move into the pod. Not supported.
    pub(super) net_devices: Vec<serde_json::Value>,
    /// A class of cache and memory bandwidth. Not supported.
    pub(super) intel_rdt: Option<serde_json::Value>,
}

/// A device node. What is absent is that of the host's node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host; absent: `path`.
    pub host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Subset of `rwm`; absent: all.
    pub permissions: Option<String>,
    /// Owner; absent: who the container runs as.
    pub uid: Option<u32>,
    /// Group; absent: that of whom the container runs as.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// File system type; absent: a bind mount.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Options as mount(8) has them.
    pub options: Vec<String>,
}

/// A program that the OCI runtime runs at one point of the container's life.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    /// Which point.
    pub hook_name: HookPoint,
    /// The program, absolute.
    pub path: PathBuf,
    /// argv, the name first.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// When a hook runs, by the OCI runtime specification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookPoint {
    /// Superseded, but what older specifications have.
    #[default]
    Prestart,
    /// In the runtime's namespaces, once those of the container are there.
    CreateRuntime,
    /// In the container's namespaces, before its root is.
    CreateContainer,
    /// In the container, before its process starts.
    StartContainer,
    /// After the process has started.
    Poststart,
    /// After the container is deleted.
    Poststop,
}

/// Parses and checks a file; the error is for people.
pub(super) fn parse(path: &Path, text: &str) -> Result<Specification, String> {
    let specification: Specification = if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        serde_saphyr::from_str(text).map_err(|e| e.to_string())?
    };
    check(&specification)?;
    Ok(specification)
}

fn check(specification: &Specification) -> Result<(), String> {
    let version = &specification.cdi_version;
    if !matches!(version.split('.').next(), Some("0" | "1")) {
        return Err(format!("cdiVersion {version:?} is not 0.x or 1.x"));
    }
    let kind = &specification.kind;
    match kind.split_once('/') {
        Some((vendor, class)) if is_vendor(vendor) && is_class(class) => {}
        _ => return Err(format!("kind {kind:?} is not vendor/class")),
    }
    if specification.devices.is_empty() {
        return Err("it has no device".to_owned());
    }
    check_edits(&specification.container_edits)?;
    let mut names = BTreeSet::new();
    for device in &specification.devices {
        if !is_device(&device.name) {
            return Err(format!("{:?} is no device name", device.name));
        }
        if !names.insert(device.name.as_str()) {
            return Err(format!("device {:?} is there twice", device.name));
        }
        check_edits(&device.container_edits).map_err(|e| format!("device {:?}: {e}", device.name))?;
    }
    Ok(())
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    let variable = |entry: &String| {
        entry.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !entry.contains('\0')
    };
    if let Some(entry) = edits.env.iter().find(|entry| !variable(entry)) {
        return Err(format!("env {entry:?} is not NAME=value"));
    }
    if edits.additional_gids.contains(&NO_ID) {
        return Err(format!("additionalGids has {NO_ID}, which is no group"));
    }
    for node in &edits.device_nodes {
        let path = node.path.display();
        if node.uid == Some(NO_ID) || node.gid == Some(NO_ID) {
            return Err(format!("device node {path}: {NO_ID} is no user or group"));
        }
        if !node.path.is_absolute() || node.host_path.as_ref().is_some_and(|p| !p.is_absolute()) {
            return Err(format!("device node {path}: its paths are not absolute"));
        }
        if !matches!(node.kind.as_deref(), None | Some("" | "b" | "c" | "u")) {
            return Err(format!("device node {path}: type {:?} is not b, c or u", node.kind));
        }
        if node.permissions.iter().any(|p| p.bytes().any(|b| !b"rwm".contains(&b))) {
            return Err(format!("device node {path}: permissions are not of r, w, m"));
        }
    }
    for mount in &edits.mounts {
        if !mount.container_path.is_absolute() || mount.host_path.as_os_str().is_empty() {
            return Err(format!("mount {}: a path is missing or relative", mount.container_path.display()));
        }
    }
    for hook in &edits.hooks {
        if !hook.path.is_absolute() {
            return Err(format!("hook {}: the path is not absolute", hook.path.display()));
        }
        if hook.env.iter().any(|entry| !variable(entry)) || hook.timeout.is_some_and(|t| t < 0) {
            return Err(format!("hook {}: its environment or timeout is wrong", hook.path.display()));
        }
    }
    Ok(())
}

fn edges(text: &str, first: impl Fn(u8) -> bool, between: &[u8]) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(start), Some(end)) => {
            first(*start)
                && end.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || between.contains(b))
        }
        _ => false,
    }
}

pub(super) fn is_vendor(text: &str) -> bool {
    edges(text, |b| b.is_ascii_alphabetic(), b"_-.")
}

pub(super) fn is_class(text: &str) -> bool {
    edges(text, |b| b.is_ascii_alphabetic(), b"_-.")
}

pub(super) fn is_device(text: &str) -> bool {
    edges(text, |b| b.is_ascii_alphanumeric(), b"_-.:")
}
