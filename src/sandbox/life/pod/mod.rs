//! The owner task of one pod: its sandbox and its containers. Commands come in by a mailbox and are admitted by
//! `machine`; slow work runs in a `JoinSet` and comes back as `Finished`; the monitor's events come in beside. The
//! task never waits for slow work itself, so a stop that takes minutes delays nobody. Readers take snapshots.

mod containers;
mod events;
mod recording;
mod sandbox;

use super::announce::Announcer;
use super::index::Index;
use super::mailbox::{Command, MAILBOX, Outcome, PodHandle, Reply, answer_all};
use super::shared::Shared;
use crate::host::monitor::{Events, Monitor, MonitorEvent};
use crate::host::oci::Runtime;
use crate::host::users::User;
use crate::images::Hold;
use crate::model::{ContainerId, ContainerSpec, Resources, SandboxSpec};
use crate::sandbox::acts::adopt;
use crate::sandbox::acts::bring_up::{self, BroughtUp};
use crate::sandbox::acts::bundle::Prepared;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::volumes;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::machine::{Activity, SandboxActivity};
use crate::sandbox::words::phase::{Dying, Phase};
use crate::sandbox::words::record::{ContainerRecord, PodLimits};
use crate::sandbox::words::snapshot::{ContainerSnapshot, Encoded, PodSnapshot};
use crate::sandbox::words::state::{ContainerState, Init, SandboxState};
use futures_util::FutureExt as _;
use podwright_monitor_proto::ProcessId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A container inside its pod's task.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) state: ContainerState,
    pub(super) resources: Resources,
    pub(super) user: Option<User>,
    /// A part of its record cannot be read, and the record is left as it is.
    pub(super) unread: bool,
    pub(super) hold: Option<Arc<Hold>>,
    pub(super) volumes: volumes::Holds,
    activity: Activity,
    waiters: Vec<Reply<()>>,
    create_waiters: Vec<Reply<ContainerId>>,
    /// The caller of the update that runs beside everything else.
    updating: Option<Reply<()>>,
    /// The order of writes of its record.
    records: recording::Queue,
    phase: watch::Sender<Phase>,
    /// Why it could not be cleaned up after yet.
    trouble: watch::Sender<Option<String>>,
    /// When SIGKILL is due, while it is being stopped.
    kill_at: Option<watch::Sender<Instant>>,
}

impl Container {
    pub(super) fn new(spec: Arc<ContainerSpec>, state: ContainerState, resources: Resources) -> Self {
        let phase = match state {
            ContainerState::Starting | ContainerState::Running { .. } => Phase::Alive,
            ContainerState::Creating | ContainerState::Created | ContainerState::Exited { .. } => {
                Phase::Cleaned
            }
        };
        Self {
            spec,
            state,
            resources,
            user: None,
            unread: false,
            hold: None,
            volumes: Arc::default(),
            activity: Activity::Idle,
            waiters: Vec::new(),
            create_waiters: Vec::new(),
            updating: None,
            records: recording::Queue::default(),
            phase: watch::Sender::new(phase),
            trouble: watch::Sender::new(None),
            kill_at: None,
        }
    }

    pub(super) fn record(&self) -> ContainerRecord {
        ContainerRecord {
            container: self.state.clone(),
            resources: self.resources.clone(),
            user: self.user.clone(),
        }
    }

    /// For those who wait for its end.
    pub(super) fn dying(&self) -> Dying {
        let (phase, trouble) = (self.phase.subscribe(), self.trouble.subscribe());
        Dying { spec: self.spec.clone(), phase, trouble }
    }

    fn answer(&mut self, outcome: &Outcome<()>) {
        self.activity = Activity::Idle;
        answer_all(&mut self.waiters, outcome);
    }
}

/// Slow work that ended.
#[derive(Debug)]
enum Finished {
    Up(Box<Result<BroughtUp, SandboxError>>),
    Adopted(Option<adopt::Adopted>),
    /// The monitor that was looked for since the start has answered; None: it is proved dead.
    Answered(Option<adopt::Adopted>),
    StrangerEnded,
    Recorded(recording::Recorded),
    /// Records that could not be written are due again.
    RecordDue,
    Undone {
        cause: SandboxError,
        undo: Result<(), SandboxError>,
    },
    Down(Result<(), SandboxError>),
    /// The record of new limits of the pod, and those before it.
    Limited {
        before: Option<PodLimits>,
        result: Result<(), SandboxError>,
        reply: Option<Reply<()>>,
    },
    PodRemoved(Result<(), SandboxError>),
    Created(ContainerId, Box<Result<Prepared, SandboxError>>),
    Started(ContainerId, Result<Init, SandboxError>),
    Stopped(ContainerId, Result<(), SandboxError>),
    Cleaned(ContainerId),
    Removed(ContainerId, Result<(), SandboxError>),
    Updated(ContainerId, Box<Resources>, Result<(), SandboxError>),
}

