//! Figures of one cgroup beyond those of ordinary stats, for the CRI's metrics: v1 and v2.
//!
//! Owns file names and units. What the kernel does not report is None or absent, never a guess.

use super::CgroupError;
use super::stats::{keyed, number, text};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A cgroup's usage and events in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupDetails {
    /// CPU time in user mode, nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// CPU time in the kernel, nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// Periods of the CPU quota that have passed.
    pub periods: Option<u64>,
    /// Those in which it was held back.
    pub throttled_periods: Option<u64>,
    /// For how long, nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Page cache, bytes.
    pub cache: Option<u64>,
    /// Memory of the kernel, bytes.
    pub kernel: Option<u64>,
    /// Mapped files, bytes.
    pub mapped_file: Option<u64>,
    /// File pages in active use, bytes.
    pub active_file: Option<u64>,
    /// File pages that can be dropped, bytes.
    pub inactive_file: Option<u64>,
    /// How often usage reached the memory limit.
    pub limit_hits: Option<u64>,
    /// The most memory it had, bytes.
    pub peak: Option<u64>,
    /// Processes killed for lack of memory.
    pub oom_kills: Option<u64>,
    /// Limit on tasks; 0: none.
    pub pids_limit: Option<u64>,
    /// Input and output, by device.
    pub io: Vec<DeviceIo>,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
}

/// Reads and writes of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// `2MB`.
    pub page_size: String,
    /// Used now.
    pub usage: u64,
    /// The most that was used; v1 only.
    pub peak: Option<u64>,
}

pub(super) fn read_v2(dir: &Path, page_sizes: &[String]) -> Result<CgroupDetails, CgroupError> {
    let table = |name: &str| Ok::<_, CgroupError>(keyed(&dir.join(name))?.unwrap_or_default());
    let (cpu, memory, events) = (table("cpu.stat")?, table("memory.stat")?, table("memory.events")?);
    let get = |table: &BTreeMap<String, u64>, name: &str| table.get(name).copied();
    let nanos = |name: &str| get(&cpu, name).map(|us| us.saturating_mul(1000));
    // One figure since 5.18; before, the sum of the reported parts.
    let kernel = get(&memory, "kernel").or_else(|| {
        let parts = ["kernel_stack", "pagetables", "percpu", "slab"].map(|part| get(&memory, part));
        parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum())
    });
    let mut huge_pages = Vec::new();
    for page_size in page_sizes {
        if let Some(usage) = number(&dir.join(format!("hugetlb.{page_size}.current")))? {
            huge_pages.push(HugePages { page_size: page_size.clone(), usage, peak: None });
        }
    }
    Ok(CgroupDetails {
        cpu_user_ns: nanos("user_usec"),
        cpu_system_ns: nanos("system_usec"),
        periods: get(&cpu, "nr_periods"),
        throttled_periods: get(&cpu, "nr_throttled"),
        throttled_ns: nanos("throttled_usec"),
        cache: get(&memory, "file"),
        kernel,
        mapped_file: get(&memory, "file_mapped"),
        active_file: get(&memory, "active_file"),
        inactive_file: get(&memory, "inactive_file"),
        limit_hits: get(&events, "max"),
        peak: number(&dir.join("memory.peak"))?,
        oom_kills: get(&events, "oom_kill"),
        pids_limit: limit(&dir.join("pids.max"))?,
        io: text(&dir.join("io.stat"))?.map(|text| io_stat(&text)).unwrap_or_default(),
        huge_pages,
    })
}

