//! Processes of ours that work on other people's bytes and can do nothing else: they read one descriptor, write another,
//! and talk to us over a third.
//!
//! Owns: starting one, what it gives up before it reads a byte, and its end. A worker runs as a user of its own without capabilities,
//! with `no_new_privs`, an address space of its own small size, no file that it may open (Landlock, and the system calls are
//! not allowed either), and a filter of the calls that are needed to read, write and allocate: no socket, no program, no
//! process, no signal to others. It dies with the thread that started it. Usually it is forked by `zygote`, a process that
//! has given up the rights before; where there is none, this same program is run under another name.
//! Never knows what the bytes are; never trusts what a worker says.
//!
//! It has no namespaces of its own: without the calls that name anything outside, they would keep nothing more from it, and
//! making them takes longer than the work on a small layer.

mod zygote;

use crate::model::WORKER_UID;
use podwright_sys::{confine, landlock, pidfd, process, rights, seccomp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, getppid, waitid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

/// First argument of a process that is a worker, where the program's name stands.
const NAME: &str = "podwright-worker";
/// The user of workers where a user namespace does not have theirs: the kernel's overflow id, which owns nothing.
const NOBODY: u32 = 65534;
/// Descriptors that every worker may have: its three, and three of /dev/null or copies in the places of the usual ones.
const DESCRIPTORS: u64 = 8;
/// How long a worker whose output has ended may take to end itself; an honest one needs milliseconds.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// What a worker exits with when it could not give up its rights: it has read nothing then.
const NOT_CONFINED: u8 = 70;

/// The process whose workers are processes, by its pid; 0: none. Unit tests and fuzzing run in programs that cannot be started
/// as a worker: there they are threads, with the same code between the same descriptors.
static DAEMON: AtomicU32 = AtomicU32::new(0);

/// The calls of every worker: reading, writing, memory, and ending.
const CALLS: [seccomp::Call; 21] = [
    seccomp::SYS_read,
    seccomp::SYS_write,
    seccomp::SYS_readv,
    seccomp::SYS_writev,
    seccomp::SYS_close,
    seccomp::SYS_brk,
    seccomp::SYS_mmap,
    seccomp::SYS_munmap,
    seccomp::SYS_mremap,
    seccomp::SYS_mprotect,
    seccomp::SYS_madvise,
    seccomp::SYS_futex,
    seccomp::SYS_clock_gettime,
    seccomp::SYS_getrandom,
    seccomp::SYS_rt_sigaction,
    seccomp::SYS_rt_sigprocmask,
    seccomp::SYS_rt_sigreturn,
    seccomp::SYS_sigaltstack,
    seccomp::SYS_restart_syscall,
    seccomp::SYS_exit,
    seccomp::SYS_exit_group,
];

/// The ends of a worker's descriptors that are its own.
#[derive(Debug)]
pub struct Ends {
    /// What it works on.
    pub input: File,
    /// What comes of it.
    pub output: File,
    /// What it says, and is told.
    pub control: File,
}

/// A kind of worker.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name, for `ps` and for errors.
    pub name: &'static str,
    /// Address space beside the program's own, bytes.
    pub memory: u64,
    /// Descriptors that it may have beside those that it is started with.
    pub descriptors: u64,
    /// Calls that it may make beside those of every worker.
    pub calls: &'static [seccomp::Call],
    /// Commands of fcntl that it may use.
    pub fcntl: &'static [u32],
    /// The work.
    pub body: fn(Ends),
}

/// A worker at work. Dropped, it is killed.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    /// None: a thread, which ends when its descriptors do.
    process: Option<OwnedFd>,
}

/// Has workers be processes from now on. For programs that call [`run`] before anything else.
pub fn use_processes() {
    DAEMON.store(std::process::id(), Ordering::Relaxed);
}

/// Has what workers are forked from made beside what the caller does now: a worker will be needed soon.
pub fn expect() {
    if DAEMON.load(Ordering::Relaxed) != 0 {
        zygote::expect();
    }
}

/// What a worker that was taken over would try, for the test that it cannot.
#[cfg(debug_assertions)]
const TRIAL: Program =
    Program { name: "trial", memory: 256 << 20, descriptors: 0, calls: &[], fcntl: &[], body: trial };

/// The same with what another program may do.
#[cfg(debug_assertions)]
fn trial_as(programs: &[&Program], name: &str) -> Option<Program> {
    let name = name.strip_prefix("trial-")?;
    let program = programs.iter().find(|program| program.name == name)?;
    Some(Program { body: trial, ..**program })
}

