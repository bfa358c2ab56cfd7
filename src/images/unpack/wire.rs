//! What a tar parser in a worker says, as bytes: how much of the tar goes by, and the entries in it. Both ends of it.
//!
//! ```text
//! 'N'                    the next piece is wanted: it has said all of those that it has seen
//! 'I' u64                bytes of the tar that stand in no file
//! 'E' entry              an entry; of a file, its stored bytes come next in the tar
//! 'Z'                    the end mark, or a clean end
//! 'X' u8 u16 bytes       it cannot go on: which refusal, and a text
//! ```
//!
//! A parser is given the tar in pieces, when it asks for one: in memory that it can see, [`PIECE`] bytes long, with the place and
//! the number of bytes (u32 each) over its pipe; at the end there is none.
//! Of a file's data, only what stands in the piece of its header is given to it: the rest is passed over by both sides, so that
//! bytes of large files never go to it.
//!
//! Integers are little endian. The reader takes nothing for granted: lengths and counts have the caps that the parser has,
//! and what is longer ends the reading before it is allocated. It has no states but between two messages.

use super::sparse::Map;
use super::tar::{Entry, Kind};
use super::{Blame, MAX_XATTR_NAMES};
use super::{
    MAX_COMPONENT, MAX_HEADERS, MAX_LONG_NAME, MAX_PATH, MAX_PAX, MAX_SPARSE, MAX_XATTR_VALUE, MAX_XATTRS,
};
use crate::images::error::ImageError;
use std::io::{self, Read};

/// Limits that a parser may say that the tar breaks: what, the limit, its unit.
const LIMITS: [(&str, u64, &str); 4] = [
    ("a PAX header", MAX_PAX, "bytes"),
    ("a GNU long name", MAX_LONG_NAME, "bytes"),
    ("the headers before an entry", MAX_HEADERS, "headers"),
    ("a path", MAX_PATH as u64, "bytes"),
];
/// Why a parser may refuse an entry.
const HOSTILE: [&str; 3] =
    ["its owner does not fit 32 bits", "its type is unknown", "its target is not a path"];
/// Refusals: the tar is corrupt for the reason in the text; then those of `LIMITS`, then those of `HOSTILE`, of which the
/// text is the entry.
const CORRUPT: u8 = 0;
/// Bytes of a piece of tar.
pub(crate) const PIECE: usize = 256 << 10;
/// Bytes of a text.
const MAX_TEXT: usize = 200;

/// Where a piece is, and its bytes.
pub(crate) fn where_it_is(place: usize, length: usize) -> io::Result<[u8; 8]> {
    let mut message = [0; 8];
    for (at, number) in [(0, place), (4, length)] {
        message[at..at + 4].copy_from_slice(&u32::try_from(number).map_err(io::Error::other)?.to_le_bytes());
    }
    Ok(message)
}

