//! Facts of the running kernel: its version, file systems, settings and swap.
//!
//! Reads only. Judges nothing.

use std::io;
use std::path::{Path, PathBuf};

/// The release, as `uname -r` prints it.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether the kernel is of this version or newer.
#[must_use]
pub fn at_least(major: u32, minor: u32) -> bool {
    running() >= (major, minor)
}

/// Major and minor number of the running kernel.
#[must_use]
pub fn running() -> (u32, u32) {
    version(&release())
}

/// Major and minor number of a release; 0 for what is no number.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether a file system type is known now. A module may add it at its first mount.
///
/// # Errors
/// When /proc is unreadable.
pub fn knows_file_system(name: &str) -> io::Result<bool> {
    let known = std::fs::read_to_string("/proc/filesystems")?;
    Ok(known.lines().any(|line| line.split_whitespace().next_back() == Some(name)))
}

/// A setting by its dotted name; None where this kernel has none of that name.
///
/// # Errors
/// When it is there and cannot be read.
pub fn setting(name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(Path::new("/proc/sys").join(name.replace('.', "/"))) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether modules of the running kernel are installed. They are gone after an upgrade without a reboot.
#[must_use]
pub fn has_modules() -> bool {
    Path::new("/lib/modules").join(release()).is_dir()
}

/// Devices and files that are swapped to.
///
/// # Errors
/// When /proc is unreadable. A kernel without swap has none.
pub fn swaps() -> io::Result<Vec<PathBuf>> {
    match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => Ok(swaps_of(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The first column below the heading.
fn swaps_of(text: &str) -> Vec<PathBuf> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(PathBuf::from).collect()
}

/// The largest number of open files of a process: ours, or another's.
///
/// # Errors
/// When the process is gone, or the kernel's table has another form.
pub fn open_files_limit(pid: Option<u32>) -> io::Result<u64> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let text = std::fs::read_to_string(format!("/proc/{process}/limits"))?;
    // "Max open files            1048576              1048576              files": the soft limit is the first.
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next());
    match value {
        Some("unlimited") => Ok(u64::MAX),
        Some(value) => value.parse().map_err(io::Error::other),
        None => Err(io::Error::other(format!("/proc/{process}/limits has no \"Max open files\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.1.0-28-amd64"), (6, 1));
        assert_eq!(version("5.12-rc1"), (5, 12));
        assert_eq!(version("6.18+"), (6, 18));
        assert_eq!(version("odd"), (0, 0));
        assert!(at_least(3, 0) && !at_least(99, 0));
    }

    #[test]
    fn swap_is_listed_by_name() {
        let text = "Filename\t\tType\t\tSize\n/dev/sda2   partition 1\n/swap.img  file 2\n";
        assert_eq!(swaps_of(text), [Path::new("/dev/sda2"), Path::new("/swap.img")]);
        assert!(swaps_of("Filename Type\n").is_empty());
    }

    #[test]
    fn the_running_kernel_has_facts() {
        assert!(knows_file_system("proc").unwrap() && !knows_file_system("nonesuch").unwrap());
        assert!(
            setting("kernel.pid_max").unwrap().is_some() && setting("kernel.nonesuch").unwrap().is_none()
        );
        assert!(open_files_limit(None).unwrap() > 0);
    }
}