#[cfg(debug_assertions)]
fn trial(ends: Ends) {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process};
    use std::io::Write as _;
    type Try = (&'static str, fn() -> io::Result<()>);
    let tries: [Try; 20] = [
        ("read /etc/shadow", || File::open("/etc/shadow").map(|_| ())),
        ("read /proc/self/maps", || File::open("/proc/self/maps").map(|_| ())),
        ("write /tmp", || File::create("/tmp/podwright-worker").map(|_| ())),
        ("make a directory", || std::fs::create_dir("/tmp/podwright-worker")),
        ("make a TCP socket", || std::net::UdpSocket::bind("127.0.0.1:0").map(|_| ())),
        ("connect by TCP", || std::net::TcpStream::connect("127.0.0.1:1").map(|_| ())),
        ("make a unix socket", || std::os::unix::net::UnixDatagram::unbound().map(|_| ())),
        ("make a pair of TIPC sockets", || {
            let (family, flags) = (AddressFamily::from_raw(30), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
            Ok(socketpair(family, SocketType::STREAM, flags, None).map(|_| ())?)
        }),
        ("make sockets that send to names", || std::os::unix::net::UnixDatagram::pair().map(|_| ())),
        ("connect what it has", || {
            Ok(rustix::net::connect(io::stdin(), &rustix::net::SocketAddrUnix::new("/run/any")?)?)
        }),
        ("listen", || Ok(rustix::net::listen(io::stdin(), 1)?)),
        ("have signals sent", || {
            let flags = rustix::fs::OFlags::NONBLOCK;
            Ok(rustix::fs::fcntl_setfl(io::stdin(), flags)?)
        }),
        ("hold a process", || Ok(rustix::process::pidfd_open(Pid::INIT, PidfdFlags::empty()).map(|_| ())?)),
        ("run a program", || Command::new("/bin/true").status().map(|_| ())),
        ("start a thread", || std::thread::Builder::new().spawn(|| {}).map(|_| ())),
        ("signal process 1", || Ok(kill_process(Pid::INIT, Signal::CONT)?)),
        ("become root", || Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))?)),
        ("make a namespace", || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?)),
        ("change a limit", || rights::limit(1 << 40, 1 << 10)),
        ("make a pipe", || {
            let flags = rustix::pipe::PipeFlags::CLOEXEC;
            Ok(rustix::pipe::pipe_with(flags).map(|_| ())?)
        }),
    ];
    let mut output = ends.output;
    for (name, attempt) in tries {
        let answer = match attempt() {
            Ok(()) => "DONE".to_owned(),
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => "EPERM".to_owned(),
            Err(e) => e.to_string(),
        };
        let _ = writeln!(output, "{name}: {answer}");
    }
}

/// Whether this process was started as a worker; then its work is done, and this is what it exits with.
#[must_use]
pub fn run(programs: &[&Program]) -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != NAME {
        return None;
    }
    let name = arguments.next().unwrap_or_default();
    #[cfg(debug_assertions)]
    let programs = &[programs, &[&TRIAL]].concat();
    // A panic is not told by itself: standard error is for the protocol.
    std::panic::set_hook(Box::new(|_| {}));
    if name == zygote::NAME {
        let served = zygote::serve(programs);
        return Some(served.map_or(ExitCode::from(NOT_CONFINED), |()| ExitCode::SUCCESS));
    }
    let found = programs.iter().find(|program| name == program.name).map(|program| **program);
    #[cfg(debug_assertions)]
    let found = found.or_else(|| trial_as(programs, name.to_str()?));
    let Some(program) = &found else { return Some(ExitCode::from(NOT_CONFINED)) };
    let Ok(ends) = confined(program) else { return Some(ExitCode::from(NOT_CONFINED)) };
    (program.body)(ends);
    Some(ExitCode::SUCCESS)
}

/// Whether the kernel has Landlock, which is one of the two things that keep workers from files.
#[must_use]
pub fn have_landlock() -> bool {
    landlock::version().is_ok()
}

/// Gives everything up, as a program that was run.
fn confined(program: &Program) -> io::Result<Ends> {
    process::close_from(3)?;
    let ends = Ends {
        input: std::io::stdin().as_fd().try_clone_to_owned()?.into(),
        output: std::io::stdout().as_fd().try_clone_to_owned()?.into(),
        control: std::io::stderr().as_fd().try_clone_to_owned()?.into(),
    };
    let size = give_up(program.memory, DESCRIPTORS + program.descriptors)?;
    last_step(program, size)?;
    Ok(ends)
}

/// What all workers lack, and who starts them. Returns the program's own address space.
fn give_up(memory: u64, descriptors: u64) -> io::Result<u64> {
    std::env::set_current_dir("/")?;
    let size = podwright_sys::proc::own_size()?;
    match rights::become_nobody(WORKER_UID) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => rights::become_nobody(NOBODY)?,
        result => result?,
    }
    confine::end_with_parent()?;
    confine::hide()?;
    rights::limit(size + memory, descriptors)?;
    match landlock::no_files() {
        // The filter of calls forbids the same, in a kernel's other corner.
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(size),
    }
}

/// After this there are only the calls of the program.
fn last_step(program: &Program, size: u64) -> io::Result<()> {
    // The kernel shows 15 bytes of it.
    rustix::thread::set_name(&std::ffi::CString::new(program.name)?)?;
    rights::limit(size + program.memory, DESCRIPTORS + program.descriptors)?;
    rights::stay_alone()?;
    seccomp::allow_only_with(&[&CALLS, program.calls].concat(), program.fcntl)
}

