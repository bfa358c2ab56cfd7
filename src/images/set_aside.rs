//! What to do with a thing of the store that is not what it should be: it is renamed, for a person to look at, and a new one
//! takes its place.

use super::error::ImageError;
use std::path::Path;
use std::time::SystemTime;

/// Renames something of the store to `<name>.damaged-<seconds>`.
pub(super) fn set_aside(path: &Path, reason: &str) -> Result<(), ImageError> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // More than one in a second only when somebody tries.
    let free = (seconds..).map(|n| path.with_file_name(format!("{name}.damaged-{n}")));
    let mut free = free.skip_while(|aside| aside.symlink_metadata().is_ok());
    let aside = free.next().unwrap_or_default();
    std::fs::rename(path, &aside).map_err(|e| ImageError::io("set aside", path, e))?;
    // Log: The image index, or a directory beside it, is not what it should be (`reason`). An index is made again from the copies
    // beside the layers; what these lack is pulled again.
    // Do: Check the disk. Delete what was set aside.
    tracing::error!(path = %aside.display(), reason, "a damaged part of the image store was set aside");
    Ok(())
}

/// Whether a link may stand in a directory's place, to one on another disk. Where things are swept, it may not: somebody else's
/// would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    Followed,
    Refused,
}

/// Sets aside what is in a directory's place.
pub(super) fn clear_for_directory(path: &Path, links: Links) -> Result<(), ImageError> {
    let there = match links {
        Links::Followed => std::fs::metadata(path),
        Links::Refused => path.symlink_metadata(),
    };
    match there {
        Ok(there) if there.is_dir() => Ok(()),
        _ if path.symlink_metadata().is_ok() => set_aside(path, "it is not a directory"),
        _ => Ok(()),
    }
}
