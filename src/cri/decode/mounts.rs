//! Mounts and devices of a container.

use super::{Checked, absolute, container_path, invalid, shown};
use crate::cri::proto as pb;
use crate::host::cdi::is_qualified;
use crate::model::{Device, IdMapping, ImageVolume, Mount, MountSource, Propagation};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Mount options that a request may add (CRI 0.37).
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// Mounts, or devices, of a container. The OCI runtime makes several calls for each, and each is looked up in the
/// host's mount table; real containers have some dozens.
const MAX_MOUNTS: usize = 2048;

/// All mounts of a container.
pub(super) fn mounts(asked: Vec<pb::Mount>) -> Checked<Vec<Mount>> {
    if asked.len() > MAX_MOUNTS {
        return invalid("config.mounts", format!("has {}, and at most {MAX_MOUNTS} are made", asked.len()));
    }
    let mounts = asked.into_iter().map(mount).collect::<Checked<Vec<_>>>()?;
    match twice(mounts.iter().map(|m| &m.container_path)) {
        Some(path) => invalid("config.mounts", format!("two mounts at {}", path.display())),
        None => Ok(mounts),
    }
}

/// All devices of a container.
pub(super) fn devices(asked: Vec<pb::Device>) -> Checked<Vec<Device>> {
    if asked.len() > MAX_MOUNTS {
        return invalid("config.devices", format!("has {}, and at most {MAX_MOUNTS} are made", asked.len()));
    }
    let devices = asked.into_iter().map(device).collect::<Checked<Vec<_>>>()?;
    match twice(devices.iter().map(|d| &d.container_path)) {
        Some(path) => invalid("config.devices", format!("two devices at {}", path.display())),
        None => Ok(devices),
    }
}

fn twice<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Option<&'a PathBuf> {
    let mut seen = std::collections::HashSet::new();
    paths.into_iter().find(|path| !seen.insert(*path))
}

fn mount(m: pb::Mount) -> Checked<Mount> {
    const FIELD: &str = "config.mounts";
    let container_path = container_path("config.mounts.container_path", &m.container_path)?;
    if container_path == Path::new("/") {
        return invalid("config.mounts.container_path", "\"/\" would hide the image");
    }
    if let Some(unknown) = m.mount_options.iter().find(|o| !MOUNT_OPTIONS.contains(&o.as_str())) {
        let problem = format!(
            "{}: unknown option {:?}, known are {}",
            m.container_path,
            shown(unknown),
            MOUNT_OPTIONS.join(", ")
        );
        return invalid("config.mounts.mount_options", problem);
    }
    let source = match m.image {
        Some(image) if !image.image.is_empty() => {
            if !m.host_path.is_empty() {
                return invalid(
                    FIELD,
                    format!("{}: image and host_path exclude each other", m.container_path),
                );
            }
            MountSource::Image(Box::new(ImageVolume {
                image: image.image,
                user_specified: image.user_specified_image,
                sub_path: m.image_sub_path,
                resolved: None,
            }))
        }
        Some(_) | None if !m.image_sub_path.is_empty() => {
            return invalid(
                "config.mounts.image_sub_path",
                format!("{}: is set without an image", m.container_path),
            );
        }
        Some(_) | None => MountSource::Host(absolute("config.mounts.host_path", &m.host_path)?),
    };
    if m.uid_mappings.is_empty() != m.gid_mappings.is_empty() {
        return invalid(
            FIELD,
            format!("{}: uid_mappings and gid_mappings need each other", m.container_path),
        );
    }
    Ok(Mount {
        container_path,
        source,
        readonly: m.readonly,
        recursive_read_only: m.recursive_read_only,
        selinux_relabel: m.selinux_relabel,
        propagation: match pb::MountPropagation::try_from(m.propagation) {
            Ok(pb::MountPropagation::PropagationPrivate) => Propagation::Private,
            Ok(pb::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
            Ok(pb::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
            Err(_) => return invalid(FIELD, format!("propagation {} is unknown", m.propagation)),
        },
        uid_mappings: id_mappings(FIELD, &m.uid_mappings)?,
        gid_mappings: id_mappings(FIELD, &m.gid_mappings)?,
        options: m.mount_options,
    })
}

fn device(d: pb::Device) -> Checked<Device> {
    const FIELD: &str = "config.devices";
    if d.permissions.is_empty() || !d.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return invalid(
            FIELD,
            format!("permissions {:?} of {} are not of r, w, m", d.permissions, d.host_path),
        );
    }
    Ok(Device {
        container_path: container_path("config.devices.container_path", &d.container_path)?,
        host_path: absolute("config.devices.host_path", &d.host_path)?,
        permissions: d.permissions,
    })
}

/// Annotations that name CDI devices, as older kubelets and device plugins do.
const CDI_ANNOTATION: &str = "cdi.k8s.io/";

/// The CDI devices that a container requests, without duplicates, those of the field first.
pub(super) fn cdi_devices(
    devices: &[pb::CdiDevice],
    annotations: &HashMap<String, String>,
) -> Checked<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    let mut add = |field, name: &str| {
        if !is_qualified(name) {
            return invalid(field, format!("{:?} is not vendor/class=device", shown(name)));
        }
        if !all.iter().any(|known| known == name) {
            all.push(name.to_owned());
        }
        Ok(())
    };
    for device in devices {
        add("config.CDI_devices", &device.name)?;
    }
    // A map has no order.
    let mut keys: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(CDI_ANNOTATION)).collect();
    keys.sort();
    for name in keys.into_iter().flat_map(|(_, value)| value.split(',')) {
        add("config.annotations", name)?;
    }
    Ok(all)
}

pub(super) fn id_mappings(field: &'static str, mappings: &[pb::IdMapping]) -> Checked<Vec<IdMapping>> {
    mappings
        .iter()
        .map(|m| {
            let fits =
                m.host_id.checked_add(m.length).is_some() && m.container_id.checked_add(m.length).is_some();
            if m.length == 0 || !fits {
                return invalid(
                    field,
                    format!("mapping of {} ids from {} is out of range", m.length, m.host_id),
                );
            }
            Ok(IdMapping { host_id: m.host_id, container_id: m.container_id, length: m.length })
        })
        .collect()
}
