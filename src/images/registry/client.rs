//! HTTP to one host: redirects, the authorization loop. One logical request in, one answer out. Owns what goes along to
//! whom: credentials, headers and TLS settings are for the host alone, never for where it leads.

use super::auth::{self, Authorization, Secret};
use super::challenge;
use super::clients::Files;
use super::documents::Documents;
use super::fetch::{Client, Common, Failure, Fetcher, Response};
use super::hosts::{Host, Tls, led_to};
use super::pace::Throttle;
use super::proxy::Proxies;
use super::reach::{Reach, Refused};
use crate::config;
use crate::images::error::ImageError;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use url::Url;

/// Redirects of one request, as Go's and curl's clients allow about as many.
const MAX_REDIRECTS: usize = 10;
/// 401s answered in one request: one for the first token, one for an expired one.
const MAX_CHALLENGES: usize = 2;
/// Places that one host leads to and whose clients are kept for the pull: a storage service and a token service. A host
/// that names a new one each time pays for it.
const MAX_AWAY: usize = 16;
/// A token document; real ones are a few KiB (a JWT).
const MAX_TOKEN_BODY: usize = 1 << 20;
/// Time for the whole exchange with a token service.
const TOKEN_TIME: Duration = Duration::from_secs(30);

/// What all pulls share: configuration, and how many processes speak HTTP for them.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(super) certs_dirs: Vec<PathBuf>,
    pub(super) registries_conf: PathBuf,
    pub(super) auth_files: Vec<PathBuf>,
    pub(super) connect_timeout: Duration,
    pub(super) progress_timeout: Duration,
    pub(super) min_bytes_per_second: u64,
    pub(super) throttle: Throttle,
    /// Size from which a blob is fetched in parts side by side; None: never.
    pub(super) parts_from: Option<u64>,
    pub(super) proxies: Proxies,
    pub(super) fetching: Arc<Common>,
    pub(in crate::images) documents: Documents,
}

impl Registry {
    pub(crate) fn new(config: &config::Images) -> Arc<Self> {
        Self::with_proxies(config, Proxies::from(|name| std::env::var(name).ok()))
    }

    pub(crate) fn with_proxies(config: &config::Images, proxies: Proxies) -> Arc<Self> {
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
            fetching: Arc::default(),
            documents: Documents::default(),
        })
    }
}

/// Says who asks.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("podwright/", env!("CARGO_PKG_VERSION")));

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
    http: Client,
    /// For parts.
    separate: Option<Client>,
    secret: SecretBox,
    /// The TLS files that its clients were made of.
    files: Files,
    repository: String,
    shared: Arc<Registry>,
    fetcher: Arc<Fetcher>,
    /// All hosts of the pull: they may lead to each other.
    peers: Arc<[Host]>,
    /// Clients for where it has led in this pull.
    away: Mutex<HashMap<(String, bool), Client>>,
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

/// An answer, and who gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// Where redirects have led; None: the host itself has answered.
    pub(super) led_to: Option<String>,
}

impl HostClient {
    pub(super) fn new(
        (shared, fetcher): (&Arc<Registry>, &Arc<Fetcher>),
        host: Host,
        peers: &Arc<[Host]>,
        repository: &str,
        secret: Secret,
    ) -> Result<Self, ImageError> {
        let files = Files::of(&host.tls);
        let client = |separate| {
            shared.http_client(fetcher, &host.base, &host.tls, host.dial_timeout, host.reach, separate)
        };
        Ok(Self {
            http: client(false)?,
            separate: shared.parts_from.map(|_| client(true)).transpose()?,
            authorization: tokio::sync::Mutex::new(auth::initial(&secret)),
            secret: SecretBox(secret),
            repository: host.repository.clone().unwrap_or_else(|| repository.to_owned()),
            shared: Arc::clone(shared),
            fetcher: Arc::clone(fetcher),
            peers: Arc::clone(peers),
            away: Mutex::default(),
            down: AtomicBool::new(false),
            files,
            host,
        })
    }

    /// `host[:port]` for messages.
    pub(super) fn name(&self) -> String {
        auth::authority(&self.host.base)
    }

