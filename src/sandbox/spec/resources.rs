//! Limits in the terms of the OCI spec.

use super::{HostFacts, SpecError};
use crate::host::cgroups::CgroupMode;
use crate::model::Resources;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimitBuilder, LinuxMemory, LinuxPidsBuilder, LinuxResources};

/// The kernel's range of CFS periods, microseconds (kernel/sched/core.c).
const CPU_PERIODS: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// The kernel's least CFS quota, microseconds.
const MIN_CPU_QUOTA: i64 = 1_000;
/// The range of cgroup v1's weights, which CRI uses.
const CPU_SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;

/// The limits of a container, without device rules; also the body of a live update.
///
/// # Errors
/// When a value is out of range, contradicts another, or the host cannot apply it.
pub fn linux_resources(
    asked: &Resources,
    pids_limit: i64,
    host: &HostFacts,
) -> Result<LinuxResources, SpecError> {
    check_resources(asked, host)?;
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_cpu(Some(cpu(asked)?)).set_memory(memory(asked, host)?);
    if pids_limit > 0 {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(pids_limit).build()?));
    }
    if host.hugetlb && !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.iter().map(|limit| {
            let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
            LinuxHugepageLimitBuilder::default().page_size(&limit.page_size).limit(bytes).build()
        });
        resources.set_hugepage_limits(Some(limits.collect::<Result<_, _>>()?));
    }
    if !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    Ok(resources)
}

/// Whether a host can apply these limits.
///
/// # Errors
/// Names the field that is out of range, contradicts another, or has no meaning here.
fn check_resources(asked: &Resources, host: &HostFacts) -> Result<(), SpecError> {
    let refuse = |field, value: &dyn ToString, reason| {
        Err(SpecError::Resource { field, value: value.to_string(), reason })
    };
    if asked.cpu_period != 0 && !CPU_PERIODS.contains(&asked.cpu_period) {
        return refuse("cpu_period", &asked.cpu_period, "is not in 1000 to 1000000 microseconds");
    }
    if (1..MIN_CPU_QUOTA).contains(&asked.cpu_quota) {
        return refuse("cpu_quota", &asked.cpu_quota, "is below 1000 microseconds, the kernel's minimum");
    }
    if asked.cpu_shares != 0 && !CPU_SHARES.contains(&asked.cpu_shares) {
        return refuse("cpu_shares", &asked.cpu_shares, "is not in 2 to 262144");
    }
    if asked.memory_swap_limit < -1 {
        return refuse(
            "memory_swap_limit_in_bytes",
            &asked.memory_swap_limit,
            "is below -1, which is no limit",
        );
    }
    if asked.memory_swap_limit > 0 && asked.memory_limit == 0 {
        let reason = "needs memory_limit_in_bytes, which it includes";
        return refuse("memory_swap_limit_in_bytes", &asked.memory_swap_limit, reason);
    }
    if asked.memory_swap_limit > 0 && asked.memory_swap_limit < asked.memory_limit {
        let reason = "is below memory_limit_in_bytes, which it includes";
        return refuse("memory_swap_limit_in_bytes", &asked.memory_swap_limit, reason);
    }
    for (field, list) in [("cpuset_cpus", &asked.cpuset_cpus), ("cpuset_mems", &asked.cpuset_mems)] {
        if !is_number_list(list) {
            return refuse(field, list, "is no list of numbers and ranges such as 0-2,7");
        }
    }
    for (at, limit) in asked.hugepage_limits.iter().enumerate() {
        let size = &limit.page_size;
        if !host.page_sizes.iter().any(|known| known == size) {
            let known = host.page_sizes.join(", ");
            let known = if known.is_empty() { "none" } else { &known };
            let value = format!("{size} (known: {known})");
            return refuse(
                "hugepage_limits.page_size",
                &value,
                "is no size of huge pages that this kernel has",
            );
        }
        if asked.hugepage_limits[..at].iter().any(|other| other.page_size == *size) {
            return refuse("hugepage_limits.page_size", size, "is named twice");
        }
    }
    unified(asked, host)
}

fn unified(asked: &Resources, host: &HostFacts) -> Result<(), SpecError> {
    let wrong = |name: &str, reason| SpecError::Resource { field: "unified", value: name.to_owned(), reason };
    for (name, value) in &asked.unified {
        if host.cgroups != CgroupMode::V2 {
            return Err(wrong(name, "needs cgroup v2"));
        }
        // The key is a file name in the container's cgroup.
        if name.is_empty() || name.contains('/') || value.contains('\0') {
            return Err(wrong(name, "is not a file of a cgroup"));
        }
        let controller = name.split_once('.').map(|(controller, _)| controller);
        if !controller.is_some_and(|c| host.controllers.iter().any(|known| known == c)) {
            return Err(wrong(name, "is of no cgroup controller that this host has"));
        }
    }
    Ok(())
}

/// `0-2,7`; empty is fine.
fn is_number_list(list: &str) -> bool {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if first <= last)
    };
    list.is_empty() || list.split(',').all(range)
}

fn unsigned(field: &'static str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => {
            Err(SpecError::Resource { field, value: value.to_string(), reason: "must not be negative" })
        }
    }
}

fn cpu(asked: &Resources) -> Result<LinuxCpu, SpecError> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(unsigned("cpu_shares", asked.cpu_shares)?)
        .set_period(unsigned("cpu_period", asked.cpu_period)?)
        .set_quota((asked.cpu_quota != 0).then_some(asked.cpu_quota))
        .set_cpus(text(&asked.cpuset_cpus))
        .set_mems(text(&asked.cpuset_mems));
    Ok(cpu)
}

/// Swap is memory plus swap. If only a memory limit is given and swap is accounted, swap equals it, so that the
/// container has none (as in containerd).
fn memory(asked: &Resources, host: &HostFacts) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = unsigned("memory_limit_in_bytes", asked.memory_limit)?.map(|_| asked.memory_limit);
    let swap = match (asked.memory_swap_limit, limit, host.swap) {
        (_, _, false) => None,
        (0, limit, true) => limit,
        (swap, _, true) => Some(swap),
    };
    if limit.is_none() && swap.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(swap);
    Ok(Some(memory))
}
