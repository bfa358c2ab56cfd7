//! Null devices for unused standard descriptors: each process of the pod gets its own.
//!
//! An OCI runtime never gets the node's /dev/null: a runtime may give its standard descriptors to the process's user
//! (crun before 1.24 does), who can then change the mode of a device that the whole node needs. These lie on a small
//! file system that is mounted nowhere and have no name when they are passed on. A device, not a pipe: programs treat a
//! pipe as input to read.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, makedev, mknodat, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// The kernel's number of the null device (Documentation/admin-guide/devices.txt).
const DEVICE: (u32, u32) = (1, 3);

/// The name that a device has for a moment.
const NAME: &str = "null";

/// Where they are made.
#[derive(Debug)]
pub(crate) struct NullDevices(OwnedFd);

impl NullDevices {
    pub(crate) fn prepare() -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // It only ever contains device nodes.
        fsconfig_set_string(&context, "size", "4k")?;
        fsconfig_set_string(&context, "mode", "0700")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// A new one, open for reading and writing. It is gone with its last descriptor.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let for_all = Mode::from_raw_mode(0o666);
        mknodat(&self.0, NAME, FileType::CharacterDevice, for_all, makedev(DEVICE.0, DEVICE.1))?;
        let opened = openat(&self.0, NAME, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
        unlinkat(&self.0, NAME, AtFlags::empty())?;
        let opened = opened?;
        // The umask has cleared bits, and any user of the container may reopen its stdin.
        fchmod(&opened, for_all)?;
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn each_is_a_null_device_that_is_not_the_nodes_nor_anothers() {
        let node = std::fs::metadata("/dev/null").unwrap();
        let devices = NullDevices::prepare().unwrap();
        let mut one = std::fs::File::from(devices.open().unwrap());
        let other = std::fs::File::from(devices.open().unwrap());
        let (found, others) = (one.metadata().unwrap(), other.metadata().unwrap());
        assert!(found.file_type().is_char_device());
        assert_eq!((found.rdev(), found.mode() & 0o7777, found.nlink()), (node.rdev(), 0o666, 0));
        assert_ne!((found.dev(), found.ino()), (node.dev(), node.ino()));
        assert_ne!(found.ino(), others.ino());
        one.write_all(b"x").unwrap();
        assert_eq!(one.read(&mut [0; 8]).unwrap(), 0);
        // What its owner does to it affects no other.
        std::os::unix::fs::fchown(&one, Some(1000), Some(1000)).unwrap();
        one.set_permissions(std::fs::Permissions::from_mode(0o000)).unwrap();
        let after = std::fs::metadata("/dev/null").unwrap();
        let facts = |m: &std::fs::Metadata| (m.uid(), m.gid(), m.mode(), m.ctime(), m.ctime_nsec());
        assert_eq!(facts(&after), facts(&node));
        assert_eq!(facts(&other.metadata().unwrap()), facts(&others));
    }
}
