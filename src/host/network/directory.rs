//! The configuration directory: the files that apply, and the faults of those before them.
//!
//! Reads, never writes, never watches.

use super::list::{Draft, NetworkList};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Limit of bytes of a configuration file; real ones have a few kilobytes.
pub(super) const FILE_LIMIT: u64 = 1 << 20;
/// File name extensions of configurations, as in libcni.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// A network that pods are attached to.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) list: Arc<NetworkList>,
    pub(super) file: PathBuf,
    /// The interface that it gives pods.
    pub(super) interface: String,
}

/// Content of the directory.
#[derive(Debug)]
pub(super) enum Loaded {
    /// The first valid configurations by file name, at least one.
    Networks {
        chosen: Vec<Chosen>,
        /// Broken files before the last of them: the name and the fault.
        skipped: Vec<String>,
        /// Files after the last of them, which were not read.
        unread: usize,
    },
    /// There is none, and why.
    Nothing { reason: String },
}

/// The interface of the network at this position: the first one's is the pod's own by convention of all CRI runtimes,
/// the others continue as go-cni counts.
pub(super) fn interface(place: usize) -> String {
    format!("eth{place}")
}

/// Reads the directory, until `most` valid configurations are found; 0: all.
pub(super) fn load(dir: &Path, most: usize) -> Loaded {
    let files = match candidates(dir, &EXTENSIONS) {
        Ok(files) => files,
        Err(error) => return Loaded::Nothing { reason: error.to_string() },
    };
    let (mut chosen, mut skipped) = (Vec::new(), Vec::new());
    let mut files = files.into_iter();
    for file in files.by_ref() {
        match parse(dir, &file) {
            Ok(list) => chosen.push(Chosen { list: list.into(), file, interface: interface(chosen.len()) }),
            Err(error) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                skipped.push(format!("{name}: {error}"));
            }
        }
        if chosen.len() == most && most > 0 {
            break;
        }
    }
    if !chosen.is_empty() {
        return Loaded::Networks { chosen, skipped, unread: files.len() };
    }
    let reason = if skipped.is_empty() {
        "no .conflist, .conf or .json file in it".to_owned()
    } else {
        skipped.join("; ")
    };
    Loaded::Nothing { reason }
}

/// Plain files (or links to such) with these extensions, in byte order of their names.
fn candidates(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let wanted = path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x));
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    if length > FILE_LIMIT {
        return Err(format!("{length} bytes are too many for a CNI configuration"));
    }
    std::fs::read(file).map_err(|e| e.to_string())
}

fn parse(dir: &Path, file: &Path) -> Result<NetworkList, String> {
    let bytes = read(file)?;
    let is_list = file.extension().is_some_and(|e| e == "conflist");
    let mut draft = if is_list { Draft::list(&bytes) } else { Draft::single(&bytes) }?;
    if draft.wants_drop_ins {
        let more = match candidates(&dir.join(&draft.name), &["conf"]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Vec::new()
            }
            other => other.map_err(|e| format!("drop-in directory {}: {e}", draft.name))?,
        };
        for file in more {
            read(&file).and_then(|bytes| draft.push(&bytes)).map_err(|error| {
                let mut text = String::new();
                let _infallible = write!(text, "{}: {error}", file.display());
                text
            })?;
        }
    }
    draft.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn plugins(loaded: &Loaded) -> Vec<&str> {
        match loaded {
            Loaded::Networks { chosen, .. } => {
                chosen[0].list.plugins.iter().map(|p| p.kind.as_str()).collect()
            }
            Loaded::Nothing { reason } => panic!("{reason}"),
        }
    }

    const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"good","plugins":[{"type":"a"}]}"#;

    #[test]
    fn the_first_valid_file_counts_and_broken_ones_before_it_are_told() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "05-broken.conflist", "{");
        write(dir.path(), "10-misnamed.conf", GOOD);
        write(dir.path(), "20-single.json", r#"{"name":"single","type":"b"}"#);
        write(dir.path(), "01-ignored.txt", "{}");
        write(dir.path(), "00-dir.conf/x", "");
        write(dir.path(), "30-good.conflist", GOOD);
        let loaded = load(dir.path(), 1);
        assert_eq!(plugins(&loaded), ["b"]);
        let Loaded::Networks { chosen, skipped, unread } = loaded else { panic!() };
        assert!(chosen[0].file.ends_with("20-single.json"));
        assert_eq!((chosen.len(), skipped.len(), unread), (1, 2, 1));
        assert!(skipped[0].starts_with("05-broken.conflist: ") && skipped[1].contains("\"type\" is missing"));
    }

    #[test]
    fn as_many_as_wanted_count_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            write(dir.path(), &format!("{name}.json"), &format!(r#"{{"name":"{name}","type":"x"}}"#));
        }
        write(dir.path(), "aa-broken.conf", "{");
        write(dir.path(), "z-broken.conf", "{");
        let of = |most| match load(dir.path(), most) {
            Loaded::Nothing { reason } => panic!("{reason}"),
            Loaded::Networks { chosen, skipped, unread } => {
                let names =
                    chosen.iter().map(|network| format!("{} {}", network.list.name, network.interface));
                (names.collect::<Vec<_>>().join(", "), skipped.len(), unread)
            }
        };
        assert_eq!(of(1), ("a eth0".to_owned(), 0, 4));
        assert_eq!(of(2), ("a eth0, b eth1".to_owned(), 1, 2));
        for all in [0, 7] {
            assert_eq!(of(all), ("a eth0, b eth1, c eth2".to_owned(), 2, 0));
        }
    }

    #[test]
    fn nothing_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |dir: &Path| match load(dir, 1) {
            Loaded::Nothing { reason } => reason,
            Loaded::Networks { .. } => panic!(),
        };
        assert!(reason(dir.path()).starts_with("no .conflist"));
        assert!(reason(&dir.path().join("absent")).starts_with("No such file"));
        write(dir.path(), "1.conf", "x");
        assert!(reason(dir.path()).starts_with("1.conf: "));
    }

    #[test]
    fn drop_ins_are_appended_from_version_1_1_on() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "n/20.conf", r#"{"type":"second"}"#);
        write(dir.path(), "n/10.conf", r#"{"type":"first"}"#);
        write(dir.path(), "n/05.json", r#"{"type":"no"}"#);
        write(dir.path(), "n.conflist", r#"{"cniVersion":"1.1.0","name":"n"}"#);
        assert_eq!(plugins(&load(dir.path(), 1)), ["first", "second"]);
        let inline = r#""plugins":[{"type":"a"}]"#;
        write(dir.path(), "n.conflist", &format!(r#"{{"cniVersion":"1.1.0","name":"n",{inline}}}"#));
        assert_eq!(plugins(&load(dir.path(), 1)), ["a", "first", "second"]);
        write(
            dir.path(),
            "n.conflist",
            &format!(r#"{{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins":"true",{inline}}}"#),
        );
        assert_eq!(plugins(&load(dir.path(), 1)), ["a"]);
        write(dir.path(), "n.conflist", &format!(r#"{{"cniVersion":"1.0.0","name":"n",{inline}}}"#));
        assert_eq!(plugins(&load(dir.path(), 1)), ["a"]);
    }
}
