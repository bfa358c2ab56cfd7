//! What a daemon does with what an earlier one left: reads the records, looks at what is really there, decides by a
//! pure table, then starts the pods' tasks. Serving begins after this.
//!
//! A monitor that does not answer at once holds up neither the socket nor another pod: its pod is shown as recorded, and
//! its task goes on asking.
//!
//! It assumes: a record is written before its effect; a monitor that answers tells the truth about its containers; an
//! exit record is written before anyone is told. It cleans only below our own directories.

use super::bring_up::blocking;
use super::checkpoint;
use super::container::{self, remove_tree};
use super::error::SandboxError;
use super::files::PodFiles;
use super::manager::{Index, Manager};
use super::node::Node;
use super::pod::{Container, Pod};
use super::record::{RecordError, StoredContainer, StoredPod};
use super::state::{ContainerState, Exit, Holdings, Init, NotReadyCause, SandboxState};
use super::volumes;
use crate::host::foreign::Asked;
use crate::host::monitor::{self, Events, Monitor, MonitorError};
use crate::host::network::Network;
use crate::host::oci::Runtime;
use crate::host::remove;
use crate::model::{ContainerId, SandboxId, SandboxSpec, Timestamp};
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// What is seen of a pod's monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MonitorSeen {
    Alive,
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
    /// Its monitor is there and has not answered yet.
    Silent,
    /// Nobody knows of a process.
    Nothing,
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
        (None | Some(SandboxState::Preparing), MonitorSeen::Alive | MonitorSeen::Dead) => {
            not_ready(NotReadyCause::Interrupted, Holdings::Held)
        }
        (Some(state @ SandboxState::Ready { .. }), MonitorSeen::Alive) => state.clone(),
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
    let lost = |started_at| {
        let exit = Exit::unknown("it ended while neither the daemon nor its monitor ran", now);
        Decision::Keep(ContainerState::Exited { started_at, exit })
    };
    match (recorded, seen) {
        (None | Some(ContainerState::Creating), _) => Decision::Undo,
        // Its outcome is waited for by the pod's task.
        (
            Some(ContainerState::Created | ContainerState::Starting | ContainerState::Running { .. }),
            ContainerSeen::Starting,
        ) => Decision::Keep(ContainerState::Starting),
        // As recorded, until the monitor says more.
        (
            Some(
                state @ (ContainerState::Created | ContainerState::Starting | ContainerState::Running { .. }),
            ),
            ContainerSeen::Silent,
        ) => Decision::Keep(state.clone()),
        (Some(ContainerState::Created), ContainerSeen::Nothing) => Decision::Keep(ContainerState::Created),
        (Some(ContainerState::Created | ContainerState::Starting), ContainerSeen::Running(init)) => {
            Decision::Keep(ContainerState::Running { init: *init, since: now })
        }
        (Some(ContainerState::Created | ContainerState::Starting), ContainerSeen::Ended(record)) => {
            let exit = Exit::from_record(record);
            Decision::Keep(ContainerState::Exited { started_at: Some(exit.finished_at), exit })
        }
        (Some(ContainerState::Starting), ContainerSeen::Nothing) => lost(None),
        (Some(ContainerState::Running { since, .. }), ContainerSeen::Running(init)) => {
            Decision::Keep(ContainerState::Running { init: *init, since: *since })
        }
        (Some(ContainerState::Running { since, .. }), ContainerSeen::Ended(record)) => {
            let exit = Exit::from_record(record);
            Decision::Keep(ContainerState::Exited { started_at: Some(*since), exit })
        }
        (Some(ContainerState::Running { since, .. }), ContainerSeen::Nothing) => lost(Some(*since)),
        (Some(state @ ContainerState::Exited { .. }), _) => Decision::Keep(state.clone()),
    }
}

