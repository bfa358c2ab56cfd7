//! Whether pods can have user namespaces of their own: tested at start, and again for what failed, since a runtime may
//! have lacked memory or descriptors for a moment. Knows no pod.

use crate::config::Config;
use crate::host::cgroups::{Cgroups, Driver};
use crate::host::oci::{self, Runtimes, Surroundings};
use crate::host::offload::{self, OffThread, in_place};
use crate::host::rootfs::{self, IdMap, IdRange, RootfsError};
use crate::model::SandboxSpec;
use crate::sandbox::words::error::SandboxError;
use podwright_sys::namespace;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Ids of the trial: what a kubelet gives a pod at the least, from where it gives none.
const TRIAL: IdRange = IdRange { inside: 0, outside: 4_000_000_000, count: 65_536 };
/// For one runtime's trial, which takes tens of milliseconds; Status waits for the first.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);

/// A user namespace to test OCI runtimes with, and another that belongs to it; both live as long as this.
#[derive(Debug)]
pub struct TrialNamespace {
    /// Hold them.
    _held: (IdMap, OwnedFd),
    path: String,
    uts: String,
}

impl TrialNamespace {
    /// Makes one. Blocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make() -> Result<Self, RootfsError> {
        let held = IdMap::with_uts(vec![TRIAL], vec![TRIAL])?;
        let (path, uts) = (namespace::path_of(held.0.namespace()), namespace::path_of(&held.1));
        Ok(Self { _held: held, path, uts })
    }

    /// For a runtime.
    #[must_use]
    pub fn user(&self) -> oci::UserNamespace<'_> {
        let owner = (TRIAL.outside, TRIAL.outside);
        oci::UserNamespace { path: &self.path, uts: &self.uts, owner, count: TRIAL.count }
    }
}

/// Pause after the first trial that failed; it doubles each time. Short, since a kubelet refuses pods meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// The longest one. A node that can never have user namespaces runs a container of each handler that often.
const AGAIN_AT_MOST: Duration = Duration::from_hours(1);

/// The result. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UserNamespaces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Filled by the first trial.
    first: OnceCell<()>,
    known: Mutex<Known>,
    runtimes: Runtimes,
    cgroups: Cgroups,
    driver: Driver,
    default_parent: String,
    /// The configured directories.
    root: PathBuf,
    state: PathBuf,
}

/// Why a handler cannot, or None.
type Found = BTreeMap<String, Option<String>>;

#[derive(Debug, Default)]
struct Known {
    found: Arc<Found>,
    again: Again,
}

/// Whether what failed is tried again.
#[derive(Debug, Default)]
enum Again {
    /// All handlers can, or a trial runs.
    #[default]
    No,
    At {
        due: Instant,
        pause: Duration,
    },
}

impl Again {
    /// What follows on a trial that followed on `pause`.
    fn after(found: &Found, pause: Option<Duration>, now: Instant) -> Self {
        if found.values().all(Option::is_none) {
            return Self::No;
        }
        let pause = pause.map_or(AGAIN_AFTER, |pause| (pause * 2).min(AGAIN_AT_MOST));
        Self::At { due: now + pause, pause }
    }

    /// The pause before the trial that is due now; whoever gets it runs that trial.
    fn take_due(&mut self, now: Instant) -> Option<Duration> {
        match *self {
            Self::At { due, pause } if due <= now => {
                *self = Self::No;
                Some(pause)
            }
            Self::At { .. } | Self::No => None,
        }
    }
}

impl UserNamespaces {
    /// Tries nothing yet.
    #[must_use]
    pub fn new(
        config: &Config,
        runtimes: Runtimes,
        cgroups: Cgroups,
        (driver, default_parent): (Driver, String),
    ) -> Self {
        Self(Arc::new(Inner {
            first: OnceCell::new(),
            known: Mutex::default(),
            runtimes,
            cgroups,
            driver,
            default_parent,
            root: config.root.clone(),
            state: config.state.clone(),
        }))
    }

    /// Whether pods of a handler can have them; the name of the default is empty. Waits for the first trial.
    pub async fn have(&self, handler: &str) -> bool {
        self.found().await.is_some_and(|found| found.get(handler).is_some_and(Option::is_none))
    }

    /// Whether this pod can have the user namespaces that it requests.
    ///
    /// # Errors
    /// When its handler has none, with the reason.
    pub(in crate::sandbox) async fn check(&self, pod: &SandboxSpec) -> Result<(), SandboxError> {
        match &pod.namespaces.user {
            Some(_) => self.require(&pod.runtime_handler).await,
            None => Ok(()),
        }
    }

