//! Stores of other runtimes on this node, for moving it over without pulling everything again. Only read, never
//! written, also while their owner runs; their content is verified like a download.

mod bolt;
mod containerd;
mod crio;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod tar_split;

#[cfg(test)]
pub(super) mod tests;

use super::Loaded;
use super::offer::Offer;
use crate::images::Images;
use crate::images::error::{ImageError, cut};
use crate::images::reference::Reference;
use std::path::PathBuf;

/// Another runtime's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// containerd's, of the namespace `k8s.io`; its `root` is mostly `/var/lib/containerd`.
    Containerd {
        /// The directory that its configuration calls `root`.
        root: PathBuf,
    },
    /// That of CRI-O, podman and buildah with the driver overlay, mostly `/var/lib/containers/storage`.
    Crio {
        /// The directory that storage.conf calls `graphroot`.
        root: PathBuf,
    },
}

/// The result for one image of the other store.
#[derive(Debug)]
pub struct Imported {
    /// Its name there, or its digest.
    pub name: String,
    /// The image, or why it was passed over.
    pub result: Result<Loaded, ImageError>,
}

/// An image of a peer, or why it cannot be offered.
struct Candidate {
    name: String,
    offer: Result<Offer, ImageError>,
}

impl Images {
    /// Imports images from another runtime's store: those named, by tag, digest or id, or all. A failed image does not
    /// stop the others.
    ///
    /// # Errors
    /// When the store cannot be read, or a name is malformed.
    pub async fn import_from(&self, peer: Peer, names: &[String]) -> Result<Vec<Imported>, ImageError> {
        let mut wanted = names.iter().map(|name| Wanted::parse(name)).collect::<Result<Vec<_>, _>>()?;
        let all = wanted.is_empty();
        let (place, path) = match &peer {
            Peer::Containerd { root } => (format!("containerd at {}", root.display()), root.clone()),
            Peer::Crio { root } => (format!("containers/storage at {}", root.display()), root.clone()),
        };
        let work = move || match peer {
            Peer::Containerd { root } => containerd::candidates(&root),
            Peer::Crio { root } => crio::candidates(&root),
        };
        let candidates = self.inner.archives.run(&path, work).await?;
        let mut imported = Vec::new();
        for Candidate { name, offer } in candidates {
            if !all {
                let mut found = false;
                for wanted in &mut wanted {
                    if wanted.is(&name, offer.as_ref().ok()) {
                        (wanted.found, found) = (true, true);
                    }
                }
                if !found {
                    continue;
                }
            }
            let result = match offer {
                Ok(offer) => offer.bring(&self.inner).await,
                Err(error) => Err(error),
            };
            if let Err(error) = &result {
                // Log: One image of another runtime's store could not be imported.
                // Do: Pull it.
                tracing::warn!(image = name, %error, "not imported");
            }
            imported.push(Imported { name, result });
        }
        imported.extend(wanted.into_iter().filter(|w| !w.found).map(|wanted| {
            let error = ImageError::NotInSource { what: wanted.given.clone(), place: place.clone() };
            Imported { name: wanted.given, result: Err(error) }
        }));
        Ok(imported)
    }
}

/// An image that the caller names.
struct Wanted {
    given: String,
    normal: String,
    found: bool,
}

impl Wanted {
    fn parse(given: &str) -> Result<Self, ImageError> {
        let normal = match given.strip_prefix("sha256:") {
            Some(_) => given.to_owned(),
            None => Reference::parse(given)?.to_string(),
        };
        Ok(Self { given: given.to_owned(), normal, found: false })
    }

    fn is(&self, name: &str, offer: Option<&Offer>) -> bool {
        name == self.normal
            || name == self.given
            || offer.is_some_and(|offer| {
                offer.id.as_deref() == Some(&self.normal)
                    || offer.top.digest.as_str() == self.normal
                    || offer.names().contains(&self.normal)
            })
    }
}

/// A store that is not as it should be.
fn broken(store: &str, reason: impl Into<String>) -> ImageError {
    ImageError::PeerStore { store: store.to_owned(), reason: cut(&reason.into()) }
}
