//! Giving up what a process that only reads and writes its descriptors does not need: ids, capabilities, limits.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Becomes this user and group only: no other groups, no capability in any set, the bounding set included, and no way
/// back by running a program. For a process with one thread.
///
/// # Errors
/// The kernel's. A caller that is not root keeps its ids, and gives up the rest.
pub fn become_nobody(id: u32) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        nix::unistd::setgroups(&[])?;
        crate::confine::drop_bounding_set()?;
        let (uid, gid) = (nix::unistd::Uid::from_raw(id), nix::unistd::Gid::from_raw(id));
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = rustix::thread::CapabilitySet::empty();
    let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Limits the calling process for good: bytes of address space, no files written, no core dump, and no descriptor beyond
/// those below `descriptors`.
///
/// # Errors
/// The kernel's.
pub fn limit(memory: u64, descriptors: u64) -> io::Result<()> {
    for (resource, value) in [
        (Resource::As, memory),
        (Resource::Nofile, descriptors),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?;
    }
    Ok(())
}

/// Lets the calling process start no process any more, for good.
///
/// # Errors
/// None that is known.
pub fn stay_alone() -> io::Result<()> {
    Ok(setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: Some(0) })?)
}
