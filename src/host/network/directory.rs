//! The configuration directory: which file counts, and what is wrong with those before it.
//!
//! Reads, never writes, never watches.

use super::list::{Draft, NetworkList};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a configuration file that are worth reading; real ones are a few kilobytes.
pub(super) const FILE_LIMIT: u64 = 1 << 20;
/// What counts as a configuration, with libcni.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What the directory holds.
#[derive(Debug)]
pub(super) enum Loaded {
    /// The first valid configuration by name of the file.
    Network {
        list: NetworkList,
        file: PathBuf,
        /// Files that come before it and are broken: the name and why.
        skipped: Vec<String>,
    },
    /// There is none, and why.
    Nothing { reason: String },
}

/// Reads the directory.
pub(super) fn load(dir: &Path) -> Loaded {
    let files = match candidates(dir, &EXTENSIONS) {
        Ok(files) => files,
        Err(error) => return Loaded::Nothing { reason: error.to_string() },
    };
    let mut skipped = Vec::new();
    for file in files {
        match parse(dir, &file) {
            Ok(list) => return Loaded::Network { list, file, skipped },
            Err(error) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                skipped.push(format!("{name}: {error}"));
            }
        }
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
            Loaded::Network { list, .. } => list.plugins.iter().map(|p| p.kind.as_str()).collect(),
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
        let loaded = load(dir.path());
        assert_eq!(plugins(&loaded), ["b"]);
        let Loaded::Network { skipped, file, .. } = loaded else { panic!() };
        assert!(file.ends_with("20-single.json"));
        assert_eq!(skipped.len(), 2);
        assert!(skipped[0].starts_with("05-broken.conflist: ") && skipped[1].contains("\"type\" is missing"));
    }

    #[test]
    fn nothing_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |dir: &Path| match load(dir) {
            Loaded::Nothing { reason } => reason,
            Loaded::Network { .. } => panic!(),
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
        assert_eq!(plugins(&load(dir.path())), ["first", "second"]);
        let inline = r#""plugins":[{"type":"a"}]"#;
        write(dir.path(), "n.conflist", &format!(r#"{{"cniVersion":"1.1.0","name":"n",{inline}}}"#));
        assert_eq!(plugins(&load(dir.path())), ["a", "first", "second"]);
        write(
            dir.path(),
            "n.conflist",
            &format!(r#"{{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins":"true",{inline}}}"#),
        );
        assert_eq!(plugins(&load(dir.path())), ["a"]);
        write(dir.path(), "n.conflist", &format!(r#"{{"cniVersion":"1.0.0","name":"n",{inline}}}"#));
        assert_eq!(plugins(&load(dir.path())), ["a"]);
    }
}
