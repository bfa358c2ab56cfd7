//! The processes that a process has started, so that what is killed with it are not only those of its group: one that
//! made a session of its own is in another.

use std::os::fd::{AsFd as _, OwnedFd};

use podwright_sys::pidfd::{self, SIGKILL};
use podwright_sys::proc;

/// Processes that are looked for at most, so that a fork bomb in a container does not keep the monitor, nor take all its
/// descriptors. What is beyond is left to the container's own end.
const MOST: usize = 256;

/// Handles of the living descendants of `pid`, which must not be reaped yet. One whose parent has ended is not found: it
/// is the child of somebody else by now.
pub(crate) fn of(pid: u32) -> Vec<OwnedFd> {
    let (mut found, mut parents) = (Vec::new(), vec![pid]);
    while let Some(parent) = parents.pop() {
        for child in proc::children(parent).unwrap_or_default() {
            if found.len() == MOST {
                return found;
            }
            // The handle first: what is checked afterwards is what gets the signal.
            let Ok(handle) = pidfd::open(child) else { continue };
            if proc::parent(child).is_ok_and(|actual| actual == parent) {
                found.push(handle);
                parents.push(child);
            }
        }
    }
    found
}

/// Kills what [`of`] found. Those that are gone are fine.
pub(crate) fn kill(processes: Vec<OwnedFd>) {
    for process in processes {
        let _ = pidfd::send_signal(process.as_fd(), SIGKILL);
    }
}
