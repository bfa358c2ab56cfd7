//! HTTP clients by what they may do: TLS set-up, proxy, and where they may connect to. Clients are shared, so that
//! connections are; what one host's settings say never holds for another's requests, as those have another client.

use super::client::Registry;
use super::hosts::Tls;
use super::reach::Reach;
use crate::images::error::{ImageError, cut};
use reqwest::Url;
use std::error::Error as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

/// Idle connections are closed after this long, to give their memory back between pulls.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Set-ups remembered; more are made anew each time. A node has a handful of registries, each with a client for parts.
const MAX_CLIENTS: usize = 16;

/// A client is shared while its files are unchanged.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientKey {
    tls: Tls,
    files: Files,
    connect_timeout: Duration,
    /// A connection for each request: HTTP/2 would put parts that are fetched side by side into one.
    separate: bool,
    /// The proxy of every request; it resolves the names.
    proxy: Option<String>,
    reach: Reach,
}

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
        url: &Url,
        tls: &Tls,
        files: &Files,
        dial_timeout: Option<Duration>,
        reach: Reach,
        separate: bool,
    ) -> Result<reqwest::Client, ImageError> {
        let proxy = self.proxies.secret_for_url(url)?;
        let key = ClientKey {
            tls: tls.clone(),
            files: files.clone(),
            connect_timeout: dial_timeout.unwrap_or(self.connect_timeout),
            separate,
            // The proxy itself may be on this machine, and is all that such a client resolves.
            reach: if proxy.is_some() { Reach::Anywhere } else { reach },
            proxy,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key)?;
        if clients.len() < MAX_CLIENTS {
            clients.insert(key, client.clone());
        }
        Ok(client)
    }
}

fn build(key: &ClientKey) -> Result<reqwest::Client, ImageError> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| ImageError::io("read", path, e));
    let base = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(key.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tls_danger_accept_invalid_certs(key.tls.skip_verify)
            .no_proxy();
        let builder = match &key.proxy {
            Some(proxy) => builder.proxy(super::proxy::of_all(proxy)?),
            None if key.reach == Reach::Anywhere => builder,
            None => builder.dns_resolver(key.reach),
        };
        Ok(if key.separate { builder.http1_only() } else { builder })
    };
    let mut builder = base()?;
    let mut roots = Vec::new();
    for path in &key.tls.ca {
        let pem = read(path)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| wrong(path, &e))?;
        roots.extend(certificates);
    }
    let own_files = !roots.is_empty() || !key.tls.client.is_empty();
    builder = builder.tls_certs_merge(roots);
    // rustls offers one client certificate; the first is it.
    if let Some((certificate, private_key)) = key.tls.client.first() {
        let mut pem = read(certificate)?;
        if let Some(path) = private_key {
            pem.push(b'\n');
            pem.extend(read(path)?);
        }
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|e| wrong(certificate, &e))?);
    }
    match builder.build() {
        Ok(client) => Ok(client),
        // A machine without any root certificates can still use plain http.
        Err(_) if !own_files => base()?.tls_certs_only([]).build().map_err(|e| wrong(Path::new("TLS"), &e)),
        Err(e) => Err(wrong(Path::new("TLS"), &e)),
    }
}

fn wrong(path: &Path, error: &reqwest::Error) -> ImageError {
    ImageError::Hosts { path: path.to_owned(), reason: told(error) }
}

/// The same of a host that another one has led to: its own words, and the names in its certificate, are not for whoever named
/// the image.
pub(super) fn told_of_another(error: &reqwest::Error) -> &'static str {
    let text = told(error);
    tracing::debug!(error = text, "a host that another one has led to");
    if text.contains("certificate") {
        "its certificate is not accepted"
    } else if error.is_connect() {
        "no connection"
    } else {
        "no usable answer"
    }
}

/// An HTTP error with its causes and without its URL, whose query may be signed.
pub(super) fn told(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() { "connect".to_owned() } else { "request".to_owned() };
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    // A certificate may have thousands of names.
    cut(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::registry::Proxies;
    use crate::images::registry::reach::Refused;
    use crate::images::tests::fixture::config;
    use crate::images::tests::server::{Reply, Server};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_connects_only_where_it_may() {
        let server = Server::start(|_| Reply::new(200, ""));
        let registry = Registry::with_proxies(&config(), Proxies::default());
        let (tls, files) = (Tls::default(), Files::of(&Tls::default()));
        // A name: no check of a URL has seen what it means.
        let url = Url::parse(&format!("http://localhost:{}/", server.port)).unwrap();
        for reach in [Reach::Outside, Reach::Node] {
            for separate in [false, true] {
                let client = registry.http_client(&url, &tls, &files, None, reach, separate).unwrap();
                let error = client.get(url.clone()).send().await.unwrap_err();
                assert!(Refused::behind(&error).is_some(), "{error:?}");
            }
        }
        assert!(server.asks().is_empty());
        let client = registry.http_client(&url, &tls, &files, None, Reach::Anywhere, false).unwrap();
        client.get(url).send().await.unwrap();
        assert_eq!(server.asks().len(), 1);
    }
}
