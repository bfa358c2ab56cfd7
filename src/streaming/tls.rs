//! The server's certificate: from files, read again when they change, or generated at start.

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::TlsAcceptor;

/// Minimum interval between checks of the files.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("read {what} {path}: {cause}")]
    File {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// Certificate and key do not go together, or are of no use.
    #[error("streaming certificate: {0}")]
    Unusable(#[from] rustls::Error),
    /// None could be made.
    #[error("make a streaming certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Hands out acceptors with the certificate of the moment.
#[derive(Debug)]
pub(super) struct Certificates {
    files: Option<(PathBuf, PathBuf)>,
    look: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: Arc<ServerConfig>,
    times: Times,
    looked: Instant,
}

type Times = (Option<SystemTime>, Option<SystemTime>);

impl Certificates {
    /// From two PEM files, checked at most every `look`, or without them a new one for `names`.
    pub(super) fn new(
        files: Option<(PathBuf, PathBuf)>,
        names: Vec<String>,
        look: Duration,
    ) -> Result<Self, TlsError> {
        let (config, times) = match &files {
            Some((cert, key)) => {
                // Before they are read, so that a change in between is seen later.
                let times = times(cert, key);
                (load(cert, key)?, times)
            }
            None => (generate(names)?, (None, None)),
        };
        Ok(Self { files, look, state: Mutex::new(State { config, times, looked: Instant::now() }) })
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cert, key)) = &self.files
            && state.looked.elapsed() >= self.look
        {
            state.looked = Instant::now();
            let now = times(cert, key);
            if now != state.times {
                match load(cert, key) {
                    Ok(config) => {
                        // Log: `streaming.cert_file` changed.
                        tracing::info!(path = %cert.display(), "the streaming server's certificate was read again");
                        (state.config, state.times) = (config, now);
                    }
                    // Perhaps half-way through a replacement: the old one stays in use.
                    // Log: The new files cannot be read or do not match.
                    // Do: See `error`.
                    Err(error) => tracing::warn!(%error, "the streaming server keeps its certificate"),
                }
            }
        }
        TlsAcceptor::from(state.config.clone())
    }
}

fn times(cert: &Path, key: &Path) -> Times {
    let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    (time(cert), time(key))
}

fn load(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |cause: rustls::pki_types::pem::Error| TlsError::File { what, path, cause: cause.to_string() }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(file("streaming.cert_file", cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file("streaming.key_file", key))?;
    server(chain, key)
}

fn generate(names: Vec<String>) -> Result<Arc<ServerConfig>, TlsError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    server(vec![made.cert.der().clone()], key.into())
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // There is no HTTP/2 here to upgrade from.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
