//! Removes trees of any shape that others made, with bounded memory and descriptors and without recursion: deep
//! directories are moved up before they are emptied. The only place that removes more than one directory.
//!
//! A removal can be done in slices, and goes on behind its caller on one thread that takes turns. Never follows a symlink,
//! never leaves the tree, and never goes into what is mounted in it: that is an error which names it.

use super::walk::open_in;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Directories open at once; deeper ones are moved to the top first.
const MAX_OPEN: usize = 32;
/// How long a caller's own thread removes before the rest goes on behind it: a usual layer takes a few milliseconds.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How long one of several trees that are removed behind is worked on before it is the next one's turn.
const TURN: Duration = Duration::from_millis(50);
/// Trees that wait for their next turn with their directories open, [`MAX_OPEN`] and two each; others are gone into anew.
const KEPT_OPEN: usize = 8;
/// Bytes of a path within a tree that an error shows.
const SHOWN: usize = 200;

/// Why a tree stays.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {entry} in {}: {}", root.display(), cause_of(*cause))]
pub struct RemoveError {
    /// The tree.
    root: PathBuf,
    operation: &'static str,
    /// The end of its path in the tree; escaped, for it is others' text.
    entry: String,
    cause: Errno,
}

fn cause_of(cause: Errno) -> String {
    match cause {
        Errno::BUSY | Errno::XDEV => format!("something is mounted there ({cause})"),
        cause => cause.to_string(),
    }
}

impl From<RemoveError> for std::io::Error {
    fn from(error: RemoveError) -> Self {
        Self::new(Self::from(error.cause).kind(), error)
    }
}

/// What is there of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Something,
}

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    name: CString,
    /// Something was there in this pass, so that there has to be another.
    met: bool,
}

/// A removal under way. It can be given up at any time and begun anew.
struct Removal {
    /// As told in errors.
    root: PathBuf,
    /// The directory that the tree is in, and its name there.
    parent: OwnedFd,
    name: CString,
    levels: Vec<Level>,
    /// The last name of a directory that was moved to the top.
    moved: u64,
}

