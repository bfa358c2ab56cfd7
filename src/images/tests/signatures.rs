//! Pulls under a signature policy: the requests to a registry, their order, and the meaning of its failures.

use super::fixture::{Content, INDEX, MANIFEST, config, names, small};
use super::server::{Ask, Reply, Server, serve};
use crate::config;
use crate::images::digest::Digest;
use crate::images::{ImageError, Images};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

/// A store whose policy wants images of the server signed by the key of seed 1.
fn open(dir: &Path, port: u16, action: &str) -> Images {
    let spki =
        [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], pair(1).public_key().as_ref()].concat();
    let key = dir.join("k.pub");
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(spki));
    std::fs::write(&key, pem).unwrap();
    let policy = dir.join("policy.toml");
    std::fs::write(&policy, scope(port, action, &key)).unwrap();
    Images::open(&dir.join("store"), &config::Images { signature_policy: policy, ..config() }).unwrap()
}

fn scope(port: u16, action: &str, key: &Path) -> String {
    let keys = if action == "reject" { String::new() } else { format!("keys = [{key:?}]\n") };
    format!("[default]\naction = \"reject\"\n[scope.\"127.0.0.1:{port}\"]\naction = \"{action}\"\n{keys}")
}

fn layer(media_type: &str, blob: &[u8], annotations: &str) -> String {
    let (digest, size) = (Digest::sha256(blob), blob.len());
    format!(
        r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"annotations":{{{annotations}}}}}"#
    )
}

fn manifest(layers: &[String]) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[{}]}}"#, layers.join(",")).into_bytes()
}

/// Puts signatures of `digest` for `repository` into cosign's older place, one per seed.
fn sign(content: &mut Content, repository: &str, digest: &Digest, seeds: &[u8]) {
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{repository}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    let layers = seeds.iter().map(|seed| {
        let signature = BASE64.encode(pair(*seed).sign(payload.as_bytes()));
        layer(SIMPLE, payload.as_bytes(), &format!(r#""dev.cosignproject.cosign/signature":"{signature}""#))
    });
    let manifest_body = manifest(&layers.collect::<Vec<_>>());
    content.blobs.insert(Digest::sha256(payload.as_bytes()).to_string(), payload.into_bytes());
    content.manifest(&format!("sha256-{}.sig", digest.hex()), MANIFEST, manifest_body);
}

/// Puts a bundle among the referrers, by the fallback tag.
fn bundle(content: &mut Content, digest: &Digest, seed: u8) -> Vec<u8> {
    let kind = "application/vnd.in-toto+json";
    let statement = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}}}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{{}}}}"#,
        digest.hex()
    );
    let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let bundle = format!(
        r#"{{"mediaType":"{BUNDLE}","dsseEnvelope":{{"payload":"{}","payloadType":"{kind}","signatures":[{{"sig":"{}"}}]}}}}"#,
        BASE64.encode(&statement),
        BASE64.encode(pair(seed).sign(message.as_bytes()))
    );
    let attached = manifest(&[layer(BUNDLE, bundle.as_bytes(), "")]);
    content.blobs.insert(Digest::sha256(bundle.as_bytes()).to_string(), bundle.into_bytes());
    let (entry, size) = (content.manifest("attached", MANIFEST, attached.clone()), attached.len());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"{entry}","size":{size},"artifactType":"{BUNDLE}"}}]}}"#
    );
    content.manifest(&format!("sha256-{}", digest.hex()), INDEX, index.clone().into_bytes());
    index.into_bytes()
}

/// Serves what `make` makes of the image once the port is known, since a repository's name contains it.
fn serving(make: impl Fn(&mut Content, &Digest, &str) + Send + Sync + 'static) -> Server {
    let port: &'static AtomicU16 = Box::leak(Box::default());
    let server = Server::start(move |ask| {
        let (mut content, digest, _) = small();
        make(&mut content, &digest, &format!("127.0.0.1:{}/a/b", port.load(Ordering::SeqCst)));
        serve(&content, ask)
    });
    port.store(server.port, Ordering::SeqCst);
    server
}

