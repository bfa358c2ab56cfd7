//! A blob as a stream that survives a broken connection and a failing host: it is asked for again from where it stands.

use super::client::HostClient;
use super::fetch::Response;
use super::pace::Pace;
use super::parts::{PART, Parts};
use super::session::Session;
use super::turn::Turn;
use crate::images::error::ImageError;
use crate::images::manifest::Descriptor;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Breaks at one host in a row, without [`PROGRESS`] between them, after which it is given up.
const MAX_BREAKS: u32 = 3;
/// Bytes that count as progress.
const PROGRESS: u64 = 1 << 20;

/// A blob on its way.
#[derive(Debug)]
pub(crate) struct Blob<'s> {
    session: &'s Arc<Session>,
    descriptor: &'s Descriptor,
    /// Hosts still to be asked for the next stream.
    turn: Option<Turn>,
    stream: Option<Stream>,
    /// What follows the stream, when it is the first of several parts.
    parts: Option<Parts>,
    /// Whether a stream from the start may be the first of several parts.
    may_split: bool,
    /// Bytes handed out.
    at: u64,
    breaks: u32,
    last_break: u64,
    /// How often a host was asked again, or the next one.
    asked_again: u32,
    /// Hosts that are not asked for this blob any more.
    given_up: Vec<usize>,
    /// Hosts of the bytes handed out, in order.
    served: Vec<usize>,
}

#[derive(Debug)]
struct Stream {
    host: usize,
    response: Response,
    pace: Pace,
    /// Bytes to drop: the host began before the wanted one.
    skip: u64,
}

impl<'s> Blob<'s> {
    pub(super) fn new(session: &'s Arc<Session>, descriptor: &'s Descriptor) -> Self {
        Self {
            session,
            descriptor,
            turn: None,
            stream: None,
            parts: None,
            may_split: session.in_parts(descriptor),
            at: 0,
            breaks: 0,
            last_break: 0,
            asked_again: 0,
            given_up: Vec::new(),
            served: Vec::new(),
        }
    }

    /// Asks the hosts until one serves the blob from where it stands. Some: to be called again after this time, in which no
    /// connection is held.
    pub(crate) async fn open(&mut self) -> Result<Option<Duration>, ImageError> {
        loop {
            let mut turn = match self.turn.take() {
                Some(turn) => turn,
                None => self.session.blob_turn(self.descriptor, &self.given_up)?,
            };
            let host = turn.host();
            let split = self.may_split && self.at == 0;
            let end = split.then_some(PART);
            match self.session.blob_response(host, self.descriptor, self.at, end).await {
                Ok((response, start)) => {
                    // A 200 is the whole blob.
                    if split && response.status() == http::StatusCode::PARTIAL_CONTENT {
                        self.parts = Some(Parts::start(self.session, self.descriptor, host));
                    }
                    let skip = self.at - start;
                    self.stream = Some(Stream { host, response, pace: Pace::default(), skip });
                    return Ok(None);
                }
                Err(error) => {
                    let wait = turn.failed(error)?;
                    self.asked_again += 1;
                    self.turn = Some(turn);
                    if !wait.is_zero() {
                        return Ok(Some(wait));
                    }
                }
            }
        }
    }

    /// The host that serves the stream; empty: none does.
    pub(crate) fn host(&self) -> String {
        self.stream.as_ref().map(|stream| self.session.host(stream.host).name()).unwrap_or_default()
    }

    /// Where all of the bytes came from; empty: several hosts.
    pub(crate) fn served_by(&self) -> String {
        match self.served.as_slice() {
            [one] => self.session.host(*one).base().to_string(),
            _ => String::new(),
        }
    }

    /// How often a host was asked again, or the next one.
    pub(crate) fn asked_again(&self) -> u32 {
        self.asked_again
    }