/// The task's own data.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) node: Arc<Node>,
    pub(super) spec: Arc<SandboxSpec>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) state: SandboxState,
    /// Once they have been changed.
    pub(super) limits: Option<PodLimits>,
    pub(super) monitor: Option<Monitor>,
    /// Its monitor's process as recorded, whether or not it can be reached.
    pub(super) process: Option<ProcessId>,
    /// It is not known whether its monitor lives.
    pub(super) seeking: bool,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    index: Index,
    announcer: Arc<Announcer>,
    activity: SandboxActivity,
    jobs: JoinSet<Finished>,
    deferred: Vec<Command>,
    waiters: Vec<Reply<()>>,
    snapshots: watch::Sender<Arc<PodSnapshot>>,
    up: watch::Sender<Option<Outcome<()>>>,
    unwritten: recording::Unwritten,
    /// The order of writes of the pod's own record.
    records: recording::Queue,
    gone: bool,
}

impl Pod {
    pub(super) fn new(
        shared: &Shared,
        spec: Arc<SandboxSpec>,
        runtime: Arc<Runtime>,
        state: SandboxState,
    ) -> Self {
        let picture = PodSnapshot {
            spec: spec.clone(),
            state: state.clone(),
            monitor: None,
            limits: None,
            runtime: runtime.clone(),
            containers: Vec::new(),
            list_entry: Encoded::default(),
        };
        let Shared { node, index, announcer } = shared.clone();
        Self {
            node,
            spec,
            runtime,
            state,
            limits: None,
            monitor: None,
            process: None,
            seeking: false,
            containers: BTreeMap::new(),
            index,
            announcer,
            activity: SandboxActivity::Idle,
            jobs: JoinSet::new(),
            deferred: Vec::new(),
            waiters: Vec::new(),
            snapshots: watch::Sender::new(Arc::new(picture)),
            up: watch::Sender::new(None),
            unwritten: recording::Unwritten::default(),
            records: recording::Queue::default(),
            gone: false,
        }
    }

    /// Starts the task of a sandbox that is to be brought up.
    pub(super) fn spawn_new(mut self) -> PodHandle {
        self.activity = SandboxActivity::Preparing;
        let (node, spec) = (self.node.clone(), self.spec.clone());
        let failed = Finished::Up(Box::new(Err(SandboxError::Panicked("bring-up"))));
        let mut turn = self.records.turn();
        self.work(failed, async move {
            turn.comes().await;
            Finished::Up(Box::new(bring_up::bring_up_and_record(node, spec).await))
        });
        self.spawn(None)
    }

