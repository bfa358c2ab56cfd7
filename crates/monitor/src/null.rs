//! Null devices for unused standard descriptors: each process of the pod gets its own.
//!
//! The node's /dev/null is never among what an OCI runtime is given: a runtime may give its standard descriptors to the
//! process's user (crun before 1.24 does), who then changes the mode of a device that the whole node needs. These lie on
//! a small file system that is mounted nowhere, and have no name any more when they are handed out. A device, and no
//! pipe: programs look at what their input is, and take a pipe for one that they are to read.
//!
//! Who holds one of them, and may open files by handle (`CAP_DAC_READ_SEARCH`), reaches that file system. So a new one has
//! a name that cannot be known, and is looked at before it is opened: what was planted in its place, perhaps a device of
//! the node that the container may not open itself, never is.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, fstat, makedev, mknodat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// The kernel's number of the null device (Documentation/admin-guide/devices.txt).
const DEVICE: (u32, u32) = (1, 3);

/// Tries for a name that nobody has taken: the first is free, unless somebody has taken a good part of 2^64.
const TRIES: u32 = 4;

const FOR_ALL: Mode = Mode::from_raw_mode(0o666);

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
        let mut tries = TRIES;
        loop {
            let name = name()?;
            match mknodat(&self.0, &name, FileType::CharacterDevice, FOR_ALL, makedev(DEVICE.0, DEVICE.1)) {
                Err(Errno::EXIST) if tries > 0 => tries -= 1,
                made => {
                    made?;
                    return self.take(&name);
                }
            }
        }
    }

    /// Opens what has just been made, if it is that, and takes its name away.
    fn take(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(&self.0, name, flags, Mode::empty());
        unlinkat(&self.0, name, AtFlags::empty())?;
        let found = found?;
        let stat = fstat(&found)?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == makedev(DEVICE.0, DEVICE.1);
        if !is_null {
            return Err(io::Error::other("something was put in the place of a null device"));
        }
        // The same inode, whatever has its name by now.
        let opened = rustix::fs::open(
            format!("/proc/self/fd/{}", found.as_raw_fd()),
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The umask has cut it, and any user of the container may open its stdin anew.
        fchmod(&opened, FOR_ALL)?;
        Ok(opened)
    }
}

/// A name that cannot be known beforehand.
fn name() -> io::Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
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

    #[test]
    fn what_was_put_in_the_place_of_one_is_not_opened() {
        let devices = NullDevices::prepare().unwrap();
        // Names that were taken beforehand hinder nobody.
        for name in ["null", "0000000000000000"] {
            mknodat(&devices.0, name, FileType::CharacterDevice, FOR_ALL, makedev(1, 5)).unwrap();
        }
        devices.open().unwrap();
        // Exchanged between making and opening: a device that whoever did it may not open, a file, a link.
        mknodat(&devices.0, "device", FileType::BlockDevice, FOR_ALL, makedev(1, 3)).unwrap();
        mknodat(&devices.0, "zero", FileType::CharacterDevice, FOR_ALL, makedev(1, 5)).unwrap();
        mknodat(&devices.0, "fifo", FileType::Fifo, FOR_ALL, 0).unwrap();
        rustix::fs::symlinkat("/dev/null", &devices.0, "link").unwrap();
        for name in ["device", "zero", "fifo", "link"] {
            assert!(devices.take(name).is_err(), "{name}");
            assert!(openat(&devices.0, name, OFlags::PATH, Mode::empty()).is_err(), "{name} stays");
        }
    }
}
