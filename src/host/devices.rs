//! Device nodes of the host as a container will see them.
//!
//! Owns the reading of /dev. Never makes a node.

use crate::model::Device;
use rustix::fs::FileType;
use std::path::{Path, PathBuf};

/// Nodes that one request may name, a guard against a directory such as `/`.
const MAX_DEVICES: usize = 4096;
/// Directories below a requested one that are entered.
const MAX_DEPTH: usize = 8;

/// Parts of /dev that are the container's own or no devices, so "all devices" leaves them out (as runc's
/// libcontainer/devices does).
const NOT_OF_THE_HOST: [&str; 9] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "hugepages"];

/// Character or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// A host device resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// Path in the container.
    pub container_path: PathBuf,
    /// Character or block.
    pub kind: NodeKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is in the container.
    pub owner: Owner,
    /// Subset of `rwm` for the device cgroup.
    pub permissions: String,
}

/// Whose a device is in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User; None: who the container runs as.
    pub uid: Option<u32>,
    /// Group; None: that of whom the container runs as.
    pub gid: Option<u32>,
}

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Missing or unreadable.
    #[error("resolve device {}: {cause}", path.display())]
    Read {
        /// Host path.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A file of another type.
    #[error("{} is neither a device nor a directory of devices", path.display())]
    NotDevice {
        /// Host path.
        path: PathBuf,
    },
    /// Letters other than r, w and m.
    #[error("device {}: permissions {permissions:?} are not a subset of \"rwm\"", path.display())]
    Permissions {
        /// Host path.
        path: PathBuf,
        /// As given.
        permissions: String,
    },
    /// More than a request may name.
    #[error("device directory {} holds more than {MAX_DEVICES} devices", path.display())]
    TooMany {
        /// Host path.
        path: PathBuf,
    },
}

/// Resolves the devices that a container asks for. A directory stands for every device below it; a symlink for what
/// it points to. `at` is told the number of each before it is looked at.
///
/// # Errors
/// When a path is missing or no device.
pub fn resolve(devices: &[Device], at: impl Fn(usize)) -> Result<Vec<ResolvedDevice>, DeviceError> {
    let mut found = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        at(number);
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if permissions.bytes().any(|b| !b"rwm".contains(&b)) {
            return Err(DeviceError::Permissions {
                path: device.host_path.clone(),
                permissions: permissions.chars().take(16).collect(),
            });
        }
        let failed = |cause| DeviceError::Read { path: device.host_path.clone(), cause };
        let real = std::fs::canonicalize(&device.host_path).map_err(failed)?;
        if real.is_dir() {
            walk(&real, &device.container_path, permissions, 0, &|_| false, &mut found)?;
        } else {
            found.push(one(&Device { permissions: permissions.to_owned(), ..device.clone() })?);
        }
    }
    Ok(found)
}

/// Resolves one device; a directory is none.
///
/// # Errors
/// When the path is missing or no device.
pub fn one(device: &Device) -> Result<ResolvedDevice, DeviceError> {
    let failed = |cause| DeviceError::Read { path: device.host_path.clone(), cause };
    let real = std::fs::canonicalize(&device.host_path).map_err(failed)?;
    node(&real, &device.container_path, &device.permissions)?
        .ok_or_else(|| DeviceError::NotDevice { path: device.host_path.clone() })
}

/// Every device of the host, for a privileged container.
///
/// # Errors
/// When /dev cannot be read.
pub fn all_of_host() -> Result<Vec<ResolvedDevice>, DeviceError> {
    let mut found = Vec::new();
    let dev = Path::new("/dev");
    walk(dev, dev, "rwm", 0, &|name| NOT_OF_THE_HOST.contains(&name), &mut found)?;
    Ok(found)
}

