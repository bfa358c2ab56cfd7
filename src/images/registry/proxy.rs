//! Proxies, from the environment that the daemon was started with. Owns what never goes through one: this machine.

use crate::images::error::ImageError;
use reqwest::Url;
use std::path::Path;

/// Hosts that are never asked through a proxy, whatever NO_PROXY says; Go's clients do the same.
const DIRECT: &str = "localhost,127.0.0.0/8,::1";

/// The proxies to be used.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    none: String,
}

// A proxy's URL may hold a password.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies").field("none", &self.none).finish_non_exhaustive()
    }
}

impl Proxies {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, of which `variable` gives the values. The names are also
    /// looked up in lower case, as curl has them.
    pub(crate) fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| variable(&name).filter(|value| !value.trim().is_empty()))
        };
        let all = get("ALL_PROXY");
        let own = get("NO_PROXY").unwrap_or_default();
        Self {
            http: get("HTTP_PROXY").or_else(|| all.clone()),
            https: get("HTTPS_PROXY").or(all),
            none: [DIRECT, &own].join(","),
        }
    }

    /// The proxy that requests for `url` go through, without its credentials.
    pub(super) fn for_url(&self, url: &Url) -> Option<String> {
        let mut matcher = hyper_util::client::proxy::matcher::Matcher::builder().no(self.none.clone());
        if let Some(proxy) = &self.http {
            matcher = matcher.http(proxy.clone());
        }
        if let Some(proxy) = &self.https {
            matcher = matcher.https(proxy.clone());
        }
        let found = matcher.build().intercept(&url.as_str().parse().ok()?)?;
        let mut shown = Url::parse(&found.uri().to_string()).ok()?;
        // Its parser takes them out already; a secret must not depend on that.
        let _ = (shown.set_username(""), shown.set_password(None));
        Some(shown.to_string())
    }

    /// Sets a client up with exactly these.
    pub(super) fn apply(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, ImageError> {
        let wrong = |name: &str| ImageError::Hosts {
            path: Path::new(name).to_owned(),
            // Not the URL itself: it may hold a password.
            reason: "the environment variable is not the URL of a proxy".into(),
        };
        let none = reqwest::NoProxy::from_string(&self.none);
        let mut builder = builder.no_proxy();
        if let Some(url) = &self.http {
            let proxy = reqwest::Proxy::http(url).map_err(|_| wrong("HTTP_PROXY"))?;
            builder = builder.proxy(proxy.no_proxy(none.clone()));
        }
        if let Some(url) = &self.https {
            let proxy = reqwest::Proxy::https(url).map_err(|_| wrong("HTTPS_PROXY"))?;
            builder = builder.proxy(proxy.no_proxy(none));
        }
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_of_a_host_is_told_without_its_password() {
        let proxies = Proxies {
            https: Some("http://alice:hunter2@proxy.example:3128".into()),
            none: [DIRECT, ".inside.example"].join(","),
            ..Default::default()
        };
        let told = |url: &str| proxies.for_url(&Url::parse(url).unwrap());
        assert_eq!(told("https://r.example/v2/").as_deref(), Some("http://proxy.example:3128/"));
        for direct in ["http://r.example/v2/", "https://a.inside.example/v2/", "https://127.0.0.1:5000/v2/"] {
            assert_eq!(told(direct), None, "{direct}");
        }
    }

    #[test]
    fn the_environment_in_both_cases() {
        let env = |pairs: &'static [(&str, &str)]| {
            Proxies::from(move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let proxies =
            env(&[("HTTPS_PROXY", "http://a"), ("https_proxy", "http://b"), ("no_proxy", ".local")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (None, Some("http://a")));
        assert_eq!(proxies.none, format!("{DIRECT},.local"));
        let all = env(&[("all_proxy", "http://c"), ("HTTP_PROXY", " ")]);
        assert_eq!((all.http.as_deref(), all.https.as_deref()), (Some("http://c"), Some("http://c")));
        assert!(!format!("{all:?}").contains("http://c"));
        assert!(
            Proxies { http: Some("::".into()), ..Default::default() }
                .apply(reqwest::Client::builder())
                .is_err()
        );
    }
}
