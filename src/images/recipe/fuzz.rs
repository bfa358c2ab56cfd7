//! The entry point of the fuzz target `recipe`.

use super::read::{Damage, Recreated};
use super::{MAGIC, RECIPE, REPLACED, REPLACED_INDEX, REPLACED_MAGIC, VERSION};
use std::io::Read as _;
use std::path::Path;

/// Bytes of a tar that are read: a damaged recipe may promise any number.
const TAR: u64 = 1 << 20;

/// By the first byte: segments of a recipe, or a list of what was replaced before a recipe that needs it. Both with the frame
/// and the checksum that they would have. `dir` is an existing directory for the layer.
pub(in crate::images) fn any(dir: &Path, data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    let (files, replaced) = (dir.join("fs"), dir.join(REPLACED));
    for dir in [&files, &replaced] {
        std::fs::create_dir_all(dir).expect("make a directory");
    }
    std::fs::write(files.join("a"), "text").expect("write a file");
    let index = replaced.join(REPLACED_INDEX);
    // Of the file `a`: its four bytes.
    let plain: Vec<u8> =
        [&b"F\x01\0a"[..], &[0; 8], &4u64.to_le_bytes(), &[0; 4], b"E", &4u64.to_le_bytes()].concat();
    let segments = if door.is_multiple_of(2) {
        let _ = std::fs::remove_file(&index);
        data
    } else {
        let mut list = [&REPLACED_MAGIC[..], &[VERSION], data].concat();
        let sum = crc32fast::hash(&list);
        list.extend(sum.to_le_bytes());
        std::fs::write(&index, list).expect("write the list");
        &plain
    };
    let recipe = [&MAGIC[..], &[VERSION], segments].concat();
    let recipe = zstd::bulk::compress(&recipe, super::LEVEL).expect("compress the recipe");
    std::fs::write(dir.join(RECIPE), recipe).expect("write the recipe");
    for damage in [Damage::Fails, Damage::Told(Vec::new())] {
        let Ok(mut made) = Recreated::open(dir, damage) else { continue };
        let mut tar = Vec::new();
        let _ = (&mut made).take(TAR).read_to_end(&mut tar);
        let _ = made.into_told();
    }
}
