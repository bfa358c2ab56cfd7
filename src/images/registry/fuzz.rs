//! The registry side's entry points for the fuzz targets.

use super::{challenge, hosts};
use crate::images::reference::Reference;
use std::path::Path;

pub(crate) fn challenge(text: &str) {
    for challenge in challenge::parse([text].into_iter()) {
        let _ = challenge.get("realm");
    }
}

pub(crate) fn said(data: &[u8]) {
    super::fetch::fuzz(data);
}

pub(crate) fn hosts(dir: &Path, data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let Ok(reference) = Reference::parse("r.io/team/app:1") else { return };
    let certs = dir.join("r.io");
    std::fs::create_dir_all(&certs).expect("make a directory");
    let (hosts_toml, conf) = (certs.join("hosts.toml"), dir.join("registries.conf"));
    let (used, other) = if first.is_multiple_of(2) { (&hosts_toml, &conf) } else { (&conf, &hosts_toml) };
    std::fs::write(used, text).expect("write the file");
    std::fs::write(other, "").expect("empty the other file");
    let _ = hosts::hosts_for(&[dir.to_owned()], &conf, &reference);
}
