//! What an OCI runtime can do beyond running a container: by its own words where it has the command `features`
//! (runc 1.1, crun 1.9, youki), else by having it do it. Asked once, at start. Never looks at version strings.

use super::{OciError, Runtime, Surroundings, probe};
use crate::host::command::Command;
use serde::Deserialize;
use std::time::Duration;

/// For `features`, which reads nothing and starts nothing.
const DEADLINE: Duration = Duration::from_secs(5);
/// The mount option of recursive read-only mounts, mount_setattr(2) with AT_RECURSIVE.
const RECURSIVE_READ_ONLY: &str = "rro";

/// What a runtime can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// It makes a mount read-only with all that is mounted below it.
    pub recursive_read_only: bool,
}

/// The part that is read of the OCI runtime specification's features document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    mount_options: Option<Vec<String>>,
}

/// Asks a runtime. One that is missing, or says nothing and cannot be tried, has none.
pub(super) async fn of(runtime: &Runtime, around: Surroundings<'_>) -> Features {
    if runtime.present().is_err() {
        return Features::default();
    }
    if let Some(features) = told(runtime).await {
        return features;
    }
    match probe::recursive_read_only(runtime, around.state, around.probe_cgroup).await {
        Ok(recursive_read_only) => Features { recursive_read_only },
        Err(error) => {
            log(runtime, &error);
            Features::default()
        }
    }
}

fn log(runtime: &Runtime, error: &OciError) {
    tracing::info!(runtime = runtime.name(), %error, "cannot find out what it can do; recursive read-only mounts are refused");
}

async fn told(runtime: &Runtime) -> Option<Features> {
    let asked = Command::new(runtime.path(), DEADLINE).args(&runtime.args).args(["features"]).run().await;
    let output = asked.ok()?.success().ok()?;
    parse(&output.stdout)
}

fn parse(document: &[u8]) -> Option<Features> {
    // Without a list of options nothing is said of them.
    let options = serde_json::from_slice::<Document>(document).ok()?.mount_options?;
    Some(Features { recursive_read_only: options.iter().any(|option| option == RECURSIVE_READ_ONLY) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_features_document_says_what_it_says() {
        let with = |rro| Some(Features { recursive_read_only: rro });
        assert_eq!(parse(br#"{"ociVersionMin":"1.0.0","mountOptions":["bind","rro"]}"#), with(true));
        assert_eq!(parse(br#"{"ociVersionMin":"1.0.0","mountOptions":["bind"]}"#), with(false));
        for silent in [&b"{}"[..], br#"{"mountOptions":null}"#, b"unknown command features", b""] {
            assert_eq!(parse(silent), None);
        }
    }
}
