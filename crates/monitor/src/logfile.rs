//! One container's log file: created, appended to, swapped. Never buffers, never blocks the container: counts and drops
//! what cannot be written.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use podwright_sys::path::{open_directory_without_links, open_root};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, openat, unlinkat};

use crate::record::{Record, Stamp, Tag};

/// Readable by the owner and the group, like the kubelet's and containerd's files.
const MODE: u32 = 0o640;

/// Mode of directories created for it.
const DIRECTORY_MODE: u32 = 0o755;

/// Segments in one writev; the kernel's limit is 1024, and more gain nothing.
const SEGMENTS: usize = 192;

/// Segments that one record may need.
const SEGMENTS_PER_RECORD: usize = 3;

/// The container's stream that a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

impl StreamName {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("open the directory of log file {path:?}, where no link is followed: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("open log file {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("log path {path:?} is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("log file {path:?} has other names: it may be another file, hard-linked here")]
    HardLink { path: PathBuf },
}

#[derive(Debug)]
pub(crate) struct LogFile {
    place: Place,
    file: OwnedFd,
    /// We created it and may remove it if the container never started.
    made: bool,
    /// The file ends in the middle of a record, because the disk was full.
    torn: bool,
    dropped: u64,
}

impl LogFile {
    /// `top` is the pod's log directory; without it, links are followed up to the file.
    pub(crate) fn open(path: &Path, top: Option<&Path>) -> Result<Self, LogError> {
        let place = Place { path: path.into(), top: top.map(Into::into) };
        let (file, made) = place.open(Some(Mode::from_raw_mode(DIRECTORY_MODE)))?;
        Ok(Self { place, file, made, torn: false, dropped: 0 })
    }

    /// Switches to the file now at the path, creating it if missing. On error nothing changes.
    pub(crate) fn reopen(&mut self) -> Result<(), LogError> {
        let (file, made) = self.place.open(None)?;
        self.file = file;
        self.made = made;
        self.torn = false;
        Ok(())
    }

    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped
    }

    /// Removes the file if this object created it and wrote nothing.
    pub(crate) fn discard(self) {
        if self.made
            && fstat(&self.file).is_ok_and(|stat| stat.st_size == 0)
            && let Ok((directory, name)) = self.place.directory(None)
        {
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
    }

    /// Appends records with the current time, each in one writev.
    pub(crate) fn append<'a>(&mut self, stream: StreamName, records: impl Iterator<Item = Record<'a>>) {
        let mut records = records.peekable();
        if records.peek().is_none() {
            return;
        }
        let (time, stream) = (Stamp::now().text(), stream.name());
        let (full, partial) = (format!("{time} {stream} F "), format!("{time} {stream} P "));
        let mut segments: Vec<IoSlice<'_>> = Vec::with_capacity(SEGMENTS);
        for record in records {
            if segments.len() + SEGMENTS_PER_RECORD > SEGMENTS {
                self.write(&mut segments);
            }
            segments.push(IoSlice::new(match record.tag {
                Tag::Full => full.as_bytes(),
                Tag::Partial => partial.as_bytes(),
            }));
            segments.push(IoSlice::new(record.bytes));
            if !record.terminated {
                segments.push(IoSlice::new(b"\n"));
            }
        }
        self.write(&mut segments);
    }

    fn write(&mut self, segments: &mut Vec<IoSlice<'_>>) {
        if self.torn && rustix::io::write(&self.file, b"\n").is_ok() {
            self.torn = false;
        }
        let total: usize = segments.iter().map(|segment| segment.len()).sum();
        let written = loop {
            match rustix::io::writev(&self.file, segments) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break 0,
                Ok(written) => break written,
            }
        };
        if written < total {
            self.dropped = self.dropped.saturating_add(u64::try_from(total - written).unwrap_or(u64::MAX));
            if written > 0 {
                self.torn = byte_at(segments, written - 1) != Some(b'\n');
            }
        }
        segments.clear();
    }
}

fn byte_at(segments: &[IoSlice<'_>], mut index: usize) -> Option<u8> {
    for segment in segments {
        match segment.get(index) {
            Some(byte) => return Some(*byte),
            None => index -= segment.len(),
        }
    }
    None
}

/// The location of a log file. Resolved again each time, since the kubelet moves files away.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    top: Option<PathBuf>,
}

impl Place {
    /// The directory, and the file's name in it. A container with a host path mount of the log directory could plant a
    /// link anywhere on the way to have other files written.
    fn directory(&self, make: Option<Mode>) -> io::Result<(OwnedFd, &std::ffi::OsStr)> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = match &self.top {
            Some(top) => {
                // Otherwise unchecked links would be followed.
                let below =
                    parent.strip_prefix(top).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                open_directory_without_links(top, below, make)?
            }
            None => {
                if make.is_some() {
                    std::fs::create_dir_all(parent)?;
                }
                open_root(parent)?
            }
        };
        Ok((directory, name))
    }

