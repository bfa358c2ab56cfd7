//! Reproduces a layer's tar from its unpacked files and the record of everything that is not file content, in the form
//! of github.com/vbatts/tar-split: lines of JSON, either raw bytes of the tar or the name and size of a file.

use super::broken;
use crate::images::error::ImageError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

/// One line: the bytes between two files are headers, at most some PAX records of 1 MiB each, in base64.
const MAX_LINE: u64 = 16 << 20;

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: Option<String>,
    /// The name where it is not UTF-8.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// Kinds of lines.
const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// The next part of the tar.
enum Piece {
    Bytes(io::Cursor<Vec<u8>>),
    File { file: io::Take<File>, name: String },
}

/// The tar as a stream.
pub(super) struct Assembly {
    record: String,
    lines: BufReader<flate2::read::MultiGzDecoder<File>>,
    files: OwnedFd,
    piece: Piece,
}

impl Assembly {
    pub(super) fn open(record: &Path, files: &Path) -> Result<Self, ImageError> {
        let file = File::open(record).map_err(|e| ImageError::io("open", record, e))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let files =
            rustix::fs::open(files, flags, Mode::empty()).map_err(|e| ImageError::io("open", files, e))?;
        Ok(Self {
            record: record.display().to_string(),
            lines: BufReader::new(flate2::read::MultiGzDecoder::new(file)),
            files,
            piece: Piece::Bytes(io::Cursor::default()),
        })
    }

    fn broken(&self, reason: impl Into<String>) -> io::Error {
        io::Error::other(broken(&self.record, reason))
    }

    /// The next piece that is not empty; false: the tar is whole.
    fn next(&mut self) -> io::Result<bool> {
        loop {
            let mut line = Vec::new();
            (&mut self.lines)
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)
                .map_err(|e| self.broken(e.to_string()))?;
            if line.is_empty() {
                return Ok(false);
            }
            let line: Line = serde_json::from_slice(&line).map_err(|e| self.broken(e.to_string()))?;
            let decode = |text: &str| STANDARD.decode(text).map_err(|e| self.broken(e.to_string()));
            self.piece = match line.kind {
                SEGMENT => {
                    Piece::Bytes(io::Cursor::new(decode(line.payload.as_deref().unwrap_or_default())?))
                }
                FILE if line.size == 0 => continue,
                FILE => {
                    let name = match (&line.name_raw, &line.name) {
                        (Some(raw), _) => decode(raw)?,
                        (None, Some(name)) => name.as_bytes().to_vec(),
                        (None, None) => return Err(self.broken("a file without a name")),
                    };
                    let shown = String::from_utf8_lossy(&name).into_owned();
                    let file =
                        self.open_file(&name).map_err(|e| self.broken(format!("file {shown}: {e}")))?;
                    Piece::File { file: file.take(line.size), name: shown }
                }
                other => return Err(self.broken(format!("a line of type {other}"))),
            };
            return Ok(true);
        }
    }

    /// A regular file of the layer; links in its path lead nowhere but within the layer.
    fn open_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let file = File::from(rustix::fs::openat2(&self.files, name, flags, Mode::empty(), resolve)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(file)
    }
}

impl Read for Assembly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.piece {
                Piece::Bytes(bytes) => bytes.read(into)?,
                Piece::File { file, .. } => file.read(into)?,
            };
            if read > 0 {
                return Ok(read);
            }
            if let Piece::File { file, name } = &self.piece
                && file.limit() > 0
            {
                return Err(self.broken(format!("file {name} has become shorter")));
            }
            self.piece = Piece::Bytes(io::Cursor::default());
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}
