//! Usage figures of one cgroup, v1 and v2.
//!
//! Owns file names and units. Never computes rates: those need two readings (`rate`).

use super::CgroupError;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A limit above this is none (v1 writes a page-aligned i64::MAX).
const UNLIMITED_ABOVE: u64 = 1 << 62;

/// Usage of one container or pod. A part is None if the host has no such controller or the cgroup is gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CgroupStats {
    /// CPU time used, nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Pressure stall information; v2 only.
    pub pressure: PressureStats,
}

impl CgroupStats {
    /// The sum, for cgroups without a parent of their own; pressure and limits cannot be added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
            match (a, b) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
            }
        }
        let memory = match (self.memory, other.memory) {
            (Some(a), Some(b)) => Some(MemoryStats {
                usage: a.usage.saturating_add(b.usage),
                working_set: a.working_set.saturating_add(b.working_set),
                rss: a.rss.saturating_add(b.rss),
                limit: None,
                page_faults: a.page_faults.saturating_add(b.page_faults),
                major_page_faults: a.major_page_faults.saturating_add(b.major_page_faults),
                swap_usage: sum(a.swap_usage, b.swap_usage),
                swap_limit: None,
            }),
            (a, b) => a.or(b),
        };
        Self {
            cpu_usage_ns: sum(self.cpu_usage_ns, other.cpu_usage_ns),
            memory,
            pids: sum(self.pids, other.pids),
            pressure: PressureStats::default(),
        }
    }
}

/// Memory of one container, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All charged memory.
    pub usage: u64,
    /// Usage without inactive file pages, which the kernel can drop.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// The limit; None: unlimited.
    pub limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from disk.
    pub major_page_faults: u64,
    /// Swap used; None: not accounted.
    pub swap_usage: Option<u64>,
    /// Swap that may be used; None: unlimited or not accounted.
    pub swap_limit: Option<u64>,
}

/// Pressure by resource.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PressureStats {
    /// cpu.pressure
    pub cpu: Option<Pressure>,
    /// memory.pressure
    pub memory: Option<Pressure>,
    /// io.pressure
    pub io: Option<Pressure>,
}

/// One pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waits.
    pub some: PressureLine,
    /// All tasks wait.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// Nanoseconds in all (the kernel counts microseconds).
    pub total_ns: u64,
}

/// The text of a file; None: it does not exist or the cgroup is just going.
pub(super) fn text(path: &Path) -> Result<Option<String>, CgroupError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        // A cgroup removed between open and read, and pressure files of a kernel that has them switched off.
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EOPNOTSUPP)) => Ok(None),
        Err(cause) => Err(CgroupError::Io { operation: "read", path: path.to_owned(), cause }),
    }
}

/// A file of `name value` lines.
pub(super) fn keyed(path: &Path) -> Result<Option<BTreeMap<String, u64>>, CgroupError> {
    Ok(text(path)?.map(|text| {
        text.lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(' ')?;
                Some((name.to_owned(), value.trim().parse().ok()?))
            })
            .collect()
    }))
}

/// A file of one number; `max` and absence are None.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(text(path)?.and_then(|text| text.trim().parse().ok()))
}

fn limited(limit: Option<u64>) -> Option<u64> {
    limit.filter(|limit| *limit < UNLIMITED_ABOVE)
}

pub(super) fn read_v2(dir: &Path) -> Result<CgroupStats, CgroupError> {
    let cpu = keyed(&dir.join("cpu.stat"))?;
    let memory = match (number(&dir.join("memory.current"))?, keyed(&dir.join("memory.stat"))?) {
        (Some(usage), Some(stat)) => {
            let get = |name: &str| stat.get(name).copied().unwrap_or(0);
            Some(MemoryStats {
                usage,
                working_set: usage.saturating_sub(get("inactive_file")),
                rss: get("anon"),
                limit: number(&dir.join("memory.max"))?,
                page_faults: get("pgfault"),
                major_page_faults: get("pgmajfault"),
                swap_usage: number(&dir.join("memory.swap.current"))?,
                swap_limit: number(&dir.join("memory.swap.max"))?,
            })
        }
        _ => None,
    };
    Ok(CgroupStats {
        cpu_usage_ns: cpu.and_then(|cpu| cpu.get("usage_usec").map(|us| us.saturating_mul(1000))),
        memory,
        pids: number(&dir.join("pids.current"))?,
        pressure: PressureStats {
            cpu: pressure(&dir.join("cpu.pressure"))?,
            memory: pressure(&dir.join("memory.pressure"))?,
            io: pressure(&dir.join("io.pressure"))?,
        },
    })
}

