//! What is in the store, in memory: an immutable snapshot that lists and look-ups read without waiting for anybody.

use super::error::ImageError;
use super::image::{Image, ImageConfig, ImageKind, ImageUser};
use super::index::{ImageRecord, Index, LayerRecord, Presence, StoredImage};
use super::manifest::{ConfigFile, chain_id};
use super::reference::Reference;
use crate::model::ImageId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// One image with what only the store needs.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: Arc<ImageRecord>,
    pub(crate) image: Arc<Image>,
}

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// All images, removed but held ones too.
    pub(crate) images: BTreeMap<String, Entry>,
    /// Tags and `name@digest`.
    pub(crate) names: BTreeMap<String, String>,
    /// The order in which names were given.
    pub(crate) ages: HashMap<String, u64>,
    /// Layers by key.
    pub(crate) layers: HashMap<String, LayerRecord>,
}

/// Names of one image that pulls may give it. Each goes into lists of images, whose size is limited; real ones have a few,
/// a repository with a tag for each build that changes nothing some dozens.
pub(crate) const MAX_NAMES: usize = 100;
/// Bytes of all images in a list: three quarters of a message of 16 MiB, the most that a kubelet takes. A name more that
/// does not fit is refused to a pull, or no list could be told any more.
pub(crate) const MAX_LISTED: usize = 12 << 20;
/// What an image takes in a list beside its names and its user: its id, its size, and the tags of all that.
const ENTRY_BYTES: usize = 160;
/// What a name takes beside its text.
const NAME_BYTES: usize = 5;

/// What configs say that the index does not keep yet, by images' ids.
type Unkept = Vec<(String, Vec<u8>)>;