impl Removal {
    /// None: nothing is there (any more).
    fn begin(root: &Path) -> Result<Option<Self>, RemoveError> {
        let failed =
            |operation, cause| RemoveError { root: root.to_owned(), operation, entry: ".".to_owned(), cause };
        let (Some(above), Some(name)) = (root.parent(), root.file_name()) else {
            return Err(failed("remove", Errno::INVAL));
        };
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let name = CString::new(name.as_bytes()).map_err(|_| failed("remove", Errno::INVAL))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = match fs::openat(CWD, above, flags, Mode::empty()) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(None),
            Err(cause) => return Err(failed("open the directory of", cause)),
        };
        let top = match open_in(&parent, &name) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return match unlink(parent.as_fd(), &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(None),
                    Err(cause) => Err(failed("remove", cause)),
                };
            }
            Err(cause) => return Err(failed("open", cause)),
        };
        let dir = Dir::new(top).map_err(|cause| failed("read", cause))?;
        let levels = vec![Level { dir, name: name.clone(), met: false }];
        Ok(Some(Self { root: root.to_owned(), parent, name, levels, moved: somewhere() }))
    }

    /// Goes on until nothing is left or the time is up.
    fn slice(&mut self, until: Option<Instant>) -> Result<Left, RemoveError> {
        while self.step()? == Left::Something {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Left::Something);
            }
        }
        Ok(Left::Nothing)
    }

    /// Removes one entry, goes one directory down, or one up.
    fn step(&mut self) -> Result<Left, RemoveError> {
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(Left::Nothing) };
        let entry = match level.dir.read() {
            Some(Ok(entry)) => entry,
            // Somebody else removed it.
            Some(Err(Errno::NOENT)) => return self.up(),
            Some(Err(cause)) => return Err(self.failed("read", None, cause)),
            None if level.met => {
                // What was removed, or moved up, may have hidden something from the reading.
                level.met = false;
                level.dir.rewind();
                return Ok(Left::Something);
            }
            None => return self.up(),
        };
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            return Ok(Left::Something);
        }
        level.met = true;
        let down = self.remove(name, entry.file_type()).map_err(|c| self.failed("remove", Some(name), c))?;
        if !down {
            return Ok(Left::Something);
        }
        if depth > MAX_OPEN {
            self.move_up(name).map_err(|cause| self.failed("move up", Some(name), cause))?;
            return Ok(Left::Something);
        }
        match self.fd().and_then(|fd| open_in(fd, name)).and_then(Dir::new) {
            Ok(dir) => self.levels.push(Level { dir, name: name.to_owned(), met: false }),
            // Removed by somebody else, or exchanged: the next pass meets what is there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(cause) => return Err(self.failed("open", Some(name), cause)),
        }
        Ok(Left::Something)
    }

    /// Removes an entry of the deepest directory; true: it is a directory that has to be emptied first.
    fn remove(&self, name: &CStr, kind: FileType) -> Result<bool, Errno> {
        let dir = self.fd()?;
        if kind != FileType::Directory {
            match unlink(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(false),
                // Its kind was not told.
                Err(Errno::ISDIR) => {}
                Err(cause) => return Err(cause),
            }
        }
        match unlink(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
            Err(cause) => Err(cause),
        }
    }

    /// The deepest directory is empty: its name goes.
    fn up(&mut self) -> Result<Left, RemoveError> {
        let Some(done) = self.levels.pop() else { return Ok(Left::Nothing) };
        let is_top = self.levels.is_empty();
        // The top may have another name by now.
        let (parent, name) =
            if is_top { (Ok(self.parent.as_fd()), &self.name) } else { (self.fd(), &done.name) };
        match parent.and_then(|parent| unlink(parent, name, AtFlags::REMOVEDIR)) {
            Ok(()) | Err(Errno::NOENT) if is_top => Ok(Left::Nothing),
            // Somebody made something in it meanwhile.
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_top => {
                let mut top = done;
                top.dir.rewind();
                self.levels.push(top);
                Ok(Left::Something)
            }
            // The parent's next pass meets it again.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                Ok(Left::Something)
            }
            Err(cause) => Err(self.failed("remove", Some(&done.name), cause)),
        }
    }

    /// Moves a directory of the deepest one to the top.
    fn move_up(&mut self, name: &CStr) -> Result<(), Errno> {
        let mut freed = false;
        loop {
            self.moved = self.moved.wrapping_add(1);
            let Some(top) = self.levels.first() else { return Ok(()) };
            let (from, top) = (self.fd()?, top.dir.fd()?);
            let to = format!("moved-{}", self.moved);
            match fs::renameat_with(from, name, top, to, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Flags forbid it, or the top hands its quota project down and the directory has another one.
                Err(Errno::PERM | Errno::ACCESS | Errno::XDEV) if !freed => {
                    freed = true;
                    free(top);
                    free(from);
                    free_entry(from, name);
                }
                Err(cause) => return Err(cause),
            }
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.levels.last().ok_or(Errno::BADF)?.dir.fd()
    }

    fn failed(&self, operation: &'static str, entry: Option<&CStr>, cause: Errno) -> RemoveError {
        let mut path = PathBuf::new();
        for name in self.levels.iter().skip(1).map(|level| level.name.as_c_str()).chain(entry) {
            path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
        }
        let text = path.as_os_str().as_bytes();
        let shown = text.get(text.len().saturating_sub(SHOWN)..).unwrap_or_default();
        let entry = if shown.is_empty() { ".".to_owned() } else { shown.escape_ascii().to_string() };
        RemoveError { root: self.root.clone(), operation, entry, cause }
    }

    /// Gives the tree another place. Done, where nothing is there any more.
    fn move_into(&mut self, trash: &Path) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::mkdir(trash, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(cause) => return Err(cause),
        }
        let to = fs::openat(CWD, trash, flags, Mode::empty())?;
        let mut name = self.name.clone();
        loop {
            match fs::renameat_with(&self.parent, &self.name, &to, &name, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {}
                Err(cause) => return Err(cause),
            }
            let another = format!("{}-{}", self.name.to_string_lossy(), NEXT.fetch_add(1, Ordering::Relaxed));
            name = CString::new(another).map_err(|_| Errno::INVAL)?;
        }
        self.root = trash.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        (self.parent, self.name) = (to, name);
        Ok(())
    }
}

/// Where names begin that nobody can have taken beforehand.
fn somewhere() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness it takes a try more for each that is taken.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes)
}

/// Ends of names in a trash directory, where the name itself is taken.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Takes a name away, also from what its owner made immutable or append-only, or lies in such a directory.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, how: AtFlags) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, how) {
        Err(Errno::PERM | Errno::ACCESS) => {
            free(dir);
            free_entry(dir, name);
            fs::unlinkat(dir, name, how)
        }
        done => done,
    }
}

/// Takes off the flags that keep a file or directory from being removed or moved. What fails is told by the next try.
fn free(file: BorrowedFd<'_>) {
    const KEEPING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND).union(IFlags::PROJECT_INHERIT);
    if let Ok(flags) = fs::ioctl_getflags(file)
        && flags.intersects(KEEPING)
    {
        let _ = fs::ioctl_setflags(file, flags.difference(KEEPING));
    }
}

