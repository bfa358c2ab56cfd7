//! Levels unique to each pod: two of the policy's categories.

use super::SelinuxError;
use crate::model::random;

/// Categories of a policy: c0 to c1023 in the reference policy and its derivatives.
const CATEGORIES: u32 = 1024;
/// Reserved: go-selinux sets it on files that no confined container may read.
const NOBODYS: (u32, u32) = (1022, 1023);

/// A level, `s0:cA,cB`, that is not taken, at random.
///
/// # Errors
/// When all of more than half a million are taken, or the kernel's random source cannot be read.
pub fn unused(is_taken: impl Fn(&str) -> bool) -> Result<String, SelinuxError> {
    let mut bytes = [0; 4];
    random::fill(&mut bytes).map_err(SelinuxError::Random)?;
    unused_from(u32::from_le_bytes(bytes), is_taken).ok_or(SelinuxError::NoLevel)
}

/// The first free one, starting at a given pair.
fn unused_from(first: u32, is_taken: impl Fn(&str) -> bool) -> Option<String> {
    let all = CATEGORIES * CATEGORIES;
    (0..all).map(|step| (first % all + step) % all).find_map(|number| {
        let (a, b) = (number / CATEGORIES, number % CATEGORIES);
        let pair = (a.min(b), a.max(b));
        let level = format!("s0:c{},c{}", pair.0, pair.1);
        (a != b && pair != NOBODYS && !is_taken(&level)).then_some(level)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_level_is_given_twice() {
        let mut taken = HashSet::new();
        for _ in 0..1000 {
            // From one point, so that they collide.
            let level = unused_from(1023 * 1024 - 3, |level| taken.contains(level)).unwrap();
            assert!(super::super::is_level(&level), "{level}");
            assert!(taken.insert(level));
        }
        let level = unused(|level| taken.contains(level)).unwrap();
        assert!(!taken.contains(&level));
    }

    #[test]
    fn the_lower_category_comes_first_and_none_is_doubled() {
        assert_eq!(unused_from(5, |_| false).unwrap(), "s0:c0,c5");
        assert_eq!(unused_from(5 * 1024, |_| false).unwrap(), "s0:c0,c5");
        assert_eq!(unused_from(0, |_| false).unwrap(), "s0:c0,c1");
        assert_eq!(unused_from(1022 * 1024 + 1023, |_| false).unwrap(), "s0:c0,c1023");
        assert_eq!(unused_from(u32::MAX, |_| false).unwrap(), "s0:c0,c1");
    }

    #[test]
    fn when_all_are_taken_there_is_none() {
        assert_eq!(unused_from(7, |_| true), None);
    }
}
