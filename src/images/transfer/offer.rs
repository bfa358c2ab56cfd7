//! An image that a local source offers, on its way into the store.

use super::Loaded;
use crate::images::Shared;
use crate::images::bring::{Wanted, bring};
use crate::images::digest::Digest;
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use crate::images::reference::{Reference, Target};
use crate::images::source::{LocalSource, Source};
use std::sync::Arc;

/// An image on offer.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) source: Arc<dyn LocalSource>,
    pub(super) top: Descriptor,
    /// Its id, where that is known before its manifest is read.
    pub(super) id: Option<String>,
    /// Digests of manifests and indexes by which a registry knows it; none where the manifest was constructed here.
    pub(super) digests: Vec<Digest>,
    /// Names that the source states.
    pub(super) references: Vec<Reference>,
}

impl Offer {
    /// The image has this name and no other.
    pub(super) fn rename(&mut self, name: &Reference) {
        self.references = vec![name.clone()];
    }

    /// The image's names: its tags, and their repositories at its digests. A digest that the source states but that is
    /// not the image's own gives no name.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for reference in &self.references {
            if let Target::Tag(_) = reference.target() {
                names.push(reference.to_string());
            }
            names.extend(self.digests.iter().map(|digest| reference.at_digest(digest)));
        }
        names.sort();
        names.dedup();
        names
    }

    /// Brings the image into the store.
    pub(super) async fn bring(self, inner: &Shared) -> Result<Loaded, ImageError> {
        let names = self.names();
        let called = names.first().map_or(self.top.digest.as_str(), String::as_str);
        let what = format!("{called} in {}", self.source.name());
        let wanted = Wanted { what, top: self.top, document: None, names: names.clone(), caller: None };
        let id = bring(inner, &Source::Local(self.source), wanted).await?;
        // Log: An image of an archive or layout.
        tracing::info!(%id, ?names, "loaded");
        Ok(Loaded { id, names })
    }
}
