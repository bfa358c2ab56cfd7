//! Files and directories of our own, which only root may see.

use crate::host::remove;
use crate::sandbox::offload::OffThread;
use crate::sandbox::words::error::SandboxError;
use std::path::Path;

/// Creates a directory and its parents with mode 0700: only root may see our state.
pub(in crate::sandbox) fn make_private_dir(_: &OffThread, path: &Path) -> Result<(), SandboxError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(SandboxError::io("make directory", path))
}

/// Writes a file that only root may read: a bundle with a user namespace lets its root through, and such files contain
/// a container's environment. The OCI runtimes read them as root.
pub(in crate::sandbox) fn write_private(
    _: &OffThread,
    path: &Path,
    bytes: &[u8],
) -> Result<(), SandboxError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(SandboxError::io("write", path))
}

/// Removes a tree of ours; absent is fine.
pub(in crate::sandbox) fn remove_tree(_: &OffThread, dir: &Path) -> Result<(), SandboxError> {
    Ok(remove::tree(dir)?)
}
