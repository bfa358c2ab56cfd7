//! The end of the machine, simulated by a PID namespace whose first process takes the name of systemd's.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::path::{Path, PathBuf};

use podwright_monitor_proto::*;
use support::{Pod, until};

/// Process 1 of the machine: starts the monitor, and on request asks all other processes to end, as the kernel lets it
/// do.
const FIRST: &str = r#"
exec 3<&0 </dev/null
"$0" <&3 3<&- &
monitor=$!
exec 3<&-
read line <go
trap '' TERM
$line
wait $monitor
echo $? >ended
"#;

/// A machine with one pod; `name` is that of process 1.
struct Machine {
    pod: Pod,
}

impl Machine {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join(name);
        std::fs::copy("/bin/sh", &first).unwrap();
        let pod = Pod::launch_within(name, |monitor, place| {
            assert!(std::process::Command::new("mkfifo").arg(place.join("go")).status().unwrap().success());
            let mut command = std::process::Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
            command.arg(&first).args(["-c", FIRST]).arg(monitor).current_dir(place);
            command.stderr(std::fs::File::create(place.join("monitor.log")).unwrap());
            command
        });
        Self { pod }
    }

    /// Runs a container; its first process reports when it is ready.
    fn run(&mut self, id: &str, script: &str) {
        self.pod.bundle(id, &["sh", "-c", script], |_| {});
        // Its pids are those of the machine.
        self.pod.run_with(self.pod.run_request(id));
        until("it is ready", || self.pod.log(id).iter().any(|line| line.ends_with("ready")));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pod.dir.join(name)
    }

    fn order(&self, line: &str) {
        std::fs::write(self.file("go"), format!("{line}\n")).unwrap();
    }

    fn exit_record(&self, id: &str) -> PathBuf {
        self.pod.path(&format!("exits/{id}.json"))
    }
}

fn ended(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
}

#[test]
fn a_monitor_ends_with_the_last_container_when_the_machine_ends() {
    let mut machine = Machine::new("systemd-shutdown");
    // It has a handler, and continues until released.
    machine.run(
        "slow",
        "trap 'echo asked; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
    );
    // No SIGTERM can end it, as the first process of its namespace.
    machine.run("deaf", "echo ready; exec sleep 1000");
    // Nor this one, but the process it waits for has a handler.
    machine.run(
        "shell",
        "(trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done) & wait; wait; exit 5",
    );
    machine.order("kill -s TERM -- -1");
    assert_eq!(machine.pod.client.exit_of("deaf").exit_code, 137);
    assert_eq!(machine.pod.client.exit_of("shell").exit_code, 5);
    assert!(machine.pod.log("shell").iter().any(|line| line.ends_with("saved")));
    until("it was asked", || machine.pod.log("slow").iter().any(|line| line.ends_with("asked")));
    // The monitor stays for it.
    assert!(matches!(machine.pod.client.call(Request::List), Reply::List { .. }));
    std::fs::write(machine.pod.path("slow/rootfs/tmp/go"), "").unwrap();
    machine.pod.client.read_to_end();
    until("it has ended", || ended(&machine.file("ended")));
    assert_eq!(std::fs::read_to_string(machine.file("ended")).unwrap(), "0\n");
    for id in ["slow", "deaf", "shell"] {
        assert!(machine.exit_record(id).exists(), "{id}");
    }
}

#[test]
fn a_pod_without_containers_ends_at_once_with_the_machine() {
    let mut machine = Machine::new("systemd-shutdown");
    machine.order("kill -s TERM -- -1");
    machine.pod.client.read_to_end();
    until("it has ended", || ended(&machine.file("ended")));
}

#[test]
fn process_1_alone_is_no_end_of_the_machine() {
    let mut machine = Machine::new("systemd");
    machine.order("kill -s TERM -- -1");
    let diary = machine.file("monitor.log");
    until("it was told", || {
        std::fs::read_to_string(&diary).is_ok_and(|text| text.contains("SIGTERM of process 1 ignored"))
    });
    assert!(matches!(machine.pod.client.call(Request::List), Reply::List { .. }));
    assert!(!machine.file("ended").exists());
}
