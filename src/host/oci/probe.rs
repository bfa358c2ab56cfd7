//! The start-up probes: a runtime becomes the default only after it has really run a container here, and has only the
//! capabilities that it has shown. A version string proves nothing; crun may refuse the host's cgroup mounts.

use super::keyring::{NO_NEW_KEYRING, lacks_room_for_keyring};
use super::surroundings::Surroundings;
use super::{OciError, Runtime};
use crate::host::remove;
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

/// Directories of the host that the probe's program may need, mounted read-only.
const HOST_DIRS: [&str; 5] = ["/usr", "/bin", "/lib", "/lib32", "/lib64"];

/// youki's `run` misses the end of a container that ends before it looks, and then waits for ever, unless another
/// SIGCHLD comes. Longer than a probe takes, so that no other runtime gets one.
const NUDGE: Duration = Duration::from_millis(500);

/// An existing user namespace.
#[derive(Debug, Clone, Copy)]
pub struct UserNamespace<'a> {
    /// Where it is found.
    pub path: &'a str,
    /// The same for a UTS namespace that belongs to it: youki cannot open another one's path once it is in the first.
    pub uts: &'a str,
    /// First uid and gid on the host, of root inside.
    pub owner: (u32, u32),
    /// How many ids it has.
    pub count: u32,
}

/// Runs `/bin/true` in fresh namespaces and a fresh cgroup.
pub(super) async fn works(runtime: &Runtime, around: Surroundings<'_>) -> Result<(), OciError> {
    run(runtime, around, "works", &["/bin/true"], Further::Nothing).await.map(|_| ())
}

/// The same in an existing user namespace, as for containers of pods.
pub(super) async fn user_namespace(
    runtime: &Runtime,
    around: Surroundings<'_>,
    user: UserNamespace<'_>,
) -> Result<(), OciError> {
    run(runtime, around, "userns", &["/bin/true"], Further::User(user)).await.map(|_| ())
}

/// The same with a root whose mounts propagate by one of runc's names.
pub(super) async fn recursive_propagation(
    runtime: &Runtime,
    around: Surroundings<'_>,
) -> Result<(), OciError> {
    run(runtime, around, "rslave", &["/bin/true"], Further::Propagation("rslave")).await.map(|_| ())
}

/// Whether a mount with the option `rro` is recursively read-only. Shown by the host's /sys, which always has the
/// cgroup hierarchies below it.
pub(super) async fn recursive_read_only(
    runtime: &Runtime,
    around: Surroundings<'_>,
) -> Result<bool, OciError> {
    let mount = json!({
        "destination": SHOWN, "type": "bind", "source": "/sys", "options": ["rbind", "rro", "rprivate"],
    });
    let show = ["/bin/cat", "/proc/self/mountinfo"];
    let table = run(runtime, around, "rro", &show, Further::Mount(mount)).await?;
    Ok(all_read_only(&String::from_utf8_lossy(&table)))
}

/// Place of the tested mount in the probe's container.
const SHOWN: &str = "/probed";

fn all_read_only(mountinfo: &str) -> bool {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let below: Vec<_> =
        fields.filter(|f| f.get(4).is_some_and(|point| Path::new(point).starts_with(SHOWN))).collect();
    // With nothing below it, nothing is proved.
    below.len() > 1
        && below.iter().all(|f| f.get(5).is_some_and(|options| options.split(',').any(|o| o == "ro")))
}

/// Removes the remains of a killed daemon's probes.
pub(super) async fn sweep(runtime: &Runtime, around: Surroundings<'_>) {
    let entries = std::fs::read_dir(around.state).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for id in names.filter(|name| is_of(name, &runtime.name)) {
        let bundle = around.state.join(&id);
        let deleted = runtime.delete(&id).await;
        // Before its bundle, by which the next start would find it.
        (around.clear_cgroup)(&id);
        let removed = match deleted {
            Ok(()) => remove::tree(&bundle)
                .map_err(|error| OciError::Probe { path: bundle.clone(), source: error.into() }),
            // The next start has its bundle to find it by.
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            // Log: The OCI runtime cannot delete the container with which a killed daemon tested it. No pod is
            // affected.
            // Do: Remove `probe-*` below `state` and the runtime's directory of that name, or reboot.
            tracing::warn!(%error, "an earlier start-up probe cannot be removed");
        }
    }
}

/// Whether a name is that of a probe of this runtime: its purpose has no dash, the runtime's name may have.
fn is_of(name: &str, runtime: &str) -> bool {
    let inner = name.strip_prefix("probe-").and_then(|rest| rest.split_once('-'));
    inner.and_then(|(_, rest)| rest.rsplit_once('-')).is_some_and(|(of, _)| of == runtime)
}

