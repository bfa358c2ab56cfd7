//! Manifests, indexes and image configs: parsing and choosing. Pure; one parse decides what a document is.

use super::bounded;
use super::digest::Digest;
use super::document::{self, Ignored};
use super::error::{ImageError, cut};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest manifest or index, bytes: containerd's own limit (core/remotes/docker), which registries keep too.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image config, bytes. Real ones are a few KiB; the index keeps it in memory while it is parsed.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;
/// Entries of each list of a config: in pieces they take some twenty times the bytes that they have in it. Real ones have some
/// hundred.
const MAX_CONFIG_ITEMS: usize = 16 << 10;
/// Bytes of a config's user, which every list of images tells. Linux has 32 for a name, and a path of a file is no user.
const MAX_CONFIG_USER: usize = 1 << 10;
/// Bytes of memory of what a config says, while it is used. Real ones take a few KiB, those of buildpacks some hundred.
const MAX_CONFIG_WEIGHT: usize = 1 << 20;
/// Layers of an image: overlayfs takes 500 lower layers (OVL_MAX_STACK); one is kept for directories.
pub(crate) const MAX_LAYERS: usize = 499;
/// Annotations of a manifest by which an image is a container's checkpoint: CRI-O's and checkpointctl's, which containerd
/// reads. Their values are names for people.
const CHECKPOINT: [&str; 2] =
    ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"];
/// The form in which the index keeps what a config says.
const STORED: u8 = 1;
/// Indexes within indexes. Real ones nest once.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;

/// What is asked of a registry, in order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// Declared media type.
    #[serde(default)]
    pub(crate) media_type: String,
    /// Digest.
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "bounded::annotations")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(digest: Digest, size: u64) -> Self {
        Self::typed("", digest, size)
    }

    pub(crate) fn typed(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// What is kept of it as long as an image is there: where its content is, and the first of these annotations that it has.
    /// Real media types have some hundred characters.
    pub(crate) fn kept(&self, annotations: &[&str]) -> Self {
        const MAX_TYPE: usize = 255;
        let media_type = if self.media_type.len() > MAX_TYPE { "" } else { &self.media_type };
        let named = annotations.iter().find_map(|name| Some((*name, self.annotation(name)?)));
        Self::typed(media_type, self.digest.clone(), self.size).annotated(named)
    }

    pub(crate) fn annotated<'a>(mut self, with: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.annotations.extend(with.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        self
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// A parsed manifest document.
#[derive(Debug)]
pub(crate) enum Document {
    /// Entries for platforms.
    Index(Vec<Descriptor>),
    /// One image or artifact.
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
        /// Whether its layers are a container's checkpoint.
        is_checkpoint: bool,
    },
}

/// A [`Descriptor`] as documents have it: all of it, in any form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pointer {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "bounded::annotations")]
    annotations: BTreeMap<String, String>,
}

impl From<Pointer> for Descriptor {
    fn from(pointer: Pointer) -> Self {
        let Pointer { media_type, digest, size, platform, annotations } = pointer;
        Self { media_type, digest, size, platform, annotations }
    }
}

/// A manifest or an index as it stands.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Raw {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<Pointer>>,
    #[serde(default)]
    artifact_type: String,
    config: Option<Pointer>,
    layers: Option<Vec<Pointer>>,
    #[serde(default, deserialize_with = "bounded::keys")]
    annotations: BTreeSet<String>,
    fs_layers: Option<Ignored>,
    signatures: Option<Ignored>,
}

/// Parses a manifest or an index, by a worker; `what` names it in errors. Blocking. The body decides, not the
/// Content-Type, and a body of both shapes is refused (CVE-2021-41190).
pub(crate) fn parse(what: &str, body: &[u8]) -> Result<Document, ImageError> {
    let bad = |reason: String| ImageError::BadManifest { what: what.to_owned(), reason: cut(&reason) };
    let raw: Raw =
        document::read(body).map_err(|e| e.blame(|reason| bad(format!("not a manifest: {reason}"))))?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() || raw.signatures.is_some() {
        return Err(ImageError::Unsupported {
            what: what.to_owned(),
            reason: "manifest schema 1 is obsolete; push the image again with a current tool".into(),
        });
    }
    if raw.schema_version != Some(2) {
        return Err(bad("schemaVersion is not 2".into()));
    }
    let descriptors = |pointers: Vec<Pointer>| pointers.into_iter().map(Descriptor::from).collect();
    let manifests: Option<Vec<Descriptor>> = raw.manifests.map(descriptors);
    let layers: Option<Vec<Descriptor>> = raw.layers.map(descriptors);
    match (manifests, raw.config.map(Descriptor::from), layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(bad("it has the fields of a manifest and of an index".into()))
        }
        (Some(entries), None, None) => {
            if raw.media_type.contains("manifest.v") {
                return Err(bad(format!("an index that says it is {}", bounded::name(&raw.media_type))));
            }
            Ok(Document::Index(entries))
        }
        (None, Some(config), Some(layers)) => {
            if raw.media_type.contains("index") || raw.media_type.contains("manifest.list") {
                return Err(bad(format!("a manifest that says it is {}", bounded::name(&raw.media_type))));
            }
            check_layers(what, &raw.artifact_type, &config, &layers)?;
            let is_checkpoint = CHECKPOINT.iter().any(|name| raw.annotations.contains(*name));
            Ok(Document::Manifest { config, layers, is_checkpoint })
        }
        (None, None, _) => Err(bad("it has no config".into())),
        (None, Some(_), None) => Err(bad("it has no layers".into())),
    }
}

