//! A label, `user:role:type:level`, and the syntax of its level. Pure.

use std::fmt;

/// A label in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// SELinux user.
    pub user: String,
    /// Role; `object_r` for files.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level or range of levels; empty where the policy has none.
    pub level: String,
}

impl Label {
    /// Parses a label; None: invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let level = parts.next().unwrap_or_default();
        let whole = ![&user, &role, &kind].into_iter().any(String::is_empty);
        whole.then_some(Self { user, role, kind, level })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// Whether `text` has the form of a level, or of two with `-` between: `s0`, `s0:c1,c2`, `s0-s0:c0.c1023`.
#[must_use]
pub fn is_level(text: &str) -> bool {
    // A high level without its sensitivity is none.
    text.splitn(2, '-').all(is_one_level)
}

fn is_one_level(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    let range = |range: &str| range.splitn(2, '.').all(|category| is_numbered(category, 'c'));
    is_numbered(sensitivity, 's') && categories.is_none_or(|categories| categories.split(',').all(range))
}

/// More digits than these are in no policy; containerd takes as many.
const MAX_DIGITS: usize = 4;

fn is_numbered(text: &str, letter: char) -> bool {
    text.strip_prefix(letter).is_some_and(|number| {
        (1..=MAX_DIGITS).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_written() {
        for text in ["system_u:system_r:container_t:s0:c1,c2", "u:r:t:s0-s0:c0.c1023", "u:r:t"] {
            assert_eq!(Label::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Label::parse("u:r:t:s0:c1,c2").unwrap().level, "s0:c1,c2");
        for text in ["", "kernel", "u:r", "u::t", ":r:t:s0"] {
            assert_eq!(Label::parse(text), None, "{text}");
        }
    }

    #[test]
    fn levels() {
        for text in ["s0", "s0:c1", "s0:c1,c2", "s15:c0.c1023", "s0-s0:c0.c1023", "s0:c4,c5-s0:c1.c3,c5"] {
            assert!(is_level(text), "{text}");
        }
        for text in
            ["", "s", "0", "s0,c4,c5", "s0:", "s0:c", "s0:c1,", "s0:c1,2", "s0-", "s0:c99999", "s0:c1 "]
        {
            assert!(!is_level(text), "{text}");
        }
    }
}
