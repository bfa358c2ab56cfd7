//! Plugins that outlived the daemon that called them. One that goes on with its ADD while the next daemon runs DEL
//! would leave an address that nobody frees: it is killed. One that is in DEL is let go on, since what it has half removed
//! a second DEL may not find (bridge, whose interface is gone by then, leaves its masquerade rules); the next DEL waits.
//!
//! Identifies them and their children by the sandbox in their environment. Only kills.

use crate::host::offload;
use crate::model::SandboxId;
use podwright_sys::{pidfd, proc};
use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of an environment examined: the daemon's own, which a service manager keeps small, and six variables.
const ENVIRONMENT_LIMIT: u64 = 256 << 10;
/// How long to wait for a killed one; one in uninterruptible sleep may take longer, and is left.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Those that are let go on, by their sandbox: pids with their start times.
pub type Leaving = HashMap<String, Vec<(u32, u64)>>;

/// Kills the plugins of these sandboxes but those that are in DEL, which are returned, and returns when they have ended.
/// Blocking.
pub(super) fn end(sandboxes: &HashSet<&str>) -> Leaving {
    let mut leaving = Leaving::new();
    if sandboxes.is_empty() {
        return leaving;
    }
    let deadline = Instant::now() + END_WITHIN;
    // In rounds: a plugin may start another between the check and the kill.
    while Instant::now() < deadline {
        let (leave, found): (Vec<_>, Vec<_>) = find(sandboxes).into_iter().partition(|orphan| orphan.leaves);
        if found.is_empty() {
            for Orphan { pid, process, sandbox, .. } in leave {
                // Log: The daemon died while the plugin detached a pod.
                tracing::info!(
                    pid,
                    sandbox,
                    "a CNI plugin that detaches a pod outlived its daemon, and goes on"
                );
                // Read while its descriptor is held. One that has ended needs no waiting for.
                let started = proc::start_time(pid);
                drop(process);
                leaving.entry(sandbox).or_default().extend(started.map(|started| (pid, started)));
            }
            return leaving;
        }
        for Orphan { pid, process, sandbox, .. } in &found {
            // Log: The daemon died while the plugin ran; its pod is NotReady.
            // Do: Nothing: the kubelet replaces the pod.
            tracing::warn!(pid, sandbox, "killing a CNI plugin that outlived the daemon that called it");
            // Gone meanwhile is as good.
            let _ = pidfd::send_signal(process.as_fd(), pidfd::SIGKILL);
        }
        for Orphan { pid, .. } in &found {
            while Instant::now() < deadline && proc::state(*pid).is_ok_and(|state| state != 'Z') {
                std::thread::sleep(PAUSE);
            }
        }
    }
    // Log: A plugin that ran when the daemon died was killed but hangs in the kernel. Its pod's network may be
    // incomplete.
    // Do: `ps -o pid,stat,wchan`: look for processes in state D. It may still take an address when it continues.
    tracing::error!("a CNI plugin of an earlier daemon does not end");
    leaving
}

/// Waits for those that are let go on; those that take longer than `limit` are killed.
pub(super) async fn wait(processes: Vec<(u32, u64)>, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    for (pid, started) in processes {
        // The descriptor first: what is looked at afterwards is what is waited for.
        let Ok(process) = pidfd::open(pid) else { continue };
        if !proc::start_time(pid).is_ok_and(|time| time == started) {
            continue;
        }
        let ended = async { offload::ended(process.try_clone()?).await };
        if !matches!(tokio::time::timeout_at(deadline, ended).await, Ok(Ok(()))) {
            // Gone meanwhile is as good.
            let _ = pidfd::send_signal(process.as_fd(), pidfd::SIGKILL);
        }
    }
}

struct Orphan {
    pid: u32,
    process: OwnedFd,
    sandbox: String,
    /// It is in DEL.
    leaves: bool,
}

fn find(sandboxes: &HashSet<&str>) -> Vec<Orphan> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        // The descriptor first: the checks that follow then concern the process that gets the signal.
        let process = pidfd::open(pid).ok()?;
        let (sandbox, leaves) = called_for(&environment(pid)?)?;
        let sandbox = SandboxId::parse(&sandbox).ok()?;
        // A dead one that is not reaped has no environment any more.
        let ours = sandboxes.contains(sandbox.as_str());
        ours.then(|| Orphan { pid, process, sandbox: sandbox.to_string(), leaves })
    })
    .collect()
}

fn environment(pid: u32) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRONMENT_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The sandbox that a plugin with this environment was called for, and whether to detach it.
fn called_for(environment: &[u8]) -> Option<(String, bool)> {
    let value = |name: &str| {
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    let leaves = value("CNI_COMMAND")? == b"DEL";
    Some((String::from_utf8(value("CNI_CONTAINERID")?.to_vec()).ok()?, leaves))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_plugins_environment_names_its_sandbox() {
        let of = |text: &[u8]| called_for(text);
        assert_eq!(of(b"A=1\0CNI_COMMAND=ADD\0CNI_CONTAINERID=x\0"), Some(("x".to_owned(), false)));
        assert_eq!(of(b"A=1\0CNI_COMMAND=DEL\0CNI_CONTAINERID=x\0"), Some(("x".to_owned(), true)));
        assert_eq!(of(b"CNI_CONTAINERID=x\0"), None);
        assert_eq!(of(b"NOT_CNI_COMMAND=ADD\0CNI_CONTAINERID=x\0"), None);
        assert_eq!(of(b""), None);
    }

    #[tokio::test]
    async fn a_plugin_in_del_goes_on_and_is_waited_for() {
        let id = SandboxId::random().unwrap();
        let start = || {
            let mut shell = Command::new("sh");
            let shell = shell.args(["-c", "read line; exit 7"]).env("CNI_COMMAND", "DEL");
            shell.env("CNI_CONTAINERID", id.as_str()).stdin(std::process::Stdio::piped()).spawn().unwrap()
        };
        let mut plugin = start();
        let mut leaving = end(&HashSet::from([id.as_str()]));
        assert!(plugin.try_wait().unwrap().is_none(), "it was killed");
        let waiting = wait(leaving.remove(id.as_str()).unwrap(), Duration::from_secs(60));
        drop(plugin.stdin.take());
        waiting.await;
        assert_eq!(plugin.wait().unwrap().code(), Some(7));
        let mut stuck = start();
        let stays = end(&HashSet::from([id.as_str()])).remove(id.as_str()).unwrap();
        wait(stays, Duration::ZERO).await;
        assert_eq!(stuck.wait().unwrap().code(), None, "it was not killed");
    }

    #[test]
    fn only_plugins_of_the_given_sandboxes_are_ended() {
        let (ours, other) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        let start = |id: &SandboxId| {
            // A plugin's children have its environment.
            let mut shell = Command::new("sh");
            let shell = shell.args(["-c", "sleep 1000 & wait"]).env("CNI_COMMAND", "ADD");
            shell.env("CNI_CONTAINERID", id.as_str()).spawn().unwrap()
        };
        let (mut killed, mut left) = (start(&ours), start(&other));
        end(&HashSet::from([ours.as_str()]));
        assert!(!killed.wait().unwrap().success());
        assert!(find(&HashSet::from([ours.as_str()])).is_empty());
        assert!(left.try_wait().unwrap().is_none());
        end(&HashSet::from([other.as_str()]));
        left.wait().unwrap();
    }
}
