//! Finding a pod's monitor again, and what it and its exit records say of the pod's containers. Only what is proved dead is
//! dead: an error of looking says nothing about the monitor. Decides nothing: that is `words::reconcile`.

use super::node::Node;
use crate::host::monitor::{self, Events, Monitor, MonitorError};
use crate::model::{ContainerId, SandboxId, Timestamp};
use crate::sandbox::offload::{OffThread, blocking};
use crate::sandbox::words::reconcile::{ContainerSeen, Decision, decide_container};
use crate::sandbox::words::state::{ContainerState, Init};
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord, ProcessId};
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What a monitor says of its containers.
pub(in crate::sandbox) type Reports = HashMap<String, MonitorContainer>;
/// A monitor that was found again, and its containers.
pub(in crate::sandbox) type Adopted = (Monitor, Events, Reports);
/// A monitor that takes its time; None: it is proved dead.
pub(in crate::sandbox) type Answer = Pin<Box<dyn Future<Output = Option<Adopted>> + Send>>;

/// First pause before a monitor that could not be asked is looked for again; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a pod whose monitor can be asked again is whole within it, and looking costs a connection.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How long the socket waits for monitors, all of them together. One answers within a millisecond, hundreds that were
/// swapped out within this; whoever takes longer is waited for by its own pod alone.
pub(in crate::sandbox) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What is found of a pod's monitor at start.
pub(in crate::sandbox) enum Found {
    Answering(Adopted),
    /// It cannot be told yet whether it lives; Some: it is there, and has not answered.
    Unknown {
        monitor: Option<Monitor>,
        answer: Answer,
    },
    Nothing,
}

/// `had`: the pod is recorded as having a monitor, so that nothing to be seen of one proves nothing.
pub(in crate::sandbox) async fn look_for(dir: &Path, known: Option<ProcessId>, had: bool) -> Found {
    let first = monitor::find(dir, known).await;
    match &first {
        Err(error @ MonitorError::NotRunning { .. }) => {
            // Ordinary at the end of a pod; whom it matters to says so.
            tracing::debug!(dir = %dir.display(), %error, "no monitor to take up");
            return Found::Nothing;
        }
        // The daemon died before it had one, or while it ended it.
        Err(MonitorError::Record { source, .. }) if !had && source.kind() == ErrorKind::NotFound => {
            return Found::Nothing;
        }
        _ => {}
    }
    let connected = first.as_ref().ok().map(|(monitor, _)| monitor.clone());
    let mut answer: Answer = Box::pin(seek(dir.to_owned(), known, Some(first)));
    match tokio::time::timeout(ANSWER_WITHIN, &mut answer).await {
        Ok(Some(adopted)) => Found::Answering(adopted),
        Ok(None) => Found::Nothing,
        Err(_) => {
            // Log: At start: it is stopped (SIGSTOP, a frozen cgroup), cannot be looked at, or the node is overloaded.
            // Do: Nothing at first: the daemon goes on asking. If it lasts: the lines with its `dir` say why.
            tracing::warn!(dir = %dir.display(), "a monitor does not answer yet; its pod is shown as recorded");
            Found::Unknown { monitor: connected, answer }
        }
    }
}

pub(in crate::sandbox) type Find = Result<(Monitor, Events), MonitorError>;

