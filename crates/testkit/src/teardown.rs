//! Removing a scratch node, whatever state a failed test left it in.
//!
//! Owns the order: processes, mounts, network, cgroups, directory. It goes on
//! after a failure, since the next step may still work. It never touches
//! anything that [`crate::ledger`] does not ascribe to the node.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::host_ports;
use crate::ledger::{self, Ledger};
use crate::scratch::{self, Scratch};
use crate::shared;
use crate::wait::wait_for;

/// After SIGKILL only the kernel can delay a process, by I/O that hangs.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Removes every trace of the node and gives what could not be removed.
pub fn remove(scratch: &Scratch) -> Ledger {
    kill(scratch);
    for mount in ledger::mounts(scratch.root()).iter().rev() {
        report("unmount", &mount.point, unmount(mount.point.as_str(), UnmountFlags::DETACH));
    }
    remove_rules(scratch);
    for link in ledger::links(scratch.bridge()).iter().rev() {
        run(Command::new("ip").args(["link", "delete", link]));
    }
    for cgroup in ledger::cgroups(scratch.id()).iter().rev() {
        report("remove cgroup", &cgroup.display().to_string(), std::fs::remove_dir(cgroup));
    }
    report("remove", &scratch.root().display().to_string(), std::fs::remove_dir_all(scratch.root()));
    remove_shared(scratch);
    Ledger::of(scratch)
}

/// Frees what nodes share: the subnet's reservation and, with the last node, the host-wide chains.
fn remove_shared(scratch: &Scratch) {
    let base = shared::base();
    let lock = shared::lock(&base);
    let _ = std::fs::remove_file(shared::subnet_file(&base, scratch::octet(scratch)));
    if Scratch::all().is_empty() && std::fs::remove_file(shared::host_ports_mark(&base)).is_ok() {
        host_ports::remove_unused();
    }
    report("lock", "scratch nodes", lock);
}

/// Kills in rounds: a monitor may start something between the check and the kill.
fn kill(scratch: &Scratch) {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let gone = wait_for("processes of the scratch node end", KILL_LIMIT, || {
        let processes = ledger::processes(scratch);
        for process in &processes {
            if let Some(pid) = Pid::from_raw(process.pid) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // Zombies count, since init reaps them at once; only this process's own are `Daemon`'s to reap.
        processes.iter().all(|process| process.parent == own && process.is_zombie()).then_some(())
    });
    report("kill", scratch.id(), gone);
}

fn remove_rules(scratch: &Scratch) {
    let rules = ledger::rules(scratch);
    let ours = |text: &str| text.contains(scratch.id()) || text.contains(&scratch.subnet_prefix());
    // Rules of the node's chains go by flushing these; rules elsewhere one by one.
    for rule in rules.iter().filter(|rule| ours(&rule.text)) {
        if let Some(tail) = rule.text.strip_prefix("-A ") {
            // iptables-save quotes as a shell does, so a shell reads it back.
            run(Command::new("sh").arg("-c").arg(format!("{} -w -t {} -D {tail}", rule.program, rule.table)));
        }
    }
    for rule in &rules {
        if let Some(chain) = rule.text.strip_prefix(':') {
            run(Command::new(rule.program).args(["-w", "-t", &rule.table, "-F", chain]));
            run(Command::new(rule.program).args(["-w", "-t", &rule.table, "-X", chain]));
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output();
    if !output.as_ref().is_ok_and(|o| o.status.success()) {
        report::<(), _>("run", &format!("{command:?}"), Err(format!("{output:?}")));
    }
}

fn report<T, E: std::fmt::Display>(operation: &str, what: &str, result: Result<T, E>) {
    if let Err(error) = result {
        // Errors cannot be returned: this runs in destructors.
        let _ = writeln!(std::io::stderr(), "teardown: {operation} {what}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_node_is_removed_completely() {
        let scratch = Scratch::new().unwrap().keep();
        let id = scratch.id().to_owned();
        let dir = scratch.netns_dir();
        let sh =
            |script: String| assert!(Command::new("sh").args(["-ec", &script]).status().unwrap().success());
        sh(format!(
            "mount -t tmpfs scratch {0} && mkdir {0}/in && mount -t tmpfs deeper {0}/in",
            dir.display()
        ));
        sh(format!("ip link add {id} type bridge"));
        sh(format!("iptables -w -t nat -N CNI-{:0>24}", &id[4..]));
        sh(format!(
            "iptables -w -t nat -A CNI-{:0>24} -d {}0/24 -m comment --comment 'name: \"{id}\" id: \"a\"' -j ACCEPT",
            &id[4..],
            scratch.subnet_prefix()
        ));
        let cgroup = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .iter()
            .find(|d| std::path::Path::new(d).is_dir())
            .unwrap();
        let cgroup = format!("{cgroup}/{id}/pod");
        std::fs::create_dir_all(&cgroup).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(format!("{cgroup}/cgroup.procs"), child.id().to_string()).unwrap();
        let before = Ledger::of(&scratch);
        assert_eq!((before.processes.len(), before.mounts.len(), before.links.len()), (1, 2, 1), "{before}");
        assert!(before.cgroups.len() >= 2 && before.rules.len() == 2, "{before}");

        std::thread::scope(|threads| {
            threads.spawn(|| child.wait());
            let left = remove(&scratch);
            assert!(left.is_empty() && !scratch.root().exists(), "{left}");
        });
    }
}
