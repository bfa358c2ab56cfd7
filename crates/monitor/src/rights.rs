//! What the monitor itself may do once its pod is there. The OCI runtime that it starts may do more: as a program that root
//! runs it gets every capability of the bounding set, which stays whole, since containers may be given any.
//!
//! A filter of system calls, `no_new_privs` or Landlock would be handed on to containers for good, and are not for the
//! monitor to set. Nor may too few capabilities be left here: who has as many may trace a process of the same user, and
//! those of a plain container of the host's PID namespace must not suffice. So nobody without CAP_SYS_PTRACE may look in.

use std::io;

use podwright_sys::confine;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Giving pipes to users of a user namespace; log files and bundles whoever they belong to; signals to every user; null
/// devices; processes behind procfs's `hidepid`; the OOM score that runtimes get back.
const ALWAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE);

/// Unmounting the pin of the network namespace.
const AT_THE_END: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Gives up what a pod that is ready does not need. The end's are out of use until [`for_the_end`].
pub(crate) fn keep_needed() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted & ALWAYS.union(AT_THE_END);
    set(permitted & ALWAYS, permitted)?;
    // Runtimes find the pod's namespaces among our descriptors, which takes that capability then.
    if permitted.contains(CapabilitySet::SYS_PTRACE) {
        confine::hide()?;
    }
    Ok(())
}

/// Takes what is left into use.
pub(crate) fn for_the_end() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    set(permitted, permitted)
}

fn set(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?)
}
