//! Looks for an image's signatures at its registry and holds them against a rule. cosign's older place is asked first (the
//! tag `sha256-<hex>.sig`), then its newer one (the referrers of the digest) if something is still missing.

use super::claim::{COSIGN_SIGN, Claim, Flaw};
use super::{Requirement, Rule};
use crate::images::digest::Digest;
use crate::images::document::{self, Document, Unread};
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use crate::images::offload::blocking;
use crate::images::reference::Reference;
use crate::images::registry::Session;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Media type of a payload of the older format.
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with its signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Artifact type and media type of a bundle, up to its version.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0";
/// Artifact type of the older format where it stands among the referrers (cosign 2's `--registry-referrers-mode oci-1-1`).
const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Annotation that a referrer of that type has, with what it states.
const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
/// Signatures looked at of one image. cosign appends one a signing; release pipelines sign once or twice.
/// Each costs a request, and whoever may push to the repository decides how many there are.
const MAX_SIGNATURES: usize = 64;
/// Largest payload, bytes. cosign's have some 300, with annotations maybe a few thousand.
const MAX_PAYLOAD: u64 = 256 << 10;
/// Largest bundle, bytes. With a certificate and a log entry it has some 10,000; larger ones hold other statements.
const MAX_BUNDLE: u64 = 1 << 20;
/// Reasons that a message tells; the first ones, as the others are of the same kind.
const TOLD: usize = 4;

/// How a rule was met.
#[derive(Debug)]
pub(super) enum Met {
    /// It wants no signature.
    NothingAsked,
    /// By these signatures.
    Signed(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::images) struct Manifest {
    #[serde(default)]
    layers: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
pub(in crate::images) struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Entry {
    fn is_bundle(&self) -> bool {
        self.media_type.starts_with(BUNDLE)
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.digest.clone(), self.size)
    }
}

/// What was found so far: claims, and why the rest is none.
struct Evidence<'s> {
    session: &'s Session,
    image: &'s Reference,
    digest: &'s Digest,
    claims: Vec<Claim>,
    flaws: Vec<String>,
    /// Why a place could not be looked at.
    failure: Option<ImageError>,
    /// Signatures fetched.
    taken: usize,
}

/// Whether `image` at `digest` meets `rule`.
pub(super) async fn meets(
    session: &Session,
    image: &Reference,
    digest: &Digest,
    rule: &Rule,
) -> Result<Met, ImageError> {
    let refused = |reason: String| ImageError::Signature {
        image: image.to_string(),
        digest: digest.to_string(),
        reason: format!("{}: {reason}", rule.place),
    };
    if rule.requirements.iter().any(|r| matches!(r, Requirement::Reject)) {
        return Err(refused("the policy rejects the image".into()));
    }
    if rule.requirements.iter().all(|r| matches!(r, Requirement::Accept)) {
        return Ok(Met::NothingAsked);
    }
    let mut evidence =
        Evidence { session, image, digest, claims: Vec::new(), flaws: Vec::new(), failure: None, taken: 0 };
    // A place that does not answer only matters if the other one does not have what is needed: a mirror may have all of it
    // while the registry behind it is out of reach.
    let by_tag = evidence.find_by_tag().await;
    evidence.keep_failure(by_tag);
    if let Ok(by) = evidence.holds(rule) {
        return Ok(Met::Signed(by));
    }
    let by_referrers = evidence.find_by_referrers().await;
    evidence.keep_failure(by_referrers);
    match (evidence.holds(rule), evidence.failure.take()) {
        (Ok(by), _) => Ok(Met::Signed(by)),
        // Nobody knows whether it is signed.
        (Err(_), Some(failure)) if evidence.claims.is_empty() => Err(failure),
        (Err(unmet), failure) => {
            let also = failure.map_or_else(String::new, |e| format!("; others could not be looked for: {e}"));
            Err(refused(format!("{}{also}", evidence.reason(unmet))))
        }
    }
}

