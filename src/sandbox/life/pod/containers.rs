//! What happens to the containers at somebody's request: created, started, stopped, updated, removed.

use super::recording::{Answers, Which};
use super::{Container, Finished, Pod, not_updatable, shorten};
use crate::model::{ContainerId, Resources, Timestamp};
use crate::sandbox::acts::bundle::{self, Prepared};
use crate::sandbox::acts::clean;
use crate::sandbox::acts::creation;
use crate::sandbox::acts::run;

use crate::sandbox::acts::launch;
use crate::sandbox::acts::stop;
use crate::sandbox::life::mailbox::{Command, NewContainer, Reply, answer_all, refuse, send};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::machine::{
    Activity, Admission, ContainerRequest, SandboxActivity, SandboxRequest, admit_container, admit_sandbox,
};
use crate::sandbox::words::phase::Phase;
use crate::sandbox::words::state::{ContainerState, Exit, Init};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

impl Pod {
    pub(super) fn create(&mut self, new: NewContainer, reply: Reply<ContainerId>) {
        let NewContainer { mut spec, hold, volumes, granted, until } = new;
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
            return match bundle::retry_of(&twin.spec, &spec) {
                true if twin.activity == Activity::Creating => twin.create_waiters.push(reply),
                true if twin.state == ContainerState::Created => send(reply, Ok(twin.spec.id.clone())),
                same => {
                    let why =
                        if same { "which was started already" } else { "which has another configuration" };
                    let id = twin.spec.id.to_string();
                    let (name, attempt, sandbox) = (spec.name, spec.attempt, self.spec.id.clone());
                    send(reply, refuse(SandboxError::ContainerNameTaken { name, attempt, sandbox, id, why }));
                }
            };
        }
        let Some(monitor) = self.monitor.clone() else {
            return send(reply, refuse(SandboxError::no_monitor(&self.spec.id, &self.state)));
        };
        let target = match run::target(&spec, |id| self.containers.get(id).map(|c| c.state.clone())) {
            Ok(target) => target,
            Err(error) => return send(reply, refuse(error)),
        };
        let attempts = self.containers.values().filter(|other| other.spec.name == spec.name);
        spec.created_at = spec.created_at.after(attempts.map(|other| other.spec.created_at));
        let spec = Arc::new(spec);
        let resources = spec.resources.clone();
        let mut container = Container::new(spec.clone(), ContainerState::Creating, resources);
        container.hold = Some(hold.clone());
        container.volumes = volumes.clone();
        container.activity = Activity::Creating;
        container.create_waiters.push(reply);
        let id = spec.id.clone();
        let siblings = self.containers.keys().cloned().collect();
        self.index.add_container(&id, &self.spec.id);
        let record = container.record();
        self.containers.insert(id.clone(), container);
        let request = bundle::Request {
            node: self.node.clone(),
            pod: self.spec.clone(),
            spec,
            hold,
            volumes,
            granted,
            namespaces: monitor.info().namespaces.clone(),
            target,
            until,
            siblings,
            record,
        };
        let failed = Finished::Created(id.clone(), Box::new(Err(SandboxError::Panicked("creation"))));
        self.work(failed, async move {
            let result = creation::create(request).await;
            Finished::Created(id, Box::new(result))
        });
    }

    pub(super) fn created(&mut self, id: &ContainerId, result: Result<Prepared, SandboxError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.activity = Activity::Idle;
        match result {
            Ok(prepared) => {
                container.user = Some(prepared.user);
                container.state = ContainerState::Created;
                let mut waiters = std::mem::take(&mut container.create_waiters);
                self.publish();
                answer_all(&mut waiters, &Ok(id.clone()));
            }
            Err(error) => {
                let outcome = refuse(error);
                answer_all(&mut container.create_waiters, &outcome);
                self.forget_container(id);
                self.publish();
            }
        }
    }

    pub(super) fn start(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return send(reply, refuse(SandboxError::ContainerNotFound(id.to_string())));
        };
        if container.unread {
            let (id, state) = (id.to_string(), "unknown: its record cannot be read");
            return send(reply, refuse(SandboxError::ContainerState { operation: "start", id, state }));
        }
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
            (Admission::Do, None) => send(reply, refuse(SandboxError::no_monitor(&sandbox, &self.state))),
            (Admission::Do, Some(monitor)) => {
                let (node, spec, runtime) = (self.node.clone(), container.spec.clone(), self.runtime.clone());
                let pod = self.spec.clone();
                container.state = ContainerState::Starting;
                container.activity = Activity::Starting;
                container.waiters.push(reply);
                container.phase.send_replace(Phase::Alive);
                let (mut turn, record) = (container.records.turn(), container.record());
                self.publish();
                self.node.cgroups.expect_moves();
                let failed = Finished::Started(id.clone(), Err(SandboxError::Panicked("start")));
                self.work(failed, async move {
                    turn.comes().await;
                    // Nothing runs of which the record says that it never did.
                    let recorded = creation::write(&node, &pod.id, &id, record).await;
                    drop(turn);
                    let result = match recorded {
                        Ok(()) => run::start(&node, &monitor, &pod, &spec, &runtime).await,
                        Err(error) => Err(error),
                    };
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
    pub(super) fn await_starts(&mut self) {
        // One that is being looked for says more when it is found.
        let Some(monitor) = self.monitor.clone().filter(|_| !self.seeking) else { return };
        let mut starting = Vec::new();
        for (id, container) in &mut self.containers {
            if container.state == ContainerState::Starting && container.activity == Activity::Idle {
                container.activity = Activity::Starting;
                starting.push(id.clone());
            }
        }
        for id in starting {
            let monitor = monitor.clone();
            let failed = Finished::Started(id.clone(), Err(SandboxError::Panicked("start")));
            self.work(failed, async move {
                let result = launch::await_start(&monitor, &id).await;
                Finished::Started(id, result)
            });
        }
    }

    pub(super) fn started(&mut self, id: &ContainerId, result: Result<Init, SandboxError>) {
        let now = Timestamp::now();
        let Some(container) = self.containers.get_mut(id) else { return };
        let (state, outcome) = match result {
            Ok(init) => (ContainerState::Running { init, since: now }, Ok(())),
            // An earlier daemon wanted to start it, and its monitor was not asked, or undid it.
            // Or it could not be recorded, and was not asked for.
            Err(error @ (SandboxError::StartUnseen(_) | SandboxError::Record(_))) => {
                container.phase.send_replace(Phase::Cleaned);
                (ContainerState::Created, refuse(error))
            }
            Err(error) => {
                let exit = Exit::start_error(error.to_string(), now);
                (ContainerState::Exited { started_at: None, exit }, refuse(error))
            }
        };
        // Its end may have been told before its start.
        let still_starting = container.state == ContainerState::Starting;
        if !still_starting {
            return container.answer(&outcome);
        }
        container.activity = Activity::Idle;
        let answers = container.waiters.drain(..).map(|waiter| (waiter, outcome.clone())).collect();
        let failed = matches!(state, ContainerState::Exited { .. });
        self.set_container_state_and_answer(id, state, answers);
        if failed {
            self.clean(id);
        }
    }

    pub(super) fn stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
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

    pub(super) fn begin_stop(&mut self, id: &ContainerId, grace: Duration) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.activity = Activity::Stopping;
        let kill_at = watch::Sender::new(Instant::now() + grace);
        let request = stop::Request {
            cgroups: self.node.cgroups.clone(),
            monitor: self.monitor.clone(),
            pod: self.spec.clone(),
            spec: container.spec.clone(),
            init: match container.state {
                ContainerState::Running { init, .. } => Some(init),
                _ => None,
            },
            signal: stop::stop_signal(&container.spec, container.hold.as_deref()),
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
    pub(super) fn kill_now(&mut self, id: &ContainerId) {
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

    pub(super) fn stopped(&mut self, id: &ContainerId, result: Result<(), SandboxError>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.kill_at = None;
            container.answer(&result.map_err(Arc::new));
        }
    }

    pub(super) fn remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else { return send(reply, Ok(())) };
        match admit_container(&container.state, container.activity, ContainerRequest::Remove) {
            Admission::Do => {
                container.activity = Activity::Removing;
                container.waiters.push(reply);
                let mut dying = container.dying();
                let (node, spec) = (self.node.clone(), container.spec.clone());
                let (monitor, records) = (self.monitor.clone(), container.records.clone());
                let failed = Finished::Removed(id.clone(), Err(SandboxError::Panicked("removal")));
                self.work(failed, async move {
                    // The clean-up after its end runs by itself; two at once would step on each other.
                    let result = match dying.gone_by(Instant::now() + clean::CLEAN_WAIT).await {
                        Ok(()) => bundle::remove(&node, &spec).await,
                        Err(why) => Err(clean::unclean(&spec.id, why)),
                    };
                    if result.is_ok() {
                        if let Some(monitor) = monitor {
                            run::forget(&monitor, &spec.id).await;
                        }
                        let mut turn = records.turn();
                        turn.comes().await;
                        creation::forget(&node, &spec.sandbox_id, &spec.id).await;
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

    /// Removes what nobody has asked to be removed: a creation that did not finish.
    pub(super) fn remove_unasked(&mut self, id: &ContainerId) {
        let (reply, _) = oneshot::channel();
        self.remove(id.clone(), reply);
    }

    pub(super) fn removed(&mut self, id: &ContainerId, result: Result<(), SandboxError>) {
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

    pub(super) fn forget_container(&mut self, id: &ContainerId) {
        self.containers.remove(id);
        self.index.remove_container(id);
    }

    /// One update at a time, so that each builds on what the one before has made.
    pub(super) fn update(&mut self, id: ContainerId, resources: Box<Resources>, reply: Reply<()>) {
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
        let old = container.resources.clone();
        let wanted = run::updated(&old, &resources);
        let (node, pod, runtime) = (self.node.clone(), self.spec.clone(), self.runtime.clone());
        let failed =
            Finished::Updated(id.clone(), Box::default(), Err(SandboxError::Panicked("an update of limits")));
        self.work(failed, async move {
            let result = run::update(&node, &pod, &id, &runtime, (&old, &wanted), live).await;
            Finished::Updated(id, Box::new(wanted), result)
        });
    }

    pub(super) fn updated(
        &mut self,
        id: &ContainerId,
        resources: Resources,
        result: Result<(), SandboxError>,
    ) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let reply = container.updating.take();
        let result = match (result, container.activity, &container.state) {
            // Its end came first; the words of the runtime on that help nobody.
            (Err(_), _, ContainerState::Exited { .. }) => Err(not_updatable(id, container.state.name())),
            (Err(_), Activity::Stopping, _) => Err(not_updatable(id, "being stopped")),
            (Err(_), Activity::Removing, _) => Err(not_updatable(id, "being removed")),
            (result, _, _) => result,
        };
        let outcome = result.map_err(Arc::new);
        let answers = reply.into_iter().map(|reply| (reply, outcome.clone())).collect();
        if outcome.is_ok() {
            container.resources = resources;
            self.publish();
            self.write(Which::Container(id.clone()), answers);
            return;
        }
        for (reply, outcome) in Answers::into_iter(answers) {
            send(reply, outcome);
        }
    }
}
