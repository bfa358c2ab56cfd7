//! Readings of a container or pod as samples. Pure: a missing reading yields no sample.

use super::descriptors::{self as names, BASE, Descriptor};
use crate::cri::proto as pb;
use crate::host::cgroups::{CgroupDetails, CgroupStats, Pressure};
use crate::host::interfaces::Counters;
use crate::host::processes::OpenFiles;
use crate::host::space::{Space, block_device};
use crate::model::{Resources, Timestamp};
use crate::sandbox::Measured;

/// Nanoseconds in a second: CRI has whole numbers only.
const SECOND: u64 = 1_000_000_000;
/// The kernel's default period, microseconds.
const DEFAULT_PERIOD: i64 = 100_000;
/// The kernel's default weight.
const DEFAULT_SHARES: i64 = 1024;

/// Open files and sockets of a container's processes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) open: Option<OpenFiles>,
    /// Soft limit of the first process on open files.
    pub(super) open_limit: Option<u64>,
}

/// Samples in the making, all with the same base labels.
#[derive(Debug)]
pub(super) struct Sheet {
    base: [String; BASE.len()],
    samples: Vec<pb::Metric>,
}

impl Sheet {
    /// `base` in the order of [`BASE`].
    pub(super) fn new(base: [String; BASE.len()]) -> Self {
        Self { base, samples: Vec::new() }
    }

    pub(super) fn samples(self) -> Vec<pb::Metric> {
        self.samples
    }

    fn put<const N: usize>(&mut self, what: &Descriptor<N>, labels: [&str; N], value: Option<u64>) {
        self.put_at(what, labels, value, 0);
    }

    /// A sample that was read at `timestamp`; 0: just now.
    fn put_at<const N: usize>(
        &mut self,
        what: &Descriptor<N>,
        labels: [&str; N],
        value: Option<u64>,
        timestamp: i64,
    ) {
        let Some(value) = value else { return };
        let mut label_values = self.base.to_vec();
        label_values.extend(labels.map(str::to_owned));
        self.samples.push(pb::Metric {
            name: what.name.to_owned(),
            timestamp,
            metric_type: what.kind.into(),
            label_values,
            value: Some(pb::UInt64Value { value }),
        });
    }

