//! Both kinds of policy files: their meaning, and that nothing misunderstood is let through.

use super::super::identity::{Identity, Name, Strictness};
use super::super::{Policy, Requirement, SignaturePolicy};
use crate::images::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::path::PathBuf;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k.pub"), super::COSIGN_PUB).unwrap();
        Self(dir)
    }

    /// Writes a policy; `KEY` in it is the path of a valid key.
    fn policy(&self, name: &str, text: &str) -> PathBuf {
        let key = self.0.path().join("k.pub");
        let path = self.0.path().join(name);
        let data = BASE64.encode(super::COSIGN_PUB);
        let text = text.replace("KEY", key.to_str().unwrap()).replace("DATA", &data);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The policy's requirement for the image, abbreviated.
    fn wants(&self, name: &str, text: &str, image: &str) -> String {
        let rule =
            Policy::load(&self.policy(name, text)).unwrap().rule_for(&Reference::parse(image).unwrap());
        let all: Vec<_> = rule.requirements.iter().map(short).collect();
        format!("{}{}", if rule.warn { "warn " } else { "" }, all.join("+"))
    }

    fn error(&self, name: &str, text: &str) -> String {
        SignaturePolicy::open(&self.policy(name, text)).unwrap_err().to_string()
    }
}

fn short(requirement: &Requirement) -> &'static str {
    match requirement {
        Requirement::Accept => "accept",
        Requirement::Reject => "reject",
        Requirement::Signed { identity, .. } if *identity == Identity::OWN_REPOSITORY => "signed",
        Requirement::Signed { identity: Identity { name: Name::Own, strictness }, .. } => match strictness {
            Strictness::Exact => "exact",
            _ => "tag-or-digest",
        },
        Requirement::Signed { identity: Identity { name: Name::Fixed(_), .. }, .. } => "fixed",
        Requirement::Signed { identity: Identity { name: Name::Remapped { .. }, .. }, .. } => "remapped",
    }
}

const OURS: &str = r#"
[default]
action = "reject"
[scope."r.io"]
action = "accept"
[scope."r.io/team"]
action = "require"
keys = ["KEY"]
[scope."r.io/team/app"]
action = "warn"
keys = ["KEY"]
[scope."local:5000/vendor"]
action = "require"
keys = ["KEY"]
signed_as = "vendor.io"
"#;

#[test]
fn the_narrowest_scope_counts_by_whole_parts() {
    let files = Files::new();
    for (image, expected) in [
        ("other.io/team/app:1", "reject"),
        ("busybox", "reject"),
        ("r.io:5000/x", "reject"),
        ("r.io/x:1", "accept"),
        ("r.io/teams/app:1", "accept"),
        ("r.io/team/other:1", "signed"),
        ("R.IO/team/other:1", "signed"),
        ("r.io/team/app:1", "warn signed"),
        ("r.io/team/app/sub:1", "warn signed"),
        ("r.io/team/apple:1", "signed"),
        ("local:5000/vendor/a:1", "remapped"),
    ] {
        assert_eq!(files.wants("p.toml", OURS, image), expected, "{image}");
    }
}

#[test]
fn a_wrong_file_of_ours_says_what_is_wrong() {
    let files = Files::new();
    let default = "[default]\naction = \"accept\"\n";
    for (text, reason) in [
        ("", "missing field `default`"),
        ("[default]\naction = \"allow\"\n", "line 2: unknown variant `allow`"),
        ("[default]\naction = \"require\"\n", "default: it has no keys"),
        ("[default]\naction = \"accept\"\nkeys = [\"KEY\"]\n", "keys and signed_as are for"),
        ("[default]\naction = \"require\"\nkeys = [\"k.pub\"]\n", "k.pub: not an absolute path"),
        ("[default]\naction = \"require\"\nkeys = [\"/absent\"]\n", "/absent does not exist"),
        (
            "[default]\naction = \"require\"\nkeys = [\"KEY\"]\nsigned_as = \"a.io\"\n",
            "signed_as needs a scope",
        ),
        (&format!("{default}[scope.busybox]\naction = \"reject\"\n"), "docker.io/library/busybox"),
        (&format!("{default}[scope.\"r.io\"]\naction = \"reject\"\nkey = 1\n"), "unknown field `key`"),
        (&format!("{default}[scopes.\"r.io\"]\naction = \"reject\"\n"), "unknown field `scopes`"),
    ] {
        let error = files.error("p.toml", text);
        assert!(error.contains("p.toml") && error.contains(reason), "{error}");
    }
    let absent = SignaturePolicy::open(&files.0.path().join("absent.toml")).unwrap_err().to_string();
    assert!(absent.contains("does not exist"), "{absent}");
}

