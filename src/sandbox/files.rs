//! The files that a pod's containers share: hostname, hosts, resolv.conf. Owns their text; mounts nothing.

use super::SandboxError;
use crate::model::{DnsConfig, SandboxSpec, UserNamespace};
use std::path::{Path, PathBuf};

/// Where the pod's files stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFiles {
    /// /etc/hostname
    pub(super) hostname: PathBuf,
    /// /etc/hosts
    pub(super) hosts: PathBuf,
    /// /etc/resolv.conf
    pub(super) resolv_conf: PathBuf,
    /// /dev/shm
    pub(super) shm: PathBuf,
}

impl PodFiles {
    /// The files below a pod's run directory.
    #[must_use]
    pub(super) fn below(dir: &Path) -> Self {
        Self {
            hostname: dir.join("hostname"),
            hosts: dir.join("hosts"),
            resolv_conf: dir.join("resolv.conf"),
            shm: dir.join("shm"),
        }
    }

    /// Writes hostname, hosts and resolv.conf.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let hostname = if spec.hostname.is_empty() {
            std::fs::read_to_string("/etc/hostname").unwrap_or_default()
        } else {
            format!("{}\n", spec.hostname)
        };
        let owner = spec.namespaces.user.as_ref().and_then(UserNamespace::root);
        put(&self.hostname, hostname.as_bytes(), owner)?;
        put(&self.hosts, &std::fs::read("/etc/hosts").unwrap_or_default(), owner)?;
        let resolv_conf = match &spec.dns {
            Some(dns) => resolv_conf(dns).into_bytes(),
            None => std::fs::read("/etc/resolv.conf").unwrap_or_default(),
        };
        put(&self.resolv_conf, &resolv_conf, owner)
    }
}

/// Writes a file, which belongs to root or to the `owner`, uid and gid: root of the pod's user namespace.
fn put(path: &Path, text: &[u8], owner: Option<(u32, u32)>) -> Result<(), SandboxError> {
    std::fs::write(path, text).map_err(SandboxError::io("write", path))?;
    match owner {
        Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .map_err(SandboxError::io("change the owner of", path)),
        None => Ok(()),
    }
}

/// The text in the order that both peers write: search, nameserver, options.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_peers_order() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.local b.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
