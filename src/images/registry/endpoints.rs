//! The hosts of a reference, for display: the file behind each, its requests, credentials and proxy. Decides nothing:
//! uses the functions of a pull. Never shows a secret.

use super::auth_files::AuthFiles;
use super::client::Registry;
use super::files;
use super::hosts::{Host, dirs, hosts_for};
use super::session::Session;
use crate::images::error::ImageError;
use crate::images::reference::Reference;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A host in the order of a pull.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `scheme://authority/…/v2/`.
    pub url: String,
    /// The repository there.
    pub repository: String,
    /// Whether it is a mirror.
    pub mirror: bool,
    /// Whether it may resolve tags.
    pub resolve: bool,
    /// Whether it may serve content.
    pub pull: bool,
    /// The file that names it; None: the registry itself, by default.
    pub configured_in: Option<PathBuf>,
    /// Files of further roots.
    pub ca_files: Vec<PathBuf>,
    /// Files of client certificates and keys.
    pub client_files: Vec<PathBuf>,
    /// Whether its certificate is not verified.
    pub skip_verify: bool,
    /// Names of headers that are sent along.
    pub headers: Vec<String>,
    /// File and entry of the node's credentials for it.
    pub auth: Option<(PathBuf, String)>,
    /// Entries that were passed over, and why.
    pub auth_notes: Vec<String>,
    /// The proxy, without its credentials.
    pub proxy: Option<String>,
    host: Host,
}

/// A host's answer to a request for the manifest.
#[derive(Debug, Clone)]
pub struct Probe {
    /// HTTP status; None: it gave no answer.
    pub status: Option<u16>,
    /// Time to the answer.
    pub took: Duration,
    /// The manifest's digest.
    pub digest: Option<String>,
    /// Why it is unusable; None: it has the manifest.
    pub error: Option<ImageError>,
}

impl Endpoint {
    /// The hosts for `reference`, in the order of a pull. Blocking.
    pub(crate) fn resolve(registry: &Registry, reference: &Reference) -> Result<Vec<Self>, ImageError> {
        let auth = AuthFiles::read(&registry.auth_files)?;
        let hosts = hosts_for(&registry.certs_dirs, &registry.registries_conf, reference)?;
        Ok(hosts.into_iter().map(|host| Self::of(registry, reference, &auth, host)).collect())
    }

    fn of(registry: &Registry, reference: &Reference, auth: &AuthFiles, host: Host) -> Self {
        let name = reference.registry();
        let own = host.is_registry(name).then_some(name);
        let repository = host.repository.clone().unwrap_or_else(|| reference.repository().to_owned());
        let search = auth.search(&host.base, own, &repository);
        Self {
            url: host.base.to_string(),
            mirror: host.mirror,
            resolve: host.resolve,
            pull: host.pull,
            configured_in: host.origin.clone(),
            ca_files: host.tls.ca.clone(),
            client_files: host
                .tls
                .client
                .iter()
                .flat_map(|(certificate, key)| [Some(certificate), key.as_ref()])
                .flatten()
                .cloned()
                .collect(),
            skip_verify: host.tls.skip_verify,
            headers: host.headers.keys().map(ToString::to_string).collect(),
            auth: search.found.map(|found| (found.file, found.key)),
            auth_notes: search.notes,
            proxy: registry.proxies.for_url(&host.base),
            repository,
            host,
        }
    }

    /// Requests the manifest from the host, as a pull without its own credentials would.
    pub(crate) async fn probe(&self, registry: &Arc<Registry>, reference: &Reference) -> Probe {
        let begun = Instant::now();
        let answer = match Session::with_host(registry, reference, self.host.clone()) {
            Ok(session) => session.head().await,
            Err(error) => Err(error),
        };
        let took = begun.elapsed();
        match answer {
            Ok((status, digest, error)) => {
                Probe { status: Some(status), took, digest: digest.map(|d| d.to_string()), error }
            }
            Err(error) => Probe { status: None, took, digest: None, error: Some(error) },
        }
    }
}

/// An examined file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookedAt {
    /// Its path.
    pub path: PathBuf,
    /// Whether it is there.
    pub present: bool,
}

/// Files and directories examined for `reference`, in order. Blocking.
pub(crate) fn looked_at(registry: &Registry, reference: &Reference) -> Result<Vec<LookedAt>, ImageError> {
    let mut paths = Vec::new();
    for dir in dirs(&registry.certs_dirs, reference.registry()) {
        let there = dir.is_dir();
        paths.push(dir.clone());
        if there {
            paths.push(dir.join("hosts.toml"));
            break;
        }
    }
    if !registry.registries_conf.as_os_str().is_empty() {
        let conf = &registry.registries_conf;
        let drop_in_dir: OsString = [conf.as_os_str(), ".d".as_ref()].into_iter().collect();
        paths.push(conf.clone());
        paths.extend(files::drop_ins(Path::new(&drop_in_dir), "conf")?);
    }
    paths.extend(registry.auth_files.iter().cloned());
    Ok(paths.into_iter().map(|path| LookedAt { present: path.exists(), path }).collect())
}