/// Reads everything back and starts the tasks.
///
/// # Errors
/// Only when the records' directory cannot be listed; one broken pod never stops the others.
pub async fn recover(node: Arc<Node>) -> Result<Manager, RecordError> {
    let (pods, broken) = node.records.load()?;
    for error in broken {
        // Log: A pod's record could not be read at start. The pod is forgotten and its processes are ended.
        // Do: Inspect the record, then delete it.
        tracing::error!(%error, "a record was moved to pods.quarantine");
    }
    let index = Index::default();
    let manager = Manager::new(node.clone(), index.clone());
    let mut known = HashSet::new();
    for pod in &pods {
        known.insert(pod.spec.id.to_string());
        known.extend(pod.containers.iter().map(|c| c.spec.id.to_string()));
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
async fn end_orphans(node: &Node, pods: &[StoredPod]) {
    let ids: Vec<SandboxId> = pods.iter().filter(|p| p.this_boot).map(|p| p.spec.id.clone()).collect();
    let places = vec![PathBuf::from("/proc/<pid>/environ")];
    let asked = Asked { pod: String::new(), places, limit: ORPHANS_LIMIT };
    let ended = node.foreign.apart(asked, move |_, _| {
        Network::end_orphans(&ids.iter().map(SandboxId::as_str).collect());
    });
    report(Path::new("/proc"), ended.await.map(drop).map_err(SandboxError::from));
}

async fn recover_pod(node: &Arc<Node>, index: &Index, stored: StoredPod) -> Result<(), SandboxError> {
    let runtime = node.runtime(&stored.spec.runtime_handler).or_else(|_| node.runtime(""))?;
    let dir = node.pod_dir(&stored.spec.id);
    let found = if stored.this_boot { look_for(&dir).await } else { Found::Nothing };
    let seen = match (&found, stored.this_boot) {
        (Found::Answering(_) | Found::Silent { .. }, _) => MonitorSeen::Alive,
        (Found::Nothing, true) => MonitorSeen::Dead,
        (Found::Nothing, false) => MonitorSeen::Rebooted,
    };
    let recorded = stored.state.as_ref().map(|s| &s.sandbox);
    if seen != MonitorSeen::Alive && matches!(recorded, Some(SandboxState::Ready { .. })) {
        // Log: At start: the monitor ended while no daemon ran. Its containers count as lost.
        // Do: The kubelet replaces the pod. `dmesg` shows whether the kernel killed the monitor.
        tracing::warn!(sandbox = %stored.spec.id, pod = %stored.spec.name, "the monitor of a pod that was ready is gone");
    }
    let state = decide_sandbox(recorded, seen);
    let spec = Arc::new(stored.spec);
    let mut pod = Pod::new(node.clone(), index.clone(), spec.clone(), runtime, state);
    let (monitor, events, reports, answer) = match found {
        Found::Answering((monitor, events, reports)) => (Some(monitor), Some(events), Some(reports), None),
        Found::Silent { monitor, events, answer } => (Some(monitor), Some(events), None, Some(answer)),
        Found::Nothing => (None, None, Some(HashMap::new()), None),
    };
    pod.monitor = monitor;
    pod.limits = stored.state.and_then(|s| s.limits);
    if let Some(reports) = &reports {
        let strangers =
            reports.keys().filter(|id| !stored.containers.iter().any(|c| c.spec.id.as_str() == id.as_str()));
        for id in strangers {
            end_stranger(node, &pod.spec, &pod.runtime, pod.monitor.as_ref(), id).await;
        }
    }
    for container in stored.containers {
        recover_container(node, index, &mut pod, container, reports.as_ref()).await;
    }
    if let Err(error) = node.records.write_pod_state(&spec.id, &pod.record()) {
        tracing::error!(sandbox = %spec.id, %error, "cannot record a sandbox's state");
    }
    index.add_pod(&spec, pod.spawn_recovered(events, answer));
    Ok(())
}

/// What a monitor says of its containers.
pub(super) type Reports = HashMap<String, MonitorContainer>;
/// A monitor that was found again, and its containers.
pub(super) type Adopted = (Monitor, Events, Reports);
/// The answer of a monitor that takes its time; None: it was given up.
pub(super) type Answer = Pin<Box<dyn Future<Output = Option<Reports>> + Send>>;

/// How often a monitor that is there but does not answer is asked again before its pod is given up: with a call's
/// deadline of 5 s, half a minute, in which an overloaded node gets around to it.
pub(super) const ADOPTIONS: u32 = 6;
/// How long the socket waits for monitors, all of them together. One answers within a millisecond, hundreds that were
/// swapped out within this; whoever takes longer is waited for by its own pod alone.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What is found of a pod's monitor at start.
enum Found {
    Answering(Adopted),
    /// It is there, but has not answered yet.
    Silent {
        monitor: Monitor,
        events: Events,
        answer: Answer,
    },
    Nothing,
}

async fn look_for(dir: &Path) -> Found {
    let Some((monitor, events)) = find(dir) else { return Found::Nothing };
    let mut answer: Answer = Box::pin(ask(monitor.clone(), dir.to_owned()));
    match tokio::time::timeout(ANSWER_WITHIN, &mut answer).await {
        Ok(Some(reports)) => Found::Answering((monitor, events, reports)),
        Ok(None) => Found::Nothing,
        Err(_) => {
            // Log: At start: the monitor is stopped (SIGSTOP, frozen cgroup), or the node is overloaded. Other pods
            // do not wait.
            // Do: Within half a minute `the pod's monitor answers` follows, or the pod is NotReady.
            tracing::warn!(dir = %dir.display(), "a monitor is there but does not answer yet; its pod is shown as recorded");
            Found::Silent { monitor, events, answer }
        }
    }
}

/// Finds a monitor again, with patience where it is there but does not answer.
pub(super) async fn adopt(dir: &Path) -> Option<Adopted> {
    let (monitor, events) = find(dir)?;
    let reports = ask(monitor.clone(), dir.to_owned()).await?;
    Some((monitor, events, reports))
}

fn find(dir: &Path) -> Option<(Monitor, Events)> {
    match monitor::find(dir) {
        Ok(found) => Some(found),
        // Ordinary at the end of a pod; whom it matters to says so.
        Err(error @ MonitorError::NotRunning { .. }) => {
            tracing::debug!(dir = %dir.display(), %error, "no monitor to take up");
            None
        }
        Err(error) => {
            // Log: At start: the monitor exists but does not answer. It counts as lost after six attempts.
            // Do: The kubelet replaces the pod.
            tracing::warn!(dir = %dir.display(), %error, "cannot take up a monitor");
            None
        }
    }
}

async fn ask(monitor: Monitor, dir: PathBuf) -> Option<Reports> {
    for _ in 0..ADOPTIONS {
        let listing = async {
            monitor.greet(&dir).await?;
            monitor.list().await
        };
        match listing.await {
            Ok(listing) => return Some(listing.containers.into_iter().map(|c| (c.id, c.state)).collect()),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot take up a monitor");
                if !matches!(error, MonitorError::Unresponsive { .. }) {
                    return None;
                }
            }
        }
    }
    None
}

/// What is to become of a container of a pod whose monitor has answered after its pod was taken up; None: nothing.
pub(super) fn late(
    node: &Node,
    pod: &SandboxId,
    container: &Container,
    reports: &Reports,
) -> Option<ContainerState> {
    let seen = observe(node, pod, &container.spec.id, Some(reports));
    match decide_container(Some(&container.state), &seen, node.clock.now()) {
        Decision::Keep(state) => (state != container.state).then_some(state),
        Decision::Undo => None,
    }
}

async fn recover_container(
    node: &Arc<Node>,
    index: &Index,
    pod: &mut Pod,
    stored: StoredContainer,
    reports: Option<&Reports>,
) {
    let spec = Arc::new(stored.spec);
    let seen = observe(node, &pod.spec.id, &spec.id, reports);
    let recorded = stored.state;
    match decide_container(recorded.as_ref().map(|r| &r.container), &seen, node.clock.now()) {
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
pub(super) async fn end_stranger(
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

/// `reports` is None while the monitor is there but has not answered.
fn observe(node: &Node, pod: &SandboxId, id: &ContainerId, reports: Option<&Reports>) -> ContainerSeen {
    match reports.and_then(|reports| reports.get(id.as_str())) {
        Some(MonitorContainer::Exited(record)) => ContainerSeen::Ended(record.clone()),
        Some(MonitorContainer::Running { pid, start_time }) => {
            ContainerSeen::Running(Init { pid: *pid, start_time: *start_time })
        }
        Some(MonitorContainer::Creating) => ContainerSeen::Starting,
        None => {
            let file = node.exit_dir(pod).join(format!("{id}.json"));
            let unknown = if reports.is_some() { ContainerSeen::Nothing } else { ContainerSeen::Silent };
            std::fs::read(file)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
                .map_or(unknown, ContainerSeen::Ended)
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
    match tokio::time::timeout(ANSWER_WITHIN, monitor::adopt(&dir)).await {
        Ok(Ok((monitor, _events))) => drop(monitor.shutdown(true).await),
        Ok(Err(error)) => tracing::debug!(dir = %dir.display(), %error, "no monitor to end"),
        // Nobody knows its pod, so that nobody would wait for it either.
        Err(_) => monitor::kill(&dir),
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
    use super::super::state::{ExitReason, ExitSource};
    use super::*;

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
        use MonitorSeen::{Alive, Dead, Rebooted};
        let table = [
            (None, Alive, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Dead, not_ready(NotReadyCause::Interrupted)),
            (Some(SandboxState::Preparing), Rebooted, not_ready(NotReadyCause::Rebooted)),
            (Some(ready.clone()), Alive, ready.clone()),
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
            assert_eq!(decide_container(recorded.as_ref(), &ContainerSeen::Nothing, NOW), Decision::Undo);
        }
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
            let decision = decide_container(Some(&recorded), &ContainerSeen::Nothing, NOW);
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
        assert_eq!(decide_container(None, &ContainerSeen::Silent, NOW), Decision::Undo);
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
