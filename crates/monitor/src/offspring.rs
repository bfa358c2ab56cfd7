//! The descendants of a process, so that a kill reaches more than its group: a descendant with a session of its own is
//! in another group.

use std::os::fd::{AsFd as _, OwnedFd};

use podwright_sys::pidfd::{self, SIGKILL};
use podwright_sys::proc;

/// Limit on processes found, so that a fork bomb neither blocks the monitor nor takes all its descriptors. The
/// container's own end catches the rest.
const MOST: usize = 256;

/// Handles of the living descendants of `pid`, which must not be reaped yet. Misses a descendant whose parent has
/// ended: it has another parent by now.
pub(crate) fn of(pid: u32) -> Vec<OwnedFd> {
    let (mut found, mut parents) = (Vec::new(), vec![pid]);
    while let Some(parent) = parents.pop() {
        for child in proc::children(parent).unwrap_or_default() {
            if found.len() == MOST {
                return found;
            }
            // The handle first: the checks that follow then concern the process that gets the signal.
            let Ok(handle) = pidfd::open(child) else { continue };
            if proc::parent(child).is_ok_and(|actual| actual == parent) {
                found.push(handle);
                parents.push(child);
            }
        }
    }
    found
}

/// Kills what [`of`] found. Vanished ones are no error.
pub(crate) fn kill(processes: Vec<OwnedFd>) {
    for process in processes {
        let _ = pidfd::send_signal(process.as_fd(), SIGKILL);
    }
}
