//! Archives and layouts, honest and hostile.

use super::LoadOptions;
use crate::images::digest::Digest;
use crate::images::tests::fixture::{Content, Layer, Packing, left_over, open, small, tar};
use crate::images::{ImageError, Images};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

pub(super) type Entries = Vec<(String, Vec<u8>)>;

/// Writes entries below a directory.
pub(super) fn unpack(entries: &Entries, dir: &Path) {
    for (path, content) in entries {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// The entries of a layout whose index has these manifests: (digest, further members of the descriptor).
pub(super) fn layout(content: &Content, index: &[(&Digest, &str)]) -> Entries {
    let mut entries: Entries = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let manifests: Vec<_> = index
        .iter()
        .map(|(digest, more)| {
            let (media_type, body) = &content.manifests[digest.as_str()];
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}{more}}}"#, body.len())
        })
        .collect();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
    entries.push(("index.json".into(), index.into_bytes()));
    let manifests = content.manifests.iter().map(|(digest, (_, body))| (digest, body));
    for (digest, body) in manifests.chain(&content.blobs) {
        if let Some(hex) = digest.strip_prefix("sha256:") {
            entries.push((format!("blobs/sha256/{hex}"), body.clone()));
        }
    }
    entries
}

pub(super) fn named(name: &str) -> String {
    format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#)
}

