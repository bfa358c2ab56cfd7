//! What was attached, on disk, in libcni's layout: `<cache_dir>/results/<network>-<sandbox>-<interface>`.
//!
//! An entry is written without a result before ADD and with it after: whatever happens in between, DEL knows the
//! configuration and arguments that ADD was given. Not synced: it must outlive the daemon, not the machine, after
//! whose crash DEL goes by the current configuration. Never deletes what others wrote.

use super::NetworkError;
use super::args::SANDBOX_KEY;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// libcni's mark of the format.
const KIND: &str = "cniCacheV1";
/// Our mark; other runtimes may share the directory.
const OWNER: &str = "podwright";
/// Bytes of a cache file that are worth reading.
const FILE_LIMIT: u64 = 8 << 20;

/// One attachment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    kind: String,
    pub(super) container_id: String,
    /// Base64 of the configuration list.
    pub(super) config: Arc<str>,
    if_name: String,
    pub(super) network_name: String,
    #[serde(default)]
    netns: PathBuf,
    #[serde(default)]
    cni_args: Option<Vec<[String; 2]>>,
    #[serde(default)]
    capability_args: Option<Map<String, Value>>,
    /// None while ADD runs, and after one that failed and could not be undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    owner: String,
}

impl Entry {
    pub(super) fn new(
        network: &str,
        config: Arc<str>,
        sandbox: &str,
        netns: &Path,
        args: Vec<[String; 2]>,
        capability_args: Map<String, Value>,
    ) -> Self {
        Self {
            kind: KIND.into(),
            container_id: sandbox.into(),
            config,
            if_name: super::INTERFACE.into(),
            network_name: network.into(),
            netns: netns.into(),
            cni_args: Some(args),
            capability_args: Some(capability_args),
            result: None,
            owner: OWNER.into(),
        }
    }

    /// CNI_ARGS.
    pub(super) fn args(&self) -> String {
        let pairs = self.cni_args.iter().flatten().map(|[key, value]| format!("{key}={value}"));
        pairs.collect::<Vec<_>>().join(";")
    }

    pub(super) fn capability_args(&self) -> Map<String, Value> {
        self.capability_args.clone().unwrap_or_default()
    }

    /// `<namespace>/<name>` of the pod for messages, else the sandbox id.
    pub(super) fn pod(&self) -> String {
        let get = |key: &str| {
            self.cni_args.iter().flatten().find(|[k, _]| k == key).map(|[_, value]| value.as_str())
        };
        match (get("K8S_POD_NAMESPACE"), get("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => self.container_id.clone(),
        }
    }

    /// Whether this daemon wrote it.
    pub(super) fn is_ours(&self) -> bool {
        let infra = self.cni_args.iter().flatten().find(|[key, _]| key == SANDBOX_KEY);
        self.owner == OWNER && infra.is_some_and(|[_, id]| *id == self.container_id)
    }

    /// The namespace that was attached.
    pub(super) fn netns(&self) -> &Path {
        &self.netns
    }

    pub(super) fn interface(&self) -> &str {
        &self.if_name
    }
}

/// The cache directory.
#[derive(Debug)]
pub(super) struct Cache {
    results: PathBuf,
}

impl Cache {
    pub(super) fn new(cache_dir: &Path) -> Self {
        Self { results: cache_dir.join("results") }
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.results.join(format!("{}-{}-{}", entry.network_name, entry.container_id, entry.if_name))
    }

    /// Writes the entry before ADD. Torn by a crash of the machine, it counts as missing.
    pub(super) fn begin(&self, entry: &Entry) -> Result<(), NetworkError> {
        let path = self.path(entry);
        let write = |path: &Path| write(path, entry);
        let result = match write(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.results)
                .and_then(|()| write(&path)),
            other => other,
        };
        result.map_err(|source| NetworkError::Cache { operation: "write", path, source })
    }

    /// Replaces the entry, in one step, by the one with the result.
    pub(super) fn finish(&self, entry: &Entry) -> Result<(), NetworkError> {
        let path = self.path(entry);
        let new = self.results.join(format!(".{}.new", entry.container_id));
        write(&new, entry).and_then(|()| std::fs::rename(&new, &path)).map_err(|source| NetworkError::Cache {
            operation: "write",
            path,
            source,
        })
    }

    pub(super) fn remove(&self, entry: &Entry) -> Result<(), NetworkError> {
        let path = self.path(entry);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::Cache { operation: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The attachment of a sandbox. `network` is where it most likely is; its configuration may have been replaced.
    pub(super) fn find(&self, network: Option<&str>, sandbox: &str) -> Option<Entry> {
        let tail = format!("-{sandbox}-{}", super::INTERFACE);
        if let Some(network) = network
            && let Some(entry) = read(&self.results.join(format!("{network}{tail}")), sandbox)
        {
            return Some(entry);
        }
        self.files().filter(|path| name(path).ends_with(&tail)).find_map(|path| read(&path, sandbox))
    }

    /// Every readable attachment, of whatever runtime.
    pub(super) fn all(&self) -> Vec<Entry> {
        self.files().filter_map(|path| parse(&path).ok()).collect()
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.results).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| !name(path).starts_with('.'))
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn write(path: &Path, entry: &Entry) -> io::Result<()> {
    let bytes = serde_json::to_vec(entry)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&bytes)
}

fn parse(path: &Path) -> io::Result<Entry> {
    if path.metadata()?.len() > FILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a cache entry"));
    }
    let entry: Entry = serde_json::from_slice(&std::fs::read(path)?)?;
    if entry.kind != KIND {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("kind is {:?}", entry.kind)));
    }
    Ok(entry)
}

/// An entry of that very sandbox; one that cannot be understood is told and counts as missing.
fn read(path: &Path, sandbox: &str) -> Option<Entry> {
    match parse(path) {
        Ok(entry) => (entry.container_id == sandbox).then_some(entry),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "CNI cache entry is unusable, counts as missing, is removed");
            // Its name is that of a sandbox of ours. Left behind it would only be told again.
            drop(std::fs::remove_file(path));
            None
        }
    }
}
