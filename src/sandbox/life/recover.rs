//! What a daemon does with what an earlier one left: reads the records, looks at what is really there, decides by a
//! pure table, then starts the pods' tasks. Serving begins after this.
//!
//! A monitor that does not answer at once holds up neither the socket nor another pod: its pod is shown as recorded, and
//! its task goes on asking. Only what is proved dead is dead: an error of looking says nothing about the monitor, and ends
//! nothing that runs.
//!
//! It assumes: a record is written before its effect; a monitor that answers tells the truth about its containers; an
//! exit record is written before anyone is told. It cleans only below our own directories.

use super::manager::{Index, Manager};
use super::pod::{Container, Pod};
use crate::host::foreign::Asked;
use crate::host::monitor::{self, Events, Monitor, MonitorError};
use crate::host::network::Network;
use crate::host::oci::Runtime;
use crate::host::remove;
use crate::model::{ContainerId, SandboxId, SandboxSpec, Timestamp};
use crate::sandbox::acts::bring_up::blocking;
use crate::sandbox::acts::container::{self, remove_tree};
use crate::sandbox::acts::files::PodFiles;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::records::{Loaded, RecordError, StoredContainer, StoredPod};
use crate::sandbox::acts::volumes;
use crate::sandbox::checkpoint;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::state::{ContainerState, Exit, Holdings, Init, NotReadyCause, SandboxState};
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord, ProcessId};
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What is seen of a pod's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MonitorSeen {
    Alive,
    /// It cannot be told yet.
    Unknown,
    /// Its process has ended: that is proved.
    Dead,
    /// Dead, with everything else of the earlier boot.
    Rebooted,
}

/// What is seen of a container.
#[derive(Debug, Clone, PartialEq)]
enum ContainerSeen {
    /// The monitor says that the runtime is starting it.
    Starting,
    /// The monitor says it runs.
    Running(Init),
    /// The monitor or its exit record says how it ended.
    Ended(ExitRecord),
    /// Its monitor has not been heard yet.
    Silent,
    /// Its monitor answers, and has no such container: it never had one, or undid it.
    Unstarted,
    /// Its monitor is dead, and nobody knows of a process. Some: why not even an exit record tells.
    Nothing(Option<String>),
}

/// What is done with a container.
#[derive(Debug, Clone, PartialEq)]
enum Decision {
    Keep(ContainerState),
    /// Its creation did not finish: undo it.
    Undo,
}

fn decide_sandbox(recorded: Option<&SandboxState>, seen: MonitorSeen) -> SandboxState {
    let not_ready = |why, resources| SandboxState::NotReady { why, resources };
    match (recorded, seen) {
        (None | Some(SandboxState::Preparing), MonitorSeen::Rebooted) => {
            not_ready(NotReadyCause::Rebooted, Holdings::Held)
        }
        (
            None | Some(SandboxState::Preparing),
            MonitorSeen::Alive | MonitorSeen::Unknown | MonitorSeen::Dead,
        ) => not_ready(NotReadyCause::Interrupted, Holdings::Held),
        (Some(state @ SandboxState::Ready { .. }), MonitorSeen::Alive | MonitorSeen::Unknown) => {
            state.clone()
        }
        (Some(SandboxState::Ready { .. }), MonitorSeen::Dead) => {
            not_ready(NotReadyCause::MonitorLost, Holdings::Held)
        }
        (Some(SandboxState::Ready { .. }), MonitorSeen::Rebooted) => {
            not_ready(NotReadyCause::Rebooted, Holdings::Held)
        }
        (Some(state @ SandboxState::NotReady { .. }), _) => state.clone(),
    }
}

