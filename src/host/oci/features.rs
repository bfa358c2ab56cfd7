//! What an OCI runtime can do beyond running a container: by its own words where the command `features` (runc 1.1,
//! crun 1.9, youki) claims it, else by having it do it. Asked once, at start. Never looks at version strings.

use super::{OciError, Runtime, Surroundings, probe};
use crate::host::command::Command;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// For `features`, which reads nothing and starts nothing.
const DEADLINE: Duration = Duration::from_secs(5);
/// The mount option of recursive read-only mounts, mount_setattr(2) with AT_RECURSIVE.
const RECURSIVE_READ_ONLY: &str = "rro";
/// What runc tells of itself has names that begin so.
const RUNC: &str = "org.opencontainers.runc.";

/// What a runtime can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// It makes a mount read-only with all that is mounted below it.
    pub recursive_read_only: bool,
    /// It leaves a restored process in the cgroup v2 that it was checkpointed in, unless CRIU is told another: runc
    /// tells CRIU of the new one for cgroup v1 only (libcontainer/criu_linux.go, criuApplyCgroups).
    pub restores_into_old_cgroup: bool,
    /// Propagation of the root's mounts it knows by the specification's names only (`slave`, `shared`), which it takes
    /// to reach all mounts below: youki. runc and crun have `rslave` and `rshared` for that.
    pub plain_propagation: bool,
}

/// The part that is read of the OCI runtime specification's features document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    mount_options: Option<Vec<String>>,
    #[serde(default)]
    annotations: Option<Map<String, Value>>,
}

/// Asks a runtime. One that does not claim something is tried: youki's list of mount options leaves out what it takes.
/// One that is missing, or cannot be tried, has none.
pub(super) async fn of(runtime: &Runtime, around: Surroundings<'_>) -> Features {
    if runtime.present().is_err() {
        return Features::default();
    }
    let told = told(runtime).await.unwrap_or_default();
    if told.recursive_read_only {
        return told;
    }
    match probe::recursive_read_only(runtime, around.state, around.probe_cgroup).await {
        Ok(recursive_read_only) => {
            let plain_propagation = refuses_recursive_propagation(runtime, around).await;
            Features { recursive_read_only, plain_propagation, ..told }
        }
        Err(error) => {
            log(runtime, &error);
            told
        }
    }
}

/// Of a runtime that ran a container just now, so that only what is new can be what it refuses.
async fn refuses_recursive_propagation(runtime: &Runtime, around: Surroundings<'_>) -> bool {
    match probe::recursive_propagation(runtime, around.state, around.probe_cgroup).await {
        Ok(()) => false,
        Err(OciError::Failed { .. }) => true,
        Err(error) => {
            // Log: An OCI runtime without `rro` in its `features` could not be tested with `rslave`. It gets runc's
            // names.
            tracing::info!(runtime = runtime.name(), %error, "cannot find out which propagation it knows");
            false
        }
    }
}

fn log(runtime: &Runtime, error: &OciError) {
    // Log: An OCI runtime has no `features` and could not be tested.
    tracing::info!(runtime = runtime.name(), %error, "cannot find out what it can do; recursive read-only mounts are refused");
}

async fn told(runtime: &Runtime) -> Option<Features> {
    let asked = Command::new(runtime.path(), DEADLINE).args(&runtime.args).args(["features"]).run().await;
    let output = asked.ok()?.success().ok()?;
    parse(&output.stdout)
}

fn parse(document: &[u8]) -> Option<Features> {
    let document: Document = serde_json::from_slice(document).ok()?;
    let options = document.mount_options.unwrap_or_default();
    let annotations = document.annotations.unwrap_or_default();
    Some(Features {
        recursive_read_only: options.iter().any(|option| option == RECURSIVE_READ_ONLY),
        restores_into_old_cgroup: annotations.keys().any(|name| name.starts_with(RUNC)),
        plain_propagation: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_features_document_says_what_it_says() {
        let told =
            |document: &[u8]| parse(document).map(|f| (f.recursive_read_only, f.restores_into_old_cgroup));
        assert_eq!(told(br#"{"ociVersionMin":"1.0.0","mountOptions":["bind","rro"]}"#), Some((true, false)));
        assert_eq!(told(br#"{"ociVersionMin":"1.0.0","mountOptions":["bind"]}"#), Some((false, false)));
        let runc = br#"{"mountOptions":null,"annotations":{"org.opencontainers.runc.version":"1.1.15"}}"#;
        assert_eq!(told(runc), Some((false, true)));
        assert_eq!(told(br#"{"annotations":{"run.oci.crun.version":"1.21"}}"#), Some((false, false)));
        for silent in [&b"{}"[..], br#"{"mountOptions":null}"#] {
            assert_eq!(told(silent), Some((false, false)));
        }
        for silent in [&b"unknown command features"[..], b""] {
            assert_eq!(parse(silent), None);
        }
    }
}
