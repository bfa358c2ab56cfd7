//! The RuntimeClass handlers: their OCI runtimes, their settings, and what the host allows with each.

use crate::config::{Config, Handler};
use crate::host::cgroups::CgroupMode;
use crate::host::oci::{Features, Runtime, Runtimes};
use crate::sandbox::spec::HostFacts;
use crate::sandbox::words::error::SandboxError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// All of them.
#[derive(Debug)]
pub struct Handlers {
    /// OCI runtimes.
    pub runtimes: Runtimes,
    /// What the kernel and our own privileges allow, without the runtimes' capabilities.
    pub facts: HostFacts,
    settings: BTreeMap<String, Handler>,
}

impl Handlers {
    /// As configured.
    #[must_use]
    pub fn new(config: &Config, runtimes: Runtimes, facts: HostFacts) -> Self {
        Self { runtimes, facts, settings: config.runtime.handlers.clone().into_iter().collect() }
    }

    /// The facts, as they are with a handler's runtime.
    pub(in crate::sandbox) fn facts_for(&self, handler: &str) -> HostFacts {
        HostFacts {
            recursive_read_only: self.recursive_read_only(handler),
            plain_propagation: self.features(handler).plain_propagation,
            ..self.facts.clone()
        }
    }

    /// The capabilities of a handler's runtime; none if there is no such handler.
    fn features(&self, handler: &str) -> Features {
        self.runtimes.get(handler).map(|runtime| runtime.features()).unwrap_or_default()
    }

    /// Whether a handler's kernel and runtime support recursive read-only mounts.
    #[must_use]
    pub fn recursive_read_only(&self, handler: &str) -> bool {
        self.facts.recursive_read_only && self.features(handler).recursive_read_only
    }

    /// Whether a handler's runtime must be told the cgroup of a restored process.
    pub(in crate::sandbox) fn restores_into_old_cgroup(&self, handler: &str) -> bool {
        self.facts.cgroups == CgroupMode::V2 && self.features(handler).restores_into_old_cgroup
    }

    /// Settings of a handler; empty: the default one's.
    pub(in crate::sandbox) fn settings_of(&self, handler: &str) -> Handler {
        let name = self.runtimes.get(handler).map(|runtime| runtime.name().to_owned()).unwrap_or_default();
        self.settings.get(&name).cloned().unwrap_or_default()
    }

    /// The runtime of a handler; empty: the default.
    ///
    /// # Errors
    /// If there is none of that name, or its program is missing.
    pub fn runtime(&self, handler: &str) -> Result<Arc<Runtime>, SandboxError> {
        let runtime = self.runtimes.get(handler).ok_or_else(|| SandboxError::UnknownHandler {
            handler: handler.to_owned(),
            known: self.runtimes.names().join(", "),
        })?;
        runtime.present()?;
        Ok(runtime)
    }
}
