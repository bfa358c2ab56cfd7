//! Processes that listen on an address or a unix socket.
//!
//! Asks the kernel; connects to a unix socket for a moment, never to an address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A process by number and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// Its name in `ps`.
    pub name: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// State of a place to listen on.
#[derive(Debug)]
pub enum Place {
    /// Nothing listens.
    Free,
    /// Taken; by which process, if it can be found.
    Taken(Option<Owner>),
    /// It cannot be listened on at all.
    Unusable(io::Error),
}

/// The process that serves a unix socket. A socket file without a listener counts as free.
#[must_use]
pub fn unix(path: &Path) -> Place {
    match UnixStream::connect(path) {
        Ok(stream) => {
            Place::Taken(podwright_sys::socket::peer(stream.as_fd()).ok().map(|peer| owner(peer.pid)))
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Place::Free
        }
        Err(e) => Place::Unusable(e),
    }
}

/// The process that listens on an address; a port of 0 is always free.
#[must_use]
pub fn tcp(address: SocketAddr) -> Place {
    match TcpListener::bind(address) {
        Ok(_) => Place::Free,
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Place::Taken(tcp_owner(address.port())),
        Err(e) => Place::Unusable(e),
    }
}

fn owner(pid: u32) -> Owner {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Owner { pid, name: name.trim().to_owned() }
}

fn tcp_owner(port: u16) -> Option<Owner> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|text| listener_inode(&text, port).map(str::to_owned))?;
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let files = std::fs::read_dir(process.path().join("fd")).ok()?;
        let holds = |file: std::fs::DirEntry| {
            std::fs::read_link(file.path()).is_ok_and(|target| target == Path::new(&wanted))
        };
        files.flatten().any(holds).then(|| owner(pid))
    })
}

/// The inode of the socket that listens on a port, of proc_net_tcp's table (Linux, net/ipv4/tcp_ipv4.c).
fn listener_inode(table: &str, port: u16) -> Option<&str> {
    /// `TCP_LISTEN` of net/tcp_states.h.
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let listens = cells.get(1)?.ends_with(&local) && *cells.get(3)? == LISTEN;
        cells.get(9).copied().filter(|_| listens)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_port_in_use_has_an_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let Place::Taken(Some(found)) = tcp(address) else { panic!("not taken") };
        assert_eq!(found.pid, std::process::id());
        drop(listener);
        assert!(matches!(tcp(address), Place::Free));
        assert!(matches!(tcp("192.0.2.1:1".parse().unwrap()), Place::Unusable(_)));
    }

    #[test]
    fn a_socket_in_use_has_an_owner_and_a_stale_one_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(unix(&path), Place::Free));
        let listener = UnixListener::bind(&path).unwrap();
        let Place::Taken(Some(found)) = unix(&path) else { panic!("not taken") };
        assert_eq!(found, owner(std::process::id()));
        assert!(found.to_string().starts_with("process "));
        drop(listener);
        assert!(matches!(unix(&path), Place::Free));
    }

    #[test]
    fn only_listeners_of_that_port_count() {
        let table =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:258F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1
   1: 0100007F:2590 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 78 1
";
        assert_eq!(listener_inode(table, 0x258f), Some("77"));
        assert_eq!(listener_inode(table, 0x2590), None);
    }
}
