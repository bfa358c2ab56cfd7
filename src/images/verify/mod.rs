//! Whether the store still holds what was pulled, and its repair.
//!
//! Owns the order of checks and their reports. `check` examines a layer, `compare` its files, `repair` fetches again.
//! Never deletes what it cannot replace.

mod check;
mod compare;
mod found;
mod repair;

pub use found::{Damage, Depth, Finding, Subject, VerifyEvent, VerifySummary};

use super::artifact::Form;
use super::digest::Digest;
use super::error::ImageError;
use super::offload::blocking;
use super::state::{Entry, State};
use super::store::KEEP_UNREFERENCED;
use super::{Images, Shared};
use check::{Kind, Task, Verdict};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Whether damage is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Only reported.
    No,
    /// Damaged parts are fetched again from the image's origin, with the node's credentials.
    #[default]
    Yes,
}

/// A layer to be looked at.
struct Candidate {
    key: String,
    kind: Kind,
}

impl Images {
    /// Checks every layer and config blob of the named images, each once, or of all images and the layers that no image
    /// needs; one at a time, in threads of low priority. Fetches damaged or lost ones again and replaces them at once,
    /// also below running containers, which keep what they have.
    ///
    /// When the future is dropped the thread that reads stops at its next piece; a repair that has not taken its place is
    /// dropped.
    ///
    /// # Errors
    /// For a name that is unknown or ambiguous, and if the store itself cannot be read. A layer's fault is an event.
    pub async fn verify(
        &self,
        images: &[String],
        repair: Repair,
        mut events: impl FnMut(VerifyEvent) + Send,
    ) -> Result<VerifySummary, ImageError> {
        let inner = &self.inner;
        // Two at once would read, and repair, the same.
        let _one = inner.verifying.lock().await;
        let state = inner.store.state();
        let entries = if images.is_empty() {
            state.images.values().cloned().collect()
        } else {
            images.iter().map(|name| state.find(name).cloned()).collect::<Result<Vec<_>, _>>()?
        };
        let mut summary = VerifySummary::default();
        let mut seen = BTreeSet::new();
        for entry in entries.iter().filter(|e| seen.insert(e.image.id.as_str())) {
            let id = entry.image.id.as_str();
            let subject = Subject::Config(id.to_owned());
            let wanted = entry.record.artifact.as_ref().map_or(id, |config| config.digest.as_str());
            let outcome = check::config(inner, id, wanted).await;
            let verdict = summary.note(&subject, 0, outcome, &mut events);
            if verdict == Some(false) && repair == Repair::Yes {
                let repaired = repair::config(inner, id, wanted).await;
                summary.note_repair(subject, repaired, &mut events);
            }
        }
        for Candidate { key, kind } in candidates(&state, &entries, images.is_empty()) {
            self.layer(key, kind, repair, &mut summary, &mut events).await;
        }
        let store = Arc::clone(&inner.store);
        blocking(move || store.sweep(KEEP_UNREFERENCED)).await?;
        Ok(summary)
    }

    async fn layer(
        &self,
        key: String,
        kind: Kind,
        repair: Repair,
        summary: &mut VerifySummary,
        events: &mut (impl FnMut(VerifyEvent) + Send),
    ) {
        let inner: &Shared = &self.inner;
        let _lease = inner.store.lease(vec![key.clone()]);
        // Removed since.
        let Some(record) = inner.store.state().layers.get(&key).cloned() else { return };
        let subject = Subject::Layer(key.clone());
        events(VerifyEvent::Begun { subject: subject.clone(), bytes: record.bytes });
        let task = Task::new(inner, &key, kind.clone(), record.inodes);
        let verdict = summary.note(&subject, record.bytes, task.run().await, events);
        if verdict == Some(false) && repair == Repair::Yes {
            let repaired = match &kind {
                Kind::Tar(diff_id) | Kind::File { key: diff_id, .. } => repair::layer(inner, diff_id).await,
                Kind::Directories => repair::directories(inner, &key).await,
            };
            summary.note_repair(subject, repaired, events);
        }
    }
}

impl VerifySummary {
    /// Counts and reports; Some(false): damaged.
    fn note(
        &mut self,
        subject: &Subject,
        bytes: u64,
        outcome: Result<Verdict, ImageError>,
        events: &mut impl FnMut(VerifyEvent),
    ) -> Option<bool> {
        self.bytes = self.bytes.saturating_add(bytes);
        let subject = subject.clone();
        match outcome {
            Ok(Verdict::Good(depth)) => {
                self.good += 1;
                self.weak += u64::from(depth == Depth::InodesOnly);
                events(VerifyEvent::Good { subject, bytes, depth });
                Some(true)
            }
            Ok(Verdict::Damaged(findings)) => {
                self.damaged += 1;
                events(VerifyEvent::Damaged { subject, findings });
                Some(false)
            }
            Err(error) => {
                self.unknown += 1;
                events(VerifyEvent::Unknown { subject, error });
                None
            }
        }
    }

    fn note_repair(
        &mut self,
        subject: Subject,
        repaired: Result<(), ImageError>,
        events: &mut impl FnMut(VerifyEvent),
    ) {
        match repaired {
            Ok(()) => {
                // Log: By `podwright images verify`.
                tracing::info!(%subject, "repaired");
                self.repaired += 1;
                events(VerifyEvent::Repaired { subject });
            }
            Err(error) => {
                // Log: `podwright images verify` found damage that it could not repair.
                // Do: Repeat it when the registry answers again.
                tracing::warn!(%subject, %error, "damaged, and the repair failed");
                events(VerifyEvent::RepairFailed { subject, error });
            }
        }
    }
}

/// Layers in order of repair: a directories layer is made from those below it.
fn candidates(state: &State, entries: &[Entry], all: bool) -> Vec<Candidate> {
    let mut seen = BTreeSet::new();
    let (mut tars, mut directories) = (Vec::new(), Vec::new());
    for entry in entries {
        for (diff_id, blob) in entry.record.diff_ids.iter().zip(&entry.record.blobs) {
            if seen.insert(diff_id.hex().to_owned()) {
                let kind = match Form::of(diff_id, blob) {
                    Form::Tar => Kind::Tar(diff_id.clone()),
                    Form::File(path) => Kind::File { key: diff_id.clone(), path, blob: blob.clone() },
                };
                tars.push(Candidate { key: diff_id.hex().to_owned(), kind });
            }
        }
        if let Some(key) = &entry.record.directories
            && seen.insert(key.clone())
        {
            directories.push(Candidate { key: key.clone(), kind: Kind::Directories });
        }
    }
    if all {
        // Those of failed pulls. A directories layer among them has no recipe: its inodes are counted.
        let mut rest: Vec<&String> = state.layers.keys().filter(|key| !seen.contains(*key)).collect();
        rest.sort();
        for key in rest {
            let algorithm = if key.len() == 128 { "sha512" } else { "sha256" };
            if let Ok(diff_id) = Digest::parse(&format!("{algorithm}:{key}")) {
                tars.push(Candidate { key: key.clone(), kind: Kind::Tar(diff_id) });
            }
        }
    }
    tars.extend(directories);
    tars
}
