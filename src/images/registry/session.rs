//! One pull's conversation: resolve a reference, fetch documents, open blobs, over all hosts in order.

use super::answer::refusal;
use super::auth::{Credentials, Secret};
use super::auth_files::AuthFiles;
use super::blob::Blob;
use super::client::{Answer, HostClient, Registry, Request};
use super::documents::{Documents, FREE, Place};
use super::fetch::{Fetcher, Response};
use super::hosts::{Host, hosts_for};
use super::pace::Pace;
use super::parts::PART;
use super::turn::Turn;
use crate::images::digest::Digest;
use crate::images::error::ImageError;
use crate::images::manifest::{ACCEPT, Descriptor, Document, MAX_MANIFEST, Node, choose, parse};
use crate::images::offload::blocking;
use crate::images::reference::{Reference, Target};
use bytes::Bytes;
use http::{Method, header};
use std::collections::VecDeque;
use std::sync::Arc;
use url::Url;

/// The hosts of one reference with their tokens.
#[derive(Debug)]
pub(crate) struct Session {
    reference: Reference,
    hosts: Vec<HostClient>,
    parts_from: Option<u64>,
}

/// How a document or blob is addressed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Referrers,
}

impl Session {
    /// Reads the hosts' configuration and sets up their clients; sends nothing yet.
    pub(crate) fn new(
        registry: &Arc<Registry>,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Self, ImageError> {
        let files = AuthFiles::read(&registry.auth_files)?;
        let peers: Arc<[Host]> =
            hosts_for(&registry.certs_dirs, &registry.registries_conf, reference)?.into();
        let fetcher = Fetcher::new(&registry.fetching, reference.registry());
        let hosts = peers
            .iter()
            .map(|host| {
                let secret = secret_for(host, reference, credentials, &files);
                HostClient::new((registry, &fetcher), host.clone(), &peers, reference.repository(), secret)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { reference: reference.clone(), hosts, parts_from: registry.parts_from })
    }

    /// A session with one host only.
    pub(super) fn with_host(
        registry: &Arc<Registry>,
        reference: &Reference,
        host: Host,
    ) -> Result<Self, ImageError> {
        let secret = secret_for(&host, reference, None, &AuthFiles::read(&registry.auth_files)?);
        let peers = Arc::from([host.clone()]);
        let fetcher = Fetcher::new(&registry.fetching, reference.registry());
        let hosts =
            vec![HostClient::new((registry, &fetcher), host, &peers, reference.repository(), secret)?];
        Ok(Self { reference: reference.clone(), hosts, parts_from: None })
    }

    /// Asks the first host whether it has the manifest: the HTTP status, the digest, and a refusal in words.
    pub(super) async fn head(&self) -> Result<(u16, Option<Digest>, Option<ImageError>), ImageError> {
        let (host, what) = (&self.hosts[0], self.reference.to_string());
        let (tail, known) = match self.reference.target() {
            Target::Tag(tag) => (tag.as_str(), None),
            Target::Digest(digest) => (digest.as_str(), Some(digest)),
        };
        let url = self.url(host, Kind::Manifest, tail);
        let request = Request { method: Method::HEAD, url, accept: ACCEPT, from: 0, end: None, what: &what };
        let answer = host.send(&request).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Ok((status.as_u16(), described(&answer.response, known).map(|d| d.digest), None));
        }
        Ok((status.as_u16(), None, Some(refusal(answer, &what, &host.name(), true).await)))
    }

    /// The image's registry, as its name says.
    pub(crate) fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// The hosts that are asked, in order.
    pub(crate) fn place(&self) -> String {
        self.hosts.iter().map(|client| client.base().as_str()).collect::<Vec<_>>().join(" ")
    }

    /// What the reference points to now: descriptor and, where it had to be fetched to know, the document.
    pub(crate) async fn resolve(&self) -> Result<(Descriptor, Option<Vec<u8>>), ImageError> {
        let what = self.reference.to_string();
        let (tail, known) = match self.reference.target() {
            Target::Tag(tag) => (tag.as_str(), None),
            Target::Digest(digest) => (digest.as_str(), Some(digest)),
        };
        // A digest may come from any host, since what it names is verified; a tag only from one that may resolve.
        let mut turn = self.turn(&what, |_, host| host.resolve || (known.is_some() && host.pull))?;
        loop {
            match self.resolve_at(&self.hosts[turn.host()], &what, tail, known).await {
                Ok(found) => return Ok(found),
                Err(error) => tokio::time::sleep(turn.failed(error)?).await,
            }
        }
    }

    async fn resolve_at(
        &self,
        host: &HostClient,
        what: &str,
        tail: &str,
        known: Option<&Digest>,
    ) -> Result<(Descriptor, Option<Vec<u8>>), ImageError> {
        let url = self.url(host, Kind::Manifest, tail);
        let request = Request { method: Method::HEAD, url, accept: ACCEPT, from: 0, end: None, what };
        let answer = host.send(&request).await?;
        if answer.response.status().is_success()
            && let Some(descriptor) = described(&answer.response, known)
        {
            return Ok((descriptor, None));
        }
        // A refusal is asked again by GET, which has a body with the reason; of a mirror that has it not, nobody asks why.
        if answer.response.status() == http::StatusCode::NOT_FOUND && host.host.mirror {
            return Err(refusal(answer, what, &host.name(), true).await);
        }
        let answer = host.send(&Request { method: Method::GET, ..request }).await?;
        let led_to = answer.led_to.clone();
        let body = self.body(host, answer, what, None, MAX_MANIFEST).await?;
        // By a tag any document may come, also one that only this node can reach; what is wrong with it would quote it.
        if let Some(place) = led_to.filter(|_| known.is_none()) {
            let (name, document) = (what.to_owned(), body.clone());
            if !blocking(move || Ok(is_for_this_node(&name, &document))).await? {
                return Err(ImageError::Protocol {
                    what: what.to_owned(),
                    host: host.name(),
                    reason: format!("{place}, where it redirects, has no manifest for it"),
                    registry: None,
                });
            }
        }
        let digest = known.map_or_else(|| Digest::sha256(&body), |d| d.of_same_kind(&body));
        verify(what, known.unwrap_or(&digest), &digest)?;
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        Ok((Descriptor::new(digest, size), Some(body)))
    }

    /// A manifest or index by digest, verified.
    pub(crate) async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        self.document(descriptor, Kind::Manifest, MAX_MANIFEST).await
    }