    /// Opens for appending and returns whether the file was created. It may not be a symbolic link, and opening never
    /// blocks, whatever is there.
    fn open(&self, make: Option<Mode>) -> Result<(OwnedFd, bool), LogError> {
        let path = || self.path.clone();
        let (directory, name) =
            self.directory(make).map_err(|source| LogError::Directory { path: path(), source })?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(MODE);
        let failed = |error: rustix::io::Errno| LogError::Open { path: path(), source: error.into() };
        let new = openat(&directory, name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode);
        let (file, made) = match new {
            Ok(file) => (file, true),
            Err(rustix::io::Errno::EXIST) => {
                // Opening a device may have effects, so the type is known before.
                let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let found = openat(&directory, name, place, Mode::empty()).map_err(failed)?;
                self.check(&fstat(&found).map_err(failed)?)?;
                let found = format!("/proc/self/fd/{}", found.as_raw_fd());
                (openat(CWD, found, flags, Mode::empty()).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        if made {
            // The umask is ours (022), but a default ACL of the directory may have cut the mode; failing is harmless.
            let _ = fchmod(&file, mode);
        }
        Ok((file, made))
    }

    fn check(&self, found: &Stat) -> Result<(), LogError> {
        let path = || self.path.clone();
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => {
                return Err(LogError::Open { path: path(), source: rustix::io::Errno::LOOP.into() });
            }
            _ => return Err(LogError::NotAFile { path: path() }),
        }
        if found.st_nlink > 1 { Err(LogError::HardLink { path: path() }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::record::{Pause, Records};

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn records_are_byte_exact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/0.log");
        let mut log = LogFile::open(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        log.append(StreamName::Stdout, Records::new(b"one\ntwo\r\n\nrest", 16, Pause::End));
        log.append(StreamName::Stderr, Records::new(b"0123456789abcdefg\n", 16, Pause::None));
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap();
        let (time, rest) = first.split_once(' ').unwrap();
        assert_eq!((time.len(), &time[10..11], &time[19..20], &time[29..]), (30, "T", ".", "Z"));
        assert_eq!(rest, "stdout F one");
        let expected = [
            "stdout F one",
            "stdout F two",
            "stdout F ",
            "stdout P rest",
            "stderr P 0123456789abcdef",
            "stderr F g",
        ];
        assert_eq!(lines(&path), expected);
    }

    #[test]
    fn many_records_span_several_writes_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, None).unwrap();
        let data: String = (0..1000).map(|number| format!("{number}\n")).collect();
        log.append(StreamName::Stdout, Records::new(data.as_bytes(), 100, Pause::None));
        let expected: Vec<String> = (0..1000).map(|number| format!("stdout F {number}")).collect();
        assert_eq!(lines(&path), expected);
    }

    #[test]
    fn reopening_swaps_and_a_link_or_pipe_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("old"));
        let mut log = LogFile::open(&path, None).unwrap();
        log.append(StreamName::Stdout, Records::new(b"1\n", 9, Pause::None));
        std::fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        log.append(StreamName::Stdout, Records::new(b"2\n", 9, Pause::None));
        assert_eq!((lines(&old), lines(&path)), (vec!["stdout F 1".into()], vec!["stdout F 2".into()]));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&old, &path).unwrap();
        assert!(matches!(log.reopen(), Err(LogError::Open { .. })));
        log.append(StreamName::Stdout, Records::new(b"3\n", 9, Pause::None));
        assert_eq!(lines(&old), ["stdout F 1"]);
        // Nor another name of a file that is somewhere else, perhaps another tenant's log.
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&old, &path).unwrap();
        assert!(matches!(log.reopen(), Err(LogError::HardLink { .. })));
        assert!(matches!(LogFile::open(&path, None), Err(LogError::HardLink { .. })));
        assert_eq!(lines(&old), ["stdout F 1"]);
        // A device is not even opened: this one would say ENXIO, as it belongs to no driver.
        std::fs::remove_file(&path).unwrap();
        let device = rustix::fs::makedev(4095, 1);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device).unwrap();
        assert!(matches!(log.reopen(), Err(LogError::NotAFile { .. })));
        assert!(matches!(LogFile::open(&path, None), Err(LogError::NotAFile { .. })));
    }

    #[test]
    fn no_link_is_followed_below_the_pods_log_directory() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (pods, trap) = (dir.path().join("pods"), dir.path().join("trap"));
        std::fs::create_dir(&trap).unwrap();
        std::fs::create_dir(&pods).unwrap();
        // The administrator's.
        let logs = dir.path().join("logs");
        symlink(&pods, &logs).unwrap();
        let (top, path) = (logs.join("pod"), logs.join("pod/main/0.log"));
        let mut log = LogFile::open(&path, Some(&top)).unwrap();
        log.append(StreamName::Stdout, Records::new(b"1\n", 9, Pause::None));
        let planted = |at: &Path| {
            std::fs::rename(at, at.with_extension("real")).unwrap();
            symlink(&trap, at).unwrap();
        };
        let refused = |log: &mut LogFile| {
            assert!(matches!(log.reopen(), Err(LogError::Directory { .. })));
            assert!(matches!(LogFile::open(&path, Some(&top)), Err(LogError::Directory { .. })));
            log.append(StreamName::Stdout, Records::new(b"2\n", 9, Pause::None));
        };
        planted(&top.join("main"));
        refused(&mut log);
        std::fs::remove_file(top.join("main")).unwrap();
        planted(&top);
        refused(&mut log);
        assert_eq!(std::fs::read_dir(&trap).unwrap().count(), 0);
        assert_eq!(lines(&pods.join("pod.real/main.real/0.log")).len(), 3);
        // A path that is not below it is refused.
        let beside = dir.path().join("beside.log");
        assert!(matches!(LogFile::open(&beside, Some(&top)), Err(LogError::Directory { .. })));
        assert!(!beside.exists());
    }

    #[test]
    fn a_full_disk_is_counted_and_survived() {
        let mut log = LogFile {
            place: Place { path: "/dev/full".into(), top: None },
            file: std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
            made: false,
            torn: false,
            dropped: 0,
        };
        log.append(StreamName::Stdout, Records::new(b"12345\n", 9, Pause::None));
        assert_eq!(log.dropped_bytes(), 40 + 6);
    }

    #[test]
    fn a_record_torn_by_a_full_disk_spoils_no_other() {
        use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
        let (path, ballast) = (dir.path().join("0.log"), dir.path().join("ballast"));
        std::fs::write(&ballast, vec![0; 32 * 1024]).unwrap();
        let mut log = LogFile::open(&path, None).unwrap();
        let line = format!("{}\n", "x".repeat(1000));
        let lines_of = |count: usize| line.repeat(count);
        while log.dropped_bytes() == 0 {
            log.append(StreamName::Stdout, Records::new(lines_of(7).as_bytes(), 2000, Pause::None));
        }
        assert!(log.torn);
        std::fs::remove_file(&ballast).unwrap();
        log.append(StreamName::Stderr, Records::new(b"space again\n", 2000, Pause::None));
        let all = lines(&path);
        unmount(dir.path(), UnmountFlags::DETACH).unwrap();
        assert_eq!(all.last().unwrap(), "stderr F space again");
        let whole = format!("stdout F {}", line.trim_end());
        let torn = all.iter().filter(|record| **record != whole).count();
        assert_eq!(torn, 2, "the torn one and the last");
    }

    #[test]
    fn an_unused_file_is_removed_only_when_ours_and_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        LogFile::open(&path, None).unwrap().discard();
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        LogFile::open(&path, None).unwrap().discard();
        assert!(path.exists());
    }
}
