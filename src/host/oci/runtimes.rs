//! The configured handlers and the default among them.

use super::surroundings::Surroundings;
use super::{OciError, Runtime, UserNamespace, features, probe};
use crate::config;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Handlers tried as the default, in this order: crun is the faster.
pub const PREFERENCE: [&str; 2] = ["crun", "runc"];

/// Makes an OCI runtime use systemd for cgroups: a global argument of runc, crun, youki and runsc alike.
const SYSTEMD_CGROUP: &str = "--systemd-cgroup";

/// All OCI runtimes of the node.
#[derive(Debug, Clone)]
pub struct Runtimes {
    by_name: BTreeMap<String, Arc<Runtime>>,
    default: Arc<Runtime>,
}

impl Runtimes {
    /// Finds the handlers' programs and what they can do; without a configured default, the first of crun and runc that
    /// runs a container becomes it.
    ///
    /// # Errors
    /// When no runtime can be the default.
    pub async fn find(config: &config::Runtime, around: Surroundings<'_>) -> Result<Self, OciError> {
        let deadline = Duration::from_secs(config.timeout_seconds);
        let found = config.handlers.iter().map(async |(name, handler)| {
            let mut runtime = runtime(name, handler, around, deadline);
            probe::sweep(&runtime, around).await;
            runtime.features = features::of(&runtime, around).await;
            (name.clone(), Arc::new(runtime))
        });
        let by_name: BTreeMap<_, _> = futures_util::future::join_all(found).await.into_iter().collect();
        let default = match by_name.get(&config.default) {
            Some(default) => default.clone(),
            None => first_that_works(&by_name, around).await?,
        };
        // Log: At start: the default runtime.
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

/// Capabilities of one handler's runtime.
#[derive(Debug)]
pub struct Trial {
    /// The handler.
    pub handler: String,
    /// Its program.
    pub path: PathBuf,
    /// The first line of `--version`; empty if it prints nothing.
    pub version: String,
    /// Whether it ran a container.
    pub outcome: Result<(), OciError>,
    /// Whether it ran one in a user namespace; None: not tested.
    pub in_user_namespace: Option<Result<(), OciError>>,
}

/// Has every handler's runtime run a container, one after the other, and one more in this user namespace.
pub async fn try_all(
    config: &config::Runtime,
    around: Surroundings<'_>,
    user: Option<UserNamespace<'_>>,
) -> Vec<Trial> {
    let deadline = Duration::from_secs(config.timeout_seconds);
    let mut trials = Vec::new();
    for (name, handler) in &config.handlers {
        let runtime = runtime(name, handler, around, deadline);
        let outcome = match runtime.present() {
            Ok(()) => probe::works(&runtime, around).await,
            Err(error) => Err(error),
        };
        let (handler, path) = (name.clone(), runtime.path().to_owned());
        let (mut version, mut in_user_namespace) = (String::new(), None);
        if outcome.is_ok() {
            version = runtime.version().await;
            if let Some(user) = user {
                in_user_namespace = Some(runtime.try_user_namespace(around, user).await);
            }
        }
        trials.push(Trial { handler, path, version, outcome, in_user_namespace });
    }
    trials
}

fn runtime(name: &str, handler: &config::Handler, around: Surroundings<'_>, deadline: Duration) -> Runtime {
    let program = if handler.path.as_os_str().is_empty() { Path::new(name) } else { &handler.path };
    let root = if handler.root.as_os_str().is_empty() {
        around.state.join("runtime").join(name)
    } else {
        handler.root.clone()
    };
    let mut args = handler.args.clone();
    if around.systemd && !args.iter().any(|arg| arg == SYSTEMD_CGROUP) {
        args.push(SYSTEMD_CGROUP.to_owned());
    }
    Runtime::new(name, look_up(program), &root, &args, deadline)
}

/// The absolute path of a program; the given one if it is not found, so that the error names it.
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
    around: Surroundings<'_>,
) -> Result<Arc<Runtime>, OciError> {
    let mut tried = Vec::new();
    for name in PREFERENCE {
        let Some(runtime) = by_name.get(name) else { continue };
        match probe::works(runtime, around).await {
            Ok(()) => return Ok(runtime.clone()),
            Err(error) => {
                // Log: At start: a runtime that could not run a container.
                tracing::info!(runtime = name, %error, "not usable here");
                tried.push(error.to_string());
            }
        }
    }
    Err(OciError::NoneWorks { tried: tried.join("; ") })
}
