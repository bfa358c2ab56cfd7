//! Artifacts: files instead of layers.

use super::fixture::{Content, MANIFEST, config, names, open};
use super::server::{Server, serve};
use crate::config;
use crate::images::digest::Digest;
use crate::images::{ImageError, ImageKind, Images, Repair, VerifyEvent};

/// An artifact with these files, as (title, content); the config is the empty one.
fn artifact(
    content: &mut Content,
    tag: &str,
    config_type: &str,
    extra: &str,
    files: &[(&str, &[u8])],
) -> Digest {
    let mut put = |body: &[u8]| {
        let digest = Digest::sha256(body);
        content.blobs.insert(digest.to_string(), body.to_vec());
        format!(r#""digest":"{digest}","size":{}"#, body.len())
    };
    let config = put(b"{}");
    let layers: Vec<_> = files
        .iter()
        .map(|(title, body)| {
            let title = format!(r#""annotations":{{"org.opencontainers.image.title":"{title}"}}"#);
            format!(r#"{{"mediaType":"application/octet-stream",{title},{}}}"#, put(body))
        })
        .collect();
    let body = format!(
        r#"{{"schemaVersion":2,{extra}"config":{{"mediaType":"{config_type}",{config}}},"layers":[{}]}}"#,
        layers.join(",")
    );
    content.manifest(tag, MANIFEST, body.into_bytes())
}

const EMPTY: &str = "application/vnd.oci.empty.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_kept_found_and_removed_like_an_image() {
    let mut content = Content::default();
    // 0x1f8b: detection would take it for gzip.
    let files: [(&str, &[u8]); 3] = [("a", b"\x1f\x8bnot gzip"), ("d/b", b"b"), ("d/c", b"")];
    let one = artifact(&mut content, "one", EMPTY, "", &files);
    let two = artifact(&mut content, "two", "application/vnd.cncf.helm.config.v1+json", "", &files[..1]);
    let image = "application/vnd.oci.image.config.v1+json";
    artifact(&mut content, "said", image, r#""artifactType":"a/b","#, &files[..2]);
    artifact(&mut content, "unsaid", image, "", &files);
    let served = content.clone();
    let server = Server::start(move |ask| serve(&served, ask));
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let pull = async |tag: &str| images.pull(&server.name(&format!("x:{tag}")), None).await;
    assert_eq!(pull("one").await.unwrap().as_str(), one.as_str());
    assert_eq!(pull("two").await.unwrap().as_str(), two.as_str(), "one config, two ids");
    pull("said").await.unwrap();
    let error = pull("unsaid").await.unwrap_err();
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    assert_eq!(names(root.path(), "layers").len(), 3, "a file is stored once");

    drop(images);
    let images = open(root.path());
    let found = images.status(one.as_str()).unwrap();
    assert_eq!(found.kind, ImageKind::Artifact { config_type: EMPTY.to_owned() });
    assert_eq!(found.repo_tags, [server.name("x:one")]);
    assert!(found.user.is_none() && images.config(&found.id).unwrap().cmd.is_empty());
    assert_eq!(images.raw_config(&found.id).unwrap(), "{}");
    let hold = images.hold(one.as_str()).unwrap();
    for ((path, body), layer) in files.iter().zip(hold.layers()) {
        assert_eq!(std::fs::read(layer.join(path)).unwrap(), *body, "{path}");
    }
    for tag in ["one", "two", "said"] {
        images.remove(&server.name(&format!("x:{tag}"))).await.unwrap();
    }
    assert!(images.list().is_empty());
    assert!(hold.layers().iter().all(|layer| layer.is_dir()), "held");
    drop(hold);
    images.recovered().unwrap();
    assert!(names(root.path(), "layers").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_lies_or_is_too_large_is_refused_and_leaves_nothing() {
    let mut content = Content::default();
    artifact(&mut content, "t", EMPTY, "", &[("a", b"honest")]);
    let mut lying = content.clone();
    *lying.blobs.get_mut(Digest::sha256(b"honest").as_str()).unwrap() = b"h0nest".to_vec();
    for (served, limit) in [(lying, 1000), (content, 5)] {
        let server = Server::start(move |ask| serve(&served, ask));
        let root = tempfile::tempdir().unwrap();
        let images =
            Images::open(root.path(), &config::Images { max_layer_bytes: limit, ..config() }).unwrap();
        let error = images.pull(&server.name("x:t"), None).await.unwrap_err();
        match limit {
            5 => assert!(matches!(error, ImageError::Limit { limit: 5, .. }), "{error}"),
            _ => assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}"),
        }
        assert!(images.list().is_empty());
        assert!(super::fixture::left_over(&images, root.path()).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_verified_and_repaired_by_its_blobs() {
    let mut content = Content::default();
    let files: [(&str, &[u8]); 2] = [("a", b"first"), ("d/b", b"second")];
    artifact(&mut content, "t", EMPTY, "", &files);
    let server = Server::serving(content);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path());
    let id = images.pull(&server.name("x:t"), None).await.unwrap();
    let place =
        images.hold(id.as_str()).unwrap().layers().iter().find(|l| l.join("d/b").exists()).cloned().unwrap();
    let verify = async || {
        let mut told = Vec::new();
        let tell = |event| {
            if let VerifyEvent::Damaged { findings, .. } = event {
                told.extend(findings.iter().map(ToString::to_string));
            }
        };
        let summary = images.verify(&[], Repair::Yes, tell).await.unwrap();
        (told, summary.good, summary.repaired)
    };
    assert_eq!(verify().await, (vec![], 3, 0), "the config and two files");
    let file = std::fs::File::options().write(true).open(place.join("d/b")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"S", 0).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(verify().await, (vec!["d/b: its content has changed".into()], 2, 1));
    std::fs::set_permissions(place.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(verify().await, (vec!["d: mode 0777, should be 0755".into()], 2, 1));
    assert_eq!(verify().await, (vec![], 3, 0));
}
