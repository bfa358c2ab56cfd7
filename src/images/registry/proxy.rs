//! Proxies, from the environment that the daemon was started with. Owns what never goes through one: this machine.

use crate::images::error::ImageError;
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
