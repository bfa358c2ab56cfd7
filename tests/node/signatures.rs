//! Signature policies with the real registry, behind a mirror as all images here are: the names are Docker Hub's.

use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use podwright_testkit::{Artifact, Options};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use std::path::Path;
use std::time::Duration;
use tonic::Code;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &[u8] = b"{}";

/// A key of the kind that `cosign generate-key-pair` makes.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(kind, key.as_ref(), &random).unwrap())
    }

    fn write_public(&self, path: &Path) {
        let head = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        let spki = BASE64.encode([&head[..], self.0.public_key().as_ref()].concat());
        std::fs::write(path, format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n"))
            .unwrap();
    }

    /// Attaches a signature to an image, as `cosign sign` of version 2 does. `tamper` works on what was signed.
    fn attach(
        &self,
        node: &Node,
        repository: &str,
        digest: &str,
        says: &str,
        tamper: impl FnOnce(String) -> String,
    ) {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{says}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = self.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        let payload = tamper(payload);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"{}","size":{},"annotations":{{"dev.cosignproject.cosign/signature":"{}"}}}}]}}"#,
            podwright_testkit::image::sha256(EMPTY),
            EMPTY.len(),
            podwright_testkit::image::sha256(payload.as_bytes()),
            payload.len(),
            BASE64.encode(signature)
        );
        let tag = format!("{}.sig", digest.replace(':', "-"));
        let blobs: [&[u8]; 2] = [EMPTY, payload.as_bytes()];
        node.registry.push_raw(repository, &tag, MANIFEST, manifest.as_bytes(), &blobs).unwrap();
    }
}

/// A node whose policy is in `dir`; `KEY` in it is a key, `HOST` the registry's address.
async fn node(dir: &Path, policy: &str) -> Node {
    let path = dir.join("policy.toml");
    std::fs::write(&path, "[default]\naction = \"reject\"\n").unwrap();
    let extra_config = format!("[images]\nsignature_policy = {path:?}\n");
    let node = Node::new(Options { extra_config, ..Options::default() }).await;
    let host = node.registry.address().to_string();
    let policy = policy.replace("KEY", dir.join("k.pub").to_str().unwrap()).replace("HOST", &host);
    std::fs::write(&path, policy).unwrap();
    node
}

const POLICY: &str = r#"
[default]
action = "reject"
[scope."docker.io/library"]
action = "accept"
[scope."docker.io/mirrored"]
action = "require"
keys = ["KEY"]
[scope."HOST/team"]
action = "require"
keys = ["KEY"]
[scope."HOST/team/warned"]
action = "warn"
keys = ["KEY"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_images_are_pulled_where_the_policy_requires_it() {
    let dir = tempfile::tempdir().unwrap();
    let (signer, other) = (Signer::new(), Signer::new());
    signer.write_public(&dir.path().join("k.pub"));
    let mut node = node(dir.path(), POLICY).await;
    let image = Artifact::Image(busybox().build());
    let digest = image.digest();
    let names = ["good", "none", "other", "moved", "changed", "warned"].map(|name| format!("team/{name}"));
    for repository in names.iter().map(String::as_str).chain(["mirrored/app", "x/y"]) {
        node.registry.push(repository, "1", &image).unwrap();
    }
    let host = node.registry.address();
    let name = |repository: &str| format!("{host}/{repository}");
    signer.attach(&node, "team/good", digest, &name("team/good"), |p| p);
    other.attach(&node, "team/other", digest, &name("team/other"), |p| p);
    signer.attach(&node, "team/moved", digest, &name("team/good"), |p| p);
    let tamper = |payload: String| payload.replace("team/good", "team/changed");
    signer.attach(&node, "team/changed", digest, &name("team/good"), tamper);
    signer.attach(&node, "mirrored/app", digest, "docker.io/mirrored/app", |p| p);

    let id = node.pull(&name("team/good:1")).await.unwrap();
    assert_eq!(node.pull(&format!("{}@{digest}", name("team/good"))).await.unwrap(), id);
    // The mirror has it, under the name that the image has for its owner.
    assert_eq!(node.pull("docker.io/mirrored/app:1").await.unwrap(), id);
    // No requirement, and one that is not met.
    assert_eq!(node.pull(BUSYBOX).await.unwrap(), id);
    assert_eq!(node.pull(&name("team/warned:1")).await.unwrap(), id);
    // All of the image is on the node by now; that makes no difference. The kubelet knows the first word of the message, which
    // it sees only of errors of unknown kind.
    let refusals: [(&str, &[&str]); 5] = [
        ("team/none", &["/team/none:1", "no signature found at", "/team/none:sha256-"]),
        ("team/other", &["signed by another key than", "k.pub"]),
        ("team/moved", &["/team/good, not for", "/team/moved"]),
        ("team/changed", &["signed by another key"]),
        ("x/y", &["default: the policy rejects the image"]),
    ];
    for (repository, says) in refusals {
        let result = node.pull(&format!("{}:1", name(repository))).await;
        let message = result.as_ref().unwrap_err().message().to_owned();
        assert!(message.starts_with("SignatureValidationFailed: ") && message.contains(digest), "{message}");
        refused(result, Code::Unknown, says);
    }
    let counted = ["refused", "missed", "verified"].map(|name| metric(&node, name));
    assert_eq!(counted, [5, 1, 3]);
    assert!(node.daemon.log().contains("pulled without a valid signature"));
    node.finish().await;
}

fn metric(node: &Node, name: &str) -> u64 {
    let text = podwright_testkit::http::get(node.scratch.metrics().unwrap(), "/metrics").unwrap();
    let text = String::from_utf8(text).unwrap();
    let name = format!("podwright_signatures_{name}_total ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_counts_at_once_and_a_broken_one_lets_nothing_through() {
    let dir = tempfile::tempdir().unwrap();
    Signer::new().write_public(&dir.path().join("k.pub"));
    let mut node = node(dir.path(), "[default]\naction = \"accept\"\n").await;
    node.pull(BUSYBOX).await.unwrap();
    let policy = dir.path().join("policy.toml");
    std::fs::write(&policy, "[default]\naction = \"reject\"\n").unwrap();
    refused(node.pull(BUSYBOX).await, Code::Unknown, &["SignatureValidationFailed"]);
    std::fs::write(&policy, "[default]\naction = \"allow\"\n").unwrap();
    refused(
        node.pull(BUSYBOX).await,
        Code::FailedPrecondition,
        &["signature policy", "unknown variant `allow`"],
    );
    let error = format!("{:#}", node.daemon.restart().unwrap_err());
    assert!(error.contains("signature policy") && error.contains("policy.toml"), "{error}");
    std::fs::write(&policy, "[default]\naction = \"accept\"\n").unwrap();
    node.daemon.wait_for_end(Duration::from_secs(20)).unwrap();
    node.daemon.launch().unwrap();
    node.pull(BUSYBOX).await.unwrap();
    node.finish().await;
}
