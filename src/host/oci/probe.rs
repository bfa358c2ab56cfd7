//! The probes: a runtime is taken as the default, and said to have user namespaces, only after it has really run a
//! container here. A version string proves nothing; a crun may refuse the host's cgroup mounts.

use super::{OciError, Runtime};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Directories of the host that the probe's program may need, mounted read-only.
const HOST_DIRS: [&str; 5] = ["/usr", "/bin", "/lib", "/lib32", "/lib64"];

/// A user namespace that there is.
#[derive(Debug, Clone, Copy)]
pub struct UserNamespace<'a> {
    /// Where it is found.
    pub path: &'a str,
    /// First uid and gid on the host, of root inside.
    pub owner: (u32, u32),
    /// How many ids it has.
    pub count: u32,
}

/// Runs `/bin/true` in fresh namespaces and a fresh cgroup; in the user namespace that is given.
pub(super) async fn works(
    runtime: &Runtime,
    state: &Path,
    cgroup_parent: &str,
    user: Option<UserNamespace<'_>>,
) -> Result<(), OciError> {
    let kind = if user.is_some() { "userns-probe" } else { "probe" };
    let id = format!("{kind}-{}-{}", runtime.name, std::process::id());
    let bundle = state.join(&id);
    let made = make(&bundle, &format!("{cgroup_parent}/{id}"), user);
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

/// With a user namespace, as containers have it: their bundle is private but for the namespace's root, and the root
/// directory belongs to that one.
fn make(bundle: &Path, cgroup: &str, user: Option<UserNamespace<'_>>) -> std::io::Result<()> {
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root)?;
    let mut spec = spec(cgroup);
    if let Some(UserNamespace { path, owner: (uid, gid), count }) = user {
        std::os::unix::fs::chown(&root, Some(uid), Some(gid))?;
        std::os::unix::fs::chown(bundle, None, Some(gid))?;
        std::fs::set_permissions(bundle, std::fs::Permissions::from_mode(0o710))?;
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({ "type": "user", "path": path }));
        }
        spec["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": count }]);
        spec["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": count }]);
    }
    std::fs::write(bundle.join("config.json"), spec.to_string())
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
