//! HTTP to one host: TLS set-up, redirects, the authorization loop. One logical request in, one answer out.

use super::auth::{self, Authorization, Secret};
use super::challenge;
use super::hosts::{Host, Tls};
use super::pace::Throttle;
use super::proxy::Proxies;
use crate::config;
use crate::images::error::ImageError;
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};
use std::collections::HashMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Redirects of one request, as Go's and curl's clients allow about as many.
const MAX_REDIRECTS: usize = 10;
/// 401s answered in one request: one for the first token, one for an expired one.
const MAX_CHALLENGES: usize = 2;
/// Idle connections are closed after this long, to give their memory back between pulls.
const POOL_IDLE: Duration = Duration::from_secs(15);
/// A token document; real ones are a few KiB (a JWT).
const MAX_TOKEN_BODY: usize = 1 << 20;
/// Time for the whole exchange with a token service.
const TOKEN_TIME: Duration = Duration::from_secs(30);

/// What all pulls share: configuration and HTTP clients by TLS set-up.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(super) certs_dirs: Vec<PathBuf>,
    pub(super) registries_conf: PathBuf,
    pub(super) auth_files: Vec<PathBuf>,
    connect_timeout: Duration,
    pub(super) progress_timeout: Duration,
    pub(super) min_bytes_per_second: u64,
    pub(super) throttle: Throttle,
    /// Size from which a blob is fetched in parts side by side; None: never.
    pub(super) parts_from: Option<u64>,
    pub(super) proxies: Proxies,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// A client is shared while its files are unchanged.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ClientKey {
    tls: Tls,
    changed: Vec<Option<SystemTime>>,
    connect_timeout: Duration,
    /// A connection for each request: HTTP/2 would put parts that are fetched side by side into one.
    separate: bool,
    proxies: Proxies,
}

/// TLS set-ups remembered; more are made anew each time. A node has a handful of registries.
const MAX_CLIENTS: usize = 16;

impl Registry {
    pub(crate) fn new(config: &config::Images) -> Arc<Self> {
        Self::with_proxies(config, Proxies::from(|name| std::env::var(name).ok()))
    }

    pub(crate) fn with_proxies(config: &config::Images, proxies: Proxies) -> Arc<Self> {
        // Once per process; a second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Arc::new(Self {
            certs_dirs: config.certs_dirs.clone(),
            registries_conf: config.registries_conf.clone(),
            auth_files: config.auth_files.clone(),
            connect_timeout: Duration::from_secs(config.connect_timeout_seconds),
            progress_timeout: Duration::from_secs(config.progress_timeout_seconds),
            min_bytes_per_second: config.min_bytes_per_second,
            throttle: Throttle::new(config.max_bytes_per_second),
            parts_from: Some(config.parallel_range_bytes).filter(|bytes| *bytes > 0),
            proxies,
            clients: Mutex::default(),
        })
    }

    fn http_client(&self, host: &Host, separate: bool) -> Result<reqwest::Client, ImageError> {
        let files = host
            .tls
            .ca
            .iter()
            .chain(host.tls.client.iter().flat_map(|(c, k)| [Some(c), k.as_ref()].into_iter().flatten()));
        let key = ClientKey {
            tls: host.tls.clone(),
            changed: files.map(|f| f.metadata().and_then(|m| m.modified()).ok()).collect(),
            connect_timeout: host.dial_timeout.unwrap_or(self.connect_timeout),
            separate,
            proxies: self.proxies.clone(),
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
            .tls_danger_accept_invalid_certs(key.tls.skip_verify);
        key.proxies.apply(if key.separate { builder.http1_only() } else { builder })
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

/// An HTTP error with its causes and without its URL, whose query may be signed.
fn told(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() { "connect".to_owned() } else { "request".to_owned() };
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

/// A body error in words.
pub(super) fn body_error(error: &reqwest::Error) -> String {
    told(error)
}

/// Method of a token request.
pub(super) enum Ask<'a> {
    Get,
    Post(&'a [(&'static str, String)]),
}

/// One request to a host.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: &'static str,
    /// First byte wanted; 0: all, without a Range header.
    pub(super) from: u64,
    /// The byte behind the last one wanted; None: all from `from` on.
    pub(super) end: Option<u64>,
    /// Named in errors.
    pub(super) what: &'a str,
}

