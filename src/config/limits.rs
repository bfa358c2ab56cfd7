//! Text forms of single values: process limits, annotation patterns, whether SELinux is used. Pure.

use serde::{Deserialize, Serialize};

/// Whether containers get SELinux labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelinuxMode {
    /// If the kernel has SELinux and its policy knows containers.
    Auto,
    /// Always; without it the daemon does not start.
    On,
    /// Never.
    Off,
}

/// Limits of setrlimit(2), without `RLIMIT_`, in lower case.
const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// One limit of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `RLIMIT_NOFILE`.
    pub name: String,
    /// The limit in force.
    pub soft: u64,
    /// Up to where a process may raise it.
    pub hard: u64,
}

impl Ulimit {
    /// Parses `nofile=1024:4096`, as CRI-O and `podman run --ulimit` do. `-1` and `unlimited` mean no limit; a single
    /// number sets both.
    ///
    /// # Errors
    /// The fault, for an error message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or_else(|| format!("{text:?} is not name=soft:hard"))?;
        if !NAMES.contains(&name) {
            return Err(format!("{name:?} is not one of {}", NAMES.join(", ")));
        }
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse().map_err(|_| format!("{number:?} in {text:?} is no number")),
        };
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(format!("{text:?}: the soft limit is above the hard one"));
        }
        Ok(Self { name: format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard })
    }
}

/// Bytes as people and CRI-O write them: `67108864`, `64m`, `1Gi`, `512MB`; a letter always means a power of 1024.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "ki" | "kib" => 1 << 10,
        "m" | "mb" | "mi" | "mib" => 1 << 20,
        "g" | "gb" | "gi" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Whether an annotation name matches a pattern: equal, or beginning with what precedes a final `*`.
#[must_use]
pub fn annotation_fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// Whether [`annotation_fits`] can use a pattern.
pub(super) fn is_annotation_pattern(pattern: &str) -> bool {
    let start = pattern.strip_suffix('*').unwrap_or(pattern);
    !pattern.is_empty() && !start.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_podman_writes_them() {
        let limit = Ulimit::parse("nofile=1024:4096").unwrap();
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 4096));
        assert_eq!(Ulimit::parse("core=0").unwrap().hard, 0);
        assert_eq!(Ulimit::parse("memlock=64:unlimited").unwrap().hard, u64::MAX);
        assert_eq!(Ulimit::parse("stack=-1:-1").unwrap().soft, u64::MAX);
        for wrong in
            ["nofile", "files=1", "nofile=2:1", "nofile=a", "nofile=1:2:3", "RLIMIT_CORE=1", "nofile="]
        {
            assert!(Ulimit::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, expected) in [("64", 64), ("64b", 64), ("2k", 2048), ("1Mi", 1 << 20), ("3GB", 3 << 30)] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for wrong in ["", "m", "-1", "1.5g", "1x", "99999999999g", " 1"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn patterns_are_names_or_starts_of_names() {
        assert!(annotation_fits("io.katacontainers.*", "io.katacontainers.config.x"));
        assert!(annotation_fits("a.b", "a.b") && !annotation_fits("a.b", "a.bc"));
        assert!(annotation_fits("*", "x"));
        for wrong in ["", "a*b", "a?", "[a]"] {
            assert!(!is_annotation_pattern(wrong), "{wrong}");
        }
    }
}