/// Finds a monitor and has it tell its containers, for as long as that takes. None: it is proved dead.
pub(in crate::sandbox) async fn seek(
    dir: PathBuf,
    known: Option<ProcessId>,
    first: Option<Find>,
) -> Option<Adopted> {
    let mut pause = FIRST_PAUSE;
    let mut found = match first {
        Some(first) => first,
        None => monitor::find(&dir, known).await,
    };
    loop {
        let error = match found {
            Ok((monitor, events)) => match ask(&monitor, &dir).await {
                Ok(reports) => return Some((monitor, events, reports)),
                Err(error) => {
                    // The same connection: each new one would wait in the queue of a monitor that is stopped.
                    found = match &error {
                        MonitorError::Unresponsive { .. } => Ok((monitor, events)),
                        _ => {
                            drop((monitor, events));
                            tokio::time::sleep(pause).await;
                            monitor::find(&dir, known).await
                        }
                    };
                    error
                }
            },
            Err(error @ MonitorError::NotRunning { .. }) => {
                tracing::debug!(dir = %dir.display(), %error, "no monitor to take up");
                return None;
            }
            Err(error) => {
                tokio::time::sleep(pause).await;
                found = monitor::find(&dir, known).await;
                error
            }
        };
        // Log: A monitor does not answer or cannot be reached; it is asked again until it answers or its process is proved to have ended.
        // Do: If it lasts: thaw the monitor, or stop and remove the pod.
        tracing::warn!(dir = %dir.display(), %error, "cannot take up a monitor yet");
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn ask(monitor: &Monitor, dir: &Path) -> Result<Reports, MonitorError> {
    monitor.greet(dir).await?;
    Ok(monitor.list().await?.containers.into_iter().map(|c| (c.id, c.state)).collect())
}

/// What is known of a pod's containers from its monitor.
#[derive(Debug, Clone, Copy)]
pub(in crate::sandbox) enum Heard<'a> {
    /// It has not been heard.
    Silent,
    /// It lives, and says this.
    Says(&'a Reports),
    /// It is dead.
    Dead,
}

impl<'a> Heard<'a> {
    pub(in crate::sandbox) fn of(reports: Option<&'a Reports>, alive: bool) -> Self {
        match reports {
            None => Self::Silent,
            Some(reports) if alive => Self::Says(reports),
            Some(_) => Self::Dead,
        }
    }
}

/// What is to become of a container of a pod whose monitor has answered after its pod was taken up, by its reports with the
/// [exit records](with_exits); None: nothing.
pub(in crate::sandbox) fn late(
    (id, recorded): (&ContainerId, &ContainerState),
    reports: &Reports,
) -> Option<Late> {
    let seen = reported(reports, id).unwrap_or(ContainerSeen::Unstarted);
    match decide_container(Some(recorded), &seen, Timestamp::now()) {
        Decision::Keep(state) => (state != *recorded).then_some(Late::Is(state)),
        Decision::Undo => Some(Late::Undone),
    }
}

/// What is to become of a container when its monitor has been heard.
#[derive(Debug)]
pub(in crate::sandbox) enum Late {
    Is(ContainerState),
    /// Its creation did not finish.
    Undone,
}

/// What a monitor says of a container.
fn reported(reports: &Reports, id: &ContainerId) -> Option<ContainerSeen> {
    Some(match reports.get(id.as_str())? {
        MonitorContainer::Exited(record) => ContainerSeen::Ended(record.clone()),
        MonitorContainer::Running { pid, start_time } => {
            ContainerSeen::Running(Init { pid: *pid, start_time: *start_time })
        }
        MonitorContainer::Starting => ContainerSeen::Starting,
    })
}

/// What is seen of a container at start.
pub(in crate::sandbox) async fn observe(
    node: &Arc<Node>,
    pod: &SandboxId,
    id: &ContainerId,
    heard: Heard<'_>,
) -> ContainerSeen {
    if let Heard::Says(reports) = heard
        && let Some(seen) = reported(reports, id)
    {
        return seen;
    }
    let file = node.places.exit_dir(pod).join(format!("{id}.json"));
    let read = blocking(move |off| Ok(exit_record(off, &file))).await;
    let unread = match read.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(Some(record)) => return ContainerSeen::Ended(record),
        Ok(None) => None,
        Err(why) => Some(why),
    };
    match heard {
        Heard::Silent => ContainerSeen::Silent,
        Heard::Says(_) => ContainerSeen::Unstarted,
        Heard::Dead => ContainerSeen::Nothing(unread),
    }
}

/// Adds to a monitor's reports the ends that only its exit records tell: of containers that it has forgotten.
pub(in crate::sandbox) async fn with_exits(node: &Node, pod: &SandboxId, mut reports: Reports) -> Reports {
    let dir = node.places.exit_dir(pod);
    let known: HashSet<String> = reports.keys().cloned().collect();
    let found = blocking(move |off| {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let id = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
        let new = entries.filter_map(|path| Some((id(&path)?, path))).filter(|(id, _)| !known.contains(id));
        Ok(new.filter_map(|(id, path)| Some((id, exit_record(off, &path).ok()??))).collect::<Vec<_>>())
    });
    for (id, record) in found.await.unwrap_or_default() {
        if ContainerId::parse(&id).is_ok() {
            reports.insert(id, MonitorContainer::Exited(record));
        }
    }
    reports
}

/// None: there is none. The error says why it cannot be read.
fn exit_record(_: &OffThread, file: &Path) -> Result<Option<ExitRecord>, String> {
    match std::fs::read(file).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            // Log: How a container ended is on a disk that cannot be read.
            // Do: Look at the disk.
            tracing::error!(path = %file.display(), %error, "cannot read an exit record");
            Err(format!("its exit record {} cannot be read: {error}", file.display()))
        }
    }
}
