//! The start-up probe: proves that a runtime can make and delete a container on this host. A version string proves
//! nothing: a crun may refuse the host's cgroup mounts, for one.

use super::{OciError, Runtime, RuntimeStatus};
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Removes the bundle at the end.
struct Bundle(PathBuf);

impl Drop for Bundle {
    fn drop(&mut self) {
        // What is left is an empty root of ours in the state directory; nothing is mounted in it on the host's side.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Runtime {
    /// Creates a container with namespaces, mounts and a cgroup of its own, looks at it and deletes it. Its program
    /// is an empty executable file: `create` looks for it but never runs it. `work` is a directory for the bundle.
    ///
    /// # Errors
    /// When any step fails; nothing is left behind then.
    pub async fn probe(&self, work: &Path) -> Result<(), OciError> {
        let id = format!("podwright-probe-{}-{}", self.name, std::process::id());
        let bundle = Bundle(work.join(&id));
        write_bundle(&bundle.0, &id).map_err(|cause| OciError::Bundle { path: bundle.0.clone(), cause })?;
        let args = vec!["--bundle".into(), bundle.0.clone().into_os_string(), (&id).into()];
        let made = match self.call_with("create", &id, args, None, true).await {
            Ok(_) => self.expect_created(&id).await,
            Err(e) => Err(e),
        };
        let deleted = self.delete(&id, true).await;
        made.and(deleted)
    }

    async fn expect_created(&self, id: &str) -> Result<(), OciError> {
        let state = self.state(id).await?;
        match state {
            Some(state) if state.status == RuntimeStatus::Created => Ok(()),
            other => Err(OciError::Answer {
                runtime: self.name.clone(),
                verb: "state",
                id: id.to_owned(),
                output: format!("{other:?}"),
                problem: "not a created container".to_owned(),
            }),
        }
    }
}

fn write_bundle(dir: &Path, id: &str) -> std::io::Result<()> {
    let rootfs = dir.join("rootfs");
    std::fs::create_dir_all(&rootfs)?;
    let program = rootfs.join("probe");
    std::fs::write(&program, "")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let namespaces = ["pid", "mount", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/probe"],
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": namespaces,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    });
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&spec)?)
}