pub(super) fn read_v1(dir: &dyn Fn(&str) -> Option<PathBuf>) -> Result<CgroupStats, CgroupError> {
    let one = |controller: &str, file: &str| match dir(controller) {
        Some(dir) => number(&dir.join(file)),
        None => Ok(None),
    };
    let stat = match dir("memory") {
        Some(dir) => keyed(&dir.join("memory.stat"))?,
        None => None,
    };
    let memory = match (one("memory", "memory.usage_in_bytes")?, stat) {
        (Some(usage), Some(stat)) => {
            let get = |name: &str| stat.get(name).copied().unwrap_or(0);
            let limit = limited(one("memory", "memory.limit_in_bytes")?);
            // v1 counts memory and swap together.
            let both = one("memory", "memory.memsw.usage_in_bytes")?;
            let both_limit = limited(one("memory", "memory.memsw.limit_in_bytes")?);
            Some(MemoryStats {
                usage,
                working_set: usage.saturating_sub(get("total_inactive_file")),
                rss: get("total_rss"),
                limit,
                page_faults: get("total_pgfault"),
                major_page_faults: get("total_pgmajfault"),
                swap_usage: both.map(|both| both.saturating_sub(usage)),
                swap_limit: both_limit.zip(limit).map(|(both, limit)| both.saturating_sub(limit)),
            })
        }
        _ => None,
    };
    Ok(CgroupStats {
        cpu_usage_ns: one("cpuacct", "cpuacct.usage")?,
        memory,
        pids: one("pids", "pids.current")?,
        pressure: PressureStats::default(),
    })
}

fn pressure(path: &Path) -> Result<Option<Pressure>, CgroupError> {
    Ok(text(path)?.map(|text| parse_pressure(&text)))
}

fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let target = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => target.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => target.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => target.avg300 = value.parse().unwrap_or(0.0),
                "total" => target.total_ns = value.parse::<u64>().unwrap_or(0).saturating_mul(1000),
                _ => {}
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn v2_files_are_read_in_their_units() {
        let dir = dir(&[
            ("cpu.stat", "usage_usec 12\nuser_usec 7\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 300\ninactive_file 400\npgfault 5\npgmajfault 1\n"),
            ("memory.swap.current", "8\n"),
            ("memory.swap.max", "16\n"),
            ("pids.current", "3\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.25 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
            ),
        ]);
        let stats = read_v2(dir.path()).unwrap();
        let memory = stats.memory.unwrap();
        assert_eq!((stats.cpu_usage_ns, stats.pids), (Some(12_000), Some(3)));
        assert_eq!((memory.working_set, memory.rss, memory.limit), (600, 300, None));
        assert_eq!((memory.swap_usage, memory.swap_limit), (Some(8), Some(16)));
        let cpu = stats.pressure.cpu.unwrap();
        assert_eq!((cpu.some.total_ns, cpu.full.total_ns), (7000, 2000));
        assert!((cpu.some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!(stats.pressure.io, None);
    }

    #[test]
    fn v1_files_are_read_in_their_units() {
        let dir = dir(&[
            ("cpuacct.usage", "99\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.usage_in_bytes", "1010\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "rss 1\ntotal_rss 300\ntotal_inactive_file 2000\ntotal_pgfault 5\n"),
        ]);
        let stats = read_v1(&|_| Some(dir.path().to_owned())).unwrap();
        let memory = stats.memory.unwrap();
        assert_eq!(stats.cpu_usage_ns, Some(99));
        assert_eq!((memory.working_set, memory.rss, memory.limit), (0, 300, None));
        assert_eq!((memory.swap_usage, memory.swap_limit), (Some(10), None));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_figures() {
        let dir = dir(&[]);
        assert_eq!(read_v2(&dir.path().join("gone")).unwrap(), CgroupStats::default());
        assert_eq!(read_v1(&|_| None).unwrap(), CgroupStats::default());
    }
}
