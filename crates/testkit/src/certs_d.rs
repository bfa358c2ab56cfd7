//! `certs.d` directories that send image names to the loopback registry.
//!
//! Owns writing containerd's `<dir>/<host>/hosts.toml` files. It never reads them.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

/// The hosts in the stand-in images' names.
pub const STAND_IN_HOSTS: &[&str] = &["registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io"];

/// Writes one `hosts.toml` per host: mirrored by `registry` for pulls, in plain HTTP.
///
/// # Errors
/// Fails when a file cannot be written.
pub fn write(dir: &Path, registry: SocketAddr, hosts: &[impl AsRef<str>]) -> Result<()> {
    for host in hosts {
        let host = host.as_ref();
        let file = dir.join(host).join("hosts.toml");
        let text = format!(
            "server = \"https://{host}\"\n\n[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir.join(host))?;
            std::fs::write(&file, text)
        };
        write().with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
