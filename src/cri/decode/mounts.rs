//! Mounts and devices of a container.

use super::{Checked, absolute, invalid};
use crate::cri::proto as pb;
use crate::model::{Device, IdMapping, ImageVolume, Mount, MountSource, Propagation};

pub(super) fn mount(m: pb::Mount) -> Checked<Mount> {
    const FIELD: &str = "config.mounts";
    let container_path = absolute(FIELD, &m.container_path)?;
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
        Some(_) | None => MountSource::Host(absolute(FIELD, &m.host_path)?),
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

pub(super) fn device(d: pb::Device) -> Checked<Device> {
    const FIELD: &str = "config.devices";
    if d.permissions.is_empty() || !d.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return invalid(
            FIELD,
            format!("permissions {:?} of {} are not of r, w, m", d.permissions, d.host_path),
        );
    }
    Ok(Device {
        container_path: absolute(FIELD, &d.container_path)?,
        host_path: absolute(FIELD, &d.host_path)?,
        permissions: d.permissions,
    })
}

/// A container that asked for a device must not run without it.
pub(super) fn cdi_devices(devices: &[pb::CdiDevice]) -> Checked<Vec<String>> {
    match devices.first() {
        None => Ok(Vec::new()),
        Some(device) => invalid(
            "config.CDI_devices",
            format!("{}: CDI devices are not supported by this version", device.name),
        ),
    }
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
