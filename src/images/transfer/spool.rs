//! Makes an archive seekable: a compressed one, or one from a pipe, goes into a file without a name, which the kernel
//! frees with its last reader, also after a crash.

use crate::images::error::ImageError;
use crate::images::staging::nameless;
use crate::images::windows::Windows;
use crate::images::worker::{Decompressed, cannot_start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes copied at once.
const PIECE: usize = 256 << 10;
/// Interval at which waiting for a pipe checks whether its caller is still there.
pub(super) const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Tells blocking work that its caller is gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

/// Cancels when dropped.
#[derive(Debug)]
pub(super) struct Guard(Cancel);

impl Cancel {
    pub(super) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A file or pipe, read until its caller leaves.
struct Input {
    file: File,
    is_pipe: bool,
    cancel: Cancel,
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.is_set() {
                return Err(io::Error::other("nobody waits for it any more"));
            }
            if !self.is_pipe {
                return self.file.read(into);
            }
            let mut wanted = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut wanted, Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => match self.file.read(into) {
                    // Another reader of the pipe was first.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                },
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// A stream, and what it was found to be.
pub(super) enum Form<R> {
    Plain(R),
    /// Decompressed while reading, by a worker without rights.
    Compressed(Decompressed),
}

/// Examines the beginning of a stream; errors call it `name`.
pub(super) fn decoder<R: BufRead + Send + 'static>(
    mut source: R,
    name: &str,
    windows: &Arc<Windows>,
) -> Result<Form<R>, ImageError> {
    let failed = |e| ImageError::io("read", Path::new(name), e);
    let start = source.fill_buf().map_err(failed)?;
    if start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decompressed = Decompressed::new(source, windows);
        return decompressed.map(Form::Compressed).map_err(cannot_start);
    }
    if start.starts_with(b"BZh") || start.starts_with(b"\xfd7zXZ\0") {
        let reason = "compressed with bzip2 or xz; decompress it first".to_owned();
        return Err(ImageError::BadArchive { archive: name.to_owned(), entry: String::new(), reason });
    }
    Ok(Form::Plain(source))
}

/// A file that holds the archive uncompressed: the given one, or a copy in `dir` of at most `limit` bytes. Blocking.
pub(super) fn spool(
    file: File,
    name: &str,
    dir: &Path,
    limit: u64,
    windows: &Arc<Windows>,
    cancel: &Cancel,
) -> Result<File, ImageError> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = Path::new(name);
    let failed = |e| ImageError::io("read", path, e);
    let bad =
        |reason: String| ImageError::BadArchive { archive: name.to_owned(), entry: String::new(), reason };
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        return Err(bad("it is neither a file nor a directory nor a pipe".into()));
    }
    let is_pipe = kind.is_fifo();
    let original = file.try_clone().map_err(failed)?;
    let source = BufReader::with_capacity(PIECE, Input { file, is_pipe, cancel: cancel.clone() });
    let mut from: Box<dyn Read> = match decoder(source, name, windows)? {
        Form::Compressed(decoded) => Box::new(decoded),
        Form::Plain(source) if is_pipe => Box::new(source),
        Form::Plain(_) => return Ok(original),
    };
    let (mut to, mut piece, mut total) = (nameless(dir)?, vec![0; PIECE], 0u64);
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) if cancel.is_set() => {
                return Err(ImageError::Interrupted { what: format!("reading of {name}") });
            }
            Err(e) if e.raw_os_error().is_some() => return Err(failed(e)),
            Err(e) => return Err(bad(format!("its compressed stream is corrupt: {e}"))),
        };
        total += u64::try_from(read).unwrap_or_default();
        if total > limit {
            return Err(ImageError::Limit {
                what: format!("the archive {name}, decompressed,"),
                limit,
                unit: "bytes",
            });
        }
        to.write_all(&piece[..read]).map_err(|e| ImageError::io("spool an archive in", dir, e))?;
    }
    Ok(to)
}