/// A host with its client and its authorization, for one repository and one pull.
#[derive(Debug)]
pub(crate) struct HostClient {
    pub(super) host: Host,
    http: reqwest::Client,
    /// For parts.
    separate: Option<reqwest::Client>,
    secret: SecretBox,
    repository: String,
    shared: Arc<Registry>,
    /// No connection was had in this pull.
    down: AtomicBool,
    authorization: tokio::sync::Mutex<Authorization>,
}

struct SecretBox(Secret);

impl std::fmt::Debug for SecretBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl HostClient {
    pub(super) fn new(
        shared: &Arc<Registry>,
        host: Host,
        repository: &str,
        secret: Secret,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            http: shared.http_client(&host, false)?,
            separate: shared.parts_from.map(|_| shared.http_client(&host, true)).transpose()?,
            authorization: tokio::sync::Mutex::new(auth::initial(&secret)),
            secret: SecretBox(secret),
            repository: host.repository.clone().unwrap_or_else(|| repository.to_owned()),
            shared: Arc::clone(shared),
            down: AtomicBool::new(false),
            host,
        })
    }

    /// `host[:port]` for messages.
    pub(super) fn name(&self) -> String {
        let host = self.host.base.host_str().unwrap_or_default();
        self.host.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The image's repository at this host.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn base(&self) -> &Url {
        &self.host.base
    }

    /// What all hosts share.
    pub(super) fn shared(&self) -> &Registry {
        &self.shared
    }

    /// Whether no connection could be had in this pull: each further try may cost the whole connect timeout.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Sends, answering challenges. The answer may be any status but a 401 that could be helped.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, ImageError> {
        let mut answered = 0;
        loop {
            let sent = self.authorization.lock().await.header();
            let response = self.follow(request, sent.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || answered >= MAX_CHALLENGES {
                return Ok(response);
            }
            answered += 1;
            let challenges = challenge::parse(
                response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()),
            );
            let mut current = self.authorization.lock().await;
            // Another request of this pull may have a newer token already.
            if current.header().is_some() && current.header() != sent {
                continue;
            }
            match auth::answer(self, &self.secret.0, &self.repository, &challenges).await? {
                Some(fresh) if fresh.header().is_some() && fresh.header() != sent => *current = fresh,
                _ => return Ok(response),
            }
        }
    }

    async fn follow(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, ImageError> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = url.origin() == self.host.base.origin();
            let http = request.end.and(self.separate.as_ref()).unwrap_or(&self.http);
            let mut builder = http
                .request(request.method.clone(), url.clone())
                // Anything but identity would break the digest.
                .header(header::ACCEPT_ENCODING, "identity")
                .header(header::ACCEPT, request.accept);
            if request.from > 0 || request.end.is_some() {
                let last = request.end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
                builder = builder.header(header::RANGE, format!("bytes={}-{last}", request.from));
            }
            if own {
                builder = builder.headers(self.host.headers.clone());
                if let Some(value) = authorization {
                    builder = builder.header(header::AUTHORIZATION, value.clone());
                }
            }
            let response = tokio::time::timeout(self.shared.progress_timeout, builder.send())
                .await
                .map_err(|_| self.stalled(request.what))?
                .map_err(|e| {
                    self.down.fetch_or(own && e.is_connect(), Ordering::Relaxed);
                    self.unavailable(request.what, told(&e))
                })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = self.next_hop(request.what, &url, &response)?;
        }
        Err(self.redirect(request.what, "more than 10 redirects"))
    }

    fn next_hop(&self, what: &str, from: &Url, response: &Response) -> Result<Url, ImageError> {
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        hop(&self.host.base, from, location).map_err(|reason| self.redirect(what, reason))
    }

    fn redirect(&self, what: &str, reason: &'static str) -> ImageError {
        ImageError::Redirect { what: what.to_owned(), host: self.name(), reason }
    }

    pub(super) fn stalled(&self, what: &str) -> ImageError {
        ImageError::Stalled { what: what.to_owned(), host: self.name(), after: self.shared.progress_timeout }
    }

    pub(super) fn unavailable(&self, what: &str, reason: String) -> ImageError {
        ImageError::Unavailable { what: what.to_owned(), host: self.name(), reason, retry_after: None }
    }

    /// Asks a token service; it is not followed when it redirects, as the form holds the password.
    pub(super) async fn token_request(
        &self,
        ask: Ask<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<(u16, Vec<u8>), String> {
        let mut builder = match ask {
            Ask::Get => self.http.get(url.clone()),
            Ask::Post(form) => {
                let mut encoded = Url::parse("http://form/").map_err(|e| e.to_string())?;
                encoded.query_pairs_mut().extend_pairs(form);
                self.http
                    .post(url.clone())
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(encoded.query().unwrap_or_default().to_owned())
            }
        };
        builder =
            builder.header(header::ACCEPT, "application/json").header(header::ACCEPT_ENCODING, "identity");
        if let Some(value) = authorization {
            builder = builder.header(header::AUTHORIZATION, value);
        }
        let exchange = async {
            let mut response = builder.send().await.map_err(|e| told(&e))?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| told(&e))? {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_TOKEN_BODY {
                    return Err("the answer is longer than 1 MiB".to_owned());
                }
            }
            Ok((response.status().as_u16(), body))
        };
        let limit = TOKEN_TIME.min(self.shared.progress_timeout);
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
    }
}

