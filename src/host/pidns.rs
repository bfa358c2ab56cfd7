//! A process's PID namespace, held from the moment of its check. A path by its pid would lead into another one's, the
//! host's at worst, when the process is gone and the pid reused.

use podwright_sys::proc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Binds the namespace of the process with this pid and start time to `at`, which must not exist. Until it is
/// unmounted, it leads only to this namespace. Blocking.
///
/// # Errors
/// `NotFound` if the process is gone; otherwise the kernel's.
pub fn pin(pid: u32, start_time: u64, at: &Path) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(gone)?;
    // Checked after opening: the process that has the pid now has had it since its start.
    let same = proc::start_time(pid).map_err(gone)? == start_time;
    if !same || matches!(proc::state(pid).map_err(gone)?, 'Z' | 'X') {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::create_new(at)?;
    Ok(rustix::mount::mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), at)?)
}

/// A process that ends meanwhile counts as gone.
fn gone(error: io::Error) -> io::Error {
    let ended = error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
    if ended { io::ErrorKind::NotFound.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    #[test]
    fn a_namespace_is_that_of_the_process_that_was_meant_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pinned");
        let unshared = ["--pid", "--fork", "--kill-child", "sleep", "1000"];
        let mut parent = Command::new("unshare").args(unshared).spawn().unwrap();
        let child = loop {
            if let Some(child) = proc::children(parent.id()).unwrap().first() {
                break *child;
            }
            std::thread::yield_now();
        };
        let start_time = proc::start_time(child).unwrap();
        let other = pin(child, start_time + 1, &at).unwrap_err();
        assert_eq!((other.kind(), at.exists()), (io::ErrorKind::NotFound, false));
        pin(child, start_time, &at).unwrap();
        let inode = std::fs::metadata(format!("/proc/{child}/ns/pid")).unwrap().ino();
        assert_ne!(inode, std::fs::metadata("/proc/self/ns/pid").unwrap().ino());
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!(std::fs::metadata(&at).unwrap().ino(), inode);
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
        let gone = pin(parent.id(), start_time, &dir.path().join("gone")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
