//! The owner task of one pod: its sandbox and its containers. Commands come in by a mailbox and are admitted by
//! `machine`; slow work runs in a `JoinSet` and comes back as `Finished`; the monitor's events come in beside. The
//! task never waits for slow work itself, so a stop that takes minutes delays nobody. Readers take snapshots.

mod containers;
mod events;
mod recording;
mod sandbox;

use super::manager::Index;
use super::recover;
use crate::host::monitor::{Events, Monitor, MonitorEvent};
use crate::host::oci::Runtime;
use crate::host::users::User;
use crate::images::Hold;
use crate::model::{ContainerId, ContainerSpec, Resources, SandboxSpec};
use crate::sandbox::acts::bring_up::{self, BroughtUp};
use crate::sandbox::acts::container::Prepared;
use crate::sandbox::acts::granted::Granted;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::records::{ContainerRecord, PodLimits};
use crate::sandbox::acts::volumes;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::machine::{Activity, SandboxActivity};
use crate::sandbox::words::snapshot::{ContainerSnapshot, Encoded, PodSnapshot};
use crate::sandbox::words::state::{ContainerState, Init, SandboxState};
use futures_util::FutureExt as _;
use podwright_monitor_proto::ProcessId;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A result that several callers may get.
pub(in crate::sandbox) type Outcome<T> = Result<T, Arc<SandboxError>>;
type Reply<T> = oneshot::Sender<Outcome<T>>;

/// A container to be made, with what was found for it.
#[derive(Debug)]
pub(in crate::sandbox) struct NewContainer {
    pub(in crate::sandbox) spec: ContainerSpec,
    pub(in crate::sandbox) hold: Arc<Hold>,
    pub(in crate::sandbox) volumes: volumes::Holds,
    pub(in crate::sandbox) granted: Granted,
    /// When its call has to be answered.
    pub(in crate::sandbox) until: Instant,
}

/// What may be asked of a pod.
#[derive(Debug)]
pub(in crate::sandbox) enum Command {
    Create { new: Box<NewContainer>, reply: Reply<ContainerId> },
    Start { id: ContainerId, reply: Reply<()> },
    Stop { id: ContainerId, grace: Duration, reply: Reply<()> },
    Remove { id: ContainerId, reply: Reply<()> },
    Update { id: ContainerId, resources: Box<Resources>, reply: Reply<()> },
    UpdatePod { limits: Box<PodLimits>, reply: Reply<()> },
    StopPod { reply: Reply<()> },
    RemovePod { reply: Reply<()> },
}

/// How far a container's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Phase {
    /// Not ended.
    Alive,
    /// Its init is gone.
    Exited,
    /// The runtime's state, cgroup and mounts are gone too.
    Cleaned,
}

/// A container whose end is waited for.
#[derive(Debug)]
pub(in crate::sandbox) struct Dying {
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    phase: watch::Receiver<Phase>,
    trouble: watch::Receiver<Option<String>>,
}

impl Dying {
    /// Waits until nothing is left of its processes, or until the deadline.
    ///
    /// # Errors
    /// Why something is left; empty where nobody knows.
    pub(in crate::sandbox) async fn gone_by(&mut self, deadline: Instant) -> Result<(), String> {
        let gone = self.phase.wait_for(|phase| *phase == Phase::Cleaned);
        match tokio::time::timeout_at(deadline, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.trouble.borrow().clone().unwrap_or_default()),
        }
    }
}

/// A container inside its pod's task.
#[derive(Debug)]
pub(in crate::sandbox) struct Container {
    pub(in crate::sandbox) spec: Arc<ContainerSpec>,
    pub(in crate::sandbox) state: ContainerState,
    pub(in crate::sandbox) resources: Resources,
    pub(in crate::sandbox) user: Option<User>,
    pub(in crate::sandbox) hold: Option<Arc<Hold>>,
    pub(in crate::sandbox) volumes: volumes::Holds,
    activity: Activity,
    waiters: Vec<Reply<()>>,
    create_waiters: Vec<Reply<ContainerId>>,
    /// The caller of the update that runs beside everything else.
    updating: Option<Reply<()>>,
    phase: watch::Sender<Phase>,
    /// Why it could not be cleaned up after yet.
    trouble: watch::Sender<Option<String>>,
    /// When SIGKILL is due, while it is being stopped.
    kill_at: Option<watch::Sender<Instant>>,
}

