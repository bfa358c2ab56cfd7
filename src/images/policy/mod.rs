//! Which images may be pulled: a policy file, public keys, and the signatures that cosign attaches to images. Owns the
//! decision; never fetches a layer and never sees a private key.
//!
//! ```text
//! reference ─► rule of the narrowest scope ─► accept | reject
//!                       │
//!                       └► signed: signatures at the registry (verify) ─► key verifies (key) ─► says this image (claim)
//! ```
//!
//! The file and its keys are read anew for every pull, as registries' configuration is: a change counts at once, and a
//! file that cannot be understood fails pulls instead of letting them through.

mod claim;
mod containers;
mod file;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod identity;
mod key;
mod verify;

#[cfg(test)]
mod tests;

use super::digest::Digest;
use super::error::ImageError;
use super::offload::blocking;
use super::reference::Reference;
use super::registry::{Session, read_config};
use super::stats::PullStats;
pub(super) use claim::Bundle;
use identity::Identity;
use key::PublicKey;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
pub(super) use verify::{Index, Manifest};

/// The node's policy, by its file.
#[derive(Debug)]
pub(super) struct SignaturePolicy {
    /// None: every image is accepted, and nothing is asked.
    path: Option<PathBuf>,
}

/// What the file says.
#[derive(Debug)]
struct Policy {
    default: Rule,
    /// By `host[/path[:tag]]` or `*.domain`.
    scopes: HashMap<String, Rule>,
}

/// What is asked of images in one scope.
#[derive(Debug)]
struct Rule {
    /// Where in the file it stands, for messages.
    place: String,
    /// All have to be met.
    requirements: Vec<Requirement>,
    /// What is not met is told, and the pull goes on.
    warn: bool,
}

#[derive(Debug)]
enum Requirement {
    Accept,
    Reject,
    /// One signature by one of the keys, saying one of the names.
    Signed {
        keys: Vec<PublicKey>,
        identity: Identity,
    },
}

impl Policy {
    fn load(path: &Path) -> Result<Self, ImageError> {
        let text = read(path, path)?;
        if path.extension().is_some_and(|e| e == "json") {
            containers::parse(path, &text)
        } else {
            file::parse(path, &text)
        }
    }

    fn rule_for(mut self, image: &Reference) -> Rule {
        identity::scopes(image).iter().find_map(|scope| self.scopes.remove(scope)).unwrap_or(self.default)
    }
}

impl SignaturePolicy {
    /// Reads the policy once, so that a wrong one stops the start. Blocking. An empty path is no policy.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        if path.as_os_str().is_empty() {
            return Ok(Self { path: None });
        }
        Policy::load(path)?;
        Ok(Self { path: Some(path.to_owned()) })
    }

    /// Whether `image`, which was resolved to `digest`, may be pulled over `session`. To be asked before anything of it is
    /// fetched or named, also when all of it is here already.
    ///
    /// # Errors
    /// `Signature` when not; `Policy` when the file is not usable now; else why signatures could not be looked for.
    pub(super) async fn admit(
        &self,
        session: &Session,
        image: &Reference,
        digest: &Digest,
        stats: &PullStats,
    ) -> Result<(), ImageError> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let rule = {
            let image = image.clone();
            blocking(move || Ok(Policy::load(&path)?.rule_for(&image))).await?
        };
        match verify::meets(session, image, digest, &rule).await {
            Ok(verify::Met::NothingAsked) => Ok(()),
            Ok(verify::Met::Signed(by)) => {
                // Log: By the key and the rule in its fields.
                tracing::info!(%image, %digest, by, "signature verified");
                PullStats::add(&stats.signatures_verified, 1);
                Ok(())
            }
            Err(error) if rule.warn => {
                // Log: The policy's action for this image is `warn`.
                // Do: Sign the image, or change the policy.
                tracing::warn!(%image, %digest, %error, "pulled without a valid signature, as the policy lets it");
                PullStats::add(&stats.signatures_missed, 1);
                Ok(())
            }
            Err(error) => {
                PullStats::add(&stats.signatures_refused, 1);
                Err(error)
            }
        }
    }
}

/// A key in a file of its own.
fn key_file(policy: &Path, path: &Path) -> Result<PublicKey, ImageError> {
    if !path.is_absolute() {
        let reason = format!("key {}: not an absolute path", path.display());
        return Err(ImageError::Policy { path: policy.to_owned(), reason });
    }
    key_text(policy, path.display().to_string(), read(policy, path)?.as_bytes())
}

fn key_text(policy: &Path, name: String, pem: &[u8]) -> Result<PublicKey, ImageError> {
    PublicKey::parse(name.clone(), pem)
        .map_err(|e| ImageError::Policy { path: policy.to_owned(), reason: format!("key {name}: {e}") })
}

fn read(policy: &Path, path: &Path) -> Result<String, ImageError> {
    let wrong = |reason: String| ImageError::Policy { path: policy.to_owned(), reason };
    match read_config(path) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(wrong(format!("{} does not exist", path.display()))),
        Err(ImageError::Hosts { path, reason }) => Err(wrong(format!("{}: {reason}", path.display()))),
        Err(error) => Err(error),
    }
}
