//! The daemon's listeners: the CRI socket and two addresses.

use super::{Finding, Subject};
use crate::host::listeners::{self, Owner, Place};
use std::net::SocketAddr;
use std::path::Path;

/// Capacity of `sockaddr_un`, without the final NUL.
const LONGEST_SOCKET: usize = 107;

pub(super) fn all(subject: &Subject<'_>) -> Vec<Finding> {
    let config = subject.config;
    let daemon = subject.daemon();
    vec![
        socket(&config.grpc.socket, listeners::unix(&config.grpc.socket), daemon.as_ref()),
        address("streaming.address", &config.streaming.address, daemon.as_ref()),
        address("metrics.address", &config.metrics.address, daemon.as_ref()),
    ]
}

/// How to end a process: its name is mostly its unit's.
fn end(owner: Option<&Owner>) -> String {
    match owner {
        Some(Owner { pid, name }) => format!("systemctl stop {name}, or: kill {pid}"),
        None => "find the process (ss -lxp, ss -ltnp) and stop it".to_owned(),
    }
}

fn said(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "another process".to_owned(), ToString::to_string)
}

fn socket(path: &Path, place: Place, daemon: Option<&Owner>) -> Finding {
    let name = "grpc.socket";
    let shown = path.display();
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET {
        let remedy = "set grpc.socket to a shorter path";
        return Finding::fail(
            name,
            format!("{shown} has {length} bytes; {LONGEST_SOCKET} are possible"),
            remedy,
        );
    }
    match (place, daemon) {
        (Place::Taken(_), Some(daemon)) => Finding::ok(name, format!("{shown} is served by {daemon}")),
        (Place::Taken(owner), None) => Finding::fail(
            name,
            format!("{shown} is in use by {}", said(owner.as_ref())),
            format!("{}\nor set grpc.socket to another path", end(owner.as_ref())),
        ),
        (Place::Free, _) => Finding::ok(name, format!("{shown} is free")),
        (Place::Unusable(error), _) => {
            Finding::fail(name, format!("{shown}: {error}"), format!("ls -l {shown}\nrm {shown}"))
        }
    }
}

fn address(key: &str, configured: &str, daemon: Option<&Owner>) -> Finding {
    if configured.is_empty() {
        return Finding::ok(key, "none");
    }
    let Ok(wanted) = configured.parse::<SocketAddr>() else {
        let remedy = format!("set {key} to one such as 127.0.0.1:9615");
        return Finding::fail(key, format!("{configured:?} is not an IP address with a port"), remedy);
    };
    let remedy = format!("or set {key} to another address");
    match listeners::tcp(wanted) {
        Place::Free => Finding::ok(key, format!("{wanted} is free")),
        Place::Taken(Some(owner)) if Some(&owner) == daemon => {
            Finding::ok(key, format!("{wanted} is served by {owner}"))
        }
        Place::Taken(owner) => Finding::fail(
            key,
            format!("{wanted} is in use by {}", said(owner.as_ref())),
            format!("{}\n{remedy}", end(owner.as_ref())),
        ),
        Place::Unusable(error) => {
            Finding::fail(key, format!("{wanted}: {error}"), format!("ip addr\n{remedy}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use std::net::TcpListener;

    #[test]
    fn who_has_the_socket_is_told() {
        let other = Owner { pid: 7, name: "crio".into() };
        let finding = socket(Path::new("/s"), Place::Taken(Some(other.clone())), None);
        let Verdict::Fail { remedy } = &finding.verdict else { panic!("{finding:?}") };
        assert!(
            finding.found.contains("process 7 (crio)") && remedy.contains("systemctl stop crio"),
            "{finding:?}"
        );
        assert_eq!(
            socket(Path::new("/s"), Place::Taken(Some(other.clone())), Some(&other)).verdict,
            Verdict::Ok
        );
        let long = format!("/{}", "s".repeat(LONGEST_SOCKET));
        assert!(matches!(socket(Path::new(&long), Place::Free, None).verdict, Verdict::Fail { .. }));
    }

    #[test]
    fn who_has_the_port_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap().to_string();
        let finding = address("metrics.address", &taken, None);
        assert!(matches!(finding.verdict, Verdict::Fail { .. }));
        assert!(finding.found.contains(&format!("process {} (", std::process::id())), "{finding:?}");
        assert_eq!(address("metrics.address", "", None).verdict, Verdict::Ok);
        assert!(matches!(address("metrics.address", "nonsense", None).verdict, Verdict::Fail { .. }));
    }
}
