//! Connections from inside a network namespace. Only a socket's creation happens there, on a thread of its own that
//! ends at once; a socket keeps its namespace, so everything else is done from outside.

use podwright_sys::namespace;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// For a connection on loopback: a refusal comes at once, and only a full backlog or a firewall that drops takes time.
/// Shorter than the 30 s in which kubectl expects a forwarded stream.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connects to `port` of the loopback device, by IPv4 and then by IPv6, in the network namespace pinned at `netns`, or
/// in our own without one.
///
/// # Errors
/// The error of IPv4 if both fail, unless IPv6 was not even refused.
pub async fn connect_loopback(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let first = match connect(netns, (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    connect(netns, (Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| first)
}

async fn connect(netns: Option<&Path>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match netns {
        Some(path) => socket_in(std::fs::File::open(path)?, address).await?,
        None => new_socket(address)?,
    };
    let stream = tokio::time::timeout(CONNECT_LIMIT, socket.connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // Forwarded data is often small and interactive.
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn socket_in(netns: std::fs::File, address: SocketAddr) -> io::Result<TcpSocket> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("netns-socket".to_owned()).spawn(move || {
        use std::os::fd::AsFd as _;
        let made =
            namespace::enter(namespace::Namespace::Net, netns.as_fd()).and_then(|()| new_socket(address));
        // The caller may be gone.
        let _ = tell.send(made);
    })?;
    told.await.map_err(|_| io::Error::other("the thread that makes a socket died"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Listens on loopback inside a new network namespace; also returns the namespace's path.
    fn elsewhere(address: &'static str) -> (std::net::TcpListener, std::fs::File, std::path::PathBuf) {
        std::thread::spawn(move || {
            namespace::unshare(namespace::Namespace::Net).unwrap();
            namespace::loopback_up().unwrap();
            let listener = std::net::TcpListener::bind(address).unwrap();
            let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            use std::os::fd::AsRawFd as _;
            let path = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
            (listener, netns, path.into())
        })
        .join()
        .unwrap()
    }

    fn own() -> std::path::PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[tokio::test]
    async fn it_reaches_what_only_listens_in_there_and_does_not_move() {
        let before = own();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (listener, _netns, path) = elsewhere(address);
            let port = listener.local_addr().unwrap().port();
            let mut stream = connect_loopback(Some(&path), port).await.unwrap();
            listener.set_nonblocking(true).unwrap();
            let (mut served, _) =
                tokio::net::TcpListener::from_std(listener).unwrap().accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut text = String::new();
            served.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
        }
        assert_eq!(own(), before);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_and_a_missing_namespace_told() {
        let (listener, _netns, path) = elsewhere("127.0.0.1:0");
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = connect_loopback(Some(&path), port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect_loopback(Some(Path::new("/no/such/netns")), port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn without_a_namespace_it_is_the_hosts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stream, accepted) = tokio::join!(connect_loopback(None, port), listener.accept());
        assert_eq!(stream.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    }
}
