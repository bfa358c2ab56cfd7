//! HTTP clients by what they may do: TLS set-up, proxy, and where they may connect to. Files are read here, by us; the process
//! that speaks HTTP gets what is in them. What one host's settings say never holds for another's requests, as those have
//! another client.

use super::client::Registry;
use super::fetch::{Client, ClientSetup, Fetcher, Identity};
use super::hosts::Tls;
use super::proxy;
use super::reach::Reach;
use crate::images::error::ImageError;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Which content the TLS files of a host have, by what the kernel says of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Files(Vec<Option<Stamp>>);

/// Device, inode, size, last change in seconds and nanoseconds; the time of change cannot be set back.
type Stamp = [i128; 5];

impl Files {
    /// The files as they are now. Blocking.
    pub(super) fn of(tls: &Tls) -> Self {
        let stamp = |file: &PathBuf| {
            let found = file.metadata().ok()?;
            let (device, inode, size) = (found.dev().into(), found.ino().into(), found.size().into());
            Some([device, inode, size, found.ctime().into(), found.ctime_nsec().into()])
        };
        Self(tls.files().map(stamp).collect())
    }

    /// All of it, for a digest; as many parts as there are files.
    pub(super) fn tell(&self, tell: &mut dyn FnMut(&[u8])) {
        for stamp in &self.0 {
            tell(&stamp.iter().flatten().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>());
        }
    }
}

impl Registry {
    /// A client for requests to the origin of `url`, and to no other.
    pub(super) fn http_client(
        &self,
        fetcher: &Arc<Fetcher>,
        url: &Url,
        tls: &Tls,
        dial_timeout: Option<Duration>,
        reach: Reach,
        separate: bool,
    ) -> Result<Client, ImageError> {
        let setup = ClientSetup {
            separate,
            skip_verify: tls.skip_verify,
            connect_timeout: dial_timeout.unwrap_or(self.connect_timeout),
            proxy: self.proxies.secret_for_url(url)?,
            roots: roots(tls)?,
            identity: identity(tls)?,
            reach,
        };
        fetcher.client(url, setup).ok_or_else(|| proxy::wrong("HTTP_PROXY or HTTPS_PROXY"))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    std::fs::read(path).map_err(|e| ImageError::io("read", path, e))
}

/// Roots beside the system's, DER.
fn roots(tls: &Tls) -> Result<Vec<Vec<u8>>, ImageError> {
    let mut all = Vec::new();
    for path in &tls.ca {
        for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
            let certificate = certificate.map_err(|e| wrong(path, &e))?;
            RootCertStore::empty().add(certificate.clone()).map_err(|e| wrong(path, &e))?;
            all.push(certificate.to_vec());
        }
    }
    Ok(all)
}

/// The client certificate with its chain, and its key. TLS offers one; the first is it.
fn identity(tls: &Tls) -> Result<Option<Identity>, ImageError> {
    let Some((certificate, private_key)) = tls.client.first() else { return Ok(None) };
    let mut pem = read(certificate)?;
    if let Some(path) = private_key {
        pem.push(b'\n');
        pem.extend(read(path)?);
    }
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| wrong(certificate, &e))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| wrong(certificate, &e))?;
    let identity =
        Identity { chain: chain.iter().map(|c| c.to_vec()).collect(), key: key.secret_der().to_vec() };
    // The process that uses them could not say which file is wrong.
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|e| wrong(certificate, &e))?;
    Ok(Some(identity))
}

fn wrong(path: &Path, error: &dyn Display) -> ImageError {
    ImageError::Hosts { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::registry::Proxies;
    use crate::images::registry::fetch::Failure;
    use crate::images::tests::fixture::config;
    use crate::images::tests::server::{Reply, Server};
    use http::{HeaderMap, Method};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_connects_only_where_it_may() {
        let server = Server::start(|_| Reply::new(200, ""));
        let registry = Registry::with_proxies(&config(), Proxies::default());
        let fetcher = Fetcher::new(&registry.fetching, "localhost");
        // A name: no check of a URL has seen what it means.
        let url = Url::parse(&format!("http://localhost:{}/", server.port)).unwrap();
        let client = |reach, separate| {
            registry.http_client(&fetcher, &url, &Tls::default(), None, reach, separate).unwrap()
        };
        let headers = HeaderMap::new();
        for reach in [Reach::Outside, Reach::Node] {
            for separate in [false, true] {
                let error =
                    client(reach, separate).send(&Method::GET, &url, &headers, b"").await.unwrap_err();
                assert!(matches!(error, Failure::Refused(_)), "{error:?}");
            }
        }
        assert!(server.asks().is_empty());
        let allowed = client(Reach::Anywhere, false);
        allowed.send(&Method::GET, &url, &headers, b"").await.unwrap();
        assert_eq!(server.asks().len(), 1);
        // Nor does it ask another than its own.
        let other = Url::parse(&format!("http://127.0.0.1:{}/", server.port)).unwrap();
        assert!(allowed.send(&Method::GET, &other, &headers, b"").await.is_err());
        assert_eq!(server.asks().len(), 1);
    }
}
