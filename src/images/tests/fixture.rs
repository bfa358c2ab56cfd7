//! Images made in a test, and a store to pull them into.

use crate::config;
use crate::images::Images;
use crate::images::digest::Digest;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

pub(in crate::images) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(in crate::images) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Compression of a layer.
#[derive(Clone, Copy)]
pub(in crate::images) enum Packing {
    Plain,
    Gzip,
    /// Two members in a row.
    GzipTwice,
    /// A skippable frame and two frames.
    Zstd,
}

/// A layer: its tar and its blob.
#[derive(Clone)]
pub(in crate::images) struct Layer {
    pub(in crate::images) diff_id: Digest,
    pub(in crate::images) blob: Vec<u8>,
    pub(in crate::images) media_type: &'static str,
}

/// A tar with one file for each (path, content); a path with a trailing slash is a directory of mode 0750.
pub(in crate::images) fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_uid(10);
        header.set_gid(20);
        header.set_mtime(1_000_000_000);
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_mode(0o640);
        if path.ends_with('/') {
            header.set_entry_type(::tar::EntryType::Directory);
            header.set_mode(0o750);
        }
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    pub(in crate::images) fn new(tar: &[u8], packing: Packing) -> Self {
        let half = tar.len() / 2;
        let (blob, media_type) = match packing {
            Packing::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
            Packing::Gzip => (gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip"),
            Packing::GzipTwice => (
                [gzip(&tar[..half]), gzip(&tar[half..])].concat(),
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            Packing::Zstd => {
                let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
                let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
                (
                    [skippable, frame(&tar[..half]), frame(&tar[half..])].concat(),
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                )
            }
        };
        Self { diff_id: Digest::sha256(tar), blob, media_type }
    }

    pub(in crate::images) fn digest(&self) -> Digest {
        Digest::sha256(&self.blob)
    }
}

/// What a registry holds: blobs, and manifests by digest and by tag.
#[derive(Debug, Clone, Default)]
pub(in crate::images) struct Content {
    pub(in crate::images) blobs: BTreeMap<String, Vec<u8>>,
    pub(in crate::images) manifests: BTreeMap<String, (&'static str, Vec<u8>)>,
}

impl Content {
    /// Adds an image under a tag; returns the manifest's digest and the image id.
    pub(in crate::images) fn add(&mut self, tag: &str, layers: &[Layer], config: &str) -> (Digest, Digest) {
        let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
        );
        let id = Digest::sha256(config.as_bytes());
        let descriptor = |media_type: &str, digest: &Digest, size: usize| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        };
        let layer_list: Vec<_> =
            layers.iter().map(|l| descriptor(l.media_type, &l.digest(), l.blob.len())).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor("application/vnd.oci.image.config.v1+json", &id, config.len()),
            layer_list.join(",")
        );
        self.blobs.insert(id.to_string(), config.into_bytes());
        for layer in layers {
            self.blobs.insert(layer.digest().to_string(), layer.blob.clone());
        }
        (self.manifest(tag, MANIFEST, manifest.into_bytes()), id)
    }

    pub(in crate::images) fn manifest(
        &mut self,
        tag: &str,
        media_type: &'static str,
        body: Vec<u8>,
    ) -> Digest {
        let digest = Digest::sha256(&body);
        self.manifests.insert(digest.to_string(), (media_type, body.clone()));
        self.manifests.insert(tag.to_owned(), (media_type, body));
        digest
    }
}

/// One image with two layers of every kind of file that matters here.
pub(in crate::images) fn small() -> (Content, Digest, Digest) {
    let mut content = Content::default();
    let bottom = Layer::new(&tar(&[("etc/", ""), ("etc/a", "lower"), ("etc/b", "gone")]), Packing::GzipTwice);
    let top = Layer::new(&tar(&[("etc/a", "upper"), ("etc/.wh.b", "")]), Packing::Zstd);
    let (manifest, id) = content.add("t", &[bottom, top], r#"{"User":"1000:5","Cmd":["/x"],"Env":["A=b"]}"#);
    (content, manifest, id)
}

pub(in crate::images) fn config() -> config::Images {
    config::Images {
        certs_dirs: Vec::new(),
        registries_conf: std::path::PathBuf::new(),
        auth_files: Vec::new(),
        connect_timeout_seconds: 5,
        progress_timeout_seconds: 20,
        ..Default::default()
    }
}

pub(in crate::images) fn open(root: &Path) -> Images {
    Images::open(root, &config()).unwrap()
}

/// Names in a directory of the store.
pub(in crate::images) fn names(root: &Path, dir: &str) -> Vec<String> {
    std::fs::read_dir(root.join(dir))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until no layer is in progress, then returns what is left in staging.
pub(in crate::images) async fn left_over(images: &Images, root: &Path) -> Vec<String> {
    let all = u32::try_from(config().max_concurrent_downloads).unwrap();
    let _all = images.inner.downloads.take_all(all).await;
    names(root, "staging")
}
