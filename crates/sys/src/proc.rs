//! Facts read from procfs. Parses defensively: a process may vanish between two reads.

use std::io;
use std::path::Path;

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} has an unexpected form"))
}

/// Start time of a process in clock ticks since boot (field 22 of `/proc/<pid>/stat`). A pid together with its start
/// time names a process for as long as the machine runs.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)?.parse().map_err(|_| malformed("the stat file"))
}

/// Parent of a process (field 4 of `/proc/<pid>/stat`).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn parent(pid: u32) -> io::Result<u32> {
    stat_field(pid, 4)?.parse().map_err(|_| malformed("the stat file"))
}

/// Process group of a process (field 5 of `/proc/<pid>/stat`); 0 for threads of the kernel.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn group(pid: u32) -> io::Result<u32> {
    stat_field(pid, 5)?.parse().map_err(|_| malformed("the stat file"))
}

/// Children of a process, whichever of its threads made them.
///
/// # Errors
/// `NotFound` when there is no such process, or the kernel does not tell (CONFIG_PROC_CHILDREN).
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("children"))?;
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}

/// State letter of a process (`R`, `S`, `D`, `Z`, ...).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn state(pid: u32) -> io::Result<char> {
    stat_field(pid, 3)?.chars().next().ok_or_else(|| malformed("the stat file"))
}

/// Fields are counted from 1 as in proc(5); the name in field 2 may itself hold spaces and parentheses.
fn stat_field(pid: u32, field: usize) -> io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rfind(')').ok_or_else(|| malformed("the stat file"))?;
    let rest = text.get(after_name + 1..).unwrap_or_default();
    rest.split_ascii_whitespace().nth(field - 3).map(str::to_owned).ok_or_else(|| malformed("the stat file"))
}

/// Identity of this boot of the machine.
///
/// # Errors
/// When `/proc/sys` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Proportional set size of a process in KiB, from `smaps_rollup`.
///
/// # Errors
/// `NotFound` when there is no such process; a kernel thread or zombie has none.
pub fn pss_kib(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or_else(|| malformed("the smaps_rollup file"))
}

/// Number of threads of the calling process.
///
/// # Errors
/// When procfs is not mounted.
pub fn own_threads() -> io::Result<usize> {
    Ok(std::fs::read_dir(Path::new("/proc/self/task"))?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_of_any_thread_are_found() {
        let start = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        let found = children(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
    }

    #[test]
    fn own_process_is_described() {
        let me = std::process::id();
        assert!(start_time(me).unwrap() > 0);
        assert_eq!(parent(me).unwrap(), std::os::unix::process::parent_id());
        assert!(pss_kib(me).unwrap() > 0);
        assert_eq!(boot_id().unwrap().len(), 36);
        assert_eq!(start_time(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
