//! Keys, claims and policy files, without a registry. Fixtures are from cosign 2.6.5 (payload), cosign 3.1.3 (bundle)
//! and openssl (RSA); other keys are generated here.

use super::claim::{Claim, Flaw};
use super::identity::{Identity, Name, Strictness};
use super::key::PublicKey;
use crate::images::digest::Digest;
use crate::images::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

mod files;

const COSIGN_PUB: &[u8] = include_bytes!("fixtures/cosign.pub");
const PAYLOAD: &[u8] = include_bytes!("fixtures/payload.json");
const BUNDLE: &str = include_str!("fixtures/bundle.json");
/// The annotation as written by cosign 2.6.5.
const SIGNATURE: &str =
    "MEUCIHFIHrENQGza7YY85RKM92fRTWZ9bAWBcyMEXsRCwp9jAiEAhakDsbJlPWl9stmwAiO4pvpoYVvzvYPhbV7mEYcjh3s=";
const OLD: &str = "sha256:1db7b7772f963603e3924acb6e8dc5450eae6a46aa02fed39acfaf7d50b52d77";
const NEW: &str = "sha256:65f7a5ae6245ef3bcc5ffe7f5877c27e89fccfeaae0d7818dc352dd17e5e0137";

fn key(pem: &[u8]) -> PublicKey {
    PublicKey::parse("k.pub".into(), pem).unwrap()
}

fn pem(spki: &[u8]) -> Vec<u8> {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(spki)).into_bytes()
}

fn check(claim: &Claim, key: PublicKey, image: &str, digest: &str) -> Result<(), Flaw> {
    let (image, digest) = (Reference::parse(image).unwrap(), Digest::parse(digest).unwrap());
    claim.check(&[key], &Identity::OWN_REPOSITORY, &image, &digest)
}

fn cosigned() -> Claim {
    Claim::simple("s".into(), PAYLOAD.to_vec(), SIGNATURE).unwrap()
}

#[test]
fn what_cosign_2_signed_is_for_its_digest_and_repository() {
    let check = |image, digest| check(&cosigned(), key(COSIGN_PUB), image, digest);
    assert_eq!(check("127.0.0.1:5055/team/old:1", OLD), Ok(()));
    assert!(matches!(check("127.0.0.1:5055/team/old:1", NEW), Err(Flaw::Digest(found)) if found == OLD));
    let other = check("127.0.0.1:5055/team/other:1", OLD);
    assert!(matches!(other, Err(Flaw::Repository { signed, .. }) if signed == "127.0.0.1:5055/team/old"));
}

#[test]
fn what_cosign_3_signed_is_for_its_digest() {
    let claim = Claim::bundle("b".into(), BUNDLE.as_bytes()).unwrap();
    let check = |digest| check(&claim, key(COSIGN_PUB), "127.0.0.1:5055/team/new:3", digest);
    assert_eq!(check(NEW), Ok(()));
    assert!(matches!(check(OLD), Err(Flaw::Digest(_))));
}

#[test]
fn a_bundle_names_no_image_for_a_policy_that_wants_one() {
    let claim = Claim::bundle("b".into(), BUNDLE.as_bytes()).unwrap();
    let image = Reference::parse("127.0.0.1:5055/team/new:3").unwrap();
    for (name, strictness) in [
        (Name::Own, Strictness::RepositoryOrExact),
        (Name::Own, Strictness::Exact),
        (Name::Fixed(image.clone()), Strictness::Repository),
    ] {
        let identity = Identity { name, strictness };
        let checked = claim.check(&[key(COSIGN_PUB)], &identity, &image, &Digest::parse(NEW).unwrap());
        assert_eq!(checked, Err(Flaw::Nameless));
    }
}

#[test]
fn a_changed_byte_or_another_key_does_not_verify() {
    let other = key(include_bytes!("fixtures/rsa.pub"));
    assert!(matches!(check(&cosigned(), other, "127.0.0.1:5055/team/old:1", OLD), Err(Flaw::Key(_))));
    let mut payload = PAYLOAD.to_vec();
    let at = payload.len() - 2;
    payload[at] ^= 1;
    let claim = Claim::simple("s".into(), payload, SIGNATURE).unwrap();
    let image = "127.0.0.1:5055/team/old:1";
    assert!(matches!(check(&claim, key(COSIGN_PUB), image, OLD), Err(Flaw::Key(_))));
    let text = BUNDLE.replace("\"sig\":\"MEQC", "\"sig\":\"MEQD");
    let claim = Claim::bundle("b".into(), text.as_bytes()).unwrap();
    assert!(matches!(check(&claim, key(COSIGN_PUB), image, NEW), Err(Flaw::Key(_))));
}

