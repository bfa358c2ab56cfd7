//! The node's own credentials: docker's `config.json` format, read anew for every pull. Owns which entry fits a host; never
//! runs a credential helper (it would be a program of another's choice, run as root for each pull).

use super::auth::Credentials;
use super::files;
use crate::images::error::ImageError;
use crate::images::reference::DOCKER_HUB;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use url::Url;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

// Debug would show secrets; serde's own messages name positions, not values.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

/// What the files say, in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct AuthFiles {
    files: Vec<(PathBuf, File)>,
}

impl AuthFiles {
    /// Reads the files that are there.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, ImageError> {
        let mut found = Vec::new();
        for path in paths {
            if let Some(text) = files::read(path)? {
                found.push((path.clone(), parse(path, &text)?));
            }
        }
        Ok(Self { files: found })
    }

    /// The credentials for `repository` at the host behind `base`: the longest `host[/path]` that is a prefix of it, in the
    /// first file that has any. `registry`: what the host is called in image names, when it is that registry itself.
    pub(super) fn find(&self, base: &Url, registry: Option<&str>, repository: &str) -> Option<Credentials> {
        let search = self.search(base, registry, repository);
        search.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let found = search.found?;
        tracing::debug!(file = %found.file.display(), key = found.key, "node credentials used");
        Some(found.credentials)
    }

    /// The same, with where they are from and what was passed over.
    pub(super) fn search(&self, base: &Url, registry: Option<&str>, repository: &str) -> Search {
        let mut notes = Vec::new();
        let names: Vec<String> = std::iter::once(super::auth::authority(base))
            .chain(registry.map(str::to_owned))
            .map(|host| format!("{}/{repository}", host_name(&host)))
            .collect();
        for (path, file) in &self.files {
            let best = file
                .auths
                .iter()
                .map(|(key, entry)| (normal(key), key, entry))
                .filter(|(normal, ..)| names.iter().any(|name| covers(normal, name)))
                .max_by_key(|(normal, ..)| normal.len());
            let shown = path.display();
            if let Some((_, key, entry)) = best {
                if let Some(credentials) = entry.credentials() {
                    let found = Found { file: path.clone(), key: key.clone(), credentials };
                    return Search { found: Some(found), notes };
                }
                notes.push(format!("{shown}: entry {key:?} has no secret; credential helpers are not run"));
            } else if let Some(key) =
                file.cred_helpers.keys().find(|key| names.iter().any(|name| covers(&normal(key), name)))
            {
                notes.push(format!("{shown}: credHelpers names {key:?}; credential helpers are not run"));
            } else if !file.creds_store.is_empty() {
                tracing::debug!(file = %path.display(), "credsStore is not asked");
            }
        }
        Search { found: None, notes }
    }
}

/// What the files have for a host.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) found: Option<Found>,
    /// Entries that were passed over, and why.
    pub(super) notes: Vec<String>,
}

/// Credentials and their place.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: PathBuf,
    /// As it stands in the file.
    pub(super) key: String,
    credentials: Credentials,
}

fn parse(path: &Path, text: &str) -> Result<File, ImageError> {
    // The message of serde_json may quote a value; its position is enough and cannot be a password.
    serde_json::from_str(text).map_err(|e| ImageError::Hosts {
        path: path.to_owned(),
        reason: format!("not a docker config.json: line {} column {}", e.line(), e.column()),
    })
}

impl Entry {
    /// As docker: an identity token stands above the name and password beside it.
    fn credentials(&self) -> Option<Credentials> {
        let mut credentials = Credentials {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: self.auth.clone(),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
            server_address: String::new(),
        };
        if !credentials.identity_token.is_empty() {
            credentials.username.clear();
        }
        credentials.is_usable().then_some(credentials)
    }
}

/// `https://index.docker.io/v1/` to `docker.io`, `http://r.example/v2` to `r.example`; a path of a name stays.
fn normal(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").or_else(|| rest.strip_suffix("/v2")).unwrap_or(rest);
    match rest.split_once('/') {
        Some((host, path)) => format!("{}/{path}", host_name(host)),
        None => host_name(rest),
    }
}

/// One name for all of Docker Hub's, and none with the port that https implies.
fn host_name(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        other => other.strip_suffix(":443").unwrap_or(other).to_owned(),
    }
}

/// Whether `key` is `name` or a whole number of its leading components.
fn covers(key: &str, name: &str) -> bool {
    !key.is_empty() && name.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str, base: &str, registry: Option<&str>, repository: &str) -> Option<String> {
        let file = parse(Path::new("/a.json"), text).unwrap();
        let files = AuthFiles { files: vec![("/a.json".into(), file)] };
        files.find(&Url::parse(base).unwrap(), registry, repository).map(|c| c.username)
    }

    #[test]
    fn the_longest_prefix_wins() {
        let text = r#"{"auths": {
            "r.example": {"username": "host", "password": "p"},
            "r.example/team": {"username": "team", "password": "p"},
            "r.example/team/app": {"username": "app", "password": "p"},
            "https://m.example:5000/v2/": {"username": "mirror", "password": "p"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "docker.io/own": {"username": "own", "password": "p"}},
            "credHelpers": {"h.example": "x"}, "HttpHeaders": {}}"#;
        let at = |base, registry, repository| user(text, base, registry, repository);
        let own = Some("r.example");
        for (repository, wanted) in [
            ("x", "host"),
            ("teams/app", "host"),
            ("team/x", "team"),
            ("team/app", "app"),
            ("team/app/b", "app"),
        ] {
            assert_eq!(at("https://r.example/v2/", own, repository).as_deref(), Some(wanted), "{repository}");
        }
        let hub = |repository| at("https://registry-1.docker.io/v2/", Some("docker.io"), repository);
        assert_eq!(hub("library/x").as_deref(), Some("hub"));
        assert_eq!(hub("own/x").as_deref(), Some("own"));
        assert_eq!(at("http://m.example:5000/v2/", None, "x").as_deref(), Some("mirror"));
        for other in [
            "https://m.example/v2/",
            "https://rr.example/v2/",
            "https://r.example:5000/v2/",
            "https://h.example/v2/",
        ] {
            assert_eq!(at(other, None, "team/app"), None, "{other}");
        }
    }

    #[test]
    fn every_kind_of_secret_and_none() {
        let find = |entry: &str| {
            let file = parse(Path::new("/a"), &format!(r#"{{"auths":{{"r.example":{entry}}}}}"#)).unwrap();
            let files = AuthFiles { files: vec![("/a".into(), file)] };
            files.find(&Url::parse("https://r.example/v2/").unwrap(), None, "x")
        };
        assert_eq!(find(r#"{"auth":"dTpw"}"#).unwrap().auth, "dTpw");
        let identity = find(r#"{"auth":"dTpw","username":"u","identitytoken":"i"}"#).unwrap();
        assert_eq!((identity.username.as_str(), identity.identity_token.as_str()), ("", "i"));
        assert!(find("{}").is_none());
        assert!(find(r#"{"auth":""}"#).is_none());
    }

    #[test]
    fn a_broken_file_is_told_without_its_content() {
        let error = parse(Path::new("/a.json"), r#"{"auths": "hunter2"}"#).unwrap_err().to_string();
        assert!(
            error.contains("/a.json") && error.contains("line 1") && !error.contains("hunter2"),
            "{error}"
        );
        let absent = AuthFiles::read(&["/nonexistent/auth.json".into()]).unwrap();
        assert!(absent.files.is_empty());
    }
}
