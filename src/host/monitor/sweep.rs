//! Remains of a killed monitor: its network namespace's pin and the pod's own PID 1.

use super::MonitorError;
use crate::host::offload::OffThread;
use podwright_monitor_proto::{MONITOR_RECORD, MonitorRecord, ProcessId};
use podwright_sys::pidfd::SIGKILL;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::Path;

/// Removes the pin and ends the pod's PID 1, if they exist. Call it when no monitor runs in `dir`.
///
/// # Errors
/// When the pin cannot be unmounted or removed.
pub fn sweep(_: &OffThread, dir: &Path, netns_pin: &Path) -> Result<(), MonitorError> {
    let error = |operation| {
        move |source: io::Error| MonitorError::Sweep { operation, path: netns_pin.to_owned(), source }
    };
    kill_init(dir);
    match unmount(netns_pin, UnmountFlags::DETACH) {
        // EINVAL: it is no mount point (any more).
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(error("unmount")(errno.into())),
    }
    match std::fs::remove_file(netns_pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove")(source)),
        _ => Ok(()),
    }
}

/// Its end ends every process of a shared pid namespace. A record of an earlier boot names no current process.
fn kill_init(dir: &Path) {
    let Ok(text) = std::fs::read(dir.join(MONITOR_RECORD)) else { return };
    let Ok(record) = serde_json::from_slice::<MonitorRecord>(&text) else { return };
    let Some(init) =
        record.init.filter(|_| podwright_sys::proc::boot_id().is_ok_and(|id| id == record.boot_id))
    else {
        return;
    };
    kill_process(init.pid, init.start_time);
}

/// Kills the monitor of `dir`, which does not answer any more; `known` is its process where the caller has recorded it. To
/// be called when its pod goes down: its containers lose their parent.
pub fn kill(dir: &Path, known: Option<ProcessId>) {
    let recorded = std::fs::read(dir.join(MONITOR_RECORD))
        .ok()
        .and_then(|text| serde_json::from_slice::<MonitorRecord>(&text).ok())
        .filter(|record| podwright_sys::proc::boot_id().is_ok_and(|id| id == record.boot_id));
    for process in recorded.map(|record| record.process).into_iter().chain(known) {
        kill_process(process.pid, process.start_time);
    }
}

/// Kills a process, if it still is the one that started then.
pub fn kill_process(pid: u32, start_time: u64) {
    // The descriptor first: the checks that follow then concern the process that gets the signal.
    let Ok(process) = podwright_sys::pidfd::open(pid) else { return };
    if podwright_sys::proc::start_time(pid).is_ok_and(|time| time == start_time) {
        // Gone meanwhile is as good.
        let _ = podwright_sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&process), SIGKILL);
    }
}