#[test]
fn rsa_signatures_of_both_paddings_verify() {
    for signature in include_str!("fixtures/rsa.sig").lines() {
        let claim = Claim::simple("s".into(), PAYLOAD.to_vec(), signature).unwrap();
        let rsa = key(include_bytes!("fixtures/rsa.pub"));
        assert_eq!(check(&claim, rsa, "127.0.0.1:5055/team/old:1", OLD), Ok(()));
    }
}

#[test]
fn p384_and_ed25519_verify() {
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P384_SHA384_ASN1_SIGNING as P384, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    };
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::generate_pkcs8(&P384, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&P384, pair.as_ref(), &random).unwrap();
    let head =
        b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
    let p384 = pem(&[head, pair.public_key().as_ref()].concat());
    assert!(key(&p384).verifies(b"m", pair.sign(&random, b"m").unwrap().as_ref()));
    assert!(!key(&p384).verifies(b"n", pair.sign(&random, b"m").unwrap().as_ref()));
    let pair = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let head = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
    let ed25519 = pem(&[head, pair.public_key().as_ref()].concat());
    assert!(key(&ed25519).verifies(b"m", pair.sign(b"m").as_ref()));
    assert!(!key(&ed25519).verifies(b"n", pair.sign(b"m").as_ref()));
}

#[test]
fn keys_that_could_not_verify_anything_are_refused_with_their_reason() {
    let twice = [COSIGN_PUB, COSIGN_PUB].concat();
    let cut = pem(&[0x30, 0x59, 0x30]);
    for (text, reason) in [
        (&b""[..], "no PEM block"),
        (b"ssh-ed25519 AAAA", "no PEM block"),
        (&twice, "more than one"),
        (&cut, "not a SubjectPublicKeyInfo"),
        (include_bytes!("fixtures/p521.pub"), "1.3.132.0.35"),
        (include_bytes!("fixtures/rsa1024.pub"), "RSA key of 140 bytes"),
    ] {
        let error = PublicKey::parse("k".into(), text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// A claim over `payload`, signed by the key beside it.
fn signed(payload: &str) -> (Claim, PublicKey) {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let head = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
    let signature = BASE64.encode(pair.sign(payload.as_bytes()));
    let claim = Claim::simple("s".into(), payload.as_bytes().to_vec(), &signature).unwrap();
    (claim, key(&pem(&[head, pair.public_key().as_ref()].concat())))
}

#[test]
fn a_well_signed_payload_still_has_to_be_cosigns() {
    let good = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"r.io/a"}},"image":{{"docker-manifest-digest":"{OLD}"}},"type":"cosign container image signature"}},"optional":{{"x":1}}}}"#
    );
    let check = |payload: &str| {
        let (claim, key) = signed(payload);
        check(&claim, key, "r.io/a:1", OLD)
    };
    assert_eq!(check(&good), Ok(()));
    for (from, to, reason) in [
        ("cosign container image signature", "atomic container signature", "type"),
        (r#""type":"#, r#""expires":1,"type":"#, "expires"),
        (r#""critical":"#, r#""critic":"#, "critical"),
        (r#""image":{"#, r#""image":{"docker-manifest-digest":"sha256:0","#, "duplicate"),
        ("{\"critical", "\u{feff}{\"critical", "not understood"),
    ] {
        let error = check(&good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_statement_about_an_image_is_no_consent_to_run_it() {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let head = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
    let public = pem(&[head, pair.public_key().as_ref()].concat());
    let check = |predicate: &str| {
        let kind = "application/vnd.in-toto+json";
        let statement = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}}}}],"predicateType":"{predicate}","predicate":{{}}}}"#,
            &OLD["sha256:".len()..]
        );
        let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = format!(
            r#"{{"dsseEnvelope":{{"payload":"{}","payloadType":"{kind}","signatures":[{{"sig":"{}"}}]}}}}"#,
            BASE64.encode(&statement),
            BASE64.encode(pair.sign(message.as_bytes()))
        );
        let claim = Claim::bundle("b".into(), bundle.as_bytes()).unwrap();
        check(&claim, key(&public), "r.io/a:1", OLD)
    };
    assert_eq!(check("https://sigstore.dev/cosign/sign/v1"), Ok(()));
    assert_eq!(
        check("https://slsa.dev/provenance/v1"),
        Err(Flaw::Type("https://slsa.dev/provenance/v1".into()))
    );
}
