//! Looks names up as the system does (`/etc/nsswitch.conf`, `/etc/hosts`, DNS), on threads of its own: the system's call
//! blocks for as long as name servers do not answer, and whoever owns a domain decides whether they do. So the threads
//! that the rest of the daemon needs never do this work, and names below one domain take a few of these only.

use crate::images::shares::Shares;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::sync::oneshot;

/// Look-ups at a time. An ordinary one takes milliseconds; one without an answer 10 to 30 s, by `/etc/resolv.conf`.
const AT_A_TIME: usize = 64;
/// Look-ups at a time of names below one domain, so that it takes 16 domains to hold up the names of others.
const OF_A_DOMAIN: usize = 4;
/// How long a look-up waits for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(10);
/// Addresses used of one name: a client tries them one after the other.
const MAX_ADDRESSES: usize = 16;

/// All look-ups of this process.
static NAMES: LazyLock<Names> = LazyLock::new(Names::default);

#[derive(Debug)]
struct Names {
    turns: Shares,
    turn_limit: Duration,
}

impl Default for Names {
    fn default() -> Self {
        Self { turns: Shares::new(AT_A_TIME, OF_A_DOMAIN), turn_limit: TURN_LIMIT }
    }
}

/// What a name means now; the ports are 0. At most [`MAX_ADDRESSES`].
///
/// # Errors
/// The system's, or that too many look-ups of such names have no answer.
pub(super) async fn lookup(name: &str) -> io::Result<Vec<SocketAddr>> {
    NAMES.lookup(name, resolve).await
}

fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((name, 0).to_socket_addrs()?.take(MAX_ADDRESSES).collect())
}

impl Names {
    async fn lookup(
        &self,
        name: &str,
        resolve: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let turn = tokio::time::timeout(self.turn_limit, self.turns.take(domain(name), 1)).await;
        let Ok(turn) = turn else {
            let text =
                format!("look-ups of other names below {:?} or elsewhere have no answer yet", domain(name));
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        };
        let (answer, answered) = oneshot::channel();
        let name = name.to_owned();
        // It ends when the system's call does, whether somebody still waits for it or not.
        std::thread::Builder::new().name("look-up".into()).spawn(move || {
            let found = resolve(&name);
            drop(turn);
            // Nobody waits for it any more.
            let _ = answer.send(found);
        })?;
        answered.await.map_err(io::Error::other)?
    }
}

/// The last two labels of a name: what somebody registers, in most places.
pub(super) fn domain(name: &str) -> &str {
    let name = name.trim_end_matches('.');
    match name.rmatch_indices('.').nth(1) {
        Some((dot, _)) => name.get(dot + 1..).unwrap_or(name),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    #[test]
    fn a_domain_is_the_end_of_a_name() {
        for (name, of) in [
            ("h1.slow.test", "slow.test"),
            ("a.b.slow.test.", "slow.test"),
            ("slow.test", "slow.test"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(domain(name), of, "{name}");
        }
    }

    #[tokio::test]
    async fn names_that_hang_hold_up_their_own_domain_alone() {
        let names = Arc::new(Names { turn_limit: Duration::from_millis(50), ..Names::default() });
        let mut hanging = Vec::new();
        let (begun, begins) = mpsc::channel();
        for domain in 0..3 {
            for host in 0..100 {
                let (go_on, wait) = mpsc::channel::<()>();
                let (names, begun) = (names.clone(), begun.clone());
                let hang = move |_: &str| {
                    begun.send(domain).unwrap();
                    let _ = wait.recv();
                    Ok(Vec::new())
                };
                let look_up = async move { names.lookup(&format!("h{host}.slow{domain}.test"), hang).await };
                hanging.push((tokio::spawn(look_up), go_on));
            }
        }
        let mut first = Vec::new();
        while first.len() < 3 * OF_A_DOMAIN {
            match begins.try_recv() {
                Ok(domain) => first.push(domain),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        for domain in 0..3 {
            assert_eq!(first.iter().filter(|of| **of == domain).count(), OF_A_DOMAIN);
        }
        let address: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let good = names.lookup("good.example", move |_| Ok(vec![address])).await;
        assert_eq!(good.unwrap(), [address]);
        // Those of the domain are told after a while, whether the first ones have ended or not.
        let error = names.lookup("h.slow1.test", |_| panic!("it had its turn")).await.unwrap_err();
        assert!(
            error.kind() == io::ErrorKind::TimedOut && error.to_string().contains("slow1.test"),
            "{error}"
        );
        assert!(begins.try_recv().is_err(), "more of a domain at a time than it may");
        drop(hanging);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_as_the_system_does() {
        assert!(lookup("localhost").await.unwrap().iter().any(|address| address.ip().is_loopback()));
        lookup("no-such-name.invalid").await.unwrap_err();
    }
}
