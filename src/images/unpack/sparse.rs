//! GNU sparse maps: the old header form and PAX 0.0, 0.1 and 1.0. Pure. At most `MAX_SPARSE` ranges, in one pass.

use super::MAX_SPARSE;
use super::pax::decimal;

/// The places of a sparse file's stored bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Size of the file with its holes.
    pub(super) real_size: u64,
    /// (offset, length), rising, not overlapping.
    pub(super) ranges: Vec<(u64, u64)>,
}

impl Map {
    /// Units on disk that the ranges touch, each range by itself: a file of 64 Ki ranges of a byte takes 256 MiB.
    pub(super) fn units(&self, unit: u64) -> u64 {
        let touched = |&(offset, length): &(u64, u64)| match length {
            0 => 0,
            length => (offset.saturating_add(length)).div_ceil(unit) - offset / unit,
        };
        // Two ranges may share a unit, which is then counted twice, but never more than their bytes.
        self.ranges.iter().map(touched).fold(0, u64::saturating_add)
    }

    /// Checks a map against the bytes that are stored.
    pub(super) fn check(self, stored: u64) -> Result<Self, &'static str> {
        if self.ranges.len() > MAX_SPARSE {
            return Err("sparse map with too many ranges");
        }
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in &self.ranges {
            if offset < end {
                return Err("sparse map whose ranges overlap");
            }
            end = offset.checked_add(length).ok_or("sparse map that overflows")?;
            sum = sum.checked_add(length).ok_or("sparse map that overflows")?;
        }
        if end > self.real_size || i64::try_from(self.real_size).is_err() {
            return Err("sparse map beyond the end of its file");
        }
        if sum != stored {
            return Err("sparse map that does not add up to the stored bytes");
        }
        Ok(self)
    }
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    real_size: Option<u64>,
    numbers: Vec<u64>,
    in_records: bool,
}

impl PaxSparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("GNU.sparse record");
        match key {
            b"major" => self.major = Some(number()?),
            b"name" => {
                if value.contains(&0) {
                    return Err("GNU.sparse.name with a NUL");
                }
                self.name = Some(value.to_vec());
            }
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"offset" | b"numbytes" => {
                self.in_records = true;
                self.push(number()?)?;
            }
            b"map" => {
                self.in_records = true;
                for part in value.split(|b| *b == b',').filter(|p| !p.is_empty()) {
                    self.push(decimal(part).ok_or("GNU.sparse.map")?)?;
                }
            }
            // minor, numblocks: implied by the rest.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), &'static str> {
        if self.numbers.len() >= 2 * MAX_SPARSE {
            return Err("sparse map with too many ranges");
        }
        self.numbers.push(number);
        Ok(())
    }

    /// Whether the map precedes the data (format 1.0).
    pub(super) fn map_in_data(&self) -> bool {
        self.major == Some(1)
    }

    /// The map of formats 0.0 and 0.1; None: not a sparse file.
    pub(super) fn map(&self) -> Result<Option<Map>, &'static str> {
        if !self.in_records {
            return Ok(None);
        }
        let real_size = self.real_size.ok_or("sparse file without its size")?;
        Ok(Some(Map { real_size, ranges: pairs(&self.numbers)? }))
    }

    /// The map of format 1.0 from the numbers read out of the data.
    pub(super) fn map_from(&self, numbers: &[u64]) -> Result<Map, &'static str> {
        Ok(Map { real_size: self.real_size.ok_or("sparse file without its size")?, ranges: pairs(numbers)? })
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err("sparse map with half a range");
    }
    Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let map = |real_size, ranges: &[(u64, u64)]| Map { real_size, ranges: ranges.to_vec() };
        assert!(map(100, &[(0, 10), (50, 10), (100, 0)]).check(20).is_ok());
        assert!(map(100, &[(0, 10), (5, 10)]).check(20).is_err(), "overlap");
        assert!(map(100, &[(95, 10)]).check(10).is_err(), "beyond the end");
        assert!(map(100, &[(0, 10)]).check(11).is_err(), "sum");
        assert!(map(u64::MAX, &[(u64::MAX, 2)]).check(2).is_err(), "overflow");
        assert!(map(1 << 63, &[]).check(0).is_err(), "8 EiB");
    }
}