fn walk(
    host: &Path,
    container: &Path,
    permissions: &str,
    depth: usize,
    skipped: &dyn Fn(&str) -> bool,
    found: &mut Vec<ResolvedDevice>,
) -> Result<(), DeviceError> {
    let failed = |cause| DeviceError::Read { path: host.to_owned(), cause };
    let mut entries: Vec<_> =
        std::fs::read_dir(host).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().to_str().is_some_and(skipped) {
            continue;
        }
        let (host, container) = (entry.path(), container.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => {
                walk(&host, &container, permissions, depth + 1, skipped, found)?;
            }
            // Symlinks in a directory would name a device twice.
            Ok(kind) if !kind.is_dir() && !kind.is_symlink() => {
                match node(&host, &container, permissions) {
                    Ok(Some(_)) if found.len() >= MAX_DEVICES => {
                        return Err(DeviceError::TooMany { path: host });
                    }
                    Ok(node) => found.extend(node),
                    // It went away since the directory was read: /dev is alive.
                    Err(_) => {}
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// None: not a device. An overlay whiteout (0:0) is none either.
fn node(host: &Path, container: &Path, permissions: &str) -> Result<Option<ResolvedDevice>, DeviceError> {
    let stat =
        rustix::fs::lstat(host).map_err(|e| DeviceError::Read { path: host.to_owned(), cause: e.into() })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => NodeKind::Char,
        FileType::BlockDevice => NodeKind::Block,
        _ => return Ok(None),
    };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if (major, minor) == (0, 0) {
        return Ok(None);
    }
    Ok(Some(ResolvedDevice {
        container_path: container.to_owned(),
        kind,
        major,
        minor,
        mode: stat.st_mode & 0o7777,
        owner: Owner { uid: Some(stat.st_uid), gid: Some(stat.st_gid) },
        permissions: permissions.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &Path, container: &str, permissions: &str) -> Result<Vec<ResolvedDevice>, DeviceError> {
        resolve(
            &[Device {
                host_path: host.to_owned(),
                container_path: container.into(),
                permissions: permissions.into(),
            }],
            |_| {},
        )
    }

    #[test]
    fn a_node_is_given_with_its_numbers() {
        let found = ask(Path::new("/dev/zero"), "/dev/nothing", "r").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, found[0].major, found[0].minor), (NodeKind::Char, 1, 5));
        assert_eq!((found[0].permissions.as_str(), found[0].mode & 0o777), ("r", 0o666));
        assert_eq!(found[0].container_path, Path::new("/dev/nothing"));
    }

    #[test]
    fn a_symlink_and_a_directory_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(ask(&link, "/dev/n", "").unwrap()[0].minor, 3);
        let sub = dir.path().join("tree/below");
        std::fs::create_dir_all(&sub).unwrap();
        let rwx = nix::sys::stat::Mode::S_IRWXU;
        for (name, minor) in [("a", 3), ("b", 5)] {
            let number = nix::sys::stat::makedev(1, minor);
            nix::sys::stat::mknod(&sub.join(name), nix::sys::stat::SFlag::S_IFCHR, rwx, number).unwrap();
        }
        std::fs::write(sub.join("plain"), "").unwrap();
        let found = ask(&dir.path().join("tree"), "/dev/tree", "rw").unwrap();
        let paths: Vec<_> = found.iter().map(|d| d.container_path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/tree/below/a", "/dev/tree/below/b"]);
    }

    #[test]
    fn what_is_no_device_is_an_error() {
        assert!(matches!(ask(Path::new("/etc/passwd"), "/dev/x", ""), Err(DeviceError::NotDevice { .. })));
        assert!(matches!(ask(Path::new("/dev/absent"), "/dev/x", ""), Err(DeviceError::Read { .. })));
        assert!(matches!(ask(Path::new("/dev/null"), "/x", "rx"), Err(DeviceError::Permissions { .. })));
    }

    #[test]
    fn all_devices_of_the_host_leave_out_the_containers_own() {
        let all = all_of_host().unwrap();
        assert!(all.iter().any(|d| d.container_path == Path::new("/dev/null")));
        assert!(!all.iter().any(|d| d.container_path.starts_with("/dev/pts")));
        assert!(!all.iter().any(|d| d.container_path == Path::new("/dev/console")));
    }
}
