//! The capabilities of a container.

use super::SpecError;
use crate::host::security::{Cap, CapSet};
use crate::model::ContainerSecurity;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// The sets of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerCapabilities {
    /// Bounding, permitted and effective.
    pub given: CapSet,
    /// Ambient: only those requested as such.
    pub ambient: CapSet,
}

/// The default set with what is added and dropped. `ALL` means all that the daemon can give; a drop wins over an add
/// of `ALL`, an add wins over a drop of `ALL`, as with containerd.
///
/// # Errors
/// If a name is unknown, or the daemon lacks one requested by name.
pub fn capabilities(
    defaults: &[String],
    security: &ContainerSecurity,
    bounding: CapSet,
) -> Result<ContainerCapabilities, SpecError> {
    if security.privileged {
        return Ok(ContainerCapabilities { given: bounding, ambient: CapSet::EMPTY });
    }
    let asked = &security.capabilities;
    let mut given = set(defaults)?.intersect(bounding);
    let adds_all = asked.add.iter().any(|name| is_all(name));
    let drops_all = asked.drop.iter().any(|name| is_all(name));
    let (add, drop) = (named(&asked.add)?, named(&asked.drop)?);
    let mut ambient = named(&asked.add_ambient)?;
    for cap in add.union(ambient).iter() {
        if !bounding.contains(cap) {
            return Err(SpecError::CapabilityNotAvailable { name: cap.name() });
        }
    }
    if asked.add_ambient.iter().any(|name| is_all(name)) {
        ambient = bounding;
    }
    if adds_all {
        given = bounding;
    }
    if drops_all {
        given = CapSet::EMPTY;
    }
    given = given.union(add).union(ambient);
    for cap in drop.iter() {
        given = given.without(cap);
    }
    Ok(ContainerCapabilities { given, ambient: ambient.intersect(given) })
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn named(names: &[String]) -> Result<CapSet, SpecError> {
    names.iter().filter(|name| !is_all(name)).try_fold(CapSet::EMPTY, |set, name| Ok(set.with(parse(name)?)))
}

fn set(names: &[String]) -> Result<CapSet, SpecError> {
    names.iter().try_fold(CapSet::EMPTY, |set, name| Ok(set.with(parse(name)?)))
}

fn parse(name: &str) -> Result<Cap, SpecError> {
    Cap::parse(name).ok_or_else(|| SpecError::UnknownCapability { name: name.chars().take(80).collect() })
}

pub(super) fn oci(capabilities: &ContainerCapabilities) -> LinuxCapabilities {
    let set = |set: CapSet| -> Capabilities {
        set.iter().filter_map(|cap| cap.name().parse::<Capability>().ok()).collect()
    };
    let mut oci = LinuxCapabilities::default();
    oci.set_bounding(Some(set(capabilities.given)))
        .set_permitted(Some(set(capabilities.given)))
        .set_effective(Some(set(capabilities.given)))
        // Linux makes a capability ambient only if it is inheritable as well.
        .set_inheritable(Some(set(capabilities.ambient)))
        .set_ambient(Some(set(capabilities.ambient)));
    oci
}
