//! Ending and removing what no record knows. It cleans only below our own directories, and only names that we would give.

use super::adopt::ANSWER_WITHIN;
use super::bundle;
use super::files::PodFiles;
use super::node::Node;
use super::private::remove_tree;
use super::run;
use crate::host::monitor::{self, Monitor};
use crate::host::oci::Runtime;
use crate::host::remove;
use crate::model::{ContainerId, SandboxId, SandboxSpec};
use crate::sandbox::offload::blocking;
use crate::sandbox::words::error::SandboxError;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ends what the monitor runs without a record, since nobody could ever stop it.
pub(in crate::sandbox) async fn end_stranger(
    node: &Node,
    pod: &SandboxSpec,
    runtime: &Runtime,
    monitor: Option<&Monitor>,
    id: &str,
) {
    // Log: At start: an earlier daemon had begun it and not recorded it.
    // Do: Nothing.
    tracing::warn!(sandbox = %pod.id, container = %id, "ending a container that no record knows");
    let (Some(monitor), Ok(id)) = (monitor, ContainerId::parse(id)) else { return };
    let ended = match runtime.delete(id.as_str()).await {
        Ok(()) => match node.cgroups.leaf(pod, &id) {
            Ok(leaf) => {
                let cgroups = node.cgroups.kernel.clone();
                blocking(move |off| Ok(cgroups.remove(off, &leaf)?)).await
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    };
    report(&node.places.bundle(&id), ended);
    run::forget(monitor, &id).await;
}

/// Removes directories, mounts and monitors that no record knows.
pub(in crate::sandbox) async fn sweep(node: &Arc<Node>, known: &HashSet<String>) {
    let pods = strangers(&node.config.state.join("pods"), known);
    if !pods.is_empty() {
        // While their network namespaces are still there: plugins leave their rules behind without one.
        let valid: Vec<_> = known.iter().filter_map(|id| SandboxId::parse(id).ok()).collect();
        node.network.collect(&valid).await;
    }
    // Side by side, as above.
    futures_util::future::join_all(pods.into_iter().map(sweep_pod)).await;
    let trash = node.places.trash();
    if let Err(error) = remove::sweep(&trash) {
        // Log: At start, something without a record could not be removed.
        // Do: See `error`; the next start tries again.
        tracing::error!(dir = %trash.display(), %error, "cannot sweep");
    }
    let (bundles, layers) = (node.config.state.join("containers"), node.config.root.join("containers"));
    for parent in [&bundles, &layers] {
        for dir in strangers(parent, known) {
            // Whichever runtime it was made with: it kills what runs and removes the cgroup that it made.
            let id = dir.file_name().unwrap_or_default().to_string_lossy();
            for runtime in
                node.handlers.runtimes.names().iter().filter_map(|name| node.handlers.runtime(name).ok())
            {
                report(&dir, runtime.delete(&id).await.map_err(SandboxError::from));
            }
            // Log: At start: an earlier daemon had begun it and not recorded it.
            // Do: Nothing.
            tracing::warn!(dir = %dir.display(), "removing a container's directory that no record knows");
            // A bundle is our own. Nobody waits for the end of what a container made: the socket opens meanwhile.
            let trash = (*parent == layers).then(|| trash.clone());
            let swept = dir.clone();
            report(&dir, bundle::unmount(node, "", dir.clone()).await);
            let removed = blocking(move |off| {
                let Some(trash) = trash else { return remove_tree(off, &swept) };
                remove::behind(&swept, &trash)?;
                Ok(())
            });
            report(&dir, removed.await);
            if let Ok(id) = ContainerId::parse(&id) {
                node.layers.forget(&id);
            }
        }
    }
}

async fn sweep_pod(dir: PathBuf) {
    // Log: At start: an earlier daemon had begun it and not recorded it.
    // Do: Nothing.
    tracing::warn!(dir = %dir.display(), "removing a pod's directory that no record knows");
    match tokio::time::timeout(ANSWER_WITHIN, monitor::adopt(&dir, None)).await {
        Ok(Ok((monitor, _events))) => drop(monitor.shutdown(true).await),
        Ok(Err(error)) => tracing::debug!(dir = %dir.display(), %error, "no monitor to end"),
        // Nobody knows its pod, so that nobody would wait for it either.
        Err(_) => monitor::kill(&dir, None),
    }
    let swept = dir.clone();
    let removed = blocking(move |off| {
        PodFiles::below(&swept).unmount(off)?;
        remove_tree(off, &swept)
    });
    report(&dir, removed.await);
}

fn strangers(parent: &Path, known: &HashSet<String>) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            // Only names that we would give.
            name.to_str().is_some_and(|name| SandboxId::parse(name).is_ok() && !known.contains(name))
        })
        .map(|entry| entry.path())
        .collect()
}

pub(in crate::sandbox) fn report(dir: &Path, result: Result<(), SandboxError>) {
    if let Err(error) = result {
        tracing::error!(dir = %dir.display(), %error, "cannot sweep");
    }
}
