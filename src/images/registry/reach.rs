//! Where a request may lead: this machine, its link and a cloud's metadata service are nobody's to name but the image's
//! reference and the node's configuration. Owns the rule, and the look-up of names that holds what is connected to against it;
//! never sends anything.
//!
//! Addresses are checked where they are used: a literal before the request, a name after it is resolved and before it is
//! connected to, so a name that means another address the next time gains nothing. What goes through a proxy is resolved
//! there; of that only literals and `localhost` are seen.

use super::names;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use url::Url;

/// Where a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// Anywhere: the configuration names the host, or the image's reference has its address.
    Anywhere,
    /// Not to loopback, the link or a metadata service, but to this node's other addresses: the image's reference has a
    /// name, and a registry may well run on the node.
    Node,
    /// Nor to an address of this node: a redirect or a realm, named by somebody else.
    Outside,
}

/// Why an address is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it leads to {0}, which neither the image's name nor the configuration names")]
pub(crate) struct Refused(&'static str);

const THIS_MACHINE: &str = "this machine";
const LINK_LOCAL: &str = "a link-local address";
const METADATA: &str = "a cloud's metadata service";
const GROUP: &str = "a multicast or broadcast address";

/// Metadata services that are not on a link-local address: Alibaba's, Volcengine's, UCloud's, Azure's WireServer, Oracle's.
/// The first three lie in 100.64.0.0/10, which is not refused as a whole: clusters and private networks use it as they use
/// 10.0.0.0/8, for registries too.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(100, 96, 0, 96),
    Ipv4Addr::new(100, 80, 80, 80),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same on IPv6: Amazon's, which has more services beside it (`fd00:ec2::/32`).
const AMAZON_V6: [u16; 2] = [0xfd00, 0x0ec2];
/// Google's, Scaleway's, Linode's, Alibaba's. Oracle's and OpenStack's end in 169.254.169.254, which is refused wherever.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];
/// The end of an address that has 169.254.169.254 in it: a cloud's way to name its IPv6 service, or a translator's prefix
/// that nobody here knows.
const METADATA_END: [u16; 2] = [0xa9fe, 0xa9fe];

/// Any port: nothing is sent to it. Discard's, which nobody redirects.
const NO_PORT: u16 = 9;

impl Reach {
    /// What the host of an image's reference may lead to, when no configuration names it: an address, or `localhost`, says
    /// itself where it leads.
    pub(super) fn of_reference(url: &Url) -> Self {
        if literal(url).is_some() || url.host_str() == Some("localhost") {
            Self::Anywhere
        } else {
            Self::Node
        }
    }

    /// Checks what can be seen of a URL before it is resolved.
    pub(super) fn check(self, url: &Url) -> Result<(), Refused> {
        match literal(url) {
            Some(ip) => self.admit(ip),
            None if self != Self::Anywhere && is_localhost(url.host_str().unwrap_or_default()) => {
                Err(Refused(THIS_MACHINE))
            }
            None => Ok(()),
        }
    }

    fn admit(self, ip: IpAddr) -> Result<(), Refused> {
        self.admit_knowing(ip, is_own)
    }

    fn admit_knowing(self, ip: IpAddr, is_own: impl Fn(IpAddr) -> io::Result<bool>) -> Result<(), Refused> {
        if self == Self::Anywhere {
            return Ok(());
        }
        let inner = match ip {
            IpAddr::V6(v6) => embedded(v6),
            IpAddr::V4(_) => Vec::new(),
        };
        for ip in std::iter::once(ip).chain(inner.into_iter().map(IpAddr::V4)) {
            if let Some(place) = place(ip) {
                return Err(Refused(place));
            }
            // What cannot be told is not asked.
            if self == Self::Outside && is_own(ip).unwrap_or(true) {
                return Err(Refused(THIS_MACHINE));
            }
        }
        Ok(())
    }

    /// The addresses that may be connected to; an error when there are some and none may.
    fn filter(self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let (mut kept, mut refused) = (Vec::new(), None);
        for address in found {
            match self.admit(address.ip()) {
                Ok(()) => kept.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if kept.is_empty() => Err(error),
            _ => Ok(kept),
        }
    }

    /// What a name means now, as far as it may be connected to.
    pub(super) async fn lookup(
        self,
        name: &str,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found = names::lookup(name).await?;
        let kept = self.filter(found.into_iter()).inspect_err(|error| {
            tracing::debug!(name, %error, "a name is not connected to");
        })?;
        Ok(kept)
    }
}

/// The address that a URL has in place of a name. Its parser has made one of every spelling that the system knows.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// `localhost` and all below it are this machine, whoever resolves them (RFC 6761).
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// What an address is, if it is none that anybody may lead to.
fn place(ip: IpAddr) -> Option<&'static str> {
    match ip {
        // All of 0.0.0.0/8 means "this host" to somebody.
        IpAddr::V4(v4) if v4.is_loopback() || v4.octets()[0] == 0 => Some(THIS_MACHINE),
        IpAddr::V4(v4) if v4.is_link_local() => Some(LINK_LOCAL),
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() => Some(GROUP),
        IpAddr::V4(v4) if METADATA_V4.contains(&v4) => Some(METADATA),
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Some(THIS_MACHINE),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(LINK_LOCAL),
        IpAddr::V6(v6) if v6.is_multicast() => Some(GROUP),
        IpAddr::V6(v6) if METADATA_V6.contains(&v6) => Some(METADATA),
        IpAddr::V6(v6) if v6.segments()[..2] == AMAZON_V6 || v6.segments()[6..] == METADATA_END => {
            Some(METADATA)
        }
        _ => None,
    }
}

/// The IPv4 addresses that an IPv6 one may stand for, when something between here and there translates it or wraps it up.
fn embedded(v6: Ipv6Addr) -> Vec<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match v6.segments() {
        // Mapped, translated (RFC 2765), compatible; NAT64's well-known prefix.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => vec![v4(high, low)],
        // NAT64's local prefix (RFC 8215), below which a translator's own may have any length of RFC 6052.
        [0x64, 0xff9b, 1, ..] => of_translators(v6),
        // 6to4.
        [0x2002, high, low, ..] => vec![v4(high, low)],
        // Teredo: its server, and its client inverted.
        [0x2001, 0, server, server_low, _, _, high, low] => vec![v4(server, server_low), v4(!high, !low)],
        // ISATAP (RFC 5214), with any prefix; the bit says whether the IPv4 address is a global one.
        [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] => vec![v4(high, low)],
        _ => Vec::new(),
    }
}

