//! Credentials and tokens. Owns which secret may go to which host; never logs or shows one.

use super::challenge::Challenge;
use super::client::{Ask, HostClient};
use crate::images::document;
use crate::images::error::{ImageError, cut};
use crate::images::offload::blocking;
use crate::model::plain;
use base64::Engine as _;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, Instant};
use url::Url;

/// The `client_id` of token requests: names the software to the registry's operator.
const CLIENT_ID: &str = "podwright";
/// Life of a token that names none, from the distribution token specification.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds, so that it does not expire on the way.
const MARGIN: Duration = Duration::from_secs(5);

/// What the kubelet sent (CRI `AuthConfig`); every field may be empty.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `username:password`, used when `username` is empty.
    pub auth: String,
    /// The only registry that may get them; empty: the image's own.
    pub server_address: String,
    /// OAuth refresh token.
    pub identity_token: String,
    /// Bearer token to be sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// One usable secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// Nothing.
    Anonymous,
    /// User name and password.
    Password { username: String, password: String },
    /// Refresh token.
    Identity(String),
    /// Ready bearer token.
    Registry(String),
}

impl Secret {
    /// All of it, for a digest.
    pub(super) fn parts(&self) -> [&str; 3] {
        match self {
            Self::Anonymous => ["anonymous", "", ""],
            Self::Password { username, password } => ["password", username, password],
            Self::Identity(token) => ["identity", token, ""],
            Self::Registry(token) => ["registry", token, ""],
        }
    }
}

impl Credentials {
    /// The secret for a host of the image's `registry`: by default that registry only, never a mirror; with a server
    /// address only where it names the registry or the host itself.
    pub(super) fn secret_for(&self, registry: &str, host: &Url, mirror: bool) -> Secret {
        let allowed = match address_host(&self.server_address) {
            None => !mirror,
            Some(named) => named == authority(host) || (!mirror && same_registry(&named, registry)),
        };
        if allowed { self.secret() } else { Secret::Anonymous }
    }

    /// Whether there is any secret in it.
    pub(super) fn is_usable(&self) -> bool {
        self.secret() != Secret::Anonymous
    }

    /// The secret, for a host that the credentials are known to be for.
    pub(super) fn into_secret(self) -> Secret {
        self.secret()
    }

    /// containerd's order (ParseAuth): user name and password, identity token, auth; then the registry token.
    fn secret(&self) -> Secret {
        if !self.username.is_empty() {
            return Secret::Password { username: self.username.clone(), password: self.password.clone() };
        }
        if !self.identity_token.is_empty() {
            return Secret::Identity(self.identity_token.clone());
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).unwrap_or_default();
        if let Some((username, password)) =
            std::str::from_utf8(&decoded).ok().and_then(|text| text.trim_end_matches('\0').split_once(':'))
        {
            return Secret::Password { username: username.to_owned(), password: password.to_owned() };
        }
        if !self.registry_token.is_empty() {
            return Secret::Registry(self.registry_token.clone());
        }
        Secret::Anonymous
    }
}

/// Host and port of `server_address`, with or without a scheme; None: empty.
fn address_host(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

/// `host[:port]`, without a port that the scheme implies.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn same_registry(named: &str, registry: &str) -> bool {
    let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    named.eq_ignore_ascii_case(registry) || (hub(named) && hub(registry))
}

/// What is sent to one host now.
#[derive(Debug, Clone, Default)]
pub(super) enum Authorization {
    /// Nothing yet, or nothing needed.
    #[default]
    None,
    /// A header, until then.
    Header(HeaderValue, Option<Instant>),
}

impl Authorization {
    /// The header to send, unless it has expired.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Header(value, until) if until.is_none_or(|t| Instant::now() < t) => Some(value.clone()),
            _ => None,
        }
    }
}

