//! Proxies, from the environment that the daemon was started with. Owns what never goes through one: this machine.

use crate::images::error::ImageError;
use std::path::Path;
use url::Url;

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
        let mut shown = Url::parse(self.chosen(url)?).ok()?;
        let _ = (shown.set_username(""), shown.set_password(None));
        Some(shown.to_string())
    }

    /// The same with its credentials.
    pub(super) fn secret_for_url(&self, url: &Url) -> Result<Option<String>, ImageError> {
        for (name, proxy) in [("HTTP_PROXY", &self.http), ("HTTPS_PROXY", &self.https)] {
            // Also one that is not for this URL: what is wrong with it is told at the first pull.
            if proxy.as_ref().is_some_and(|proxy| super::fetch::proxy_of(proxy).is_none()) {
                return Err(wrong(name));
            }
        }
        Ok(self.chosen(url).map(str::to_owned))
    }

    fn chosen(&self, url: &Url) -> Option<&str> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() }?;
        let matcher = hyper_util::client::proxy::matcher::Matcher::builder()
            .no(self.none.clone())
            .all(proxy.clone())
            .build();
        matcher.intercept(&url.as_str().parse().ok()?).is_some().then_some(proxy.as_str())
    }
}

/// What an environment variable has is no proxy.
pub(super) fn wrong(name: &str) -> ImageError {
    ImageError::Hosts {
        path: Path::new(name).to_owned(),
        // Not the URL itself: it may hold a password.
        reason: "the environment variable is not the URL of an http or https proxy".into(),
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
        for bad in [
            "::",
            "socks5://127.0.0.1:1080",
            "socks5h://a:hunter2@p.example",
            "SOCKS4://p.example",
            "ftp://p.example",
        ] {
            let bad = Proxies { http: Some(bad.into()), ..Default::default() };
            let error =
                bad.secret_for_url(&Url::parse("https://r.example/").unwrap()).unwrap_err().to_string();
            assert!(error.contains("HTTP_PROXY") && !error.contains("hunter2"), "{error}");
        }
        for good in ["proxy.example:3128", "http://p.example", "HTTPS://u:p@p.example:8443"] {
            let good = Proxies { http: Some(good.into()), ..Default::default() };
            assert!(good.secret_for_url(&Url::parse("https://r.example/").unwrap()).is_ok());
        }
    }
}
