//! What all connections of the server share, and how long they may take.

use super::metrics::StreamingMetrics;
use super::registry::Sessions;
use super::tls;
use super::tokens::{self, Tokens};
use crate::config;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Time for a client to close after everything was sent.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Durations of one server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) idle: Duration,
    pub(super) handshake: Duration,
    pub(super) creation: Duration,
    pub(super) quiet: Duration,
    /// Of a token.
    pub(super) lifetime: Duration,
    /// Interval between checks of the certificate's files.
    pub(super) look: Duration,
}

impl Settings {
    /// As configured.
    pub(super) fn of(config: &config::Streaming, quiet: Duration) -> Self {
        Self {
            idle: Duration::from_secs(config.idle_timeout_seconds),
            handshake: Duration::from_secs(config.handshake_timeout_seconds),
            creation: Duration::from_secs(config.creation_timeout_seconds),
            quiet,
            lifetime: tokens::LIFETIME,
            look: tls::LOOK_INTERVAL,
        }
    }
}

/// State shared by every connection.
pub(super) struct Context<B> {
    pub(super) backend: Arc<B>,
    pub(super) metrics: StreamingMetrics,
    pub(super) sessions: Sessions,
    pub(super) settings: Settings,
    pub(super) tokens: Tokens,
    pub(super) places: Arc<Semaphore>,
    pub(super) ending: watch::Receiver<bool>,
}

impl<B> Context<B> {
    /// Returns when the daemon ends.
    pub(super) fn ending(&self) -> impl Future<Output = ()> + use<B> {
        let mut ending = self.ending.clone();
        async move {
            // Dropping the owner ends the sessions too.
            let _ = ending.wait_for(|ending| *ending).await;
        }
    }
}
