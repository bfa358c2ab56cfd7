//! The attachments on disk, in libcni's layout: `<cache_dir>/results/<network>-<sandbox>-<interface>`.
//!
//! An entry is written without a result before ADD and with it afterwards: whatever happens in between, DEL knows ADD's
//! configuration and arguments. Not synced: it must outlive the daemon, not the machine; after a crash of that, DEL
//! uses the current configuration. Never deletes others' entries.

use super::args::{SANDBOX_KEY, is_passable};
use super::directory::Chosen;
use super::{INTERFACE, NetworkError};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
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
        network: &Chosen,
        sandbox: &str,
        netns: &Path,
        args: Vec<[String; 2]>,
        capability_args: Map<String, Value>,
    ) -> Self {
        Self {
            kind: KIND.into(),
            container_id: sandbox.into(),
            config: Arc::clone(&network.list.encoded),
            if_name: network.interface.clone(),
            network_name: network.list.name.clone(),
            netns: netns.into(),
            cni_args: Some(args),
            capability_args: Some(capability_args),
            result: None,
            owner: OWNER.into(),
        }
    }

    /// CNI_ARGS, without what an entry of an older version may have that no plugin takes.
    pub(super) fn args(&self) -> String {
        let pairs = self.cni_args.iter().flatten().filter(|[_, value]| is_passable(value));
        let pairs = pairs.map(|[key, value]| format!("{key}={value}"));
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

    /// Its position among the attachments of its sandbox; None: we attach no such interface.
    pub(super) fn place(&self) -> Option<u32> {
        place(&self.if_name)
    }

    /// Whether it is what ADD of this network wrote, or would write.
    pub(super) fn is_of(&self, network: &Chosen) -> bool {
        self.network_name == network.list.name && self.if_name == network.interface
    }
}

/// Which one `eth<N>` is.
fn place(interface: &str) -> Option<u32> {
    interface.strip_prefix("eth")?.parse().ok()
}

/// The known attachments of a sandbox.
#[derive(Debug)]
pub(super) struct Known {
    /// In order of their interfaces.
    pub(super) entries: Vec<Entry>,
    /// There were others, which cannot be read.
    pub(super) torn: bool,
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

    /// Replaces the entry atomically by the one with the result.
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

    /// The attachments of a sandbox. A foreign one counts only if none is ours, and only for the pod's own interface:
    /// then another runtime created the pod. Meta plugins cache theirs in the same directory, and detach them.
    /// `network` is the most likely place of such a one.
    pub(super) fn of(&self, network: Option<&str>, sandbox: &str) -> Known {
        let (mut ours, mut foreign, mut torn) = (Vec::new(), Vec::new(), false);
        let tail = format!("-{sandbox}");
        for path in self.files() {
            let Some((head, interface)) = name(&path).rsplit_once('-') else { continue };
            if place(interface).is_none() || !head.ends_with(&tail) {
                continue;
            }
            match parse(&path) {
                Ok(entry) if entry.container_id != sandbox => {}
                Ok(entry) if entry.owner == OWNER => ours.push(entry),
                Ok(entry) if entry.if_name == INTERFACE => foreign.push(entry),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    // Log: A file in `network.cache_dir` is damaged.
                    // Do: Nothing, if it is a single one.
                    tracing::warn!(path = %path.display(), %error, "CNI cache entry is unusable, counts as missing, is removed");
                    // Its name is that of a sandbox of ours. If left, it would only be reported again.
                    drop(std::fs::remove_file(path));
                    torn = true;
                }
            }
        }
        if ours.is_empty() {
            let likely = foreign.iter().position(|entry| Some(entry.network_name.as_str()) == network);
            ours.extend(foreign.into_iter().nth(likely.unwrap_or(0)));
        }
        ours.sort_by_key(Entry::place);
        Known { entries: ours, torn }
    }

    /// Every readable attachment, of any runtime, the last of each sandbox first, the order for DEL.
    pub(super) fn all(&self) -> Vec<Entry> {
        let mut all: Vec<_> = self.files().filter_map(|path| parse(&path).ok()).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.place()));
        all
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
    // The directory is shared with other programs: what is no file must not make us wait.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file"));
    }
    let mut text = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a cache entry"));
    }
    read(&text)
}

pub(super) fn read(text: &[u8]) -> io::Result<Entry> {
    let entry: Entry = serde_json::from_slice(text)?;
    if entry.kind != KIND {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("kind is {:?}", entry.kind)));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_ours_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        std::fs::create_dir(&cache.results).unwrap();
        let place = |name: &str| cache.results.join(name);
        nix::unistd::mkfifo(&place("n-one-eth0"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::File::create(place("n-two-eth0")).unwrap().set_len(FILE_LIMIT + 1).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place("n-three-eth0")).unwrap();
        for sandbox in ["one", "two", "three"] {
            let known = cache.of(None, sandbox);
            assert!(known.torn && known.entries.is_empty(), "{sandbox}");
        }
        assert!(Path::new("/dev/zero").exists() && cache.all().is_empty());
    }
}
