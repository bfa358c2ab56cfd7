//! Places of a container's root where OCI runtimes mount or create devices before that root is in effect: each must be
//! a directory of the image itself. A link there has led runtimes to directories of the host (CVE-2026-41579 of runc,
//! CVE-2026-47766 of crun, CVE-2025-54867 of youki), so it is refused before a runtime sees it. Only reads.

use crate::sandbox::words::error::SandboxError;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// Anything below them lies on the runtime's mount.
const PLACES: [&str; 3] = ["dev", "proc", "sys"];

/// Checks the merged root of a container; the error names `image`. The OCI runtime creates missing directories.
pub(in crate::sandbox) fn check(root: &Path, image: &str) -> Result<(), SandboxError> {
    let failed = |cause: Errno| SandboxError::io("look at", root)(cause.into());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(failed)?;
    for place in PLACES {
        let kind = match rustix::fs::statat(&dir, place, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => continue,
            Err(cause) => return Err(failed(cause)),
        };
        let found = match kind {
            FileType::Directory => continue,
            FileType::Symlink => "a symbolic link",
            FileType::RegularFile => "a file",
            _ => "no directory",
        };
        let problem = format!("/{place} is {found}, and has to be a directory or missing");
        return Err(SandboxError::ImageContent { image: image.to_owned(), problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_directories_and_nothing_are_taken() {
        let root = tempfile::tempdir().unwrap();
        check(root.path(), "image").unwrap();
        for place in PLACES {
            std::fs::create_dir(root.path().join(place)).unwrap();
        }
        check(root.path(), "image").unwrap();
        for place in PLACES {
            let path = root.path().join(place);
            std::fs::remove_dir(&path).unwrap();
            for target in ["/tmp", "../../tmp", "run", "/nowhere"] {
                symlink(target, &path).unwrap();
                let error = check(root.path(), "docker.io/evil/x:1").unwrap_err().to_string();
                assert!(
                    error.contains("docker.io/evil/x:1")
                        && error.contains(&format!("/{place} is a symbolic")),
                    "{error}"
                );
                std::fs::remove_file(&path).unwrap();
            }
            std::fs::write(&path, "").unwrap();
            assert!(check(root.path(), "image").unwrap_err().to_string().contains("is a file"));
            std::fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
            check(root.path(), "image").unwrap_err();
            std::fs::remove_file(&path).unwrap();
        }
    }
}
