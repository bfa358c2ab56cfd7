//! Locating the monitor's program.

use std::io;
use std::path::{Path, PathBuf};

/// Path of the packaged monitor.
const PACKAGED: &str = "/usr/libexec/podwright/podwright-monitor";

/// Why no monitor can be started.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The configured one does not exist.
    #[error("monitor.binary {0:?} is not there: install it, or leave the key empty")]
    Configured(PathBuf),
    /// None of the examined places has it.
    #[error("podwright-monitor is neither at {0:?} nor at {PACKAGED:?}: install it, or set monitor.binary")]
    Missing(PathBuf),
    /// The daemon's own program is not known.
    #[error("find our own binary: {0}")]
    Own(io::Error),
}

/// The configured program; without one, that beside the daemon's own, else the packaged one.
///
/// # Errors
/// When it is not there.
pub fn binary(configured: &Path) -> Result<PathBuf, BinaryError> {
    if !configured.as_os_str().is_empty() {
        return if configured.is_file() {
            Ok(configured.to_owned())
        } else {
            Err(BinaryError::Configured(configured.to_owned()))
        };
    }
    let beside = std::env::current_exe().map_err(BinaryError::Own)?.with_file_name("podwright-monitor");
    let found = [beside.clone(), PACKAGED.into()].into_iter().find(|path| path.is_file());
    found.ok_or(BinaryError::Missing(beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_program_has_to_be_there() {
        assert_eq!(binary(Path::new("/proc/self/exe")).unwrap(), Path::new("/proc/self/exe"));
        let error = binary(Path::new("/no/such/monitor")).unwrap_err().to_string();
        assert!(error.contains("/no/such/monitor"), "{error}");
    }
}