/// Whether a manifest is an artifact's: its config is not that of an image, or a layer is not one of a root file system.
pub(crate) fn is_artifact(config: &Descriptor, layers: &[Descriptor]) -> bool {
    let of_image = matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" | ""
    );
    !of_image || !layers.iter().all(is_layer)
}

/// The compression is sniffed; the type only has to say that it is a layer and not an encrypted one.
fn is_layer(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type.as_str();
    let known = media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.");
    known && !media_type.ends_with("+encrypted")
}

fn check_layers(
    what: &str,
    artifact_type: &str,
    config: &Descriptor,
    layers: &[Descriptor],
) -> Result<(), ImageError> {
    if layers.len() > MAX_LAYERS {
        return Err(ImageError::Limit {
            what: format!("the manifest {what}"),
            limit: u64::try_from(MAX_LAYERS).unwrap_or(u64::MAX),
            unit: "layers",
        });
    }
    // With the config of an image, only what says so is an artifact.
    if is_artifact(config, &[]) || !artifact_type.is_empty() {
        return Ok(());
    }
    match layers.iter().find(|layer| !is_layer(layer)) {
        None => Ok(()),
        Some(layer) => Err(ImageError::Unsupported {
            what: format!("layer {} of {what}", layer.digest),
            reason: format!("media type {:?}", bounded::name(&layer.media_type)),
        }),
    }
}

/// The node's platform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    architecture: &'static str,
    /// amd64 micro-architecture level, 1 to 4; arm64: 8.
    level: u8,
}

impl Node {
    /// What this daemon runs on.
    pub(crate) fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            Self { architecture: "amd64", level: amd64_level() }
        }
        #[cfg(target_arch = "aarch64")]
        {
            Self { architecture: "arm64", level: 8 }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            Self { architecture: std::env::consts::ARCH, level: 0 }
        }
    }

    /// How well a platform fits, higher is better; None: not at all.
    fn fit(self, os: &str, architecture: &str, variant: &str) -> Option<u8> {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        let default = if architecture == "arm64" { 8 } else { 1 };
        let level = match variant {
            "" => default,
            v => v.strip_prefix('v').unwrap_or(v).split('.').next().and_then(|n| n.parse().ok())?,
        };
        (level <= self.level).then_some(level)
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    // The levels of the x86-64 psABI, by the features that tell them apart.
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt");
    let v3 =
        v2 && has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt");
    let v4 =
        v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    if v4 {
        4
    } else if v3 {
        3
    } else if v2 {
        2
    } else {
        1
    }
}

