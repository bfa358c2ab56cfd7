//! Counters of network devices inside network namespaces, as /proc/net/dev tells them.
//!
//! One thread enters the namespaces one after the other and ends: none of ours is left in a foreign one. Changes
//! nothing.

use podwright_sys::namespace;
use std::io::{self, Read as _};
use std::path::PathBuf;
use tokio::sync::oneshot;

/// Where the calling thread's network namespace tells its devices.
const DEVICES: &str = "/proc/thread-self/net/dev";

/// Devices of a namespace that are told: who may configure his network makes as many as he likes, and all pods' are told
/// in one message.
pub const MAX_DEVICES: usize = 16;
/// Bytes of the kernel's list that are looked at, some ten thousand devices.
const MAX_LIST: u64 = 1 << 20;
/// What CNI calls a pod's own device; never left out.
const FIRST: &str = "eth0";

/// What went through one device since it came up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// As the namespace names it.
    pub name: String,
    /// Received.
    pub received: Traffic,
    /// Sent.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The devices of each of these namespaces but their loopback, up to [`MAX_DEVICES`], in the order given; a pin that is gone or cannot be
/// entered has an error in its place.
pub async fn counters(namespaces: Vec<PathBuf>) -> Vec<io::Result<Vec<Counters>>> {
    if namespaces.is_empty() {
        return Vec::new();
    }
    let count = namespaces.len();
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("netns-stats".to_owned()).spawn(move || {
        let all: Vec<_> = namespaces.iter().map(read_in).collect();
        // Whoever asked may be gone.
        let _ = tell.send(all);
    });
    let failed = |text: &str| (0..count).map(|_| Err(io::Error::other(text.to_owned()))).collect();
    match thread {
        Err(error) => failed(&format!("start a thread: {error}")),
        Ok(_) => told.await.unwrap_or_else(|_| failed("the thread that reads counters died")),
    }
}

fn read_in(namespace: &PathBuf) -> io::Result<Vec<Counters>> {
    use std::os::fd::AsFd as _;
    namespace::enter(namespace::Namespace::Net, std::fs::File::open(namespace)?.as_fd())?;
    let mut text = String::new();
    std::fs::File::open(DEVICES)?.take(MAX_LIST).read_to_string(&mut text)?;
    Ok(parse(&text))
}

/// Two lines of headings, then `name: ` and sixteen numbers a line, eight a direction.
fn parse(text: &str) -> Vec<Counters> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let traffic = |first: usize| {
            Some(Traffic {
                bytes: *numbers.get(first)?,
                packets: *numbers.get(first + 1)?,
                errors: *numbers.get(first + 2)?,
                dropped: *numbers.get(first + 3)?,
            })
        };
        Some(Counters { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? })
    };
    let mut devices: Vec<_> = text.lines().filter_map(line).filter(|device| device.name != "lo").collect();
    devices.sort_by_key(|device| device.name != FIRST);
    devices.truncate(MAX_DEVICES);
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:       1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0\n  \
             eth0: 100 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let eth0 = Counters {
            name: "eth0".into(),
            received: Traffic { bytes: 100, packets: 2, errors: 3, dropped: 4 },
            sent: Traffic { bytes: 50, packets: 6, errors: 7, dropped: 8 },
        };
        assert_eq!(parse(text), std::slice::from_ref(&eth0));
        assert_eq!(parse("eth0: 1 2\n"), []);
        let mut many: Vec<_> =
            (0..5000).map(|n| format!("dummy{n}: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")).collect();
        many.push(text.lines().last().unwrap().to_owned());
        let told = parse(&many.concat());
        assert_eq!((told.len(), &told[0]), (MAX_DEVICES, &eth0));
    }

    #[tokio::test]
    async fn namespaces_are_entered_and_left_and_one_that_is_gone_spoils_no_other() {
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let namespace = std::thread::spawn(|| {
            namespace::unshare(namespace::Namespace::Net).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        use std::os::fd::AsRawFd as _;
        let fresh = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let all = counters(vec!["/no/such/netns".into(), fresh.clone(), fresh]).await;
        assert_eq!(all[0].as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
        // A new namespace has a loopback device and nothing else but what the kernel makes in each (tunnels).
        assert!(all[1].is_ok() && all[2].is_ok());
        assert!(!all[1].as_ref().unwrap().iter().any(|device| device.name == "lo"));
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
        assert!(counters(Vec::new()).await.is_empty());
    }
}
