//! The doors for the fuzz target `checkpoint`.

use super::fits;
use crate::host::monitor::NamespacePaths;
use crate::images::Images;
use crate::model::{ContainerSpec, Restore};
use crate::sandbox::acts::restore::{self, pod_images, rights, whiteouts};
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use std::sync::OnceLock;

/// A container's record as the daemon writes it.
const RECORD: &str = include_str!("../../../fuzz/seeds/records/container");
/// What stands beside the copies and must be untouched.
const CANARY: &str = "canary";
/// Bytes of tar for a removed path, with the blocks of a long name.
const PER_PATH: usize = 2048;

static STORE: OnceLock<Images> = OnceLock::new();

pub(in crate::sandbox) fn any(dir: &Path, data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 5 {
        0 => archive(dir, data),
        1 => pod_images::fuzz(data, true),
        2 => pod_images::fuzz(data, false),
        3 => removed(data),
        _ => rights::fuzz(data),
    }
}

/// A whole restore of an archive touches nothing but its own directory.
fn archive(dir: &Path, data: &[u8]) {
    let store = STORE.get_or_init(|| {
        let limits =
            crate::config::Images { max_layer_bytes: 8 << 20, max_layer_entries: 2000, ..Default::default() };
        Images::open(&dir.join("images"), &limits).expect("open the store")
    });
    let (path, canary, to) = (dir.join("c.tar"), dir.join(CANARY), dir.join("writable"));
    std::fs::write(&path, data).expect("write the archive");
    std::fs::write(&canary, CANARY).expect("write the canary");
    std::fs::create_dir(&to).expect("make a directory");
    let from = Restore::Archive(path);
    let spec: ContainerSpec = serde_json::from_str(&RECORD[1..]).expect("a container's record");
    let _ = fits::container(&from, &spec, store, dir);
    let _ = rights::check(&from, &json!({}), store);
    let _ = restore::fetch(&from, &to, &NamespacePaths::default(), store, None);
    crate::host::remove::tree(&to).expect("remove what was made");
    assert_eq!(std::fs::read(&canary).expect("read the canary"), CANARY.as_bytes());
    let mut left: Vec<_> = std::fs::read_dir(dir).expect("list").flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["c.tar", CANARY, "images"], "something else was made");
}

/// Removed paths become no more than so much tar.
fn removed(data: &[u8]) {
    let Ok(paths) = serde_json::from_slice::<Vec<String>>(data) else { return };
    let (count, mut tar) = (paths.len(), Vec::new());
    if whiteouts::whiteouts(paths).read_to_end(&mut tar).is_err() {
        return;
    }
    assert!(tar.len() <= data.len() + PER_PATH * count);
    assert_eq!(tar.len() % 512, 0);
}