    /// A blob small enough for memory, verified.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        self.document(descriptor, Kind::Blob, limit).await
    }

    async fn document(&self, descriptor: &Descriptor, kind: Kind, limit: u64) -> Result<Vec<u8>, ImageError> {
        let what = descriptor.digest.as_str();
        if descriptor.size > limit {
            return Err(ImageError::Limit { what: what.to_owned(), limit, unit: "bytes" });
        }
        let mut turn = self.turn(what, |_, host| host.pull)?;
        loop {
            match self.document_at(&self.hosts[turn.host()], descriptor, kind, limit).await {
                Ok(body) => return Ok(body),
                Err(error) => tokio::time::sleep(turn.failed(error)?).await,
            }
        }
    }

    async fn document_at(
        &self,
        host: &HostClient,
        descriptor: &Descriptor,
        kind: Kind,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let what = descriptor.digest.as_str();
        let url = self.url(host, kind, what);
        let answer = host
            .send(&Request { method: Method::GET, url, accept: ACCEPT, from: 0, end: None, what })
            .await?;
        let body = self.body(host, answer, what, Some(descriptor.size), limit).await?;
        verify(what, &descriptor.digest, &descriptor.digest.of_same_kind(&body))?;
        Ok(body)
    }

    /// A blob to be streamed; nothing is sent yet, and the stream is not verified here.
    pub(crate) fn blob<'s>(self: &'s Arc<Self>, descriptor: &'s Descriptor) -> Blob<'s> {
        Blob::new(self, descriptor)
    }

    /// Hosts that may serve blobs.
    pub(super) fn blob_hosts(&self) -> impl Iterator<Item = usize> {
        self.hosts.iter().enumerate().filter(|(_, client)| client.host.pull).map(|(index, _)| index)
    }

    pub(super) fn host(&self, index: usize) -> &HostClient {
        &self.hosts[index]
    }

    /// The hosts to be asked for a blob, but for those given up.
    pub(super) fn blob_turn(&self, descriptor: &Descriptor, given_up: &[usize]) -> Result<Turn, ImageError> {
        self.turn(descriptor.digest.as_str(), |index, host| host.pull && !given_up.contains(&index))
    }

    /// A response whose body is the blob from byte `from` on, or from 0 (the host ignored the range).
    pub(super) async fn blob_response(
        &self,
        host: usize,
        descriptor: &Descriptor,
        from: u64,
        end: Option<u64>,
    ) -> Result<(Response, u64), ImageError> {
        let (host, what) = (&self.hosts[host], descriptor.digest.as_str());
        let url = self.url(host, Kind::Blob, what);
        let answer = host.send(&Request { method: Method::GET, url, accept: "*/*", from, end, what }).await?;
        match answer.response.status().as_u16() {
            200 => Ok((answer.response, 0)),
            206 if (from > 0 || end.is_some()) && range_start(&answer.response) == Some(from) => {
                Ok((answer.response, from))
            }
            206 => Err(ImageError::Protocol {
                what: what.to_owned(),
                host: host.name(),
                reason: format!("its Content-Range does not start at {from}"),
                registry: None,
            }),
            _ => Err(refusal(answer, what, &host.name(), false).await),
        }
    }

    /// The bytes of a blob from `from` to before `end`, not verified.
    pub(super) async fn blob_part(
        &self,
        host: usize,
        descriptor: &Descriptor,
        from: u64,
        end: u64,
    ) -> Result<VecDeque<Bytes>, ImageError> {
        let what = descriptor.digest.as_str();
        let (mut response, start) = self.blob_response(host, descriptor, from, Some(end)).await?;
        let host = &self.hosts[host];
        let wrong = || host.unavailable(what, format!("it did not send the bytes from {from} to {end}"));
        if start != from {
            return Err(wrong());
        }
        let (mut chunks, mut pace, mut left) = (VecDeque::new(), Pace::default(), end - from);
        while let Some(chunk) = pace.next(host, &mut response, what).await? {
            left = left.checked_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX)).ok_or_else(wrong)?;
            chunks.push_back(chunk);
        }
        if left == 0 { Ok(chunks) } else { Err(wrong()) }
    }

    /// Tells who asks: the repository, the hosts, and all that each may know the caller by.
    pub(crate) fn tell_caller(&self, tell: &mut dyn FnMut(&[u8])) {
        tell(self.reference.registry().as_bytes());
        tell(self.reference.repository().as_bytes());
        self.hosts.iter().for_each(|client| client.tell_caller(tell));
    }

    /// Whether a host lets this caller have a blob that it has served to this node before: it knows the bytes, so its word
    /// counts. False: the blob has to be fetched to know.
    pub(crate) async fn grants(&self, blob: &Descriptor, has_served: impl Fn(&str) -> bool) -> bool {
        for index in self.blob_hosts() {
            let client = &self.hosts[index];
            if has_served(client.base().as_str()) && self.grants_at(client, blob).await {
                return true;
            }
        }
        false
    }

    async fn grants_at(&self, host: &HostClient, blob: &Descriptor) -> bool {
        let what = blob.digest.as_str();
        let url = self.url(host, Kind::Blob, what);
        let head = Request { method: Method::HEAD, url, accept: "*/*", from: 0, end: None, what };
        let Ok(answer) = host.send(&head).await else { return false };
        let status = answer.response.status();
        if status.is_success() && length(&answer.response) == Some(blob.size) {
            return true;
        }
        // Storage services behind redirects may know GET only, and some registries have no HEAD.
        let no_head = status.is_success() || matches!(status.as_u16(), 400 | 405 | 501);
        if answer.led_to.is_none() && !no_head {
            return false;
        }
        let first = Request { method: Method::GET, end: Some(1), ..head };
        let Ok(answer) = host.send(&first).await else { return false };
        match answer.response.status().as_u16() {
            200 => length(&answer.response) == Some(blob.size),
            206 => range_total(&answer.response) == Some(blob.size),
            _ => false,
        }
    }

    /// Whether the blob is large enough to be fetched in parts side by side.
    pub(super) fn in_parts(&self, descriptor: &Descriptor) -> bool {
        self.parts_from.is_some_and(|from| descriptor.size >= from && descriptor.size > PART)
    }

    /// The usable hosts in order, to be asked one after the other.
    pub(super) fn turn(&self, what: &str, usable: impl Fn(usize, &Host) -> bool) -> Result<Turn, ImageError> {
        let mut hosts: Vec<usize> =
            (0..self.hosts.len()).filter(|index| usable(*index, &self.hosts[*index].host)).collect();
        let Some(last) = hosts.last().copied() else {
            return Err(ImageError::Unavailable {
                what: what.to_owned(),
                host: self.reference.registry().to_owned(),
                reason: "no configured host has the capability to serve it".into(),
                retry_after: None,
            });
        };
        // A dead mirror costs its connect timeout once a pull; the last host is what there is.
        hosts.retain(|index| *index == last || !self.hosts[*index].is_down());
        Ok(Turn::new(hosts))
    }

    pub(super) fn url(&self, host: &HostClient, kind: Kind, tail: &str) -> Url {
        let mut url = host.base().clone();
        let kind = match kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
            Kind::Referrers => "referrers",
        };
        // Repository, tag and digest have a grammar without anything that needs escaping.
        url.set_path(&format!("{}{}/{kind}/{tail}", host.base().path(), host.repository()));
        if host.host.mirror && host.host.repository.is_none() {
            url.query_pairs_mut().append_pair("ns", self.reference.registry());
        }
        url
    }

    pub(super) async fn body(
        &self,
        host: &HostClient,
        answer: Answer,
        what: &str,
        size: Option<u64>,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if !answer.response.status().is_success() {
            return Err(refusal(answer, what, &host.name(), false).await);
        }
        let mut response = answer.response;
        let mut body: Vec<u8> = Vec::new();
        let mut pace = Pace::default();
        let mut place = None;
        loop {
            let next = pace.next(host, &mut response, what);
            let chunk = match &place {
                None => next.await?,
                Some(Place { until, .. }) => tokio::time::timeout_at(*until, next)
                    .await
                    .map_err(|_| Documents::late(&host.name(), what))??,
            };
            let Some(chunk) = chunk else { break };
            let length = u64::try_from(body.len().saturating_add(chunk.len())).unwrap_or(u64::MAX);
            if let Some(expected) = size.filter(|s| length > *s) {
                return Err(ImageError::SizeMismatch {
                    what: what.to_owned(),
                    expected,
                    actual: length,
                    more: true,
                });
            }
            if length > limit {
                return Err(ImageError::Limit { what: what.to_owned(), limit, unit: "bytes" });
            }
            if place.is_none() && length > FREE {
                let whole = size.unwrap_or(limit).min(limit);
                place = Some(host.shared().documents.place(self.registry(), what, whole).await?);
                body.reserve_exact(usize::try_from(whole).unwrap_or(usize::MAX).saturating_sub(body.len()));
            }
            body.extend_from_slice(&chunk);
        }
        let actual = u64::try_from(body.len()).unwrap_or(u64::MAX);
        match size {
            Some(expected) if expected != actual => {
                Err(ImageError::SizeMismatch { what: what.to_owned(), expected, actual, more: false })
            }
            _ => Ok(body),
        }
    }
}

