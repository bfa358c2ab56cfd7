//! The metrics of pods and containers under cAdvisor's names, as ListMetricDescriptors announces them.
//!
//! A descriptor's labels are part of its type, so a sample with another number of labels does not compile.

use crate::cri::proto as pb;

/// Labels of every metric: cAdvisor's three, then those that a kubelet adds to cAdvisor's metrics and leaves to the
/// runtime here.
pub(super) const BASE: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// One metric with `N` labels of its own.
pub(super) struct Descriptor<const N: usize> {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: pb::MetricType,
    labels: [&'static str; N],
}

impl<const N: usize> Descriptor<N> {
    fn announced(&self) -> pb::MetricDescriptor {
        let keys = BASE.iter().chain(&self.labels);
        pb::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: keys.map(|key| (*key).to_owned()).collect(),
        }
    }
}

/// Declares each descriptor, and all of them as a list.
macro_rules! descriptors {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Descriptor<{ <[&str]>::len(&[$($label),*]) }> = Descriptor {
            name: $name,
            help: $help,
            kind: pb::MetricType::$kind,
            labels: [$($label),*],
        };)*

        /// Everything that a sample may be named.
        pub(in crate::cri) fn all() -> Vec<pb::MetricDescriptor> {
            vec![$($constant.announced()),*]
        }
    };
}

descriptors! {
    CPU_USER: Counter "container_cpu_user_seconds_total" [] "CPU time spent in user mode, in seconds.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" [] "CPU time spent in the kernel, in seconds.";
    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"] "CPU time spent, in seconds.";
    CFS_PERIODS: Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU limit that have passed.";
    CFS_THROTTLED: Counter "container_cpu_cfs_throttled_periods_total" [] "Periods in which the CPU limit held it back.";
    CFS_THROTTLED_TIME: Counter "container_cpu_cfs_throttled_seconds_total" [] "Time for which the CPU limit held it back, in seconds.";

    MEMORY_CACHE: Gauge "container_memory_cache" [] "Page cache, in bytes.";
    MEMORY_RSS: Gauge "container_memory_rss" [] "Anonymous memory, in bytes.";
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" [] "Memory that the kernel has on its behalf, in bytes.";
    MEMORY_MAPPED: Gauge "container_memory_mapped_file" [] "Mapped files, in bytes.";
    MEMORY_SWAP: Gauge "container_memory_swap" [] "Swap, in bytes.";
    MEMORY_FAILCNT: Counter "container_memory_failcnt" [] "How often the memory limit was met.";
    MEMORY_USAGE: Gauge "container_memory_usage_bytes" [] "All memory, in bytes.";
    MEMORY_MAX_USAGE: Gauge "container_memory_max_usage_bytes" [] "The most memory it ever had, in bytes.";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" [] "Memory without inactive file pages, in bytes.";
    MEMORY_ACTIVE_FILE: Gauge "container_memory_total_active_file_bytes" [] "Active file pages, in bytes.";
    MEMORY_INACTIVE_FILE: Gauge "container_memory_total_inactive_file_bytes" [] "Inactive file pages, in bytes.";
    MEMORY_FAILURES: Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults.";
    OOM_EVENTS: Counter "container_oom_events_total" [] "Processes killed for lack of memory.";

    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"] "Inodes that are left on the file system of the writable layer.";
    FS_INODES_TOTAL: Gauge "container_fs_inodes_total" ["device"] "Inodes of the file system of the writable layer.";
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"] "What the writable layer may take: its limit, else its file system's size, in bytes.";
    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"] "What the writable layer takes, in bytes.";
    FS_READ_BYTES: Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from the device.";
    FS_READS: Counter "container_fs_reads_total" ["device"] "Reads from the device.";
    FS_WRITTEN_BYTES: Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to the device.";
    FS_WRITES: Counter "container_fs_writes_total" ["device"] "Writes to the device.";
    BLKIO: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes read from and written to the device.";

    HUGETLB_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use, in bytes.";
    HUGETLB_MAX_USAGE: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "The most huge pages it ever had, in bytes.";

    NETWORK_RECEIVED_BYTES: Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NETWORK_RECEIVED_PACKETS: Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    NETWORK_RECEIVED_DROPPED: Counter "container_network_receive_packets_dropped_total" ["interface"] "Received packets that were dropped.";
    NETWORK_RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"] "Errors met while receiving.";
    NETWORK_SENT_BYTES: Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NETWORK_SENT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    NETWORK_SENT_DROPPED: Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped instead of being sent.";
    NETWORK_SEND_ERRORS: Counter "container_network_transmit_errors_total" ["interface"] "Errors met while sending.";

    PROCESSES: Gauge "container_processes" [] "Processes.";
    THREADS: Gauge "container_threads" [] "Threads.";
    THREADS_MAX: Gauge "container_threads_max" [] "Threads that it may have; 0: no limit.";
    FILE_DESCRIPTORS: Gauge "container_file_descriptors" [] "Open files of all processes.";
    SOCKETS: Gauge "container_sockets" [] "Open sockets of all processes.";
    ULIMITS: Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the first process.";

    PRESSURE_CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" [] "Time for which some task waited for a CPU, in seconds.";
    PRESSURE_CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" [] "Time for which all tasks waited for a CPU, in seconds.";
    PRESSURE_MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" [] "Time for which some task waited for memory, in seconds.";
    PRESSURE_MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" [] "Time for which all tasks waited for memory, in seconds.";
    PRESSURE_IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" [] "Time for which some task waited for input or output, in seconds.";
    PRESSURE_IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" [] "Time for which all tasks waited for input or output, in seconds.";

    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" [] "Period of the CPU limit, in microseconds.";
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" [] "CPU time per period, in microseconds.";
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" [] "Weight among those that want the CPU.";
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" [] "Memory limit, in bytes; 0: none.";
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory that is kept for it, in bytes; 0: none.";
    SPEC_MEMORY_SWAP: Gauge "container_spec_memory_swap_limit_bytes" [] "Limit on memory and swap together, in bytes; 0: none.";
    START_TIME: Gauge "container_start_time_seconds" [] "When it was started, in seconds since the Unix epoch.";
    LAST_SEEN: Gauge "container_last_seen" [] "When this was read, in seconds since the Unix epoch.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_is_announced_once_with_help_and_labels() {
        let all = all();
        let names: BTreeSet<&str> = all.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        for descriptor in &all {
            assert!(
                descriptor.help.ends_with('.') && descriptor.label_keys.starts_with(&BASE.map(str::to_owned))
            );
            let keys: BTreeSet<&String> = descriptor.label_keys.iter().collect();
            assert_eq!(keys.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        }
    }
}