/// The same for an entry. Nothing but files and directories has flags, or may be opened without an effect.
fn free_entry(dir: BorrowedFd<'_>, name: &CStr) {
    let Ok(stat) = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory) {
        return;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    if let Ok(file) = fs::openat2(dir, name, flags, Mode::empty(), how) {
        free(file.as_fd());
    }
}

/// Removes the directory at `root` and all in it, however long that takes. Absent is fine. Blocking.
///
/// # Errors
/// At the first entry that cannot be removed; what was removed before is gone.
pub fn tree(root: &Path) -> Result<(), RemoveError> {
    match Removal::begin(root)? {
        Some(mut removal) => removal.slice(None).map(drop),
        None => Ok(()),
    }
}

/// What tells the end of a removal that goes on behind.
pub type Told = oneshot::Receiver<Result<(), RemoveError>>;

/// Removes the directory at `root`; what takes longer than a moment is moved into the directory `trash` of the same file
/// system, and goes on behind: then its end is told. A tree that an earlier call left there is gone on with. Blocking, for
/// no longer than that moment.
///
/// # Errors
/// As [`tree`], or when it cannot be moved; it then is where it was.
pub fn soon(root: &Path, trash: &Path) -> Result<Option<Told>, RemoveError> {
    let of_before = root.file_name().map(|name| trash.join(name));
    let begun = match Removal::begin(root)? {
        None => of_before.map_or(Ok(None), |path| Removal::begin(&path))?,
        begun => begun,
    };
    let Some(mut removal) = begun else { return Ok(None) };
    match removal.slice(Some(Instant::now() + AT_ONCE))? {
        Left::Nothing => Ok(None),
        Left::Something => aside(removal, trash).map(Some),
    }
}

/// As [`soon`], without that moment: it only moves the tree.
///
/// # Errors
/// When it cannot be moved.
pub fn behind(root: &Path, trash: &Path) -> Result<Option<Told>, RemoveError> {
    Removal::begin(root)?.map(|removal| aside(removal, trash)).transpose()
}

/// Goes on with all that earlier processes left in a trash directory. Returns at once; what fails is logged.
///
/// # Errors
/// When the directory cannot be listed. One that is missing is made, since a full disk may have no room for it later.
pub fn sweep(trash: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(trash)?;
    for entry in std::fs::read_dir(trash)? {
        drop(enqueue(Tree::Resting(entry?.path())));
    }
    Ok(())
}

fn aside(mut removal: Removal, trash: &Path) -> Result<Told, RemoveError> {
    let stays = |removal: &Removal, cause| removal.failed("move to the trash the rest", None, cause);
    let is_there = removal.root.parent() == Some(trash);
    if !is_there {
        removal.move_into(trash).map_err(|cause| stays(&removal, cause))?;
    }
    Ok(enqueue(Tree::Open(removal)))
}

/// A tree whose removal goes on.
enum Tree {
    /// With its directories open.
    Open(Removal),
    /// By its path in a trash directory, which is ours alone; found anew when it is its turn.
    Resting(PathBuf),
}

impl Tree {
    fn open(self) -> Result<Option<Removal>, RemoveError> {
        match self {
            Self::Open(removal) => Ok(Some(removal)),
            Self::Resting(root) => Removal::begin(&root),
        }
    }
}

type Waiting = (Tree, oneshot::Sender<Result<(), RemoveError>>);

/// Trees that are removed behind their callers. However many they are, few have descriptors.
struct Queue {
    /// Had no turn yet: they are not to wait for all that are large.
    fresh: VecDeque<Waiting>,
    waiting: VecDeque<Waiting>,
    /// Whether the last turn was a fresh one's.
    was_fresh: bool,
    /// Whether a thread is at it.
    at_work: bool,
}

impl Queue {
    /// Puts a tree there, with its descriptors only if few have some.
    fn put(&mut self, tree: Tree, tell: oneshot::Sender<Result<(), RemoveError>>, fresh: bool) {
        let is_open = |(tree, _): &&Waiting| matches!(tree, Tree::Open(_));
        let open = self.fresh.iter().chain(&self.waiting).filter(is_open).count();
        let tree = match tree {
            Tree::Open(removal) if open >= KEPT_OPEN => Tree::Resting(removal.root),
            tree => tree,
        };
        let queue = if fresh { &mut self.fresh } else { &mut self.waiting };
        queue.push_back((tree, tell));
    }

