//! Attachments of an image at its registry: documents by a tag derived from the digest, and referrers.

use super::answer::refusal;
use super::client::{HostClient, Request};
use super::session::{Kind, Session};
use crate::images::digest::Digest;
use crate::images::error::ImageError;
use crate::images::manifest::{ACCEPT, MAX_MANIFEST};
use http::{Method, StatusCode};

impl Session {
    /// A manifest or index of the image's repository by a tag; None if every host denies having one. Also asks mirrors
    /// that may not resolve, so the result is unverified: the caller must verify the content.
    pub(crate) async fn attached(&self, tag: &str) -> Result<Option<Vec<u8>>, ImageError> {
        self.document_named(Kind::Manifest, tag).await
    }

    /// The index of referrers of `digest` (distribution-spec 1.1, "Listing Referrers"), from the API or, if the
    /// registry has none, from its fallback tag. Of a paged list only the first page, which has room for hundreds.
    pub(crate) async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
        match self.document_named(Kind::Referrers, digest.as_str()).await? {
            Some(index) => Ok(Some(index)),
            None => self.attached(&digest.as_str().replace(':', "-")).await,
        }
    }

    async fn document_named(&self, kind: Kind, tail: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let mut turn = self.turn(tail, |_, host| host.pull || host.resolve)?;
        loop {
            match self.named_at(self.host(turn.host()), kind, tail).await {
                Ok(body) => return Ok(Some(body)),
                Err(error) => match turn.failed(error) {
                    Ok(wait) => tokio::time::sleep(wait).await,
                    Err(ImageError::NotAtRegistry { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    async fn named_at(&self, host: &HostClient, kind: Kind, tail: &str) -> Result<Vec<u8>, ImageError> {
        let url = self.url(host, kind, tail);
        let request = Request { method: Method::GET, url, accept: ACCEPT, from: 0, end: None, what: tail };
        let answer = host.send(&request).await?;
        let lacks_api = matches!(
            answer.response.status(),
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_ACCEPTABLE
        );
        if matches!(kind, Kind::Referrers) && lacks_api {
            // Registries older than the API answer its path with one of these.
            let (what, host) = (tail.to_owned(), host.name());
            return Err(ImageError::NotAtRegistry { what, host, registry: None });
        }
        if !answer.response.status().is_success() {
            return Err(refusal(answer, tail, &host.name(), false).await);
        }
        self.body(host, answer, tail, None, MAX_MANIFEST).await
    }
}
