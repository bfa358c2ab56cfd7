//! The target of an export. A file appears when it is complete and replaces an existing one; a pipe's content goes to a
//! nameless file first, since a tar's headers describe what follows them.

use super::spool::{Cancel, LOOK};
use crate::images::error::ImageError;
use crate::images::staging::nameless;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Bytes copied into a pipe at once: its capacity.
const PIECE: usize = 64 << 10;

/// A tar's place, being written.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A new file beside the path, finally renamed to it. Removed if dropped before.
    File { temporary: PathBuf },
    /// Something open elsewhere: written as it is.
    Open(File),
}

impl Target {
    /// Opens the place and gives the file to be written. Blocking.
    pub(super) fn open(path: &Path, staging: &Path) -> Result<(Self, File), ImageError> {
        let failed = |e| ImageError::io("open", path, e);
        // Names below /proc lead to the caller's open files; it does not want a new file of that name.
        let in_proc = path.starts_with("/proc");
        let there = match std::fs::metadata(path) {
            Ok(there) => Some(there.file_type()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e)),
        };
        match there {
            Some(there) if there.is_fifo() || (there.is_file() && in_proc) => {
                let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or_default();
                // Appended, as the caller may have begun the file.
                let open = File::options().append(true).custom_flags(flags).open(path).map_err(failed)?;
                let target = Self { path: path.to_owned(), kind: Kind::Open(open) };
                Ok((target, nameless(staging)?))
            }
            Some(there) if !there.is_file() => Err(ImageError::BadArchive {
                archive: path.display().to_string(),
                entry: String::new(),
                reason: "an archive can be written to a file or a pipe, this is neither".into(),
            }),
            _ => {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{}.part", std::process::id()));
                let temporary = path.with_file_name(name);
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&temporary)
                    .map_err(|e| ImageError::io("make", &temporary, e))?;
                Ok((Self { path: path.to_owned(), kind: Kind::File { temporary } }, file))
            }
        }
    }

    /// Hands the written file over. Blocking.
    pub(super) fn finish(self, mut file: File, cancel: &Cancel) -> Result<(), ImageError> {
        match &self.kind {
            Kind::File { temporary } => {
                file.sync_all().map_err(|e| ImageError::io("sync", temporary, e))?;
                std::fs::rename(temporary, &self.path).map_err(|e| ImageError::io("rename to", &self.path, e))
            }
            Kind::Open(to) => {
                file.seek(SeekFrom::Start(0)).map_err(|e| ImageError::io("seek", &self.path, e))?;
                self.copy(file, to, cancel)
            }
        }
    }

    fn copy(&self, mut from: File, to: &File, cancel: &Cancel) -> Result<(), ImageError> {
        let failed = |e: io::Error| ImageError::io("write", &self.path, e);
        let mut piece = vec![0; PIECE];
        loop {
            let length = from.read(&mut piece).map_err(failed)?;
            if length == 0 {
                return Ok(());
            }
            let mut left = &piece[..length];
            while !left.is_empty() {
                if cancel.is_set() {
                    return Err(ImageError::Interrupted {
                        what: format!("the export to {}", self.path.display()),
                    });
                }
                let mut to = to;
                match to.write(left) {
                    Ok(written) => left = &left[written..],
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        let mut wanted = [PollFd::new(&to, PollFlags::OUT)];
                        match poll(&mut wanted, Some(&LOOK)) {
                            Ok(_) | Err(rustix::io::Errno::INTR) => {}
                            Err(e) => return Err(failed(e.into())),
                        }
                    }
                    Err(e) => return Err(failed(e)),
                }
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Kind::File { temporary } = &self.kind
            && let Err(error) = std::fs::remove_file(temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            // Log: The file of a failed export could not be removed.
            // Do: Delete it.
            tracing::warn!(path = %temporary.display(), %error, "half an export stays");
        }
    }
}
