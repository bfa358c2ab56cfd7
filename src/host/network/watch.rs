//! Notices that the configuration directory changed, appeared or vanished.
//!
//! Sees renames into the directory as well as writes, a plugin drop-in directory, and the creation of any missing part
//! of the path. Never reads configurations.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Events within this time, as when a package is installed, cause one reload.
const SETTLE: Duration = Duration::from_millis(50);
/// Room for some dozens of events; what does not fit is read next.
const BUFFER: usize = 8 << 10;

/// A watch of the directory, armed from the start.
pub(super) struct Watch {
    fd: AsyncFd<OwnedFd>,
    dir: PathBuf,
    /// The nearest existing directory above it: its watch and the name that matters in it.
    above: Option<(i32, OsString)>,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // The flaw is that of types that change their descriptor while registered; an OwnedFd cannot.
        #[expect(
            deprecated,
            reason = "its replacement is unsafe, and sound here for the same reason as this"
        )]
        let fd = AsyncFd::new(fd)?;
        let mut watch = Self { fd, dir: dir.to_owned(), above: None };
        watch.arm()?;
        Ok(watch)
    }

    /// Watches the existing part of the path. Adding an existing watch changes nothing.
    fn arm(&mut self) -> io::Result<()> {
        let entries = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        let mut child = self.dir.clone();
        while let Some(parent) = child.parent().map(Path::to_owned) {
            match inotify::add_watch(&self.fd, &parent, entries | itself) {
                Ok(id) => {
                    self.above = child.file_name().map(|name| (id, name.to_owned()));
                    // Created in the meantime: go down again.
                    if child != self.dir && child.is_dir() {
                        child = self.dir.clone();
                        continue;
                    }
                    break;
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => child = parent,
                Err(error) => return Err(error.into()),
            }
        }
        self.add(&self.dir, entries | itself | WatchFlags::CLOSE_WRITE)
    }

    fn add(&self, dir: &Path, flags: WatchFlags) -> io::Result<()> {
        match inotify::add_watch(&self.fd, dir, flags) {
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Watches the drop-in directory of a network, if there is one. Its creation is an event of the directory.
    pub(super) fn drop_ins(&self, network: &str) {
        let flags =
            WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE | WatchFlags::CLOSE_WRITE;
        if let Err(error) = self.add(&self.dir.join(network), flags | WatchFlags::ONLYDIR) {
            // Log: Each status call reads the directory instead.
            // Do: Create the directory, or raise `fs.inotify.max_user_instances`.
            tracing::warn!(%error, network, "cannot watch the drop-in directory of a CNI network");
        }
    }

    /// Waits for the next change that may matter and lets it settle.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            // An error of try_io means that nothing was there to read: wait on.
            if let Ok(matters) = ready.try_io(|fd| drain(fd.get_ref(), self.above.as_ref()))
                && matters?
            {
                break;
            }
        }
        tokio::time::sleep(SETTLE).await;
        match drain(self.fd.get_ref(), self.above.as_ref()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => self.arm(),
        }
    }
}

/// Takes all pending events; whether one of them matters. `WouldBlock`: there was none.
fn drain(fd: &OwnedFd, above: Option<&(i32, OsString)>) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let (mut seen, mut matters) = (false, false);
    loop {
        match reader.next() {
            Ok(event) => {
                seen = true;
                let itself = event.events().intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF);
                matters |= itself
                    || match above {
                        Some((id, name)) if *id == event.wd() => {
                            event.file_name().is_some_and(|n| n.to_bytes() == name.as_bytes())
                        }
                        _ => true,
                    };
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) if seen => return Ok(matters),
            Err(error) => return Err(error.into()),
        }
    }
}
