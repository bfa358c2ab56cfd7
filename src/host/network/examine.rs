//! A look at the configuration and its plugins from outside the daemon: what `podwright check` tells.
//!
//! Watches nothing and keeps nothing.

use super::Inner;
use super::directory::{self, Loaded};
use super::version::Version;
use crate::config;
use std::path::PathBuf;

/// What was found.
#[derive(Debug)]
pub struct Examination {
    /// The configuration in use, or why there is none.
    pub configured: Result<Configured, String>,
    /// Files that come before it and are broken, each with its fault.
    pub skipped: Vec<String>,
}

/// The configuration in use.
#[derive(Debug)]
pub struct Configured {
    /// Name of the network.
    pub network: String,
    /// Version of the CNI specification.
    pub version: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Plugin types in order.
    pub plugins: Vec<String>,
    /// Those that are in none of the directories.
    pub missing: Vec<String>,
    /// What a plugin said to STATUS, if it was not content.
    pub problem: Option<String>,
}

/// Reads the directory, looks for the plugins and asks them for their status, where the configuration's version has it.
pub async fn examine(config: &config::Network) -> Examination {
    let inner = Inner::new(config);
    match directory::load(&config.conf_dir) {
        Loaded::Nothing { reason } => Examination { configured: Err(reason), skipped: Vec::new() },
        Loaded::Network { list, file, skipped } => {
            let plugins: Vec<String> = list.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
            let missing: Vec<String> =
                plugins.iter().filter(|kind| inner.plugins.find(kind).is_none()).cloned().collect();
            let asks = missing.is_empty() && list.version >= Version::STATUS_AND_GC;
            let problem =
                if asks { inner.status(&list).await.err().map(|error| error.to_string()) } else { None };
            let network = list.name.clone();
            let version = list.version.as_str();
            let configured = Configured { network, version, file, plugins, missing, problem };
            Examination { configured: Ok(configured), skipped }
        }
    }
}
