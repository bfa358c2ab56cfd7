//! Capabilities of an OCI runtime beyond running a container: as claimed by the command `features` (runc 1.1, crun 1.9,
//! youki), else found by a trial. Asked once, at start. Never looks at version strings.

use super::{OciError, Runtime, Surroundings, probe};
use crate::host::command::Command;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// For `features`, which reads nothing and starts nothing.
const DEADLINE: Duration = Duration::from_secs(5);
/// The mount option of recursive read-only mounts, mount_setattr(2) with AT_RECURSIVE.
const RECURSIVE_READ_ONLY: &str = "rro";
/// Prefix of runc's annotations about itself.
const RUNC: &str = "org.opencontainers.runc.";

/// Capabilities of a runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// It supports recursive read-only mounts.
    pub recursive_read_only: bool,
    /// It leaves a restored process in the cgroup v2 of its checkpoint unless CRIU is told another: runc tells CRIU the
    /// new one for cgroup v1 only (libcontainer/criu_linux.go, criuApplyCgroups).
    pub restores_into_old_cgroup: bool,
    /// It knows only the specification's names of propagation for the root's mounts (`slave`, `shared`), which it
    /// applies to all mounts below: youki. runc and crun have `rslave` and `rshared` for that.
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

/// Asks a runtime. Tests what it does not claim: youki's list of mount options is incomplete. A missing runtime, or one
/// that cannot be tested, has no capabilities.
pub(super) async fn of(runtime: &Runtime, around: Surroundings<'_>) -> Features {
    if runtime.present().is_err() {
        return Features::default();
    }
    let told = told(runtime).await.unwrap_or_default();
    if told.recursive_read_only {
        return told;
    }
    match probe::recursive_read_only(runtime, around).await {
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

/// By a runtime that just ran a container, so that it can only refuse what is new.
async fn refuses_recursive_propagation(runtime: &Runtime, around: Surroundings<'_>) -> bool {
    match probe::recursive_propagation(runtime, around).await {
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