/// What the caller gave, where it is for this host; else what the node has for it.
fn secret_for(
    host: &Host,
    reference: &Reference,
    credentials: Option<&Credentials>,
    files: &AuthFiles,
) -> Secret {
    let registry = reference.registry();
    let given = credentials.map_or(Secret::Anonymous, |c| c.secret_for(registry, &host.base, host.mirror));
    if given != Secret::Anonymous {
        return given;
    }
    let own = host.is_registry(registry).then_some(registry);
    let repository = host.repository.as_deref().unwrap_or_else(|| reference.repository());
    files.find(&host.base, own, repository).map_or(Secret::Anonymous, Credentials::into_secret)
}

fn verify(what: &str, expected: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: what.to_owned(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

/// Whether a document is a manifest, or an index with something for this node. Blocking.
fn is_for_this_node(what: &str, body: &[u8]) -> bool {
    match parse(what, body) {
        Ok(Document::Index(entries)) => choose(what, &entries, Node::here()).is_ok(),
        Ok(Document::Manifest { .. }) => true,
        Err(_) => false,
    }
}

/// Digest and size out of a HEAD answer; None: it has to be fetched to know.
fn described(response: &Response, known: Option<&Digest>) -> Option<Descriptor> {
    let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let digest = text("docker-content-digest").and_then(|d| Digest::parse(d).ok());
    let digest = match (known, digest) {
        (Some(known), Some(told)) if *known != told => return None,
        (Some(known), _) => known.clone(),
        (None, told) => told?,
    };
    let size = length(response).filter(|s| *s > 0)?;
    Some(Descriptor::new(digest, size))
}

/// What the header says, also where no body follows.
fn length(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn range_total(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.rsplit('/').next()?.trim().parse().ok()
}

fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
