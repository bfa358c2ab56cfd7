//! The policy's entry points for the fuzz targets.

use super::claim::Claim;
use super::identity::{self, Identity};
use super::key::PublicKey;
use super::{containers, file};
use crate::images::digest::Digest;
use crate::images::reference::Reference;
use std::path::Path;

pub(crate) fn scopes(image: &Reference) {
    for scope in identity::scopes(image) {
        let _ = identity::check_scope(&scope);
    }
}

pub(crate) fn any(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let Ok(image) = Reference::parse("r.io/team/app:1") else { return };
    match first % 5 {
        0 => drop(std::str::from_utf8(data).map(|text| file::parse(Path::new("p"), text))),
        1 => drop(std::str::from_utf8(data).map(|text| containers::parse(Path::new("p"), text))),
        2 => drop(PublicKey::parse("k".into(), data)),
        // No fuzzer finds a signature: the content behind one is read without.
        3 => Claim::read_unverified(data, &Identity::OWN_REPOSITORY, &image, &Digest::sha256(b"x")),
        _ => drop(Claim::bundle("b".into(), data)),
    }
}