pub(super) fn read_v1(
    dir: &dyn Fn(&str) -> Option<PathBuf>,
    page_sizes: &[String],
) -> Result<CgroupDetails, CgroupError> {
    let one = |controller: &str, file: &str| match dir(controller) {
        Some(dir) => number(&dir.join(file)),
        None => Ok(None),
    };
    let table = |controller: &str, file: &str| match dir(controller) {
        Some(dir) => Ok::<_, CgroupError>(keyed(&dir.join(file))?.unwrap_or_default()),
        None => Ok(BTreeMap::new()),
    };
    let (cpu, memory) = (table("cpu", "cpu.stat")?, table("memory", "memory.stat")?);
    let oom = table("memory", "memory.oom_control")?;
    let get = |table: &BTreeMap<String, u64>, name: &str| table.get(name).copied();
    let mut huge_pages = Vec::new();
    for page_size in page_sizes {
        if let Some(usage) = one("hugetlb", &format!("hugetlb.{page_size}.usage_in_bytes"))? {
            let peak = one("hugetlb", &format!("hugetlb.{page_size}.max_usage_in_bytes"))?;
            huge_pages.push(HugePages { page_size: page_size.clone(), usage, peak });
        }
    }
    let io = match dir("blkio") {
        Some(dir) => blkio(
            &text(&dir.join("blkio.throttle.io_service_bytes_recursive"))?.unwrap_or_default(),
            &text(&dir.join("blkio.throttle.io_serviced_recursive"))?.unwrap_or_default(),
        ),
        None => Vec::new(),
    };
    let pids_limit = match dir("pids") {
        Some(dir) => limit(&dir.join("pids.max"))?,
        None => None,
    };
    Ok(CgroupDetails {
        cpu_user_ns: one("cpuacct", "cpuacct.usage_user")?,
        cpu_system_ns: one("cpuacct", "cpuacct.usage_sys")?,
        periods: get(&cpu, "nr_periods"),
        throttled_periods: get(&cpu, "nr_throttled"),
        throttled_ns: get(&cpu, "throttled_time"),
        cache: get(&memory, "total_cache"),
        kernel: one("memory", "memory.kmem.usage_in_bytes")?,
        mapped_file: get(&memory, "total_mapped_file"),
        active_file: get(&memory, "total_active_file"),
        inactive_file: get(&memory, "total_inactive_file"),
        limit_hits: one("memory", "memory.failcnt")?,
        peak: one("memory", "memory.max_usage_in_bytes")?,
        oom_kills: get(&oom, "oom_kill"),
        pids_limit,
        io,
        huge_pages,
    })
}

/// A limit file: `max` is 0.
fn limit(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(text(path)?.and_then(|text| match text.trim() {
        "max" => Some(0),
        number => number.parse().ok(),
    }))
}

/// `8:0`
fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_stat(text: &str) -> Vec<DeviceIo> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

/// Lines of `8:0 Read 1`, one file for bytes and one for operations.
fn blkio(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: BTreeMap<(u32, u32), DeviceIo> = BTreeMap::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some((major, minor)) = words.next().and_then(device) else { continue };
            let (Some(operation), Some(value)) = (words.next(), words.next().and_then(|v| v.parse().ok()))
            else {
                continue;
            };
            let io = devices.entry((major, minor)).or_default();
            (io.major, io.minor) = (major, minor);
            match (operation, counts_bytes) {
                ("Read", true) => io.read_bytes = value,
                ("Write", true) => io.written_bytes = value,
                ("Read", false) => io.reads = value,
                ("Write", false) => io.writes = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
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
    fn v2_details() {
        let dir = dir(&[
            ("cpu.stat", "user_usec 7\nsystem_usec 5\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n"),
            ("memory.stat", "file 100\nkernel_stack 4\nslab 6\nfile_mapped 30\nactive_file 1\n"),
            ("memory.events", "max 8\noom 2\noom_kill 1\n"),
            ("memory.peak", "4096\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
        ]);
        let details = read_v2(dir.path(), &["2MB".into(), "1GB".into()]).unwrap();
        assert_eq!((details.cpu_user_ns, details.cpu_system_ns), (Some(7000), Some(5000)));
        assert_eq!((details.throttled_periods, details.throttled_ns), (Some(2), Some(9000)));
        assert_eq!((details.cache, details.kernel, details.mapped_file), (Some(100), Some(10), Some(30)));
        assert_eq!((details.limit_hits, details.oom_kills, details.peak), (Some(8), Some(1), Some(4096)));
        assert_eq!((details.pids_limit, details.inactive_file), (Some(0), None));
        let io = &details.io[0];
        assert_eq!((io.major, io.minor, io.read_bytes, io.writes), (8, 16, 1, 4));
        let page = HugePages { page_size: "2MB".into(), usage: 2 << 20, peak: None };
        assert_eq!(details.huge_pages, [page]);
    }

    #[test]
    fn v1_details() {
        let dir = dir(&[
            ("cpuacct.usage_user", "7\n"),
            ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 9\n"),
            ("memory.stat", "cache 1\ntotal_cache 100\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory.failcnt", "5\n"),
            ("pids.max", "16\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("hugetlb.2MB.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "4\n"),
        ]);
        let details = read_v1(&|_| Some(dir.path().to_owned()), &["2MB".into()]).unwrap();
        assert_eq!((details.cpu_user_ns, details.throttled_ns), (Some(7), Some(9)));
        assert_eq!((details.cache, details.oom_kills, details.limit_hits), (Some(100), Some(3), Some(5)));
        assert_eq!(details.pids_limit, Some(16));
        let io = DeviceIo { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(details.io, [io]);
        assert_eq!(details.huge_pages[0].peak, Some(4));
    }
}
