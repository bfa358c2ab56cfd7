//! Connections as the process that speaks HTTP makes them: over a socket that the daemon has connected, through a proxy and
//! TLS as the client's set-up says. Never connects anything itself.

use super::child::{Asking, Use};
use super::wire::{self, Setup};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The daemon gave no connection, and knows why.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
struct NoSocket;

/// Words of this process's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Wrong(String);

/// The system's roots.
#[derive(Debug, Clone)]
pub(super) struct Trust(Arc<RootCertStore>);

impl Trust {
    /// Those of `roots` that can be used.
    pub(super) fn of(roots: Vec<Vec<u8>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.into_iter().map(CertificateDer::from));
        Self(Arc::new(store))
    }

    fn and(&self, more: &[Vec<u8>]) -> Arc<RootCertStore> {
        if more.is_empty() {
            return Arc::clone(&self.0);
        }
        let mut store = RootCertStore::clone(&self.0);
        store.add_parsable_certificates(more.iter().map(|der| CertificateDer::from(der.as_slice())));
        Arc::new(store)
    }
}

/// The connector of one client.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    client: u32,
    asking: Arc<Asking>,
    timeout: Duration,
    /// None: its keys cannot be used.
    tls: Option<Arc<ClientConfig>>,
    /// For a proxy that is spoken to by TLS: no HTTP/2 there.
    proxy_tls: Option<Arc<ClientConfig>>,
    proxy: Option<Arc<Intercept>>,
}

impl Dialer {
    pub(super) fn new(client: u32, setup: &Setup, trust: &Trust, asking: &Arc<Asking>) -> Self {
        let roots = trust.and(&setup.roots);
        let http1 = || vec![b"http/1.1".to_vec()];
        let both = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let alpn = if setup.separate { http1() } else { both };
        let proxy = proxy_of(&setup.proxy);
        Self {
            client,
            asking: Arc::clone(asking),
            timeout: setup.connect_timeout,
            tls: config(setup, &roots, alpn),
            proxy_tls: proxy.as_ref().and_then(|_| config(setup, &roots, http1())),
            proxy: proxy.map(Arc::new),
        }
    }

    /// What requests themselves have for a proxy that sees them.
    pub(super) fn request_auth(&self) -> Option<HeaderValue> {
        self.proxy.as_ref()?.basic_auth().cloned()
    }

    async fn dial(&self, to: Uri) -> Result<Dialed, BoxError> {
        let socket = self.asking.socket(self.client).await?.ok_or(NoSocket)?;
        let tcp = TcpStream::from_std(socket.into())?;
        let is_https = to.scheme() == Some(&http::uri::Scheme::HTTPS);
        let tcp = Counted { tcp, use_of: Arc::clone(&self.asking.use_of) };
        let (mut stream, mut seen): (BoxStream, _) = (Box::new(tcp), false);
        if let Some(proxy) = &self.proxy {
            let uri = proxy.uri().clone();
            if uri.scheme() == Some(&http::uri::Scheme::HTTPS) {
                stream = self.secure(self.proxy_tls.as_ref(), &uri, stream).await?.0;
            }
            if is_https {
                let mut tunnel = Tunnel::new(uri, Given(Some(stream)));
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                stream = tunnel.call(to.clone()).await?.into_inner();
            } else {
                seen = true;
            }
        }
        let (stream, is_h2) =
            if is_https { self.secure(self.tls.as_ref(), &to, stream).await? } else { (stream, false) };
        Ok(Dialed { io: TokioIo::new(stream), seen, is_h2 })
    }

    /// TLS, and whether HTTP/2 was agreed upon.
    async fn secure(
        &self,
        config: Option<&Arc<ClientConfig>>,
        to: &Uri,
        stream: BoxStream,
    ) -> Result<(BoxStream, bool), BoxError> {
        let config = config.ok_or_else(|| Wrong("its client certificate cannot be used".into()))?;
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host)?;
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(stream), is_h2))
    }
}

impl Service<Uri> for Dialer {
    type Response = Dialed;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Dialed, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let limit = dialer.timeout;
            let late = |_| BoxError::from(Wrong(format!("no connection in {} s", limit.as_secs_f32())));
            tokio::time::timeout(limit, dialer.dial(to)).await.map_err(late)?
        })
    }
}

/// The proxy that a URL names; None: it names none that is spoken to here. SOCKS is not: names would be resolved past the
/// check of where they lead.
pub(in crate::images::registry) fn proxy_of(url: &str) -> Option<Intercept> {
    let matcher = Matcher::builder().all(url.to_owned()).build();
    // Any host: this matcher has no exceptions.
    let proxy = matcher.intercept(&Uri::from_static("http://registry.invalid/"))?;
    matches!(proxy.uri().scheme_str(), Some("http" | "https")).then_some(proxy)
}

/// TLS of a client; None: its certificate and key cannot be used.
fn config(setup: &Setup, roots: &Arc<RootCertStore>, alpn: Vec<Vec<u8>>) -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let builder = if setup.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone))
    } else {
        builder.with_root_certificates(Arc::clone(roots))
    };
    let mut config = if setup.chain.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = setup.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::try_from(setup.key.clone()).ok()?;
        builder.with_client_auth_cert(chain, key).ok()?
    };
    config.alpn_protocols = alpn;
    Some(Arc::new(config))
}

/// What failed, and its words.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> (u8, String) {
    let mut kind = wire::FAILED;
    let (mut text, mut at) = (String::new(), Some(error));
    while let Some(error) = at {
        if error.is::<NoSocket>() {
            return (wire::UNCONNECTED, String::new());
        }
        let client = error.downcast_ref::<hyper_util::client::legacy::Error>();
        if client.is_some_and(hyper_util::client::legacy::Error::is_connect) {
            kind = wire::CONNECT;
        }
        let part = error.to_string();
        // "client error (Connect)" says nothing that its cause does not.
        if client.is_none_or(|client| std::error::Error::source(client).is_none()) && !text.ends_with(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        at = error.source();
    }
    (kind, text)
}

/// Takes whatever certificate is shown: the configuration says `skip_verify`.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A connection whose bytes are counted as they arrive.
struct Counted {
    tcp: TcpStream,
    use_of: Arc<Use>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        std::task::ready!(Pin::new(&mut self.tcp).poll_read(context, into))?;
        Poll::Ready(self.use_of.arrives(into.filled().len() - before))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, all)
    }
}

/// What can be spoken over.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
type BoxStream = Box<dyn Stream>;

/// A connector that has its connection already, for the handshakes of proxies.
struct Given(Option<BoxStream>);

impl Service<Uri> for Given {
    type Response = TokioIo<BoxStream>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(|| NoSocket.into()))
    }
}

/// A connection that requests go over.
pub(super) struct Dialed {
    io: TokioIo<BoxStream>,
    /// A proxy sees the requests.
    seen: bool,
    is_h2: bool,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.seen);
        if self.is_h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl Write for Dialed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, all)
    }
}
