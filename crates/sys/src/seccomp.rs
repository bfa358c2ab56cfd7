//! System call filters of the calling process. They last for its life and that of its descendants.

use std::io;

#[cfg(not(target_arch = "x86_64"))]
pub use libc::SYS_epoll_pwait as SYS_epoll_wait;
/// Numbers of calls, for filters.
#[cfg(target_arch = "x86_64")]
pub use libc::SYS_epoll_wait;
pub use libc::{
    SYS_brk, SYS_clock_gettime, SYS_close, SYS_close_range, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_futex, SYS_getrandom,
    SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_read, SYS_readv, SYS_recvfrom,
    SYS_recvmsg, SYS_restart_syscall, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_rt_sigtimedwait, SYS_sched_yield, SYS_sendmsg, SYS_sendto, SYS_shutdown, SYS_sigaltstack,
    SYS_socketpair, SYS_wait4, SYS_write, SYS_writev, c_long as Call,
};

/// Verdict on a filtered call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with EPERM.
    Refuse,
}

impl Verdict {
    fn code(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Refuse => libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(),
        }
    }
}

// linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64, AUDIT_ARCH_RISCV64.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xC000_003E);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xC000_00B7);
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: Option<u32> = Some(0xC000_00F3);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const ARCHITECTURE: Option<u32> = None;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The lower halves of the first two arguments: all of these architectures have them first.
const FIRST: u32 = 16;
const SECOND: u32 = 16 + 8;

/// Allows the calling process only these calls; others fail with EPERM. A call by another architecture's convention
/// (i386 on x86_64) kills it; those of x32 have numbers that are not listed.
///
/// # Errors
/// The kernel's: no filters, or the caller has neither `no_new_privs` nor CAP_SYS_ADMIN. `Unsupported` on an architecture
/// that is not known here.
pub fn allow_only(calls: &[Call]) -> io::Result<()> {
    let architecture = ARCHITECTURE.ok_or(io::ErrorKind::Unsupported)?;
    install(&program(architecture, calls, Verdict::Allow, Verdict::Refuse)?)
}

/// As [`allow_only`], and `fcntl` with only these commands: some others direct descriptors' signals to other processes. Pairs
/// of sockets, where they are allowed, are unix streams that do not block: another family may load a module of the kernel,
/// and datagrams can be sent elsewhere than to the other of a pair.
///
/// # Errors
/// As [`allow_only`].
pub fn allow_only_with(calls: &[Call], fcntl: &[u32]) -> io::Result<()> {
    let architecture = ARCHITECTURE.ok_or(io::ErrorKind::Unsupported)?;
    let (pairs, calls): (Vec<Call>, Vec<Call>) = calls.iter().partition(|call| **call == SYS_socketpair);
    let mut code = program(architecture, &calls, Verdict::Allow, Verdict::Refuse)?;
    let refuse = code.pop();
    code.extend(narrow(SYS_fcntl, &[(SECOND, fcntl)])?);
    if !pairs.is_empty() {
        let stream = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let (family, kind) = ([libc::AF_UNIX.unsigned_abs()], [stream.unsigned_abs()]);
        code.extend(narrow(SYS_socketpair, &[(FIRST, &family), (SECOND, &kind)])?);
    }
    code.extend(refuse);
    install(&code)
}

/// Lets a call through when each of these arguments is one of its values; other calls jump over this.
fn narrow(call: Call, arguments: &[(u32, &[u32])]) -> io::Result<Vec<libc::sock_filter>> {
    let end = |verdict: Verdict| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict.code());
    let equal = |yes, no, value| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let mut checks = Vec::new();
    for (argument, values) in arguments {
        checks.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, *argument)?);
        for (at, value) in values.iter().enumerate() {
            // Over the other values and the refusal.
            checks.push(equal(u8::try_from(values.len() - at).map_err(io::Error::other)?, 0, *value)?);
        }
        checks.push(end(Verdict::Refuse)?);
    }
    checks.push(end(Verdict::Allow)?);
    let over = u8::try_from(checks.len()).map_err(io::Error::other)?;
    checks.insert(0, equal(0, over, u32::try_from(call).map_err(io::Error::other)?)?);
    Ok(checks)
}

/// Listed calls get one verdict, all others another.
fn program(
    architecture: u32,
    calls: &[Call],
    listed: Verdict,
    others: Verdict,
) -> io::Result<Vec<libc::sock_filter>> {
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |yes, no, value| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let end = |verdict| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict);
    let mut code =
        vec![load(ARCH)?, equal(1, 0, architecture)?, end(libc::SECCOMP_RET_KILL_PROCESS)?, load(NUMBER)?];
    for call in calls {
        code.push(equal(0, 1, u32::try_from(*call).map_err(io::Error::other)?)?);
        code.push(end(listed.code())?);
    }
    code.push(end(others.code())?);
    Ok(code)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> io::Result<libc::sock_filter> {
    Ok(libc::sock_filter { code: u16::try_from(code).map_err(io::Error::other)?, jt, jf, k })
}

fn install(code: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(code.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: code.as_ptr().cast_mut() };
    let pointer: *const libc::sock_fprog = &program;
    // SAFETY: the program has that many instructions, lives across the call, and the kernel only reads it.
    if unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, pointer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
