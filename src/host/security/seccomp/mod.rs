//! Seccomp profiles: podwright's default, and profiles of the node.
//!
//! Owns the loading of a profile file and its check. Never falls back to "unconfined": an unusable profile is an error.
//! The default is an allow list with the peers' semantics; its table is in `default.rs`.

mod default;
mod profile;

pub use default::{SeccompArch, default_profile};
pub use profile::{Machine, NodeProfile, ProfileError};

use podwright_sys::path::reopen_regular;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// Bytes of a profile file at most. The largest profile that operators write is tens of KiB.
pub const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// Why a profile of the node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A relative path.
    #[error("seccomp profile {} is not an absolute path", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// Missing or unreadable.
    #[error("read seccomp profile {}: {cause}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A directory, fifo or device.
    #[error("seccomp profile {} is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// More than [`MAX_PROFILE_BYTES`].
    #[error("seccomp profile {} is larger than {MAX_PROFILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
    },
    /// Not a profile, or one with something unsupported.
    #[error("seccomp profile {}: {cause}", path.display())]
    Parse {
        /// The path.
        path: PathBuf,
        /// Cause.
        cause: ProfileError,
    },
}

/// Loads a profile in the OCI runtime's form or Docker's, as the kubelet's Localhost type names it.
///
/// # Errors
/// When the file is missing, no regular file, huge, or has anything that cannot be honoured.
pub fn load(path: &Path, machine: Machine) -> Result<NodeProfile, SeccompError> {
    if !path.is_absolute() {
        return Err(SeccompError::NotAbsolute { path: path.to_owned() });
    }
    let failed = |cause: std::io::Error| SeccompError::Read { path: path.to_owned(), cause };
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let place = place.map_err(|e| failed(e.into()))?;
    let file = reopen_regular(place.as_fd(), OFlags::RDONLY).map_err(failed)?;
    let Some(fd) = file else { return Err(SeccompError::NotRegular { path: path.to_owned() }) };
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_PROFILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PROFILE_BYTES {
        return Err(SeccompError::TooLarge { path: path.to_owned() });
    }
    profile::parse(&bytes, machine).map_err(|cause| SeccompError::Parse { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::super::caps::CapSet;
    use super::*;

    const HERE: Machine = Machine { arch: "x86_64", kernel: (6, 1) };

    #[test]
    fn a_profile_of_the_node_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block.json");
        std::fs::write(
            &path,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let profile = load(&path, HERE).unwrap().for_container(CapSet::EMPTY);
        assert_eq!(profile.syscalls().as_ref().unwrap()[0].names(), &["chmod"]);
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(matches!(load(Path::new("rel.json"), HERE), Err(SeccompError::NotAbsolute { .. })));
        assert!(matches!(load(&at("absent"), HERE), Err(SeccompError::Read { .. })));
        assert!(matches!(load(dir.path(), HERE), Err(SeccompError::NotRegular { .. })));
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(load(&at("fifo"), HERE), Err(SeccompError::NotRegular { .. })));
        // Nobody has this terminal: to open it would be ENXIO.
        let tty = nix::sys::stat::makedev(5, 0);
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        nix::sys::stat::mknod(&at("tty"), kind, nix::sys::stat::Mode::S_IRWXU, tty).unwrap();
        assert!(matches!(load(&at("tty"), HERE), Err(SeccompError::NotRegular { .. })));
        File::create(at("huge")).unwrap().set_len(MAX_PROFILE_BYTES + 1).unwrap();
        assert!(matches!(load(&at("huge"), HERE), Err(SeccompError::TooLarge { .. })));
        for bad in ["", "{}", "[]", "{\"defaultAction\":\"SCMP_ACT_NOTHING\"}", "{\"defaultAction\":"] {
            std::fs::write(at("bad"), bad).unwrap();
            assert!(matches!(load(&at("bad"), HERE), Err(SeccompError::Parse { .. })), "{bad:?}");
        }
    }
}