/// What is sent before any challenge: a ready token is.
pub(super) fn initial(secret: &Secret) -> Authorization {
    match secret {
        Secret::Registry(token) => {
            bearer(token).map_or(Authorization::None, |value| Authorization::Header(value, None))
        }
        _ => Authorization::None,
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(format!("Bearer {token}"))
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    sensitive(format!("Basic {pair}"))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Answers a 401. None: there is nothing (more) to offer.
pub(super) async fn answer(
    client: &HostClient,
    secret: &Secret,
    repository: &str,
    challenges: &[Challenge],
) -> Result<Option<Authorization>, ImageError> {
    // The strongest first; Digest and Negotiate are not spoken.
    if let Some(challenge) = challenges.iter().find(|c| c.scheme == "bearer") {
        return match secret {
            Secret::Registry(_) => Ok(None),
            _ => fetch(client, secret, repository, challenge).await.map(Some),
        };
    }
    match secret {
        Secret::Password { username, password } if challenges.iter().any(|c| c.scheme == "basic") => {
            Ok(basic(username, password).map(|value| Authorization::Header(value, None)))
        }
        _ => Ok(None),
    }
}

/// What a token service answers.
#[derive(Serialize, Deserialize)]
pub(in crate::images) struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn fetch(
    client: &HostClient,
    secret: &Secret,
    repository: &str,
    challenge: &Challenge,
) -> Result<Authorization, ImageError> {
    let host = client.name();
    let realm_text = challenge.get("realm").unwrap_or_default();
    let fail = |reason: String| ImageError::Token {
        host: host.clone(),
        realm: cut(&plain::one_line(realm_text.split('?').next().unwrap_or_default())),
        reason,
    };
    let realm = Url::parse(realm_text).map_err(|_| fail("the realm of the challenge is not a URL".into()))?;
    if realm.scheme() != "https" && (realm.scheme() != "http" || client.base().scheme() == "https") {
        return Err(fail("an https registry must not send credentials to a plain service".into()));
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(fail("the URL of the service has credentials".into()));
    }
    let service = challenge.get("service").unwrap_or_default();
    let mut scopes: Vec<String> = challenge
        .get("scope")
        .unwrap_or_default()
        .split(' ')
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .chain([format!("repository:{repository}:pull")])
        .collect();
    scopes.sort();
    scopes.dedup();
    let mut form = vec![
        ("client_id", CLIENT_ID.to_owned()),
        ("service", service.to_owned()),
        ("scope", scopes.join(" ")),
    ];
    let basic_header = match secret {
        Secret::Password { username, password } => {
            form.extend([
                ("grant_type", "password".to_owned()),
                ("username", username.clone()),
                ("password", password.clone()),
            ]);
            basic(username, password)
        }
        Secret::Identity(token) => {
            form.extend([("grant_type", "refresh_token".to_owned()), ("refresh_token", token.clone())]);
            None
        }
        Secret::Anonymous | Secret::Registry(_) => None,
    };
    let mut reply = None;
    if !matches!(secret, Secret::Anonymous) {
        let (status, body) = client.token_request(Ask::Post(&form), &realm, None).await.map_err(fail)?;
        // Services without the OAuth form answer with one of these; GET is their way (containerd's auth/fetch.go).
        let get_instead = matches!(status, 400 | 401 | 404 | 405) && basic_header.is_some();
        if !get_instead {
            reply = Some((status, body));
        }
    }
    let (status, body) = match reply {
        Some(reply) => reply,
        None => {
            let mut url = realm.clone();
            {
                let mut query = url.query_pairs_mut();
                if !service.is_empty() {
                    query.append_pair("service", service);
                }
                for scope in &scopes {
                    query.append_pair("scope", scope);
                }
            }
            client.token_request(Ask::Get, &url, basic_header).await.map_err(fail)?
        }
    };
    if status == 401 || status == 403 {
        let service = authority(&realm);
        let host = if service == host { host } else { format!("{service}, the token service of {host}") };
        return Err(ImageError::Unauthorized { what: repository.to_owned(), host, status, registry: None });
    }
    if status != 200 {
        return Err(fail(format!("HTTP status {status}")));
    }
    let reply = blocking(move || Ok(document::read::<TokenReply>(&body))).await?;
    let reply = reply.map_err(|e| e.blame(|_| fail("the answer is not a token document".into())))?;
    let token = reply.access_token.filter(|t| !t.is_empty()).or(reply.token).unwrap_or_default();
    let header = Some(token.as_str()).filter(|t| !t.is_empty()).and_then(bearer);
    let header = header.ok_or_else(|| fail("the answer has no token".into()))?;
    let life = reply.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    // A life too long to add is as good as none.
    let until = Instant::now().checked_add(life.saturating_sub(MARGIN).max(MARGIN));
    Ok(Authorization::Header(header, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(credentials: &Credentials, registry: &str, host: &str, mirror: bool) -> bool {
        credentials.secret_for(registry, &Url::parse(host).unwrap(), mirror) != Secret::Anonymous
    }

    #[test]
    fn secrets_go_to_their_own_registry_only() {
        let free = Credentials { username: "u".into(), password: "p".into(), ..Default::default() };
        assert!(password(&free, "r.example", "https://r.example/v2/", false));
        assert!(!password(&free, "r.example", "https://m.example/v2/", true));
        let named = Credentials { server_address: "https://index.docker.io/v1/".into(), ..free.clone() };
        assert!(password(&named, "docker.io", "https://registry-1.docker.io/v2/", false));
        assert!(!password(&named, "r.example", "https://r.example/v2/", false));
        let bare = Credentials { server_address: "m.example:5000".into(), ..free };
        assert!(password(&bare, "r.example", "https://m.example:5000/v2/", true));
        assert!(!password(&bare, "r.example", "https://r.example/v2/", false));
    }

    #[test]
    fn the_order_of_secrets() {
        let auth = base64::engine::general_purpose::STANDARD.encode("a:b:c\0\0");
        let only_auth = Credentials { auth, registry_token: "t".into(), ..Default::default() };
        assert!(
            matches!(only_auth.secret(), Secret::Password { username, password } if username == "a" && password == "b:c")
        );
        let identity = Credentials { identity_token: "i".into(), ..only_auth };
        assert!(matches!(identity.secret(), Secret::Identity(_)));
        let registry = Credentials { registry_token: "t".into(), auth: "%%".into(), ..Default::default() };
        assert!(matches!(registry.secret(), Secret::Registry(_)));
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!(
            "{:?}",
            Credentials { password: "hunter2".into(), auth: "xyz".into(), ..Default::default() }
        );
        assert!(!text.contains("hunter2") && !text.contains("xyz"));
    }
}
