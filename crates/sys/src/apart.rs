//! Work that may never return, as a process of its own: what hangs in the kernel, where no signal ends it, holds nothing of
//! ours. A thread would keep this process from ending, and with it every lock and every listening socket.

use std::any::Any;
use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::{fdpass, process};

/// As much as walks through directories need ten times; the kernel gives pages as they are touched.
const STACK_BYTES: usize = 1 << 20;
/// What stands below it and may not be touched: a page of any machine.
const GUARD_BYTES: usize = 64 << 10;

/// By which work hands descriptors over.
#[derive(Debug)]
pub struct Outbox<'a>(BorrowedFd<'a>);

impl Outbox<'_> {
    /// Whoever started the work gets a descriptor of the same file.
    ///
    /// # Errors
    /// The kernel's: `WouldBlock` when hundreds wait already.
    pub fn put(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        fdpass::send(self.0, b"\0", &[file]).map(|_| ())
    }
}

/// Has a process of its own do `work`, and waits for it; what it returns, and the descriptors that it has put into the
/// outbox, in their order. It shares this process's memory and rights, but none of its descriptors beside the three
/// standard ones; it gets no signal but SIGKILL, which it gets, too, when the calling thread ends. To be called on a thread
/// that may be lost.
///
/// # The caller's duty
/// Descriptors in what `work` captures or returns are not memory-unsafe, but wrong: their numbers mean nothing on the
/// other side. That goes for wakers as well, which write to descriptors. Whoever kills this process alone, and nobody but root
/// can, may stop the other one: a lock that it held in the shared memory stays locked.
///
/// # Errors
/// The kernel's, when there is no room for another process; `Interrupted` when it was killed.
///
/// # Panics
/// When `work` does.
pub fn run<T>(name: &CStr, work: impl FnOnce(&Outbox<'_>) -> T) -> io::Result<(T, Vec<OwnedFd>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let stack = Stack::new()?;
    let (parent, socket) = (rustix::process::getpid(), theirs.as_fd());
    let mut call = Call { name, parent, socket, work: Some(work), outcome: Outcome::Killed };
    let pid = {
        // A handler would write to descriptors that are not there.
        let mut before = SigSet::empty();
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        let started = stack.start(&mut call);
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        started?
    };
    // It has ended, or this would not be reached.
    let ended = loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Err(nix::Error::EINTR) => {}
            ended => break ended?,
        }
    };
    match call.outcome {
        Outcome::Done(result) => {
            drop(theirs);
            let mut fds = Vec::new();
            // All is there. The end may not be: another process of this kind may have a copy for a moment.
            loop {
                match fdpass::receive(ours.as_fd(), &mut [0], &mut fds) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Ok((result, fds))
        }
        Outcome::Panicked(payload) => resume_unwind(payload),
        Outcome::Failed(error) => Err(error),
        Outcome::Killed => {
            let how = match ended {
                WaitStatus::Signaled(_, signal, _) => signal.as_str(),
                _ => "nothing that is known",
            };
            Err(io::Error::new(io::ErrorKind::Interrupted, format!("its process was ended by {how}")))
        }
    }
}

enum Outcome<T> {
    Killed,
    Failed(io::Error),
    Panicked(Box<dyn Any + Send>),
    Done(T),
}

struct Call<'a, T, F> {
    name: &'a CStr,
    parent: rustix::process::Pid,
    socket: BorrowedFd<'a>,
    work: Option<F>,
    outcome: Outcome<T>,
}

impl<T, F: FnOnce(&Outbox<'_>) -> T> Call<'_, T, F> {
    fn serve(&mut self) {
        let prepared = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(io::Error::from)
            .and_then(|()| is_child_of(self.parent))
            .and_then(|()| close_all_but(self.socket));
        self.outcome = match (prepared, self.work.take()) {
            (Err(error), _) => Outcome::Failed(error),
            (Ok(()), None) => Outcome::Failed(io::ErrorKind::InvalidInput.into()),
            (Ok(()), Some(work)) => {
                let _ = rustix::thread::set_name(self.name);
                let outbox = Outbox(self.socket);
                match catch_unwind(AssertUnwindSafe(|| work(&outbox))) {
                    Ok(result) => Outcome::Done(result),
                    Err(payload) => Outcome::Panicked(payload),
                }
            }
        };
    }
}

/// Whether the parent lives: one that died before its death was a signal sends none.
fn is_child_of(parent: rustix::process::Pid) -> io::Result<()> {
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::Interrupted, "the process that wants it has ended")),
    }
}

fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = u32::try_from(kept.as_raw_fd()).map_err(io::Error::other)?;
    if kept > 3 {
        process::close_range(3, kept - 1)?;
    }
    process::close_range(kept.max(2) + 1, u32::MAX)
}

