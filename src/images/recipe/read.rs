//! Reproducing a tar. Copies the recipe's own bytes and those of the files that it names, which it opens beneath the
//! layer's root without following a symlink. The recipe is our own, but may be damaged: every length is bounded. Its
//! paths are a layer's: the look-ups for all prefixes of a path cost one pass over it.

use super::{
    MAGIC, MAX_INLINE, MAX_REPLACED_INDEX, MAX_WINDOW_LOG, RECIPE, REPLACED, REPLACED_INDEX, REPLACED_MAGIC,
    VERSION,
};
use crate::images::error::ImageError;
use crate::images::unpack::MAX_PATH;
use rustix::fd::OwnedFd;
use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Files with damaged data reported per reading; more add nothing.
const MAX_TOLD: usize = 64;

/// How to treat damaged file data.
#[derive(Debug)]
pub(crate) enum Damage {
    /// An error in place of the tar's rest.
    Fails,
    /// Record the path and the fault, replace missing data by zeros, and continue.
    Told(Vec<(Vec<u8>, &'static str)>),
}

/// A tar under way.
pub(crate) struct Recreated {
    recipe: zstd::stream::read::Decoder<'static, BufReader<File>>,
    recipe_path: PathBuf,
    layer: PathBuf,
    root: OwnedFd,
    replaced: Option<Replaced>,
    damage: Damage,
    /// Files with data so far.
    files: u64,
    open: Option<(Vec<u8>, Option<OwnedFd>)>,
    now: Now,
    total: u64,
}

enum Now {
    /// The next segment must be read.
    Between,
    Inline(Vec<u8>, usize),
    File(Extent),
    Ended,
    /// An error was returned; nothing that follows would be the tar.
    Failed,
}

struct Extent {
    at: u64,
    left: u64,
    expected: u32,
    crc: crc32fast::Hasher,
    /// The missing rest was reported.
    lacking: bool,
}

/// Whether the layer has a recipe.
pub(crate) fn exists(layer_dir: &Path) -> bool {
    layer_dir.join(RECIPE).symlink_metadata().is_ok()
}

fn layer_name(layer_dir: &Path) -> String {
    layer_dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Recreated {
    /// Opens the recipe of `layers/<key>`.
    pub(crate) fn open(layer_dir: &Path, damage: Damage) -> Result<Self, ImageError> {
        let recipe_path = layer_dir.join(RECIPE);
        let file = match File::open(&recipe_path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::NoRecipe { layer: layer_name(layer_dir) });
            }
            Err(e) => return Err(ImageError::io("open", &recipe_path, e)),
        };
        let root_path = layer_dir.join("fs");
        let root = open_dir(&root_path)?;
        let begin = || -> io::Result<_> {
            let mut recipe = zstd::stream::read::Decoder::new(file)?;
            recipe.window_log_max(MAX_WINDOW_LOG)?;
            let mut start = [0u8; MAGIC.len() + 1];
            recipe.read_exact(&mut start)?;
            Ok((recipe, start))
        };
        let broken = |reason: String| ImageError::DamagedLayer {
            layer: layer_name(layer_dir),
            path: RECIPE.into(),
            reason,
        };
        let (recipe, start) = begin().map_err(|e| broken(e.to_string()))?;
        if !start.starts_with(MAGIC) {
            return Err(broken("it does not begin as a recipe does".into()));
        }
        if start[MAGIC.len()] != VERSION {
            return Err(broken(format!(
                "it has version {}, this daemon knows {VERSION}",
                start[MAGIC.len()]
            )));
        }
        let replaced = Replaced::read(&layer_dir.join(REPLACED)).map_err(|e| ImageError::DamagedLayer {
            layer: layer_name(layer_dir),
            path: format!("{REPLACED}/{REPLACED_INDEX}"),
            reason: e.to_string(),
        })?;
        Ok(Self {
            recipe,
            recipe_path,
            layer: layer_dir.to_owned(),
            root,
            replaced,
            damage,
            files: 0,
            open: None,
            now: Now::Between,
            total: 0,
        })
    }

    /// Faults of files' data found so far, where they are recorded.
    pub(crate) fn into_told(self) -> Vec<(Vec<u8>, &'static str)> {
        match self.damage {
            Damage::Fails => Vec::new(),
            Damage::Told(told) => told,
        }
    }

    fn broken(&self, reason: impl Into<String>) -> io::Error {
        io::Error::other(ImageError::DamagedLayer {
            layer: layer_name(&self.layer),
            path: RECIPE.into(),
            reason: reason.into(),
        })
    }

    /// Reads of the recipe itself.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.recipe.read_exact(into).map_err(|e| self.broken(e.to_string()))
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn segment(&mut self) -> io::Result<Now> {
        let mut kind = [0u8; 1];
        self.fill(&mut kind)?;
        match &kind {
            b"I" => {
                let mut length = [0u8; 4];
                self.fill(&mut length)?;
                let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
                if length == 0 || length > MAX_INLINE {
                    return Err(self.broken("a segment has a length that none is written with"));
                }
                let mut bytes = match std::mem::replace(&mut self.now, Now::Between) {
                    Now::Inline(bytes, _) => bytes,
                    _ => Vec::new(),
                };
                bytes.resize(length, 0);
                self.fill(&mut bytes)?;
                Ok(Now::Inline(bytes, 0))
            }
            b"F" => {
                let mut length = [0u8; 2];
                self.fill(&mut length)?;
                let length = usize::from(u16::from_le_bytes(length));
                if length == 0 || length > MAX_PATH {
                    return Err(self.broken("a path has a length that none is written with"));
                }
                let mut path = vec![0; length];
                self.fill(&mut path)?;
                let opened = self.open_file(&path);
                self.files += 1;
                self.open = Some((path, None));
                match opened {
                    Ok(file) => self.open = self.open.take().map(|(path, _)| (path, Some(file))),
                    Err(reason) => self.damaged(reason)?,
                }
                self.extent()
            }
            b"C" if self.open.is_some() => self.extent(),
            b"E" => {
                let total = self.number()?;
                if total != self.total {
                    return Err(self.broken("it made another length than the tar had"));
                }
                // The frame's checksum is checked when its end is read.
                match self.recipe.read(&mut [0u8; 1]) {
                    Ok(0) => Ok(Now::Ended),
                    Ok(_) => Err(self.broken("bytes follow its end")),
                    Err(e) => Err(self.broken(e.to_string())),
                }
            }
            _ => Err(self.broken("a segment is of unknown kind")),
        }
    }

    fn extent(&mut self) -> io::Result<Now> {
        let (at, left) = (self.number()?, self.number()?);
        let mut expected = [0u8; 4];
        self.fill(&mut expected)?;
        if left == 0 || at.checked_add(left).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(self.broken("an extent that none is written with"));
        }
        let lacking = self.open.as_ref().is_none_or(|(_, file)| file.is_none());
        let (expected, crc) = (u32::from_le_bytes(expected), crc32fast::Hasher::new());
        Ok(Now::File(Extent { at, left, expected, crc, lacking }))
    }

