//! Reports to the service manager that the daemon works: it calls its own CRI socket as the kubelet would, and only an
//! answer counts. A hung daemon, or one whose socket file was deleted, is restarted.
//!
//! Owns the interval. Does nothing unless the unit has `WatchdogSec`.

use super::proto as pb;
use super::proto::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

/// Calls per period of the manager's: one missed or slow call on a busy node does not end the daemon.
const CALLS_PER_PERIOD: u32 = 3;

/// Starts to report, if the service manager expects it.
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

/// A new connection each time: an accepted one would not show whether the socket still accepts.
async fn call(socket: &Path) -> Result<(), tonic::Status> {
    let refused = |error: std::io::Error| tonic::Status::unavailable(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(refused)?;
    let stream = std::sync::Mutex::new(Some(TokioIo::new(stream)));
    // Never resolved: the connector already has the connection.
    let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: http::Uri| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            std::future::ready(stream.ok_or_else(|| std::io::Error::other("the connection has ended")))
        },
    ));
    RuntimeServiceClient::new(channel).version(pb::VersionRequest::default()).await.map(drop)
}
