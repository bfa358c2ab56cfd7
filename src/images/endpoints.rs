//! The endpoints of a reference, for diagnosis. Reads the same configuration as a pull.

use super::Images;
use super::error::ImageError;
use super::offload::blocking;
use super::reference::Reference;
use super::registry::{Endpoint, LookedAt, Probe, looked_at};
use futures_util::future::join_all;
use std::sync::Arc;

/// The endpoints of a reference.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Normalised.
    pub reference: String,
    /// In the order of a pull, each with its answer if it was probed.
    pub endpoints: Vec<(Endpoint, Option<Probe>)>,
    /// Files and directories examined, in that order.
    pub looked_at: Vec<LookedAt>,
}

impl Images {
    /// Resolves a reference to its endpoints; with `probe`, requests the manifest from each, side by side.
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