    /// Opens the file that the recipe names, or what became of it.
    fn open_file(&self, path: &[u8]) -> Result<OwnedFd, &'static str> {
        let moved = self.replaced.as_ref().and_then(|r| r.place(self.files, path).map(|p| (&r.directory, p)));
        let (root, path) = match &moved {
            Some((directory, path)) => (*directory, path.as_slice()),
            None => (&self.root, path),
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = loop {
            match fs::openat2(root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(file) => break file,
                Err(Errno::NOENT | Errno::NOTDIR) => return Err("it is missing"),
                Err(Errno::LOOP) => return Err("it is a symbolic link or behind one"),
                Err(_) => return Err("it cannot be opened"),
            }
        };
        match fs::fstat(&file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(file),
            _ => Err("it is not a regular file"),
        }
    }

    /// Something is wrong with the current file.
    fn damaged(&mut self, reason: &'static str) -> io::Result<()> {
        let path = self.open.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
        match &mut self.damage {
            Damage::Fails => Err(io::Error::other(ImageError::DamagedLayer {
                layer: layer_name(&self.layer),
                path: crate::images::error::cut(&String::from_utf8_lossy(&path)),
                reason: reason.into(),
            })),
            Damage::Told(told) => {
                if told.len() < MAX_TOLD && told.last().is_none_or(|(last, _)| *last != path) {
                    told.push((path, reason));
                }
                Ok(())
            }
        }
    }

    fn read_file(&mut self, mut extent: Extent, into: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(extent.left).unwrap_or(usize::MAX).min(into.len());
        let file = self.open.as_ref().and_then(|(_, file)| file.as_ref()).filter(|_| !extent.lacking);
        let read = file.map_or(Ok(0), |file| rustix::io::pread(file, &mut into[..wanted], extent.at));
        let length = match read {
            Ok(length) if length > 0 => length,
            Err(Errno::INTR) => {
                self.now = Now::File(extent);
                return Err(io::ErrorKind::Interrupted.into());
            }
            other => {
                if !extent.lacking {
                    self.damaged(if other.is_ok() { "it is too short" } else { "it cannot be read" })?;
                    extent.lacking = true;
                }
                into[..wanted].fill(0);
                wanted
            }
        };
        extent.crc.update(&into[..length]);
        let step = u64::try_from(length).unwrap_or_default();
        extent.at += step;
        extent.left -= step;
        if extent.left > 0 {
            self.now = Now::File(extent);
        } else {
            self.now = Now::Between;
            if !extent.lacking && extent.crc.finalize() != extent.expected {
                self.damaged("its content has changed")?;
            }
        }
        Ok(length)
    }
}

