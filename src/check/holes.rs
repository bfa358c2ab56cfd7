//! Versions of OCI runtimes with publicly known holes. Sees versions only, not patches of distributions under the same
//! number, and says so.

/// A hole that an image or a container can use, and where it was closed.
struct Hole {
    runtime: &'static str,
    name: &'static str,
    /// The first version without the hole in each release line; anything older than all of them has it. The last one
    /// may be a release candidate.
    fixed: &'static [Version],
}

/// Major, minor, patch, and candidate; a release follows all its candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32, u32);

/// For a version that is no candidate.
const RELEASE: u32 = u32::MAX;

const fn release(major: u32, minor: u32, patch: u32) -> Version {
    Version(major, minor, patch, RELEASE)
}

/// From the projects' advisories: <https://github.com/opencontainers/runc/security/advisories>, and those of
/// `containers/crun` and `youki-dev/youki`. The table includes holes that podwright itself closes or never exposes, for
/// other users of the same program.
const HOLES: [Hole; 9] = [
    Hole { runtime: "runc", name: "CVE-2024-21626", fixed: &[release(1, 1, 12)] },
    Hole {
        runtime: "runc",
        name: "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881",
        fixed: &[release(1, 2, 8), release(1, 3, 3), Version(1, 4, 0, 3)],
    },
    Hole {
        runtime: "runc",
        name: "CVE-2026-41579",
        fixed: &[release(1, 3, 6), release(1, 4, 3), Version(1, 5, 0, 3)],
    },
    Hole { runtime: "crun", name: "CVE-2022-27650", fixed: &[release(1, 4, 4)] },
    Hole { runtime: "crun", name: "CVE-2025-24965 (krun)", fixed: &[release(1, 20, 0)] },
    Hole { runtime: "crun", name: "CVE-2026-47766", fixed: &[release(1, 28, 0)] },
    Hole { runtime: "youki", name: "CVE-2025-27612", fixed: &[release(0, 5, 3)] },
    Hole { runtime: "youki", name: "CVE-2025-54867", fixed: &[release(0, 5, 5)] },
    Hole { runtime: "youki", name: "CVE-2025-62161 and CVE-2025-62596", fixed: &[release(0, 5, 7)] },
];

/// The holes of a runtime, by the first line of its `--version`; none if that does not name it.
pub(super) fn of(version: &str) -> Vec<&'static str> {
    let Some((runtime, version)) = parse(version) else { return Vec::new() };
    HOLES
        .iter()
        .filter(|hole| hole.runtime == runtime && is_open(hole.fixed, version))
        .map(|hole| hole.name)
        .collect()
}

/// `runc version 1.1.5+ds1`, `crun version 1.8.1`, `youki version 0.5.4`.
fn parse(line: &str) -> Option<(&str, Version)> {
    let mut words = line.split_whitespace();
    let runtime = words.next()?;
    let text = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    // The distribution's suffix follows a plus sign or a tilde.
    let text = text.split(['+', '~']).next()?;
    let (numbers, candidate) = match text.split_once('-') {
        Some((numbers, suffix)) => {
            let rc = suffix.strip_prefix("rc").map(|rc| rc.trim_start_matches('.'));
            let digits =
                |rc: &str| rc.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
            (numbers, rc.and_then(digits).unwrap_or(RELEASE))
        }
        None => (text, RELEASE),
    };
    let mut numbers = numbers.split('.').map(str::parse);
    let mut next = || numbers.next().unwrap_or(Ok(0)).ok();
    Some((runtime, Version(next()?, next()?, next()?, candidate)))
}

/// A line is a major and a minor version. An older line has no fix, a newer one had it from the start.
fn is_open(fixed: &[Version], version: Version) -> bool {
    let of_line = fixed.iter().find(|fix| (fix.0, fix.1) == (version.0, version.1));
    match of_line {
        Some(fix) => version < *fix,
        None => fixed.iter().max().is_none_or(|last| version < *last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_line() {
        let has = |line: &str, hole: &str| of(line).iter().any(|name| name.contains(hole));
        for (line, of_2024, of_2025, of_2026) in [
            // Debian 12.
            ("runc version 1.1.5+ds1", true, true, true),
            ("runc version 1.1.11", true, true, true),
            ("runc version 1.1.12", false, true, true),
            ("runc version 1.1.15", false, true, true),
            ("runc version 1.2.7", false, true, true),
            ("runc version 1.2.8", false, false, true),
            ("runc version 1.3.2", false, true, true),
            ("runc version 1.3.3", false, false, true),
            ("runc version 1.3.6", false, false, false),
            ("runc version 1.4.0-rc.2", false, true, true),
            ("runc version 1.4.0-rc.3", false, false, true),
            ("runc version 1.4.0", false, false, true),
            ("runc version 1.4.3", false, false, false),
            ("runc version 1.5.0-rc.2", false, false, true),
            ("runc version 1.5.0-rc.3+dev", false, false, false),
            ("runc version 1.5.0", false, false, false),
            ("runc version 1.10.0", false, false, false),
            ("runc version 2.0.0", false, false, false),
            ("runc version 1.0.0-rc93", true, true, true),
        ] {
            let found = [has(line, "2024-21626"), has(line, "2025-52881"), has(line, "2026-41579")];
            assert_eq!(found, [of_2024, of_2025, of_2026], "{line}");
        }
        assert_eq!(of("crun version 1.8.1"), ["CVE-2025-24965 (krun)", "CVE-2026-47766"]);
        assert!(of("crun version 1.28").is_empty());
        assert_eq!(of("youki version 0.5.4").len(), 2);
        assert!(of("youki version 0.5.7").is_empty());
    }

    #[test]
    fn what_says_nothing_of_itself_has_no_known_holes() {
        for line in [
            "",
            "runc",
            "runc version",
            "kata-runtime  : 3.2.0",
            "runc version 1.x.2",
            "1.1.5",
            "runc version unknown",
        ] {
            assert!(of(line).is_empty(), "{line}");
        }
    }
}
