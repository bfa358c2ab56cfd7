//! Image references: grammar and Docker's normalisation. Pure; never asks the store or a registry.

use super::digest::Digest;
use super::error::{ImageError, cut};
use std::fmt;

/// The registry of names without a host.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Longest `host/path`, from the reference grammar of distribution.
const MAX_NAME: usize = 255;
/// Longest tag, same source.
const MAX_TAG: usize = 128;

/// A normalised reference: registry, repository and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    target: Target,
}

/// The part of a repository that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A movable tag.
    Tag(String),
    /// Content. A tag beside a digest is dropped, as Docker does.
    Digest(Digest),
}

impl Reference {
    /// Parses and normalises: `busybox` is `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    /// `Malformed`, saying what is wrong.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::Malformed { reference: cut(text), reason })
    }

    /// Host, with its port.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path below the host.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Tag or digest.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `registry/repository@digest`.
    #[must_use]
    pub fn at_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_NAME + 1 + MAX_TAG + 1 + 136 {
        return Err("it is too long");
    }
    if text.contains("://") {
        return Err("it has a URL scheme; an image reference has none");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(Digest::parse(digest).map_err(|_| "the digest is not sha256:<64 hex> or sha512:<128 hex>")?),
        ),
        None => (text, None),
    };
    // A colon behind the last slash starts a tag; one before it is a port.
    let path_start = rest.rfind('/').map_or(0, |i| i + 1);
    let (name, tag) = match rest[path_start..].find(':') {
        Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
        None => (rest, None),
    };
    if digest.is_none() && tag.is_none() && name.len() == 64 && super::digest::is_hex(name) {
        return Err("64 hex digits are an image id, not a name");
    }
    let (registry, repository) = split_host(name)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    check_repository(&repository)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let target = match digest {
        Some(digest) => Target::Digest(digest),
        None => Target::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference { registry, repository, target })
}

fn split_host(name: &str) -> Result<(String, String), &'static str> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            check_host(first)?;
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    };
    let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
    let path =
        if host == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    Ok((host.to_owned(), path))
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let (address, rest) =
                v6.split_once(']').ok_or("the IPv6 address of the registry has no closing bracket")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "the registry is not an IPv6 address")?;
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return Err("the registry has text behind its IPv6 address"),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err("the registry's port is not a number from 0 to 65535");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    match name {
        Some(name) if !name.split('.').all(label) => Err("the registry is not a host name"),
        // Other spellings of an address would still be connected to, past the configuration for it.
        Some(name) if is_numeric(name) && name.parse::<std::net::Ipv4Addr>().is_err() => {
            Err("the registry is a number and no IPv4 address of four decimal parts")
        }
        _ => Ok(()),
    }
}

/// Whether URL parsers treat it as an IPv4 address: the last part is a decimal, octal or hexadecimal number.
fn is_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` in each component.
fn check_repository(path: &str) -> Result<(), &'static str> {
    for component in path.split('/') {
        if component.is_empty() {
            return Err("the repository has an empty component");
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the repository must be lower case");
        }
        if !component.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
            return Err("the repository has a character outside a-z 0-9 . _ - /");
        }
        let separators = component.split(|c: char| c.is_ascii_alphanumeric());
        if !separators.clone().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-')) {
            return Err("the repository has separators in a row");
        }
        if component.starts_with(['.', '_', '-']) || component.ends_with(['.', '_', '-']) {
            return Err("a component of the repository starts or ends with a separator");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let mut bytes = tag.bytes();
    let first_ok = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !first_ok || tag.len() > MAX_TAG || !bytes.all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err("the tag is not 1 to 128 characters of A-Z a-z 0-9 _ . -, the first not . or -");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let hex = "a".repeat(64);
        for (given, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".into()),
            ("docker.io/a/b:c", "docker.io/a/b:c".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("localhost:5000/x:y", "localhost:5000/x:y".into()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".into()),
            ("127.evil.example:80/x", "127.evil.example:80/x:latest".into()),
            ("10.0.0.1:80/x", "10.0.0.1:80/x:latest".into()),
            ("user/x", "docker.io/user/x:latest".into()),
            ("Host/x", "Host/x:latest".into()),
            ("r.example/a--b/c__d:T_1", "r.example/a--b/c__d:T_1".into()),
            (&format!("r.example/x:tag@sha256:{hex}"), format!("r.example/x@sha256:{hex}")),
            (&format!("x@sha256:{hex}"), format!("docker.io/library/x@sha256:{hex}")),
        ] {
            let parsed = Reference::parse(given).unwrap();
            assert_eq!(parsed.to_string(), want);
            assert_eq!(Reference::parse(&want).unwrap(), parsed, "normal form is a fixed point");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (bad, reason) in [
            ("", "empty"),
            ("https://r.example/x", "scheme"),
            ("r.example/X", "lower case"),
            ("r.example/a//b", "empty component"),
            ("r.example/a..b", "separators in a row"),
            ("r.example/-a", "starts or ends"),
            ("r.example/a:", "tag"),
            ("r.example/a:-x", "tag"),
            ("r.example:99999/a", "port"),
            ("-r.example/a", "host name"),
            ("127.1:5000/a", "four decimal parts"),
            ("0x7f.0.0.1/a", "four decimal parts"),
            ("127.0.0.0x1/a", "four decimal parts"),
            ("0177.0.0.1/a", "four decimal parts"),
            ("2130706433:5000/a", "four decimal parts"),
            ("x@sha256:12", "digest"),
            ("x@", "digest"),
            (&"a".repeat(64), "image id"),
            ("a b", "character"),
            ("../../etc/passwd", "host name"),
            ("x\n", "character"),
            (&format!("r.example/{}", "a".repeat(250)), "255"),
        ] {
            let text = Reference::parse(bad).unwrap_err().to_string();
            assert!(text.contains(reason), "{bad}: {text}");
        }
    }
}
