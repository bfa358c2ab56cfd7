//! The entries of a tar as its application reads them, whoever parsed it.

use super::tar::{Entry, TarReader};
use crate::images::error::ImageError;
use crate::images::recipe::Recorder;
use std::io::BufRead;

/// The entries of a tar, one after the other, with its bytes.
pub(super) trait Entries {
    /// The next entry, after what is left of the last one. None at the end mark or a clean end.
    fn next(&mut self) -> Result<Option<Entry>, ImageError>;
    /// The data of the current entry goes into a file: its path without symlinks.
    fn goes_into(&mut self, path: &[u8]);
    /// Hands the entry's data over in pieces as they lie in the buffer, with the recorder to be told their places.
    fn data(
        &mut self,
        sink: impl FnMut(&mut Recorder, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError>;
    /// All of the file's data was handed over.
    fn end_file(&mut self) -> Result<(), ImageError>;
    /// Reads what stands behind the end mark, so that the whole stream is hashed.
    fn drain(&mut self) -> Result<(), ImageError>;
    /// The recorder, when the stream was read to its end.
    fn end(self) -> Result<Recorder, ImageError>;
}

impl<R: BufRead> Entries for TarReader<R, Recorder> {
    fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        self.next()
    }

    fn goes_into(&mut self, path: &[u8]) {
        self.recorder.file(path);
    }

    fn data(
        &mut self,
        sink: impl FnMut(&mut Recorder, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        self.data(sink)
    }

    fn end_file(&mut self) -> Result<(), ImageError> {
        self.recorder.end_file()
    }

    fn drain(&mut self) -> Result<(), ImageError> {
        self.drain()
    }

    fn end(self) -> Result<Recorder, ImageError> {
        Ok(self.recorder)
    }
}
