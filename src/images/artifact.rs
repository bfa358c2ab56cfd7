//! OCI artifacts: manifests whose layers are files instead of parts of a root file system. Owns the name of each file,
//! its key in the store, and how it is written. Otherwise an artifact is handled like any image: a file is a layer
//! directory with one file in it, so leases, holds, removal and mounts are the same.

use super::digest::Digest;
use super::error::{ImageError, cut};
use super::manifest::Descriptor;
use super::staging::Staging;
use super::unpack::{Blame, Limits, MAX_PATH, Unpacked};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io::{BufRead, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

/// Annotations that name a file, in order of precedence: OCI image specification ("Pre-Defined Annotation Keys"), and
/// the CNCF's model specification. CRI-O reads the same.
pub(super) const TITLES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
/// The layer of an artifact that has none (OCI image specification, "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Longest component of a path, bytes: NAME_MAX.
const MAX_NAME: usize = 255;
/// Allocation unit for counting used bytes: that of every common file system.
const UNIT: u64 = 4096;

/// How the content of a layer's blob becomes files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// A tar, compressed or not.
    Tar,
    /// One file with this path.
    File(PathBuf),
}

impl Form {
    /// Of a layer, by its key: for an artifact's file, the digest of its origin.
    pub(crate) fn of(key_or_diff_id: &Digest, blob: &Descriptor) -> Self {
        match path(blob) {
            Ok(path) if key(&blob.digest, &path) == *key_or_diff_id => Self::File(path),
            _ => Self::Tar,
        }
    }
}

/// The files among an artifact's layers, with the keys of their directories, in the manifest's order.
pub(crate) fn files(
    what: &str,
    layers: Vec<Descriptor>,
) -> Result<(Vec<Digest>, Vec<Descriptor>), ImageError> {
    let bad = |title: &str, reason: &str| ImageError::BadManifest {
        what: what.to_owned(),
        reason: format!("its file {:?} {reason}", cut(title)),
    };
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    let (mut keys, mut blobs) = (Vec::new(), Vec::new());
    for blob in layers.into_iter().filter(|blob| blob.media_type != EMPTY) {
        let path = path(&blob).map_err(|reason| bad(title(&blob), reason))?;
        let below = taken.range(path.clone()..).next().is_some_and(|next| next.starts_with(&path));
        if below || path.ancestors().any(|above| taken.contains(above)) {
            return Err(bad(title(&blob), "is where another one is"));
        }
        keys.push(key(&blob.digest, &path));
        taken.insert(path);
        blobs.push(blob);
    }
    Ok((keys, blobs))
}

fn title(blob: &Descriptor) -> &str {
    TITLES.iter().find_map(|name| blob.annotation(name)).unwrap_or_else(|| blob.digest.hex())
}

/// The file's path in the artifact.
fn path(blob: &Descriptor) -> Result<PathBuf, &'static str> {
    let title = title(blob);
    if title.len() > MAX_PATH || title.contains('\0') {
        return Err("has a name that is longer than a path may be, or a NUL byte");
    }
    let mut clean = PathBuf::new();
    for component in Path::new(title).components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME => return Err("has too long a name"),
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err("would lie outside: its name is absolute or has \"..\"");
            }
        }
    }
    if clean.as_os_str().is_empty() { Err("has no name") } else { Ok(clean) }
}

/// The key of a file's layer directory: a digest of what is in it, in a form that no tar has.
fn key(blob: &Digest, path: &Path) -> Digest {
    Digest::sha256(
        &[b"podwright artifact 1\n", blob.as_str().as_bytes(), b"\n", path.as_os_str().as_bytes()].concat(),
    )
}