    /// Cgroup figures of a container or a pod.
    pub(super) fn cgroup(&mut self, stats: &CgroupStats, details: &CgroupDetails) {
        let seconds = |nanos: Option<u64>| nanos.map(|nanos| nanos / SECOND);
        self.put(&names::CPU_USAGE, ["total"], seconds(stats.cpu_usage_ns));
        self.put(&names::CPU_USER, [], seconds(details.cpu_user_ns));
        self.put(&names::CPU_SYSTEM, [], seconds(details.cpu_system_ns));
        self.put(&names::CFS_PERIODS, [], details.periods);
        self.put(&names::CFS_THROTTLED, [], details.throttled_periods);
        self.put(&names::CFS_THROTTLED_TIME, [], seconds(details.throttled_ns));
        if let Some(memory) = &stats.memory {
            self.put(&names::MEMORY_USAGE, [], Some(memory.usage));
            self.put(&names::MEMORY_WORKING_SET, [], Some(memory.working_set));
            self.put(&names::MEMORY_RSS, [], Some(memory.rss));
            self.put(&names::MEMORY_SWAP, [], Some(memory.swap_usage.unwrap_or(0)));
            // cAdvisor's scopes, the second including child cgroups: both show the kernel's one figure.
            for scope in ["container", "hierarchy"] {
                self.put(&names::MEMORY_FAILURES, ["pgfault", scope], Some(memory.page_faults));
                self.put(&names::MEMORY_FAILURES, ["pgmajfault", scope], Some(memory.major_page_faults));
            }
        }
        self.put(&names::MEMORY_CACHE, [], details.cache);
        self.put(&names::MEMORY_KERNEL, [], details.kernel);
        self.put(&names::MEMORY_MAPPED, [], details.mapped_file);
        self.put(&names::MEMORY_ACTIVE_FILE, [], details.active_file);
        self.put(&names::MEMORY_INACTIVE_FILE, [], details.inactive_file);
        self.put(&names::MEMORY_FAILCNT, [], details.limit_hits);
        self.put(&names::MEMORY_MAX_USAGE, [], details.peak);
        self.put(&names::OOM_EVENTS, [], details.oom_kills);
        self.put(&names::THREADS, [], stats.pids);
        self.put(&names::THREADS_MAX, [], details.pids_limit);
        for size in &details.huge_pages {
            self.put(&names::HUGETLB_USAGE, [&size.page_size], Some(size.usage));
            self.put(&names::HUGETLB_MAX_USAGE, [&size.page_size], size.peak);
        }
        for io in &details.io {
            let device = &block_device(io.major, io.minor);
            self.put(&names::FS_READ_BYTES, [device], Some(io.read_bytes));
            self.put(&names::FS_READS, [device], Some(io.reads));
            self.put(&names::FS_WRITTEN_BYTES, [device], Some(io.written_bytes));
            self.put(&names::FS_WRITES, [device], Some(io.writes));
            let (major, minor) = (io.major.to_string(), io.minor.to_string());
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
                self.put(&names::BLKIO, [device, &major, &minor, operation], Some(bytes));
            }
        }
        let pressure = &stats.pressure;
        for (found, waiting, stalled) in [
            (&pressure.cpu, &names::PRESSURE_CPU_WAITING, &names::PRESSURE_CPU_STALLED),
            (&pressure.memory, &names::PRESSURE_MEMORY_WAITING, &names::PRESSURE_MEMORY_STALLED),
            (&pressure.io, &names::PRESSURE_IO_WAITING, &names::PRESSURE_IO_STALLED),
        ] {
            let total = |line: fn(&Pressure) -> u64| seconds(found.as_ref().map(line));
            self.put(waiting, [], total(|p| p.some.total_ns));
            self.put(stalled, [], total(|p| p.full.total_ns));
        }
    }

    /// The writable layer and its file system.
    pub(super) fn layer(&mut self, layer: Option<Measured>, limit: u64, space: &Space) {
        let device = [space.device.as_str()];
        self.put(&names::FS_INODES_FREE, device, Some(space.free_inodes));
        self.put(&names::FS_INODES_TOTAL, device, Some(space.inodes));
        self.put(&names::FS_LIMIT, device, Some(if limit > 0 { limit } else { space.bytes }));
        if let Some(layer) = layer {
            self.put_at(&names::FS_USAGE, device, Some(layer.usage.bytes), layer.at.nanos());
        }
    }

    pub(super) fn processes(&mut self, processes: &Processes) {
        self.put(&names::PROCESSES, [], Some(processes.count));
        self.put(&names::FILE_DESCRIPTORS, [], processes.open.map(|open| open.files));
        self.put(&names::SOCKETS, [], processes.open.map(|open| open.sockets));
        self.put(&names::ULIMITS, ["max_open_files"], processes.open_limit);
    }

    /// The limits in force.
    pub(super) fn limits(&mut self, limits: &Resources) {
        let or = |value: i64, otherwise: i64| u64::try_from(if value == 0 { otherwise } else { value }).ok();
        self.put(&names::SPEC_CPU_PERIOD, [], or(limits.cpu_period, DEFAULT_PERIOD));
        // Negative: unlimited, for which there is no number.
        self.put(&names::SPEC_CPU_QUOTA, [], u64::try_from(limits.cpu_quota).ok().filter(|quota| *quota > 0));
        self.put(&names::SPEC_CPU_SHARES, [], or(limits.cpu_shares, DEFAULT_SHARES));
        self.put(&names::SPEC_MEMORY_LIMIT, [], or(limits.memory_limit, 0));
        let reserved = limits.unified.get("memory.low").and_then(|value| value.parse().ok());
        self.put(&names::SPEC_MEMORY_RESERVATION, [], Some(reserved.unwrap_or(0)));
        let swap = or(limits.memory_swap_limit, limits.memory_limit);
        self.put(&names::SPEC_MEMORY_SWAP, [], Some(swap.unwrap_or(0)));
    }

    pub(super) fn times(&mut self, started: Option<Timestamp>, now: Timestamp) {
        let seconds = |at: Timestamp| u64::try_from(at.nanos()).ok().map(|nanos| nanos / SECOND);
        self.put(&names::START_TIME, [], started.and_then(seconds));
        self.put(&names::LAST_SEEN, [], seconds(now));
    }

    pub(super) fn network(&mut self, devices: &[Counters]) {
        for Counters { name, received, sent } in devices {
            let name = [name.as_str()];
            self.put(&names::NETWORK_RECEIVED_BYTES, name, Some(received.bytes));
            self.put(&names::NETWORK_RECEIVED_PACKETS, name, Some(received.packets));
            self.put(&names::NETWORK_RECEIVED_DROPPED, name, Some(received.dropped));
            self.put(&names::NETWORK_RECEIVE_ERRORS, name, Some(received.errors));
            self.put(&names::NETWORK_SENT_BYTES, name, Some(sent.bytes));
            self.put(&names::NETWORK_SENT_PACKETS, name, Some(sent.packets));
            self.put(&names::NETWORK_SENT_DROPPED, name, Some(sent.dropped));
            self.put(&names::NETWORK_SEND_ERRORS, name, Some(sent.errors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroups::{DeviceIo, HugePages, MemoryStats, PressureStats};
    use crate::host::interfaces::Traffic;
    use crate::host::usage::Usage;
    use std::collections::{BTreeMap, BTreeSet};

    fn everything() -> Vec<pb::Metric> {
        let mut sheet = Sheet::new(BASE.map(str::to_owned));
        let pressure = Some(Pressure::default());
        let stats = CgroupStats {
            cpu_usage_ns: Some(3 * SECOND + 1),
            memory: Some(MemoryStats::default()),
            pids: Some(2),
            pressure: PressureStats { cpu: pressure, memory: pressure, io: pressure },
        };
        let some = Some(SECOND);
        let details = CgroupDetails {
            cpu_user_ns: some,
            cpu_system_ns: some,
            periods: some,
            throttled_periods: some,
            throttled_ns: some,
            cache: some,
            kernel: some,
            mapped_file: some,
            active_file: some,
            inactive_file: some,
            limit_hits: some,
            peak: some,
            oom_kills: some,
            pids_limit: some,
            io: vec![DeviceIo::default()],
            huge_pages: vec![HugePages { page_size: "2MB".into(), usage: 1, peak: Some(2) }],
        };
        sheet.cgroup(&stats, &details);
        let space = Space { device: "/dev/sda1".into(), bytes: 9, inodes: 8, free_inodes: 7 };
        let layer = Measured { usage: Usage { bytes: 5, inodes: 1 }, at: Timestamp(77) };
        sheet.layer(Some(layer), 0, &space);
        sheet.processes(&Processes { count: 1, open: Some(OpenFiles::default()), open_limit: Some(1024) });
        sheet.limits(&Resources { cpu_quota: 1000, ..Resources::default() });
        let now = Timestamp(5_000_000_000);
        sheet.times(Some(now), now);
        let traffic = Traffic::default();
        sheet.network(&[Counters { name: "eth0".into(), received: traffic, sent: traffic }]);
        sheet.samples()
    }

    #[test]
    fn samples_and_descriptors_agree() {
        let announced: BTreeMap<String, usize> =
            names::all().into_iter().map(|d| (d.name, d.label_keys.len())).collect();
        let samples = everything();
        let sampled: BTreeSet<&str> = samples.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(sampled, announced.keys().map(String::as_str).collect());
        for sample in &samples {
            assert_eq!(sample.label_values.len(), announced[&sample.name], "{}", sample.name);
            assert!(sample.label_values.starts_with(&BASE.map(str::to_owned)));
        }
        let series: BTreeSet<_> = samples.iter().map(|s| (&s.name, &s.label_values)).collect();
        assert_eq!(series.len(), samples.len(), "two samples of one series");
    }

    #[test]
    fn values_are_in_the_units_of_their_names() {
        let samples = everything();
        let of = |name: &str| samples.iter().find(|s| s.name == name).unwrap();
        let value = |name: &str| of(name).value.as_ref().unwrap().value;
        assert_eq!(value("container_cpu_usage_seconds_total"), 3);
        assert_eq!(of("container_cpu_usage_seconds_total").label_values[BASE.len()], "total");
        assert_eq!((value("container_fs_usage_bytes"), of("container_fs_usage_bytes").timestamp), (5, 77));
        assert_eq!(value("container_fs_limit_bytes"), 9);
        assert_eq!(value("container_spec_cpu_period"), 100_000);
        assert_eq!(value("container_start_time_seconds"), 5);
    }

    #[test]
    fn what_was_not_read_makes_no_sample() {
        let mut sheet = Sheet::new(BASE.map(str::to_owned));
        sheet.cgroup(&CgroupStats::default(), &CgroupDetails::default());
        sheet.limits(&Resources { cpu_quota: -1, memory_swap_limit: -1, ..Resources::default() });
        let samples = sheet.samples();
        let names: Vec<&str> = samples.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names.iter().filter(|name| !name.starts_with("container_spec")).count(), 0, "{names:?}");
        assert!(!names.contains(&"container_spec_cpu_quota"));
    }
}
