//! The table of contents of a tar that lies in a file: where the data of each entry stands. Reads headers only; decides
//! nothing about names.
//!
//! Bounds: entries and the headers before them count alike (`max_entries`), a path or target has MAX_PATH bytes, and all
//! of them together MAX_CONTENTS_PATHS. The time is linear in what is read.

use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::{MAX_LONG_NAME, MAX_PATH, MAX_PAX};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Paths and targets of all entries are kept in memory: this many bytes.
const MAX_CONTENTS_PATHS: usize = 64 << 20;

/// What an entry of the tar is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes of the tar.
    File { offset: u64, size: u64 },
    /// A symbolic link, its target as it stands.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A directory, a device, a file with holes.
    Other,
}

/// Why a tar could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A read failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not a whole tar.
    #[error("at byte {offset}: {reason}")]
    Corrupt { offset: u64, reason: &'static str },
    /// It has more entries than the caller wants.
    #[error("more than {0} entries")]
    TooMany(usize),
}

/// Reads the table of contents: paths as they stand, in the order of the tar. Blocking.
pub(crate) fn contents(file: &File, max_entries: usize) -> Result<Vec<(Vec<u8>, Content)>, Fault> {
    let length = file.metadata()?.len();
    let (mut at, mut found) = (0u64, Vec::new());
    let (mut pax, mut long_path, mut long_link) = (Pax::default(), None, None);
    let (mut headers, mut kept) = (0usize, 0usize);
    loop {
        let offset = at;
        let corrupt = move |reason| Fault::Corrupt { offset, reason };
        if at == length {
            return Ok(found);
        }
        let mut block = [0u8; BLOCK];
        read_at(file, &mut block, at).map_err(|e| truncated(e, at))?;
        if block.iter().all(|b| *b == 0) {
            return Ok(found);
        }
        let header = Header::parse(&block).map_err(corrupt)?;
        let data = at + 512;
        let is_record = matches!(header.kind, b'x' | b'g' | b'L' | b'K');
        let size = if is_record { header.size } else { pax.size.unwrap_or(header.size) };
        // Links and directories have no data, whatever their size says.
        let stored = if matches!(header.kind, b'1'..=b'6') { 0 } else { size };
        let end = data
            .checked_add(stored)
            .filter(|end| *end <= length)
            .ok_or_else(|| corrupt("cut off within an entry"))?;
        at = end.checked_next_multiple_of(512).ok_or_else(|| corrupt("size"))?.min(length);
        let record = |limit| -> Result<Vec<u8>, Fault> {
            if size > limit {
                return Err(corrupt("name or PAX record too long"));
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            read_at(file, &mut bytes, data)?;
            Ok(bytes)
        };
        if is_record {
            headers += 1;
            if found.len() + headers > max_entries {
                return Err(Fault::TooMany(max_entries));
            }
        }
        match header.kind {
            b'x' => {
                pax = Pax::parse(&record(MAX_PAX)?).map_err(corrupt)?;
                continue;
            }
            b'g' => continue,
            b'L' => {
                long_path = Some(until_nul(record(MAX_LONG_NAME)?));
                continue;
            }
            b'K' => {
                long_link = Some(until_nul(record(MAX_LONG_NAME)?));
                continue;
            }
            _ => {}
        }
        if found.len() + headers == max_entries {
            return Err(Fault::TooMany(max_entries));
        }
        let Pax { path, link, sparse, .. } = std::mem::take(&mut pax);
        let (long_path, long_link) = (long_path.take(), long_link.take());
        let holes = header.sparse.is_some() || sparse.is_any();
        let path = path.or(long_path).unwrap_or(header.path);
        let link = link.or(long_link).unwrap_or(header.link);
        kept += path.len() + link.len();
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(corrupt("a path longer than 4095 bytes"));
        }
        if kept > MAX_CONTENTS_PATHS {
            return Err(corrupt("paths of more than 64 MiB"));
        }
        let content = match header.kind {
            0 | b'0' | b'7' if !path.ends_with(b"/") && !holes => Content::File { offset: data, size },
            b'1' => Content::HardLink(link),
            b'2' => Content::Symlink(link),
            _ => Content::Other,
        };
        found.push((path, content));
    }
}

