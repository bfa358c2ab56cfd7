//! Names of protocols and the choice among them. Pure functions over request headers.

use http::header::{CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

/// Lists a SPDY client's protocols and names the chosen one.
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Lists the supported protocols when none fits.
pub(super) const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Value of Upgrade for SPDY.
pub(super) const SPDY: &str = "SPDY/3.1";
/// SPDY port-forward's only protocol.
pub(super) const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same inside a WebSocket.
pub(super) const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Exec and attach over SPDY, newest first. The fifth differs only over WebSocket; clients that offer it offer the
/// fourth too.
pub(super) const EXEC_SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Exec and attach over WebSocket; the empty name is for clients that offer none.
pub(super) const EXEC_WEBSOCKET: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// Port-forward over WebSocket.
pub(super) const FORWARD_WEBSOCKET: [&str; 4] =
    [PORT_FORWARD_TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// Features of the chosen exec and attach protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    /// The error stream carries a metav1.Status, not text.
    pub(super) status: bool,
    /// It has a stream for terminal sizes.
    pub(super) resize: bool,
    /// Payloads are base64 and channels are digits.
    pub(super) base64: bool,
    /// The client can end one channel.
    pub(super) close: bool,
}

impl Channels {
    /// By a protocol's name.
    pub(super) fn of(protocol: &str) -> Self {
        let (v4, v5) = (protocol.starts_with("v4."), protocol.starts_with("v5."));
        Self {
            status: v4 || v5,
            // WebSocket always has the channel, SPDY from the third version on.
            resize: v4 || v5 || protocol.starts_with("v3."),
            base64: protocol.contains("base64"),
            close: v5,
        }
    }
}

/// Whether the client wants a WebSocket.
pub(super) fn wants_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    upgrade.eq_ignore_ascii_case("websocket") && contains(headers, &CONNECTION, "upgrade")
}

/// Whether the client wants SPDY.
pub(super) fn wants_spdy(headers: &HeaderMap) -> bool {
    contains(headers, &UPGRADE, "spdy/3.1") && contains(headers, &CONNECTION, "upgrade")
}

fn contains(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains(word))
}

/// The fault in an offer of protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// The offer is empty where a protocol is required.
    Missing,
    /// None of it is known here.
    None,
}

/// The first of the client's SPDY protocols that is known.
pub(super) fn choose_spdy(headers: &HeaderMap, known: &[&'static str]) -> Result<&'static str, Mismatch> {
    let offered = offers(headers, &STREAM_PROTOCOL);
    if offered.is_empty() {
        return Err(Mismatch::Missing);
    }
    choose(&offered, known)
}

/// The first of the client's WebSocket protocols that is known.
pub(super) fn choose_websocket(
    headers: &HeaderMap,
    known: &[&'static str],
) -> Result<&'static str, Mismatch> {
    let offered = offers(headers, &SEC_WEBSOCKET_PROTOCOL);
    if offered.is_empty() { choose(&[""], known) } else { choose(&offered, known) }
}

fn choose(offered: &[&str], known: &[&'static str]) -> Result<&'static str, Mismatch> {
    let find = |name: &&str| known.iter().find(|known| **known == *name).copied();
    offered.iter().find_map(find).ok_or(Mismatch::None)
}

/// In the client's order, from one name or several per line.
fn offers<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn the_clients_first_known_protocol_wins() {
        let spdy = |values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|v| (STREAM_PROTOCOL, *v)).collect();
            choose_spdy(&headers(&pairs), &EXEC_SPDY)
        };
        assert_eq!(
            spdy(&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]),
            Ok("v4.channel.k8s.io")
        );
        assert_eq!(spdy(&["v5.channel.k8s.io, v2.channel.k8s.io,channel.k8s.io"]), Ok("v2.channel.k8s.io"));
        assert_eq!(spdy(&["channel.k8s.io"]), Ok("channel.k8s.io"));
        assert_eq!(spdy(&["v9"]), Err(Mismatch::None));
        assert_eq!(spdy(&[]), Err(Mismatch::Missing));
        assert_eq!(spdy(&[""]), Err(Mismatch::Missing));
        let websocket =
            |value: &str, known| choose_websocket(&headers(&[(SEC_WEBSOCKET_PROTOCOL, value)]), known);
        assert_eq!(websocket("v5.channel.k8s.io", &EXEC_WEBSOCKET[..]), Ok("v5.channel.k8s.io"));
        assert_eq!(websocket("x, base64.channel.k8s.io", &EXEC_WEBSOCKET), Ok("base64.channel.k8s.io"));
        assert_eq!(websocket("v3.channel.k8s.io", &EXEC_WEBSOCKET), Err(Mismatch::None));
        assert_eq!(websocket(PORT_FORWARD_TUNNEL, &FORWARD_WEBSOCKET), Ok(PORT_FORWARD_TUNNEL));
        assert_eq!(choose_websocket(&HeaderMap::new(), &EXEC_WEBSOCKET), Ok(""));
    }

    #[test]
    fn upgrades_are_told_apart() {
        let ask = |upgrade, connection| headers(&[(UPGRADE, upgrade), (CONNECTION, connection)]);
        assert!(wants_websocket(&ask("WebSocket", "keep-alive, Upgrade")));
        assert!(!wants_websocket(&ask("websocket", "close")));
        assert!(!wants_websocket(&ask("SPDY/3.1", "Upgrade")));
        assert!(wants_spdy(&ask("spdy/3.1", "upgrade")));
        assert!(!wants_spdy(&ask("SPDY/3", "upgrade")));
        assert!(!wants_spdy(&HeaderMap::new()));
    }

    #[test]
    fn what_a_protocol_can() {
        let of = |name| {
            let can = Channels::of(name);
            (can.status, can.resize, can.base64, can.close)
        };
        assert_eq!(of("v5.channel.k8s.io"), (true, true, false, true));
        assert_eq!(of("v4.base64.channel.k8s.io"), (true, true, true, false));
        assert_eq!(of("v3.channel.k8s.io"), (false, true, false, false));
        assert_eq!(of("v2.channel.k8s.io"), (false, false, false, false));
        assert_eq!(of("base64.channel.k8s.io"), (false, false, true, false));
    }
}
