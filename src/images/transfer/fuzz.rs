//! Entry points for the fuzz target `stores`: archives of images, and other runtimes' stores.

use super::files::Files;
use super::spool::Cancel;
use super::{docker, layout, peers};
use crate::images::windows::Windows;
use std::path::Path;
use std::sync::Arc;

/// Bytes of an archive, decompressed.
const ARCHIVE: u64 = 8 << 20;

/// By the first byte: an archive, a bbolt database, a tar-split record. `dir` is an existing directory for the file.
pub(in crate::images) fn any(dir: &Path, data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 3 {
        0 => archive(dir, data),
        1 => peers::fuzz::bolt(dir, data),
        _ => peers::fuzz::tar_split(dir, data),
    }
}

/// Offered images are named by digests, whatever the names in the archive are.
fn archive(dir: &Path, data: &[u8]) {
    let path = dir.join("images.tar");
    std::fs::write(&path, data).expect("write the archive");
    let Ok(files) = Files::open(&path, dir, ARCHIVE, &Windows::for_downloads(0, 1), &Cancel::default())
    else {
        return;
    };
    let files = Arc::new(files);
    for offers in [docker::offers(&files), layout::offers(Arc::clone(&files))].into_iter().flatten() {
        assert!(!offers.is_empty());
        for offer in offers {
            let _ = offer.source.open(&offer.top);
            assert!(offer.names().iter().all(|name| name.contains(['@', ':'])));
        }
    }
}