impl Worker {
    /// Starts one. Where there is no zygote it must be started, used and ended by one thread, with which it dies.
    ///
    /// # Errors
    /// When the process or thread cannot be made.
    pub fn start(program: &Program, input: OwnedFd, output: OwnedFd, control: OwnedFd) -> io::Result<Self> {
        let name = program.name;
        let daemon = DAEMON.load(Ordering::Relaxed);
        if daemon == 0 {
            let ends = Ends { input: input.into(), output: output.into(), control: control.into() };
            let body = program.body;
            std::thread::Builder::new().name(name.into()).spawn(move || body(ends))?;
            return Ok(Self { name, process: None });
        }
        // A process beside the daemon with its memory (`host::foreign`) has not the descriptor of the zygote.
        if daemon != std::process::id() {
            return Ok(Self { name, process: Some(Self::run(program, input, output, control)?) });
        }
        let process = match zygote::start(program, [input.as_fd(), output.as_fd(), control.as_fd()]) {
            Ok(process) => process,
            Err(error) => {
                // Log: The process that workers are forked from cannot be had; the error tells why. Pulls work, each layer a few
                // milliseconds slower.
                // Do: Once: nothing. Repeatedly: look for a lack of memory or processes.
                tracing::warn!(%error, "no process to start workers from: running each as a program, which takes longer");
                Self::run(program, input, output, control)?
            }
        };
        Ok(Self { name, process: Some(process) })
    }

    /// Our own program wherever it lies, also when it was replaced since we started. No `pre_exec`: std then need not fork,
    /// and the worker gives up its rights by itself, before it reads anything.
    fn run(program: &Program, input: OwnedFd, output: OwnedFd, control: OwnedFd) -> io::Result<OwnedFd> {
        let mut child = ourselves(program.name).stdin(input).stdout(output).stderr(control).spawn()?;
        // It is our child and not reaped: the number is its own.
        pidfd::open(child.id()).inspect_err(|_| {
            // Nobody would end it.
            let _ = child.kill();
            let _ = child.wait();
        })
    }

    /// Waits for its end, after its output has ended, and says what was wrong with it. One that does not end is killed.
    pub fn end(mut self) -> Option<String> {
        let process = self.process.take()?;
        match ended(&process, PATIENCE) {
            Ok(Some(status)) if status.exit_status() == Some(0) => None,
            Ok(Some(status)) => Some(told(self.name, &status)),
            Ok(None) => Some(format!("{} did not end, and was killed", self.name)),
            Err(error) => Some(format!("{} cannot be waited for: {error}", self.name)),
        }
    }
}

/// This program as a worker.
fn ourselves(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).arg(name).env_clear();
    command
}

/// Waits for a child's end, but not longer than `patience`: then it is killed, which None tells.
fn ended(process: &OwnedFd, patience: Timespec) -> io::Result<Option<WaitIdStatus>> {
    let has_ended = loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)) {
            Err(rustix::io::Errno::INTR) => {}
            polled => break polled.map(|ready| ready > 0),
        }
    };
    if !matches!(has_ended, Ok(true)) {
        pidfd::send_signal(process.as_fd(), pidfd::SIGKILL)?;
    }
    let status = reap(process)?;
    Ok(if has_ended? { status } else { None })
}

/// Waits for a child without limit.
fn reap(process: &OwnedFd) -> io::Result<Option<WaitIdStatus>> {
    loop {
        match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            status => return Ok(status?),
        }
    }
}

/// Kills a child. One that is gone already is only reaped, and what the kernel says of it changes nothing.
fn kill(process: &OwnedFd) {
    let _ = pidfd::send_signal(process.as_fd(), pidfd::SIGKILL);
    let _ = reap(process);
}

fn told(name: &str, status: &WaitIdStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(9), _) => format!("{name} was killed, perhaps for want of memory"),
        (Some(signal), _) => format!("{name} crashed (signal {signal})"),
        (None, Some(code)) if code == i32::from(NOT_CONFINED) => {
            format!("{name} could not give up its rights on this kernel, and has done nothing")
        }
        (None, code) => format!("{name} ended with code {}", code.unwrap_or_default()),
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            kill(&process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_end_is_killed_and_who_ends_is_told() {
        let start = |program: &str| Command::new(program).arg("1000").spawn().unwrap().id();
        let stuck = start("sleep");
        let handle = pidfd::open(stuck).unwrap();
        assert!(ended(&handle, Timespec { tv_sec: 0, tv_nsec: 1 }).unwrap().is_none());
        assert!(pidfd::open(stuck).is_err(), "it is still there");
        let handle = pidfd::open(start("false")).unwrap();
        let status = ended(&handle, PATIENCE).unwrap();
        assert_eq!(status.and_then(|status| status.exit_status()), Some(1));
    }
}
