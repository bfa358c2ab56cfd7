//! The configured handlers and the default among them.

use super::{OciError, Runtime, probe};
use crate::config;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Handlers tried as the default, in this order: crun is the faster.
const PREFERENCE: [&str; 2] = ["crun", "runc"];

/// All OCI runtimes of the node.
#[derive(Debug, Clone)]
pub struct Runtimes {
    by_name: BTreeMap<String, Arc<Runtime>>,
    default: Arc<Runtime>,
}

impl Runtimes {
    /// Finds the handlers' programs; without a configured default, the first of crun and runc that runs a container
    /// becomes it.
    ///
    /// # Errors
    /// When no runtime can be the default.
    pub async fn find(config: &config::Runtime, state: &Path, cgroup_parent: &str) -> Result<Self, OciError> {
        let deadline = Duration::from_secs(config.timeout_seconds);
        let by_name: BTreeMap<_, _> = config
            .handlers
            .iter()
            .map(|(name, handler)| (name.clone(), Arc::new(runtime(name, handler, state, deadline))))
            .collect();
        let default = match by_name.get(&config.default) {
            Some(default) => default.clone(),
            None => first_that_works(&by_name, state, cgroup_parent).await?,
        };
        tracing::info!(default = default.name(), path = %default.path().display(), "OCI runtime");
        Ok(Self { by_name, default })
    }

    /// The runtime of a handler; empty: the default.
    #[must_use]
    pub fn get(&self, handler: &str) -> Option<Arc<Runtime>> {
        if handler.is_empty() { Some(self.default.clone()) } else { self.by_name.get(handler).cloned() }
    }

    /// The handlers' names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }
}

fn runtime(name: &str, handler: &config::Handler, state: &Path, deadline: Duration) -> Runtime {
    let program = if handler.path.as_os_str().is_empty() { Path::new(name) } else { &handler.path };
    let root = if handler.root.as_os_str().is_empty() {
        state.join("runtime").join(name)
    } else {
        handler.root.clone()
    };
    Runtime::new(name, look_up(program), &root, &handler.args, deadline)
}

/// The absolute path of a program; as given where it is not found, so that the error names it.
fn look_up(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".into());
    let found =
        std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

async fn first_that_works(
    by_name: &BTreeMap<String, Arc<Runtime>>,
    state: &Path,
    cgroup_parent: &str,
) -> Result<Arc<Runtime>, OciError> {
    let mut tried = Vec::new();
    for name in PREFERENCE {
        let Some(runtime) = by_name.get(name) else { continue };
        match probe::works(runtime, state, cgroup_parent, None).await {
            Ok(()) => return Ok(runtime.clone()),
            Err(error) => {
                tracing::info!(runtime = name, %error, "not usable here");
                tried.push(error.to_string());
            }
        }
    }
    Err(OciError::NoneWorks { tried: tried.join("; ") })
}