    /// Tells who asks it: all that it may know the caller by, and what the caller knows it by. Each part in a place that its
    /// number or the parts before say, so that no two callers tell the same.
    pub(super) fn tell_caller(&self, tell: &mut dyn FnMut(&[u8])) {
        tell(self.base().as_str().as_bytes());
        tell(self.repository.as_bytes());
        self.secret.0.parts().iter().for_each(|part| tell(part.as_bytes()));
        let headers = &self.host.headers;
        tell(&headers.len().to_be_bytes());
        for (name, value) in headers {
            tell(name.as_str().as_bytes());
            tell(value.as_bytes());
        }
        self.host.tls.tell(tell);
        self.files.tell(tell);
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

    /// Sends, answering the host's own challenges. The answer may be any status but a 401 that could be helped.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Answer, ImageError> {
        let mut answered = 0;
        loop {
            let sent = self.authorization.lock().await.header();
            let answer = self.follow(request, sent.as_ref()).await?;
            // Nobody that it leads to may say where its credentials go.
            let is_own = answer.led_to.is_none();
            if !is_own || answer.response.status() != StatusCode::UNAUTHORIZED || answered >= MAX_CHALLENGES {
                return Ok(answer);
            }
            answered += 1;
            let values = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
            let challenges = challenge::parse(values.iter().filter_map(|v| v.to_str().ok()));
            let mut current = self.authorization.lock().await;
            // Another request of this pull may have a newer token already.
            if current.header().is_some() && current.header() != sent {
                continue;
            }
            match auth::answer(self, &self.secret.0, &self.repository, &challenges).await? {
                Some(fresh) if fresh.header().is_some() && fresh.header() != sent => *current = fresh,
                _ => return Ok(answer),
            }
        }
    }