/// What an address below a prefix of 48 bits may mean, by the lengths of prefixes that a translator may have (RFC 6052,
/// section 2.2: the octet behind the 64th bit is left out, and what follows the IPv4 address is ignored).
fn of_translators(v6: Ipv6Addr) -> Vec<Ipv4Addr> {
    let o = v6.octets();
    let readings = [
        Ipv4Addr::new(o[6], o[7], o[9], o[10]),
        Ipv4Addr::new(o[7], o[9], o[10], o[11]),
        Ipv4Addr::new(o[9], o[10], o[11], o[12]),
        Ipv4Addr::new(o[12], o[13], o[14], o[15]),
    ];
    // An address read with another length than it was made with begins with zeros, and nobody translates to 0.0.0.0/8.
    readings.into_iter().filter(|v4| v4.octets()[0] != 0).collect()
}

/// Whether an address is one of this node's, on whatever interface.
fn is_own(ip: IpAddr) -> io::Result<bool> {
    let of_interface = |address: nix::sys::socket::SockaddrStorage| match ip {
        IpAddr::V4(v4) => address.as_sockaddr_in().is_some_and(|a| a.ip() == v4),
        IpAddr::V6(v6) => address.as_sockaddr_in6().is_some_and(|a| a.ip() == v6),
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(|i| i.address).any(of_interface) || is_routed_here(ip)?)
}

