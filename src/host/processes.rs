//! Open files and limits of processes, from /proc. Changes nothing.

use std::path::PathBuf;

/// Limit of open files counted: each costs a system call, and a figure is not worth a tenth of a second.
const MAX_FILES: u64 = 16_384;

/// Open files of some processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// Descriptors.
    pub files: u64,
    /// Those that are sockets.
    pub sockets: u64,
}

/// The open files of these processes; those that end meanwhile have none. None: too many to count.
#[must_use]
pub fn open_files(pids: &[i32]) -> Option<OpenFiles> {
    let mut open = OpenFiles::default();
    for pid in pids {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            open.files += 1;
            if open.files > MAX_FILES {
                return None;
            }
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            open.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    Some(open)
}

/// A process's soft limit of open files; None: no limit, or it is gone.
#[must_use]
pub fn open_files_limit(pid: u32) -> Option<u64> {
    soft_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_files_are_counted() {
        let own = i32::try_from(std::process::id()).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let open = open_files(&[own]).unwrap();
        drop(socket);
        assert!(open.sockets >= 1 && open.files > open.sockets, "{open:?}");
        assert_eq!(open_files(&[i32::MAX]), Some(OpenFiles::default()));
        assert!(open_files_limit(std::process::id()).is_some());
    }

    #[test]
    fn a_limit_is_its_soft_value() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(
            soft_limit("Max open files            unlimited            unlimited            files\n"),
            None
        );
    }
}