fn decide_container(recorded: Option<&ContainerState>, seen: &ContainerSeen, now: Timestamp) -> Decision {
    use ContainerState::{Created, Creating, Exited, Running, Starting};
    let lost = |started_at, unread: &Option<String>| {
        let mut told = "it ended while neither the daemon nor its monitor ran".to_owned();
        if let Some(why) = unread {
            told = format!("{told}, and {why}");
        }
        Decision::Keep(Exited { started_at, exit: Exit::unknown(&told, now) })
    };
    match (recorded, seen) {
        (Some(state @ Exited { .. }), _) => Decision::Keep(state.clone()),
        // What the monitor says of a process is true, whatever was or was not written of it.
        (_, ContainerSeen::Running(init)) => {
            let since = match recorded {
                Some(Running { since, .. }) => *since,
                _ => now,
            };
            Decision::Keep(Running { init: *init, since })
        }
        (_, ContainerSeen::Ended(record)) => {
            let exit = Exit::from_record(record);
            let started_at = match recorded {
                Some(Running { since, .. }) => *since,
                _ => exit.finished_at,
            };
            Decision::Keep(Exited { started_at: Some(started_at), exit })
        }
        // Its outcome is waited for by the pod's task.
        (_, ContainerSeen::Starting) => Decision::Keep(Starting),
        // As recorded, until the monitor says more.
        (None, ContainerSeen::Silent) => Decision::Keep(Creating),
        (Some(state), ContainerSeen::Silent) => Decision::Keep(state.clone()),
        (None | Some(Creating), ContainerSeen::Unstarted | ContainerSeen::Nothing(_)) => Decision::Undo,
        (Some(Created), ContainerSeen::Unstarted | ContainerSeen::Nothing(_)) => Decision::Keep(Created),
        // The daemon died before it asked, or the start failed and was undone: it may be started.
        (Some(Starting), ContainerSeen::Unstarted) => Decision::Keep(Created),
        (Some(Running { since, .. }), ContainerSeen::Unstarted) => {
            let exit = Exit::unknown("its monitor does not know it any more", now);
            Decision::Keep(Exited { started_at: Some(*since), exit })
        }
        (Some(Starting), ContainerSeen::Nothing(unread)) => lost(None, unread),
        (Some(Running { since, .. }), ContainerSeen::Nothing(unread)) => lost(Some(*since), unread),
    }
}

/// Reads everything back and starts the tasks.
///
/// # Errors
/// Only when the records' directory cannot be listed; one broken pod never stops the others.
pub async fn recover(node: Arc<Node>) -> Result<Manager, RecordError> {
    let Loaded { pods, unread, broken } = node.records.load()?;
    for error in broken {
        // Log: A record of a pod or container could not be read at start. What it stands for is left alone: it runs on, but is not listed.
        // Do: Repair the file, or go back to the newer podwright that wrote it, and restart. If it is beyond repair: end its processes, then delete its directory below `<root>/pods`.
        tracing::error!(%error, "a record cannot be read");
    }
    let index = Index::default();
    let manager = Manager::new(node.clone(), index.clone());
    let mut known = HashSet::new();
    known.extend(unread);
    for pod in &pods {
        known.insert(pod.spec.id.to_string());
        known.extend(pod.containers.iter().map(|c| c.spec.id.to_string()));
        known.extend(pod.unread.iter().cloned());
    }
    end_orphans(&node, &pods).await;
    // Side by side: one that is waited for holds up no other.
    let recovered = pods.into_iter().map(async |pod| {
        let id = pod.spec.id.clone();
        if let Err(error) = recover_pod(&node, &index, pod).await {
            // Log: At start a recorded pod could not be examined.
            // Do: See `error`; the next start tries again.
            tracing::error!(sandbox = %id, %error, "cannot take up a pod");
        }
    });
    futures_util::future::join_all(recovered).await;
    // Beside the rest: a CRIU of the earlier daemon may have to be waited for.
    tokio::spawn(checkpoint::thaw(node.clone(), checkpoint::Leftovers::find(&node)));
    sweep(&node, &known).await;
    let images = node.images.clone();
    let forgotten = blocking(move || Ok(images.recovered()?)).await;
    report(&node.config.root.join("images"), forgotten);
    Ok(manager)
}

/// How long processes' environments are read: a process that maps a file of a dead server holds up whoever reads its.
const ORPHANS_LIMIT: Duration = Duration::from_secs(5);

