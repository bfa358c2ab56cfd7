//! One pull's conversation: resolve a reference, fetch documents, open blobs, over all hosts in order.

use super::answer::refusal;
use super::auth::{Credentials, Secret};
use super::auth_files::AuthFiles;
use super::blob::Blob;
use super::client::{HostClient, Registry, Request, body_error};
use super::hosts::{Host, hosts_for};
use crate::images::digest::Digest;
use crate::images::error::ImageError;
use crate::images::manifest::{ACCEPT, Descriptor, MAX_MANIFEST};
use crate::images::reference::{Reference, Target};
use http::{Method, header};
use reqwest::{Response, Url};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tries of one request at the last host; the hosts before it are left at the first failure.
const MAX_TRIES: u32 = 3;
/// Wait before the second try, doubled for each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The hosts of one reference with their tokens.
#[derive(Debug)]
pub(crate) struct Session {
    reference: Reference,
    hosts: Vec<HostClient>,
}

/// How a document or blob is addressed.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Manifest,
    Blob,
}

impl Session {
    /// Reads the hosts' configuration and sets up their clients; sends nothing yet.
    pub(crate) fn new(
        registry: &Arc<Registry>,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Self, ImageError> {
        let files = AuthFiles::read(&registry.auth_files)?;
        let hosts = hosts_for(&registry.certs_dirs, &registry.registries_conf, reference)?
            .into_iter()
            .map(|host| {
                let secret = secret_for(&host, reference, credentials, &files);
                HostClient::new(registry, host, reference.repository(), secret)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { reference: reference.clone(), hosts })
    }

    /// What the reference points to now: descriptor and, where it had to be fetched to know, the document.
    pub(crate) async fn resolve(&self) -> Result<(Descriptor, Option<Vec<u8>>), ImageError> {
        let what = self.reference.to_string();
        let (tail, known) = match self.reference.target() {
            Target::Tag(tag) => (tag.as_str(), None),
            Target::Digest(digest) => (digest.as_str(), Some(digest)),
        };
        // A digest may come from any host, since what it names is verified; a tag only from one that may resolve.
        let mut turn = self.turn(&what, |host| host.resolve || (known.is_some() && host.pull))?;
        loop {
            match self.resolve_at(&self.hosts[turn.host()], &what, tail, known).await {
                Ok(found) => return Ok(found),
                Err(error) => turn.failed(error).await?,
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
        let request = Request { method: Method::HEAD, url, accept: ACCEPT, from: 0, what };
        let response = host.send(&request).await?;
        if response.status().is_success()
            && let Some(descriptor) = described(&response, known)
        {
            return Ok((descriptor, None));
        }
        // A refusal is asked again by GET, which has a body with the reason; of a mirror that has it not, nobody asks why.
        if response.status() == http::StatusCode::NOT_FOUND && host.host.mirror {
            return Err(refusal(response, what, &host.name(), true).await);
        }
        let response = host.send(&Request { method: Method::GET, ..request }).await?;
        let body = self.body(host, response, what, None, MAX_MANIFEST).await?;
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
        let mut turn = self.turn(what, |host| host.pull)?;
        loop {
            match self.document_at(&self.hosts[turn.host()], descriptor, kind, limit).await {
                Ok(body) => return Ok(body),
                Err(error) => turn.failed(error).await?,
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
        let response =
            host.send(&Request { method: Method::GET, url, accept: ACCEPT, from: 0, what }).await?;
        let body = self.body(host, response, what, Some(descriptor.size), limit).await?;
        verify(what, &descriptor.digest, &descriptor.digest.of_same_kind(&body))?;
        Ok(body)
    }

    /// Opens a blob; the stream is not verified here.
    pub(crate) async fn blob<'s>(&'s self, descriptor: &'s Descriptor) -> Result<Blob<'s>, ImageError> {
        Blob::open(self, descriptor).await
    }

    /// A response whose body is the blob from byte `from` on, or from 0 (the host ignored the range).
    pub(super) async fn blob_response<'s>(
        &'s self,
        descriptor: &Descriptor,
        from: u64,
    ) -> Result<(&'s HostClient, Response, u64), ImageError> {
        let what = descriptor.digest.as_str();
        let mut turn = self.turn(what, |host| host.pull)?;
        loop {
            let host = &self.hosts[turn.host()];
            match self.blob_response_at(host, what, from).await {
                Ok((response, start)) => return Ok((host, response, start)),
                Err(error) => turn.failed(error).await?,
            }
        }
    }

    async fn blob_response_at(
        &self,
        host: &HostClient,
        what: &str,
        from: u64,
    ) -> Result<(Response, u64), ImageError> {
        let url = self.url(host, Kind::Blob, what);
        let response = host.send(&Request { method: Method::GET, url, accept: "*/*", from, what }).await?;
        match response.status().as_u16() {
            200 => Ok((response, 0)),
            206 if from > 0 && range_start(&response) == Some(from) => Ok((response, from)),
            206 => Err(ImageError::Protocol {
                what: what.to_owned(),
                host: host.name(),
                reason: format!("its Content-Range does not start at {from}"),
                registry: None,
            }),
            _ => Err(refusal(response, what, &host.name(), false).await),
        }
    }

    /// The usable hosts in order, to be asked one after the other.
    fn turn(&self, what: &str, usable: impl Fn(&Host) -> bool) -> Result<Turn, ImageError> {
        let hosts: Vec<(usize, String)> = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, client)| usable(&client.host))
            .map(|(index, client)| (index, client.name()))
            .collect();
        if hosts.is_empty() {
            return Err(ImageError::Unavailable {
                what: what.to_owned(),
                host: self.reference.registry().to_owned(),
                reason: "no configured host has the capability to serve it".into(),
            });
        }
        Ok(Turn { hosts, position: 0, attempt: 1, worst: None })
    }

    fn url(&self, host: &HostClient, kind: Kind, tail: &str) -> Url {
        let mut url = host.base().clone();
        let kind = match kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
        };
        // Repository, tag and digest have a grammar without anything that needs escaping.
        url.set_path(&format!("{}{}/{kind}/{tail}", host.base().path(), host.repository()));
        if host.host.mirror && host.host.repository.is_none() {
            url.query_pairs_mut().append_pair("ns", self.reference.registry());
        }
        url
    }

    async fn body(
        &self,
        host: &HostClient,
        mut response: Response,
        what: &str,
        size: Option<u64>,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if !response.status().is_success() {
            return Err(refusal(response, what, &host.name(), false).await);
        }
        let mut body = Vec::new();
        loop {
            let chunk = next_chunk(host, &mut response, what).await?;
            let Some(chunk) = chunk else { break };
            body.extend_from_slice(&chunk);
            let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
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

/// Whose turn it is. Any failure leads to the next host; the last one is tried again while its failure may pass. The most
/// telling failure is returned.
#[derive(Debug)]
struct Turn {
    hosts: Vec<(usize, String)>,
    position: usize,
    attempt: u32,
    worst: Option<ImageError>,
}

impl Turn {
    fn host(&self) -> usize {
        self.hosts[self.position].0
    }

    /// Moves on after a failure, or gives it up.
    async fn failed(&mut self, error: ImageError) -> Result<(), ImageError> {
        tracing::debug!(host = self.hosts[self.position].1, attempt = self.attempt, %error, "registry request failed");
        let last = self.position + 1 == self.hosts.len();
        let again = last && self.attempt < MAX_TRIES && may_pass(&error);
        let wait = wait(self.attempt, &error);
        let error = match self.worst.take() {
            Some(worst) if worst.weight() > error.weight() => worst,
            _ => error,
        };
        if again {
            self.attempt += 1;
            self.worst = Some(error);
            tokio::time::sleep(wait).await;
        } else if last {
            return Err(error);
        } else {
            self.position += 1;
            self.worst = Some(error);
        }
        Ok(())
    }
}

/// A stall has used its time already; the caller's own retry is better.
fn may_pass(error: &ImageError) -> bool {
    error.is_transient() && !matches!(error, ImageError::Stalled { .. })
}

fn wait(attempt: u32, error: &ImageError) -> Duration {
    if let ImageError::RateLimited { retry_after: Some(after), .. } = error {
        return *after;
    }
    let base = FIRST_WAIT.saturating_mul(1 << (attempt - 1).min(8));
    // Clocks of nodes differ in their nanoseconds: enough spread against a herd.
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    base + base.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

/// The next piece of a body, or a stall.
pub(super) async fn next_chunk(
    host: &HostClient,
    response: &mut Response,
    what: &str,
) -> Result<Option<bytes::Bytes>, ImageError> {
    tokio::time::timeout(host.progress_timeout(), response.chunk())
        .await
        .map_err(|_| host.stalled(what))?
        .map_err(|e| host.unavailable(what, body_error(&e)))
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

/// Digest and size out of a HEAD answer; None: it has to be fetched to know.
fn described(response: &Response, known: Option<&Digest>) -> Option<Descriptor> {
    let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let digest = text("docker-content-digest").and_then(|d| Digest::parse(d).ok());
    let digest = match (known, digest) {
        (Some(known), Some(told)) if *known != told => return None,
        (Some(known), _) => known.clone(),
        (None, told) => told?,
    };
    let size = text(header::CONTENT_LENGTH.as_str())?.parse().ok().filter(|s| *s > 0)?;
    Some(Descriptor::new(digest, size))
}

fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
