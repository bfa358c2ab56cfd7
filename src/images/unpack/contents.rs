//! The table of contents of a tar that lies in a file: where the data of each entry stands. What a parser in another process
//! says of the headers, which alone are read; decides nothing about names.
//!
//! Bounds: entries and the headers before them count alike (`max_entries`), a path or target has MAX_PATH bytes, and all
//! of them together MAX_CONTENTS_PATHS. The time is linear in what is read.

use super::parsed::Parser;
use super::tar::{Entry, Kind};
use super::wire;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes of the tar at a time: most of an archive is data of layers, which is not read.
const PIECE: usize = 16 << 10;
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
    Corrupt { offset: u64, reason: String },
    /// It has more entries than the caller wants.
    #[error("more than {0} entries")]
    TooMany(usize),
}

/// Reads the table of contents: paths as they stand, in the order of the tar. `parser` says what is where; where that can be, is
/// checked here. Blocking.
pub(crate) fn contents(
    file: &File,
    max_entries: usize,
    mut parser: impl Parser,
) -> Result<Vec<(Vec<u8>, Content)>, Fault> {
    let length = file.metadata()?.len();
    let (mut at, mut given, mut found) = (0u64, 0u64, Vec::new());
    let (mut headers, mut kept, mut has_all) = (0u64, 0usize, false);
    let max = u64::try_from(max_entries).unwrap_or(u64::MAX);
    let mut piece = vec![0; PIECE];
    loop {
        let corrupt = |reason: &str| Fault::Corrupt { offset: at, reason: reason.to_owned() };
        match wire::read(&mut parser) {
            Ok(wire::Said::Next) if given > 0 || has_all => {
                return Err(corrupt("its tar parser said nonsense: it has not said all"));
            }
            Ok(wire::Said::Next) => {
                let read = read_some(file, &mut piece, at)?;
                match piece.get(..read) {
                    None | Some([]) => {
                        has_all = true;
                        parser.no_more();
                    }
                    Some(piece) => match parser.give(piece, None) {
                        // One that has ended: what it said before tells why.
                        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
                        _ => given = u64::try_from(read).unwrap_or_default(),
                    },
                }
            }
            Ok(wire::Said::Inline(bytes)) if bytes > given => {
                return Err(corrupt("its tar parser said nonsense: of bytes that it has not seen"));
            }
            Ok(wire::Said::Inline(bytes)) => {
                at += bytes;
                given -= bytes;
            }
            Ok(wire::Said::Entry(entry)) => {
                headers += entry.headers;
                if u64::try_from(found.len()).unwrap_or(u64::MAX).saturating_add(headers) >= max {
                    return Err(Fault::TooMany(max_entries));
                }
                let Entry { kind, path, .. } = *entry;
                let content = match kind {
                    Kind::File { size, sparse } => {
                        let offset = at;
                        at = at
                            .checked_add(size)
                            .filter(|end| *end <= length)
                            .ok_or_else(|| corrupt("cut off within an entry"))?;
                        given = given.saturating_sub(size);
                        if sparse.is_none() { Content::File { offset, size } } else { Content::Other }
                    }
                    Kind::Symlink(target) => Content::Symlink(target),
                    Kind::HardLink(target) => Content::HardLink(target),
                    _ => Content::Other,
                };
                kept += path.len();
                if let Content::Symlink(target) | Content::HardLink(target) = &content {
                    kept += target.len();
                }
                if kept > MAX_CONTENTS_PATHS {
                    return Err(Fault::Corrupt { offset: at, reason: "paths of more than 64 MiB".into() });
                }
                found.push((path, content));
            }
            Ok(wire::Said::End) => break,
            Ok(wire::Said::Refusal { code, text }) => return Err(corrupt(&wire::reason(code, &text))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let end = parser.end().unwrap_or_else(|| "it ended well".into());
                return Err(corrupt(&format!("its tar parser ended without a word: {end}")));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(corrupt(&format!("its tar parser said nonsense: {error}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    match parser.end() {
        None => Ok(found),
        Some(reason) => Err(Fault::Corrupt { offset: at, reason }),
    }
}

/// What is there, from `offset` on.
fn read_some(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn contents(file: &File, max_entries: usize) -> Result<Vec<(Vec<u8>, Content)>, Fault> {
        super::contents(file, max_entries, crate::images::worker::Parser::start().unwrap())
    }

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
        let error = contents(&file(&long(100).repeat(1000)), 999).unwrap_err().to_string();
        assert!(error.contains("the headers before an entry have more than 8 headers"), "{error}");
        let entry = crate::images::unpack::tests::file("x", "");
        let headers = [long(100).repeat(4), entry.clone()].concat().repeat(200);
        assert!(matches!(contents(&file(&headers), 999), Err(Fault::TooMany(999))));
        let error = contents(&file(&[long(5000), entry.clone()].concat()), 10).unwrap_err().to_string();
        assert!(error.contains("a path has more than 4095 bytes"), "{error}");
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
