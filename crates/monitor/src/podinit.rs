//! PID 1 of a pod's shared pid namespace: reaps, and ends on SIGTERM from outside, which ends the namespace. Does and
//! holds nothing else: no descriptor of the monitor, no memory worth naming.

use podwright_sys::process::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};

const SIGTERM: i32 = 15;

/// Never returns before its end; the value is the exit code.
pub(crate) fn run() -> i32 {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"podwright-init");
    // The helper's report pipe is among these: when the monitor reads its end, all of this is done.
    if process::close_from(3).is_err() {
        return 1;
    }
    let Ok(mut signals) = Signals::collect() else { return 1 };
    loop {
        while let Ok(Some(_)) = process::reap_any() {}
        let mut fds = [PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        while let Ok(Some(received)) = signals.take() {
            // A sender inside the namespace has a pid here: a container may not end its pod this way.
            if received.signal == SIGTERM && received.sender == 0 {
                return 0;
            }
        }
    }
}
