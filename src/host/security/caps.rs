//! Linux capabilities: their names and sets of them.
//!
//! Owns the table of names. Never asks the kernel.

/// Names by number (include/uapi/linux/capability.h, Linux 6.18), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap(usize);

impl Cap {
    /// CAP_DAC_READ_SEARCH
    pub const DAC_READ_SEARCH: Cap = Cap(2);
    /// CAP_SYS_MODULE
    pub const SYS_MODULE: Cap = Cap(16);
    /// CAP_SYS_RAWIO
    pub const SYS_RAWIO: Cap = Cap(17);
    /// CAP_SYS_CHROOT
    pub const SYS_CHROOT: Cap = Cap(18);
    /// CAP_SYS_PTRACE
    pub const SYS_PTRACE: Cap = Cap(19);
    /// CAP_SYS_PACCT
    pub const SYS_PACCT: Cap = Cap(20);
    /// CAP_SYS_ADMIN
    pub const SYS_ADMIN: Cap = Cap(21);
    /// CAP_SYS_BOOT
    pub const SYS_BOOT: Cap = Cap(22);
    /// CAP_SYS_NICE
    pub const SYS_NICE: Cap = Cap(23);
    /// CAP_SYS_RESOURCE
    pub const SYS_RESOURCE: Cap = Cap(24);
    /// CAP_SYS_TIME
    pub const SYS_TIME: Cap = Cap(25);
    /// CAP_SYS_TTY_CONFIG
    pub const SYS_TTY_CONFIG: Cap = Cap(26);
    /// CAP_SYSLOG
    pub const SYSLOG: Cap = Cap(34);
    /// CAP_PERFMON
    pub const PERFMON: Cap = Cap(38);
    /// CAP_BPF
    pub const BPF: Cap = Cap(39);

    /// A capability by name, in any case, with or without `CAP_`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == bare).map(Cap)
    }

    /// The name without `CAP_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.0]
    }
}

/// A set of capabilities that have names. A bit of a newer kernel that has none here is dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: CapSet = CapSet(0);
    /// Every capability that has a name here.
    pub const ALL: CapSet = CapSet((1 << NAMES.len()) - 1);

    /// A set from the kernel's bit mask.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Whether `cap` is in.
    #[must_use]
    pub const fn contains(self, cap: Cap) -> bool {
        self.0 & (1 << cap.0) != 0
    }

    /// With `cap`.
    #[must_use]
    pub const fn with(self, cap: Cap) -> Self {
        Self(self.0 | 1 << cap.0)
    }

    /// Without `cap`.
    #[must_use]
    pub const fn without(self, cap: Cap) -> Self {
        Self(self.0 & !(1 << cap.0))
    }

    /// Intersection.
    #[must_use]
    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Union.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members in the kernel's order.
    pub fn iter(self) -> impl Iterator<Item = Cap> {
        (0..NAMES.len()).map(Cap).filter(move |cap| self.contains(*cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_constants_agree_with_the_kernels_numbers() {
        let constants = [
            (Cap::DAC_READ_SEARCH, "DAC_READ_SEARCH"),
            (Cap::SYS_MODULE, "SYS_MODULE"),
            (Cap::SYS_RAWIO, "SYS_RAWIO"),
            (Cap::SYS_CHROOT, "SYS_CHROOT"),
            (Cap::SYS_PTRACE, "SYS_PTRACE"),
            (Cap::SYS_PACCT, "SYS_PACCT"),
            (Cap::SYS_ADMIN, "SYS_ADMIN"),
            (Cap::SYS_BOOT, "SYS_BOOT"),
            (Cap::SYS_NICE, "SYS_NICE"),
            (Cap::SYS_RESOURCE, "SYS_RESOURCE"),
            (Cap::SYS_TIME, "SYS_TIME"),
            (Cap::SYS_TTY_CONFIG, "SYS_TTY_CONFIG"),
            (Cap::SYSLOG, "SYSLOG"),
            (Cap::PERFMON, "PERFMON"),
            (Cap::BPF, "BPF"),
        ];
        for (cap, name) in constants {
            assert_eq!(cap.name(), name);
        }
        assert_eq!(Cap::parse("CHECKPOINT_RESTORE"), Some(Cap(40)));
        assert_eq!(Cap::parse("SETFCAP"), Some(Cap(31)));
    }

    #[test]
    fn the_prefix_and_case_do_not_matter() {
        assert_eq!(Cap::parse("cap_sys_admin"), Some(Cap::SYS_ADMIN));
        assert_eq!(Cap::parse("SYS_ADMIN"), Some(Cap::SYS_ADMIN));
        assert_eq!(Cap::parse("CAP_CAP_SYS_ADMIN"), None);
        assert_eq!(Cap::parse("ALL"), None);
    }

    #[test]
    fn every_name_is_one_that_the_oci_crate_knows() {
        for cap in CapSet::ALL.iter() {
            assert!(cap.name().parse::<oci_spec::runtime::Capability>().is_ok(), "{}", cap.name());
        }
    }
}
