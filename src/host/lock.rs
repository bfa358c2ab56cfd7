//! The lock that excludes a second daemon from the same directories, and who holds it.
//!
//! A `flock` ends with the last descriptor of its open file: not before a killed holder has really ended, which a thread
//! of it that hangs in the kernel prevents.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A daemon that was killed while it started a program has a child with its descriptors until that child's exec, which on a
/// node at its limits was seen to take more than a second.
const WAIT: Duration = Duration::from_secs(10);
/// Nothing tells when a lock becomes free, except waiting for it without a limit.
const POLL: Duration = Duration::from_millis(5);
/// Lists all locks of files (`proc_locks(5)`).
const LOCKS: &str = "/proc/locks";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file could not be opened or locked.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// `open`, `lock` or `change the mode of`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A daemon that runs has it.
    #[error("{} is locked{}", path.display(), by(*process))]
    Held {
        /// The file.
        path: PathBuf,
        /// Who took it, if that is known.
        process: Option<u32>,
    },
    /// A process that was killed has it and cannot end.
    #[error(
        "{} is still locked by process {process}, which was killed but hangs in the kernel{}: unmount by force the file \
         system that does not answer (umount -f; for FUSE: /sys/fs/fuse/connections/*/abort), or restart the node",
        path.display(), thread.as_ref().map(|thread| format!(" ({thread})")).unwrap_or_default()
    )]
    Hung {
        /// The file.
        path: PathBuf,
        /// Who took it.
        process: u32,
        /// The thread that hangs, and the kernel function where it waits, if these are known.
        thread: Option<String>,
    },
}

fn by(process: Option<u32>) -> String {
    process.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

/// Takes the lock at `path`, which only root can open. It lasts as long as the returned file.
///
/// # Errors
/// When another process holds it for longer than a moment.
pub fn take(path: &Path) -> Result<File, LockError> {
    let failed =
        |operation| move |source: io::Error| LockError::Io { operation, path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path).map_err(failed("open"))?;
    // Whoever can open it can lock it; earlier versions made it readable.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed("change the mode of"))?;
    let until = Instant::now() + WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Err(held(path, &file)),
        }
    }
}

fn held(path: &Path, file: &File) -> LockError {
    let process =
        std::fs::read_to_string(LOCKS).ok().and_then(|locks| holder(&locks, file.metadata().ok()?.ino()));
    let path = path.to_owned();
    match process {
        // Its threads are still there, or it would not hold anything.
        Some(process) if podwright_sys::proc::state(process).is_ok_and(|state| state == 'Z') => {
            LockError::Hung { path, process, thread: hung_thread(process) }
        }
        process => LockError::Held { path, process },
    }
}

/// Who took the `flock` of the file with that inode number.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 708 00:13:1252 0 EOF"; a line of a waiting process has "->" before FLOCK.
        let fields: Vec<_> = line.split_whitespace().skip(1).collect();
        let [kind, _, _, pid, file, ..] = fields.as_slice() else { return None };
        let is_it = *kind == "FLOCK" && file.rsplit(':').next()?.parse() == Ok(inode);
        pid.parse().ok().filter(|_| is_it)
    })
}

fn hung_thread(process: u32) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    let mut threads = tasks.filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    let hung = threads.find(|thread| podwright_sys::proc::state(*thread).is_ok_and(|state| state == 'D'))?;
    let waits = std::fs::read_to_string(format!("/proc/{hung}/wchan")).unwrap_or_default();
    Some(format!("thread {hung} in {waits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_lock_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let held = take(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let own = std::process::id();
        match take(&path).unwrap_err() {
            LockError::Held { process: Some(process), .. } => assert_eq!(process, own),
            other => panic!("{other}"),
        }
        drop(held);
        take(&path).unwrap();
    }

    #[test]
    fn locks_of_other_kinds_and_files_are_not_taken_for_it() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 6 08:01:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 7 08:01:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 8 08:01:77 0 EOF\n";
        assert_eq!(holder(locks, 77), Some(7));
        assert_eq!(holder(locks, 79), None);
        assert_eq!(holder("", 77), None);
    }
}
