//! The start-up probe: a runtime is taken as the default only after it has really run a container here. A version
//! string proves nothing; a crun may refuse the host's cgroup mounts.

use super::runtimes::CgroupPath;
use super::{OciError, Runtime};
use serde_json::{Value, json};
use std::path::Path;

/// Directories of the host that the probe's program may need, mounted read-only.
const HOST_DIRS: [&str; 5] = ["/usr", "/bin", "/lib", "/lib32", "/lib64"];

/// Runs `/bin/true` in fresh namespaces and a fresh cgroup.
pub(super) async fn works(runtime: &Runtime, state: &Path, cgroup: CgroupPath<'_>) -> Result<(), OciError> {
    let id = format!("probe-{}-{}", runtime.name, std::process::id());
    let bundle = state.join(&id);
    let made = make(&bundle, &cgroup(&id).to_string_lossy());
    let result = match made {
        Ok(()) => {
            let bundle = bundle.to_string_lossy();
            runtime.call("run", &id, &["run", "--bundle", &bundle, &id], None).await.map(|_| ())
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

fn make(bundle: &Path, cgroup: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(bundle.join("rootfs"))?;
    std::fs::write(bundle.join("config.json"), spec(cgroup).to_string())
}

fn spec(cgroup: &str) -> Value {
    let mut mounts = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
    for dir in HOST_DIRS.into_iter().filter(|dir| Path::new(dir).is_dir()) {
        mounts.push(json!({
            "destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro", "rprivate"],
        }));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/", "noNewPrivileges": true },
        "root": { "path": "rootfs" },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "resources": { "pids": { "limit": 16 } },
        },
    })
}
