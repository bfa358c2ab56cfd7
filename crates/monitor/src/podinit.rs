//! PID 1 of a pod's shared pid namespace: reaps, and ends with its monitor, which ends the namespace. No signal but
//! SIGKILL ends it: at the end of the machine everybody gets SIGTERM, and containers are to have their time then. Does
//! and holds nothing else: one descriptor, no memory worth naming.

use std::io::PipeReader;

use podwright_sys::process::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};

/// Never returns before its end; the value is the exit code. The other end of `leash` is the monitor's alone: when that
/// is killed and nobody is left who could find this process, its end is told here.
pub(crate) fn run(leash: &PipeReader) -> i32 {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"podwright-init");
    // As standard input, so that everything else can be closed at once. The helper's report pipe is among that: when the
    // monitor reads its end, all of this is done.
    if rustix::stdio::dup2_stdin(leash).is_err() || process::close_from(3).is_err() {
        return 1;
    }
    let Ok(mut signals) = Signals::collect() else { return 1 };
    loop {
        while let Ok(Some(_)) = process::reap_any() {}
        let leash = rustix::stdio::stdin();
        let mut fds = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&leash, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        // Nothing is ever written: what there is to see is the end.
        if !fds[1].revents().is_empty() {
            return 0;
        }
        while let Ok(Some(_)) = signals.take() {}
    }
}
