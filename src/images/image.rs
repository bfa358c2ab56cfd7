//! An image as the rest of the daemon sees it: immutable, built from the index, shared by `Arc`.

use crate::model::ImageId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One image of the local store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the config blob; of an artifact: of the manifest, as artifacts share their empty config.
    pub id: ImageId,
    /// Normalised `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, the digest of what the reference pointed to (often an index), sorted.
    pub repo_digests: Vec<String>,
    /// Compressed bytes of manifest, config and layers.
    pub size: u64,
    /// The user part of the config's User; None: not set, so root.
    pub user: Option<ImageUser>,
    /// The kubelet must not collect it.
    pub pinned: bool,
    /// As in [`ImageConfig`]; what can be no signal's name is left out. The rest of the config is read when it is wanted
    /// (`Images::config`): images are many, and each may say a mebibyte.
    pub stop_signal: String,
    /// Chain id of the whole stack.
    pub chain_id: String,
    /// Uncompressed layer digests, bottom first.
    pub diff_ids: Vec<String>,
    /// Digest of the manifest for this platform.
    pub manifest_digest: String,
    /// What it is good for.
    pub kind: ImageKind,
}

/// What an image is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageKind {
    /// Containers and volumes.
    Image,
    /// Containers that continue: its files are those of a container's checkpoint.
    Checkpoint,
    /// Volumes only: an OCI artifact.
    Artifact {
        /// Media type of its config, which says what it is.
        config_type: String,
    },
}

impl Image {
    /// Tags, then digests.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().chain(&self.repo_digests)
    }
}

/// The user that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// Numeric.
    Uid(i64),
    /// To be looked up in the image's passwd.
    Name(String),
}

impl ImageUser {
    /// Reads `user[:group]`; the group is not part of the answer (containerd's getUserFromImage).
    #[must_use]
    pub fn parse(user: &str) -> Option<Self> {
        let name = user.split(':').next().unwrap_or_default();
        if name.is_empty() {
            return None;
        }
        Some(name.parse::<i64>().map_or_else(|_| Self::Name(name.to_owned()), Self::Uid))
    }
}

/// The `config` object of an image config; absent and null fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// Entrypoint.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Cmd.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// `KEY=value`, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// WorkingDir; empty: `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `user[:group]`, names or numbers.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; empty: not set.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// Paths of the image's volumes.
    #[serde(deserialize_with = "super::bounded::keys", serialize_with = "super::bounded::write_keys")]
    pub volumes: BTreeSet<String>,
    /// Labels. Never merged into CRI labels and never read as control.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// Longest name of a signal, bytes; the longest that there is has 11.
const MAX_SIGNAL: usize = 32;

/// Bytes of memory that an entry takes beside its text.
const ENTRY: usize = 32;

/// Volumes that an image may declare. Each component of their paths may become a directory of the node's disk whenever a
/// container is made; images in use have a few of each.
const MAX_VOLUMES: usize = 256;
/// Components of the paths of all volumes together: directories that are made in some tens of milliseconds.
const MAX_VOLUME_DIRECTORIES: usize = 2048;
/// Bytes of such a path: Linux's PATH_MAX, with its NUL.
const MAX_VOLUME_PATH: usize = 4095;

impl ImageConfig {
    /// Whether its volumes are within bounds; else what is too much.
    ///
    /// # Errors
    /// In words that name the limit.
    pub fn check_volumes(&self) -> Result<(), String> {
        if self.volumes.len() > MAX_VOLUMES {
            return Err(format!(
                "its config has {} Volumes, at most {MAX_VOLUMES} are allowed",
                self.volumes.len()
            ));
        }
        if let Some(path) = self.volumes.iter().find(|path| path.len() > MAX_VOLUME_PATH) {
            let shown: String = path.chars().take(80).collect();
            return Err(format!("its volume {shown:?}… has a path of more than {MAX_VOLUME_PATH} bytes"));
        }
        if let Some(path) = self.volumes.iter().find(|path| {
            Path::new(path).components().any(|component| component == std::path::Component::ParentDir)
        }) {
            let shown: String = path.chars().take(80).collect();
            return Err(format!(
                "its volume {shown:?} has \"..\": it would be a directory of something else"
            ));
        }
        let directories: usize = self.volumes.iter().map(|path| Path::new(path).components().count()).sum();
        if directories > MAX_VOLUME_DIRECTORIES {
            return Err(format!(
                "its config has Volumes of {directories} directories, at most {MAX_VOLUME_DIRECTORIES} are allowed"
            ));
        }
        Ok(())
    }

    /// What of it is kept in memory, beside the user.
    pub(super) fn short_stop_signal(&self) -> String {
        if self.stop_signal.len() > MAX_SIGNAL { String::new() } else { self.stop_signal.clone() }
    }

    /// Bytes that it takes in memory while it is used.
    pub(super) fn weight(&self) -> usize {
        let texts = [&self.working_dir, &self.user, &self.stop_signal];
        let lists = [&self.entrypoint, &self.cmd, &self.env];
        let all = lists.into_iter().flatten().chain(&self.volumes).chain(texts);
        let labels = self.labels.iter().flat_map(|(key, value)| [key, value]);
        all.chain(labels).map(|text| text.len() + ENTRY).sum()
    }

    /// The numbers of entries of its lists, by their names; volumes have a limit of their own.
    pub(super) fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("Entrypoint", self.entrypoint.len()),
            ("Cmd", self.cmd.len()),
            ("Env", self.env.len()),
            ("Labels", self.labels.len()),
        ]
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    // The binary form has every field, and nulls in none.
    if !deserializer.is_human_readable() {
        return T::deserialize(deserializer);
    }
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_as_critest_wants_them() {
        assert_eq!(ImageUser::parse("1000:5"), Some(ImageUser::Uid(1000)));
        assert_eq!(ImageUser::parse("nobody"), Some(ImageUser::Name("nobody".into())));
        assert_eq!(ImageUser::parse(""), None);
        assert_eq!(ImageUser::parse(":5"), None);
    }

    #[test]
    fn volumes_are_limited_in_number_length_and_depth() {
        let of = |paths: Vec<String>| {
            ImageConfig { volumes: paths.into_iter().collect(), ..ImageConfig::default() }.check_volumes()
        };
        of((0..MAX_VOLUMES).map(|n| format!("/data/{n}")).collect()).unwrap();
        for (paths, word) in [
            ((0..=MAX_VOLUMES).map(|n| format!("/data/{n}")).collect(), "257 Volumes"),
            (vec!["/a".repeat(2048)], "4095 bytes"),
            (vec!["/../../x".into()], "has \"..\""),
            (vec!["/data/a/../b".into()], "has \"..\""),
            ((0..4).map(|n| format!("/{n}{}", "/d".repeat(600))).collect(), "directories"),
        ] {
            let error = of(paths).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn nulls_and_unknown_fields_are_fine() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"Cmd":["a"],"Entrypoint":null,"Env":null,"Volumes":{"/v":{}},"Labels":null,"Healthcheck":{}}"#,
        )
        .unwrap();
        assert_eq!(config.cmd, ["a"]);
        assert!(config.entrypoint.is_empty() && config.volumes.contains("/v"));
    }
}