impl Container {
    pub(in crate::sandbox) fn new(
        spec: Arc<ContainerSpec>,
        state: ContainerState,
        resources: Resources,
    ) -> Self {
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
            hold: None,
            volumes: Arc::default(),
            activity: Activity::Idle,
            waiters: Vec::new(),
            create_waiters: Vec::new(),
            updating: None,
            phase: watch::Sender::new(phase),
            trouble: watch::Sender::new(None),
            kill_at: None,
        }
    }

    pub(in crate::sandbox) fn record(&self) -> ContainerRecord {
        ContainerRecord {
            container: self.state.clone(),
            resources: self.resources.clone(),
            user: self.user.clone(),
        }
    }

    /// For those who wait for its end.
    pub(in crate::sandbox) fn dying(&self) -> Dying {
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
    Adopted(Option<recover::Adopted>),
    /// The monitor that was looked for since the start has answered; None: it is proved dead.
    Answered(Option<recover::Adopted>),
    StrangerEnded,
    /// Records that could not be written are due again.
    RecordDue,
    Undone {
        cause: SandboxError,
        undo: Result<(), SandboxError>,
    },
    Down(Result<(), SandboxError>),
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
pub(in crate::sandbox) struct Pod {
    pub(in crate::sandbox) node: Arc<Node>,
    pub(in crate::sandbox) spec: Arc<SandboxSpec>,
    pub(in crate::sandbox) runtime: Arc<Runtime>,
    pub(in crate::sandbox) state: SandboxState,
    /// Once they have been changed.
    pub(in crate::sandbox) limits: Option<PodLimits>,
    pub(in crate::sandbox) monitor: Option<Monitor>,
    /// Its monitor's process as recorded, whether or not it can be reached.
    pub(in crate::sandbox) process: Option<ProcessId>,
    /// Its containers whose records cannot be read: they are nobody's to end.
    pub(in crate::sandbox) unread: HashSet<String>,
    /// It is not known whether its monitor lives.
    pub(in crate::sandbox) seeking: bool,
    pub(in crate::sandbox) containers: BTreeMap<ContainerId, Container>,
    index: Index,
    activity: SandboxActivity,
    jobs: JoinSet<Finished>,
    deferred: Vec<Command>,
    waiters: Vec<Reply<()>>,
    snapshots: watch::Sender<Arc<PodSnapshot>>,
    up: watch::Sender<Option<Outcome<()>>>,
    unwritten: recording::Unwritten,
    gone: bool,
}

/// What others hold of a pod.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct PodHandle {
    pub(in crate::sandbox) mailbox: mpsc::Sender<Command>,
    pub(in crate::sandbox) snapshots: watch::Receiver<Arc<PodSnapshot>>,
    /// The outcome of the bring-up; None while it runs.
    pub(in crate::sandbox) up: watch::Receiver<Option<Outcome<()>>>,
}

/// Commands that may wait in a mailbox: far more than a kubelet ever has in flight for one pod.
const MAILBOX: usize = 32;

impl Pod {
    pub(in crate::sandbox) fn new(
        node: Arc<Node>,
        index: Index,
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
        Self {
            node,
            spec,
            runtime,
            state,
            limits: None,
            monitor: None,
            process: None,
            unread: HashSet::new(),
            seeking: false,
            containers: BTreeMap::new(),
            index,
            activity: SandboxActivity::Idle,
            jobs: JoinSet::new(),
            deferred: Vec::new(),
            waiters: Vec::new(),
            snapshots: watch::Sender::new(Arc::new(picture)),
            up: watch::Sender::new(None),
            unwritten: recording::Unwritten::default(),
            gone: false,
        }
    }

    /// Starts the task of a sandbox that is to be brought up.
    pub(in crate::sandbox) fn spawn_new(mut self) -> PodHandle {
        self.activity = SandboxActivity::Preparing;
        let (node, spec) = (self.node.clone(), self.spec.clone());
        let failed = Finished::Up(Box::new(Err(SandboxError::Panicked("bring-up"))));
        self.work(failed, async move { Finished::Up(Box::new(bring_up::bring_up(node, spec).await)) });
        self.spawn(None)
    }

    /// Starts the task of a sandbox found at start-up. `answer` is what its monitor still owes.
    pub(in crate::sandbox) fn spawn_recovered(
        mut self,
        events: Option<Events>,
        answer: Option<recover::Answer>,
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
            self.work(Finished::Answered(None), async move { Finished::Answered(answer.await) });
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
            Finished::RecordDue => self.record_again(),
            Finished::Undone { cause, undo } => self.undone(cause, undo),
            Finished::Down(result) => self.down(result),
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

    pub(in crate::sandbox) fn publish(&self) {
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
        self.node.announcer.compare(&self.node.clock, &before, &after);
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

fn refuse<T>(error: SandboxError) -> Outcome<T> {
    Err(Arc::new(error))
}

/// Answers; a caller that went away needs none.
fn send<T>(reply: Reply<T>, outcome: Outcome<T>) {
    let _ = reply.send(outcome);
}

fn answer_all<T: Clone>(waiters: &mut Vec<Reply<T>>, outcome: &Outcome<T>) {
    for waiter in waiters.drain(..) {
        send(waiter, outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn work_that_panics_has_an_outcome() {
        assert_eq!(super::or_failed(1, async { 2 }).await, 2);
        assert_eq!(super::or_failed(1, async { panic!("on purpose") }).await, 1);
    }
}
