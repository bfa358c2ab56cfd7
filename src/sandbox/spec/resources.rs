//! Limits in the terms of the OCI spec.

use super::{HostFacts, SpecError};
use crate::host::cgroups::CgroupMode;
use crate::model::Resources;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimitBuilder, LinuxMemory, LinuxPidsBuilder, LinuxResources};

/// The limits of a container, without device rules; also the body of a live update.
///
/// # Errors
/// When a value is out of range, contradicts another, or the host cannot apply it.
pub fn linux_resources(
    asked: &Resources,
    pids_limit: i64,
    host: &HostFacts,
) -> Result<LinuxResources, SpecError> {
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
        resources.set_unified(Some(unified(asked, host)?));
    }
    Ok(resources)
}

fn unified(
    asked: &Resources,
    host: &HostFacts,
) -> Result<std::collections::HashMap<String, String>, SpecError> {
    let wrong = |name: &str, reason| SpecError::Resource { field: "unified", value: name.to_owned(), reason };
    for (name, value) in &asked.unified {
        if host.cgroups != CgroupMode::V2 {
            return Err(wrong(name, "needs cgroup v2"));
        }
        // The key is a file name in the container's cgroup.
        if name.is_empty() || name.contains('/') || !name.contains('.') || value.contains('\0') {
            return Err(wrong(name, "is not a file of a cgroup"));
        }
    }
    Ok(asked.unified.clone().into_iter().collect())
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

/// Swap is memory plus swap. Where a memory limit comes without one and swap is accounted, it equals the limit, so
/// that the container has no swap (as containerd does).
fn memory(asked: &Resources, host: &HostFacts) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = unsigned("memory_limit_in_bytes", asked.memory_limit)?.map(|_| asked.memory_limit);
    let swap = match (asked.memory_swap_limit, limit, host.swap) {
        (_, _, false) => None,
        (0, limit, true) => limit,
        (swap, Some(limit), true) if (0..limit).contains(&swap) => {
            return Err(SpecError::Resource {
                field: "memory_swap_limit_in_bytes",
                value: swap.to_string(),
                reason: "is below the memory limit, which it includes",
            });
        }
        (swap, _, true) => Some(swap),
    };
    if limit.is_none() && swap.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(swap);
    Ok(Some(memory))
}
