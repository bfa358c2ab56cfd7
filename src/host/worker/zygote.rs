//! The process that workers are forked from: this program once more, which has given up all rights that no worker has, and
//! does nothing but wait for descriptors. A fork of it costs a tenth of running the program anew.
//!
//! Owns: its start when the first worker is wanted, a request and the answer, its end when none was wanted for a while. It is
//! ours as its forks are ours (`CLONE_PARENT`): it holds nothing of theirs, and can neither wait for them nor be reached by
//! them, since a fork closes the socket before it reads anything. It dies with us, by the kernel's signal and by the end of
//! its socket. Never reads what a worker works on; starts programs that need no right at all, and no others.

use super::{DESCRIPTORS, Ends, NOT_CONFINED, Program, getppid, give_up, kill, last_step, ourselves};
use podwright_sys::{confine, fdpass, pidfd, process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the name of a program stands.
pub(super) const NAME: &str = "zygote";
/// Without a request in this time it ends: what it holds is memory that nobody needs between two pulls.
const IDLE: Duration = Duration::from_secs(60);
/// A fork takes less than a millisecond; one that is not told in this time is given up, with its zygote.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Bytes of a request: a program's name.
const MAX_NAME: usize = 64;
/// Stack of the thread that is the parent of all workers: it only waits.
const STACK: usize = 128 << 10;
/// The answer that there is a fork; its handle comes with it.
const FORKED: [u8; 1] = *b"y";
/// The answer that there is none.
const FAILED: [u8; 1] = *b"n";

/// A zygote that runs.
struct Zygote {
    socket: OwnedFd,
    process: OwnedFd,
    used: Instant,
}

/// Who waits for a zygote; None: nobody yet.
type Asker = Option<SyncSender<io::Result<Zygote>>>;

struct Slot {
    zygote: Option<Zygote>,
    /// The way to the thread whose child it is, and all workers: a thread that ends takes its children with it.
    keeper: Option<Sender<Asker>>,
}

static SLOT: Mutex<Slot> = Mutex::new(Slot { zygote: None, keeper: None });

fn slot() -> MutexGuard<'static, Slot> {
    SLOT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a worker started; a zygote that has died is replaced once.
pub(super) fn start(program: &Program, ends: [BorrowedFd<'_>; 3]) -> io::Result<OwnedFd> {
    let mut slot = slot();
    if let Some(mut zygote) = slot.zygote.take()
        && let Ok(process) = zygote.ask(program, &ends)
    {
        slot.zygote = Some(zygote);
        return Ok(process);
    }
    let mut zygote = slot.bring()?;
    let process = zygote.ask(program, &ends)?;
    slot.zygote = Some(zygote);
    Ok(process)
}

/// Has a zygote made beside what the caller does until it needs a worker. Does not wait, and tells no error: whoever starts
/// the worker gets it.
pub(super) fn expect() {
    if let Ok(mut slot) = SLOT.try_lock()
        && slot.zygote.is_none()
        && let Ok(keeper) = slot.keeper()
    {
        let _ = keeper.send(None);
    }
}

impl Slot {
    fn keeper(&mut self) -> io::Result<&Sender<Asker>> {
        match &mut self.keeper {
            Some(keeper) => Ok(keeper),
            none => {
                let (sender, asked) = channel();
                std::thread::Builder::new()
                    .name("worker-zygote".into())
                    .stack_size(STACK)
                    .spawn(move || keep(&asked))?;
                Ok(none.insert(sender))
            }
        }
    }

    /// Makes a new one.
    fn bring(&mut self) -> io::Result<Zygote> {
        let (asker, answer) = sync_channel(1);
        let gone = || io::Error::other("the thread that keeps it has ended");
        self.keeper()?.send(Some(asker)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// The thread that zygotes and workers are children of. It never waits for the slot: who has it may wait for a zygote.
fn keep(asked: &Receiver<Asker>) {
    let (mut has_one, mut spare) = (false, None);
    loop {
        let next = if has_one {
            asked.recv_timeout(IDLE)
        } else {
            asked.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(Some(asker)) => {
                // Who asked waits for it.
                let _ = asker.send(spare.take().map_or_else(Zygote::run, Ok));
            }
            Ok(None) => {
                let new = spare.take().map_or_else(Zygote::run, Ok).ok();
                match SLOT.try_lock() {
                    Ok(mut slot) if slot.zygote.is_none() => slot.zygote = new,
                    _ => spare = new,
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                spare = None;
                if let Ok(mut slot) = SLOT.try_lock() {
                    let idle = slot.zygote.take_if(|zygote| zygote.used.elapsed() >= IDLE);
                    has_one = slot.zygote.is_some();
                    drop(slot);
                    drop(idle);
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        has_one = true;
    }
}

impl Zygote {
    fn run() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut child = ourselves(NAME).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let process = pidfd::open(child.id()).inspect_err(|_| {
            // Nobody would end it.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self { socket, process, used: Instant::now() })
    }

    /// Asks for a fork; returns its handle.
    fn ask(&mut self, program: &Program, ends: &[BorrowedFd<'_>; 3]) -> io::Result<OwnedFd> {
        self.used = Instant::now();
        fdpass::send(self.socket.as_fd(), program.name.as_bytes(), ends)?;
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&PATIENCE)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
            }
        }
        let (mut answer, mut handles) = ([0; 1], Vec::new());
        let length = fdpass::receive(self.socket.as_fd(), &mut answer, &mut handles)?;
        match (length, answer, handles.pop()) {
            (1, FORKED, Some(process)) => Ok(process),
            (1, FAILED, _) => Err(io::Error::other("it cannot fork")),
            _ => Err(io::Error::other("it has ended")),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        kill(&self.process);
    }
}

/// Is the zygote, until nobody can ask it any more.
pub(super) fn serve(programs: &[&Program]) -> io::Result<()> {
    process::close_from(3)?;
    let mut socket = Some(io::stdin().as_fd().try_clone_to_owned()?);
    // The socket has one descriptor, which a fork can close.
    rustix::stdio::dup2_stdin(io::stdout())?;
    let memory = programs.iter().map(|program| program.memory).max().unwrap_or_default();
    let descriptors = programs.iter().map(|program| program.descriptors).max().unwrap_or_default();
    let size = give_up(memory, DESCRIPTORS + descriptors)?;
    rustix::thread::set_name(c"worker-zygote")?;
    let daemon = getppid();
    let mut name = [0; MAX_NAME];
    loop {
        let Some(asked) = &socket else { return Ok(()) };
        let mut ends = Vec::new();
        let length = fdpass::receive_waiting(asked.as_fd(), &mut name, &mut ends)?;
        let Some(name) = name.get(..length).filter(|name| !name.is_empty()) else { return Ok(()) };
        let program = programs.iter().find(|program| program.name.as_bytes() == name);
        let Some(program) = program else { return Err(io::ErrorKind::InvalidData.into()) };
        let forked = process::fork_held_sibling(|| {
            drop(socket.take());
            let work = || -> io::Result<()> {
                confine::end_with_parent()?;
                // One whose parent has ended in between would not be told.
                if getppid() != daemon {
                    return Err(io::ErrorKind::NotFound.into());
                }
                last_step(program, size)?;
                let [input, output, control] =
                    <[OwnedFd; 3]>::try_from(ends).map_err(|_| io::ErrorKind::InvalidData)?;
                let ends = Ends { input: input.into(), output: output.into(), control: control.into() };
                (program.body)(ends);
                Ok(())
            };
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => 0,
                Ok(Err(_)) => i32::from(NOT_CONFINED),
                // What std ends with after a panic.
                Err(_) => 101,
            }
        });
        let Some(asked) = &socket else { return Ok(()) };
        match forked {
            Ok(process) => fdpass::send(asked.as_fd(), &FORKED, &[process.as_fd()])?,
            Err(_) => fdpass::send(asked.as_fd(), &FAILED, &[])?,
        };
    }
}
