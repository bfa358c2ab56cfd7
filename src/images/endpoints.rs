//! Where a reference would be pulled from, for whoever wonders. Reads the same configuration as a pull, at the same moment
//! of its life: now.

use super::Images;
use super::error::ImageError;
use super::pull::blocking;
use super::reference::Reference;
use super::registry::{Endpoint, LookedAt, Probe, looked_at};
use futures_util::future::join_all;
use std::sync::Arc;

/// The endpoints of a reference.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Normalised.
    pub reference: String,
    /// In the order in which they are asked, each with its answer where it was asked.
    pub endpoints: Vec<(Endpoint, Option<Probe>)>,
    /// Files and directories that were looked at, in that order.
    pub looked_at: Vec<LookedAt>,
}

impl Images {
    /// Resolves a reference to its endpoints; with `probe` each is asked for the manifest, side by side.
    ///
    /// # Errors
    /// `Malformed`, `Blocked`, or a configuration file that cannot be used. What an endpoint answers is never an error
    /// here.
    pub async fn endpoints(&self, reference: &str, probe: bool) -> Result<Endpoints, ImageError> {
        let reference = Reference::parse(reference)?;
        let registry = Arc::clone(&self.inner.registry);
        let (endpoints, looked_at) = {
            let (registry, reference) = (Arc::clone(&registry), reference.clone());
            blocking(move || {
                Ok((Endpoint::resolve(&registry, &reference)?, looked_at(&registry, &reference)?))
            })
            .await?
        };
        let endpoints = join_all(endpoints.into_iter().map(async |endpoint| {
            let answer = if probe { Some(endpoint.probe(&registry, &reference).await) } else { None };
            (endpoint, answer)
        }))
        .await;
        Ok(Endpoints { reference: reference.to_string(), endpoints, looked_at })
    }
}
