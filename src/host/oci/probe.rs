//! The start-up probes: a runtime is taken as the default only after it has really run a container here, and can do
//! what it has been seen to do. A version string proves nothing; a crun may refuse the host's cgroup mounts.

use super::runtimes::CgroupPath;
use super::{OciError, Runtime};
use serde_json::{Value, json};
use std::path::Path;

/// Directories of the host that the probe's program may need, mounted read-only.
const HOST_DIRS: [&str; 5] = ["/usr", "/bin", "/lib", "/lib32", "/lib64"];

/// Runs `/bin/true` in fresh namespaces and a fresh cgroup.
pub(super) async fn works(runtime: &Runtime, state: &Path, cgroup: CgroupPath<'_>) -> Result<(), OciError> {
    run(runtime, state, cgroup, "works", &["/bin/true"], &[]).await.map(|_| ())
}

/// Whether a mount with the option `rro` is read-only with all that is below it. Shown by the host's /sys, below which
/// the cgroup hierarchies always are.
pub(super) async fn recursive_read_only(
    runtime: &Runtime,
    state: &Path,
    cgroup: CgroupPath<'_>,
) -> Result<bool, OciError> {
    let mount = json!({
        "destination": SHOWN, "type": "bind", "source": "/sys", "options": ["rbind", "rro", "rprivate"],
    });
    let show = ["/bin/cat", "/proc/self/mountinfo"];
    let table = run(runtime, state, cgroup, "rro", &show, &[mount]).await?;
    Ok(all_read_only(&String::from_utf8_lossy(&table)))
}

/// Where the probe's container has the mount that is looked at.
const SHOWN: &str = "/probed";

fn all_read_only(mountinfo: &str) -> bool {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let below: Vec<_> =
        fields.filter(|f| f.get(4).is_some_and(|point| Path::new(point).starts_with(SHOWN))).collect();
    // With nothing below it, nothing is shown.
    below.len() > 1
        && below.iter().all(|f| f.get(5).is_some_and(|options| options.split(',').any(|o| o == "ro")))
}

async fn run(
    runtime: &Runtime,
    state: &Path,
    cgroup: CgroupPath<'_>,
    purpose: &str,
    command: &[&str],
    mounts: &[Value],
) -> Result<Vec<u8>, OciError> {
    let id = format!("probe-{purpose}-{}-{}", runtime.name, std::process::id());
    let bundle = state.join(&id);
    let made = make(&bundle, &spec(&cgroup(&id).to_string_lossy(), command, mounts));
    let result = match made {
        Ok(()) => {
            let bundle = bundle.to_string_lossy();
            runtime.call("run", &id, &["run", "--bundle", &bundle, &id], None).await
        }
        Err(source) => Err(OciError::Probe { path: bundle.clone(), source }),
    };
    if result.is_err() {
        // It may have got half-way; that it cannot delete either is no news.
        let _ = runtime.delete(&id).await;
    }
    // Below the state directory, which the next boot clears.
    let _ = std::fs::remove_dir_all(&bundle);
    result
}

fn make(bundle: &Path, spec: &Value) -> std::io::Result<()> {
    std::fs::create_dir_all(bundle.join("rootfs"))?;
    std::fs::write(bundle.join("config.json"), spec.to_string())
}

fn spec(cgroup: &str, command: &[&str], further: &[Value]) -> Value {
    let mut mounts = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
    for dir in HOST_DIRS.into_iter().filter(|dir| Path::new(dir).is_dir()) {
        mounts.push(json!({
            "destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro", "rprivate"],
        }));
    }
    mounts.extend_from_slice(further);
    json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": command, "cwd": "/", "noNewPrivileges": true },
        "root": { "path": "rootfs" },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "resources": { "pids": { "limit": 16 } },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mount_that_can_be_written_tells() {
        let line = |point: &str, options: &str| format!("9 8 0:1 / {point} {options} - tmpfs t rw\n");
        let others = line("/", "rw") + &line("/probed-not", "rw") + &line("/probed", "ro,nosuid");
        assert!(!all_read_only(&others));
        assert!(all_read_only(&(others.clone() + &line("/probed/fs/cgroup", "ro"))));
        assert!(!all_read_only(&(others + &line("/probed/fs/cgroup", "rw,relatime"))));
    }
}
