//! The labels of containers in the node's policy: files of `key = "label"` lines.

use super::Label;
use std::path::{Path, PathBuf};

/// Path of container-selinux's file, which precedes the policy's own.
const SHARED: &str = "usr/share/containers/selinux/contexts";
/// The node's choice of a policy, `SELINUXTYPE=`.
const CONFIG: &str = "etc/selinux/config";
/// container-selinux's, where a file names none.
const PROCESS: (&str, &str) = ("process", "system_u:system_r:container_t:s0");
/// The same for files.
const FILE: (&str, &str) = ("file", "system_u:object_r:container_file_t:s0");
/// The type that may do everything: of containers that are not to be confined (container-selinux, refpolicy).
pub const UNCONFINED_TYPE: &str = "spc_t";

/// The default labels of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    /// Of processes.
    pub process: Label,
    /// Of unconfined processes; None: the policy has no such type, and they keep the daemon's label.
    pub unconfined: Option<Label>,
    /// Of files.
    pub file: Label,
}

impl Contexts {
    /// Reads them below a root directory. Without levels where the policy has none.
    pub(super) fn read(root: &Path, has_levels: bool) -> Self {
        let text = std::fs::read_to_string(root.join(SHARED))
            .or_else(|_| std::fs::read_to_string(policy_file(root)))
            .unwrap_or_default();
        let label = |(key, default)| {
            let found = value(&text, key).and_then(Label::parse).or_else(|| Label::parse(default));
            found.map(|mut label| {
                if !has_levels {
                    label.level.clear();
                }
                label
            })
        };
        let part = |name: &str| name.to_owned();
        let whole = |user, role, kind| Label {
            user: part(user),
            role: part(role),
            kind: part(kind),
            level: String::new(),
        };
        let process = label(PROCESS).unwrap_or_else(|| whole("system_u", "system_r", "container_t"));
        let file = label(FILE).unwrap_or_else(|| whole("system_u", "object_r", "container_file_t"));
        let unconfined = Some(Label { kind: UNCONFINED_TYPE.to_owned(), ..process.clone() });
        Self { process, unconfined, file }
    }
}

fn policy_file(root: &Path) -> PathBuf {
    let config = std::fs::read_to_string(root.join(CONFIG)).unwrap_or_default();
    let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted");
    root.join("etc/selinux").join(policy).join("contexts/lxc_contexts")
}

/// The value of a key: the first of its lines that is no comment, without quotes.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])).find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const OF_POLICY: &str = "etc/selinux/mine/contexts/lxc_contexts";

    #[test]
    fn the_policys_file_counts_where_there_is_no_other() {
        let config = "# SELINUXTYPE=no\nSELINUX=enforcing\nSELINUXTYPE=mine\n";
        let own =
            "#process = \"a:b:c:s0\"\nprocess = \"u:r:mine_t:s0\"\nfile=\"u:object_r:mine_file_t:s0\"\n";
        let node = root(&[(CONFIG, config), (OF_POLICY, own)]);
        let found = Contexts::read(node.path(), true);
        assert_eq!(found.process.to_string(), "u:r:mine_t:s0");
        assert_eq!(found.file.to_string(), "u:object_r:mine_file_t:s0");
        assert_eq!(found.unconfined.unwrap().to_string(), "u:r:spc_t:s0");
        let shared = "process = \"u:r:other_t:s0\"\n";
        let node = root(&[(CONFIG, config), (OF_POLICY, own), (SHARED, shared)]);
        let found = Contexts::read(node.path(), true);
        assert_eq!(found.process.kind, "other_t");
        assert_eq!(found.file.kind, "container_file_t", "what the file does not name has its default");
    }

    #[test]
    fn without_a_file_or_with_a_broken_one_they_are_container_selinuxs() {
        for text in ["", "process = \"nonsense\"\nfile\n"] {
            let node = root(&[(CONFIG, "SELINUXTYPE=mine\n"), (OF_POLICY, text)]);
            let found = Contexts::read(node.path(), true);
            assert_eq!(found.process.to_string(), PROCESS.1);
            assert_eq!(found.file.to_string(), FILE.1);
        }
        let found = Contexts::read(root(&[]).path(), false);
        assert_eq!(found.process.to_string(), "system_u:system_r:container_t", "a policy without levels");
    }
}
