//! Reads tar entries from a stream with bounded memory. Knows the format, never the file system.
//!
//! Bounds: what an entry keeps in memory is at most one PAX header (`MAX_PAX`), two long names (`MAX_LONG_NAME`) and a sparse
//! map (`MAX_SPARSE` ranges). Headers before an entry are counted and few (`MAX_HEADERS`), so that a tar of headers alone
//! ends. The time is linear in the bytes of the tar.
//!
//! The `tar` crate is not used here: it reads PAX and GNU name records into memory whatever their size.

use super::header::{BLOCK, Header, OldSparse, ranges};
use super::pax::{Pax, decimal};
use super::sparse::Map;
use super::{Blame, MAX_HEADERS, MAX_LONG_NAME, MAX_PAX, MAX_SPARSE};
use crate::images::error::ImageError;
use crate::images::recipe::Recorder;
use std::io::BufRead;

/// One entry, with every override applied. Its data stands next in the stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Headers that came before it, for it or for all.
    pub(super) headers: u64,
}

/// What an entry makes.
#[derive(Debug)]
pub(super) enum Kind {
    /// A file with this many bytes of data, and where they belong if it has holes.
    File {
        size: u64,
        sparse: Option<Map>,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Who is told of the bytes that stand in no file.
pub(super) trait Note {
    /// These pass now.
    fn inline(&mut self, bytes: &[u8]) -> Result<(), ImageError>;
}

impl Note for Recorder {
    fn inline(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        Self::inline(self, bytes)
    }
}

/// A tar stream.
#[derive(Debug)]
pub(super) struct TarReader<R, N> {
    pub(super) source: R,
    pub(super) blame: Blame,
    /// Told of every byte that passes: by the reader, but for file data, which only its writer knows the place of.
    pub(super) recorder: N,
    /// Unread bytes of the current entry's data, and of its padding.
    pub(super) left: u64,
    padding: u64,
}

impl<R: BufRead, N: Note> TarReader<R, N> {
    pub(super) fn new(source: R, recorder: N, blame: Blame) -> Self {
        Self { source, blame, recorder, left: 0, padding: 0 }
    }

    /// The next entry, after skipping what is left of the last one. None at the end mark or a clean end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut pax = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut headers = 0;
        loop {
            if headers > MAX_HEADERS {
                return Err(self.blame.limit("the headers before an entry", MAX_HEADERS, "headers"));
            }
            self.skip_rest()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let header = Header::parse(&block)
                .map_err(|field| self.blame.corrupt(format!("tar header with a bad {field}")))?;
            match header.kind {
                b'x' => {
                    let bytes = self.record(header.size, MAX_PAX, "a PAX header")?;
                    pax = Pax::parse(&bytes).map_err(|reason| self.blame.corrupt(reason))?;
                }
                b'g' => self.begin(header.size),
                b'L' => long_path = Some(self.name_record(header.size)?),
                b'K' => long_link = Some(self.name_record(header.size)?),
                _ => {
                    let entry = self.entry(header, pax, long_path, long_link)?;
                    return Ok(Some(Entry { headers, ..entry }));
                }
            }
            headers += 1;
        }
    }

    fn entry(
        &mut self,
        header: Header,
        mut pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ImageError> {
        let path = pax.sparse.name.take().or(pax.path.take()).or(long_path).unwrap_or(header.path);
        let link = pax.link.take().or(long_link).unwrap_or(header.link);
        let id = |value: u64| {
            // The highest value means "unchanged" to chown.
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.blame.hostile(&path, "its owner does not fit 32 bits"))
        };
        let (uid, gid) = (id(pax.uid.unwrap_or(header.uid))?, id(pax.gid.unwrap_or(header.gid))?);
        let size = pax.size.unwrap_or(header.size);
        let kind = match header.kind {
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Char(header.major, header.minor),
            b'4' => Kind::Block(header.major, header.minor),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // V7 marked directories by the slash alone.
            0 | b'0' | b'7' if path.ends_with(b"/") => {
                self.begin(size);
                Kind::Directory
            }
            0 | b'0' | b'7' | b'S' => {
                self.begin(size);
                let map = match header.sparse {
                    Some(old) => Some(self.old_map(old)?),
                    None if pax.sparse.map_in_data() => Some(self.map_in_data(&pax)?),
                    None => pax.sparse.map().map_err(|reason| self.blame.corrupt(reason))?,
                };
                let sparse = map
                    .map(|m| m.check(self.left))
                    .transpose()
                    .map_err(|reason| self.blame.corrupt(reason))?;
                Kind::File { size: self.left, sparse }
            }
            _ => return Err(self.blame.hostile(&path, "its type is unknown")),
        };
        Ok(Entry {
            kind,
            path,
            mode: header.mode,
            uid,
            gid,
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            xattrs: pax.xattrs.into_iter().collect(),
            headers: 0,
        })
    }

    /// GNU old format: further blocks of ranges stand between header and data, outside the size.
    fn old_map(&mut self, old: OldSparse) -> Result<Map, ImageError> {
        let OldSparse { ranges: mut found, mut more, real_size } = old;
        while more {
            let mut block = [0u8; BLOCK];
            self.fill(&mut block)?;
            found.extend(ranges(&block[..504]).ok_or_else(|| self.blame.corrupt("sparse map"))?);
            if found.len() > MAX_SPARSE {
                return Err(self.blame.corrupt("sparse map with too many ranges"));
            }
            more = block[504] != 0;
        }
        Ok(Map { real_size, ranges: found })
    }

    /// PAX 1.0: decimal lines at the start of the data, padded to a block.
    fn map_in_data(&mut self, pax: &Pax) -> Result<Map, ImageError> {
        let (mut numbers, mut wanted, mut line) = (Vec::new(), None, Vec::new());
        while wanted.is_none_or(|n| numbers.len() < n) {
            let mut block = [0u8; BLOCK];
            if self.left < 512 {
                return Err(self.blame.corrupt("sparse map longer than its file"));
            }
            self.fill(&mut block)?;
            self.left -= 512;
            for byte in block {
                if wanted.is_some_and(|n| numbers.len() >= n) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(self.blame.corrupt("sparse map with a bad number"));
                    }
                    continue;
                }
                let number =
                    decimal(&line).ok_or_else(|| self.blame.corrupt("sparse map with a bad number"))?;
                line.clear();
                match wanted {
                    Some(_) => numbers.push(number),
                    None => {
                        let count = usize::try_from(number).ok().filter(|n| *n <= MAX_SPARSE);
                        wanted = Some(
                            2 * count.ok_or_else(|| self.blame.corrupt("sparse map with too many ranges"))?,
                        );
                    }
                }
            }
        }
        pax.sparse.map_from(&numbers).map_err(|reason| self.blame.corrupt(reason))
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % 512;
    }

    fn record(&mut self, size: u64, limit: u64, what: &str) -> Result<Vec<u8>, ImageError> {
        if size > limit {
            return Err(self.blame.limit(what, limit, "bytes"));
        }
        self.begin(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.fill(&mut bytes)?;
        self.left = 0;
        Ok(bytes)
    }

    fn name_record(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        let mut name = self.record(size, MAX_LONG_NAME, "a GNU long name")?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    /// Hands the entry's data over in pieces as they lie in the buffer, with the recorder to be told their places.
    pub(super) fn data(
        &mut self,
        mut sink: impl FnMut(&mut N, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        while self.left > 0 {
            let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
            if buffer.is_empty() {
                return Err(self.blame.corrupt("the tar ends within a file"));
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
            sink(&mut self.recorder, &buffer[..take])?;
            self.source.consume(take);
            self.left -= u64::try_from(take).unwrap_or_default();
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ImageError> {
        self.data(N::inline)?;
        self.left = std::mem::take(&mut self.padding);
        self.data(N::inline)
    }

    /// The next block; None at the end mark (a zero block) or at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ImageError> {
        let mut block = [0u8; BLOCK];
        let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
        if buffer.is_empty() {
            return Ok(None);
        }
        self.fill(&mut block)?;
        Ok((!block.iter().all(|b| *b == 0)).then_some(block))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), ImageError> {
        let mut done = 0;
        while done < into.len() {
            let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
            if buffer.is_empty() {
                return Err(self.blame.corrupt("the tar ends within a header"));
            }
            let take = buffer.len().min(into.len() - done);
            into[done..done + take].copy_from_slice(&buffer[..take]);
            self.recorder.inline(&buffer[..take])?;
            self.source.consume(take);
            done += take;
        }
        Ok(())
    }

    /// Reads what stands behind the end mark, so that the whole stream is hashed.
    pub(super) fn drain(&mut self) -> Result<(), ImageError> {
        loop {
            let buffer = self.source.fill_buf().map_err(|e| self.blame.stream(&e))?;
            let length = buffer.len();
            if length == 0 {
                return Ok(());
            }
            self.recorder.inline(buffer)?;
            self.source.consume(length);
        }
    }
}