/// The error of a pull that is refused, with nothing of the image asked for or kept.
async fn refusal(server: &Server, action: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path(), server.port, action);
    let error = images.pull(&server.name("a/b:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Signature { .. }), "{error}");
    let (content, _, id) = small();
    let image = |ask: &Ask| {
        let blob = ask.path.rsplit('/').next().unwrap();
        content.blobs.contains_key(blob) || blob == id.as_str()
    };
    assert!(!server.asks().iter().any(image), "{:?}", server.asks());
    assert!(images.list().is_empty() && names(&dir.path().join("store"), "layers").is_empty());
    assert_eq!(images.stats().signatures_refused.load(Ordering::Relaxed), 1);
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_image_is_pulled_and_asked_about_each_time() {
    let server = serving(|content, digest, repository| sign(content, repository, digest, &[2, 1]));
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path(), server.port, "require");
    images.pull(&server.name("a/b:t"), None).await.unwrap();
    assert_eq!(images.stats().signatures_verified.load(Ordering::Relaxed), 1);
    // All of it is present, and it is no longer signed by an accepted key.
    let key = dir.path().join("other.pub");
    std::fs::write(&key, include_bytes!("../policy/tests/fixtures/cosign.pub")).unwrap();
    std::fs::write(dir.path().join("policy.toml"), scope(server.port, "require", &key)).unwrap();
    let error = images.pull(&server.name("a/b:t"), None).await.unwrap_err().to_string();
    assert!(error.contains("signed by another key than") && error.contains("other.pub"), "{error}");
    std::fs::write(dir.path().join("policy.toml"), "oops").unwrap();
    let error = images.pull(&server.name("a/b:t"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Policy { .. }), "{error}");
    assert_eq!(images.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_counts_by_the_api_and_by_the_tag() {
    for by_api in [true, false] {
        let server = Server::start(move |ask| {
            let (mut content, digest, _) = small();
            let index = bundle(&mut content, &digest, 1);
            if by_api {
                content.manifests.remove(&format!("sha256-{}", digest.hex()));
                if ask.path.contains("/referrers/") {
                    return Reply::new(200, index);
                }
            }
            serve(&content, ask)
        });
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), server.port, "require").pull(&server.name("a/b:t"), None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_signatures_is_told_and_nothing_is_fetched() {
    let unsigned = refusal(&serving(|_, _, _| ()), "require").await;
    assert!(unsigned.contains("no signature found at 127.0.0.1") && unsigned.contains(".sig"), "{unsigned}");
    let rejected = refusal(&Server::serving(small().0), "reject").await;
    assert!(rejected.contains("the policy rejects"), "{rejected}");
    let other_key = refusal(&serving(|c, digest, name| sign(c, name, digest, &[2, 3])), "require").await;
    assert!(other_key.matches("signed by another key than").count() == 2, "{other_key}");
    let elsewhere =
        refusal(&serving(|c, digest, name| sign(c, &format!("{name}/c"), digest, &[1])), "require").await;
    assert!(elsewhere.contains("a/b/c, not for"), "{elsewhere}");
    let other = Digest::sha256(b"other");
    let moved = refusal(
        &serving(move |c, digest, name| {
            sign(c, name, &other, &[1]);
            let body = c.manifests[&format!("sha256-{}.sig", other.hex())].1.clone();
            c.manifest(&format!("sha256-{}.sig", digest.hex()), MANIFEST, body);
        }),
        "require",
    )
    .await;
    assert!(moved.contains("it is for digest sha256:"), "{moved}");
    let bundled = refusal(
        &serving(|c, digest, _| {
            bundle(c, digest, 2);
        }),
        "require",
    )
    .await;
    assert!(bundled.contains("signed by another key than"), "{bundled}");
    let many = refusal(&serving(|c, digest, name| sign(c, name, digest, &[9; 70])), "require").await;
    assert!(many.contains("and 61 more"), "{many}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_not_an_unsigned_image() {
    for (path, status) in [(".sig", 403), (".sig", 500), ("/referrers/", 403), ("/referrers/", 500)] {
        let server = Server::start(move |ask| {
            if ask.path.contains(path) { Reply::new(status, "") } else { serve(&small().0, ask) }
        });
        let dir = tempfile::tempdir().unwrap();
        let error =
            open(dir.path(), server.port, "require").pull(&server.name("a/b:t"), None).await.unwrap_err();
        let right = match status {
            403 => matches!(error, ImageError::Unauthorized { .. }),
            _ => matches!(error, ImageError::Unavailable { .. }),
        };
        assert!(right, "{path} {status}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_place_may_fail_when_the_other_has_the_signature() {
    let server = Server::start(|ask| {
        let (mut content, digest, _) = small();
        bundle(&mut content, &digest, 1);
        if ask.path.contains(".sig") { Reply::new(403, "") } else { serve(&content, ask) }
    });
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), server.port, "require").pull(&server.name("a/b:t"), None).await.unwrap();
    let server = Server::start(|ask| {
        let (mut content, digest, _) = small();
        bundle(&mut content, &digest, 2);
        if ask.path.contains(".sig") { Reply::new(403, "") } else { serve(&content, ask) }
    });
    let images = open(dir.path(), server.port, "require");
    let error = images.pull(&server.name("a/b:t"), None).await.unwrap_err().to_string();
    assert!(error.contains("signed by another key") && error.contains("could not be looked for"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_lets_the_image_in_whatever_is_wrong() {
    for server in
        [
            Server::serving(small().0),
            serving(|c, digest, name| sign(c, name, digest, &[2])),
            Server::start(|ask| {
                if ask.path.contains(".sig") { Reply::new(403, "") } else { serve(&small().0, ask) }
            }),
        ]
    {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path(), server.port, "warn");
        images.pull(&server.name("a/b:t"), None).await.unwrap();
        assert_eq!(images.stats().signatures_missed.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_no_scope_are_the_defaults() {
    let server = serving(|content, digest, repository| sign(content, repository, digest, &[1]));
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path(), 1, "require");
    let error = images.pull(&server.name("a/b:t"), None).await.unwrap_err().to_string();
    assert!(error.contains("refused: default: the policy rejects"), "{error}");
}

#[test]
fn a_policy_that_cannot_be_used_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Images { signature_policy: dir.path().join("absent.toml"), ..config() };
    let error = Images::open(&dir.path().join("store"), &config).unwrap_err().to_string();
    assert!(error.contains("absent.toml does not exist"), "{error}");
}