/// Writes the file below the staging directory's `fs`, reading `source` to its end. Readable by everyone, owned by
/// root, with a fixed time, so that the same artifact looks the same on every node.
pub(crate) fn write(
    staging: &Staging,
    path: &Path,
    source: &mut impl BufRead,
    blame: &Blame,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let root = staging.fs();
    let target = root.join(path);
    let io = |operation, at: &Path| {
        let at = at.to_owned();
        move |e| ImageError::io(operation, &at, e)
    };
    let mut dirs: Vec<&Path> = target.ancestors().skip(1).take_while(|dir| *dir != root).collect();
    dirs.reverse();
    for dir in &dirs {
        DirBuilder::new().mode(0o755).create(dir).map_err(io("make directory", dir))?;
        // Whatever the umask.
        std::fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(io("chmod", dir))?;
    }
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(0o644).open(&target).map_err(io("create", &target))?;
    let mut total = 0u64;
    loop {
        let piece = source.fill_buf().map_err(|e| blame.stream(&e))?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len();
        total = total.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if total > limits.bytes {
            return Err(blame.limit("the file", limits.bytes, "bytes"));
        }
        file.write_all(piece).map_err(io("write", &target))?;
        source.consume(length);
    }
    file.set_permissions(Permissions::from_mode(0o644)).map_err(io("chmod", &target))?;
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH).set_accessed(SystemTime::UNIX_EPOCH);
    file.set_times(times).map_err(io("set the times of", &target))?;
    for dir in dirs.iter().rev() {
        File::open(dir).and_then(|dir| dir.set_times(times)).map_err(io("set the times of", dir))?;
    }
    // The root and the parent directories, then the file.
    let above = u64::try_from(dirs.len()).unwrap_or_default() + 1;
    let bytes = above * UNIT + total.div_ceil(UNIT) * UNIT;
    Ok(Unpacked { bytes, inodes: above + 1, implied: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(c: char, title: Option<&str>) -> Descriptor {
        let annotations = title.map_or("{}".to_owned(), |t| format!(r#"{{"{}":{t:?}}}"#, TITLES[0]));
        let digest = c.to_string().repeat(64);
        serde_json::from_str(&format!(
            r#"{{"mediaType":"text/plain","digest":"sha256:{digest}","size":1,"annotations":{annotations}}}"#
        ))
        .unwrap()
    }

    fn names(blobs: Vec<Descriptor>) -> Result<Vec<String>, String> {
        let (keys, blobs) = files("t", blobs).map_err(|e| e.to_string())?;
        let form = |(key, blob)| match Form::of(key, blob) {
            Form::File(path) => path.to_string_lossy().into_owned(),
            Form::Tar => "tar".to_owned(),
        };
        Ok(keys.iter().zip(&blobs).map(form).collect())
    }

    #[test]
    fn names_are_paths_below_the_artifact() {
        let blobs = vec![blob('a', Some("x")), blob('a', Some("./d//e/x")), blob('b', None)];
        assert_eq!(names(blobs).unwrap(), ["x", "d/e/x", &"b".repeat(64)]);
        for outside in ["/etc/passwd", "../x", "a/../../x", "", ".", "./", "a\\u0000b", &"n".repeat(256)] {
            let title = outside.replace("\\u0000", "\0");
            let mut blob = blob('a', Some("ok"));
            let mut json = serde_json::to_value(&blob).unwrap();
            json["annotations"][TITLES[0]] = title.into();
            blob = serde_json::from_value(json).unwrap();
            assert!(names(vec![blob]).unwrap_err().contains("its file"), "{outside}");
        }
    }

    #[test]
    fn two_files_cannot_be_in_one_place() {
        for (one, other) in [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")] {
            let error = names(vec![blob('a', Some(one)), blob('b', Some(other))]).unwrap_err();
            assert!(error.contains("another"), "{one} {other}: {error}");
        }
        assert!(names(vec![blob('a', Some("a-b")), blob('b', Some("a/c")), blob('c', Some("a.d"))]).is_ok());
    }

    #[test]
    fn the_key_is_of_content_and_name() {
        let keys = |blobs| files("t", blobs).unwrap().0;
        let all = keys(vec![blob('a', Some("x")), blob('a', Some("y")), blob('b', Some("z"))]);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(keys(vec![blob('a', Some("x"))])[0], all[0]);
        assert_eq!(Form::of(&all[0], &blob('a', Some("y"))), Form::Tar, "another file's key");
    }

    #[test]
    fn the_empty_layer_is_no_file() {
        let mut empty = blob('a', None);
        empty.media_type = EMPTY.to_owned();
        assert!(names(vec![empty]).unwrap().is_empty());
    }

    #[test]
    fn a_file_is_written_for_everyone_to_read_and_within_the_limit() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { bytes: 5, entries: 1 };
        let blame = Blame::new("l");
        let staging = Staging::new(dir.path()).unwrap();
        let unpacked = write(&staging, Path::new("d/e/f"), &mut &b"hello"[..], &blame, limits).unwrap();
        assert_eq!((unpacked.bytes, unpacked.inodes), (4 * UNIT, 4));
        for (path, mode) in [("d", 0o755), ("d/e", 0o755), ("d/e/f", 0o644)] {
            let meta = std::fs::metadata(staging.fs().join(path)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.mtime()), (mode, 0, 0), "{path}");
        }
        assert_eq!(std::fs::read(staging.fs().join("d/e/f")).unwrap(), b"hello");
        let staging = Staging::new(dir.path()).unwrap();
        let error = write(&staging, Path::new("f"), &mut &b"hello!"[..], &blame, limits).unwrap_err();
        assert!(matches!(error, ImageError::Limit { limit: 5, .. }), "{error}");
    }
}
