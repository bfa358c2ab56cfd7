//! Proofs: that a registry has shown a caller, with the credentials of that pull, the bytes of something, or the right
//! to them. Others do not get what is on the node. In memory, bounded, and without a secret: a caller is a keyed
//! digest, whose key is this process's own.

use super::digest::Digest;
use super::error::ImageError;
use super::registry::Session;
use ring::hmac;
use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Proofs remembered, 2 MiB of them: about 2000 images of 8 layers. A forgotten one is requested from the registry
/// again.
const MAX_PROOFS: usize = 16_384;

/// A repository with the hosts that serve it, and all that each of them may know the caller by: credentials, headers, client
/// certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller([u8; 32]);

/// The proved right.
#[derive(Debug)]
pub(crate) struct Proofs {
    key: hmac::Key,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    proofs: HashSet<[u8; 32]>,
    oldest_first: VecDeque<[u8; 32]>,
}

impl Proofs {
    pub(crate) fn new() -> Result<Self, ImageError> {
        let mut secret = [0; 32];
        let mut filled = 0;
        while filled < secret.len() {
            filled += rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty())
                .map_err(|e| {
                ImageError::io("read random bytes for", Path::new("the proofs of pulls"), e)
            })?;
        }
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &secret), known: Mutex::default() })
    }

    /// The caller of a pull.
    pub(crate) fn caller(&self, session: &Session) -> Caller {
        let mut context = hmac::Context::with_key(&self.key);
        session.tell_caller(&mut |part: &[u8]| {
            // With its length, or two parts could be read as two others.
            context.update(&part.len().to_be_bytes());
            context.update(part);
        });
        Caller(bytes(context.sign()))
    }

    fn proof(&self, caller: &Caller, digest: &Digest) -> [u8; 32] {
        bytes(hmac::sign(&self.key, &[&caller.0[..], digest.as_str().as_bytes()].concat()))
    }

    /// Whether the caller may have what `digest` names.
    pub(crate) fn has(&self, caller: &Caller, digest: &Digest) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.proofs.contains(&self.proof(caller, digest))
    }

    /// Remembers that the caller may have what `digest` names.
    pub(crate) fn put(&self, caller: &Caller, digest: &Digest) {
        let proof = self.proof(caller, digest);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.proofs.insert(proof) {
            known.oldest_first.push_back(proof);
        }
        if known.oldest_first.len() > MAX_PROOFS
            && let Some(oldest) = known.oldest_first.pop_front()
        {
            known.proofs.remove(&oldest);
        }
    }
}

fn bytes(tag: hmac::Tag) -> [u8; 32] {
    let mut bytes = [0; 32];
    // HMAC-SHA256 has as many.
    bytes.copy_from_slice(&tag.as_ref()[..32]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::reference::Reference;
    use crate::images::registry::{Credentials, Proxies, Registry};
    use crate::images::tests::{docker_registry::make_certificate, fixture};

    #[test]
    fn a_caller_is_all_that_its_hosts_may_know_it_by() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("r.example");
        std::fs::create_dir(&certs).unwrap();
        let file = |name: &str| certs.join(name).into_os_string().into_string().unwrap();
        make_certificate("a", &file("a.pem"), &file("a.key"));
        std::fs::copy(file("a.pem"), file("b.pem")).unwrap();
        let config = crate::config::Images { certs_dirs: vec![dir.path().to_owned()], ..fixture::config() };
        let registry = Registry::with_proxies(&config, Proxies::default());
        let proofs = Proofs::new().unwrap();
        let caller = |hosts: &str, user: &str| {
            std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
            let reference = Reference::parse("r.example/x:t").unwrap();
            let credentials =
                Credentials { username: user.into(), password: "p".into(), ..Default::default() };
            proofs.caller(&Session::new(&registry, &reference, Some(&credentials)).unwrap())
        };
        let with_certificate = "client = [[\"a.pem\", \"a.key\"]]";
        let all = [
            "",
            "server = \"https://s.example\"",
            "server = \"https://r.example:8443\"",
            "[header]\nauthorization = \"a\"",
            "[header]\nauthorization = \"b\"",
            "[header]\nauthorization = [\"a\", \"b\"]",
            "[header]\nx-authorization = \"a\"",
            "[host.\"https://m.example\"]",
            "[host.\"https://m.example\".header]\nx-user = \"a\"",
            with_certificate,
            "client = [[\"b.pem\", \"a.key\"]]",
            "ca = \"a.pem\"",
            "skip_verify = true",
        ];
        let mut callers: Vec<_> = all.iter().map(|hosts| caller(hosts, "u")).collect();
        assert_eq!(caller("", "u"), callers[0]);
        assert_eq!(caller(with_certificate, "u"), callers[9]);
        // Another certificate in the same place.
        let text = std::fs::read_to_string(file("a.pem")).unwrap();
        std::fs::write(file("a.pem"), format!("{text}\n")).unwrap();
        callers.extend([caller(with_certificate, "u"), caller("", "v")]);
        for (at, one) in callers.iter().enumerate() {
            assert!(!callers[..at].contains(one), "{at}: {:?}", all.get(at));
        }
    }

    #[test]
    fn proofs_are_one_callers_and_the_oldest_go() {
        let proofs = Proofs::new().unwrap();
        let digest = |n: usize| Digest::sha256(&n.to_be_bytes());
        let (one, other) = (Caller([1; 32]), Caller([2; 32]));
        proofs.put(&one, &digest(0));
        assert!(proofs.has(&one, &digest(0)) && !proofs.has(&other, &digest(0)));
        (1..=MAX_PROOFS).for_each(|n| proofs.put(&one, &digest(n)));
        assert!(!proofs.has(&one, &digest(0)) && proofs.has(&one, &digest(1)));
        let known = proofs.known.lock().unwrap();
        assert_eq!((known.proofs.len(), known.oldest_first.len()), (MAX_PROOFS, MAX_PROOFS));
    }
}
