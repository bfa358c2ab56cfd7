//! PID 1 of a pod's shared pid namespace: reaps, and ends with its monitor, which ends the namespace. Only SIGKILL ends
//! it: at the end of the machine every process gets SIGTERM, and containers need their time then.
//!
//! Every container of the pod sees it, and a container that may trace controls it. So it has nothing of value: an empty
//! read-only root, no descriptor, no capability in any set, none of the monitor's memory (this program runs anew, from
//! a read-only mount), and only system calls to wait. Never does anything else, and never starts if a confinement step
//! fails.
//!
//! The candidate runs on the host's side and then moves into the pod: its memory belongs to the host's user namespace,
//! so rights in the pod's own give none over it.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::ExitCode;

use podwright_sys::namespace::{self, Namespace};
use podwright_sys::seccomp::{self, Call};
use podwright_sys::{confine, pidfd, process, userns};

/// Its name, and the only argument: what `ps` shows in the pod.
const NAME: &std::ffi::CStr = c"podwright-init";

/// Its report once it is confined.
pub(crate) const READY: &str = "ready";

/// The beginning of the line that reports its pid.
pub(crate) const INIT: &str = "init ";

/// In the order to begin: join a user namespace.
const USER: &str = "user";

/// Kinds that it may have to join with the pod's helper.
const KINDS: [Namespace; 3] = [Namespace::Net, Namespace::Ipc, Namespace::Uts];

/// Longest order to begin: all of its words.
const ORDER_BYTES: usize = 64;

/// Its system calls: wait for a signal and for children; before that, report and close the report. Without a descriptor
/// the last two are useless.
const CALLS: [Call; 8] = [
    seccomp::SYS_rt_sigtimedwait,
    seccomp::SYS_wait4,
    seccomp::SYS_restart_syscall,
    seccomp::SYS_rt_sigreturn,
    seccomp::SYS_exit,
    seccomp::SYS_exit_group,
    seccomp::SYS_write,
    seccomp::SYS_close_range,
];

/// The process that becomes the init once the pod's other namespaces exist.
#[derive(Debug)]
pub(crate) struct Candidate {
    order: PipeWriter,
}

impl Candidate {
    /// Starts it, as a child of the caller's parent, while the caller still has the host's rights.
    pub(crate) fn start(report: &PipeWriter) -> io::Result<Self> {
        let program = confine::own_program()?;
        let helper = pidfd::open(std::process::id())?;
        let (begin, order) = io::pipe()?;
        process::fork_sibling(|| {
            // Otherwise it would wait for itself when the caller is gone.
            if let Ok(fd) = u32::try_from(order.as_raw_fd()) {
                let _ = process::close_one(fd);
            }
            execute(&program, &begin, report, &helper)
        })?;
        Ok(Self { order })
    }

    /// Makes it join the caller's namespaces and become the init, which the report confirms.
    pub(crate) fn begin(mut self, kinds: &[Namespace], user: bool) -> io::Result<()> {
        let names = kinds.iter().filter(|kind| KINDS.contains(kind)).map(|kind| kind.name());
        let words: Vec<&str> = user.then_some(USER).into_iter().chain(names).collect();
        self.order.write_all(format!("{}\n", words.join(" ")).as_bytes())
    }
}

/// Runs this program anew, since a fork has the monitor's memory. Returns only on error.
fn execute(program: &OwnedFd, begin: &PipeReader, report: &PipeWriter, helper: &OwnedFd) -> i32 {
    let started = rustix::stdio::dup2_stdin(begin)
        .and_then(|()| rustix::stdio::dup2_stdout(report))
        .and_then(|()| rustix::stdio::dup2_stderr(helper))
        .map_err(io::Error::from)
        .and_then(|()| confine::execute(program.as_fd(), NAME));
    let error = match started {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let mut report = report;
    let _ = report.write_all(format!("run the program of the pod's process 1: {error}\n").as_bytes());
    1
}

/// Whether [`Candidate::start`] started this process.
pub(crate) fn is_wanted() -> bool {
    std::env::args_os().next().is_some_and(|name| name.as_encoded_bytes() == NAME.to_bytes())
}

/// The candidate's life: standard input is its order, standard output the report, and standard error the helper.
pub(crate) fn run() -> ExitCode {
    match become_first() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(error);
            ExitCode::FAILURE
        }
    }
}

type Step = (&'static str, io::Error);

fn step(what: &'static str) -> impl Fn(io::Error) -> Step {
    move |error| (what, error)
}

fn tell((what, error): Step) {
    let line = format!("{what} for the pod's process 1: {error}\n");
    let _ = rustix::io::write(rustix::stdio::stdout(), line.as_bytes());
}

fn become_first() -> Result<(), Step> {
    process::close_from(3).map_err(step("close descriptors"))?;
    process::block_signals().map_err(step("block signals"))?;
    let mut order = [0; ORDER_BYTES];
    let length = rustix::io::read(rustix::stdio::stdin(), &mut order)
        .map_err(io::Error::from)
        .map_err(step("read the order"))?;
    let Some(order) = str::from_utf8(&order[..length]).ok().and_then(|order| order.strip_suffix('\n')) else {
        // The helper failed, and reports why.
        return Ok(());
    };
    let words: Vec<&str> = order.split_ascii_whitespace().collect();
    let kinds: Vec<Namespace> = KINDS.into_iter().filter(|kind| words.contains(&kind.name())).collect();
    let user = words.contains(&USER);
    namespace::join(rustix::stdio::stderr(), &kinds, user).map_err(step("join namespaces"))?;
    if user {
        userns::become_root().map_err(step("become root of the user namespace"))?;
    }
    namespace::unshare(Namespace::Pid).map_err(step("make pid namespace"))?;
    // The monitor's child, so that it can end with it.
    let init = process::fork_sibling(|| {
        let Err(error) = confine().and_then(|()| live());
        tell(error);
        1
    });
    let line = format!("{INIT}{}\n", init.map_err(step("start a process"))?);
    rustix::io::write(rustix::stdio::stdout(), line.as_bytes())
        .map_err(io::Error::from)
        .map_err(step("report"))?;
    Ok(())
}

/// Reaps for ever.
fn live() -> Result<std::convert::Infallible, Step> {
    loop {
        while let Ok(Some(_)) = process::reap_any() {}
        match process::await_signal() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(("wait for signals", error));
            }
            _ => {}
        }
    }
}

fn confine() -> Result<(), Step> {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(NAME);
    // Its cgroups' location is no secret, and not every kernel has such namespaces.
    let _ = confine::own_cgroup_namespace();
    confine::empty_root().map_err(step("make an empty root"))?;
    confine::give_up_rights().map_err(step("give up the rights"))?;
    // Both are forgotten when rights change.
    confine::hide().map_err(step("forbid tracing"))?;
    confine::end_with_parent().map_err(step("tie the life to its monitor's"))?;
    seccomp::allow_only(&CALLS).map_err(step("filter system calls"))?;
    // Only the monitor reads it: without a monitor this fails, and nothing would end us.
    rustix::io::write(rustix::stdio::stdout(), format!("{READY}\n").as_bytes())
        .map_err(io::Error::from)
        .map_err(step("report"))?;
    process::close_from(0).map_err(step("close the report"))
}
