//! The CRI socket: opens it with its mode and group, and serves until told to stop. Owns the socket file.

use super::connections::{connections, transport};
use super::door::DoorLayer;
use super::image::Image;
use super::proto::image_service_server::ImageServiceServer;
use super::proto::runtime_service_server::RuntimeServiceServer;
use super::runtime::Runtime;
use crate::config::Config;
use crate::host::listeners::{self, Owner, Place};
use crate::metrics::Rpcs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tonic::service::Routes;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Something listens there.
    #[error("socket {path} is in use by {who}: stop it, or set grpc.socket to another path", who = who(owner.as_ref()))]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process that listens, if known.
        owner: Option<Owner>,
    },
    /// The socket file.
    #[error("{operation} socket {path}: {source}")]
    Socket {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// gRPC.
    #[error("serve CRI: {0}")]
    Transport(#[from] tonic::transport::Error),
}

fn who(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "another process".to_owned(), ToString::to_string)
}

fn socket_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::Socket { operation, path, source }
}

/// Whether nobody serves on the socket. To be asked before anything of an earlier daemon is touched: one that serves there is
/// not an earlier one.
///
/// # Errors
/// Who serves there.
pub fn check_free(config: &Config) -> Result<(), ServeError> {
    let path = &config.grpc.socket;
    match listeners::unix(path) {
        Place::Taken(owner) => Err(ServeError::InUse { path: path.clone(), owner }),
        _ => Ok(()),
    }
}

/// Opens the socket. Replaces a stale one, on which no process listens.
///
/// # Errors
/// If another process listens there, or the file system refuses.
pub fn listen(config: &Config) -> Result<UnixListener, ServeError> {
    let path = &config.grpc.socket;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(socket_error("make the directory of", path))?;
    }
    check_free(config)?;
    // Created under another name and renamed into place, so that it never has another mode.
    let unseen = path.with_extension("new");
    if unseen.exists() {
        std::fs::remove_file(&unseen).map_err(socket_error("remove stale", &unseen))?;
    }
    let listener = UnixListener::bind(&unseen).map_err(socket_error("bind", &unseen))?;
    let mode = std::fs::Permissions::from_mode(config.socket_mode());
    std::fs::set_permissions(&unseen, mode).map_err(socket_error("set the mode of", path))?;
    std::os::unix::fs::chown(&unseen, Some(0), Some(config.grpc.socket_gid))
        .map_err(socket_error("set the group of", path))?;
    std::fs::rename(&unseen, path).map_err(socket_error("move into place", path))?;
    Ok(listener)
}

/// Serves both services behind the door, and `beside` them another one, until `end` completes, then finishes the calls in flight.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    config: &Config,
    listener: UnixListener,
    (runtime, image): (Runtime, Image),
    rpcs: Rpcs,
    beside: Routes,
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let limit = config.grpc.max_message_bytes;
    let router = transport()
        .layer(DoorLayer(rpcs))
        .add_routes(beside)
        .add_service(
            RuntimeServiceServer::new(runtime)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        )
        .add_service(
            ImageServiceServer::new(image).max_decoding_message_size(limit).max_encoding_message_size(limit),
        );
    let served = tokio::select! {
        served = router.serve_with_incoming(connections(listener)) => served,
        // Calls in flight are not waited for: their work is recorded and the next daemon takes it up.
        () = end => Ok(()),
    };
    // The next daemon replaces a remaining socket.
    let _ = std::fs::remove_file(&config.grpc.socket);
    Ok(served?)
}
