//! Tells the service manager that the daemon lives, as long as it does: it calls its own CRI socket, as the kubelet would,
//! and only an answer counts. A daemon that hangs, or whose socket file somebody deleted, is restarted that way.
//!
//! Owns the rhythm. Does nothing unless the unit has `WatchdogSec`.

use super::proto as pb;
use super::proto::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

/// Calls in one period of the manager's: one that is missed, or slow on a busy node, does not end the daemon.
const CALLS_PER_PERIOD: u32 = 3;

/// Starts to tell, if the service manager wants to hear.
pub fn watch(socket: &Path) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    // Log: The interval at which systemd expects reports.
    tracing::info!(seconds = period.as_secs(), "watchdog");
    tokio::spawn(tell(socket.to_owned(), period / CALLS_PER_PERIOD));
}

async fn tell(socket: PathBuf, pause: Duration) {
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(pause, call(&socket)).await {
            Ok(Ok(())) => drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog])),
            Ok(Err(error)) => {
                // Log: A call on the CRI socket failed. systemd restarts the daemon if that lasts.
                // Do: Check whether something that cleans `/run` removed the socket file. The restart brings it
                // back; pods do not notice.
                tracing::error!(%error, socket = %socket.display(), "watchdog: the daemon does not answer itself");
            }
            Err(_) => {
                // Log: The call took longer than a third of `WatchdogSec`.
                // Do: Look for a lack of processor time or memory. On an idle machine it is a defect: report it with
                // the log.
                tracing::error!(
                    ms = pause.as_millis(),
                    "watchdog: the daemon does not answer itself in time"
                );
            }
        }
    }
}

/// A connection of its own each time: an accepted one would not tell whether others are accepted still.
async fn call(socket: &Path) -> Result<(), tonic::Status> {
    let refused = |error: std::io::Error| tonic::Status::unavailable(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(refused)?;
    let stream = std::sync::Mutex::new(Some(TokioIo::new(stream)));
    // Never looked up: the connector has the connection already.
    let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: http::Uri| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            std::future::ready(stream.ok_or_else(|| std::io::Error::other("the connection has ended")))
        },
    ));
    RuntimeServiceClient::new(channel).version(pb::VersionRequest::default()).await.map(drop)
}
