//! Reads other programs' configuration, with a size limit and without blocking on special files.

use crate::images::error::ImageError;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Largest configuration file, bytes; hand-written ones have a few KiB, a pull secret of many registries some hundred.
const MAX_FILE: u64 = 4 << 20;

/// The text of a file; None: it does not exist.
pub(in crate::images) fn read(path: &Path) -> Result<Option<String>, ImageError> {
    let wrong = |reason: &str| ImageError::Hosts { path: path.to_owned(), reason: reason.to_owned() };
    // A fifo would block an open that waits.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(ImageError::io("open", path, e)),
    };
    if !file.metadata().map_err(|e| ImageError::io("stat", path, e))?.is_file() {
        return Err(wrong("not a regular file"));
    }
    let mut text = String::new();
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Ok(length) if u64::try_from(length).unwrap_or(u64::MAX) > MAX_FILE => Err(wrong("longer than 4 MiB")),
        Ok(_) => Ok(Some(text)),
        Err(e) => Err(ImageError::io("read", path, e)),
    }
}

/// What is wrong with a file, by its line, without the words of that line: a header in it may be a secret, and pods' owners
/// see why a pull failed.
pub(super) fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| {
        let before = text.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    });
    // serde quotes what it did not expect.
    let message = error.message().lines().next().unwrap_or_default();
    let message = if message.contains(['"', '`']) && message.starts_with("invalid ") {
        message.rsplit_once(", expected ").map_or("an invalid value", |(_, wanted)| wanted)
    } else {
        return format!("line {line}: {message}");
    };
    format!("line {line}: not {message}")
}

/// The files of a directory with this extension, in byte order of their names; none if it does not exist.
pub(super) fn drop_ins(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, ImageError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ImageError::io("read", dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| ImageError::io("read", dir, e))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_without_the_words_of_the_file() {
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Wanted {
            flag: Option<bool>,
            header: Option<std::collections::BTreeMap<String, String>>,
        }
        for (text, words) in [
            ("\nflag = \"hunter2\"", "line 2: not a boolean"),
            ("header = \"hunter2\"", "line 1: not a map"),
            ("[header]\na = \"b\"\nauthorization = \"hunter2\n", "line 3: "),
            ("[header]\na = hunter2\n", "line 2: "),
            ("[header]\nhunter2\n", "line 2: "),
        ] {
            let told = toml_error(text, &toml::from_str::<Wanted>(text).unwrap_err());
            assert!(told.starts_with(words) && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn only_plain_files_of_sane_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(read(&path("absent")).unwrap(), None);
        std::fs::write(path("b.conf"), "x").unwrap();
        assert_eq!(read(&path("b.conf")).unwrap().as_deref(), Some("x"));
        assert_eq!(read(&path("b.conf/below")).unwrap(), None);
        assert!(read(dir.path()).unwrap_err().to_string().contains("not a regular file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), rustix::fs::Mode::RUSR).unwrap();
        assert!(read(&path("fifo")).unwrap_err().to_string().contains("not a regular file"));
        let big = std::fs::File::create(path("a.conf")).unwrap();
        big.set_len(MAX_FILE + 1).unwrap();
        assert!(read(&path("a.conf")).unwrap_err().to_string().contains("4 MiB"));
        assert_eq!(drop_ins(dir.path(), "conf").unwrap(), [path("a.conf"), path("b.conf")]);
        assert!(drop_ins(&path("absent"), "conf").unwrap().is_empty());
    }
}
