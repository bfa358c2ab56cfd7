//! The 512-byte tar header: V7, ustar and GNU fields, octal and base-256 numbers. Pure.

/// Size of a tar block.
pub(super) const BLOCK: usize = 512;

/// Fields of a header, verbatim; PAX and GNU records override them later.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) sparse: Option<OldSparse>,
}

/// The GNU old sparse fields.
#[derive(Debug)]
pub(super) struct OldSparse {
    /// (offset, length), at most four.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Blocks of ranges follow the header.
    pub(super) more: bool,
    /// Size with holes.
    pub(super) real_size: u64,
}

impl Header {
    /// Parses a block; Err names the wrong field.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        check_sum(block)?;
        let kind = block[156];
        let gnu = &block[257..265] == b"ustar  \0";
        let ustar = !gnu && &block[257..262] == b"ustar";
        let mut path = text(&block[..100]).to_vec();
        if ustar {
            let prefix = text(&block[345..500]);
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        let device = |field: &[u8]| -> Result<u32, &'static str> {
            if (gnu || ustar) && matches!(kind, b'3' | b'4') {
                u32::try_from(unsigned(field).ok_or("device number")?).map_err(|_| "device number")
            } else {
                Ok(0)
            }
        };
        let sparse = if kind == b'S' {
            let ranges = ranges(&block[386..482]).ok_or("sparse map")?;
            Some(OldSparse {
                ranges,
                more: block[482] != 0,
                real_size: unsigned(&block[483..495]).ok_or("sparse size")?,
            })
        } else {
            None
        };
        Ok(Self {
            kind,
            path,
            link: text(&block[157..257]).to_vec(),
            mode: u32::try_from(unsigned(&block[100..108]).ok_or("mode")? & 0o7777).map_err(|_| "mode")?,
            uid: unsigned(&block[108..116]).ok_or("uid")?,
            gid: unsigned(&block[116..124]).ok_or("gid")?,
            size: unsigned(&block[124..136]).ok_or("size")?,
            mtime: signed(&block[136..148]).ok_or("mtime")?,
            major: device(&block[329..337])?,
            minor: device(&block[337..345])?,
            sparse,
        })
    }
}

/// The (offset, length) pairs of a GNU sparse map field; an empty slot ends it.
pub(super) fn ranges(field: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for slot in field.chunks_exact(24) {
        if slot[0] == 0 {
            break;
        }
        found.push((unsigned(&slot[..12])?, unsigned(&slot[12..])?));
    }
    Some(found)
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), &'static str> {
    let stated = unsigned(&block[148..156]).ok_or("checksum")?;
    let (mut plain, mut signed_sum) = (0u64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        plain += u64::from(byte);
        // Some old writers summed signed characters.
        signed_sum += i64::from(i8::from_ne_bytes([byte]));
    }
    if stated == plain || i64::try_from(stated) == Ok(signed_sum) { Ok(()) } else { Err("checksum") }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn unsigned(field: &[u8]) -> Option<u64> {
    u64::try_from(signed(field)?).ok()
}

/// Octal between spaces and NULs, or base-256 where the top bit of the first byte is set.
fn signed(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big endian; bit 0x40 is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return None;
            }
        }
        return i64::try_from(value).ok();
    }
    let digits =
        field.iter().copied().skip_while(|b| *b == b' ' || *b == 0).take_while(|b| *b != b' ' && *b != 0);
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_form() {
        assert_eq!(signed(b"0000644\0"), Some(0o644));
        assert_eq!(signed(b"  644 \0\0"), Some(0o644));
        assert_eq!(signed(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(signed(b"00008440"), None);
        assert_eq!(signed(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]), Some(0x7fff_ffff));
        assert_eq!(signed(&[0xff; 12]), Some(-1));
        assert_eq!(
            signed(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x9c]),
            Some(-100)
        );
        assert_eq!(signed(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]), None);
        assert_eq!(unsigned(&[0xff; 8]), None);
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut block: [u8; BLOCK] = *header.as_bytes();
        assert_eq!(Header::parse(&block).unwrap().path, b"a");
        block[0] = b'b';
        assert_eq!(Header::parse(&block).unwrap_err(), "checksum");
    }
}