/// Whether a route makes an address this node's that no interface has: the kernel would then send from that very address.
/// Nothing is sent.
fn is_routed_here(ip: IpAddr) -> io::Result<bool> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = match UdpSocket::bind((any, 0)) {
        Ok(socket) => socket,
        // A node without IPv6 has no such address, and no way to one.
        Err(_) if ip.is_ipv6() && !std::path::Path::new("/proc/sys/net/ipv6").exists() => return Ok(false),
        Err(error) => return Err(error),
    };
    match socket.connect((ip, NO_PORT)) {
        Ok(()) => Ok(socket.local_addr()?.ip() == ip),
        // No way to it: connecting says so better.
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// 10.0.0.5 and fd00::5 are the node's.
    fn admitted(reach: Reach, text: &str) -> Result<(), Refused> {
        reach.admit_knowing(ip(text), |ip| Ok(["10.0.0.5", "fd00::5"].contains(&ip.to_string().as_str())))
    }

    #[test]
    fn no_spelling_of_an_inner_address_is_led_to() {
        for text in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.0.0.1",
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b:1::127.0.0.1",
            // RFC 6052 with 48, 56, 64 and 96 bits of prefix, with something behind it or not.
            "64:ff9b:1:7f00:0:100::",
            "64:ff9b:1:a9fe:ff:a9fe:dead:beef",
            "64:ff9b:1:7f:0:1::",
            "64:ff9b:1:aa7f:ff00:1::1",
            "64:ff9b:1:0:7f:0:100:0",
            "64:ff9b:1:abcd:a9:fea9:fe00:0",
            "64:ff9b:1:abcd:ffff:ffff:127.0.0.1",
            // ISATAP.
            "2001:db8::5efe:127.0.0.1",
            "2001:db8:1:2:200:5efe:169.254.169.254",
            "fd00::5efe:100.100.100.200",
            "2002:7f00:1::1",
            "2001:0:1:2:3:4:80ff:fffe",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "fe80::1",
            "febf::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:ec2::23",
            "100.96.0.96",
            "100.80.80.80",
            "::ffff:100.80.80.80",
            "fd00:42::42",
            "fd00:a9fe:a9fe::1",
            "fd00:100::100:200",
            "fd00:c1::a9fe:a9fe",
            "2001:db8:64::169.254.169.254",
            "2001:0:7f00:1::",
            "fe80::a9fe:a9fe",
            "169.254.42.42",
            "169.254.0.23",
        ] {
            for reach in [Reach::Node, Reach::Outside] {
                assert!(admitted(reach, text).is_err(), "{text} {reach:?}");
            }
            assert_eq!(admitted(Reach::Anywhere, text), Ok(()), "{text}");
        }
        for text in [
            "10.0.0.5",
            "::ffff:10.0.0.5",
            "64:ff9b::10.0.0.5",
            "2002:a00:5::1",
            "fd00::5",
            "64:ff9b:1:a00:0:500::",
            "2001:db8::5efe:10.0.0.5",
        ] {
            assert!(admitted(Reach::Outside, text).is_err(), "{text}");
            assert_eq!(admitted(Reach::Node, text), Ok(()), "{text}");
        }
        for text in [
            "10.0.0.6",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "100.100.100.201",
            "8.8.8.8",
            "169.253.0.1",
            "fd00::6",
            "fd00:42::43",
            "2606:4700::1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:1:808:8:800::",
            "2001:db8::5efe:8.8.8.8",
        ] {
            assert_eq!(admitted(Reach::Outside, text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_not_asked() {
        let unknown = |_| Err(io::Error::from(io::ErrorKind::Other));
        assert!(Reach::Outside.admit_knowing(ip("8.8.8.8"), unknown).is_err());
        assert!(Reach::Node.admit_knowing(ip("8.8.8.8"), unknown).is_ok());
    }

    #[test]
    fn the_kernel_knows_the_nodes_own_addresses() {
        assert!(is_own(ip("127.0.0.1")).unwrap() && is_routed_here(ip("127.0.0.1")).unwrap());
        for interface in nix::ifaddrs::getifaddrs().unwrap() {
            let address = interface.address.as_ref().and_then(|a| a.as_sockaddr_in().map(|a| a.ip()));
            assert!(address.is_none_or(|v4| is_own(v4.into()).unwrap()), "{address:?}");
        }
        for text in ["192.0.2.7", "2001:db8::7"] {
            assert!(!is_own(ip(text)).unwrap(), "{text}");
        }
    }

    #[test]
    fn urls_are_read_as_they_are_connected_to() {
        for text in [
            "http://127.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://2852039166/",
            "http://[::ffff:a9fe:a9fe]/",
        ] {
            let url = Url::parse(text).unwrap();
            assert!(Reach::Outside.check(&url).is_err() && Reach::Node.check(&url).is_err(), "{text}");
        }
        for text in ["http://localhost.example/", "http://127.evil.example/", "http://10.0.0.1/"] {
            assert_eq!(Reach::Node.check(&Url::parse(text).unwrap()), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_reference_names_an_address_but_not_what_a_name_means() {
        for (text, reach) in [
            ("http://127.0.0.1:5000/", Reach::Anywhere),
            ("http://[::1]:5000/", Reach::Anywhere),
            ("http://localhost:5000/", Reach::Anywhere),
            ("https://127.evil.example:80/", Reach::Node),
            ("https://localhost.evil.example/", Reach::Node),
            ("https://a.localhost/", Reach::Node),
        ] {
            assert_eq!(Reach::of_reference(&Url::parse(text).unwrap()), reach, "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_is_held_to_what_it_means_now() {
        let resolve = |reach: Reach| reach.lookup("localhost");
        for reach in [Reach::Node, Reach::Outside] {
            let Err(error) = resolve(reach).await else { panic!("it was resolved") };
            assert!(error.to_string().contains("this machine"), "{error}");
        }
        assert!(!resolve(Reach::Anywhere).await.unwrap().is_empty());
        // Of several addresses those that may be had stay.
        let both = ["127.0.0.1:0", "192.0.2.7:0"].map(|a| a.parse::<SocketAddr>().unwrap());
        assert_eq!(Reach::Outside.filter(both.into_iter()).unwrap(), [both[1]]);
    }
}