impl State {
    /// Builds the snapshot of an index, and says what it did not keep yet of what configs say.
    pub(crate) fn from_index(index: &Index, pinned: &BTreeSet<String>) -> Result<(Self, Unkept), ImageError> {
        let (mut state, mut unkept, mut failed) = (Self::default(), Vec::new(), None);
        let contents = index.load(|StoredImage { id, record, config, said }| {
            let file = match record.config_file(&id, &config, said.as_deref()) {
                Ok(file) => file,
                Err(error) => {
                    failed.get_or_insert(error);
                    return;
                }
            };
            if said.is_none() && record.artifact.is_none() {
                unkept.push((id.clone(), file.to_stored(&config)));
            }
            state.put(&id, Arc::new(record), &file, pinned);
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        state.names = contents.names.into_iter().collect();
        state.ages = contents.ages.into_iter().collect();
        state.layers = contents.layers.into_iter().collect();
        let ids: Vec<_> = state.images.keys().cloned().collect();
        ids.iter().for_each(|id| state.rename(id, pinned));
        Ok((state, unkept))
    }

    /// Adds or replaces an image.
    pub(crate) fn put(
        &mut self,
        id: &str,
        record: Arc<ImageRecord>,
        file: &ConfigFile,
        pinned: &BTreeSet<String>,
    ) {
        let config = file.config.as_ref();
        let image = Arc::new(Image {
            id: ImageId::from_digest(id),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: record.size,
            user: config.and_then(|config| ImageUser::parse(&config.user)),
            pinned: false,
            stop_signal: config.map(ImageConfig::short_stop_signal).unwrap_or_default(),
            chain_id: chain_id(&record.diff_ids),
            diff_ids: record.diff_ids.iter().map(ToString::to_string).collect(),
            manifest_digest: record.manifest.to_string(),
            kind: match &record.artifact {
                Some(config) => ImageKind::Artifact { config_type: config.media_type.clone() },
                None if record.is_checkpoint => ImageKind::Checkpoint,
                None => ImageKind::Image,
            },
        });
        self.images.insert(id.to_owned(), Entry { record, image });
        self.rename(id, pinned);
    }

    /// Brings an image's tags, digests and pin up to date with `names`.
    pub(crate) fn rename(&mut self, id: &str, pinned: &BTreeSet<String>) {
        let names = self.names.iter().filter(|(_, target)| *target == id).map(|(name, _)| name.clone());
        let (repo_digests, repo_tags): (Vec<_>, Vec<_>) = names.partition(|name| name.contains('@'));
        if let Some(entry) = self.images.get_mut(id) {
            let pinned = repo_tags.iter().chain(&repo_digests).any(|name| pinned.contains(name));
            let image = Image { repo_tags, repo_digests, pinned, ..(*entry.image).clone() };
            entry.image = Arc::new(image);
        }
    }

    /// Points a name to an image; the one that loses it. The place in the order of names is that of the latest.
    pub(crate) fn name(&mut self, name: &str, id: &str) -> Option<String> {
        let age = self.next_age();
        self.ages.insert(name.to_owned(), age);
        self.names.insert(name.to_owned(), id.to_owned()).filter(|loser| loser != id)
    }

    /// Forgets a name.
    pub(crate) fn forget(&mut self, name: &str) {
        self.names.remove(name);
        self.ages.remove(name);
    }

    /// An image's names, and the place of each in the order of names.
    pub(crate) fn aged_names(&self, id: &str) -> BTreeMap<String, u64> {
        let own = self.names.iter().filter(|(_, target)| *target == id);
        own.map(|(name, _)| (name.clone(), self.ages.get(name).copied().unwrap_or_default())).collect()
    }

    /// The place of the next name in the order of names.
    pub(crate) fn next_age(&self) -> u64 {
        self.ages.values().max().map_or(1, |age| age.saturating_add(1))
    }

    /// The names of an image that go when `fresh` come, so that it has no more than [`MAX_NAMES`]: of the repository that
    /// has the most the oldest tag, then the oldest digest. No more go than come, and none that is pinned.
    pub(crate) fn surplus(&self, id: &str, fresh: &[&String], pinned: &BTreeSet<String>) -> Vec<String> {
        let mut own: Vec<&String> =
            self.names.iter().filter(|(name, t)| *t == id && !fresh.contains(name)).map(|(n, _)| n).collect();
        let over = (own.len() + fresh.len()).saturating_sub(MAX_NAMES).min(fresh.len());
        let mut gone = Vec::new();
        for _ in 0..over {
            let size = |name: &str| {
                let repository = repository(name);
                own.iter().chain(fresh).filter(|other| self::repository(other) == repository).count()
            };
            let oldest = own.iter().enumerate().filter(|(_, name)| !pinned.contains(**name)).min_by_key(
                |(_, name)| {
                    let age = self.ages.get(**name).copied().unwrap_or_default();
                    (std::cmp::Reverse(size(name)), name.contains('@'), age)
                },
            );
            let Some((at, _)) = oldest else { break };
            gone.push(own.remove(at).clone());
        }
        gone
    }

    /// Whether a list still tells all images when one gets `fresh` names. Its own entry is counted as if it were new.
    pub(crate) fn check_listed(&self, fresh: &[&String]) -> Result<(), ImageError> {
        let images: usize = self.images.values().map(|entry| ENTRY_BYTES + user_bytes(&entry.image)).sum();
        let names = self.names.keys().chain(fresh.iter().copied()).map(|name| name.len() + NAME_BYTES);
        // The new one's user is bounded when its config is read.
        if images.saturating_add(ENTRY_BYTES).saturating_add(names.sum()) <= MAX_LISTED {
            return Ok(());
        }
        Err(ImageError::Limit {
            what: "the list of all images, whose names are too many: remove some, it".to_owned(),
            limit: u64::try_from(MAX_LISTED).unwrap_or(u64::MAX),
            unit: "bytes",
        })
    }

    /// Listed images in the order of their ids.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values().filter(|e| e.record.presence == Presence::Listed).map(|e| &e.image)
    }

    /// Finds a listed image by id, unique id prefix, tag or digest.
    pub(crate) fn find(&self, name: &str) -> Result<&Entry, ImageError> {
        let missing = || ImageError::NotFound { name: super::error::cut(name) };
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let may_be_id = !hex.is_empty() && hex.len() <= 64 && super::digest::is_hex(hex);
        // `cafe` is a repository's name first; `sha256:cafe` and 64 digits can only be an id.
        if !may_be_id || (hex.len() == name.len() && hex.len() < 64) {
            let named = Reference::parse(name).map(|reference| self.names.get(&reference.to_string()));
            match named {
                Ok(Some(id)) => {
                    let listed = self.images.get(id).filter(|e| e.record.presence == Presence::Listed);
                    return listed.ok_or_else(missing);
                }
                Err(error) if !may_be_id => return Err(error),
                _ => {}
            }
        }
        if !may_be_id {
            return Err(missing());
        }
        let from = format!("sha256:{hex}");
        let found: Vec<&Entry> = self
            .images
            .range(from.clone()..)
            .take_while(|(id, _)| id.starts_with(&from))
            .map(|(_, entry)| entry)
            .filter(|e| e.record.presence == Presence::Listed)
            .collect();
        match found.as_slice() {
            [] => Err(missing()),
            [one] => Ok(one),
            many => Err(ImageError::Ambiguous { name: name.to_owned(), count: many.len() }),
        }
    }

    /// Keys of the layers that some image needs.
    pub(crate) fn referenced(&self) -> BTreeSet<String> {
        let keys = |e: &Entry| keys(&e.record);
        self.images.values().flat_map(keys).collect()
    }
}

fn user_bytes(image: &Image) -> usize {
    match &image.user {
        Some(ImageUser::Name(name)) => name.len(),
        Some(ImageUser::Uid(_)) | None => 0,
    }
}

/// A name without its tag or digest.
fn repository(name: &str) -> &str {
    match name.split_once('@') {
        Some((repository, _)) => repository,
        None => name.rsplit_once(':').map_or(name, |(repository, _)| repository),
    }
}

/// The layer keys of an image, bottom first, its directories layer last. Of a layer that occurs twice only the upper
/// counts: it hides the lower one wholly, and overlayfs refuses a directory that is given twice.
pub(crate) fn keys(record: &ImageRecord) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let top_first =
        record.directories.iter().cloned().chain(record.diff_ids.iter().rev().map(|d| d.hex().to_owned()));
    for key in top_first {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.reverse();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::digest::Digest;

    fn state(ids: &[&str]) -> State {
        let mut state = State::default();
        for id in ids {
            let record = ImageRecord {
                presence: Presence::Listed,
                manifest: Digest::sha256(b""),
                size: 1,
                diff_ids: Vec::new(),
                blobs: Vec::new(),
                directories: None,
                artifact: None,
                is_checkpoint: false,
            };
            let file = ConfigFile::read("t", br#"{"rootfs":{}}"#).unwrap();
            state.put(id, Arc::new(record), &file, &BTreeSet::new());
        }
        state
    }

    #[test]
    fn look_ups_by_id_and_prefix() {
        let (a, b) = (format!("sha256:aa{}", "1".repeat(62)), format!("sha256:ab{}", "2".repeat(62)));
        let state = state(&[&a, &b]);
        let id = |name: &str| state.find(name).map(|e| e.image.id.to_string());
        assert_eq!(id(&a).unwrap(), a);
        assert_eq!(id(&a["sha256:".len()..]).unwrap(), a);
        assert_eq!(id("sha256:aa").unwrap(), a);
        assert_eq!(id("ab2").unwrap(), b);
        assert!(matches!(id("a"), Err(ImageError::Ambiguous { count: 2, .. })));
        let named =
            State { names: [("docker.io/library/aa:latest".to_owned(), b.clone())].into(), ..state.clone() };
        assert_eq!(named.find("aa").unwrap().image.id.as_str(), b, "a name wins over a prefix");
        for missing in ["", "sha256:", "ac", "sha256:ff", &"c".repeat(64)] {
            assert!(id(missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn the_oldest_tag_of_the_repository_with_the_most_goes() {
        let mut state = State::default();
        state.name("victim.example/x:t", "id");
        (0..MAX_NAMES - 2).for_each(|n| drop(state.name(&format!("evil.example/x:{n}"), "id")));
        state.name("evil.example/x@sha256:0", "id");
        let fresh = |n: usize| -> Vec<String> { (0..n).map(|n| format!("evil.example/x:new{n}")).collect() };
        let surplus = |state: &State, fresh: &[String], pinned: &[&str]| {
            let pinned = pinned.iter().map(|&name| name.to_owned()).collect();
            state.surplus("id", &fresh.iter().collect::<Vec<_>>(), &pinned)
        };
        assert!(surplus(&state, &[], &[]).is_empty());
        assert_eq!(surplus(&state, &fresh(2), &[]), ["evil.example/x:0", "evil.example/x:1"]);
        assert_eq!(surplus(&state, &fresh(1), &["evil.example/x:0"]), ["evil.example/x:1"]);
        // What is more than that by other ways stays so.
        (0..200).for_each(|n| drop(state.name(&format!("loaded.example/x:{n}"), "id")));
        assert_eq!(surplus(&state, &fresh(1), &[]), ["loaded.example/x:0"]);
    }

    #[test]
    fn names_of_all_images_together_fit_a_list() {
        let ids: Vec<String> = (0..300).map(|n| format!("sha256:{n:064}")).collect();
        let mut state = state(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let long = "n".repeat(4000);
        let mut given = 0;
        let refused = loop {
            let name = format!("evil.example/{long}:{given}");
            if let Err(error) = state.check_listed(&[&name]) {
                break error;
            }
            state.name(&name, &ids[given % ids.len()]);
            given += 1;
        };
        assert!(refused.to_string().contains("list of all images"), "{refused}");
        assert!(given > 3_000, "{given}");
        // As it is told: each name with its tag and length, and what else an image has.
        let names = state.names.keys().map(|name| 1 + 3 + name.len());
        assert!(names.sum::<usize>() + ids.len() * 128 < 16 << 20);
        state.forget(&format!("evil.example/{long}:0"));
        state.check_listed(&[&"small.example/x:1".to_owned()]).unwrap();
    }

    #[test]
    fn a_layer_that_occurs_twice_counts_at_its_upper_place() {
        let d = |c: char| Digest::parse(&format!("sha256:{}", c.to_string().repeat(64))).unwrap();
        let record = ImageRecord {
            presence: Presence::Listed,
            manifest: d('0'),
            size: 0,
            diff_ids: vec![d('a'), d('b'), d('a')],
            blobs: Vec::new(),
            directories: Some("dirs".into()),
            artifact: None,
            is_checkpoint: false,
        };
        assert_eq!(keys(&record), [d('b').hex(), d('a').hex(), "dirs"]);
    }
}