    async fn follow(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, ImageError> {
        let mut url = request.url.clone();
        let mut led_to = None;
        for _ in 0..=MAX_REDIRECTS {
            let separate = request.end.is_some() && self.separate.is_some();
            let refused = |refused: Refused, led_to: &Option<String>| match led_to {
                Some(_) => self.redirect(request.what, refused.to_string()),
                None => ImageError::NotAsked {
                    what: request.what.to_owned(),
                    host: self.name(),
                    reason: refused.to_string(),
                },
            };
            let http = match &led_to {
                None => {
                    self.host.reach.check(&url).map_err(|e| refused(e, &led_to))?;
                    Ok(self.separate.as_ref().filter(|_| separate).unwrap_or(&self.http).clone())
                }
                Some(_) => self.away(&url, separate).await,
            };
            let http = http.map_err(|away| match away {
                Away::Refused(e) => refused(e, &led_to),
                Away::Settings(error) => error,
            })?;
            let mut headers = headers(request.accept);
            if request.from > 0 || request.end.is_some() {
                let last = request.end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
                let range = HeaderValue::from_str(&format!("bytes={}-{last}", request.from));
                headers.extend(range.map(|range| (header::RANGE, range)));
            }
            if led_to.is_none() {
                headers.extend(self.host.headers.clone());
                headers.extend(authorization.map(|value| (header::AUTHORIZATION, value.clone())));
            }
            let sent = http.send(&request.method, &url, &headers, b"");
            let response = tokio::time::timeout(self.shared.progress_timeout, sent)
                .await
                .map_err(|_| self.stalled(request.what))?
                .map_err(|e| match (e, &led_to) {
                    (Failure::Refused(e), _) => refused(e, &led_to),
                    (e, Some(place)) => self.unavailable(
                        request.what,
                        format!("{place}, where it redirects: {}", e.of_another()),
                    ),
                    (e, None) => {
                        self.down.fetch_or(matches!(e, Failure::Connect(_)), Ordering::Relaxed);
                        self.unavailable(request.what, e.to_string())
                    }
                })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, led_to });
            }
            url = self.next_hop(request.what, &url, &response)?;
            // Who has led away and back again is still another.
            if led_to.is_some() || url.origin() != self.host.base.origin() {
                led_to = Some(auth::authority(&url));
            }
        }
        Err(self.redirect(request.what, "more than 10 redirects".into()))
    }

    /// The client for a URL that this host, or one that it led to, names. None of this host's settings holds there.
    async fn away(&self, url: &Url, separate: bool) -> Result<Client, Away> {
        let peer = self.peers.iter().find(|host| host.is_at(url));
        let key = (url.origin().ascii_serialization(), separate);
        let known = {
            let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
            away.get(&key).cloned()
        };
        let reach = peer.map_or(Reach::Outside, |host| host.reach);
        if let Some(client) = known {
            return Ok(client);
        }
        let (shared, fetcher) = (Arc::clone(&self.shared), Arc::clone(&self.fetcher));
        let (target, tls) = (url.clone(), peer.map(|h| h.tls.clone()));
        let client = tokio::task::spawn_blocking(move || {
            let (reach, tls) = match tls {
                Some(tls) => (reach, Tls { client: Vec::new(), ..tls }),
                None => match led_to(&shared.certs_dirs, &shared.registries_conf, &target)? {
                    Some(tls) => (Reach::Anywhere, tls),
                    None => (reach, Tls::default()),
                },
            };
            reach.check(&target).map_err(Away::Refused)?;
            shared.http_client(&fetcher, &target, &tls, None, reach, separate).map_err(Away::Settings)
        });
        let client = client.await.unwrap_or_else(|_| {
            Err(ImageError::Interrupted { what: format!("a request to {}", auth::authority(url)) }.into())
        })?;
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.len() < MAX_AWAY {
            away.insert(key, client.clone());
        }
        Ok(client)
    }

    fn next_hop(&self, what: &str, from: &Url, response: &Response) -> Result<Url, ImageError> {
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        hop(from, location).map_err(|reason| self.redirect(what, reason.to_owned()))
    }

    fn redirect(&self, what: &str, reason: String) -> ImageError {
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
        let is_own = url.origin() == self.host.base.origin();
        let http = if is_own {
            self.http.clone()
        } else {
            self.away(url, false).await.map_err(|away| away.to_string())?
        };
        let words = |e: Failure| if is_own { e.to_string() } else { e.of_another() };
        let mut headers = headers("application/json");
        let (method, form) = match ask {
            Ask::Get => (Method::GET, None),
            Ask::Post(form) => {
                let mut encoded = Url::parse("http://form/").map_err(|e| e.to_string())?;
                encoded.query_pairs_mut().extend_pairs(form);
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, kind);
                (Method::POST, encoded.query().map(str::to_owned))
            }
        };
        headers.extend(authorization.map(|value| (header::AUTHORIZATION, value)));
        let exchange = async {
            let form = form.unwrap_or_default();
            let sent = http.send(&method, url, &headers, form.as_bytes()).await;
            let mut response = sent.map_err(words)?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(words)? {
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

/// What every request says. Anything but identity would break the digest.
fn headers(accept: &'static str) -> HeaderMap {
    HeaderMap::from_iter([
        (header::USER_AGENT, USER_AGENT),
        (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        (header::ACCEPT, HeaderValue::from_static(accept)),
    ])
}

/// Why there is no client for where a host leads.
#[derive(Debug, thiserror::Error)]
enum Away {
    #[error(transparent)]
    Refused(Refused),
    /// The configuration of that host cannot be read.
    #[error(transparent)]
    Settings(#[from] ImageError),
}

/// Where a redirect leads, or why it is not followed. Which addresses it may lead to is `reach`'s to say.
fn hop(from: &Url, location: Option<&str>) -> Result<Url, &'static str> {
    let next = location.and_then(|l| from.join(l).ok()).ok_or("its Location is missing or not a URL")?;
    match (from.scheme(), next.scheme()) {
        ("https", "http") => return Err("it leads from https to http"),
        (_, "http" | "https") => {}
        _ => return Err("it leads to another protocol"),
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err("its URL has credentials");
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_are_not_followed() {
        let base = Url::parse("https://r.example/v2/").unwrap();
        let to = |location| hop(&base, location).map(String::from);
        assert_eq!(to(Some("/x?y")).unwrap(), "https://r.example/x?y");
        assert_eq!(to(Some("https://cdn.example/x")).unwrap(), "https://cdn.example/x");
        assert_eq!(to(Some("https:u@r.example/")).unwrap(), "https://r.example/v2/u@r.example/", "a path");
        // Another port of the same name is another origin, which `follow` compares.
        assert_ne!(hop(&base, Some("//r.example:8443/x")).unwrap().origin(), base.origin());
        for (location, words) in [
            (None, "missing"),
            (Some("https://"), "missing"),
            (Some("http://r.example/"), "https to http"),
            (Some("file:///etc/passwd"), "another protocol"),
            (Some("https://u@r.example/"), "credentials"),
            (Some("//u@r.example/"), "credentials"),
            (Some("//u:p@other.example/x"), "credentials"),
            (Some("\\\\u@r.example/"), "credentials"),
            (Some("https://:p@r.example/"), "credentials"),
        ] {
            assert!(to(location).unwrap_err().contains(words), "{location:?}");
        }
    }
}
