//! Limits of the kernel and of the daemon's process that a node reaches, and the clock.

use super::kernel::set;
use super::{Finding, Subject};
use crate::host::kernel;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// The daemon's descriptors: two per pod, and those of images being unpacked.
const OPEN_FILES: u64 = 65536;
/// The kernel's default for small machines is 32768, which some hundred pods of threads exhaust.
const PIDS: u64 = 65536;
/// The kernel's default of 128 is used up by kubelet, cAdvisor and a few pods that watch files.
const INOTIFY_INSTANCES: u64 = 1024;
/// Kernels from 5.11 on allow a share of the memory, older ones 8192.
const INOTIFY_WATCHES: u64 = 65536;
/// Keys of each user, with their limits (`keyrings(7)`).
const KEY_USERS: &str = "/proc/key-users";
/// The part of root's keys or of their bytes that a node does not use by itself: a container needs one small key.
const KEYS_PERCENT: u64 = 80;
/// 2025-01-01, before the first release: an earlier clock is wrong.
const RELEASED: u64 = 1_735_689_600;

pub(super) fn all(subject: &Subject<'_>) -> Vec<Finding> {
    let daemon = subject.daemon().map(|owner| owner.pid);
    vec![
        open_files(daemon, kernel::open_files_limit(daemon)),
        at_least("processes", "kernel.pid_max", PIDS, "4194304"),
        at_least("inotify instances", "fs.inotify.max_user_instances", INOTIFY_INSTANCES, "8192"),
        at_least("inotify watches", "fs.inotify.max_user_watches", INOTIFY_WATCHES, "524288"),
        keys(std::fs::read_to_string(KEY_USERS)),
        clock(now(), podwright_sys::clock::synchronized()),
    ]
}

/// Only the daemon's own limit counts; a shell's limit is unrelated to the unit's.
fn open_files(daemon: Option<u32>, limit: io::Result<u64>) -> Finding {
    let name = "open files";
    match (daemon, limit) {
        (None, _) => Finding::ok(name, "known when the daemon runs; its unit gives it 1048576"),
        (Some(_), Err(error)) => Finding::unknown(name, "the daemon's limit", error),
        (Some(_), Ok(limit)) if limit >= OPEN_FILES => {
            Finding::ok(name, format!("the daemon may have {limit}"))
        }
        (Some(_), Ok(limit)) => Finding::warn(
            name,
            format!("the daemon may have {limit} only"),
            "start it by its unit, which has LimitNOFILE, or after: ulimit -n 1048576",
        ),
    }
}

fn at_least(name: &str, key: &'static str, wanted: u64, better: &str) -> Finding {
    match kernel::setting(key) {
        Ok(Some(value)) => judge(name, key, &value, wanted, better),
        Err(error) => Finding::unknown(name, key, error),
        Ok(None) => Finding::ok(name, format!("this kernel has no {key}")),
    }
}

fn judge(name: &str, key: &str, value: &str, wanted: u64, better: &str) -> Finding {
    match value.parse::<u64>() {
        Ok(number) if number < wanted => {
            Finding::warn(name, format!("{key} is {value}: full nodes run into it"), set(key, better))
        }
        Ok(_) => Finding::ok(name, value),
        Err(error) => Finding::unknown(name, &format!("{key} is {value:?}"), error),
    }
}