impl Evidence<'_> {
    /// What meets each requirement, or why nothing meets the first that is not.
    fn holds(&self, rule: &Rule) -> Result<String, Vec<String>> {
        let mut by = Vec::new();
        for requirement in &rule.requirements {
            let Requirement::Signed { keys, identity } = requirement else { continue };
            let mut flaws = Vec::new();
            let met = self.claims.iter().find(|claim| {
                let flaw = claim.check(keys, identity, self.image, self.digest).err();
                let good = flaw.is_none();
                flaws.extend(flaw.map(|flaw| format!("{}: {flaw}", claim.found)));
                good
            });
            by.push(met.ok_or(flaws)?.found.clone());
        }
        Ok(by.join(", "))
    }

    fn reason(&self, unmet: Vec<String>) -> String {
        let all: Vec<_> = unmet.into_iter().chain(self.flaws.iter().cloned()).collect();
        if all.is_empty() {
            return format!(
                "no signature found at {}:{} nor among the referrers of the digest",
                self.image.name(),
                signature_tag(self.digest)
            );
        }
        let more = all.len().saturating_sub(TOLD);
        let told = all.into_iter().take(TOLD).collect::<Vec<_>>().join("; ");
        if more == 0 { told } else { format!("{told}; and {more} more") }
    }

    /// Signatures in cosign's older place.
    async fn find_by_tag(&mut self) -> Result<(), ImageError> {
        let tag = signature_tag(self.digest);
        let Some(body) = self.session.attached(&tag).await? else { return Ok(()) };
        let place = format!("{}:{tag}", self.image.name());
        let Some(manifest) = self.parse::<Manifest>(&place, body).await? else { return Ok(()) };
        self.take(&place, manifest).await
    }

    /// Signatures among the referrers: cosign 3's bundles, and what cosign 2 puts there when told to.
    async fn find_by_referrers(&mut self) -> Result<(), ImageError> {
        let Some(body) = self.session.referrers(self.digest).await? else { return Ok(()) };
        let place = format!("the referrers of {}", self.image.at_digest(self.digest));
        let Some(index) = self.parse::<Index>(&place, body).await? else { return Ok(()) };
        let signatures = index.manifests.into_iter().filter(|entry| {
            // Who writes the index does not always fill these in; what is signed decides.
            let kind = entry.artifact_type.as_str();
            (kind.is_empty() || kind.starts_with(BUNDLE) || kind == SIGNATURE_ARTIFACT)
                && entry.annotations.get(PREDICATE_TYPE).is_none_or(|t| t == COSIGN_SIGN)
        });
        for (number, entry) in signatures.enumerate() {
            if number == MAX_SIGNATURES {
                self.flaws.push(format!("{place} are more than {MAX_SIGNATURES} signatures"));
                break;
            }
            let place = self.image.at_digest(&entry.digest);
            let body = self.session.manifest(&entry.descriptor()).await?;
            let Some(manifest) = self.parse::<Manifest>(&place, body).await? else { continue };
            self.take(&place, manifest).await?;
        }
        Ok(())
    }

    /// Fetches the signatures of one manifest.
    async fn take(&mut self, place: &str, manifest: Manifest) -> Result<(), ImageError> {
        let is_signature = |layer: &Entry| layer.media_type == SIMPLE_SIGNING || layer.is_bundle();
        for (number, layer) in manifest.layers.into_iter().filter(is_signature).enumerate() {
            // Over all manifests, else there could be the square of it.
            if self.taken == MAX_SIGNATURES {
                self.flaws.push(format!("more than {MAX_SIGNATURES} signatures, the last seen at {place}"));
                break;
            }
            self.taken += 1;
            let found = format!("signature {} of {place}", number + 1);
            let limit = if layer.is_bundle() { MAX_BUNDLE } else { MAX_PAYLOAD };
            if layer.size > limit {
                self.flaws.push(format!("{found}: it has more than {limit} bytes"));
                continue;
            }
            let body = self.session.small_blob(&layer.descriptor(), limit).await?;
            let claim = match layer.annotations.get(SIGNATURE) {
                _ if layer.is_bundle() => {
                    let found = found.clone();
                    blocking(move || Ok(Claim::bundle(found, &body))).await?
                }
                Some(signature) => Claim::simple(found.clone(), body, signature),
                None => Err(Flaw::Malformed(format!("it has no annotation {SIGNATURE}"))),
            };
            match claim {
                Ok(claim) => self.claims.push(claim),
                Err(flaw) => self.flaws.push(format!("{found}: {flaw}")),
            }
        }
        Ok(())
    }

    fn keep_failure(&mut self, looked: Result<(), ImageError>) {
        if let Err(error) = looked {
            tracing::debug!(image = %self.image, %error, "signatures could not be looked for");
            self.failure.get_or_insert(error);
        }
    }

    async fn parse<T: Document + Send + 'static>(
        &mut self,
        place: &str,
        body: Vec<u8>,
    ) -> Result<Option<T>, ImageError> {
        match blocking(move || Ok(document::read(&body))).await? {
            Ok(parsed) => Ok(Some(parsed)),
            Err(Unread::Malformed(reason)) => {
                self.flaws.push(format!("{place} is not understood: {reason}"));
                Ok(None)
            }
            Err(Unread::Reader(error)) => Err(error),
        }
    }
}

/// cosign's tag for the signatures of a digest.
fn signature_tag(digest: &Digest) -> String {
    format!("{}.sig", digest.as_str().replace(':', "-"))
}
