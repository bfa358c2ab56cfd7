//! One container's log file: created, appended to, swapped. Never buffers, never blocks the container: counts and drops
//! what cannot be written, and says so in the log itself when there is room again.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podwright_sys::path::{open_directory_without_links, open_root};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, ftruncate, openat, unlinkat};
use rustix::io::Errno;

use crate::record::{Record, Stamp, Tag};

/// Readable by the owner and the group, like the kubelet's and containerd's files.
const MODE: u32 = 0o640;

/// Mode of directories created for it.
const DIRECTORY_MODE: u32 = 0o755;

/// Segments in one writev; the kernel's limit is 1024, and more gain nothing.
const SEGMENTS: usize = 192;

/// Segments that one record may need.
const SEGMENTS_PER_RECORD: usize = 3;

/// Between two reports of what was lost: a disk may be full and have room many times a second.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

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
    /// The file ends in the middle of a record, which the disk took and did not give back.
    torn: bool,
    dropped: u64,
    /// What of that the log itself says.
    marked: u64,
    /// What of that was reported, and when.
    reported: (u64, Option<Instant>),
    /// Why the last bytes were dropped.
    reason: Option<Errno>,
}

/// Bytes of output that are in no log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) bytes: u64,
    pub(crate) reason: String,
}

impl LogFile {
    /// `top` is the pod's log directory; without it, links are followed up to the file.
    pub(crate) fn open(path: &Path, top: Option<&Path>) -> Result<Self, LogError> {
        let place = Place { path: path.into(), top: top.map(Into::into) };
        let (file, made) = place.open(Some(Mode::from_raw_mode(DIRECTORY_MODE)))?;
        Ok(Self::new(place, file, made))
    }

    fn new(place: Place, file: OwnedFd, made: bool) -> Self {
        Self { place, file, made, torn: false, dropped: 0, marked: 0, reported: (0, None), reason: None }
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

    /// What was lost since it was last reported; `last`: also if that was a moment ago.
    pub(crate) fn loss(&mut self, now: Instant, last: bool) -> Option<Loss> {
        let (reported, at) = self.reported;
        let is_due = last || at.is_none_or(|at| now.duration_since(at) >= REPORT_INTERVAL);
        if self.dropped == reported || !is_due {
            return None;
        }
        self.reported = (self.dropped, Some(now));
        Some(Loss { bytes: self.dropped - reported, reason: self.reason() })
    }

    fn reason(&self) -> String {
        self.reason.map(|errno| io::Error::from(errno).to_string()).unwrap_or_default()
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
        // Says how much is missing here, with the first records that have room again, and not before: marks alone would fill
        // what little room there is.
        let missing = self.dropped - self.marked;
        let mark = (missing > 0).then(|| {
            let (time, reason) = (Stamp::now().text(), self.reason());
            format!("{time} stderr F podwright: {missing} bytes of output are missing here: {reason}\n")
        });
        let total: usize = segments.iter().map(|segment| segment.len()).sum();
        let written = match &mark {
            None => self.put(segments, 0),
            Some(mark) => {
                let marked: Vec<IoSlice<'_>> = std::iter::once(mark.as_bytes())
                    .chain(segments.iter().map(|segment| &**segment))
                    .map(IoSlice::new)
                    .collect();
                self.put(&marked, mark.len())
            }
        };
        segments.clear();
        if written > 0 {
            self.marked = self.dropped;
        }
        self.dropped = self.dropped.saturating_add(u64::try_from(total - written).unwrap_or(u64::MAX));
    }

    /// Appends whole records, and returns how many of their bytes are in the file beside the first `mark` bytes, which stay with
    /// a record only.
    fn put(&mut self, segments: &[IoSlice<'_>], mark: usize) -> usize {
        let total: usize = segments.iter().map(|segment| segment.len()).sum();
        let written = loop {
            match rustix::io::writev(&self.file, segments) {
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.reason = Some(error);
                    return 0;
                }
                Ok(written) => break written,
            }
        };
        if written == total {
            return total - mark;
        }
        // The kernel gives a reason only for a write that wrote nothing.
        self.reason = Some(Errno::NOSPC);
        let whole = Some(records_within(segments, written)).filter(|whole| *whole > mark).unwrap_or(0);
        if written > whole && self.cut(written - whole).is_err() {
            self.torn = true;
        }
        whole.saturating_sub(mark)
    }

    /// Takes the last bytes of the file away again.
    fn cut(&self, bytes: usize) -> Result<(), Errno> {
        let size = u64::try_from(fstat(&self.file)?.st_size).unwrap_or_default();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // Somebody else has truncated it.
        let kept = size.checked_sub(bytes).ok_or(Errno::INVAL)?;
        ftruncate(&self.file, kept)
    }
}

/// Bytes of the records that the first `written` bytes hold whole. A line break is the last byte of a record, and nowhere else.
fn records_within(segments: &[IoSlice<'_>], written: usize) -> usize {
    let (mut before, mut whole) = (0, 0);
    for segment in segments {
        let there = &segment[..segment.len().min(written - before)];
        if let Some(at) = memchr::memrchr(b'\n', there) {
            whole = before + at + 1;
        }
        before += there.len();
        if before == written {
            break;
        }
    }
    whole
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
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = LogFile::new(Place { path: "/dev/full".into(), top: None }, full.into(), false);
        let begun = Instant::now();
        assert_eq!(log.loss(begun, true), None);
        let lose = |log: &mut LogFile| {
            log.append(StreamName::Stdout, Records::new(b"12345\n", 9, Pause::None));
        };
        lose(&mut log);
        assert_eq!(log.dropped_bytes(), 40 + 6);
        let reason = "No space left on device (os error 28)".to_owned();
        assert_eq!(log.loss(begun, false), Some(Loss { bytes: 46, reason: reason.clone() }));
        lose(&mut log);
        assert_eq!(log.loss(begun, false), None, "a moment later");
        lose(&mut log);
        assert_eq!(log.loss(begun + REPORT_INTERVAL, false), Some(Loss { bytes: 92, reason }));
        lose(&mut log);
        assert_eq!(log.loss(begun + REPORT_INTERVAL, true).unwrap().bytes, 46, "at its end");
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
        // Some were lost, more than once.
        log.append(StreamName::Stdout, Records::new(lines_of(7).as_bytes(), 2000, Pause::None));
        let lost = log.dropped_bytes();
        std::fs::remove_file(&ballast).unwrap();
        log.append(StreamName::Stderr, Records::new(b"space again\n", 2000, Pause::None));
        log.append(StreamName::Stderr, Records::new(b"and again\n", 2000, Pause::None));
        let all = lines(&path);
        unmount(dir.path(), UnmountFlags::DETACH).unwrap();
        let whole = format!("stdout F {}", line.trim_end());
        let others: Vec<_> = all.iter().filter(|record| **record != whole).collect();
        let missing = format!(
            "stderr F podwright: {lost} bytes of output are missing here: No space left on device (os error 28)"
        );
        assert_eq!(others, [&missing, "stderr F space again", "stderr F and again"]);
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