/// What the other process starts with.
extern "C" fn begin<T, F: FnOnce(&Outbox<'_>) -> T>(call: *mut c_void) -> c_int {
    // SAFETY: it is the call that `Stack::start` was given, which nobody else uses until this process has ended.
    let call = unsafe { &mut *call.cast::<Call<'_, T, F>>() };
    call.serve();
    0
}

/// Memory for a stack, with what may not be touched below it.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> io::Result<Self> {
        let (all, flags) =
            (GUARD_BYTES + STACK_BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: memory of its own at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self(at);
        // SAFETY: the memory above the guard is this mapping's own.
        if unsafe { libc::mprotect(stack.bottom(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn bottom(&self) -> *mut c_void {
        self.0.wrapping_byte_add(GUARD_BYTES)
    }

    /// Runs a call in another process, which has ended when this returns.
    fn start<T, F: FnOnce(&Outbox<'_>) -> T>(
        &self,
        call: &mut Call<'_, T, F>,
    ) -> io::Result<nix::unistd::Pid> {
        let top = self.bottom().wrapping_byte_add(STACK_BYTES);
        // No exit signal: it is nobody's business but ours.
        let flags = libc::CLONE_VM | libc::CLONE_VFORK;
        let call = std::ptr::from_mut(call).cast::<c_void>();
        // SAFETY: the other process has a stack of its own, aligned as pages are, and uses this thread's local storage,
        // which nobody else does: the kernel lets this thread go on only when that process has ended, or to end itself.
        // In the latter case nothing is unwound or freed, so that stack and call outlive the other process.
        match unsafe { libc::clone(begin::<T, F>, top, flags, call) } {
            failed if failed < 0 => Err(io::Error::last_os_error()),
            pid => Ok(nix::unistd::Pid::from_raw(pid)),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and who ran on it has ended.
        unsafe { libc::munmap(self.0, GUARD_BYTES + STACK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn run<T>(work: impl FnOnce(&Outbox<'_>) -> T) -> io::Result<(T, Vec<OwnedFd>)> {
        super::run(c"apart", work)
    }

    #[test]
    fn it_is_another_process_with_the_same_memory_and_none_of_the_descriptors() {
        let own = file();
        let mut words = vec!["one".to_owned()];
        let (told, fds) = run(|_| {
            words.push("two".to_owned());
            let open: Vec<String> = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            (std::process::id(), open, rustix::io::fcntl_getfd(own.as_fd()).is_err())
        })
        .unwrap();
        let (pid, open, is_closed) = told;
        assert_ne!(pid, std::process::id());
        // The standard ones, its end of the outbox, and the directory that was being read.
        assert!(open.len() <= 5 && is_closed, "{open:?}");
        assert_eq!(words, ["one", "two"]);
        assert!(fds.is_empty());
        // Reaped.
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(own.metadata().is_ok());
    }

    fn file() -> File {
        rustix::fs::memfd_create("apart", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
    }

    #[test]
    fn files_that_it_opened_are_handed_over() {
        let ((), fds) = run(|outbox| {
            for text in ["first", "second"] {
                let mut file = file();
                file.write_all(text.as_bytes()).unwrap();
                outbox.put(file.as_fd()).unwrap();
            }
        })
        .unwrap();
        let read = |fd: OwnedFd| {
            let (mut file, mut text) = (File::from(fd), String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(fds.into_iter().map(read).collect::<Vec<_>>(), ["first", "second"]);
    }

    #[test]
    fn it_works_for_a_living_parent_only() {
        assert!(is_child_of(rustix::process::getppid().unwrap()).is_ok());
        assert!(is_child_of(rustix::process::getpid()).is_err());
    }

    #[test]
    fn its_panic_is_the_callers_and_its_death_an_error() {
        let panicked = catch_unwind(|| run(|_| -> () { panic!("on purpose") })).unwrap_err();
        assert_eq!(panicked.downcast_ref(), Some(&"on purpose"));
        let killed = run(|_| {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        });
        assert_eq!(killed.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn it_holds_no_lock_of_ours() {
        let ours = file();
        let successor = File::open(format!("/proc/self/fd/{}", ours.as_raw_fd())).unwrap();
        ours.lock().unwrap();
        successor.try_lock().unwrap_err();
        let (is_free, _) = std::thread::scope(|scope| {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let (end, is_at_its_end) = std::sync::mpsc::channel::<()>();
            let other = scope.spawn(move || {
                run(|_| {
                    ready.send(()).unwrap();
                    is_at_its_end.recv().unwrap_err();
                })
            });
            is_ready.recv().unwrap();
            // As when this process ends.
            drop(ours);
            // Other tests' processes have a copy for a moment.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            let mut is_free = false;
            while !is_free && std::time::Instant::now() < until {
                is_free = successor.try_lock().is_ok();
                std::thread::yield_now();
            }
            drop(end);
            (is_free, other.join().unwrap().unwrap())
        });
        assert!(is_free);
    }
}