    /// The next bytes; None at the end. Never more than the descriptor's size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            if let (None, Some(parts)) = (&self.stream, &mut self.parts) {
                let (index, result) = (parts.host, parts.next().await);
                match result {
                    Ok(Some(chunk)) => return self.hand_out(index, chunk).map(Some),
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        tracing::debug!(blob = %self.descriptor.digest, at = self.at, %error, "parts failed, going on as one stream");
                        self.whole();
                    }
                }
            }
            let Some(stream) = &mut self.stream else {
                // In mid-layer the slot is kept: the pipeline's threads and memory are.
                while let Some(wait) = self.open().await? {
                    tokio::time::sleep(wait).await;
                }
                continue;
            };
            let index = stream.host;
            let host: &HostClient = self.session.host(index);
            let what = self.descriptor.digest.as_str();
            let trouble = match stream.pace.next(host, &mut stream.response, what).await {
                Ok(Some(mut chunk)) => {
                    let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                    let drop = stream.skip.min(length);
                    stream.skip -= drop;
                    let _ = chunk.split_to(usize::try_from(drop).unwrap_or(chunk.len()));
                    if chunk.is_empty() {
                        continue;
                    }
                    return self.hand_out(index, chunk).map(Some);
                }
                Ok(None) if self.parts.is_some() && self.at == PART => {
                    self.stream = None;
                    continue;
                }
                // Also when the connection breaks behind the last byte.
                _ if self.at == self.descriptor.size => return Ok(None),
                Ok(None) => self.wrong_size(false),
                Err(error) => error,
            };
            self.stream = None;
            self.whole();
            self.go_on(index, trouble)?;
        }
    }

    fn hand_out(&mut self, host: usize, chunk: Bytes) -> Result<Bytes, ImageError> {
        if self.served.last() != Some(&host) {
            self.served.push(host);
        }
        self.at += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        // The first of several parts ends where the next one starts; this host sends all the same.
        if self.at > PART && self.parts.is_some() && self.stream.is_some() {
            self.whole();
        }
        if self.at > self.descriptor.size {
            return Err(self.wrong_size(true));
        }
        Ok(chunk)
    }

    /// No parts any more, nor again for this blob.
    fn whole(&mut self) {
        self.parts = None;
        self.may_split = false;
    }

    /// Decides what follows trouble in a stream: the same host again, another one, or the error.
    fn go_on(&mut self, host: usize, error: ImageError) -> Result<(), ImageError> {
        let progress = self.at.saturating_sub(self.last_break) >= PROGRESS;
        self.last_break = self.at;
        self.breaks = if progress { 1 } else { self.breaks + 1 };
        let again = match &error {
            ImageError::Unavailable { .. } => self.breaks <= MAX_BREAKS,
            // Each has taken the whole progress time: a host with a stand-in is left at once, one without gets another
            // connection only if the last one brought something.
            ImageError::Stalled { .. } | ImageError::TooSlow { .. } => progress && !self.has_other(host),
            ImageError::SizeMismatch { .. } => false,
            _ => return Err(error),
        };
        self.asked_again += 1;
        if again {
            tracing::debug!(blob = %self.descriptor.digest, at = self.at, %error, "blob stream broke, asking again");
        } else if self.has_other(host) {
            tracing::debug!(blob = %self.descriptor.digest, at = self.at, %error, "blob goes on at another host");
            self.given_up.push(host);
            self.breaks = 0;
        } else {
            return Err(error);
        }
        Ok(())
    }

    fn has_other(&self, host: usize) -> bool {
        self.session.blob_hosts().any(|other| other != host && !self.given_up.contains(&other))
    }

    /// Whether the layer may be had from the start again after `error`, from a host that is not to blame for it. Bytes that
    /// were not verified in the end may have been anything: a bad stream, a bomb, a hostile entry.
    pub(crate) fn begin_again(&mut self, error: &ImageError) -> bool {
        let of_content = matches!(
            error,
            ImageError::DigestMismatch { .. }
                | ImageError::SizeMismatch { .. }
                | ImageError::CorruptLayer { .. }
                | ImageError::HostileEntry { .. }
                | ImageError::Limit { .. }
        );
        // When several hosts had a part in it, the last has not had its chance alone.
        let blamed = match self.served.as_slice() {
            [] => return false,
            [one] => vec![*one],
            [several @ .., last] => several.iter().copied().filter(|host| host != last).collect(),
        };
        if !of_content {
            return false;
        }
        self.given_up.extend(blamed);
        self.served.clear();
        (self.stream, self.turn) = (None, None);
        self.whole();
        (self.at, self.breaks, self.last_break) = (0, 0, 0);
        let left = self.session.blob_hosts().any(|host| !self.given_up.contains(&host));
        if left {
            // Log: A mirror sent wrong bytes or none.
            // Do: If it is frequent, check the mirror.
            tracing::warn!(blob = %self.descriptor.digest, %error, "layer is fetched again from another host");
        }
        left
    }

    fn wrong_size(&self, more: bool) -> ImageError {
        let what = self.descriptor.digest.to_string();
        ImageError::SizeMismatch { what, expected: self.descriptor.size, actual: self.at, more }
    }
}
