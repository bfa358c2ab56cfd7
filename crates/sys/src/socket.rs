//! Unix sockets by directory descriptor, which avoids the 108 byte limit of a socket path.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};

/// Credentials of a peer at the time it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id in the caller's pid namespace.
    pub pid: u32,
    /// User id in the caller's user namespace.
    pub uid: u32,
}

fn address(directory: BorrowedFd<'_>, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?)
}

/// Binds and listens on `name` in `directory`: stream, non-blocking, close-on-exec; its mode follows the umask.
///
/// # Errors
/// `AddrInUse` when the name exists.
pub fn listen_in(directory: BorrowedFd<'_>, name: &str, backlog: i32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(socket.as_fd(), &address(directory, name)?)?;
    listen(socket.as_fd(), backlog)?;
    Ok(socket)
}

/// Connects to `name` in the directory at `path`; the result is non-blocking and close-on-exec. Does not wait: a full
/// backlog is `WouldBlock`.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` if nothing listens.
pub fn connect_in(path: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = crate::path::open_root(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(socket.as_fd(), &address(directory.as_fd(), name)?)?;
    Ok(socket)
}

/// Accepts one connection (non-blocking, close-on-exec); `None` if none waits.
///
/// # Errors
/// The kernel's, such as no descriptor left.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Credentials of the other end.
///
/// # Errors
/// The kernel's, when this is no connected unix socket.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = sockopt::socket_peercred(socket)?;
    let pid = u32::try_from(credentials.pid.as_raw_pid()).map_err(io::Error::other)?;
    Ok(Peer { pid, uid: credentials.uid.as_raw() })
}
