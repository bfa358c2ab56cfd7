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
/// `NotFound` if there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)?.parse().map_err(|_| malformed("the stat file"))
}

/// Parent of a process (field 4 of `/proc/<pid>/stat`).
///
/// # Errors
/// `NotFound` if there is no such process.
pub fn parent(pid: u32) -> io::Result<u32> {
    stat_field(pid, 4)?.parse().map_err(|_| malformed("the stat file"))
}

/// Process group of a process (field 5 of `/proc/<pid>/stat`); 0 for threads of the kernel.
///
/// # Errors
/// `NotFound` if there is no such process.
pub fn group(pid: u32) -> io::Result<u32> {
    stat_field(pid, 5)?.parse().map_err(|_| malformed("the stat file"))
}

/// Children of a process, of any of its threads.
///
/// # Errors
/// `NotFound` if there is no such process, or the kernel lacks CONFIG_PROC_CHILDREN.
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("children"))?;
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Whether SIGTERM has no effect on a process: it is the first of its PID namespace, where signals without a handler
/// are discarded, has no handler, and no child that could have received the signal. Excludes one that ignores SIGTERM
/// on purpose. Also false if something cannot be read.
#[must_use]
pub fn is_deaf_init(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    is_first_without_handler(&status) && children(pid).is_ok_and(|children| children.is_empty())
}

fn is_first_without_handler(status: &str) -> bool {
    const SIGTERM: u64 = 1 << (15 - 1);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let among = |name: &str| {
        let mask = field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
        mask.is_none_or(|mask| mask & SIGTERM != 0)
    };
    // Its pid in each PID namespace, from this one inwards.
    let inside = field("NSpid:").unwrap_or_default().split_ascii_whitespace().skip(1).last();
    inside == Some("1") && !among("SigCgt:") && !among("SigIgn:") && !among("SigBlk:")
}

/// State letter of a process (`R`, `S`, `D`, `Z`, ...).
///
/// # Errors
/// `NotFound` if there is no such process.
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
/// If `/proc/sys` is missing.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Proportional set size of a process in KiB, from `smaps_rollup`.
///
/// # Errors
/// `NotFound` if there is no such process; a kernel thread or zombie has none.
pub fn pss_kib(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or_else(|| malformed("the smaps_rollup file"))
}

/// Bytes of the calling process's address space.
///
/// # Errors
/// When procfs is not mounted.
pub fn own_size() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    let page =
        page.and_then(|page| u64::try_from(page).ok()).ok_or_else(|| malformed("the size of a page"))?;
    pages.and_then(|pages| pages.checked_mul(page)).ok_or_else(|| malformed("the statm file"))
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
    fn only_a_first_process_without_handler_is_deaf() {
        let status = |pids: &str, caught: u64, ignored: u64, blocked: u64| {
            format!(
                "Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            )
        };
        let term = 0x4000;
        assert!(is_first_without_handler(&status("77\t1", 0x2, 0x1000, 0)));
        assert!(is_first_without_handler(&status("77\t12\t1", 0, 0, 0)));
        assert!(!is_first_without_handler(&status("77\t1", term, 0, 0)));
        assert!(!is_first_without_handler(&status("77\t1", 0, term, 0)));
        assert!(!is_first_without_handler(&status("77\t1", 0, 0, term)));
        assert!(!is_first_without_handler(&status("77\t5", 0, 0, 0)));
        assert!(!is_first_without_handler(&status("1", 0, 0, 0)));
        assert!(!is_first_without_handler("NSpid:\t77\t1\n") && !is_deaf_init(u32::MAX));
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
