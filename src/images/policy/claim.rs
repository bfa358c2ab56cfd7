//! What a signature says, in both of cosign's formats: read only after a key has verified it. Pure.
//!
//! The older one is a JSON payload ("simple signing") with its signature beside it. The newer one is a Sigstore bundle: a
//! DSSE envelope around an in-toto statement.

use super::identity::{Identity, Name, Strictness};
use super::key::PublicKey;
use crate::images::digest::Digest;
use crate::images::document;
use crate::images::error::cut;
use crate::images::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `critical.type` of cosign's payloads (its specs/SIGNATURE_SPEC.md).
const COSIGN_TYPE: &str = "cosign container image signature";
/// The statement that `cosign sign` makes. A statement of another type is about the image (how it was built, what is in it)
/// and no consent to run it, though the same key may have signed it.
pub(super) const COSIGN_SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
/// The payload type of an in-toto statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Something signed that was found for an image, not verified yet.
#[derive(Debug)]
pub(super) struct Claim {
    /// Where it was found, for messages.
    pub(super) found: String,
    message: Vec<u8>,
    signatures: Vec<Vec<u8>>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// The message itself.
    Simple,
    /// What the envelope holds.
    Statement(Vec<u8>),
}

/// Why a claim does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("signed by another key than {0}")]
    Key(String),
    #[error("not understood: {0}")]
    Malformed(String),
    #[error("it is for digest {0}")]
    Digest(String),
    #[error("it is for {signed}, not for {expected}")]
    Repository { signed: String, expected: String },
    #[error("it names no image, and the policy wants one named")]
    Nameless,
    #[error("its type is {0:?}")]
    Type(String),
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

// "Critical" is what a reader must understand: more than this is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    r#type: String,
    image: PayloadImage,
    identity: PayloadIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PayloadImage {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PayloadIdentity {
    docker_reference: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::images) struct Bundle {
    dsse_envelope: Option<Envelope>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

impl Claim {
    /// A payload of the older format with its signature in base64.
    pub(super) fn simple(found: String, payload: Vec<u8>, signature: &str) -> Result<Self, Flaw> {
        let signature =
            BASE64.decode(signature.trim()).map_err(|e| Flaw::Malformed(format!("signature: {e}")))?;
        Ok(Self { found, message: payload, signatures: vec![signature], body: Body::Simple })
    }

    /// A bundle. Blocking: it is anybody's, and read by a worker; what it holds is read here, once a key of ours signed it.
    pub(super) fn bundle(found: String, bundle: &[u8]) -> Result<Self, Flaw> {
        let malformed = |what: &str, e: &dyn std::fmt::Display| Flaw::Malformed(format!("{what}: {e}"));
        let bundle: Bundle = document::read(bundle).map_err(|e| malformed("bundle", &e))?;
        let envelope =
            bundle.dsse_envelope.ok_or_else(|| Flaw::Malformed("bundle without a DSSE envelope".into()))?;
        if envelope.payload_type != IN_TOTO {
            return Err(Flaw::Type(cut(&envelope.payload_type)));
        }
        let payload = BASE64.decode(&envelope.payload).map_err(|e| malformed("payload", &e))?;
        let signatures = envelope.signatures.iter().map(|s| BASE64.decode(&s.sig));
        let signatures = signatures.collect::<Result<_, _>>().map_err(|e| malformed("signature", &e))?;
        let message = pre_authentication_encoding(IN_TOTO, &payload);
        Ok(Self { found, message, signatures, body: Body::Statement(payload) })
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn read_unverified(data: &[u8], identity: &Identity, image: &Reference, digest: &Digest) {
        let _ = check_payload(data, identity, image, digest);
        let _ = check_statement(data, identity, digest);
    }

    /// Whether one of `keys` signed that `digest` is the image that `identity` wants named.
    pub(super) fn check(
        &self,
        keys: &[PublicKey],
        identity: &Identity,
        image: &Reference,
        digest: &Digest,
    ) -> Result<(), Flaw> {
        if !keys.iter().any(|key| self.signatures.iter().any(|s| key.verifies(&self.message, s))) {
            let names: Vec<_> = keys.iter().map(PublicKey::name).collect();
            return Err(Flaw::Key(names.join(", ")));
        }
        match &self.body {
            Body::Simple => check_payload(&self.message, identity, image, digest),
            Body::Statement(statement) => check_statement(statement, identity, digest),
        }
    }
}

fn check_payload(
    payload: &[u8],
    identity: &Identity,
    image: &Reference,
    digest: &Digest,
) -> Result<(), Flaw> {
    let Payload { critical } =
        serde_json::from_slice(payload).map_err(|e| Flaw::Malformed(format!("payload: {e}")))?;
    if critical.r#type != COSIGN_TYPE {
        return Err(Flaw::Type(cut(&critical.r#type)));
    }
    if critical.image.docker_manifest_digest != digest.as_str() {
        return Err(Flaw::Digest(cut(&critical.image.docker_manifest_digest)));
    }
    let signed = critical.identity.docker_reference;
    if !identity.accepts(image, &signed) {
        return Err(Flaw::Repository { signed: cut(&signed), expected: identity.expected(image) });
    }
    Ok(())
}

fn check_statement(statement: &[u8], identity: &Identity, digest: &Digest) -> Result<(), Flaw> {
    let statement: Statement =
        serde_json::from_slice(statement).map_err(|e| Flaw::Malformed(format!("statement: {e}")))?;
    if !statement.kind.starts_with("https://in-toto.io/Statement/v") {
        return Err(Flaw::Type(cut(&statement.kind)));
    }
    if statement.predicate_type != COSIGN_SIGN {
        return Err(Flaw::Type(cut(&statement.predicate_type)));
    }
    let (algorithm, hex) = digest.as_str().split_once(':').unwrap_or_default();
    let named = |s: &Subject| s.digest.get(algorithm).is_some_and(|value| value == hex);
    if !statement.subject.iter().any(named) {
        let first = statement.subject.first().and_then(|s| s.digest.get(algorithm));
        return Err(Flaw::Digest(first.map_or_else(|| "none".to_owned(), |hex| cut(hex))));
    }
    // A statement of cosign has only digests: the content is what was signed, under whatever name. A policy that wants a
    // tag or a certain repository confirmed does not get it.
    let any_name = identity.strictness == Strictness::Repository && !matches!(identity.name, Name::Fixed(_));
    if any_name { Ok(()) } else { Err(Flaw::Nameless) }
}

/// What a DSSE signature is over (secure-systems-lab/dsse, protocol.md).
fn pre_authentication_encoding(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}
