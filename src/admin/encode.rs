//! The image domain's types into answers. Pure.

use super::proto as pb;
use crate::images::{
    Collected, Depth, Details, Endpoint, Endpoints, ImageKind, Imported, LayerProgress, LayerState, LayerUse,
    Loaded, Probe, PullProgress, Removal, Stored, Subject, VerifyEvent, VerifySummary,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| text(path)).collect()
}

fn layer(layer: &LayerUse) -> pb::Layer {
    pb::Layer { diff_id: layer.diff_id.clone(), bytes: layer.bytes, images: count(layer.images) }
}

pub(super) fn stored(stored: &Stored) -> pb::ListResponse {
    pb::ListResponse {
        images: stored.images.iter().map(image).collect(),
        store_bytes: stored.layer_bytes,
        store_layers: count(stored.layers),
    }
}

fn image(details: &Details) -> pb::Image {
    let image = &details.image;
    pb::Image {
        id: image.id.to_string(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        compressed_bytes: image.size,
        own_bytes: details.own_bytes(),
        shared_bytes: details.shared_bytes(),
        layers: details.layers.iter().map(layer).collect(),
        created: details.created.clone().unwrap_or_default(),
        pinned: image.pinned,
        containers: count(details.containers),
        manifest_digest: image.manifest_digest.clone(),
        artifact_type: match &image.kind {
            ImageKind::Artifact { config_type } => config_type.clone(),
            ImageKind::Image | ImageKind::Checkpoint => String::new(),
        },
    }
}

pub(super) fn removal(removal: Removal) -> pb::RemoveResponse {
    pb::RemoveResponse {
        id: removal.id.to_string(),
        names: removal.names,
        containers: count(removal.containers),
        freed_bytes: removal.freed_bytes,
    }
}

fn loaded_image(loaded: Loaded) -> pb::LoadedImage {
    pb::LoadedImage { id: loaded.id.to_string(), names: loaded.names }
}

pub(super) fn loaded(loaded: Vec<Loaded>) -> pb::LoadResponse {
    pb::LoadResponse { images: loaded.into_iter().map(loaded_image).collect() }
}

pub(super) fn imported(imported: Vec<Imported>) -> pb::ImportFromResponse {
    let image = |imported: Imported| {
        let (image, error) = match imported.result {
            Ok(loaded) => (Some(loaded_image(loaded)), String::new()),
            Err(error) => (None, error.to_string()),
        };
        pb::ImportedImage { name: imported.name, image, error }
    };
    pb::ImportFromResponse { images: imported.into_iter().map(image).collect() }
}

pub(super) fn collected(collected: Collected) -> pb::CollectResponse {
    let freed_bytes = collected.freed_bytes();
    pb::CollectResponse {
        images: collected
            .images
            .into_iter()
            .map(|image| pb::CollectedImage { id: image.id.to_string(), names: image.names })
            .collect(),
        layers: collected.layers.iter().map(layer).collect(),
        freed_bytes,
    }
}

pub(super) fn checked(event: &VerifyEvent) -> pb::Checked {
    use pb::checked::Outcome;
    let of = |subject: &Subject, outcome: Outcome| pb::Checked {
        subject: subject.to_string(),
        outcome: outcome.into(),
        ..Default::default()
    };
    match event {
        VerifyEvent::Begun { subject, bytes } => pb::Checked { bytes: *bytes, ..of(subject, Outcome::Begun) },
        VerifyEvent::Good { subject, bytes, depth } => pb::Checked {
            bytes: *bytes,
            inodes_only: *depth == Depth::InodesOnly,
            ..of(subject, Outcome::Good)
        },
        VerifyEvent::Damaged { subject, findings } => pb::Checked {
            findings: findings.iter().map(ToString::to_string).collect(),
            ..of(subject, Outcome::Damaged)
        },
        VerifyEvent::Unknown { subject, error } => {
            pb::Checked { error: error.to_string(), ..of(subject, Outcome::Unknown) }
        }
        VerifyEvent::Repaired { subject } => of(subject, Outcome::Repaired),
        VerifyEvent::RepairFailed { subject, error } => {
            pb::Checked { error: error.to_string(), ..of(subject, Outcome::RepairFailed) }
        }
    }
}

pub(super) fn verified(summary: &VerifySummary) -> pb::VerifySummary {
    pb::VerifySummary {
        good: summary.good,
        inodes_only: summary.weak,
        damaged: summary.damaged,
        repaired: summary.repaired,
        unknown: summary.unknown,
        bytes: summary.bytes,
    }
}

pub(super) fn progress(progress: &PullProgress) -> pb::Progress {
    let layer = |layer: &Arc<LayerProgress>| {
        let state = match layer.state() {
            LayerState::Waiting => pb::layer_progress::State::Waiting,
            LayerState::Downloading => pb::layer_progress::State::Downloading,
            LayerState::Unpacked => pb::layer_progress::State::Unpacked,
            LayerState::Present => pb::layer_progress::State::Present,
            LayerState::Failed => pb::layer_progress::State::Failed,
        };
        pb::LayerProgress {
            digest: layer.digest().to_owned(),
            size: layer.size(),
            received: layer.received(),
            state: state.into(),
            host: layer.host(),
            retries: layer.retries(),
        }
    };
    pb::Progress { layers: progress.layers().unwrap_or_default().iter().map(layer).collect() }
}

pub(super) fn endpoints(endpoints: Endpoints) -> pb::EndpointsResponse {
    let looked_at = |at: crate::images::LookedAt| pb::LookedAt { path: text(&at.path), present: at.present };
    pb::EndpointsResponse {
        reference: endpoints.reference,
        endpoints: endpoints.endpoints.into_iter().map(|(e, probe)| endpoint(e, probe)).collect(),
        looked_at: endpoints.looked_at.into_iter().map(looked_at).collect(),
    }
}

fn endpoint(endpoint: Endpoint, probe: Option<Probe>) -> pb::Endpoint {
    let (auth_file, auth_entry) = endpoint.auth.map(|(file, entry)| (text(&file), entry)).unwrap_or_default();
    pb::Endpoint {
        url: endpoint.url,
        repository: endpoint.repository,
        mirror: endpoint.mirror,
        resolve: endpoint.resolve,
        pull: endpoint.pull,
        configured_in: endpoint.configured_in.as_deref().map(text).unwrap_or_default(),
        ca_files: texts(&endpoint.ca_files),
        client_files: texts(&endpoint.client_files),
        skip_verify: endpoint.skip_verify,
        headers: endpoint.headers,
        auth_file,
        auth_entry,
        auth_note: endpoint.auth_notes.join("; "),
        proxy: endpoint.proxy.unwrap_or_default(),
        probe: probe.map(|probe| pb::ProbeResult {
            status: probe.status.map(u32::from).unwrap_or_default(),
            milliseconds: u64::try_from(probe.took.as_millis()).unwrap_or(u64::MAX),
            digest: probe.digest.unwrap_or_default(),
            error: probe.error.map(|e| e.to_string()).unwrap_or_default(),
        }),
    }
}