    /// By turns a fresh one and one of the others.
    fn next(&mut self) -> Option<Waiting> {
        self.was_fresh = !self.was_fresh;
        let (first, second) = match self.was_fresh {
            true => (&mut self.fresh, &mut self.waiting),
            false => (&mut self.waiting, &mut self.fresh),
        };
        first.pop_front().or_else(|| second.pop_front())
    }
}

static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { fresh: VecDeque::new(), waiting: VecDeque::new(), was_fresh: false, at_work: false });
/// The thread has ended.
static DONE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    // Every section leaves it whole.
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enqueue(tree: Tree) -> Told {
    let (tell, told) = oneshot::channel();
    let mut queue = queue();
    queue.put(tree, tell, true);
    if !queue.at_work {
        queue.at_work = true;
        drop(queue);
        if std::thread::Builder::new().name("remove".into()).spawn(take_turns).is_err() {
            // No threads left: the caller's own has to do.
            take_turns();
        }
    }
    told
}

/// Works on each tree for a while until none is left. One thread for all: removing is the disk's work.
fn take_turns() {
    loop {
        let mut locked = queue();
        let Some((tree, tell)) = locked.next() else {
            locked.at_work = false;
            DONE.notify_all();
            return;
        };
        drop(locked);
        let outcome = match tree.open() {
            Ok(Some(mut removal)) => match removal.slice(Some(Instant::now() + TURN)) {
                Ok(Left::Something) => {
                    queue().put(Tree::Open(removal), tell, false);
                    continue;
                }
                Ok(Left::Nothing) => Ok(()),
                Err(error) => Err(error),
            },
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(Err(error)) = tell.send(outcome) {
            // Log: Part of a writable layer or an image layer could not be deleted from `containers/.trash` or
            // `images/trash`.
            // Do: `error` names it. A mount there is not podwright's: unmount it.
            tracing::warn!(%error, "what was removed stays on the disk until the next start");
        }
    }
}

/// Waits until nothing is removed behind any more. Blocking.
pub fn settle() {
    let mut locked = queue();
    while locked.at_work {
        locked = DONE.wait(locked).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::make_a_chain;
    use super::*;

    /// A stack on which 1000 recursive calls would not fit.
    fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::Builder::new().stack_size(128 << 10).spawn(work).unwrap().join().unwrap()
    }

    fn has_flags(file: &std::fs::File) -> bool {
        fs::ioctl_getflags(file).is_ok()
    }

    #[test]
    fn a_chain_of_19000_directories_goes_on_a_small_stack() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("deep");
        std::fs::create_dir(&top).unwrap();
        make_a_chain(&top, 19_000);
        on_a_small_stack({
            let top = top.clone();
            move || tree(&top).unwrap()
        });
        assert!(!top.exists());
        tree(&top).unwrap();
    }

    #[test]
    fn nothing_is_followed_and_any_name_and_mode_goes() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("kept"), "").unwrap();
        let top = root.path().join("tree");
        std::fs::create_dir_all(top.join("a\nb/moved-1/.../c")).unwrap();
        symlink(outside.path(), top.join("out")).unwrap();
        symlink(outside.path(), top.join("a\nb/moved-1/out")).unwrap();
        fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::empty(), 0).unwrap();
        let closed = top.join("a\nb/moved-1");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        std::fs::write(top.join(std::ffi::OsStr::from_bytes(b"\xff\x1b[2J")), "").unwrap();
        tree(&top).unwrap();
        assert!(!top.exists() && outside.path().join("kept").exists());
        // The link itself, not what it leads to.
        symlink(outside.path(), &top).unwrap();
        tree(&top).unwrap();
        assert!(top.symlink_metadata().is_err() && outside.path().join("kept").exists());
    }

    #[test]
    fn immutable_and_append_only_files_and_directories_go() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("tree");
        // Deep enough that one has to be moved out of an immutable directory.
        let deep = top.join("d/".repeat(40));
        std::fs::create_dir_all(deep.join("below")).unwrap();
        for (path, flag) in [(top.join("file"), IFlags::IMMUTABLE), (deep.join("below/log"), IFlags::APPEND)]
        {
            let file = std::fs::File::create(path).unwrap();
            if !has_flags(&file) {
                return eprintln!("no flags on this file system");
            }
            fs::ioctl_setflags(&file, flag).unwrap();
        }
        let at_the_edge = top.join("d/".repeat(MAX_OPEN));
        for path in [deep.join("below"), deep, at_the_edge, top.clone()] {
            fs::ioctl_setflags(std::fs::File::open(path).unwrap(), IFlags::IMMUTABLE).unwrap();
        }
        tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_slice_of_a_large_tree_ends_and_what_is_left_goes_on_behind() {
        let root = tempfile::tempdir().unwrap();
        let (top, trash) = (root.path().join("tree"), root.path().join("trash"));
        std::fs::create_dir_all(&top).unwrap();
        std::fs::create_dir(&trash).unwrap();
        for at in 0..5000 {
            std::fs::write(top.join(at.to_string()), "").unwrap();
        }
        let mut removal = Removal::begin(&top).unwrap().unwrap();
        assert_eq!(removal.slice(Some(Instant::now())).unwrap(), Left::Something);
        assert!(std::fs::read_dir(&top).unwrap().count() > 4990, "a slice without time is one step");
        let told = behind(&top, &trash).unwrap().unwrap();
        assert!(!top.exists(), "at once");
        told.blocking_recv().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0);
        // Two of one name, at the same time.
        for _ in 0..2 {
            std::fs::create_dir_all(top.join("a")).unwrap();
            drop(behind(&top, &trash).unwrap());
        }
        settle();
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0);
        // The first removal finds that it has nothing to do any more.
        assert_eq!(removal.slice(None).unwrap(), Left::Nothing);
        assert!(behind(&top, &trash).unwrap().is_none());
    }

    #[test]
    fn a_small_tree_goes_at_once_and_one_in_the_trash_is_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let (top, trash) = (root.path().join("tree"), root.path().join("trash"));
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir_all(trash.join("tree/left")).unwrap();
        assert!(soon(&top, &trash).unwrap().is_none());
        assert!(!top.exists());
        assert!(soon(&top, &trash).unwrap().is_none());
        assert!(!trash.join("tree").exists());
        std::fs::create_dir_all(trash.join("x/left")).unwrap();
        sweep(&trash).unwrap();
        settle();
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn trees_that_wait_take_few_descriptors_and_a_fresh_one_does_not_wait_for_all() {
        let root = tempfile::tempdir().unwrap();
        let mut queue =
            Queue { fresh: VecDeque::new(), waiting: VecDeque::new(), was_fresh: false, at_work: true };
        for n in 0..100 {
            let top = root.path().join(n.to_string());
            super::super::walk::make_a_chain(
                &{
                    std::fs::create_dir(&top).unwrap();
                    top.clone()
                },
                50,
            );
            let mut removal = Removal::begin(&top).unwrap().unwrap();
            for _ in 0..200 {
                removal.step().unwrap();
            }
            queue.put(Tree::Open(removal), oneshot::channel().0, n % 2 == 0);
        }
        let open = |queue: &VecDeque<Waiting>| {
            queue.iter().filter(|(tree, _)| matches!(tree, Tree::Open(_))).count()
        };
        assert_eq!(open(&queue.fresh) + open(&queue.waiting), KEPT_OPEN);
        let (fresh, _) = oneshot::channel();
        queue.fresh.clear();
        queue.put(Tree::Resting("fresh".into()), fresh, true);
        let nexts = [queue.next().unwrap(), queue.next().unwrap()];
        let is_fresh =
            |(tree, _): &Waiting| matches!(tree, Tree::Resting(path) if path == Path::new("fresh"));
        assert!(nexts.iter().any(is_fresh), "it waits for fifty others");
        // What rested is gone on with.
        while let Some((tree, _)) = queue.next() {
            let Some(mut removal) = tree.open().unwrap() else { continue };
            assert_eq!(removal.slice(None).unwrap(), Left::Nothing);
        }
        assert!(std::fs::read_dir(root.path()).unwrap().count() < 60);
    }

    #[test]
    fn what_is_made_meanwhile_goes_too() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("tree");
        std::fs::create_dir_all(top.join("a/b/c")).unwrap();
        let mut removal = Removal::begin(&top).unwrap().unwrap();
        let held = fs::open(&top, OFlags::PATH, Mode::empty()).unwrap();
        let mut made = 0;
        while removal.step().unwrap() == Left::Something {
            if made < 50 && fs::mkdirat(&held, format!("late-{made}"), Mode::RWXU).is_ok() {
                made += 1;
            }
        }
        assert!(made > 3 && !top.exists());
    }

    #[test]
    fn an_error_names_the_end_of_the_path_and_what_is_there() {
        let error =
            RemoveError { root: "/r".into(), operation: "remove", entry: "a/b".into(), cause: Errno::BUSY };
        assert_eq!(
            error.to_string(),
            "remove a/b in /r: something is mounted there (Device or resource busy (os error 16))"
        );
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::ResourceBusy);
    }
}
