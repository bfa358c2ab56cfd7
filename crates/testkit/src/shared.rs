//! State shared by all scratch nodes of a machine.
//!
//! Owns the directory they live in, the lock under which they appear and
//! disappear, and the reservation of subnets. It knows no node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Directory of scratch nodes unless `PODWRIGHT_SCRATCH` names another one.
const DEFAULT_BASE: &str = "/run/podwright-test";

/// The directory that holds all scratch nodes.
#[must_use]
pub(crate) fn base() -> PathBuf {
    std::env::var_os("PODWRIGHT_SCRATCH").map_or_else(|| PathBuf::from(DEFAULT_BASE), PathBuf::from)
}

/// The file that reserves a node's subnet among all nodes of this machine.
pub(crate) fn subnet_file(base: &Path, octet: u8) -> PathBuf {
    base.join(format!("subnet-{octet}"))
}

/// Holds off other processes' nodes from appearing or disappearing, until the file is dropped.
pub(crate) fn lock(base: &Path) -> Result<std::fs::File> {
    let path = base.join(".lock");
    let locked = || {
        let file = std::fs::File::options().create(true).append(true).open(&path)?;
        file.lock()?;
        std::io::Result::Ok(file)
    };
    locked().with_context(|| format!("lock {}", path.display()))
}

/// Says, while it exists, that the portmap plugin's host-wide chains came after the first scratch node.
pub(crate) fn host_ports_mark(base: &Path) -> PathBuf {
    base.join("host-ports-are-ours")
}

/// Reserves the first free `10.88.x.0/24` from `start` on.
pub(crate) fn take_subnet(base: &Path, start: u8, id: &str) -> Result<u8> {
    for step in 0..=u8::MAX {
        let octet = start.wrapping_add(step);
        let file = subnet_file(base, octet);
        match std::fs::File::create_new(&file) {
            Ok(_) => {
                std::fs::write(&file, id)?;
                return Ok(octet);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("create {}", file.display())),
        }
    }
    anyhow::bail!("all 256 scratch subnets are taken; `podwright-testkit sweep` frees those of dead tests")
}