/// Containers without a user namespace have their keys from root's share.
fn keys(users: io::Result<String>) -> Finding {
    let name = "kernel keys";
    let users = match users {
        Ok(users) => users,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(name, "this kernel has none");
        }
        Err(error) => return Finding::unknown(name, KEY_USERS, error),
    };
    // "    0:   110 109/109 103/1000000 2345/25000000": of the last two, used and most.
    let of_root = users.lines().find_map(|line| line.trim_start().strip_prefix("0:"));
    let is_line = |line: &str| line.split_once(':').is_some_and(|(uid, _)| uid.trim().parse::<u32>().is_ok());
    if !users.lines().all(is_line) {
        return Finding::unknown(name, KEY_USERS, "it has another form");
    }
    let Some(shares) = of_root.map(|fields| fields.split_whitespace().skip(2).take(2)) else {
        return Finding::ok(name, "the kernel has none of root's");
    };
    let used = |share: &str| {
        let (used, most) = share.split_once('/')?;
        // With a limit of 0, none can be had.
        Some(used.parse::<u64>().ok()?.saturating_mul(100).checked_div(most.parse().ok()?).unwrap_or(100))
    };
    let Some(shares) = shares.map(used).collect::<Option<Vec<u64>>>().filter(|shares| shares.len() == 2)
    else {
        return Finding::unknown(name, KEY_USERS, "root's line has another form");
    };
    let percent = shares.into_iter().max().unwrap_or_default();
    let found = format!("root uses {percent} % of what it may have");
    match percent >= KEYS_PERCENT {
        false => Finding::ok(name, found),
        true => Finding::warn(
            name,
            format!("{found}; when it is used up, containers start without a session keyring of their own"),
            "keyctl show @u; keyctl clear @u\nThen find the container that makes them: give it a seccomp profile or hostUsers: false",
        ),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn clock(now: u64, synchronized: io::Result<bool>) -> Finding {
    let name = "clock";
    if now < RELEASED {
        return Finding::fail(
            name,
            "far in the past: no registry's certificate is valid yet",
            "timedatectl set-ntp true\nor: date -s '2030-01-31 12:00:00'",
        );
    }
    match synchronized {
        Ok(true) => Finding::ok(name, "kept by a time service"),
        Ok(false) => Finding::warn(
            name,
            "not synchronised: certificates and tokens fail when it drifts",
            "timedatectl set-ntp true\nor: apt-get install chrony",
        ),
        Err(error) => Finding::unknown(name, "whether a time service keeps it", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn small_limits_are_told_with_what_to_set() {
        let finding = judge("processes", "kernel.pid_max", "32768", PIDS, "4194304");
        let Verdict::Warn { remedy } = finding.verdict else { panic!("{finding:?}") };
        assert!(remedy.starts_with("sysctl -w kernel.pid_max=4194304\n"), "{remedy}");
        assert_eq!(judge("x", "k", "65536", PIDS, "").verdict, Verdict::Ok);
        assert!(matches!(open_files(Some(1), Ok(1024)).verdict, Verdict::Warn { .. }));
        assert_eq!(open_files(Some(1), Ok(1 << 20)).verdict, Verdict::Ok);
        assert_eq!(open_files(None, Ok(1024)).verdict, Verdict::Ok);
    }

    #[test]
    fn keys_that_run_out_are_told() {
        let line = |keys, bytes| {
            Ok(format!("    0:    12 11/11 {keys}/1000 {bytes}/25000\n  104:     1 1/1 200/200 9/20000\n"))
        };
        assert_eq!(keys(line(3, 400)).verdict, Verdict::Ok);
        assert!(matches!(keys(line(3, 24_000)).verdict, Verdict::Warn { .. }));
        assert!(matches!(keys(line(999, 4)).verdict, Verdict::Warn { .. }));
        assert_eq!(keys(Ok(String::new())).verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_is_wrong_or_kept() {
        assert!(matches!(clock(0, Ok(true)).verdict, Verdict::Fail { .. }));
        assert!(matches!(clock(RELEASED, Ok(false)).verdict, Verdict::Warn { .. }));
        assert_eq!(clock(RELEASED, Ok(true)).verdict, Verdict::Ok);
    }

    #[test]
    fn what_cannot_be_read_is_not_called_good() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for finding in [
            open_files(Some(1), Err(denied())),
            judge("processes", "kernel.pid_max", "many", PIDS, ""),
            keys(Err(denied())),
            keys(Ok("    0:    12 11/11 many/1000 3/25000\n".into())),
            keys(Ok("    0:    12 11/11 3/1000\n".into())),
            keys(Ok("uid keys\n".into())),
            clock(RELEASED, Err(denied())),
        ] {
            assert!(
                matches!(finding.verdict, Verdict::Warn { .. }) && finding.found.starts_with("unknown"),
                "{finding:?}"
            );
        }
        assert_eq!(keys(Err(io::ErrorKind::NotFound.into())).verdict, Verdict::Ok);
        assert!(matches!(keys(Ok("    0: 12 11/11 0/0 0/0".into())).verdict, Verdict::Warn { .. }));
    }
}