fn read_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(into, offset)
}

fn truncated(error: io::Error, offset: u64) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Corrupt { offset, reason: "cut off within a header" },
        _ => Fault::Io(error),
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn sample() -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        type Builder = ::tar::Builder<Vec<u8>>;
        let add = |builder: &mut Builder, name: &str, kind, link: Option<&str>, data: &[u8]| {
            let mut header = ::tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(u64::try_from(data.len()).unwrap());
            match link {
                Some(link) => builder.append_link(&mut header, name, link).unwrap(),
                None => builder.append_data(&mut header, name, data).unwrap(),
            }
        };
        add(&mut builder, "d/", ::tar::EntryType::Directory, None, b"");
        add(&mut builder, &"long/".repeat(40), ::tar::EntryType::Regular, None, b"");
        add(&mut builder, "a", ::tar::EntryType::Regular, None, &[7; 513]);
        add(&mut builder, "s", ::tar::EntryType::Symlink, Some("a"), b"");
        add(&mut builder, "h", ::tar::EntryType::Link, Some(&"t".repeat(200)), b"");
        builder.append_pax_extensions([("path", &b"pax"[..]), ("mtime", b"1.5")]).unwrap();
        add(&mut builder, "b", ::tar::EntryType::Regular, None, b"xyz");
        builder.into_inner().unwrap()
    }

    #[test]
    fn entries_are_found_where_they_stand() {
        let bytes = sample();
        let found = contents(&file(&bytes), 9).unwrap();
        let names: Vec<_> =
            found.iter().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect();
        assert_eq!(names, ["d/", &"long/".repeat(40), "a", "s", "h", "pax"]);
        let data = |at: usize| match found[at].1 {
            Content::File { offset, size } => {
                let offset = usize::try_from(offset).unwrap();
                &bytes[offset..offset + usize::try_from(size).unwrap()]
            }
            _ => panic!("a file"),
        };
        assert_eq!((data(2), data(5)), (&[7; 513][..], &b"xyz"[..]));
        assert_eq!(found[3].1, Content::Symlink(b"a".to_vec()));
        assert_eq!(found[4].1, Content::HardLink(vec![b't'; 200]));
        assert!(matches!(contents(&file(&bytes), 8), Err(Fault::TooMany(8))));
        assert!(contents(&file(b""), 5).unwrap().is_empty());
    }

    #[test]
    fn headers_and_paths_count() {
        let long =
            |length: usize| crate::images::unpack::tests::pax(&[("path", "p".repeat(length).as_bytes())]);
        let headers = long(100).repeat(1000);
        assert!(matches!(contents(&file(&headers), 999), Err(Fault::TooMany(999))));
        let entry = crate::images::unpack::tests::file("x", "");
        let error = contents(&file(&[long(5000), entry.clone()].concat()), 10).unwrap_err().to_string();
        assert!(error.contains("longer than 4095"), "{error}");
        let many = [long(4000), entry].concat().repeat(17_000);
        let error = contents(&file(&many), 128 << 10).unwrap_err().to_string();
        assert!(error.contains("paths of more than 64 MiB"), "{error}");
    }

    #[test]
    fn every_cut_is_seen_or_harmless() {
        let bytes = sample();
        let whole = contents(&file(&bytes), 100).unwrap();
        let mut cut = 0;
        for length in (0..bytes.len()).step_by(128) {
            match contents(&file(&bytes[..length]), 100) {
                Ok(found) => assert_eq!(found, whole[..found.len()], "cut at {length}"),
                Err(Fault::Corrupt { .. }) => cut += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(cut > 20, "{cut}");
        let mut bad = bytes;
        bad[3] ^= 1;
        assert!(contents(&file(&bad), 100).unwrap_err().to_string().contains("checksum"));
    }
}
