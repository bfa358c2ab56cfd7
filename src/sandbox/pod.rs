//! The owner task of one pod: its sandbox and its containers. Commands come in by a mailbox and are admitted by
//! `machine`; slow work runs in a `JoinSet` and comes back as `Finished`; the monitor's events come in beside. The
//! task never waits for slow work itself, so a stop that takes minutes delays nobody. Readers take snapshots.

use super::bring_up::{self, BroughtUp};
use super::container::{self, Prepared};
use super::error::SandboxError;
use super::machine::{
    Activity, Admission, ContainerRequest, SandboxActivity, SandboxRequest, admit_container, admit_sandbox,
};
use super::manager::Index;
use super::node::Node;
use super::record::ContainerRecord;
use super::recover;
use super::snapshot::{ContainerSnapshot, PodSnapshot};
use super::state::{ContainerState, Exit, Holdings, Init, NotReadyCause, SandboxState};
use super::stop;
use crate::host::monitor::{Events, Monitor, MonitorEvent};
use crate::host::oci::Runtime;
use crate::host::users::User;
use crate::images::Hold;
use crate::model::{ContainerId, ContainerSpec, Resources, SandboxSpec};
use futures_util::FutureExt as _;
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A result that several callers may get.
pub(super) type Outcome<T> = Result<T, Arc<SandboxError>>;
type Reply<T> = oneshot::Sender<Outcome<T>>;

/// What may be asked of a pod.
#[derive(Debug)]
pub(super) enum Command {
    Create { spec: Box<ContainerSpec>, hold: Arc<Hold>, reply: Reply<ContainerId> },
    Start { id: ContainerId, reply: Reply<()> },
    Stop { id: ContainerId, grace: Duration, reply: Reply<()> },
    Remove { id: ContainerId, reply: Reply<()> },
    Update { id: ContainerId, resources: Box<Resources>, reply: Reply<()> },
    StopPod { reply: Reply<()> },
    RemovePod { reply: Reply<()> },
}

/// How far a container's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not ended.
    Alive,
    /// Its init is gone.
    Exited,
    /// The runtime's state, cgroup and mounts are gone too.
    Cleaned,
}

/// A container inside its pod's task.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) state: ContainerState,
    pub(super) resources: Resources,
    pub(super) user: Option<User>,
    pub(super) hold: Option<Arc<Hold>>,
    activity: Activity,
    waiters: Vec<Reply<()>>,
    create_waiters: Vec<Reply<ContainerId>>,
    /// The caller of the update that runs beside everything else.
    updating: Option<Reply<()>>,
    phase: watch::Sender<Phase>,
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
            hold: None,
            activity: Activity::Idle,
            waiters: Vec::new(),
            create_waiters: Vec::new(),
            updating: None,
            phase: watch::Sender::new(phase),
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
    Undone { cause: SandboxError, undo: Result<(), SandboxError> },
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
pub(super) struct Pod {
    pub(super) node: Arc<Node>,
    pub(super) spec: Arc<SandboxSpec>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) state: SandboxState,
    pub(super) monitor: Option<Monitor>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    index: Index,
    activity: SandboxActivity,
    jobs: JoinSet<Finished>,
    deferred: Vec<Command>,
    waiters: Vec<Reply<()>>,
    snapshots: watch::Sender<Arc<PodSnapshot>>,
    up: watch::Sender<Option<Outcome<()>>>,
    gone: bool,
}

/// What others hold of a pod.
#[derive(Debug, Clone)]
pub(super) struct PodHandle {
    pub(super) mailbox: mpsc::Sender<Command>,
    pub(super) snapshots: watch::Receiver<Arc<PodSnapshot>>,
    /// The outcome of the bring-up; None while it runs.
    pub(super) up: watch::Receiver<Option<Outcome<()>>>,
}

/// Commands that may wait in a mailbox: far more than a kubelet ever has in flight for one pod.
const MAILBOX: usize = 32;

