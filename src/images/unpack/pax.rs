//! PAX extended header records. Pure.
//!
//! Bounds: a header has at most `MAX_PAX` bytes (the caller's check), and `MAX_XATTRS` attributes within the kernel's
//! limits of names and values. Each byte is read a fixed number of times and each attribute costs one map look-up, so
//! the time is linear in the bytes whatever the records say.

use super::sparse::PaxSparse;
use super::{MAX_XATTR_NAMES, MAX_XATTR_VALUE, MAX_XATTRS};
use std::collections::BTreeMap;

/// What a PAX header overrides for the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// Name → value; the last of duplicate names counts.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of their names with a NUL each, as the kernel counts them.
    name_bytes: usize,
    pub(super) sparse: PaxSparse,
}

/// Record prefix of extended attributes (star's, which every builder writes).
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Parses `<length> <key>=<value>
    /// ` records; Err gives the fault.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            // Some writers pad with NULs.
            if bytes.iter().all(|b| *b == 0) {
                break;
            }
            let space =
                bytes.iter().take(20).position(|b| *b == b' ').ok_or("PAX record without a length")?;
            let length = usize::try_from(decimal(&bytes[..space]).ok_or("PAX record with a bad length")?)
                .map_err(|_| "PAX record with a bad length")?;
            if length <= space + 2 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err("PAX record with a bad length");
            }
            let record = &bytes[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or("PAX record without a value")?;
            pax.set(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes a record back.
        let number = |what| if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(what) };
        let name = || -> Result<Option<Vec<u8>>, &'static str> {
            if value.contains(&0) {
                return Err("PAX path with a NUL");
            }
            Ok((!value.is_empty()).then(|| value.to_vec()))
        };
        match key {
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"size" => self.size = number("PAX size")?,
            b"uid" => self.uid = number("PAX uid")?,
            b"gid" => self.gid = number("PAX gid")?,
            b"mtime" => {
                self.mtime = if value.is_empty() { None } else { Some(time(value).ok_or("PAX mtime")?) };
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    if name.is_empty() || name.contains(&0) || name.len() > super::MAX_COMPONENT {
                        return Err("PAX extended attribute with a bad name");
                    }
                    self.xattr(name, value)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Ok(())
    }
}

impl Pax {
    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if value.len() > MAX_XATTR_VALUE {
            return Err("PAX extended attribute with a value of more than 64 KiB");
        }
        if self.xattrs.insert(name.to_vec(), value.to_vec()).is_none() {
            self.name_bytes += name.len() + 1;
        }
        if self.xattrs.len() > MAX_XATTRS {
            return Err("PAX header with more than 1024 extended attributes");
        }
        if self.name_bytes > MAX_XATTR_NAMES {
            return Err("PAX header with more than 64 KiB of names of extended attributes");
        }
        Ok(())
    }
}

/// An unsigned decimal number without sign or space.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let mut bytes = b"15 path=a\nb/cc\n".to_vec();
        bytes.extend(b"17 uid=200000000\n");
        bytes.extend(b"29 mtime=-1.250000000000000\n".iter().take(0));
        bytes.extend(b"15 mtime=-1.25\n");
        let mut xattr = b"SCHILY.xattr.user.x=a\0b\n".to_vec();
        let length = xattr.len() + 3;
        xattr.splice(0..0, format!("{length} ").into_bytes());
        bytes.extend(xattr);
        let pax = Pax::parse(&bytes).unwrap();
        assert_eq!(pax.path.unwrap(), b"a\nb/cc");
        assert_eq!(pax.uid, Some(200_000_000));
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.xattrs, BTreeMap::from([(b"user.x".to_vec(), b"a\0b".to_vec())]));
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length.to_string().len() + body.len() != length {
            length = length.to_string().len() + body.len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    /// A header of the full size, made of the smallest records that name different attributes, took seconds, and a
    /// layer may have thousands of such headers.
    #[test]
    fn attributes_are_bounded_and_cost_no_more_than_their_bytes() {
        let names = |count: usize| -> Vec<u8> {
            (0..count).flat_map(|n| record(&format!("SCHILY.xattr.{n}"), b"")).collect()
        };
        assert_eq!(Pax::parse(&names(MAX_XATTRS)).unwrap().xattrs.len(), MAX_XATTRS);
        let many = Pax::parse(&names(MAX_XATTRS + 1)).unwrap_err();
        assert!(many.contains("1024 extended attributes"), "{many}");
        // Within all limits, the worst case is one name again and again.
        let mut worst = names(MAX_XATTRS - 1);
        let again = record("SCHILY.xattr.x", b"");
        while worst.len() + again.len() <= 1 << 20 {
            worst.extend(&again);
        }
        for _ in 0..64 {
            assert_eq!(Pax::parse(&worst).unwrap().xattrs.len(), MAX_XATTRS);
        }
        let long: Vec<u8> = (0..300).flat_map(|n| record(&format!("SCHILY.xattr.{n:0>250}"), b"")).collect();
        assert!(Pax::parse(&long).unwrap_err().contains("64 KiB of names"));
        assert!(Pax::parse(&record("SCHILY.xattr.a", &[0; 65 << 10])).unwrap_err().contains("value"));
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            &b"path=a\n"[..],
            b"9999999999999999999999 path=a\n",
            b"99 path=a\n",
            b"3 \n",
            b"10 path=aa",
            b"8 pathaa\n",
            b"12 size=-100\n",
            b"11 path=a\0b\n",
            b"0 a=b\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
