//! The tar parsers' doors for the fuzz target `pax`.

use super::contents::contents;
use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::sparse::Map;
use super::tar::Kind;
use super::wire;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Entries of a table of contents.
const ENTRIES: usize = 100;

/// By the first byte: PAX records, a header, a table of contents, what a tar parser says.
pub(in crate::images) fn any(dir: &Path, data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 4 {
        0 => pax(data),
        1 => header(data),
        3 => words(data),
        _ => table(dir, data),
    }
}

/// What is kept of records is in them, and not too much.
fn pax(data: &[u8]) {
    let Ok(pax) = Pax::parse(data) else { return };
    assert!(pax.xattrs.len() <= super::MAX_XATTRS);
    let kept: usize = pax.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(kept + pax.path.iter().chain(&pax.link).map(Vec::len).sum::<usize>() <= data.len());
    assert!(pax.mtime.is_none_or(|(_, nanos)| nanos < 1_000_000_000));
    if let Ok(Some(map)) = pax.sparse.map() {
        check(map);
    }
}

/// A header whose checksum is made right: no fuzzer finds it.
fn header(data: &[u8]) {
    let mut block = [0; BLOCK];
    let length = data.len().min(BLOCK);
    block[..length].copy_from_slice(&data[..length]);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let Ok(header) = Header::parse(&block) else { return };
    assert!(header.path.len() <= 256 && header.link.len() <= 100 && header.mode <= 0o7777);
    if let Some(old) = header.sparse {
        assert!(old.ranges.len() <= 4);
        check(Map { real_size: old.real_size, ranges: old.ranges });
    }
}

/// What a parser that was taken over says is an entry within all bounds, or none.
fn words(mut data: &[u8]) {
    while let Ok(said) = wire::read(&mut data) {
        let wire::Said::Entry(entry) = said else { continue };
        assert!(entry.path.len() <= super::MAX_PATH && entry.xattrs.len() <= super::MAX_XATTRS);
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX && entry.mode <= 0o7777);
        if let Kind::File { sparse: Some(map), size } = entry.kind {
            assert!(map.check(size).is_ok());
        }
    }
}

/// A map that is taken rises, and ends with its file.
fn check(map: Map) {
    let stored = map.ranges.iter().fold(0, |sum: u64, (_, length)| sum.saturating_add(*length));
    let Ok(map) = map.check(stored) else { return };
    assert!(map.ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    assert!(map.ranges.last().is_none_or(|(offset, length)| offset + length <= map.real_size));
}

/// Every file that is found lies within the tar.
fn table(dir: &Path, data: &[u8]) {
    let path = dir.join("tar");
    let file =
        File::options().create(true).truncate(true).read(true).write(true).open(&path).expect("make a file");
    file.write_all_at(data, 0).expect("write the file");
    let Ok(parser) = crate::images::worker::Parser::start() else { return };
    let Ok(found) = contents(&file, ENTRIES, parser) else { return };
    assert!(found.len() <= ENTRIES);
    for (_, content) in found {
        if let super::Content::File { offset, size } = content {
            assert!(usize::try_from(offset + size).is_ok_and(|end| end <= data.len()));
        }
    }
}
