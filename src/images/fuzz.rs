//! Entry points for the fuzz targets in `fuzz/`, which see only public items: hostile bytes to their parsers. Built
//! with `--cfg fuzzing`, and for tests that use every entry point. A panic or a failed assertion here is a finding.

use super::digest::Digest;
use super::manifest::{ConfigFile, Document, Node, choose, parse};
use super::reference::Reference;
use super::staging::Staging;
use super::unpack::{self, Limits, unpack};
use super::{policy, recipe, registry, transfer};
use std::io::Read as _;
use std::path::Path;

/// Small, so that a run is short; what they bound is the same.
const LIMITS: Limits = Limits { bytes: 8 << 20, entries: 2000 };
/// Files beside a layer's staging directory that must stay untouched.
const CANARY: &str = "canary";

/// A manifest or index, and the same bytes as an image config.
pub fn documents(data: &[u8]) {
    if let Ok(Document::Index(entries)) = parse("x", data) {
        let _ = choose("x", &entries, Node::here());
    }
    let _ = ConfigFile::parse("x", data, 1, Node::here());
}

/// An image reference. An accepted one has one spelling.
///
/// # Panics
/// If its own text is refused or means something else.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).ok().as_ref(), Some(&reference), "{text:?}");
        policy::fuzz::scopes(&reference);
    }
}

/// A `WWW-Authenticate` header, and the same bytes as what the process that speaks HTTP says.
pub fn challenge(data: &[u8]) {
    registry::fuzz::said(data);
    if let Ok(text) = std::str::from_utf8(data) {
        registry::fuzz::challenge(text);
    }
}

/// A `hosts.toml` or, by the first byte, a `registries.conf`. `dir` is an existing directory for the file.
pub fn hosts(dir: &Path, data: &[u8]) {
    registry::fuzz::hosts(dir, data);
}

/// A signature policy, payload or bundle, by the first byte.
pub fn signatures(data: &[u8]) {
    policy::fuzz::any(data);
}

/// The tar parsers by themselves: PAX records, headers, tables of contents, by the first byte.
pub fn pax(dir: &Path, data: &[u8]) {
    unpack::fuzz::any(dir, data);
}

/// A recipe, or by the first byte the list of what a layer replaced.
pub fn recipe(dir: &Path, data: &[u8]) {
    recipe::fuzz::any(dir, data);
}

/// Archives of images, containerd's database, the records of containers/storage, by the first byte.
pub fn stores(dir: &Path, data: &[u8]) {
    transfer::fuzz::any(dir, data);
}

/// A layer's tar. What is unpacked can be reproduced byte for byte, and nothing outside is touched.
///
/// # Panics
/// When that is not so.
pub fn layer(dir: &Path, data: &[u8]) {
    let canary = dir.join(CANARY);
    std::fs::write(&canary, CANARY).expect("write the canary");
    let staging = Staging::new(dir).expect("make a staging directory");
    if unpack(data, staging.path(), "x", LIMITS).is_ok() {
        let mut again = Vec::new();
        let read = recipe::tar(staging.path()).expect("open the recipe").read_to_end(&mut again);
        read.expect("make the tar again");
        assert_eq!(Digest::sha256(&again), Digest::sha256(data), "the tar made again is another");
    }
    drop(staging);
    assert_eq!(std::fs::read(&canary).expect("read the canary"), CANARY.as_bytes());
    let left: Vec<_> = std::fs::read_dir(dir).expect("list").flatten().map(|e| e.file_name()).collect();
    assert_eq!(
        left,
        [CANARY],
        "the staging directory is not the only thing that was made, or is still there"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fuzz::seeds::through;

    #[test]
    fn seeds_and_what_is_near_them_go_through_every_door() {
        through("documents", 1, documents);
        through("reference", 1, reference);
        through("challenge", 1, challenge);
        through("signatures", 5, signatures);
        for (target, choices, door) in [
            ("hosts", 2, hosts as fn(&Path, &[u8])),
            ("layer", 1, layer),
            ("pax", 3, pax),
            ("recipe", 2, recipe),
            ("stores", 3, stores),
        ] {
            let dir = tempfile::tempdir().unwrap();
            through(target, choices, |data| door(dir.path(), data));
        }
    }
}