const THEIRS: &str = r#"{
  "default": [{"type": "reject"}],
  "transports": {
    "dir": {"": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/absent"}]},
    "docker": {
      "docker.io/library": [{"type": "insecureAcceptAnything"}],
      "r.io/team": [{"type": "sigstoreSigned", "keyPath": "KEY", "signedIdentity": {"type": "matchRepository"}}],
      "r.io/team/app:1": [{"type": "sigstoreSigned", "keyPaths": ["KEY"]}],
      "r.io/both": [
        {"type": "sigstoreSigned", "keyData": "DATA", "signedIdentity": {"type": "matchExact"}},
        {"type": "sigstoreSigned", "keyDatas": ["DATA"],
         "signedIdentity": {"type": "exactRepository", "dockerRepository": "vendor.io/x"}}
      ],
      "r.io/fixed": [{"type": "sigstoreSigned", "keyPath": "KEY",
        "signedIdentity": {"type": "exactReference", "dockerReference": "vendor.io/x:1"}}],
      "r.io/copies": [{"type": "sigstoreSigned", "keyPath": "KEY",
        "signedIdentity": {"type": "remapIdentity", "prefix": "r.io/copies", "signedPrefix": "vendor.io"}}],
      "*.corp.io": [{"type": "insecureAcceptAnything"}]
    }
  }
}"#;

#[test]
fn policy_json_means_what_it_means_to_podman() {
    let files = Files::new();
    for (image, expected) in [
        ("busybox", "accept"),
        ("r.io/team/app:2", "signed"),
        ("r.io/team/app:1", "tag-or-digest"),
        ("r.io/both:1", "exact+fixed"),
        ("r.io/fixed:1", "fixed"),
        ("r.io/copies/a:1", "remapped"),
        ("a.b.corp.io/x:1", "accept"),
        ("corp.io/x:1", "reject"),
        ("other.io/x", "reject"),
    ] {
        assert_eq!(files.wants("p.json", THEIRS, image), expected, "{image}");
    }
    let own_default =
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}}"#;
    assert_eq!(files.wants("p.json", own_default, "busybox"), "accept");
}

#[test]
fn what_is_not_supported_of_policy_json_is_refused() {
    let files = Files::new();
    let signed = |fields: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned",{fields}}}]}}"#);
    let docker = |scopes: &str| {
        format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scopes}}}}}}}"#)
    };
    for (text, reason) in [
        ("{}".to_owned(), "missing field `default`"),
        (r#"{"default":[]}"#.into(), "no requirement"),
        (
            r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}]}"#.into(),
            "signedBy (GPG) is not",
        ),
        (r#"{"default":[{"type":"signedBaseLayer"}]}"#.into(), "\"signedBaseLayer\" is not supported"),
        (r#"{"default":[{"type":"insecureAcceptAnything","keyPath":"KEY"}]}"#.into(), "no further fields"),
        (r#"{"default":[{"type":"reject"}],"transport":{}}"#.into(), "unknown field `transport`"),
        (signed(r#""fulcio":{}"#), "fulcio is not supported"),
        (signed(r#""pki":{}"#), "pki is not supported"),
        (signed(r#""keyPath":"KEY","rekorPublicKeyPath":"/x""#), "rekorPublicKeyPath is not supported"),
        (signed(r#""keyPath":"KEY","keyData":"DATA""#), "needs one of keyPath"),
        (signed(r#""keyPaths":[]"#), "has no key"),
        (signed(r#""keyData":"DATA!""#), "key data"),
        (signed(r#""keyData":"QUJD""#), "no PEM block"),
        (signed(r#""keyPath":"KEY","signedIdentity":{"type":"matchAnything"}"#), "matchAnything"),
        (
            signed(
                r#""keyPath":"KEY","signedIdentity":{"type":"exactReference","dockerReference":"r.io/a"}"#,
            ),
            "neither tag nor digest",
        ),
        (
            docker(r#""r.io":[{"type":"reject"}],"r.io":[{"type":"insecureAcceptAnything"}]"#),
            "stands there twice",
        ),
        (docker(r#""busybox":[{"type":"reject"}]"#), "docker.io/library/busybox"),
    ] {
        let error = files.error("p.json", &text);
        assert!(error.contains("p.json") && error.contains(reason), "{text}: {error}");
    }
}