    /// As [`Self::have`], with the reason.
    async fn require(&self, handler: &str) -> Result<(), SandboxError> {
        let found = self.found().await.ok_or(SandboxError::ShuttingDown)?;
        match found.get(handler) {
            Some(None) => Ok(()),
            Some(Some(why)) => Err(SandboxError::NoUserNamespaces { why: why.clone() }),
            None => Err(SandboxError::UnknownHandler {
                handler: handler.to_owned(),
                known: self.0.runtimes.names().join(", "),
            }),
        }
    }

    /// Trials run on tasks of their own: a caller who goes away must not leave half a trial.
    async fn found(&self) -> Option<Arc<Found>> {
        if !self.0.first.initialized() {
            let inner = self.0.clone();
            let trial = tokio::spawn(async move {
                inner.first.get_or_init(|| inner.run(None)).await;
            });
            trial.await.ok()?;
        }
        let (found, due) = {
            let mut known = self.0.known();
            (known.found.clone(), known.again.take_due(Instant::now()))
        };
        if let Some(pause) = due {
            // What was found stands until this one ends.
            let inner = self.0.clone();
            tokio::spawn(async move { inner.run(Some(pause)).await });
        }
        Some(found)
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every section leaves it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries what is not known to work. `pause`: since the trial before; None: it is the first.
    async fn run(&self, pause: Option<Duration>) {
        let before = self.known().found.clone();
        let found = self.try_all(&before).await;
        let again = Again::after(&found, pause, Instant::now());
        *self.known() = Known { found: Arc::new(found), again };
    }

    /// `before`: what earlier trials found.
    async fn try_all(&self, before: &Found) -> Found {
        let root = self.root.clone();
        let kernel = offload::run(move |off| try_kernel(off, &root)).await;
        let namespace = match kernel {
            Ok(Ok(namespace)) => Ok(namespace),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the trial was ended".to_owned()),
        };
        let mut found = Found::new();
        for name in self.runtimes.names() {
            let earlier = before.get(&name);
            let why = match (earlier, &namespace) {
                (Some(None), _) => None,
                (_, Ok(namespace)) => self.try_runtime(&name, namespace).await.err(),
                (_, Err(why)) => Some(why.clone()),
            };
            match &why {
                _ if earlier == Some(&why) => {}
                // Log: At start, for each handler; later for one of which a trial failed before.
                None => tracing::info!(handler = name, "pods can have user namespaces"),
                // Log: At start, for each handler, with the reason. It is tried again, at first after 5 seconds.
                Some(why) => tracing::info!(handler = name, why, "pods cannot have user namespaces"),
            }
            found.insert(name, why);
        }
        if let Some(default) = self.runtimes.get("") {
            let of_default = found.get(default.name()).cloned().flatten();
            found.insert(String::new(), of_default);
        }
        found
    }

    async fn try_runtime(&self, name: &str, namespace: &TrialNamespace) -> Result<(), String> {
        let runtime = self.runtimes.get(name).ok_or("it is not configured")?;
        runtime.present().map_err(|error| error.to_string())?;
        let around = Surroundings {
            state: &self.state,
            systemd: self.driver == Driver::Systemd,
            probe_cgroup: &|name| self.driver.oci_path(&self.default_parent, name),
            clear_cgroup: &|name| in_place(|off| self.cgroups.clear_probe(off, &self.default_parent, name)),
        };
        let trial = runtime.try_user_namespace(around, namespace.user());
        match tokio::time::timeout(TRIAL_LIMIT, trial).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("its trial took more than {TRIAL_LIMIT:?}")),
        }
    }
}

fn try_kernel(off: &OffThread, root: &Path) -> Result<TrialNamespace, RootfsError> {
    rootfs::supports_idmap(off, root)?;
    TrialNamespace::make()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_ever_more_rarely() {
        let failed =
            Found::from([("crun".to_owned(), None), ("runc".to_owned(), Some("no memory".to_owned()))]);
        let start = Instant::now();
        let (mut now, mut pause, mut waited) = (start, None, Vec::new());
        for _ in 0..12 {
            let mut again = Again::after(&failed, pause, now);
            let Again::At { due, .. } = again else { panic!("it is not tried again") };
            assert_eq!(again.take_due(now), None, "at once");
            waited.push((due - now).as_secs());
            now = due;
            pause = again.take_due(now);
            assert!(pause.is_some() && again.take_due(now).is_none(), "by two at once");
        }
        assert_eq!(waited[..4], [5, 10, 20, 40]);
        assert_eq!(waited[11], 3600);
        let well = Found::from([("crun".to_owned(), None)]);
        assert!(matches!(Again::after(&well, pause, now), Again::No));
    }
}
