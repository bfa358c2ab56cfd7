//! Creating namespaces and their minimal setup: host name and the loopback device.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::LinkNameSpaceType;

/// A kind of namespace that a pod may own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Network devices, addresses, routes, ports.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Process ids; [`unshare`] affects the caller's next child, not the caller.
    Pid,
}

impl Namespace {
    /// The kernel's name, as in `/proc/<pid>/ns/`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
        }
    }
}

/// A path by which others, such as an OCI runtime, find a namespace that one of our descriptors holds, as long as it
/// does.
///
/// Written with a dot, since runc from 1.1.11 takes a user namespace's path that begins with `/proc/PID` for one of
/// that process, and refuses to join if the process has another mapping (libcontainer/userns/userns_maps_linux.go,
/// GetUserNamespaceMappings).
#[must_use]
pub fn path_of(namespace: &OwnedFd) -> String {
    format!("/proc/./{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// Moves the calling thread into a new namespace of one kind.
///
/// # Errors
/// The kernel's: `PermissionDenied`, or no room for more namespaces.
pub fn unshare(kind: Namespace) -> io::Result<()> {
    let flag = match kind {
        Namespace::Net => CloneFlags::CLONE_NEWNET,
        Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
        Namespace::Uts => CloneFlags::CLONE_NEWUTS,
        Namespace::Pid => CloneFlags::CLONE_NEWPID,
    };
    Ok(nix::sched::unshare(flag)?)
}

/// Moves the calling thread into a namespace of this kind. For threads that end afterwards: nothing moves it back.
///
/// # Errors
/// The kernel's; `InvalidInput` if it is of another kind.
pub fn enter(kind: Namespace, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let kind = match kind {
        Namespace::Net => LinkNameSpaceType::Network,
        Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
        Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        Namespace::Pid => LinkNameSpaceType::ProcessID,
    };
    Ok(rustix::thread::move_into_link_name_space(namespace, Some(kind))?)
}

/// Moves the calling process, which has one thread, into another's namespaces of these kinds; with `user`, first into
/// its user namespace.
///
/// # Errors
/// The kernel's: `EINVAL` before Linux 5.8, or for a user namespace that the caller is in already.
pub fn join(process: BorrowedFd<'_>, kinds: &[Namespace], user: bool) -> io::Result<()> {
    use rustix::thread::ThreadNameSpaceType as Kinds;
    let mut all = if user { Kinds::USER } else { Kinds::empty() };
    for kind in kinds {
        all |= match kind {
            Namespace::Net => Kinds::NETWORK,
            Namespace::Ipc => Kinds::INTER_PROCESS_COMMUNICATION,
            Namespace::Uts => Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME,
            Namespace::Pid => Kinds::PROCESS_ID,
        };
    }
    if all.is_empty() {
        return Ok(());
    }
    Ok(rustix::thread::move_into_thread_name_spaces(process, all)?)
}

/// Sets the host name of the caller's UTS namespace.
///
/// # Errors
/// The kernel's; a name of more than 64 bytes is `InvalidInput`.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Brings `lo` of the caller's network namespace up; the kernel then assigns its addresses.
///
/// # Errors
/// The kernel's, from the socket or the device.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = interface_request(*b"lo\0");
    request = interface_flags(&socket, libc::SIOCGIFFLAGS, request)?;
    // SAFETY: SIOCGIFFLAGS filled the flags member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = flags | up;
    interface_flags(&socket, libc::SIOCSIFFLAGS, request)?;
    Ok(())
}

fn interface_request(name: [u8; 3]) -> libc::ifreq {
    // SAFETY: ifreq is plain old data, for which all zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn interface_flags(
    socket: &OwnedFd,
    code: libc::c_ulong,
    mut request: libc::ifreq,
) -> io::Result<libc::ifreq> {
    let pointer: *mut libc::ifreq = &mut request;
    // SAFETY: both codes that this module uses take a pointer to an ifreq, which lives across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), code, pointer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespaces_path_leads_to_it_and_does_not_begin_like_a_process() {
        let held = std::fs::File::open("/proc/self/ns/uts").unwrap().into();
        let path = path_of(&held);
        assert_eq!(std::fs::read_link(&path).unwrap(), std::fs::read_link("/proc/self/ns/uts").unwrap());
        assert!(!path["/proc/".len()..].starts_with(|c: char| c.is_ascii_digit()), "{path}");
    }
}
