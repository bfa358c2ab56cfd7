//! The configuration's deadlines as durations. Never has a default of its own.

use super::Config;
use std::time::Duration;

impl Config {
    /// Limit on examining a host path from a request.
    #[must_use]
    pub fn host_path_limit(&self) -> Duration {
        Duration::from_secs(self.containers.host_path_seconds)
    }

    /// Deadline of one call of the OCI runtime.
    #[must_use]
    pub fn runtime_timeout(&self) -> Duration {
        Duration::from_secs(self.runtime.timeout_seconds)
    }
}
