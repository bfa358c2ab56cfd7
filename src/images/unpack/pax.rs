//! PAX extended header records. Pure; the caller has bounded their size.

use super::sparse::PaxSparse;

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
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// Record prefix of extended attributes (star's, which every builder writes).
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Parses `<length> <key>=<value>\n` records; Err says what is wrong.
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
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
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
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"a\0b".to_vec())]);
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
