//! The paths that a checkpointed container had removed, as the beginning of a layer's tar.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// The removals as the beginning of a layer's tar, to be read before the changes. Made as they are read: each takes a
/// block or more, and a checkpoint may name millions.
pub(in crate::sandbox) struct Whiteouts {
    left: std::vec::IntoIter<String>,
    entry: io::Cursor<Vec<u8>>,
}

pub(in crate::sandbox) fn whiteouts(deleted: Vec<String>) -> Whiteouts {
    Whiteouts { left: deleted.into_iter(), entry: io::Cursor::default() }
}

#[cfg(test)]
impl Whiteouts {
    /// Bytes of tar that are made and not read.
    pub(in crate::sandbox) fn in_memory(&self) -> usize {
        self.entry.get_ref().len()
    }
}

impl io::Read for Whiteouts {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.entry.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            let Some(path) = self.left.next() else { return Ok(0) };
            self.entry = io::Cursor::new(whiteout(&path)?);
        }
    }
}

fn whiteout(path: &str) -> io::Result<Vec<u8>> {
    let path = Path::new(path.trim_start_matches('/'));
    let Some(name) = path.file_name() else { return Ok(Vec::new()) };
    let mut marked = b".wh.".to_vec();
    marked.extend_from_slice(OsStr::as_bytes(name));
    let path = path.with_file_name(OsString::from_vec(marked));
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(0);
    let mut tar = Builder::new(Vec::new());
    tar.append_data(&mut header, path, io::empty())?;
    let mut bytes = tar.into_inner()?;
    // Without the two blocks by which a tar ends.
    bytes.truncate(bytes.len().saturating_sub(1024));
    Ok(bytes)
}
