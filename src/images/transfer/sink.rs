//! Named files for output: into a directory, or into a tar whose headers are written when the following data is known.

use crate::images::digest::{Digest, Hasher};
use crate::images::error::ImageError;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A block of a tar.
const BLOCK: u64 = 512;
/// Bytes copied at once.
const PIECE: usize = 256 << 10;

/// What was written under a name.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Of the data before compression.
    pub(super) plain: Digest,
}

/// Where files go.
#[derive(Debug)]
pub(super) enum Sink {
    Directory(PathBuf),
    Tar { file: File, path: PathBuf },
}

/// Counts and hashes what passes.
struct Tally<W> {
    to: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += u64::try_from(written).unwrap_or_default();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Sink {
    /// The image's files as a tar or in a new or empty directory.
    pub(super) fn directory(path: &Path) -> Result<Self, ImageError> {
        let failed = |e| ImageError::io("make directory", path, e);
        match std::fs::create_dir(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if std::fs::read_dir(path).map_err(failed)?.next().is_some() {
                    return Err(ImageError::BadArchive {
                        archive: path.display().to_string(),
                        entry: String::new(),
                        reason: "a layout is written to a new or empty directory, this one has entries"
                            .into(),
                    });
                }
            }
            Err(e) => return Err(failed(e)),
        }
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|e| ImageError::io("make directory", &blobs, e))?;
        Ok(Self::Directory(path.to_owned()))
    }

    pub(super) fn tar(file: File, path: &Path) -> Self {
        Self::Tar { file, path: path.to_owned() }
    }

    /// Writes a document.
    pub(super) fn document(&mut self, name: &str, bytes: &[u8]) -> Result<Written, ImageError> {
        self.stream(bytes, false, |_| name.to_owned())
    }

    /// Writes a stream; its name may depend on the content.
    pub(super) fn stream(
        &mut self,
        from: impl Read,
        gzip: bool,
        name: impl FnOnce(&Written) -> String,
    ) -> Result<Written, ImageError> {
        match self {
            Self::Directory(path) => {
                let temporary = path.join("blobs/.part");
                let failed = |e: io::Error| carried("write", &temporary, e);
                let file = File::create(&temporary).map_err(failed)?;
                let written = copy(from, &file, gzip).map_err(failed)?;
                file.sync_all().map_err(failed)?;
                let to = path.join(name(&written));
                std::fs::rename(&temporary, &to).map_err(|e| ImageError::io("rename to", &to, e))?;
                Ok(written)
            }
            Self::Tar { file, path } => {
                let failed = |e: io::Error| carried("write", path, e);
                let header_at = file.stream_position().map_err(failed)?;
                file.seek(SeekFrom::Start(header_at + BLOCK)).map_err(failed)?;
                let written = copy(from, &*file, gzip).map_err(failed)?;
                let header = header(&name(&written), written.size).map_err(failed)?;
                let end = header_at + BLOCK + written.size.next_multiple_of(BLOCK);
                file.seek(SeekFrom::Start(header_at)).map_err(failed)?;
                file.write_all(&header).map_err(failed)?;
                // Padding is the hole behind the data.
                file.seek(SeekFrom::Start(end)).map_err(failed)?;
                file.set_len(end).map_err(failed)?;
                Ok(written)
            }
        }
    }

    /// Ends a tar; gives its file.
    pub(super) fn finish(self) -> Result<Option<File>, ImageError> {
        match self {
            Self::Directory(_) => Ok(None),
            Self::Tar { mut file, path } => {
                file.write_all(&[0; 1024]).map_err(|e| ImageError::io("write", &path, e))?;
                Ok(Some(file))
            }
        }
    }
}

/// The error inside a reader's, or the writer's own.
fn carried(operation: &'static str, path: &Path, error: io::Error) -> ImageError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ImageError>()) {
        Some(carried) => carried.clone(),
        None => ImageError::io(operation, path, error),
    }
}

fn copy(mut from: impl Read, to: &File, gzip: bool) -> io::Result<Written> {
    let mut out = Tally { to: BufWriter::with_capacity(PIECE, to), hasher: Hasher::sha256(), size: 0 };
    let plain = if gzip {
        // No time in the header: the same layer gives the same blob.
        let encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::default());
        let mut plain = Tally { to: encoder, hasher: Hasher::sha256(), size: 0 };
        pump(&mut from, &mut plain)?;
        plain.to.finish()?;
        Some(plain.hasher.finish())
    } else {
        pump(&mut from, &mut out)?;
        None
    };
    out.flush()?;
    let digest = out.hasher.finish();
    Ok(Written { plain: plain.unwrap_or_else(|| digest.clone()), digest, size: out.size })
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&piece[..length])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn header(name: &str, size: u64) -> io::Result<[u8; 512]> {
    let mut header = ::tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}