/// CNI plugins that the earlier daemon was waiting for.
async fn end_orphans(node: &Arc<Node>, pods: &[StoredPod]) {
    let ids: Vec<SandboxId> = pods.iter().filter(|p| p.this_boot).map(|p| p.spec.id.clone()).collect();
    let places = vec![PathBuf::from("/proc/<pid>/environ")];
    let asked = Asked { pod: String::new(), places, limit: ORPHANS_LIMIT };
    let ended = node
        .foreign
        .apart(asked, move |_, _| Network::end_orphans(&ids.iter().map(SandboxId::as_str).collect()));
    let ended = ended.await.map(|(leaving, _)| node.network.wait_for(leaving));
    report(Path::new("/proc"), ended.map_err(SandboxError::from));
}

async fn recover_pod(node: &Arc<Node>, index: &Index, stored: StoredPod) -> Result<(), SandboxError> {
    let runtime = node.runtime(&stored.spec.runtime_handler).or_else(|_| node.runtime(""))?;
    let dir = node.pod_dir(&stored.spec.id);
    let recorded = stored.state.as_ref().map(|s| &s.sandbox);
    let process = stored.state.as_ref().and_then(|s| s.monitor);
    let found = match (stored.this_boot, recorded) {
        (false, _) => Found::Nothing,
        (true, Some(SandboxState::Ready { .. })) => look_for(&dir, process, true).await,
        (true, _) => look_for(&dir, process, false).await,
    };
    let seen = match (&found, stored.this_boot) {
        (Found::Answering(_), _) => MonitorSeen::Alive,
        (Found::Unknown { .. }, _) => MonitorSeen::Unknown,
        (Found::Nothing, true) => MonitorSeen::Dead,
        (Found::Nothing, false) => MonitorSeen::Rebooted,
    };
    let gone = matches!(seen, MonitorSeen::Dead | MonitorSeen::Rebooted);
    if gone && matches!(recorded, Some(SandboxState::Ready { .. })) {
        // Log: At start: its process has ended while no daemon ran. Its containers count as lost.
        // Do: Look for what killed it; the kubelet makes the pod anew.
        tracing::warn!(sandbox = %stored.spec.id, pod = %stored.spec.name, "the monitor of a pod that was ready is gone");
    }
    let state = decide_sandbox(recorded, seen);
    let spec = Arc::new(stored.spec);
    let mut pod = Pod::new(node.clone(), index.clone(), spec.clone(), runtime, state);
    let alive = matches!(found, Found::Answering(_));
    let (monitor, events, reports, answer) = match found {
        Found::Answering((monitor, events, reports)) => (Some(monitor), Some(events), Some(reports), None),
        Found::Unknown { monitor, answer } => (monitor, None, None, Some(answer)),
        Found::Nothing => (None, None, Some(HashMap::new()), None),
    };
    pod.monitor = monitor;
    pod.process = process.filter(|_| !gone);
    pod.limits = stored.state.and_then(|s| s.limits);
    if let Some(reports) = &reports {
        let strangers = reports.keys().filter(|id| {
            !stored.containers.iter().any(|c| c.spec.id.as_str() == id.as_str())
                && !stored.unread.contains(id.as_str())
        });
        for id in strangers {
            end_stranger(node, &pod.spec, &pod.runtime, pod.monitor.as_ref(), id).await;
        }
    }
    pod.unread = stored.unread;
    for container in stored.containers {
        recover_container(node, index, &mut pod, container, Heard::of(reports.as_ref(), alive)).await;
    }
    if let Err(error) = node.records.write_pod_state(&spec.id, &pod.record()) {
        // Log: Writing below `root` failed at start. The state in memory is right.
        // Do: Free the disk, or mount it writable.
        tracing::error!(sandbox = %spec.id, %error, "cannot record a sandbox's state");
    }
    index.add_pod(&spec, pod.spawn_recovered(events, answer));
    Ok(())
}

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
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What is found of a pod's monitor at start.
enum Found {
    Answering(Adopted),
    /// It cannot be told yet whether it lives; Some: it is there, and has not answered.
    Unknown {
        monitor: Option<Monitor>,
        answer: Answer,
    },
    Nothing,
}

