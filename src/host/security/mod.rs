//! What the node's kernel and the daemon's own rights allow: capabilities, oom_score_adj, AppArmor, SELinux, seccomp.
//!
//! Owns the reading of these facts, and the profiles of kernel and node. Never decides what a container gets.

pub mod apparmor;
pub mod caps;
pub mod seccomp;
pub mod selinux;

pub use caps::{Cap, CapSet};

use std::path::{Path, PathBuf};

/// Why a fact could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A file of /proc is unreadable.
    #[error("read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A file of /proc lacks what it always has.
    #[error("{} has no valid {field} ({value:?})", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The available features.
        value: String,
    },
}

/// Security facts of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSecurity {
    /// Capabilities that the daemon can hand on: its bounding set.
    pub bounding: CapSet,
    /// Lowest oom_score_adj of a container: without CAP_SYS_RESOURCE a process cannot go below the daemon's own value.
    pub oom_score_adj_floor: i64,
    /// AppArmor can confine containers.
    pub apparmor: bool,
}

impl HostSecurity {
    /// Reads the facts of the running daemon.
    ///
    /// # Errors
    /// When /proc is unreadable.
    pub fn detect() -> Result<Self, SecurityError> {
        let status = Path::new("/proc/self/status");
        let text = read(status)?;
        let bounding = cap_field(status, &text, "CapBnd")?;
        let effective = cap_field(status, &text, "CapEff")?;
        let adj_file = Path::new("/proc/self/oom_score_adj");
        let adj = read(adj_file)?;
        let own_adj = adj.trim().parse().map_err(|_| SecurityError::Malformed {
            path: adj_file.to_owned(),
            field: "value",
            value: adj.trim().to_owned(),
        })?;
        Ok(Self {
            bounding,
            oom_score_adj_floor: oom_floor(effective, own_adj),
            apparmor: apparmor::AppArmor::detect().is_enabled(),
        })
    }
}

/// With CAP_SYS_RESOURCE the minimum is -1000, else a process's own minimum, for which its current value is the safe
/// guess.
fn oom_floor(effective: CapSet, own: i64) -> i64 {
    if effective.contains(Cap::SYS_RESOURCE) { -1000 } else { own }
}

fn read(path: &Path) -> Result<String, SecurityError> {
    std::fs::read_to_string(path).map_err(|cause| SecurityError::Read { path: path.to_owned(), cause })
}

fn cap_field(path: &Path, status: &str, field: &'static str) -> Result<CapSet, SecurityError> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_default();
    u64::from_str_radix(value, 16).map(CapSet::from_bits).map_err(|_| SecurityError::Malformed {
        path: path.to_owned(),
        field,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_process_has_facts() {
        let facts = HostSecurity::detect().unwrap();
        assert!(facts.bounding.contains(Cap::parse("CHOWN").unwrap()));
    }

    #[test]
    fn a_broken_status_is_an_error() {
        let path = Path::new("/status");
        assert!(cap_field(path, "CapEff:\tzz\n", "CapEff").is_err());
        assert!(cap_field(path, "", "CapEff").is_err());
        assert_eq!(cap_field(path, "CapEff:\t1\nCapBnd:\t3\n", "CapBnd").unwrap(), CapSet::from_bits(3));
    }

    #[test]
    fn without_sys_resource_the_floor_is_our_own_value() {
        assert_eq!(oom_floor(CapSet::from_bits(0), -500), -500);
        assert_eq!(oom_floor(CapSet::ALL, 0), -1000);
    }
}
