//! Whether pods can get a network: the cached verdict on the current configuration.
//!
//! ```text
//!   Due --ask--> Asking --verdict--> Known{at} --5 s--> Due
//! ```
//!
//! Owns the current configuration and the result of STATUS. Never calls a plugin itself and never waits.

use super::directory::{Chosen, Loaded};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Minimum interval of plugin checks: the kubelet asks every five seconds or so.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Whether pods can get a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready {
        /// Names of the networks for pods, the first with the pod's address.
        networks: Vec<String>,
    },
    /// No; pods on the host's network still can run.
    NotReady {
        /// Why, in words for people.
        reason: String,
    },
}

/// The current configuration.
#[derive(Debug, Clone)]
pub(super) struct Current {
    /// At least one.
    pub(super) networks: Arc<[Chosen]>,
    pub(super) skipped: Vec<String>,
}

#[derive(Debug)]
enum Check {
    Due,
    Asking,
    Known { at: Instant },
}

/// The state behind the lock.
#[derive(Debug)]
pub(super) struct Health {
    current: Result<Current, String>,
    /// Why the current configuration cannot be used now.
    problem: Option<String>,
    check: Check,
    /// Distinguishes configurations, so that a late verdict on the last one does not apply to this one.
    generation: u64,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { current: Err(String::new()), problem: None, check: Check::Due, generation: 0 }
    }

    /// Takes over the directory's content. `judge` gives the immediate verdict on a new configuration.
    pub(super) fn load(&mut self, loaded: Loaded, judge: impl FnOnce(&[Chosen]) -> Option<String>) {
        match loaded {
            Loaded::Nothing { reason } => {
                if self.current.as_ref().err() != Some(&reason) {
                    // Log: `network.conf_dir` has no usable one; the node is NotReady.
                    // Do: Install the network plugin. A new file takes effect by itself.
                    tracing::warn!(reason, "no CNI configuration");
                }
                self.current = Err(reason);
                self.problem = None;
            }
            Loaded::Networks { chosen, skipped, unread: _ } => {
                for error in &skipped {
                    // Log: The file is broken; the next by name is used.
                    // Do: Correct or remove it.
                    tracing::warn!(error, "CNI configuration file is skipped");
                }
                let networks: Arc<[Chosen]> = chosen.into();
                // Touched, not changed: what is known of it stays known.
                if let Ok(current) = &mut self.current
                    && same(&current.networks, &networks)
                {
                    *current = Current { networks, skipped };
                    return;
                }
                for Chosen { list, file, interface } in &*networks {
                    // Log: A configuration takes effect.
                    tracing::info!(network = list.name, interface, file = %file.display(), "CNI network loaded");
                }
                self.problem = judge(&networks);
                self.current = Ok(Current { networks, skipped });
            }
        }
        self.generation += 1;
        self.check = Check::Due;
    }

    pub(super) fn current(&self) -> Result<&Current, &str> {
        self.current.as_ref().map_err(String::as_str)
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Whether to start a check now; if so, the caller must deliver its verdict.
    pub(super) fn start_check(&mut self, now: Instant) -> Option<(Arc<[Chosen]>, u64)> {
        let due = match self.check {
            Check::Due => true,
            Check::Asking => false,
            Check::Known { at } => now.saturating_duration_since(at) >= CHECK_EVERY,
        };
        let networks = Arc::clone(&self.current.as_ref().ok()?.networks);
        due.then(|| {
            self.check = Check::Asking;
            (networks, self.generation)
        })
    }

    /// Takes the verdict of a check.
    pub(super) fn verdict(&mut self, generation: u64, problem: Option<String>, now: Instant) {
        if generation != self.generation {
            return;
        }
        if problem != self.problem {
            match &problem {
                // Log: Plugins are missing, or report so themselves.
                // Do: See `reason`.
                Some(reason) => tracing::warn!(reason, "CNI network is not ready"),
                // Log: After it was not.
                None => tracing::info!("CNI network is ready"),
            }
        }
        self.problem = problem;
        self.check = Check::Known { at: now };
    }
}

/// Whether the same is configured in the same order, in whatever files.
fn same(old: &[Chosen], new: &[Chosen]) -> bool {
    let content =
        |networks: &[Chosen]| networks.iter().map(|n| Arc::clone(&n.list.encoded)).collect::<Vec<_>>();
    content(old) == content(new)
}
