//! /proc/self/mountinfo (proc_pid_mountinfo(5)), parsed.
//!
//! Owns the format. Never mounts.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Major and minor number of its file system.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Peer group, if the mount is shared.
    pub shared: Option<u32>,
    /// Master's peer group, if the mount is a slave.
    pub master: Option<u32>,
    /// Options of the mount itself.
    pub options: Vec<String>,
    /// File system type.
    pub fstype: String,
    /// Options of the superblock.
    pub super_options: Vec<String>,
}

/// Reads the mounts of the daemon's namespace.
///
/// # Errors
/// When /proc is unreadable.
pub fn read() -> std::io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// Parses the text; malformed lines are left out.
#[must_use]
pub fn parse(text: &str) -> Vec<MountEntry> {
    text.lines().filter_map(line).collect()
}

/// The mount that holds `path`: the last one mounted on its nearest mount point.
#[must_use]
pub fn holding<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

fn line(text: &str) -> Option<MountEntry> {
    let (left, right) = text.split_once(" - ")?;
    let mut left = left.split(' ');
    let (major, minor) = left.nth(2)?.split_once(':')?;
    let mount_point = unescape(left.nth(1)?);
    let mut entry = MountEntry {
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point,
        shared: None,
        master: None,
        options: left.next()?.split(',').map(str::to_owned).collect(),
        fstype: String::new(),
        super_options: Vec::new(),
    };
    for tag in left {
        match tag.split_once(':') {
            Some(("shared", group)) => entry.shared = group.parse().ok(),
            Some(("master", group)) => entry.master = group.parse().ok(),
            _ => {}
        }
    }
    let mut right = right.split(' ');
    entry.fstype = right.next()?.to_owned();
    entry.super_options = right.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
    Some(entry)
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:26 / /mnt/a\\040b rw master:7 propagate_from:1 - tmpfs tmpfs rw
31 30 0:27 / /mnt/a\\040b rw shared:9 master:8 - tmpfs tmpfs rw,size=4k
garbage
";

    #[test]
    fn lines_are_parsed() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 3);
        assert_eq!((mounts[0].shared, mounts[0].master), (Some(1), None));
        assert_eq!(mounts[0].options, ["rw", "relatime"]);
        assert_eq!(mounts[1].mount_point, Path::new("/mnt/a b"));
        assert_eq!((mounts[1].shared, mounts[1].master), (None, Some(7)));
        assert_eq!(mounts[2].super_options, ["rw", "size=4k"]);
    }

    #[test]
    fn the_nearest_and_newest_mount_holds_a_path() {
        let mounts = parse(TEXT);
        assert_eq!(holding(&mounts, Path::new("/mnt/a b/c")).unwrap().shared, Some(9));
        assert_eq!(holding(&mounts, Path::new("/mnt/a bc")).unwrap().fstype, "ext4");
    }

    #[test]
    fn the_running_system_has_a_root() {
        assert!(holding(&read().unwrap(), Path::new("/proc/self")).is_some());
    }
}