/// `had`: the pod is recorded as having a monitor, so that nothing to be seen of one proves nothing.
async fn look_for(dir: &Path, known: Option<ProcessId>, had: bool) -> Found {
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

type Find = Result<(Monitor, Events), MonitorError>;

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
enum Heard<'a> {
    /// It has not been heard.
    Silent,
    /// It lives, and says this.
    Says(&'a Reports),
    /// It is dead.
    Dead,
}

impl<'a> Heard<'a> {
    fn of(reports: Option<&'a Reports>, alive: bool) -> Self {
        match reports {
            None => Self::Silent,
            Some(reports) if alive => Self::Says(reports),
            Some(_) => Self::Dead,
        }
    }
}

/// What is to become of a container of a pod whose monitor has answered after its pod was taken up; None: nothing.
pub(in crate::sandbox) fn late(
    node: &Node,
    pod: &SandboxId,
    container: &Container,
    reports: &Reports,
) -> Option<Late> {
    let seen = observe(node, pod, &container.spec.id, Heard::Says(reports));
    match decide_container(Some(&container.state), &seen, Timestamp::now()) {
        Decision::Keep(state) => (state != container.state).then_some(Late::Is(state)),
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

async fn recover_container(
    node: &Arc<Node>,
    index: &Index,
    pod: &mut Pod,
    stored: StoredContainer,
    heard: Heard<'_>,
) {
    let spec = Arc::new(stored.spec);
    let seen = observe(node, &pod.spec.id, &spec.id, heard);
    let recorded = stored.state;
    match decide_container(recorded.as_ref().map(|r| &r.container), &seen, Timestamp::now()) {
        Decision::Undo => {
            let undone = container::remove(node, &spec).await;
            let undone = undone.and_then(|()| Ok(node.records.remove_container(&pod.spec.id, &spec.id)?));
            if let Err(error) = undone {
                tracing::error!(container = %spec.id, %error, "cannot undo an unfinished creation");
            }
        }
        Decision::Keep(state) => {
            let (resources, user) = match recorded {
                Some(record) => (record.resources, record.user),
                None => (spec.resources.clone(), None),
            };
            let mut container = Container::new(spec.clone(), state, resources);
            container.user = user;
            container.hold = node.images.restore_hold(&spec.image.id).map(Arc::new);
            container.volumes = volumes::restore(&node.images, &spec);
            let record = container.record();
            if let Err(error) = node.records.write_container_state(&pod.spec.id, &spec.id, &record) {
                // Log: Writing below `root` failed at start. The state in memory is right.
                // Do: Free the disk, or mount it writable.
                tracing::error!(container = %spec.id, %error, "cannot record a container's state");
            }
            let ended = matches!(container.state, ContainerState::Exited { .. });
            node.layers.recover(&spec.id, ended);
            index.add_container(&spec.id, &pod.spec.id);
            pod.containers.insert(spec.id.clone(), container);
        }
    }
}

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
        Ok(()) => match node.leaf(pod, &id) {
            Ok(leaf) => {
                let cgroups = node.cgroups.clone();
                blocking(move || Ok(cgroups.remove(&leaf)?)).await
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    };
    report(&node.bundle(&id), ended);
    container::forget(monitor, &id).await;
}

fn observe(node: &Node, pod: &SandboxId, id: &ContainerId, heard: Heard<'_>) -> ContainerSeen {
    if let Heard::Says(reports) = heard {
        match reports.get(id.as_str()) {
            Some(MonitorContainer::Exited(record)) => return ContainerSeen::Ended(record.clone()),
            Some(MonitorContainer::Running { pid, start_time }) => {
                return ContainerSeen::Running(Init { pid: *pid, start_time: *start_time });
            }
            Some(MonitorContainer::Creating) => return ContainerSeen::Starting,
            None => {}
        }
    }
    let unknown = |unread| match heard {
        Heard::Silent => ContainerSeen::Silent,
        Heard::Says(_) => ContainerSeen::Unstarted,
        Heard::Dead => ContainerSeen::Nothing(unread),
    };
    let file = node.exit_dir(pod).join(format!("{id}.json"));
    let record = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice(&text)?));
    match record {
        Ok(record) => ContainerSeen::Ended(record),
        Err(error) if error.kind() == ErrorKind::NotFound => unknown(None),
        Err(error) => {
            // Log: How a container ended is on a disk that cannot be read.
            // Do: Look at the disk.
            tracing::error!(path = %file.display(), %error, "cannot read an exit record");
            unknown(Some(format!("its exit record {} cannot be read: {error}", file.display())))
        }
    }
}

/// Removes directories, mounts and monitors that no record knows.
async fn sweep(node: &Arc<Node>, known: &HashSet<String>) {
    let pods = strangers(&node.config.state.join("pods"), known);
    if !pods.is_empty() {
        // While their network namespaces are still there: plugins leave their rules behind without one.
        let valid: Vec<_> = known.iter().filter_map(|id| SandboxId::parse(id).ok()).collect();
        node.network.collect(&valid).await;
    }
    // Side by side, as above.
    futures_util::future::join_all(pods.into_iter().map(sweep_pod)).await;
    let trash = node.trash();
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
            for runtime in node.runtimes.names().iter().filter_map(|name| node.runtime(name).ok()) {
                report(&dir, runtime.delete(&id).await.map_err(SandboxError::from));
            }
            // Log: At start: an earlier daemon had begun it and not recorded it.
            // Do: Nothing.
            tracing::warn!(dir = %dir.display(), "removing a container's directory that no record knows");
            // A bundle is our own. Nobody waits for the end of what a container made: the socket opens meanwhile.
            let trash = (*parent == layers).then(|| trash.clone());
            let swept = dir.clone();
            report(&dir, container::unmount(node, "", dir.clone()).await);
            let removed = blocking(move || {
                let Some(trash) = trash else { return remove_tree(&swept) };
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
    let removed = blocking(move || {
        PodFiles::below(&swept).unmount()?;
        remove_tree(&swept)
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

fn report(dir: &Path, result: Result<(), SandboxError>) {
    if let Err(error) = result {
        tracing::error!(dir = %dir.display(), %error, "cannot sweep");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::words::state::{ExitReason, ExitSource};

    const NOW: Timestamp = Timestamp(9);

    fn init() -> Init {
        Init { pid: 7, start_time: 70 }
    }

    fn ended() -> ContainerSeen {
        ContainerSeen::Ended(ExitRecord {
            version: 1,
            container_id: String::new(),
            pid: 7,
            exit_code: 3,
            signal: None,
            oom_killed: false,
            finished_at_ns: 5,
        })
    }

    #[test]
    fn sandboxes() {
        let ready = SandboxState::Ready { network: None };
        let not_ready = |why| SandboxState::NotReady { why, resources: Holdings::Held };
        let stopped = SandboxState::NotReady { why: NotReadyCause::Stopped, resources: Holdings::Released };
        use MonitorSeen::{Alive, Dead, Rebooted, Unknown};
        let table = [
            (None, Alive, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Dead, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Rebooted, not_ready(NotReadyCause::Rebooted)),
            (Some(ready.clone()), Alive, ready.clone()),
            (Some(ready.clone()), Unknown, ready.clone()),
            (Some(ready.clone()), Dead, not_ready(NotReadyCause::MonitorLost)),
            (Some(ready), Rebooted, not_ready(NotReadyCause::Rebooted)),
            (Some(stopped.clone()), Dead, stopped),
        ];
        for (recorded, seen, expected) in table {
            assert_eq!(decide_sandbox(recorded.as_ref(), seen), expected, "{recorded:?} {seen:?}");
        }
    }

    #[test]
    fn an_unfinished_creation_is_undone() {
        for recorded in [None, Some(ContainerState::Creating)] {
            for seen in [ContainerSeen::Nothing(None), ContainerSeen::Unstarted] {
                assert_eq!(decide_container(recorded.as_ref(), &seen, NOW), Decision::Undo);
            }
        }
    }

    /// Its record could not be written, or is lost: what the monitor says is true all the same.
    #[test]
    fn what_runs_is_never_undone() {
        for recorded in [None, Some(ContainerState::Creating), Some(ContainerState::Created)] {
            let decide = |seen| decide_container(recorded.as_ref(), &seen, NOW);
            let running = ContainerState::Running { init: init(), since: NOW };
            assert_eq!(decide(ContainerSeen::Running(init())), Decision::Keep(running));
            assert_eq!(decide(ContainerSeen::Starting), Decision::Keep(ContainerState::Starting));
            let Decision::Keep(ContainerState::Exited { exit, .. }) = decide(ended()) else { panic!() };
            assert_eq!(exit.code, 3);
            assert!(matches!(decide(ContainerSeen::Silent), Decision::Keep(_)));
        }
    }

    #[test]
    fn a_start_that_the_monitor_never_heard_of_may_be_asked_again() {
        let decision = decide_container(Some(&ContainerState::Starting), &ContainerSeen::Unstarted, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Created));
    }

    #[test]
    fn an_exit_record_that_cannot_be_read_is_named() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let seen = ContainerSeen::Nothing(Some("its exit record x cannot be read: EIO".into()));
        let Decision::Keep(ContainerState::Exited { exit, .. }) =
            decide_container(Some(&recorded), &seen, NOW)
        else {
            panic!("not exited");
        };
        assert!(exit.message.ends_with("its exit record x cannot be read: EIO"), "{}", exit.message);
    }

    #[test]
    fn what_still_runs_is_kept_with_its_start() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let seen = ContainerSeen::Running(init());
        assert_eq!(decide_container(Some(&recorded), &seen, NOW), Decision::Keep(recorded));
    }

    #[test]
    fn an_end_meanwhile_has_its_true_code_and_time() {
        let recorded = ContainerState::Running { init: init(), since: Timestamp(2) };
        let Decision::Keep(ContainerState::Exited { started_at, exit }) =
            decide_container(Some(&recorded), &ended(), NOW)
        else {
            panic!("not exited");
        };
        assert_eq!(started_at, Some(Timestamp(2)));
        assert_eq!((exit.code, exit.reason, exit.finished_at), (3, ExitReason::Error, Timestamp(5)));
        assert_eq!(exit.source, ExitSource::Monitor);
    }

    #[test]
    fn an_end_that_nobody_saw_is_told_as_unknown() {
        for recorded in
            [ContainerState::Starting, ContainerState::Running { init: init(), since: Timestamp(2) }]
        {
            let decision = decide_container(Some(&recorded), &ContainerSeen::Nothing(None), NOW);
            let Decision::Keep(ContainerState::Exited { exit, .. }) = decision else { panic!("not exited") };
            assert_eq!(
                (exit.code, exit.reason, exit.source),
                (255, ExitReason::Unknown, ExitSource::Assumed)
            );
        }
    }

    #[test]
    fn of_a_silent_monitor_everything_is_kept_as_recorded() {
        for recorded in [
            ContainerState::Created,
            ContainerState::Starting,
            ContainerState::Running { init: init(), since: Timestamp(2) },
        ] {
            let decision = decide_container(Some(&recorded), &ContainerSeen::Silent, NOW);
            assert_eq!(decision, Decision::Keep(recorded));
        }
        let unwritten = decide_container(None, &ContainerSeen::Silent, NOW);
        assert_eq!(unwritten, Decision::Keep(ContainerState::Creating));
    }

    #[test]
    fn a_start_under_way_goes_on() {
        let decision = decide_container(Some(&ContainerState::Starting), &ContainerSeen::Starting, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Starting));
    }

    #[test]
    fn a_start_that_the_daemon_did_not_see_end_is_taken_up() {
        let seen = ContainerSeen::Running(init());
        let decision = decide_container(Some(&ContainerState::Starting), &seen, NOW);
        assert_eq!(decision, Decision::Keep(ContainerState::Running { init: init(), since: NOW }));
    }
}
