//! The files that a pod's containers share: hostname, hosts, resolv.conf. Owns their text, and the small tmpfs of the
//! pod that holds them: containers can write to them, but fill nothing else.

use super::private::make_private_dir;
use crate::host::rootfs;
use crate::model::{DnsConfig, SandboxSpec, UserNamespace};
use crate::sandbox::offload::OffThread;
use crate::sandbox::words::error::SandboxError;
use std::path::{Path, PathBuf};

/// What containers may write to the three files together, beyond their first content. A hosts file of a thousand names
/// has 30 KiB. It is memory, charged to the writing container.
const ROOM: u64 = 256 << 10;

/// Paths of the pod's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct PodFiles {
    /// The file system of the three.
    pub(in crate::sandbox) dir: PathBuf,
    /// /etc/hostname
    pub(in crate::sandbox) hostname: PathBuf,
    /// /etc/hosts
    pub(in crate::sandbox) hosts: PathBuf,
    /// /etc/resolv.conf
    pub(in crate::sandbox) resolv_conf: PathBuf,
    /// /dev/shm
    pub(in crate::sandbox) shm: PathBuf,
}

impl PodFiles {
    /// The files below a pod's run directory. Pods of earlier builds have them directly there.
    #[must_use]
    pub(in crate::sandbox) fn below(pod: &Path) -> Self {
        let dir = pod.join("files");
        let parent = if pod.join("hostname").exists() { pod } else { &dir };
        Self {
            hostname: parent.join("hostname"),
            hosts: parent.join("hosts"),
            resolv_conf: parent.join("resolv.conf"),
            shm: pod.join("shm"),
            dir,
        }
    }

    /// Mounts their file system and writes hostname, hosts and resolv.conf. Blocking.
    ///
    /// # Errors
    /// When it cannot be mounted, or a file cannot be written.
    pub(in crate::sandbox) fn write(&self, off: &OffThread, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let hostname = if spec.hostname.is_empty() {
            std::fs::read("/etc/hostname").unwrap_or_default()
        } else {
            format!("{}\n", spec.hostname).into_bytes()
        };
        let hosts = std::fs::read("/etc/hosts").unwrap_or_default();
        let resolv_conf = match &spec.dns {
            Some(dns) => resolv_conf(dns).into_bytes(),
            None => std::fs::read("/etc/resolv.conf").unwrap_or_default(),
        };
        let files = [(&self.hostname, hostname), (&self.hosts, hosts), (&self.resolv_conf, resolv_conf)];
        make_private_dir(off, &self.dir)?;
        rootfs::mount_files(
            off,
            &self.dir,
            files.iter().map(|(_, text)| pages(text.len())).sum::<u64>() + ROOM,
        )?;
        let owner = spec.namespaces.user.as_ref().and_then(UserNamespace::root);
        files.iter().try_for_each(|(path, text)| put(path, text, owner))
    }

    /// Bytes that containers have written to them, in memory; 0 if unknown. Blocking.
    pub(in crate::sandbox) fn written(&self) -> u64 {
        // Without the mount it would be the host file system's figure.
        if !rootfs::is_mounted(&self.dir).unwrap_or(false) {
            return 0;
        }
        let Ok(found) = rustix::fs::statvfs(&self.dir) else { return 0 };
        let room_taken = ROOM.saturating_sub(found.f_bfree.saturating_mul(found.f_frsize));
        room_taken.min(ROOM)
    }

    /// Unmounts what is mounted; may be repeated.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::sandbox) fn unmount(&self, off: &OffThread) -> Result<(), SandboxError> {
        rootfs::unmount(off, &self.dir)?;
        Ok(rootfs::unmount(off, &self.shm)?)
    }
}

/// Bytes that a file of that length takes on a tmpfs.
fn pages(length: usize) -> u64 {
    // The block size of memory file systems is that of a page, at most 64 KiB.
    static PAGE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let page =
        *PAGE.get_or_init(|| rustix::fs::statvfs("/proc").map_or(64 << 10, |found| found.f_bsize.max(1)));
    u64::try_from(length).unwrap_or(u64::MAX - page).next_multiple_of(page)
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
    use crate::host::offload::here;

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

    #[test]
    fn files_of_an_earlier_version_are_found_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(PodFiles::below(dir.path()).hosts, dir.path().join("files/hosts"));
        std::fs::write(dir.path().join("hostname"), "old").unwrap();
        let files = PodFiles::below(dir.path());
        assert_eq!((&files.hosts, &files.shm), (&dir.path().join("hosts"), &dir.path().join("shm")));
        assert_eq!(files.written(), 0);
        files.unmount(&here()).unwrap();
    }

    #[test]
    fn what_is_written_to_them_is_bounded_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let files = PodFiles::below(dir.path());
        make_private_dir(&here(), &files.dir).unwrap();
        rootfs::mount_files(&here(), &files.dir, pages(10) + ROOM).unwrap();
        put(&files.hosts, b"127.0.0.1\n", None).unwrap();
        assert_eq!(files.written(), 0);
        let mut text = vec![b'x'; 100_000];
        put(&files.hosts, &text, None).unwrap();
        assert_eq!(files.written(), pages(100_000) - pages(10));
        text.resize(1 << 20, b'x');
        let full = put(&files.resolv_conf, &text, None).unwrap_err();
        assert!(
            matches!(&full, SandboxError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::StorageFull),
            "{full}"
        );
        assert_eq!(files.written(), ROOM);
        for more in 0..100 {
            if std::fs::create_dir(files.dir.join(more.to_string())).is_err() {
                assert!(more < 16);
                break;
            }
        }
        files.unmount(&here()).unwrap();
        assert!(!files.hosts.exists());
    }
}
