//! Size and device of a file system, without reading a file in it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Its block device, `/dev/sda1`; empty where it has none.
    pub device: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Its maximum of inodes; 0 if it reports none.
    pub inodes: u64,
    /// Inodes that are left.
    pub free_inodes: u64,
}

/// The file system that `path` is on.
///
/// # Errors
/// If the path cannot be examined.
pub fn of(path: &Path) -> std::io::Result<Space> {
    let device = std::fs::metadata(path)?.dev();
    let found = rustix::fs::statvfs(path)?;
    Ok(Space {
        device: block_device(rustix::fs::major(device), rustix::fs::minor(device)),
        bytes: found.f_blocks.saturating_mul(found.f_frsize),
        inodes: found.f_files,
        free_inodes: found.f_ffree,
    })
}

/// `/dev/sda`; empty if there is no such block device.
#[must_use]
pub fn block_device(major: u32, minor: u32) -> String {
    let link = format!("/sys/dev/block/{major}:{minor}");
    let name = std::fs::read_link(link).ok().and_then(|to| Some(to.file_name()?.to_owned()));
    name.map(|name| format!("/dev/{}", name.to_string_lossy())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_a_size() {
        let space = of(Path::new("/")).unwrap();
        assert!(space.bytes > 0 && space.free_inodes <= space.inodes);
        assert!(space.device.is_empty() || space.device.starts_with("/dev/"));
        assert_eq!(block_device(0, 99_999), "");
        assert!(of(Path::new("/no/such/path")).is_err());
    }
}
