//! What the service manager hears of the daemon.

use podwright_testkit::daemon::default_binary;
use podwright_testkit::{Scratch, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
/// The manager's expected interval; the daemon reports three times as often.
const PERIOD: Duration = Duration::from_millis(600);

struct Manager {
    socket: UnixDatagram,
    daemon: Child,
    log: std::path::PathBuf,
}

impl Manager {
    fn start(scratch: &Scratch) -> Self {
        let address = scratch.root().join("notify");
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let log = scratch.daemon_log();
        let daemon = Command::new(default_binary())
            .args(["serve", "--config"])
            .arg(scratch.config_file())
            .env("NOTIFY_SOCKET", &address)
            .env("WATCHDOG_USEC", PERIOD.as_micros().to_string())
            .stderr(File::create(&log).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { socket, daemon, log }
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 256];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    fn hears(&self, wanted: &str) {
        let heard = wait_for(wanted, PATIENCE, || {
            while let Some(said) = self.next() {
                if said.contains(wanted) {
                    return Some(());
                }
            }
            None
        });
        assert!(heard.is_ok(), "{wanted:?} never came; {}", std::fs::read_to_string(&self.log).unwrap());
    }

    /// Waits until the daemon has logged this many lines of its own silence.
    fn silent(&self, times: usize) {
        let logged = wait_for("the daemon notices", PATIENCE, || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            (log.matches("does not answer itself").count() >= times).then_some(())
        });
        assert!(logged.is_ok(), "{}", std::fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn the_watchdog_hears_of_a_daemon_only_while_its_socket_answers() {
    let scratch = Scratch::new().unwrap();
    let mut manager = Manager::start(&scratch);
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    // The process runs on, but no kubelet could reach it.
    std::fs::remove_file(scratch.socket()).unwrap();
    manager.silent(1);
    while manager.next().is_some() {}
    manager.silent(3);
    assert_eq!(manager.next(), None);
    let pid = Pid::from_raw(i32::try_from(manager.daemon.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    manager.hears("STOPPING=1");
    assert!(manager.daemon.wait().unwrap().success());
}