/// The reverse; None: it would not be within the memory.
pub(super) fn where_is(message: [u8; 8]) -> Option<(usize, usize)> {
    let number = |at: usize| {
        let bytes = message.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let (place, length) = (number(0)?, number(4)?);
    place.checked_add(length).filter(|end| *end <= PIECE).map(|_| (place, length))
}

/// One message.
#[derive(Debug)]
pub(super) enum Said {
    Next,
    Inline(u64),
    Entry(Box<Entry>),
    End,
    Refusal { code: u8, text: Vec<u8> },
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    // The caller has bounded it.
    out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(&bytes[..bytes.len().min(usize::from(u16::MAX))]);
}

/// Bytes that go by.
pub(super) fn inline(out: &mut Vec<u8>, bytes: u64) {
    out.push(b'I');
    out.extend(bytes.to_le_bytes());
}

/// There is no more to be said without the next piece.
pub(super) fn next(out: &mut Vec<u8>) {
    out.push(b'N');
}

/// The end.
pub(super) fn end(out: &mut Vec<u8>) {
    out.push(b'Z');
}

/// A refusal for what a parser met.
pub(super) fn refusal(out: &mut Vec<u8>, error: &ImageError) {
    let place = |at: usize| u8::try_from(at).unwrap_or_default();
    let (code, text) = match error {
        ImageError::Limit { what, .. } => {
            let known = LIMITS.iter().position(|(name, ..)| what.starts_with(name));
            (known.map_or(CORRUPT, |at| 1 + place(at)), what.clone())
        }
        ImageError::HostileEntry { entry, reason, .. } => {
            let known = HOSTILE.iter().position(|name| name == reason);
            (known.map_or(CORRUPT, |at| 1 + place(LIMITS.len() + at)), entry.clone())
        }
        ImageError::CorruptLayer { reason, .. } => (CORRUPT, reason.clone()),
        other => (CORRUPT, other.to_string()),
    };
    out.extend([b'X', code]);
    sized(out, &text.as_bytes()[..text.len().min(MAX_TEXT)]);
}

/// An entry, or why there cannot be such a one.
pub(super) fn entry(out: &mut Vec<u8>, entry: &Entry, blame: &Blame) -> Result<(), ImageError> {
    let Entry { kind, path, mode, uid, gid, mtime, xattrs, headers } = entry;
    if path.len() > MAX_PATH {
        return Err(blame.limit("a path", LIMITS[3].1, "bytes"));
    }
    out.push(b'E');
    let link = match kind {
        Kind::File { size, sparse } => {
            out.push(b'f');
            out.extend(size.to_le_bytes());
            match sparse {
                None => out.push(0),
                Some(map) => {
                    out.push(1);
                    out.extend(map.real_size.to_le_bytes());
                    out.extend(u32::try_from(map.ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
                    for (offset, length) in &map.ranges {
                        out.extend(offset.to_le_bytes());
                        out.extend(length.to_le_bytes());
                    }
                }
            }
            None
        }
        Kind::Directory => {
            out.push(b'd');
            None
        }
        Kind::Fifo => {
            out.push(b'p');
            None
        }
        Kind::Char(major, minor) | Kind::Block(major, minor) => {
            out.push(if matches!(kind, Kind::Char(..)) { b'c' } else { b'b' });
            out.extend(major.to_le_bytes());
            out.extend(minor.to_le_bytes());
            None
        }
        Kind::Symlink(target) if target.len() > MAX_PATH => {
            return Err(blame.hostile(path, HOSTILE[2]));
        }
        Kind::HardLink(target) if target.len() > MAX_PATH => {
            return Err(blame.limit("a path", LIMITS[3].1, "bytes"));
        }
        Kind::Symlink(target) => {
            out.push(b'l');
            Some(target)
        }
        Kind::HardLink(target) => {
            out.push(b'h');
            Some(target)
        }
    };
    if let Some(link) = link {
        sized(out, link);
    }
    sized(out, path);
    out.extend(mode.to_le_bytes());
    out.extend(uid.to_le_bytes());
    out.extend(gid.to_le_bytes());
    out.extend(mtime.0.to_le_bytes());
    out.extend(mtime.1.to_le_bytes());
    out.push(u8::try_from(*headers).unwrap_or(u8::MAX));
    out.extend(u16::try_from(xattrs.len()).unwrap_or(u16::MAX).to_le_bytes());
    for (name, value) in xattrs {
        sized(out, name);
        out.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(value);
    }
    Ok(())
}

/// What a refusal comes to. The text is a stranger's: it is shown as one, cut and in plain characters.
pub(super) fn refused(blame: &Blame, code: u8, text: &[u8]) -> ImageError {
    let at = usize::from(code).wrapping_sub(1);
    if let Some((what, limit, unit)) = LIMITS.get(at) {
        return blame.limit(what, *limit, unit);
    }
    if let Some(reason) = HOSTILE.get(at.wrapping_sub(LIMITS.len())) {
        return blame.hostile(text, reason);
    }
    blame.corrupt(plain(text))
}

/// What a refusal comes to, in words.
pub(super) fn reason(code: u8, text: &[u8]) -> String {
    let at = usize::from(code).wrapping_sub(1);
    if let Some((what, limit, unit)) = LIMITS.get(at) {
        let have = if what.ends_with("headers before an entry") { "have" } else { "has" };
        return format!("{what} {have} more than {limit} {unit}");
    }
    match HOSTILE.get(at.wrapping_sub(LIMITS.len())) {
        Some(reason) => format!("entry {:?}: {reason}", plain(text)),
        None => plain(text),
    }
}

/// A stranger's text in characters that do nothing.
pub(crate) fn plain(text: &[u8]) -> String {
    let shown = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    };
    text.iter().take(MAX_TEXT).map(shown).collect()
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bytes(from: &mut impl Read, length: usize, limit: usize) -> io::Result<Vec<u8>> {
    if length > limit {
        return Err(wrong("a length beyond its limit"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(u16::from_le_bytes(array(from)?));
    bytes(from, length, limit)
}

/// The next message.
///
/// # Errors
/// `UnexpectedEof` where there is none; `InvalidData` for what no parser says.
pub(super) fn read(from: &mut impl Read) -> io::Result<Said> {
    let [kind] = array(from)?;
    Ok(match kind {
        b'N' => Said::Next,
        b'I' => Said::Inline(u64::from_le_bytes(array(from)?)),
        b'E' => Said::Entry(Box::new(read_entry(from)?)),
        b'Z' => Said::End,
        b'X' => {
            let [code] = array(from)?;
            Said::Refusal { code, text: text(from, MAX_TEXT)? }
        }
        _ => return Err(wrong("an unknown message")),
    })
}

fn read_entry(from: &mut impl Read) -> io::Result<Entry> {
    let [kind] = array(from)?;
    let kind = match kind {
        b'f' => {
            let size = u64::from_le_bytes(array(from)?);
            let sparse = match array(from)? {
                [0] => None,
                [1] => Some(read_map(from, size)?),
                _ => return Err(wrong("a file that is neither whole nor sparse")),
            };
            Kind::File { size, sparse }
        }
        b'd' => Kind::Directory,
        b'p' => Kind::Fifo,
        b'c' => Kind::Char(u32::from_le_bytes(array(from)?), u32::from_le_bytes(array(from)?)),
        b'b' => Kind::Block(u32::from_le_bytes(array(from)?), u32::from_le_bytes(array(from)?)),
        b'l' => Kind::Symlink(text(from, MAX_PATH)?),
        b'h' => Kind::HardLink(text(from, MAX_PATH)?),
        _ => return Err(wrong("an unknown kind of entry")),
    };
    let path = text(from, MAX_PATH)?;
    let mode = u32::from_le_bytes(array(from)?) & 0o7777;
    let (uid, gid) = (u32::from_le_bytes(array(from)?), u32::from_le_bytes(array(from)?));
    let mtime = (i64::from_le_bytes(array(from)?), u32::from_le_bytes(array(from)?));
    // The highest id means "unchanged" to chown.
    if uid == u32::MAX || gid == u32::MAX || mtime.1 >= 1_000_000_000 {
        return Err(wrong("an owner or a time that there is not"));
    }
    let headers = u64::from(array::<1>(from)?[0]);
    let count = usize::from(u16::from_le_bytes(array(from)?));
    if count > MAX_XATTRS || headers > MAX_HEADERS {
        return Err(wrong("a count beyond its limit"));
    }
    let (mut xattrs, mut names) = (Vec::new(), 0);
    for _ in 0..count {
        let name = text(from, MAX_COMPONENT)?;
        names += name.len() + 1;
        if name.is_empty() || name.contains(&0) || names > MAX_XATTR_NAMES {
            return Err(wrong("an extended attribute with a bad name"));
        }
        let length = usize::try_from(u32::from_le_bytes(array(from)?)).unwrap_or(usize::MAX);
        xattrs.push((name, bytes(from, length, MAX_XATTR_VALUE)?));
    }
    Ok(Entry { kind, path, mode, uid, gid, mtime, xattrs, headers })
}

fn read_map(from: &mut impl Read, stored: u64) -> io::Result<Map> {
    let real_size = u64::from_le_bytes(array(from)?);
    let count = usize::try_from(u32::from_le_bytes(array(from)?)).unwrap_or(usize::MAX);
    if count > MAX_SPARSE {
        return Err(wrong("a count beyond its limit"));
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        ranges.push((u64::from_le_bytes(array(from)?), u64::from_le_bytes(array(from)?)));
    }
    Map { real_size, ranges }.check(stored).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let map = Map { real_size: 100, ranges: vec![(0, 3), (50, 2)] };
        let kinds = [
            Kind::File { size: 5, sparse: Some(map) },
            Kind::File { size: 0, sparse: None },
            Kind::Directory,
            Kind::Symlink(b"t".to_vec()),
            Kind::HardLink(b"t".to_vec()),
            Kind::Char(1, 3),
            Kind::Block(8, 0),
            Kind::Fifo,
        ];
        let mut out = Vec::new();
        for kind in kinds {
            inline(&mut out, 512);
            let made = Entry {
                kind,
                path: b"a/b".to_vec(),
                mode: 0o6755,
                uid: 1,
                gid: 2,
                mtime: (-1, 5),
                xattrs: vec![(b"user.x".to_vec(), vec![0; 65536])],
                headers: 2,
            };
            entry(&mut out, &made, &Blame::new("t")).unwrap();
        }
        end(&mut out);
        out
    }

    #[test]
    fn what_is_said_is_heard() {
        let out = sample();
        let mut from = &out[..];
        let mut heard = Vec::new();
        while !from.is_empty() {
            heard.push(read(&mut from).unwrap());
        }
        assert_eq!(heard.len(), 17);
        let Said::Entry(first) = &heard[1] else { panic!("{:?}", heard[1]) };
        assert!(matches!(&first.kind, Kind::File { size: 5, sparse: Some(map) } if map.ranges.len() == 2));
        assert_eq!((first.mode, first.uid, first.mtime, first.headers), (0o6755, 1, (-1, 5), 2));
        assert!(matches!(heard[16], Said::End));
    }

    /// A parser that was taken over may say anything.
    #[test]
    fn lies_end_the_reading() {
        let good = sample();
        // Any byte changed, any cut: an error or other entries, never a panic or an allocation beyond the caps.
        for at in 0..400 {
            for value in [0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let mut from = &bad[..];
                while let Ok(Said::Inline(_) | Said::Entry(_)) = read(&mut from) {}
            }
            let mut cut = &good[..at];
            let mut count = 0;
            while read(&mut cut).is_ok() {
                count += 1;
            }
            assert!(count < 17);
        }
        for bad in [
            &b"?"[..],
            b"E?",
            b"Ed\xff\xff",
            b"El\xff\xff",
            b"X\0\xff\xff",
            b"Ef\0\0\0\0\0\0\0\0\x02",
            b"Ef\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\xff\xff\xff\xff",
        ] {
            assert_eq!(read(&mut &bad[..]).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
        // The highest owner.
        let mut owner = b"Ed\x01\0a\0\0\0\0".to_vec();
        owner.extend([0xff; 4]);
        owner.extend([0; 19]);
        assert_eq!(read(&mut &owner[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn refusals_keep_their_words() {
        let blame = Blame::new("t");
        for error in [
            blame.corrupt("tar header with a bad checksum"),
            blame.limit("a PAX header", MAX_PAX, "bytes"),
            blame.hostile(b"some/path", "its type is unknown"),
        ] {
            let mut out = Vec::new();
            refusal(&mut out, &error);
            let Said::Refusal { code, text } = read(&mut &out[..]).unwrap() else { panic!("a refusal") };
            assert_eq!(refused(&blame, code, &text).to_string(), error.to_string());
        }
        let error = refused(&blame, 200, b"\x1b[2Jall\nis well").to_string();
        assert!(error.ends_with("?[2Jall?is well"), "{error}");
    }
}