/// The entry of an index for this node: best variant first, then the index's own order. Entries without a platform
/// come last, as fetching them is the only way to know. Attestations never match.
pub(crate) fn choose(what: &str, entries: &[Descriptor], node: Node) -> Result<Descriptor, ImageError> {
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in entries {
        if entry.annotations.contains_key("vnd.docker.reference.type") {
            continue;
        }
        let fit = match &entry.platform {
            Some(p) if p.os.is_empty() && p.architecture.is_empty() => Some(0),
            Some(p) => node.fit(&p.os, &p.architecture, &p.variant),
            None => Some(0),
        };
        if let Some(fit) = fit
            && best.is_none_or(|(so_far, _)| fit > so_far)
        {
            best = Some((fit, entry));
        }
    }
    best.map(|(_, entry)| entry.clone()).ok_or_else(|| {
        let has = entries
            .iter()
            .filter_map(|e| e.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(|p| {
                format!(
                    "{}/{}{}{}",
                    bounded::name(&p.os),
                    bounded::name(&p.architecture),
                    if p.variant.is_empty() { "" } else { "/" },
                    bounded::name(&p.variant)
                )
            })
            .take(16)
            .collect::<Vec<_>>()
            .join(", ");
        ImageError::BadManifest {
            what: what.to_owned(),
            reason: cut(&format!("no match for platform linux/{}; it has {has}", node.architecture)),
        }
    })
}

/// The parts of an image config that matter here.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<super::image::ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ConfigFile {
    /// Parses a config and checks it against the node and the number of layers.
    pub(crate) fn parse(what: &str, body: &[u8], layers: usize, node: Node) -> Result<Self, ImageError> {
        let file = Self::read(what, body)?;
        let bad =
            |reason: String| Err(ImageError::BadManifest { what: what.to_owned(), reason: cut(&reason) });
        if file.diff_ids().len() != layers {
            return bad(format!("its config names {} layers, its manifest {layers}", file.diff_ids().len()));
        }
        if let Some(odd) = file.diff_ids().iter().find(|d| !d.is_sha256()) {
            return Err(ImageError::Unsupported { what: what.to_owned(), reason: format!("diff id {odd}") });
        }
        if let Some(Err(problem)) = file.config.as_ref().map(super::image::ImageConfig::check_volumes) {
            return bad(problem);
        }
        let config = file.config.as_ref();
        if let Some((list, _)) =
            config.and_then(|c| c.sizes().into_iter().find(|(_, n)| *n > MAX_CONFIG_ITEMS))
        {
            return Err(ImageError::Limit {
                what: format!("{list} of the config of {what}"),
                limit: u64::try_from(MAX_CONFIG_ITEMS).unwrap_or(u64::MAX),
                unit: "entries",
            });
        }
        if config.is_some_and(|config| config.user.len() > MAX_CONFIG_USER) {
            return Err(ImageError::Limit {
                what: format!("User of the config of {what}"),
                limit: u64::try_from(MAX_CONFIG_USER).unwrap_or(u64::MAX),
                unit: "bytes",
            });
        }
        if config.is_some_and(|config| config.weight() > MAX_CONFIG_WEIGHT) {
            return Err(ImageError::Limit {
                what: format!("the config of {what}"),
                limit: u64::try_from(MAX_CONFIG_WEIGHT).unwrap_or(u64::MAX),
                unit: "bytes of texts",
            });
        }
        if node.fit(&file.os, &file.architecture, &file.variant).is_none() {
            let [os, architecture, variant] =
                [&file.os, &file.architecture, &file.variant].map(|text| bounded::name(text));
            return bad(format!(
                "no match for platform linux/{}: it is {os}/{architecture}{variant}",
                node.architecture
            ));
        }
        Ok(file)
    }

    /// Parses a config that was checked before, by a worker. Blocking.
    pub(crate) fn read(what: &str, body: &[u8]) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::BadManifest {
            what: what.to_owned(),
            reason: cut(&format!("its config cannot be read: {reason}")),
        };
        document::read(body).map_err(|e| e.blame(bad))
    }

    /// As the index keeps it beside the config that it was read from, so that nobody has to read that again.
    pub(crate) fn to_stored(&self, config: &[u8]) -> Vec<u8> {
        let mut stored = vec![STORED];
        stored.extend(Digest::sha256(config).as_str().as_bytes());
        // Writing to memory does not fail; what was cut is not taken for a config.
        stored.extend(postcard::to_stdvec(self).unwrap_or_default());
        stored
    }

    /// What was kept of this config; None: nothing that this podwright knows.
    pub(crate) fn from_stored(stored: &[u8], config: &[u8]) -> Option<Self> {
        let of = Digest::sha256(config);
        let binary = stored.strip_prefix(&[STORED])?.strip_prefix(of.as_str().as_bytes())?;
        postcard::from_bytes(binary).ok()
    }

    /// Uncompressed layer digests, bottom first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }
}