impl Pod {
    pub(super) fn new(
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
            runtime: runtime.clone(),
            containers: Vec::new(),
        };
        Self {
            node,
            spec,
            runtime,
            state,
            monitor: None,
            containers: BTreeMap::new(),
            index,
            activity: SandboxActivity::Idle,
            jobs: JoinSet::new(),
            deferred: Vec::new(),
            waiters: Vec::new(),
            snapshots: watch::Sender::new(Arc::new(picture)),
            up: watch::Sender::new(None),
            gone: false,
        }
    }

    /// Starts the task of a sandbox that is to be brought up.
    pub(super) fn spawn_new(mut self) -> PodHandle {
        self.activity = SandboxActivity::Preparing;
        let (node, spec) = (self.node.clone(), self.spec.clone());
        let failed = Finished::Up(Box::new(Err(SandboxError::Panicked("bring-up"))));
        self.work(failed, async move { Finished::Up(Box::new(bring_up::bring_up(node, spec).await)) });
        self.spawn(None)
    }

    /// Starts the task of a sandbox found at start-up.
    pub(super) fn spawn_recovered(mut self, events: Option<Events>) -> PodHandle {
        self.up.send_replace(Some(Ok(())));
        // What ended while no daemon watched has not been cleaned up after.
        let ended = |c: &Container| matches!(c.state, ContainerState::Exited { .. });
        let ended: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| ended(c)).map(|(id, _)| id.clone()).collect();
        for id in ended {
            self.clean(&id);
        }
        self.await_starts();
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
                        Ok(finished) => self.finished(finished),
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
            Command::Create { spec, hold, reply } => self.create(*spec, hold, reply),
            Command::Start { id, reply } => self.start(id, reply),
            Command::Stop { id, grace, reply } => self.stop(id, grace, reply),
            Command::Remove { id, reply } => self.remove(id, reply),
            Command::Update { id, resources, reply } => self.update(id, resources, reply),
            Command::StopPod { reply } => self.stop_pod(reply),
            Command::RemovePod { reply } => self.remove_pod(reply),
        }
    }

    // ---- the sandbox ----

    fn brought_up(&mut self, result: Result<BroughtUp, SandboxError>) -> Option<Events> {
        match result {
            Ok(up) => {
                self.activity = SandboxActivity::Idle;
                self.monitor = Some(up.monitor);
                self.set_state(SandboxState::Ready { network: up.network });
                self.up.send_replace(Some(Ok(())));
                Some(up.events)
            }
            Err(cause) => {
                tracing::warn!(sandbox = %self.spec.id, pod = %self.spec.name, error = %cause, "bring-up failed, undoing it");
                let (node, spec) = (self.node.clone(), self.spec.clone());
                let failed = Finished::Undone {
                    cause: SandboxError::Panicked("bring-up"),
                    undo: Err(SandboxError::Panicked("undoing a bring-up")),
                };
                self.work(failed, async move {
                    let undo = bring_up::tear_down(node, spec, None, Vec::new()).await;
                    Finished::Undone { cause, undo }
                });
                None
            }
        }
    }

    fn undone(&mut self, cause: SandboxError, undo: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        match undo.and_then(|()| self.erase()) {
            Ok(()) => {
                self.index.remove_pod(&self.spec);
                self.up.send_replace(Some(Err(Arc::new(cause))));
                self.gone = true;
            }
            Err(error) => {
                // It stays listed, so that the kubelet stops and removes it later.
                tracing::error!(sandbox = %self.spec.id, %error, "a failed bring-up could not be undone");
                let why = NotReadyCause::BringUpFailed(cause.to_string());
                self.set_state(SandboxState::NotReady { why, resources: Holdings::Held });
                self.up.send_replace(Some(Err(Arc::new(SandboxError::Several(vec![cause, error])))));
            }
        }
    }

    fn stop_pod(&mut self, reply: Reply<()>) {
        match admit_sandbox(&self.state, self.activity, SandboxRequest::Stop) {
            Admission::Do => {
                self.waiters.push(reply);
                self.begin_tear_down();
            }
            Admission::Join => self.waiters.push(reply),
            Admission::Wait | Admission::StopFirst => self.deferred.push(Command::StopPod { reply }),
            Admission::Already | Admission::Denied => send(reply, Ok(())),
        }
    }

    fn begin_tear_down(&mut self) {
        self.activity = SandboxActivity::Stopping;
        let running: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.may_run()).map(|(id, _)| id.clone()).collect();
        for id in running {
            self.kill_now(&id);
        }
        let dying = self.containers.iter().map(|(id, c)| (id.clone(), c.phase.subscribe())).collect();
        let (node, spec, monitor) = (self.node.clone(), self.spec.clone(), self.monitor.clone());
        let failed = Finished::Down(Err(SandboxError::Panicked("tear-down")));
        self.work(
            failed,
            async move { Finished::Down(bring_up::tear_down(node, spec, monitor, dying).await) },
        );
    }

    fn down(&mut self, result: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        let why = match &self.state {
            SandboxState::NotReady { why, .. } => why.clone(),
            SandboxState::Preparing | SandboxState::Ready { .. } => NotReadyCause::Stopped,
        };
        let resources = if result.is_ok() { Holdings::Released } else { Holdings::Held };
        if result.is_ok() {
            self.monitor = None;
        }
        self.set_state(SandboxState::NotReady { why, resources });
        let outcome = result.map_err(Arc::new);
        if let Err(error) = &outcome {
            tracing::error!(sandbox = %self.spec.id, %error, "tear-down is not complete");
            // Who waits to remove it must hear why it cannot be.
            for command in std::mem::take(&mut self.deferred) {
                match command {
                    Command::RemovePod { reply } => send(reply, Err(error.clone())),
                    other => self.deferred.push(other),
                }
            }
        }
        answer_all(&mut self.waiters, &outcome);
    }

    fn remove_pod(&mut self, reply: Reply<()>) {
        if self.containers.values().any(|c| c.activity == Activity::Creating) {
            // Its mounts are being made at this moment; they are removed when that has ended.
            return self.deferred.push(Command::RemovePod { reply });
        }
        match admit_sandbox(&self.state, self.activity, SandboxRequest::Remove) {
            Admission::Do => {
                self.activity = SandboxActivity::Removing;
                self.waiters.push(reply);
                let node = self.node.clone();
                let containers: Vec<_> = self
                    .containers
                    .values()
                    .map(|c| (c.spec.clone(), self.runtime.clone(), c.phase.subscribe()))
                    .collect();
                let failed = Finished::PodRemoved(Err(SandboxError::Panicked("removal")));
                self.work(failed, async move {
                    let mut errors = Vec::new();
                    for (spec, runtime, mut phase) in containers {
                        // The clean-up after its end runs by itself, and would be cut off when the pod is gone.
                        let _ = phase.wait_for(|p| *p == Phase::Cleaned).await;
                        errors.extend(container::remove(&node, &spec, &runtime).await.err());
                    }
                    Finished::PodRemoved(SandboxError::all(errors).map_or(Ok(()), Err))
                });
            }
            Admission::Join => self.waiters.push(reply),
            Admission::StopFirst => {
                self.begin_tear_down();
                self.deferred.push(Command::RemovePod { reply });
            }
            Admission::Wait => self.deferred.push(Command::RemovePod { reply }),
            Admission::Already | Admission::Denied => send(reply, Ok(())),
        }
    }

    fn pod_removed(&mut self, result: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        let outcome = result.and_then(|()| self.erase()).map_err(Arc::new);
        if outcome.is_ok() {
            self.index.remove_pod(&self.spec);
            self.gone = true;
        }
        answer_all(&mut self.waiters, &outcome);
    }

    /// Removes what is left on disk, the record last.
    fn erase(&self) -> Result<(), SandboxError> {
        let dir = self.node.pod_dir(&self.spec.id);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SandboxError::io("remove", &dir)(error));
            }
            _ => {}
        }
        Ok(self.node.records.remove_pod(&self.spec.id)?)
    }

    fn set_state(&mut self, state: SandboxState) {
        self.state = state;
        if let Err(error) = self.node.records.write_pod_state(&self.spec.id, &self.state) {
            // The state in memory is the truth; a restart would read an older one and reconcile it.
            tracing::error!(sandbox = %self.spec.id, %error, "cannot record a sandbox's state");
        }
        self.publish();
    }

    // ---- containers ----

    fn create(&mut self, spec: ContainerSpec, hold: Arc<Hold>, reply: Reply<ContainerId>) {
        if admit_sandbox(&self.state, self.activity, SandboxRequest::CreateContainer) != Admission::Do {
            let state = if self.activity == SandboxActivity::Idle { self.state.name() } else { "going down" };
            let id = self.spec.id.to_string();
            return send(
                reply,
                refuse(SandboxError::SandboxState { operation: "create a container", id, state }),
            );
        }
        let twin =
            self.containers.values_mut().find(|c| c.spec.name == spec.name && c.spec.attempt == spec.attempt);
        if let Some(twin) = twin {
            return match container::retry_of(&twin.spec, &spec) {
                true if twin.activity == Activity::Creating => twin.create_waiters.push(reply),
                true if twin.state == ContainerState::Created => send(reply, Ok(twin.spec.id.clone())),
                same => {
                    let why =
                        if same { "which was started already" } else { "which was asked for differently" };
                    let id = twin.spec.id.to_string();
                    let (name, attempt, sandbox) = (spec.name, spec.attempt, self.spec.id.clone());
                    send(reply, refuse(SandboxError::ContainerNameTaken { name, attempt, sandbox, id, why }));
                }
            };
        }
        let Some(monitor) = self.monitor.clone() else {
            return send(reply, refuse(SandboxError::MonitorLost(self.spec.id.clone())));
        };
        let target_pid =
            match container::target_pid(&spec, |id| self.containers.get(id).map(|c| c.state.clone())) {
                Ok(pid) => pid,
                Err(error) => return send(reply, refuse(error)),
            };
        let spec = Arc::new(spec);
        let resources = spec.resources.clone();
        let mut container = Container::new(spec.clone(), ContainerState::Creating, resources);
        container.hold = Some(hold.clone());
        container.activity = Activity::Creating;
        container.create_waiters.push(reply);
        let recorded = self.node.records.write_container(&spec).and_then(|()| {
            self.node.records.write_container_state(&self.spec.id, &spec.id, &container.record())
        });
        if let Err(error) = recorded {
            answer_all(&mut container.create_waiters, &refuse(error.into()));
            return;
        }
        let id = spec.id.clone();
        self.index.add_container(&id, &self.spec.id);
        self.containers.insert(id.clone(), container);
        let request = container::Request {
            node: self.node.clone(),
            pod: self.spec.clone(),
            spec,
            hold,
            namespaces: monitor.info().namespaces.clone(),
            target_pid,
        };
        let runtime = self.runtime.clone();
        let failed = Finished::Created(id.clone(), Box::new(Err(SandboxError::Panicked("creation"))));
        self.work(failed, async move {
            let result = container::prepare_or_undo(request, &runtime).await;
            Finished::Created(id, Box::new(result))
        });
    }

    fn created(&mut self, id: &ContainerId, result: Result<Prepared, SandboxError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.activity = Activity::Idle;
        match result {
            Ok(prepared) => {
                container.user = Some(prepared.user);
                let waiters = std::mem::take(&mut container.create_waiters);
                self.set_container_state(id, ContainerState::Created);
                for waiter in waiters {
                    send(waiter, Ok(id.clone()));
                }
            }
            Err(error) => {
                let outcome = refuse(error);
                answer_all(&mut container.create_waiters, &outcome);
                self.forget_container(id);
                self.publish();
            }
        }
    }

    fn start(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return send(reply, refuse(SandboxError::ContainerNotFound(id.to_string())));
        };
        let admission = admit_container(&container.state, container.activity, ContainerRequest::Start);
        let (state, sandbox) = (container.state.name(), self.spec.id.clone());
        if admission == Admission::Do
            && admit_sandbox(&self.state, self.activity, SandboxRequest::StartContainer) != Admission::Do
        {
            let state = if self.activity == SandboxActivity::Idle { self.state.name() } else { "going down" };
            let id = sandbox.to_string();
            let operation = "start a container";
            return send(reply, refuse(SandboxError::SandboxState { operation, id, state }));
        }
        match (admission, self.monitor.clone()) {
            (Admission::Do, None) => send(reply, refuse(SandboxError::MonitorLost(sandbox))),
            (Admission::Do, Some(monitor)) => {
                container.activity = Activity::Starting;
                container.waiters.push(reply);
                self.node.expect_cgroup_moves();
                container.phase.send_replace(Phase::Alive);
                let (node, spec, runtime) = (self.node.clone(), container.spec.clone(), self.runtime.clone());
                self.set_container_state(&id, ContainerState::Starting);
                let failed = Finished::Started(id.clone(), Err(SandboxError::Panicked("start")));
                self.work(failed, async move {
                    let result = container::start(&node, &monitor, &spec, &runtime).await;
                    Finished::Started(id, result)
                });
            }
            (Admission::Join, _) => container.waiters.push(reply),
            (Admission::Wait, _) => self.deferred.push(Command::Start { id, reply }),
            (Admission::Already | Admission::StopFirst | Admission::Denied, _) => {
                let id = id.to_string();
                send(reply, refuse(SandboxError::ContainerState { operation: "start", id, state }));
            }
        }
    }

    /// Waits for the starts that an earlier daemon asked for.
    fn await_starts(&mut self) {
        let Some(monitor) = self.monitor.clone() else { return };
        let mut starting = Vec::new();
        for (id, container) in &mut self.containers {
            if container.state == ContainerState::Starting {
                container.activity = Activity::Starting;
                starting.push(id.clone());
            }
        }
        for id in starting {
            let monitor = monitor.clone();
            let failed = Finished::Started(id.clone(), Err(SandboxError::Panicked("start")));
            self.work(failed, async move {
                let result = container::await_start(&monitor, &id).await;
                Finished::Started(id, result)
            });
        }
    }

    fn started(&mut self, id: &ContainerId, result: Result<Init, SandboxError>) {
        let now = self.node.clock.now();
        let Some(container) = self.containers.get(id) else { return };
        let (state, outcome) = match result {
            Ok(init) => (ContainerState::Running { init, since: now }, Ok(())),
            Err(error) => {
                let exit = Exit::start_error(error.to_string(), now);
                (ContainerState::Exited { started_at: None, exit }, refuse(error))
            }
        };
        // Its end may have been told before its start.
        let still_starting = container.state == ContainerState::Starting;
        if still_starting {
            let failed = outcome.is_err();
            self.set_container_state(id, state);
            if failed {
                self.clean(id);
            }
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.answer(&outcome);
        }
    }

    fn stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else { return send(reply, Ok(())) };
        match admit_container(&container.state, container.activity, ContainerRequest::Stop) {
            Admission::Do => {
                container.waiters.push(reply);
                self.begin_stop(&id, grace);
            }
            Admission::Join => {
                container.waiters.push(reply);
                shorten(container, grace);
            }
            Admission::Wait => self.deferred.push(Command::Stop { id, grace, reply }),
            Admission::Already | Admission::StopFirst | Admission::Denied => send(reply, Ok(())),
        }
    }

    fn begin_stop(&mut self, id: &ContainerId, grace: Duration) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.activity = Activity::Stopping;
        let kill_at = watch::Sender::new(Instant::now() + grace);
        let request = stop::Request {
            node: self.node.clone(),
            monitor: self.monitor.clone(),
            pod: self.spec.clone(),
            spec: container.spec.clone(),
            init: match container.state {
                ContainerState::Running { init, .. } => Some(init),
                _ => None,
            },
            signal: container::stop_signal(&container.spec, container.hold.as_deref()),
            kill_at: kill_at.subscribe(),
            phase: container.phase.subscribe(),
        };
        container.kill_at = Some(kill_at);
        let id = id.clone();
        let failed = Finished::Stopped(id.clone(), Err(SandboxError::Panicked("stop")));
        self.work(failed, async move {
            stop::stop(request).await;
            Finished::Stopped(id, Ok(()))
        });
    }

    /// Has a container killed without grace, whatever runs on it now.
    fn kill_now(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        match admit_container(&container.state, container.activity, ContainerRequest::Stop) {
            Admission::Do => self.begin_stop(id, Duration::ZERO),
            Admission::Join => shorten(container, Duration::ZERO),
            Admission::Wait => {
                let (reply, _) = oneshot::channel();
                self.deferred.push(Command::Stop { id: id.clone(), grace: Duration::ZERO, reply });
            }
            Admission::Already | Admission::StopFirst | Admission::Denied => {}
        }
    }

    fn stopped(&mut self, id: &ContainerId, result: Result<(), SandboxError>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.kill_at = None;
            container.answer(&result.map_err(Arc::new));
        }
    }

    fn remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else { return send(reply, Ok(())) };
        match admit_container(&container.state, container.activity, ContainerRequest::Remove) {
            Admission::Do => {
                container.activity = Activity::Removing;
                container.waiters.push(reply);
                let mut phase = container.phase.subscribe();
                let (node, spec, runtime) = (self.node.clone(), container.spec.clone(), self.runtime.clone());
                let monitor = self.monitor.clone();
                let failed = Finished::Removed(id.clone(), Err(SandboxError::Panicked("removal")));
                self.work(failed, async move {
                    // The clean-up after its end runs by itself; two at once would step on each other.
                    let _ = phase.wait_for(|p| *p == Phase::Cleaned).await;
                    let result = container::remove(&node, &spec, &runtime).await;
                    if let (Ok(()), Some(monitor)) = (&result, monitor) {
                        container::forget(&monitor, &spec.id).await;
                    }
                    Finished::Removed(id, result)
                });
            }
            Admission::Join => container.waiters.push(reply),
            Admission::StopFirst => {
                self.kill_now(&id);
                self.deferred.push(Command::Remove { id, reply });
            }
            Admission::Wait => self.deferred.push(Command::Remove { id, reply }),
            Admission::Already | Admission::Denied => send(reply, Ok(())),
        }
    }

    fn removed(&mut self, id: &ContainerId, result: Result<(), SandboxError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let outcome = result.map_err(Arc::new);
        let mut waiters = std::mem::take(&mut container.waiters);
        container.activity = Activity::Idle;
        if outcome.is_ok() {
            self.forget_container(id);
            self.publish();
        }
        answer_all(&mut waiters, &outcome);
    }

    fn forget_container(&mut self, id: &ContainerId) {
        self.containers.remove(id);
        self.index.remove_container(id);
        if let Err(error) = self.node.records.remove_container(&self.spec.id, id) {
            tracing::error!(container = %id, %error, "cannot remove a container's record");
        }
    }

    /// One update at a time, so that each builds on what the one before has made.
    fn update(&mut self, id: ContainerId, resources: Box<Resources>, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return send(reply, refuse(SandboxError::ContainerNotFound(id.to_string())));
        };
        let busy = matches!(container.activity, Activity::Creating | Activity::Starting);
        if busy || container.updating.is_some() {
            return self.deferred.push(Command::Update { id, resources, reply });
        }
        if container.activity == Activity::Removing {
            return send(reply, refuse(not_updatable(&id, "being removed")));
        }
        let live = match container.state {
            ContainerState::Created => false,
            ContainerState::Running { .. } => true,
            ContainerState::Creating | ContainerState::Starting | ContainerState::Exited { .. } => {
                return send(reply, refuse(not_updatable(&id, container.state.name())));
            }
        };
        container.updating = Some(reply);
        let wanted = container::updated(&container.resources, &resources);
        let (node, runtime) = (self.node.clone(), self.runtime.clone());
        let failed =
            Finished::Updated(id.clone(), Box::default(), Err(SandboxError::Panicked("an update of limits")));
        self.work(failed, async move {
            let result = container::update(&node, &id, &runtime, &wanted, live).await;
            Finished::Updated(id, Box::new(wanted), result)
        });
    }

    fn updated(&mut self, id: &ContainerId, resources: Resources, result: Result<(), SandboxError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let reply = container.updating.take();
        let result = match (result, container.activity, &container.state) {
            // Its end came first; the words of the runtime on that help nobody.
            (Err(_), _, ContainerState::Exited { .. }) => Err(not_updatable(id, container.state.name())),
            (Err(_), Activity::Stopping, _) => Err(not_updatable(id, "being stopped")),
            (Err(_), Activity::Removing, _) => Err(not_updatable(id, "being removed")),
            (result, _, _) => result,
        };
        if result.is_ok() {
            container.resources = resources;
            let state = container.state.clone();
            self.set_container_state(id, state);
        }
        if let Some(reply) = reply {
            send(reply, result.map_err(Arc::new));
        }
    }

    fn set_container_state(&mut self, id: &ContainerId, state: ContainerState) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.state = state;
        let record = container.record();
        if let Err(error) = self.node.records.write_container_state(&self.spec.id, id, &record) {
            tracing::error!(container = %id, %error, "cannot record a container's state");
        }
        self.publish();
    }

    // ---- what happens by itself ----

    fn monitor_event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::ContainerExited { container_id, exit } => {
                self.container_exited(&container_id, &exit)
            }
            MonitorEvent::ExecExited { exec_id, exit_code, .. } => self.node.execs.ended(&exec_id, exit_code),
            MonitorEvent::Gone => self.adopt_again(),
        }
    }

    fn container_exited(&mut self, id: &str, record: &ExitRecord) {
        let Ok(id) = ContainerId::parse(id) else { return };
        self.ended(&id, Exit::from_record(record));
    }

    fn ended(&mut self, id: &ContainerId, exit: Exit) {
        let Some(container) = self.containers.get(id) else { return };
        let started_at = match &container.state {
            // The runtime reports a start a moment after it; the end is told exactly.
            ContainerState::Running { since, .. } => Some((*since).min(exit.finished_at)),
            // The runtime has not reported yet, but a process that ended did start.
            ContainerState::Starting => Some(exit.finished_at),
            ContainerState::Creating | ContainerState::Created | ContainerState::Exited { .. } => return,
        };
        self.node.metrics.exited(exit.reason.as_str());
        self.set_container_state(id, ContainerState::Exited { started_at, exit });
        self.clean(id);
    }

    /// Removes what the runtime and the kernel keep of an ended container, beside everything else.
    fn clean(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        container.phase.send_replace(Phase::Exited);
        let (node, pod, spec, runtime) =
            (self.node.clone(), self.spec.clone(), container.spec.clone(), self.runtime.clone());
        let id = id.clone();
        // Removal tries again.
        self.work(Finished::Cleaned(id.clone()), async move {
            if let Err(error) = container::clean(&node, &pod, &spec, &runtime).await {
                // Removal tries again and reports.
                tracing::warn!(container = %spec.id, %error, "cannot clean up after a container yet");
            }
            Finished::Cleaned(id)
        });
    }

    /// The connection ended. That the monitor is dead is only one of its causes, and the one that costs the pod.
    fn adopt_again(&mut self) {
        if self.monitor.is_none() {
            return;
        }
        let dir = self.node.pod_dir(&self.spec.id);
        self.work(Finished::Adopted(None), async move { Finished::Adopted(recover::adopt(&dir).await) });
    }

    /// Takes up what the monitor says now, and what was missed meanwhile.
    fn adopted(&mut self, adopted: Option<recover::Adopted>) -> Option<Events> {
        let Some((monitor, events, reports)) = adopted else {
            self.monitor_lost();
            return None;
        };
        // None: the tear-down was through first.
        self.monitor.as_ref()?;
        tracing::warn!(sandbox = %self.spec.id, "the connection to the pod's monitor broke and was made anew");
        self.monitor = Some(monitor);
        let now = self.node.clock.now();
        let running: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, c)| matches!(c.state, ContainerState::Running { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            match reports.get(id.as_str()) {
                Some(MonitorContainer::Running { .. } | MonitorContainer::Creating) => {}
                Some(MonitorContainer::Exited(record)) => self.ended(&id, Exit::from_record(record)),
                None => self.ended(&id, Exit::unknown("its monitor does not know it any more", now)),
            }
        }
        self.publish();
        Some(events)
    }

    fn monitor_lost(&mut self) {
        if self.monitor.take().is_none() {
            return;
        }
        // A tear-down ends the monitor itself, and tells the state when it is through; but containers that are left
        // at that moment have nobody else who would tell their end.
        if matches!(self.state, SandboxState::Ready { .. }) && self.activity != SandboxActivity::Stopping {
            tracing::error!(sandbox = %self.spec.id, pod = %self.spec.name, "the pod's monitor is gone, ending its containers");
            self.set_state(SandboxState::NotReady {
                why: NotReadyCause::MonitorLost,
                resources: Holdings::Held,
            });
        }
        let now = self.node.clock.now();
        let running: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.may_run()).map(|(id, _)| id.clone()).collect();
        for id in running {
            self.ended(&id, Exit::unknown("the pod's monitor was lost", now));
        }
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            // Handled where the events can be taken over.
            Finished::Up(_) | Finished::Adopted(_) => {}
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
                })
            })
            .collect();
        self.snapshots.send_replace(Arc::new(PodSnapshot {
            spec: self.spec.clone(),
            state: self.state.clone(),
            monitor: self.monitor.clone(),
            runtime: self.runtime.clone(),
            containers,
        }));
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
