//! A container as requested.

use super::{ContainerId, ContainerSecurity, ImageId, Resources, SandboxId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A checked CreateContainer request, with the assigned id and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's id.
    pub id: ContainerId,
    /// The sandbox that holds it.
    pub sandbox_id: SandboxId,
    /// Container name in the pod.
    pub name: String,
    /// Attempt, from 0 (the kubelet's restart count).
    pub attempt: u32,
    /// Creation time.
    pub created_at: Timestamp,
    /// The image.
    pub image: ImageRequest,
    /// Overrides the image's Entrypoint (and its Cmd).
    pub command: Vec<String>,
    /// Overrides the image's Cmd.
    pub args: Vec<String>,
    /// Overrides the image's WorkingDir; empty: not given.
    pub working_dir: String,
    /// In order; a later one wins.
    pub envs: Vec<(String, String)>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// CDI device names, `vendor.com/class=name`.
    pub cdi_devices: Vec<String>,
    /// Byte-identical in every answer.
    pub labels: BTreeMap<String, String>,
    /// Byte-identical in every answer.
    pub annotations: BTreeMap<String, String>,
    /// Full path of the log file; None: output is discarded.
    pub log_path: Option<PathBuf>,
    /// A stdin pipe is kept for attach.
    pub stdin: bool,
    /// stdin closes after the first attach ends.
    pub stdin_once: bool,
    /// A terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Security context.
    pub security: ContainerSecurity,
    /// Signal number by CRI; None: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// The checkpoint from which it continues; None: it begins.
    #[serde(default)]
    pub restore: Option<Restore>,
}

/// The checkpoint of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restore {
    /// Its directory in a pod's checkpoint.
    Directory(PathBuf),
    /// An archive.
    Archive(PathBuf),
    /// An image that has its files.
    Image(ImageId),
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// As given in `ImageSpec.image` (often an id).
    pub requested: String,
    /// `ImageSpec.user_specified_image`; empty: not given.
    pub user_specified: String,
    /// Resolved id.
    pub id: ImageId,
    /// A repo digest `name@sha256:…` where one is known, else the id.
    pub reference: String,
    /// What ContainerStatus.image.image shows: user_specified, else the first tag, else the request.
    pub display: String,
}

/// Mount propagation, as CRI names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// rprivate
    #[default]
    Private,
    /// rslave
    HostToContainer,
    /// rshared
    Bidirectional,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// Number of ids.
    pub length: u32,
}

impl IdMapping {
    /// The host id of an id in the container; None: nobody.
    #[must_use]
    pub fn on_host(ranges: &[Self], id: u32) -> Option<u32> {
        ranges.iter().find_map(|range| {
            let offset = id.checked_sub(range.container_id).filter(|offset| *offset < range.length)?;
            range.host_id.checked_add(offset)
        })
    }
}

/// The source of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A host path; symlinks are followed.
    Host(PathBuf),
    /// An image volume.
    Image(Box<ImageVolume>),
}

/// An image as a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// As given in `ImageSpec.image` (often an id).
    pub image: String,
    /// `ImageSpec.user_specified_image`; empty: not given.
    #[serde(default)]
    pub user_specified: String,
    /// Path within the image; empty: its root.
    pub sub_path: String,
    /// The image's id when the container was created.
    #[serde(default)]
    pub resolved: Option<ResolvedImage>,
}

/// An image that a name was found to mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// Its id.
    pub id: ImageId,
    /// A repo digest `name@sha256:…` where one is known, else the id.
    pub reference: String,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// The source to mount.
    pub source: MountSource,
    /// Read-only.
    pub readonly: bool,
    /// Read-only for submounts too.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Uid mappings of an idmapped mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Gid mappings of an idmapped mount.
    pub gid_mappings: Vec<IdMapping>,
    /// Extra options (`noexec`, `nodev`, `nosuid`).
    pub options: Vec<String>,
}

/// A host device for the container; a directory means every device below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub container_path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// Subset of `rwm`.
    pub permissions: String,
}
