//! Plugins that outlived the daemon that called them. One that continues its ADD while the next daemon runs DEL would
//! leave an address that is never released.
//!
//! Identifies them and their children by the sandbox in their environment. Only kills.

use crate::model::SandboxId;
use podwright_sys::{pidfd, proc};
use std::collections::HashSet;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of an environment examined: the daemon's own, which a service manager keeps small, and six variables.
const ENVIRONMENT_LIMIT: u64 = 256 << 10;
/// How long to wait for a killed one; one in uninterruptible sleep may take longer, and is left.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills the plugins of these sandboxes, and returns when they have ended. Blocking.
pub(super) fn end(sandboxes: &HashSet<&str>) {
    if sandboxes.is_empty() {
        return;
    }
    let deadline = Instant::now() + END_WITHIN;
    // In rounds: a plugin may start another between the check and the kill.
    while Instant::now() < deadline {
        let found = find(sandboxes);
        if found.is_empty() {
            return;
        }
        for Orphan { pid, process, sandbox } in &found {
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
}

struct Orphan {
    pid: u32,
    process: OwnedFd,
    sandbox: String,
}

fn find(sandboxes: &HashSet<&str>) -> Vec<Orphan> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        // The descriptor first: the checks that follow then concern the process that gets the signal.
        let process = pidfd::open(pid).ok()?;
        let sandbox = SandboxId::parse(&called_for(&environment(pid)?)?).ok()?;
        // A zombie has no environment any more.
        let ours = sandboxes.contains(sandbox.as_str());
        ours.then(|| Orphan { pid, process, sandbox: sandbox.to_string() })
    })
    .collect()
}

fn environment(pid: u32) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRONMENT_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The sandbox that a plugin with this environment was called for.
fn called_for(environment: &[u8]) -> Option<String> {
    let value = |name: &str| {
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    value("CNI_COMMAND")?;
    String::from_utf8(value("CNI_CONTAINERID")?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_plugins_environment_names_its_sandbox() {
        let of = |text: &[u8]| called_for(text);
        assert_eq!(of(b"A=1\0CNI_COMMAND=ADD\0CNI_CONTAINERID=x\0").as_deref(), Some("x"));
        assert_eq!(of(b"CNI_CONTAINERID=x\0"), None);
        assert_eq!(of(b"NOT_CNI_COMMAND=ADD\0CNI_CONTAINERID=x\0"), None);
        assert_eq!(of(b""), None);
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