/// Where a redirect leads, or why it is not followed.
fn hop(base: &Url, from: &Url, location: Option<&str>) -> Result<Url, &'static str> {
    let next = location.and_then(|l| from.join(l).ok()).ok_or("its Location is missing or not a URL")?;
    match (from.scheme(), next.scheme()) {
        ("https", "http") => return Err("it leads from https to http"),
        (_, "http" | "https") => {}
        _ => return Err("it leads to another protocol"),
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err("its URL has credentials");
    }
    // 169.254.0.0/16 holds the cloud metadata services, which give out the node's own credentials.
    if link_local(&next) && !link_local(base) {
        return Err("it leads to a link-local address");
    }
    // What listens on this machine only, such as the kubelet's health port, trusts who can reach it.
    if loopback(&next) && !loopback(base) {
        return Err("it leads to this machine");
    }
    Ok(next)
}

fn loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    match host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => v4.is_loopback() || v4.is_unspecified(),
        Ok(std::net::IpAddr::V6(v6)) => {
            v6.is_loopback() || v6.is_unspecified() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback())
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn link_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    match host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => v4.is_link_local(),
        Ok(std::net::IpAddr::V6(v6)) => {
            v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_link_local())
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_are_not_followed() {
        let base = Url::parse("https://r.example/v2/").unwrap();
        let to = |location| hop(&base, &base, location).map(String::from);
        assert_eq!(to(Some("/x?y")).unwrap(), "https://r.example/x?y");
        assert_eq!(to(Some("https://cdn.example/x")).unwrap(), "https://cdn.example/x");
        for (location, words) in [
            (None, "missing"),
            (Some("https://"), "missing"),
            (Some("http://r.example/"), "https to http"),
            (Some("file:///etc/passwd"), "another protocol"),
            (Some("https://u@r.example/"), "credentials"),
            (Some("https://169.254.169.254/latest"), "link-local"),
            (Some("https://localhost:10248/healthz"), "this machine"),
        ] {
            assert!(to(location).unwrap_err().contains(words), "{location:?}");
        }
        // A registry on this machine may send us to a storage service here.
        let local = Url::parse("http://127.0.0.1:5000/v2/").unwrap();
        assert!(hop(&local, &local, Some("http://127.0.0.1:9000/x")).is_ok());
    }

    #[test]
    fn addresses_of_this_machine_and_link() {
        let url = |text: &str| Url::parse(text).unwrap();
        for text in [
            "http://169.254.169.254/",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.1.1]/",
            "http://2852039166/",
        ] {
            assert!(link_local(&url(text)) && !loopback(&url(text)), "{text}");
        }
        for text in [
            "http://127.1/",
            "http://localhost:1/",
            "http://[::1]/",
            "http://0.0.0.0/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            assert!(loopback(&url(text)) && !link_local(&url(text)), "{text}");
        }
        assert!(!loopback(&url("http://localhost.example/")) && !link_local(&url("http://169.253.0.1/")));
    }
}