/// Further properties of a probe.
enum Further<'a> {
    Nothing,
    Mount(Value),
    /// Of the root's mounts.
    Propagation(&'static str),
    User(UserNamespace<'a>),
}

async fn run(
    runtime: &Runtime,
    around: Surroundings<'_>,
    purpose: &str,
    command: &[&str],
    further: Further<'_>,
) -> Result<Vec<u8>, OciError> {
    let id = format!("probe-{purpose}-{}-{}", runtime.name, std::process::id());
    let bundle = around.state.join(&id);
    let spec = spec(&(around.probe_cgroup)(&id).to_string_lossy(), command);
    let made = make(&bundle, spec, further);
    let result = match made {
        Ok(()) => {
            let bundle = bundle.to_string_lossy();
            let command = || runtime.program().args(["run", "--bundle", &bundle]);
            let first = runtime.finish("run", &id, command().args([&id]).nudge(NUDGE)).await;
            match &first {
                Err(OciError::Failed { message, .. }) if lacks_room_for_keyring(message) => {
                    let _ = runtime.delete(&id).await;
                    let again = command().args([NO_NEW_KEYRING, &id]).nudge(NUDGE);
                    runtime.finish("run", &id, again).await
                }
                Ok(_) | Err(_) => first,
            }
        }
        Err(source) => Err(OciError::Probe { path: bundle.clone(), source }),
    };
    if result.is_err() {
        // It may have got half-way; its failure to delete is not news.
        let _ = runtime.delete(&id).await;
        (around.clear_cgroup)(&id);
    }
    // Below the state directory, which the next boot clears.
    let _ = remove::tree(&bundle);
    result
}

/// With a user namespace, as for containers: their bundle is private except for the namespace's root, which owns the
/// root directory.
fn make(bundle: &Path, mut spec: Value, further: Further<'_>) -> std::io::Result<()> {
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root)?;
    match further {
        Further::Nothing => {}
        Further::Propagation(name) => spec["linux"]["rootfsPropagation"] = name.into(),
        Further::Mount(mount) => {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(mount);
            }
        }
        Further::User(UserNamespace { path, uts, owner: (uid, gid), count }) => {
            std::os::unix::fs::chown(&root, Some(uid), Some(gid))?;
            std::os::unix::fs::chown(bundle, None, Some(gid))?;
            std::fs::set_permissions(bundle, std::fs::Permissions::from_mode(0o710))?;
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "uts");
                namespaces.push(json!({ "type": "user", "path": path }));
                namespaces.push(json!({ "type": "uts", "path": uts }));
            }
            spec["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": count }]);
            spec["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": count }]);
        }
    }
    // As that of a container: the runtime reads it as root.
    let mut config = std::fs::OpenOptions::new();
    let config = config.write(true).create(true).truncate(true).mode(0o600).open(bundle.join("config.json"));
    config?.write_all(spec.to_string().as_bytes())
}

fn spec(cgroup: &str, command: &[&str]) -> Value {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        // The bundle lies on /run, where systemd allows no devices: /dev/null must be on a file system that does.
        json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"],
        }),
    ];
    for dir in HOST_DIRS.into_iter().filter(|dir| Path::new(dir).is_dir()) {
        mounts.push(json!({
            "destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro", "rprivate"],
        }));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": command, "cwd": "/", "noNewPrivileges": true,
            // youki starts nothing without.
            "env": ["PATH=/usr/bin:/bin"],
        },
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
    fn devices_do_not_lie_where_the_bundle_does() {
        let spec = spec("/p", &["/bin/true"]);
        assert!(
            spec["mounts"]
                .as_array()
                .unwrap()
                .iter()
                .any(|m| m["destination"] == "/dev" && m["type"] == "tmpfs")
        );
    }

    #[tokio::test]
    async fn earlier_probes_of_a_runtime_are_removed_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        for name in ["probe-userns-true-7", "probe-rro-true-12", "probe-rro-not-true-12", "probe", "runtime"]
        {
            std::fs::create_dir_all(state.path().join(name).join("rootfs")).unwrap();
        }
        let cleared = std::sync::Mutex::new(Vec::new());
        let around = Surroundings {
            state: state.path(),
            systemd: false,
            probe_cgroup: &|_| std::path::PathBuf::new(),
            clear_cgroup: &|name| cleared.lock().unwrap().push(name.to_owned()),
        };
        let limit = std::time::Duration::from_mins(1);
        sweep(&Runtime::new("true", "/bin/true".into(), state.path(), &[], limit), around).await;
        let left =
            std::fs::read_dir(state.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let left = left.collect::<std::collections::BTreeSet<_>>();
        assert_eq!(left, ["probe", "probe-rro-not-true-12", "runtime"].map(str::to_owned).into());
        cleared.lock().unwrap().sort();
        assert_eq!(*cleared.lock().unwrap(), ["probe-rro-true-12", "probe-userns-true-7"]);
        // One that its runtime could not remove is found again, and its processes are gone meanwhile.
        let broken = Runtime::new("not-true", "/bin/false".into(), state.path(), &[], limit);
        sweep(&broken, around).await;
        assert!(state.path().join("probe-rro-not-true-12").exists());
        assert!(cleared.lock().unwrap().contains(&"probe-rro-not-true-12".to_owned()));
        // As does one that fails now.
        works(&broken, around).await.unwrap_err();
        let own = format!("probe-works-not-true-{}", std::process::id());
        assert!(cleared.lock().unwrap().contains(&own));
    }

    #[test]
    fn one_mount_that_can_be_written_tells() {
        let line = |point: &str, options: &str| format!("9 8 0:1 / {point} {options} - tmpfs t rw\n");
        let others = line("/", "rw") + &line("/probed-not", "rw") + &line("/probed", "ro,nosuid");
        assert!(!all_read_only(&others));
        assert!(all_read_only(&(others.clone() + &line("/probed/fs/cgroup", "ro"))));
        assert!(!all_read_only(&(others + &line("/probed/fs/cgroup", "rw,relatime"))));
    }
}