/// `->target` as content makes a symbolic link.
pub(super) fn pack(entries: &Entries) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(0o644);
        if let Some(target) = content.strip_prefix(b"->") {
            header.set_entry_type(::tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
        } else {
            header.set_size(u64::try_from(content.len()).unwrap());
            builder.append_data(&mut header, path, content.as_slice()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

async fn load(images: &Images, path: &Path) -> Result<Vec<super::Loaded>, ImageError> {
    images.load(path, LoadOptions::default()).await
}

/// Loads into a store of its own; a failure leaves nothing.
async fn load_new(bytes: &[u8]) -> Result<Vec<super::Loaded>, ImageError> {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let result = load(&images, file(bytes).path()).await;
    // A complete layer of a failed load may still be on its way out of staging.
    while !left_over(&images, root.path()).await.is_empty() {
        tokio::task::yield_now().await;
    }
    if result.is_err() {
        assert!(images.list().is_empty());
    }
    result
}

fn upper(images: &Images, name: &str) -> Vec<u8> {
    std::fs::read(images.hold(name).unwrap().layers()[1].join("etc/a")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_of_every_packing() {
    let (content, manifest, id) = small();
    let entries = layout(&content, &[(&manifest, &named("r.example/x:t"))]);
    let dir = tempfile::tempdir().unwrap();
    unpack(&entries, dir.path());
    let plain = pack(&entries);
    let (plain, gz, zst) =
        (file(&plain), file(&gzip(&plain)), file(&zstd::encode_all(plain.as_slice(), 1).unwrap()));
    for path in [dir.path(), plain.path(), gz.path(), zst.path()] {
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path());
        let loaded = load(&images, path).await.unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].id.as_str(), id.as_str());
        assert_eq!(loaded[0].names, ["r.example/x:t".to_owned(), format!("r.example/x@{manifest}")]);
        let image = images.status("r.example/x:t").unwrap();
        assert_eq!((&image.manifest_digest, image.repo_digests.len()), (&manifest.to_string(), 1));
        assert_eq!(upper(&images, "r.example/x:t"), b"upper");
        // Again, and under another name.
        let options = LoadOptions { name: Some("y".into()) };
        images.load(path, options).await.unwrap();
        assert_eq!(images.status("y").unwrap().repo_tags.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_spooled() {
    let (content, manifest, id) = small();
    let bytes = pack(&layout(&content, &[(&manifest, "")]));
    let (reader, mut writer) = std::io::pipe().unwrap();
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    let loaded = load(&images, Path::new(&path)).await.unwrap();
    writing.join().unwrap();
    assert_eq!((loaded[0].id.as_str(), loaded[0].names.len()), (id.as_str(), 0));
    assert_eq!(images.list().len(), 1, "listed by its id");
    assert_eq!(images.status(id.as_str()).unwrap().repo_tags.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_without_a_writer_is_waited_for_and_given_up() {
    let (content, manifest, _) = small();
    let bytes = pack(&layout(&content, &[(&manifest, "")]));
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let fifo = root.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let left = |wanted: usize| {
        let archives = &images.inner.archives;
        async move {
            while archives.left() != wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let all = images.inner.archives.left();
    let waiting: Vec<_> = (0..all)
        .map(|_| {
            let (images, fifo) = (images.clone(), fifo.clone());
            tokio::spawn(async move { images.load(&fifo, LoadOptions::default()).await })
        })
        .collect();
    left(0).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    left(all).await;
    let late = std::thread::spawn({
        let fifo = fifo.clone();
        move || std::fs::File::options().write(true).open(fifo).unwrap().write_all(&bytes).unwrap()
    });
    assert_eq!(load(&images, &fifo).await.unwrap().len(), 1);
    late.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_platforms_of_an_index() {
    let mut content = Content::default();
    let layer = |text: &str| Layer::new(&tar(&[("own", text)]), Packing::Gzip);
    let (a, a_id) = content.add("a", &[layer("a")], "{}");
    let (b, b_id) = content.add("b", &[layer("b")], "{}");
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let platform = |arch: &str| format!(r#","platform":{{"os":"linux","architecture":"{arch}"}}"#);
    let name = |name: &str, arch: &str| named(name) + &platform(arch);
    // One name with two platforms, of which the other's content is absent; a tag alone; an attestation.
    let other = content.manifest("o", "", b"{}".to_vec());
    content.manifests.remove(other.as_str());
    content.manifests.insert("o".into(), ("", b"{}".to_vec()));
    let mut with_other = content.clone();
    with_other.manifests.insert(other.to_string(), ("", b"{}".to_vec()));
    let index = [
        (&other, name("r.example/x:t", "s390x")),
        (&a, name("r.example/x:t", here)),
        (&a, named("x:second")),
        (&b, named("latest") + &platform(here)),
        (&other, platform("s390x")),
        (&other, r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#.to_owned()),
    ];
    let index: Vec<_> = index.iter().map(|(d, m)| (*d, m.as_str())).collect();
    let mut entries = layout(&with_other, &index);
    entries.retain(|(path, _)| !path.contains(other.hex()));
    let loaded = load_new(&pack(&entries)).await.unwrap();
    let ids: Vec<_> = loaded.iter().map(|l| l.id.as_str()).collect();
    assert_eq!(ids, [a_id.as_str(), b_id.as_str()]);
    assert!(loaded[0].names.iter().any(|n| n == "docker.io/library/x:second") && loaded[0].names.len() == 4);
    assert!(loaded[1].names.is_empty(), "a tag names nothing");
    // Two images, one name.
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let options = LoadOptions { name: Some("y".into()) };
    let error = images.load(file(&pack(&entries)).path(), options).await.unwrap_err().to_string();
    assert!(error.contains("2 images"), "{error}");
}

/// An archive of the old `docker save`: layers under directories, one of them a link to another's.
fn docker(layers: &[(&str, Vec<u8>)], diff_ids: &[Digest], tags: &str) -> (Entries, Digest) {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let ids: Vec<_> = diff_ids.iter().map(ToString::to_string).collect();
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":{ids:?}}}}}"#
    );
    let id = Digest::sha256(config.as_bytes());
    let paths: Vec<_> = layers.iter().map(|(path, _)| path).collect();
    let manifest = format!(r#"[{{"Config":"{}.json","RepoTags":{tags},"Layers":{paths:?}}}]"#, id.hex());
    let mut entries: Entries =
        layers.iter().map(|(path, content)| ((*path).to_owned(), content.clone())).collect();
    entries.push((format!("{}.json", id.hex()), config.into_bytes()));
    entries.push(("manifest.json".into(), manifest.into_bytes()));
    (entries, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_docker_save() {
    let (bottom, top) = (tar(&[("etc/a", "lower")]), tar(&[("etc/a", "upper")]));
    let diff_ids = [Digest::sha256(&bottom), Digest::sha256(&top), Digest::sha256(&bottom)];
    let (entries, id) = docker(
        &[
            ("1/layer.tar", bottom),
            ("2/layer.tar", gzip(&top)),
            ("3/layer.tar", b"->../1/layer.tar".to_vec()),
        ],
        &diff_ids,
        r#"["x:t","r.example/y"]"#,
    );
    let bytes = pack(&entries);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let loaded = load(&images, file(&bytes).path()).await.unwrap();
    assert_eq!(loaded[0].id.as_str(), id.as_str());
    assert_eq!(loaded[0].names, ["docker.io/library/x:t", "r.example/y:latest"]);
    let image = images.status("x:t").unwrap();
    assert!(image.repo_digests.is_empty(), "nobody has the manifest that was made up");
    assert_eq!(image.diff_ids, diff_ids.map(|d| d.to_string()));
    assert!(image.size > 2048);
    let (again, _) = docker(&[], &[], "null");
    assert!(load(&images, file(&pack(&again)).path()).await.unwrap()[0].names.is_empty());
    let names = |entries: &Entries| {
        let manifest = entries.iter().find(|(path, _)| path == "manifest.json").unwrap();
        String::from_utf8(manifest.1.clone()).unwrap()
    };
    // Images that share a compressed layer, and more images than any archive has.
    for (count, word) in [(2, None), (1025, Some("more than 1024 images"))] {
        let one = names(&entries);
        let one = one.trim().strip_prefix('[').and_then(|one| one.strip_suffix(']')).unwrap();
        let many = vec![one; count].join(",");
        let mut entries = entries.clone();
        entries.retain(|(path, _)| path != "manifest.json");
        entries.push(("manifest.json".into(), format!("[{many}]").into_bytes()));
        let loaded = load(&images, file(&pack(&entries)).path()).await;
        match word {
            None => assert_eq!(loaded.unwrap().len(), count),
            Some(word) => assert!(loaded.unwrap_err().to_string().contains(word)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_archive_is_said() {
    let (content, manifest, _) = small();
    let good = layout(&content, &[(&manifest, &named("x"))]);
    let with = |path: &str, body: &[u8]| {
        let mut entries = good.clone();
        match entries.iter_mut().find(|(p, _)| p == path) {
            Some(entry) => entry.1 = body.to_vec(),
            None => entries.push((path.to_owned(), body.to_vec())),
        }
        pack(&entries)
    };
    let twice = {
        let mut entries = good.clone();
        entries.push(("./index.json".into(), b"{}".to_vec()));
        pack(&entries)
    };
    let without =
        |part: &str| pack(&good.iter().filter(|(p, _)| !p.contains(part)).cloned().collect::<Entries>());
    let a_layer = content.blobs.iter().find(|(_, b)| b[0] != b'{').unwrap();
    let layer_path = format!("blobs/{}", a_layer.0.replace(':', "/"));
    let mut damaged = a_layer.1.clone();
    damaged[20] ^= 0x40;
    let docker_with =
        |layers: &[(&str, Vec<u8>)], diff_ids: &[Digest]| pack(&docker(layers, diff_ids, "null").0);
    let body = tar(&[("f", "x")]);
    let diff_id = Digest::sha256(&body);
    for (bytes, part) in [
        (b"not a tar, but long enough for its first block".repeat(20), "checksum"),
        (Vec::new(), "no entry oci-layout"),
        (without("index.json"), "index.json is not in"),
        (without("oci-layout"), "no entry manifest.json"),
        (without(manifest.hex()), manifest.as_str()),
        (without(&layer_path), a_layer.0),
        (twice, "two entries index.json"),
        (with("oci-layout", br#"{"imageLayoutVersion":"2"}"#), "version 2"),
        (with("index.json", br#"{"schemaVersion":2,"manifests":[]}"#), "no image"),
        (with("index.json", b"->index.json"), "links in a row"),
        (with("index.json", &vec![b' '; 5 << 20]), "larger than"),
        (with(&layer_path, &damaged), "layer"),
        (with(&layer_path, b"->../../../../../../../../etc/passwd"), "is not in"),
        (with(&layer_path, b"short"), "wrong size"),
        (good_cut(&good), "cut off"),
        (docker_with(&[("l", body.clone())], &[]), "1 layers for 0"),
        (docker_with(&[("l", tar(&[("f", "y")]))], std::slice::from_ref(&diff_id)), "does not match"),
        (docker_with(&[("l", b"->l".to_vec())], &[diff_id]), "links in a row"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (gzip(&[0; 2048])[..20].to_vec(), "compressed stream"),
    ] {
        let error = load_new(&bytes).await.expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let odd = load_new(&with("oci-layout.d/\u{fffd}", b"x")).await;
    assert!(odd.is_ok(), "further entries do not matter");
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    for path in ["/nowhere/x.tar", "/dev/null"] {
        let error = load(&images, Path::new(path)).await.unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}

fn good_cut(entries: &Entries) -> Vec<u8> {
    let mut bytes = pack(entries);
    bytes.truncate(bytes.len() - 1024 - 512);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_decompresses_without_end_meets_the_limit() {
    let root = tempfile::tempdir().unwrap();
    let config =
        crate::config::Images { max_layer_bytes: 1 << 20, ..crate::images::tests::fixture::config() };
    let images = Images::open(root.path(), &config).unwrap();
    let error = load(&images, file(&gzip(&vec![0; 4 << 20])).path()).await.unwrap_err();
    assert!(matches!(error, ImageError::Limit { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_does_not_forget_where_an_image_was_pulled() {
    let (content, manifest, id) = small();
    let server = crate::images::tests::server::Server::serving(content.clone());
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    images.pull(&server.name("x:t"), None).await.unwrap();
    let before = images.inner.store.state().images[id.as_str()].record.blobs.clone();
    let mut other = Content::default();
    for (digest, body) in &content.blobs {
        other.blobs.insert(digest.clone(), body.clone());
    }
    let body = String::from_utf8(content.manifests[manifest.as_str()].1.clone()).unwrap() + " ";
    let changed = other.manifest("t", "", body.into_bytes());
    let loaded =
        load(&images, file(&pack(&layout(&other, &[(&changed, &named("y:t"))]))).path()).await.unwrap();
    assert_eq!(loaded[0].id.as_str(), id.as_str());
    let image = images.status("y:t").unwrap();
    assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (2, 2));
    assert_eq!(images.inner.store.state().images[id.as_str()].record.blobs, before);
    assert_eq!(image.manifest_digest, manifest.as_str());
}
