//! The way to the admin service: the daemon's socket or, while no daemon runs, the same service over the store in this
//! process, under the daemon's lock. Owns what makes that safe for containers that outlive their daemon.

use super::arguments::Arguments;
use super::error::CliError;
use super::log::OneLine;
use super::out;
use crate::admin;
use crate::admin::proto::images_client::ImagesClient;
use crate::config::{self, Config};
use crate::daemon;
use crate::images::Images;
use crate::sandbox::Records;
use hyper_util::rt::TokioIo;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Bytes in transit between client and service in one process; answers are small.
const DUPLEX_BYTES: usize = 64 << 10;

/// The client.
pub(super) type Client = ImagesClient<Channel>;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Deleting layers needs to know which ones containers use.
    Delete,
    /// Anything else.
    Other,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    local: Option<Local>,
}

/// The store in this process.
#[derive(Debug)]
struct Local {
    images: Images,
    _lock: daemon::Locks,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(arguments: &Arguments, purpose: Purpose) -> Result<Self, CliError> {
        if let Some(socket) = &arguments.socket {
            let socket = plain(socket);
            return match UnixStream::connect(&socket).await {
                Ok(_) => Ok(Self { client: over(&socket, limit(&Config::default())), local: None }),
                Err(source) => Err(CliError::Connect { socket, source }),
            };
        }
        let required = arguments.config.is_some();
        let file = arguments.config.clone().unwrap_or_else(|| config::DEFAULT_FILE.into());
        let config = config::load(&file, required)?;
        let socket = &config.grpc.socket;
        match UnixStream::connect(socket).await {
            Ok(_) => Ok(Self { client: over(socket, limit(&config)), local: None }),
            Err(e) if is_absent(&e) => Self::open_local(config, purpose).await,
            Err(source) => Err(CliError::Connect { socket: socket.clone(), source }),
        }
    }

    async fn open_local(config: Config, purpose: Purpose) -> Result<Self, CliError> {
        let limit = limit(&config);
        let opened = tokio::task::spawn_blocking(move || Local::open(&config, purpose)).await;
        let local = opened.unwrap_or(Err(CliError::NoResult))?;
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        tokio::spawn(admin::serve_one(far, local.images.clone(), limit));
        Ok(Self { client: beside(near, limit), local: Some(local) })
    }

    /// Hangs up, and waits for deletions that this process still does.
    pub(super) async fn close(self) {
        drop(self.client);
        if let Some(local) = self.local {
            // Fails only when a deletion panicked, which has been printed.
            let _ = tokio::task::spawn_blocking(move || local.images.settle()).await;
        }
    }
}

impl Local {
    fn open(config: &Config, purpose: Purpose) -> Result<Self, CliError> {
        let failed = |error: anyhow::Error| CliError::Store {
            socket: config.grpc.socket.clone(),
            reason: format!("{error:#}"),
        };
        let lock = daemon::lock(config).map_err(failed)?;
        let logs = tracing_subscriber::fmt()
            .with_writer(|| OneLine::text(io::stderr()))
            .with_ansi(false)
            .without_time();
        // Another test of this process may have one.
        let _ = logs.with_max_level(tracing::Level::WARN).try_init();
        let images = daemon::open_images(config).map_err(failed)?;
        // Containers run on while their daemon is away, and nothing here releases their holds.
        match (Records::images_in_use(&config.root), purpose) {
            (Ok(used), _) => images.keep(&used),
            (Err(error), Purpose::Delete) => return Err(CliError::Records(error)),
            (Err(error), Purpose::Other) => {
                out::note(&format!("which images containers use is not known: {error}"));
            }
        }
        Ok(Self { images, _lock: lock })
    }
}

fn limit(config: &Config) -> usize {
    config.grpc.max_message_bytes
}

/// `unix:///path` is what other clients call it.
fn plain(socket: &Path) -> PathBuf {
    socket
        .to_str()
        .and_then(|text| text.strip_prefix("unix://"))
        .map_or_else(|| socket.to_owned(), PathBuf::from)
}

fn client(channel: Channel, limit: usize) -> Client {
    ImagesClient::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit)
}

/// Never resolved: the connectors have their target.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

/// The running daemon: a channel to it, and the greatest message in bytes.
pub(super) async fn daemon(file: Option<&Path>, socket: Option<&Path>) -> Result<(Channel, usize), CliError> {
    let config = match (socket, file) {
        (Some(_), _) => Config::default(),
        (None, Some(file)) => config::load(file, true)?,
        (None, None) => config::load(config::DEFAULT_FILE.as_ref(), false)?,
    };
    let socket = socket.map_or_else(|| config.grpc.socket.clone(), plain);
    match UnixStream::connect(&socket).await {
        Ok(_) => Ok((through(&socket), limit(&config))),
        Err(e) if is_absent(&e) => Err(CliError::NotRunning { socket }),
        Err(source) => Err(CliError::Connect { socket, source }),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

fn over(socket: &Path, limit: usize) -> Client {
    client(through(socket), limit)
}

fn through(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    endpoint().connect_with_connector_lazy(connect)
}

fn beside(stream: DuplexStream, limit: usize) -> Client {
    let stream = Mutex::new(Some(stream));
    let connect = tower::service_fn(move |_| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        let gone = || io::Error::other("the store's service has ended");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(gone))
    });
    client(endpoint().connect_with_connector_lazy(connect), limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_have_a_scheme() {
        assert_eq!(plain(Path::new("unix:///run/x.sock")), Path::new("/run/x.sock"));
        assert_eq!(plain(Path::new("run/x.sock")), Path::new("run/x.sock"));
    }
}
