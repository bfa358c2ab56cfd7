//! SELinux: whether the kernel labels, the policy's labels for containers, whether it knows a label, and labels on
//! files.
//!
//! Never decides which label a container gets, and never changes the policy or its mode.

mod categories;
mod contexts;
mod label;
mod relabel;

pub use categories::unused;
pub use contexts::{Contexts, UNCONFINED_TYPE};
pub use label::{Label, is_level};
pub use relabel::{Known, label_file, relabel};

use rustix::io::Errno;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Mount point of the kernel's interface on every distribution.
const FILE_SYSTEM: &str = "sys/fs/selinux";
/// Our own label; `kernel` while no policy is loaded.
const OWN_LABEL: &str = "proc/self/attr/current";
/// The kernel answers with a label of at most 4096 bytes (SIMPLE_TRANSACTION_LIMIT is a page).
const MAX_LABEL: u64 = 4096;

/// Why a label cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SelinuxError {
    /// The kernel does not take the label.
    #[error("label {label:?} is not in the SELinux policy of this node")]
    Unknown {
        /// The label.
        label: String,
    },
    /// The kernel could not be asked.
    #[error("ask {} about label {label:?}: {cause}", path.display())]
    Ask {
        /// The kernel's file.
        path: PathBuf,
        /// The label.
        label: String,
        /// Cause.
        cause: std::io::Error,
    },
    /// No level is left for a pod.
    #[error("every SELinux level of two categories is in use")]
    NoLevel,
    /// A level could not be chosen.
    #[error("choose an SELinux level at random: {0}")]
    Random(std::io::Error),
    /// A path that belongs to the node as a whole.
    #[error("label {}: it is one of the system's own directories, which may not be relabelled", path.display())]
    Forbidden {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("label {} {label}: {cause}", path.display())]
    Set {
        /// The file, or its directory.
        path: PathBuf,
        /// The label.
        label: String,
        /// Cause.
        cause: std::io::Error,
    },
}

/// SELinux of a host whose kernel labels.
#[derive(Debug)]
pub struct Selinux {
    fs: PathBuf,
    contexts: Contexts,
}

impl Selinux {
    /// The host's SELinux; None: the kernel has none, it is disabled, or no policy is loaded.
    #[must_use]
    pub fn detect() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Option<Self> {
        let fs = root.join(FILE_SYSTEM);
        let own = std::fs::read_to_string(root.join(OWN_LABEL)).ok()?;
        let labelled = Label::parse(own.trim_end_matches(['\0', '\n'])).is_some();
        // In a container of another runtime it may be mounted read-only, which tells programs that there is none.
        if !labelled || !fs.join("enforce").exists() || open(&fs.join("context")).is_err() {
            return None;
        }
        let has_levels = std::fs::read_to_string(fs.join("mls")).is_ok_and(|text| text.trim() == "1");
        let mut found = Self { contexts: Contexts::read(root, has_levels), fs };
        if let Some(label) = &found.contexts.unconfined
            && let Err(SelinuxError::Unknown { .. }) = found.canonical(label)
        {
            found.contexts.unconfined = None;
        }
        Some(found)
    }

    /// The labels of containers.
    #[must_use]
    pub fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    /// Whether what the policy forbids is refused, and not only logged.
    #[must_use]
    pub fn enforcing(&self) -> bool {
        std::fs::read_to_string(self.fs.join("enforce")).is_ok_and(|text| text.trim() == "1")
    }

    /// Whether the policy knows the labels of containers.
    #[must_use]
    pub fn knows_containers(&self) -> bool {
        let Contexts { process, file, .. } = &self.contexts;
        self.canonical(process).is_ok() && self.canonical(file).is_ok()
    }

    /// The label as the kernel itself writes it.
    ///
    /// # Errors
    /// [`SelinuxError::Unknown`] when the policy has no such label.
    pub fn canonical(&self, label: &Label) -> Result<String, SelinuxError> {
        let path = self.fs.join("context");
        let ask = |text: &str| -> std::io::Result<String> {
            let mut file = open(&path)?;
            file.write_all(text.as_bytes())?;
            let mut answer = String::new();
            file.take(MAX_LABEL).read_to_string(&mut answer)?;
            Ok(answer.trim_end_matches('\0').to_owned())
        };
        let text = label.to_string();
        match ask(&text) {
            Ok(answer) => Ok(answer),
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::INVAL) => {
                Err(SelinuxError::Unknown { label: text })
            }
            // A process that may not ask must trust it; its use will show.
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::ACCESS) => Ok(text),
            Err(cause) => Err(SelinuxError::Ask { path, label: text, cause }),
        }
    }
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::options().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory that looks like a host's.
    fn host(own_label: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let fs = root.path().join(FILE_SYSTEM);
        std::fs::create_dir_all(&fs).unwrap();
        for (name, text) in [("enforce", "0"), ("mls", "1"), ("context", "")] {
            std::fs::write(fs.join(name), text).unwrap();
        }
        std::fs::create_dir_all(root.path().join("proc/self/attr")).unwrap();
        std::fs::write(root.path().join(OWN_LABEL), own_label).unwrap();
        root
    }

    #[test]
    fn a_host_has_selinux_when_its_kernel_labels() {
        let node = host("system_u:system_r:initrc_t:s0\0");
        let found = Selinux::below(node.path()).unwrap();
        assert!(!found.enforcing());
        std::fs::write(node.path().join("sys/fs/selinux/enforce"), "1").unwrap();
        assert!(found.enforcing());
        assert_eq!(found.contexts().process.to_string(), "system_u:system_r:container_t:s0");
        assert!(Selinux::below(host("kernel\0").path()).is_none(), "no policy is loaded");
        assert!(Selinux::below(host("unconfined\n").path()).is_none(), "AppArmor's");
        std::fs::remove_file(node.path().join("sys/fs/selinux/context")).unwrap();
        assert!(Selinux::below(node.path()).is_none(), "it cannot be asked");
        assert!(Selinux::below(tempfile::tempdir().unwrap().path()).is_none());
    }

    #[test]
    fn a_policy_without_levels_gets_labels_without() {
        let node = host("u:r:t\0");
        std::fs::write(node.path().join("sys/fs/selinux/mls"), "0").unwrap();
        let found = Selinux::below(node.path()).unwrap();
        assert_eq!(found.contexts().file.to_string(), "system_u:object_r:container_file_t");
    }

    #[test]
    fn a_kernel_that_cannot_be_asked_is_told_with_its_file() {
        let node = host("u:r:t:s0\0");
        let found = Selinux::below(node.path()).unwrap();
        let context = node.path().join("sys/fs/selinux/context");
        std::fs::remove_file(&context).unwrap();
        std::os::unix::fs::symlink("/dev/full", &context).unwrap();
        let error = found.canonical(&found.contexts().process).unwrap_err();
        assert!(matches!(error, SelinuxError::Ask { .. }), "{error}");
        assert!(error.to_string().contains("sys/fs/selinux/context"), "{error}");
    }
}
