//! A blob as a stream that survives a broken connection: it is asked for again from where it stands.

use super::client::HostClient;
use super::session::{Session, next_chunk};
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use bytes::Bytes;
use reqwest::Response;

/// Breaks in a row, without this much progress between them, after which the stream fails.
const MAX_BREAKS: u32 = 3;
/// Bytes that count as progress.
const PROGRESS: u64 = 1 << 20;

/// An open blob.
#[derive(Debug)]
pub(crate) struct Blob<'s> {
    session: &'s Session,
    descriptor: &'s Descriptor,
    host: &'s HostClient,
    response: Response,
    /// Bytes handed out.
    at: u64,
    /// Bytes to drop: the host began before `at`.
    skip: u64,
    breaks: u32,
    last_break: u64,
}

impl<'s> Blob<'s> {
    pub(super) async fn open(session: &'s Session, descriptor: &'s Descriptor) -> Result<Self, ImageError> {
        let (host, response, _) = session.blob_response(descriptor, 0).await?;
        Ok(Self { session, descriptor, host, response, at: 0, skip: 0, breaks: 0, last_break: 0 })
    }

    /// The next bytes; None at the end. Never more than the descriptor's size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            let what = self.descriptor.digest.as_str();
            let error = match next_chunk(self.host, &mut self.response, what).await {
                Ok(None) if self.skip == 0 && self.at == self.descriptor.size => return Ok(None),
                Ok(None) => return Err(self.wrong_size(self.at, false)),
                Ok(Some(mut chunk)) => {
                    let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                    let drop = self.skip.min(length);
                    self.skip -= drop;
                    let _ = chunk.split_to(usize::try_from(drop).unwrap_or(chunk.len()));
                    self.at += length - drop;
                    if self.at > self.descriptor.size {
                        return Err(self.wrong_size(self.at, true));
                    }
                    if chunk.is_empty() {
                        continue;
                    }
                    return Ok(Some(chunk));
                }
                Err(error @ ImageError::Unavailable { .. }) => error,
                Err(error) => return Err(error),
            };
            if self.at.saturating_sub(self.last_break) >= PROGRESS {
                self.breaks = 0;
            }
            self.breaks += 1;
            self.last_break = self.at;
            if self.breaks > MAX_BREAKS {
                return Err(error);
            }
            tracing::debug!(blob = what, at = self.at, %error, "blob stream broke, asking again");
            let (host, response, start) = self.session.blob_response(self.descriptor, self.at).await?;
            (self.host, self.response, self.skip) = (host, response, self.at - start);
        }
    }

    fn wrong_size(&self, actual: u64, more: bool) -> ImageError {
        let what = self.descriptor.digest.to_string();
        ImageError::SizeMismatch { what, expected: self.descriptor.size, actual, more }
    }
}