    /// Starts the task of a sandbox found at start-up. `answer` is what its monitor still owes.
    pub(super) fn spawn_recovered(
        mut self,
        events: Option<Events>,
        answer: Option<adopt::Answer>,
    ) -> PodHandle {
        self.up.send_replace(Some(Ok(())));
        // What ended while no daemon watched has not been cleaned up after.
        let ended = |c: &Container| matches!(c.state, ContainerState::Exited { .. });
        let ended: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| ended(c)).map(|(id, _)| id.clone()).collect();
        for id in ended {
            self.clean(&id);
        }
        self.seeking = answer.is_some();
        self.await_starts();
        if let Some(answer) = answer {
            let (node, id) = (self.node.clone(), self.spec.id.clone());
            self.work(Finished::Answered(None), async move {
                let Some((monitor, events, reports)) = answer.await else { return Finished::Answered(None) };
                let reports = adopt::with_exits(&node, &id, reports).await;
                Finished::Answered(Some((monitor, events, reports)))
            });
        }
        self.publish();
        self.spawn(events)
    }

    fn spawn(self, events: Option<Events>) -> PodHandle {
        let (mailbox, commands) = mpsc::channel(MAILBOX);
        let handle = PodHandle { mailbox, snapshots: self.snapshots.subscribe(), up: self.up.subscribe() };
        tokio::spawn(self.run(commands, events));
        handle
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>, events: Option<Events>) {
        let mut events = events;
        while !self.gone {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                event = next(&mut events) => match event {
                    Some(event) => self.monitor_event(event),
                    // `Gone` came before.
                    None => events = None,
                },
                Some(finished) = self.jobs.join_next() => {
                    match finished {
                        Ok(Finished::Up(result)) => events = self.brought_up(*result),
                        Ok(Finished::Adopted(adopted)) => events = self.adopted(adopted),
                        Ok(Finished::Answered(adopted)) => {
                            if let Some(found) = self.answered(adopted) {
                                events = Some(found);
                            }
                        }
                        Ok(finished) => self.finished(finished),
                        // Log: A defect: the pod's task panicked. The pod can be stopped and removed.
                        // Do: Report it with the log.
                        Err(error) => tracing::error!(sandbox = %self.spec.id, %error, "a pod's work ended abnormally"),
                    }
                    for command in std::mem::take(&mut self.deferred) {
                        self.handle(command);
                    }
                }
            }
        }
        // Whoever still asks finds the sandbox gone: the mailbox closes.
    }

    /// Starts slow work; `failed` is its outcome should it panic, so that nobody waits for it for ever.
    fn work(&mut self, failed: Finished, work: impl Future<Output = Finished> + Send + 'static) {
        self.jobs.spawn(or_failed(failed, work));
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Create { new, reply } => self.create(*new, reply),
            Command::Start { id, reply } => self.start(id, reply),
            Command::Stop { id, grace, reply } => self.stop(id, grace, reply),
            Command::Remove { id, reply } => self.remove(id, reply),
            Command::Update { id, resources, reply } => self.update(id, resources, reply),
            Command::UpdatePod { limits, reply } => self.update_limits(*limits, reply),
            Command::StopPod { reply } => self.stop_pod(reply),
            Command::RemovePod { reply } => self.remove_pod(reply),
        }
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            // Handled where the events can be taken over.
            Finished::Up(_) | Finished::Adopted(_) | Finished::Answered(_) => {}
            Finished::StrangerEnded => {}
            Finished::Recorded(recorded) => self.recorded(recorded),
            Finished::RecordDue => self.record_again(),
            Finished::Undone { cause, undo } => self.undone(cause, undo),
            Finished::Down(result) => self.down(result),
            Finished::Limited { before, result, reply } => self.limited(before, result, reply),
            Finished::PodRemoved(result) => self.pod_removed(result),
            Finished::Created(id, result) => self.created(&id, *result),
            Finished::Started(id, result) => self.started(&id, result),
            Finished::Stopped(id, result) => self.stopped(&id, result),
            Finished::Cleaned(id) => {
                if let Some(container) = self.containers.get(&id) {
                    container.phase.send_replace(Phase::Cleaned);
                }
            }
            Finished::Removed(id, result) => self.removed(&id, result),
            Finished::Updated(id, resources, result) => self.updated(&id, *resources, result),
        }
    }

    pub(super) fn publish(&self) {
        let containers = self
            .containers
            .values()
            .filter(|c| c.state != ContainerState::Creating)
            .map(|c| {
                Arc::new(ContainerSnapshot {
                    spec: c.spec.clone(),
                    state: c.state.clone(),
                    resources: c.resources.clone(),
                    user: c.user.clone(),
                    unread: c.unread,
                    list_entry: Encoded::default(),
                })
            })
            .collect();
        let after = Arc::new(PodSnapshot {
            spec: self.spec.clone(),
            state: self.state.clone(),
            monitor: self.monitor.clone(),
            limits: self.limits.clone(),
            runtime: self.runtime.clone(),
            containers,
            list_entry: Encoded::default(),
        });
        let before = self.snapshots.send_replace(after.clone());
        self.announcer.compare(&self.node.clock, &before, &after);
    }
}

impl Container {
    fn may_run(&self) -> bool {
        self.state.may_have_process()
    }
}

/// A stop that is under way may only come sooner.
fn shorten(container: &Container, grace: Duration) {
    if let Some(kill_at) = &container.kill_at {
        let sooner = Instant::now() + grace;
        kill_at.send_if_modified(|at| {
            let changes = sooner < *at;
            if changes {
                *at = sooner;
            }
            changes
        });
    }
}

async fn or_failed<T>(failed: T, work: impl Future<Output = T>) -> T {
    // Nothing of `work` is looked at afterwards.
    std::panic::AssertUnwindSafe(work).catch_unwind().await.unwrap_or(failed)
}

async fn next(events: &mut Option<Events>) -> Option<MonitorEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

fn not_updatable(id: &ContainerId, state: &'static str) -> SandboxError {
    SandboxError::ContainerState { operation: "update", id: id.to_string(), state }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn work_that_panics_has_an_outcome() {
        assert_eq!(super::or_failed(1, async { 2 }).await, 2);
        assert_eq!(super::or_failed(1, async { panic!("on purpose") }).await, 1);
    }
}