impl Read for Recreated {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = if into.is_empty() { Ok(0) } else { self.step(into) };
        if read.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
            self.now = Now::Failed;
        }
        read
    }
}

impl Recreated {
    fn step(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = match std::mem::replace(&mut self.now, Now::Between) {
                Now::Ended => {
                    self.now = Now::Ended;
                    return Ok(0);
                }
                Now::Failed => return Err(self.broken("it was read on after an error")),
                Now::Inline(bytes, at) if at < bytes.len() => {
                    let length = into.len().min(bytes.len() - at);
                    into[..length].copy_from_slice(&bytes[at..at + length]);
                    self.now = Now::Inline(bytes, at + length);
                    length
                }
                Now::File(extent) => self.read_file(extent, into)?,
                spent @ (Now::Inline(..) | Now::Between) => {
                    self.now = spent;
                    self.now = self.segment()?;
                    continue;
                }
            };
            self.total += u64::try_from(length).unwrap_or_default();
            return Ok(length);
        }
    }
}

impl std::fmt::Debug for Recreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recreated").field("recipe", &self.recipe_path).finish_non_exhaustive()
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, ImageError> {
    fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ImageError::io("open", path, e))
}

/// Files that later entries of the layer replaced.
struct Replaced {
    directory: OwnedFd,
    keys: RandomState,
    /// The hash of a path, see `prefixes` → the paths that have it.
    places: HashMap<u64, Vec<Place>>,
}

/// A path of which something was replaced.
struct Place {
    path: Vec<u8>,
    /// (files of the recipe before it was replaced, number), rising.
    moves: Vec<(u64, u64)>,
}

/// The prefixes of the path that are paths themselves, the whole one last: length and hash, in one pass.
fn prefixes(keys: &RandomState, path: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let (mut hasher, mut end) = (keys.build_hasher(), 0);
    path.split(|b| *b == b'/').map(move |part| {
        hasher.write(part);
        hasher.write_u8(b'/');
        let at = end + part.len();
        end = at + 1;
        (at, hasher.finish())
    })
}

impl Replaced {
    fn read(directory: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(directory.join(REPLACED_INDEX)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let wrong = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut bytes = Vec::new();
        (&mut file).take(MAX_REPLACED_INDEX + 1).read_to_end(&mut bytes)?;
        let Some((body, sum)) = bytes.split_last_chunk::<4>() else { return Err(wrong("it is too short")) };
        let mut crc = crc32fast::Hasher::new();
        crc.update(body);
        if crc.finalize() != u32::from_le_bytes(*sum) {
            return Err(wrong("its checksum is wrong"));
        }
        let mut rest = body
            .strip_prefix(REPLACED_MAGIC)
            .and_then(|b| b.strip_prefix(&[VERSION]))
            .ok_or_else(|| wrong("it does not begin as such a list does"))?;
        let keys = RandomState::new();
        let mut places: HashMap<u64, Vec<Place>> = HashMap::new();
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let record = rest.split_first_chunk::<8>().and_then(|(until, rest)| {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
                Some((u64::from_le_bytes(*until), path, rest))
            });
            let (until, path, next) = record.ok_or_else(|| wrong("it ends within a record"))?;
            let hash = prefixes(&keys, path).last().map_or(0, |(_, hash)| hash);
            let same = places.entry(hash).or_default();
            match same.iter_mut().find(|place| place.path == path) {
                Some(place) => place.moves.push((until, number)),
                None => same.push(Place { path: path.to_vec(), moves: vec![(until, number)] }),
            }
            rest = next;
        }
        let directory = open_dir(directory).map_err(io::Error::other)?;
        Ok(Some(Self { directory, keys, places }))
    }

    /// Where in `replaced` the data of the recipe's file number `file` at `path` is, if the file or one of its parent
    /// directories was replaced.
    fn place(&self, file: u64, path: &[u8]) -> Option<Vec<u8>> {
        let (number, end) = prefixes(&self.keys, path)
            .filter_map(|(end, hash)| {
                let place = self.places.get(&hash)?.iter().find(|place| place.path == path[..end])?;
                let moves = &place.moves;
                let next = moves.partition_point(|(until, _)| *until <= file);
                Some((moves.get(next)?.1, end))
            })
            .min()?;
        Some([number.to_string().as_bytes(), &path[end..]].concat())
    }
}
