//! The configuration and its plugins as seen from outside the daemon, for `podwright check`.
//!
//! Watches nothing and keeps nothing.

use super::Inner;
use super::directory::{self, Chosen, Loaded};
use super::version::Version;
use crate::config;
use std::path::PathBuf;

/// The findings.
#[derive(Debug)]
pub struct Examination {
    /// The configurations in use, at least one, or why there is none.
    pub configured: Result<Vec<Configured>, String>,
    /// Broken files before the last of them, each with its fault.
    pub skipped: Vec<String>,
    /// Files after the last of them, which were not read.
    pub unread: usize,
}

/// A configuration in use.
#[derive(Debug)]
pub struct Configured {
    /// Name of the network.
    pub network: String,
    /// The interface that pods have of it.
    pub interface: String,
    /// Version of the CNI specification.
    pub version: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Plugin types in order.
    pub plugins: Vec<String>,
    /// Those that are in none of the directories.
    pub missing: Vec<String>,
    /// A plugin's complaint to STATUS, if any.
    pub problem: Option<String>,
}

/// Reads the directory, looks up the plugins and queries their status, if the configuration's version has it.
pub async fn examine(config: &config::Network) -> Examination {
    let inner = Inner::new(config);
    match directory::load(&config.conf_dir, config.max_conf_num) {
        Loaded::Nothing { reason } => Examination { configured: Err(reason), skipped: Vec::new(), unread: 0 },
        Loaded::Networks { chosen, skipped, unread } => {
            let mut configured = Vec::new();
            for network in chosen {
                configured.push(inner.examine(network).await);
            }
            Examination { configured: Ok(configured), skipped, unread }
        }
    }
}

impl Inner {
    async fn examine(&self, network: Chosen) -> Configured {
        let Chosen { list, file, interface } = network;
        let plugins: Vec<String> = list.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
        let missing: Vec<String> =
            plugins.iter().filter(|kind| self.plugins.find(kind).is_none()).cloned().collect();
        let asks = missing.is_empty() && list.version >= Version::STATUS_AND_GC;
        let problem = if asks { self.status(&list).await.err().map(|error| error.to_string()) } else { None };
        let (network, version) = (list.name.clone(), list.version.as_str());
        Configured { network, interface, version, file, plugins, missing, problem }
    }
}
