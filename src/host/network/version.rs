//! The supported versions of the CNI protocol. Never negotiates: the configuration names the version.

use std::fmt;

/// A protocol version, in order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// The meaning of a configuration without `cniVersion` (libcni).
    pub(super) const UNSPECIFIED: Self = Self::V0_1_0;
    /// From here on results have `ips` instead of `ip4` and `ip6`.
    pub(super) const IP_LISTS: Self = Self::V0_3_0;
    /// From here on DEL receives `prevResult`.
    pub(super) const DEL_WITH_RESULT: Self = Self::V0_4_0;
    /// From here on there is CHECK.
    pub(super) const CHECK: Self = Self::V0_4_0;
    /// From here on an address no longer names its family.
    pub(super) const NO_FAMILY: Self = Self::V1_0_0;
    /// From here on STATUS, GC and plugin drop-ins exist.
    pub(super) const STATUS_AND_GC: Self = Self::V1_1_0;

    const ALL: [(Self, &'static str); 7] = [
        (Self::V0_1_0, "0.1.0"),
        (Self::V0_2_0, "0.2.0"),
        (Self::V0_3_0, "0.3.0"),
        (Self::V0_3_1, "0.3.1"),
        (Self::V0_4_0, "0.4.0"),
        (Self::V1_0_0, "1.0.0"),
        (Self::V1_1_0, "1.1.0"),
    ];

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(version, _)| *version)
    }

    pub(super) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(version, _)| *version == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
