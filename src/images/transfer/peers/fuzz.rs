//! Entry points for the fuzz target `stores`: the files of other runtimes.

use super::bolt::{Bolt, Value};
use super::tar_split::Assembly;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

/// Bytes of a tar that are read.
const TAR: u64 = 1 << 20;
/// Buckets below each other.
const DEPTH: usize = 4;

/// A database with corrected checksums: no fuzzer finds them. All of its upper buckets are read.
pub(in crate::images::transfer) fn bolt(dir: &Path, data: &[u8]) {
    let path = dir.join("meta.db");
    let mut bytes = data.to_vec();
    for page in [0, 512, 1024, 4096] {
        let Some(body) = bytes.get_mut(page + 16..page + 80) else { break };
        let sum = super::bolt::checksum(&body[..56]);
        body[56..].copy_from_slice(&sum.to_ne_bytes());
    }
    std::fs::write(&path, bytes).expect("write the file");
    let Ok(bolt) = Bolt::open(&path) else { return };
    assert!(bolt.is_current().expect("look again"));
    let mut level = vec![bolt.root()];
    for _ in 0..DEPTH {
        let mut below = Vec::new();
        // More of them add nothing.
        for bucket in level.iter().take(4) {
            let entries = bolt.entries(bucket).unwrap_or_default().into_iter();
            below.extend(entries.filter_map(|(_, value)| match value {
                Value::Bucket(bucket) => Some(bucket),
                Value::Bytes(_) => None,
            }));
        }
        level = below;
    }
}

/// Lines of a record of a layer with one file. The output has the file's bytes, or those of the lines.
pub(in crate::images::transfer) fn tar_split(dir: &Path, data: &[u8]) {
    let (record, files) = (dir.join("tar-split.gz"), dir.join("diff"));
    std::fs::create_dir_all(&files).expect("make a directory");
    std::fs::write(files.join("a"), "text").expect("write a file");
    let mut packed = flate2::write::GzEncoder::new(
        File::create(&record).expect("make the record"),
        flate2::Compression::fast(),
    );
    packed.write_all(data).and_then(|()| packed.finish().map(drop)).expect("write the record");
    let made = Assembly::open(&record, &files).expect("open the record");
    let mut tar = Vec::new();
    if made.take(TAR).read_to_end(&mut tar).is_ok() {
        assert!(tar.len() <= 4 * data.len());
    }
}
