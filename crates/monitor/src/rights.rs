//! The monitor's own rights once its pod exists. The OCI runtime that it starts may have more: as a program run by root
//! it gets every capability of the bounding set, which stays whole, since containers may be given any.
//!
//! The monitor cannot set a system call filter, `no_new_privs` or Landlock: containers would inherit them for good. Nor
//! may it keep too few capabilities: a process of the same user with as many may trace it, and those of a plain
//! container in the host's PID namespace must not suffice. So only CAP_SYS_PTRACE allows that.

use std::io;

use podwright_sys::confine;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// For giving pipes to users of a user namespace; log files and bundles of any owner; signals to every user; null
/// devices; processes behind procfs's `hidepid`; the OOM score that runtimes get back.
const ALWAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE);

/// Unmounting the pin of the network namespace; and handing over descriptors while others of root have too many under way.
const AT_THE_END: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Gives up what a pod that is ready does not need. The end's are out of use until [`for_the_end`].
pub(crate) fn keep_needed() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted & ALWAYS.union(AT_THE_END);
    set(permitted & ALWAYS, permitted)?;
    // Runtimes find the pod's namespaces among our descriptors, which then needs that capability.
    if permitted.contains(CapabilitySet::SYS_PTRACE) {
        confine::hide()?;
    }
    Ok(())
}

/// Makes the remaining rights effective.
pub(crate) fn for_the_end() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    set(permitted, permitted)
}

/// Does something with all that is left, which is out of use again afterwards.
pub(crate) fn with_all<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let now = capabilities(None)?;
    set(now.permitted, now.permitted)?;
    let done = act();
    set(now.effective, now.permitted)?;
    done
}

fn set(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?)
}
