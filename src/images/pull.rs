//! A pull: what a reference currently means at its registry, whether the policy admits it, and whether this caller has
//! pulled it from there before. `bring` does the rest.

use super::bring::{Wanted, bring_watched};
use super::digest::Digest;
use super::error::ImageError;
use super::offload::blocking;
use super::progress::PullProgress;
use super::reference::{Reference, Target};
use super::registry::{Credentials, Session};
use super::source::Source;
use super::state::keys;
use super::stats::PullStats;
use super::store::Giver;
use super::{Inner, Shared};
use crate::model::ImageId;
use std::sync::Arc;
use std::time::Instant;

/// Counts a pull when it ends, also one that is cancelled.
struct Running(Arc<PullStats>, Instant, bool);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ended(self.2, self.1.elapsed());
    }
}

/// Pulls, in a task of its own.
pub(super) async fn pull(
    inner: Shared,
    reference: Reference,
    credentials: Option<Credentials>,
    progress: Arc<PullProgress>,
) -> Result<ImageId, ImageError> {
    let mut running = Running(Arc::clone(&inner.stats), Instant::now(), false);
    let result = steps(&inner, &reference, credentials.as_ref(), &progress).await;
    running.2 = result.is_ok();
    match &result {
        Ok(id) => {
            let millis = running.1.elapsed().as_millis();
            // Log: With the time in ms.
            tracing::info!(image = %reference, %id, %millis, "pulled");
        }
        // Log: The caller gets the same error.
        Err(error) => tracing::info!(image = %reference, %error, "pull failed"),
    }
    result
}

async fn steps(
    inner: &Shared,
    reference: &Reference,
    credentials: Option<&Credentials>,
    progress: &PullProgress,
) -> Result<ImageId, ImageError> {
    let session = {
        let (registry, reference, credentials) =
            (Arc::clone(&inner.registry), reference.clone(), credentials.cloned());
        // Reads hosts.toml and certificates.
        blocking(move || Session::new(&registry, &reference, credentials.as_ref())).await?
    };
    let caller = inner.proofs.caller(&session);
    let (top, document) = session.resolve().await?;
    inner.policy.admit(&session, reference, &top.digest, &inner.stats).await?;
    let names = names(reference, &top.digest);
    // A registry's claim to have an image is worthless: anyone's may make it. Once the caller has received all of it
    // from there, it suffices.
    if inner.proofs.has(&caller, &top.digest)
        && let Some(id) = known(inner, &top.digest, &names).await?
    {
        return Ok(id);
    }
    let (what, digest) = (reference.to_string(), top.digest.clone());
    let wanted = Wanted { what, top, document, names, caller: Some(caller) };
    let id = bring_watched(inner, &Source::Registry(Arc::new(session)), wanted, progress).await?;
    inner.proofs.put(&caller, &digest);
    Ok(id)
}

/// The names that a pull gives to its image.
fn names(reference: &Reference, top: &Digest) -> Vec<String> {
    let tag = match reference.target() {
        Target::Tag(_) => Some(reference.to_string()),
        Target::Digest(_) => None,
    };
    tag.into_iter().chain([reference.at_digest(top)]).collect()
}

/// The image that the digest is known to mean, with its new names.
async fn known(inner: &Shared, top: &Digest, names: &[String]) -> Result<Option<ImageId>, ImageError> {
    let state = inner.store.state();
    let suffix = format!("@{top}");
    let Some(id) = state.names.iter().find(|(name, _)| name.ends_with(&suffix)).map(|(_, id)| id.clone())
    else {
        return Ok(None);
    };
    let (store, names, target) = (Arc::clone(&inner.store), names.to_vec(), id.clone());
    let there = blocking(move || {
        let keys = store.state().images.get(&target).map(|entry| keys(&entry.record)).unwrap_or_default();
        Ok(store.lost_of(&keys)?.is_none() && store.add_names(&target, &names, Giver::Pull)?)
    })
    .await?;
    Ok(there.then(|| ImageId::from_digest(&id)))
}

/// Keeps the type of the shared part in one place.
pub(super) fn start(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: Option<&Credentials>,
    progress: Arc<PullProgress>,
) -> impl Future<Output = Result<ImageId, ImageError>> + Send + 'static {
    pull(Arc::clone(inner), reference.clone(), credentials.cloned(), progress)
}