/// The chain id of a stack of layers, from the OCI image specification ("Layer ChainID").
pub(crate) fn chain_id(diff_ids: &[Digest]) -> String {
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else { return String::new() };
    ids.fold(first.clone(), |chain, diff| Digest::sha256(format!("{chain} {diff}").as_bytes()))
        .as_str()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node { architecture: "amd64", level: 3 };

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn index(entries: &str) -> Vec<Descriptor> {
        match parse("t", format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#).as_bytes()).unwrap() {
            Document::Index(entries) => entries,
            Document::Manifest { .. } => panic!("an index"),
        }
    }

    fn entry(c: char, platform: &str) -> String {
        format!(r#"{{"digest":"{}","size":1,"platform":{platform}}}"#, digest(c))
    }

    #[test]
    fn what_is_wrong_with_an_endless_document_is_told_briefly() {
        let long = "x".repeat(1 << 20);
        let digest = Digest::sha256(b"");
        let descriptor = |kind: &str| format!(r#"{{"digest":"{digest}","size":1,"mediaType":"{kind}"}}"#);
        let config = descriptor("application/vnd.oci.image.config.v1+json");
        for body in [
            format!(r#""{long}""#),
            format!(r#"{{"schemaVersion":"{long}"}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"manifest.v{long}","manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"index{long}","config":{config},"layers":[]}}"#),
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, descriptor(&long)),
            format!(r#"{{"schemaVersion":2,"config":{{"digest":"{long}","size":1}},"layers":[]}}"#),
        ] {
            assert!(parse("x", &body.into_bytes()).unwrap_err().to_string().len() < 1000);
        }
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{{"os":"{long}","architecture":"{long}"}}}}]}}"#
        );
        let Ok(Document::Index(entries)) = parse("x", index.as_bytes()) else { panic!() };
        assert!(choose("x", &entries, Node::here()).unwrap_err().to_string().len() < 1000);
        let config = format!(r#"{{"rootfs":{{"diff_ids":"{long}"}}}}"#);
        assert!(ConfigFile::read("x", config.as_bytes()).unwrap_err().to_string().len() < 1000);
    }

    #[test]
    fn the_best_variant_not_above_the_node_is_chosen() {
        let entries = index(
            &[
                entry('a', r#"{"os":"linux","architecture":"arm64"}"#),
                entry('b', r#"{"os":"linux","architecture":"amd64"}"#),
                entry('c', r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#),
                entry('d', r#"{"os":"linux","architecture":"amd64","variant":"v4"}"#),
                entry('e', r#"{"os":"windows","architecture":"amd64"}"#),
                entry('f', r#"{"os":"unknown","architecture":"unknown"}"#),
            ]
            .join(","),
        );
        assert_eq!(choose("t", &entries, NODE).unwrap().digest.as_str(), digest('c'));
        assert_eq!(
            choose("t", &entries, Node { architecture: "arm64", level: 8 }).unwrap().digest.as_str(),
            digest('a')
        );
        let none = choose("t", &entries, Node { architecture: "riscv64", level: 0 }).unwrap_err().to_string();
        assert!(none.contains("linux/amd64/v3") && !none.contains("unknown"), "{none}");
    }

    #[test]
    fn attestations_are_skipped() {
        let attestation = format!(
            r#"{{"digest":"{}","size":1,"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}"#,
            digest('a')
        );
        assert!(choose("t", &index(&attestation), NODE).is_err());
    }

    #[test]
    fn ambiguous_and_obsolete_documents_are_refused() {
        let d = format!(
            r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":1}}"#,
            digest('a')
        );
        for (body, part) in [
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d},"layers":[]}}"#),
                "manifest and of an index",
            ),
            (format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[{d}]}}"#), "manifest and of an index"),
            (r#"{"schemaVersion":1,"fsLayers":[],"signatures":[]}"#.into(), "schema 1"),
            (format!(r#"{{"config":{d},"layers":[]}}"#), "schemaVersion"),
            (r#"{"schemaVersion":2,"layers":[]}"#.into(), "no config"),
            (format!(r#"{{"schemaVersion":2,"config":{d}}}"#), "no layers"),
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":{d},"layers":[]}}"#
                ),
                "says it is",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d}]}}"#), "media type"),
            ("[]".into(), "not a manifest"),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:1","size":1}]}"#.into(), "digest"),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":-1}}]}}"#, digest('a')),
                "not a manifest",
            ),
        ] {
            let error = parse("t", body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn a_checkpoint_is_told_by_the_peers_annotations() {
        let config = format!(r#"{{"digest":"{}","size":1}}"#, digest('a'));
        for (annotations, expected) in [
            ("null", false),
            (r#"{"org.opencontainers.image.title":"x"}"#, false),
            (r#"{"io.kubernetes.cri-o.annotations.checkpoint.name":"counter"}"#, true),
            (r#"{"org.criu.checkpoint.container.name":"counter"}"#, true),
        ] {
            let body =
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"annotations":{annotations}}}"#);
            let Document::Manifest { is_checkpoint, .. } = parse("t", body.as_bytes()).unwrap() else {
                panic!("a manifest")
            };
            assert_eq!(is_checkpoint, expected, "{annotations}");
        }
    }

    #[test]
    fn the_config_must_fit_the_manifest_and_the_node() {
        let body = |arch: &str, n: usize| {
            let ids = vec![format!("{:?}", digest('a')); n].join(",");
            format!(
                r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
            )
        };
        assert!(ConfigFile::parse("t", body("amd64", 2).as_bytes(), 2, NODE).is_ok());
        assert!(ConfigFile::parse("t", body("amd64", 1).as_bytes(), 2, NODE).is_err());
        assert!(
            ConfigFile::parse("t", body("arm64", 2).as_bytes(), 2, NODE)
                .unwrap_err()
                .to_string()
                .contains("arm64")
        );
    }

    #[test]
    fn a_config_has_no_more_entries_than_memory_is_for() {
        let items = |n: usize, item: &str| vec![item; n].join(",");
        let body = |config: String| {
            format!(
                r#"{{"os":"linux","architecture":"amd64","config":{{{config}}},"rootfs":{{"diff_ids":[]}}}}"#
            )
        };
        let table = |n: usize| (0..n).map(|n| format!(r#""{n}":"""#)).collect::<Vec<_>>().join(",");
        for (list, n, ok) in
            [("Env", MAX_CONFIG_ITEMS, true), ("Env", MAX_CONFIG_ITEMS + 1, false), ("Cmd", 500_000, false)]
        {
            let parsed = ConfigFile::parse(
                "t",
                body(format!(r#""{list}":[{}]"#, items(n, r#""""#))).as_bytes(),
                0,
                NODE,
            );
            assert_eq!(parsed.is_ok(), ok, "{list} {n}");
            assert!(parsed.is_ok() || parsed.unwrap_err().to_string().contains(list));
        }
        for (length, ok) in [(MAX_CONFIG_USER, true), (MAX_CONFIG_USER + 1, false), (1 << 20, false)] {
            let user = body(format!(r#""User":"{}""#, "u".repeat(length)));
            assert_eq!(ConfigFile::parse("t", user.as_bytes(), 0, NODE).is_ok(), ok, "{length}");
        }
        let labels = body(format!(r#""Labels":{{{}}}"#, table(MAX_CONFIG_ITEMS + 1)));
        let error = ConfigFile::parse("t", labels.as_bytes(), 0, NODE).unwrap_err().to_string();
        assert!(error.contains("Labels"), "{error}");
    }

    #[test]
    fn of_a_descriptor_little_is_kept() {
        let text = "x".repeat(300);
        let with = [("a", "1"), ("b", "2"), ("c", &*text)];
        let descriptor = Descriptor::typed(&text, Digest::parse(&digest('a')).unwrap(), 5).annotated(with);
        let kept = descriptor.kept(&["c", "b"]);
        assert_eq!((&kept.digest, kept.size, &*kept.media_type), (&descriptor.digest, 5, ""));
        assert_eq!(
            (kept.annotation("c"), kept.annotation("b"), kept.annotation("a")),
            (Some(&*text), None, None)
        );
        assert!(descriptor.kept(&[]).annotations.is_empty());
        let usual = Descriptor::typed("application/json", descriptor.digest.clone(), 5);
        assert_eq!(usual.kept(&[]), usual);
    }

    #[test]
    fn what_a_config_says_is_kept_and_not_taken_for_another() {
        let body =
            br#"{"os":"linux","architecture":"amd64","created":"today","config":{"Env":["A=b"],"Cmd":null,
            "Volumes":{"/v":{"x":[]}},"Labels":{"k":"v"}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let file = ConfigFile::read("t", body).unwrap();
        let stored = file.to_stored(body);
        let kept = ConfigFile::from_stored(&stored, body).unwrap();
        assert_eq!((kept.created.as_deref(), kept.config), (Some("today"), file.config));
        assert!(ConfigFile::from_stored(&stored, b"{}").is_none(), "another config's");
        assert!(ConfigFile::from_stored(&stored[1..], body).is_none(), "of no known form");
        assert!(ConfigFile::from_stored(&stored[..stored.len() - 1], body).is_none(), "cut off");
    }

    #[test]
    fn chain_ids_fold() {
        let (a, b) = (Digest::parse(&digest('a')).unwrap(), Digest::parse(&digest('b')).unwrap());
        assert_eq!(chain_id(std::slice::from_ref(&a)), digest('a'));
        assert_eq!(
            chain_id(&[a, b]),
            Digest::sha256(format!("{} {}", digest('a'), digest('b')).as_bytes()).as_str()
        );
    }
}
