//! Requests on the sandbox itself: brought up or undone, torn down, removed.

use super::recording::Queue;
use super::{Container, Finished, Pod};
use crate::host::monitor::Events;
use crate::model::ContainerId;
use crate::sandbox::acts::bring_up::{self, BroughtUp};
use crate::sandbox::acts::bundle;
use crate::sandbox::acts::clean;
use crate::sandbox::life::mailbox::{Command, Reply, answer_all, send};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::machine::{Activity, Admission, SandboxActivity, SandboxRequest, admit_sandbox};
use crate::sandbox::words::record::PodLimits;
use crate::sandbox::words::state::{Holdings, NotReadyCause, SandboxState};
use std::sync::Arc;
use tokio::time::Instant;

impl Pod {
    pub(super) fn brought_up(&mut self, result: Result<BroughtUp, SandboxError>) -> Option<Events> {
        match result {
            Ok(up) => {
                self.monitor = Some(up.monitor);
                self.state = SandboxState::Ready { network: up.network };
                self.activity = SandboxActivity::Idle;
                self.publish();
                self.up.send_replace(Some(Ok(())));
                Some(up.events)
            }
            Err(cause) => {
                self.undo_bring_up(cause);
                None
            }
        }
    }

    fn undo_bring_up(&mut self, cause: SandboxError) {
        // Log: A pod did not start. The caller gets the same error.
        // Do: Look up the text of `error` above.
        tracing::warn!(sandbox = %self.spec.id, pod = %self.spec.name, error = %cause, "bring-up failed, undoing it");
        let (node, spec, monitor) = (self.node.clone(), self.spec.clone(), self.reach_monitor());
        let failed = Finished::Undone {
            cause: SandboxError::Panicked("bring-up"),
            undo: Err(SandboxError::Panicked("undoing a bring-up")),
        };
        let records = self.records.clone();
        self.work(failed, async move {
            let undo = match bring_up::tear_down(node.clone(), spec.clone(), monitor, Vec::new()).await {
                Ok(()) => {
                    let mut turn = records.turn();
                    turn.comes().await;
                    bring_up::erase(&node, &spec).await
                }
                failed => failed,
            };
            Finished::Undone { cause, undo }
        });
    }

    /// What is known of its monitor, for those who end it.
    fn reach_monitor(&self) -> bring_up::Reach {
        bring_up::Reach {
            monitor: self.monitor.clone(),
            process: self.monitor.as_ref().map(|monitor| monitor.info().process).or(self.process),
        }
    }

    pub(super) fn undone(&mut self, cause: SandboxError, undo: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        match undo {
            Ok(()) => {
                self.index.remove_pod(&self.spec);
                self.up.send_replace(Some(Err(Arc::new(cause))));
                self.gone = true;
            }
            Err(error) => {
                // It stays listed, so that the kubelet stops and removes it later.
                // Log: The pod is listed as NotReady with what it still holds.
                // Do: The kubelet stops and removes it, which tries again.
                tracing::error!(sandbox = %self.spec.id, %error, "a failed bring-up could not be undone");
                let why = NotReadyCause::BringUpFailed(cause.to_string());
                self.set_state(SandboxState::NotReady { why, resources: Holdings::Held });
                self.up.send_replace(Some(Err(Arc::new(SandboxError::Several(vec![cause, error])))));
            }
        }
    }

    pub(super) fn stop_pod(&mut self, reply: Reply<()>) {
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

    pub(super) fn begin_tear_down(&mut self) {
        self.activity = SandboxActivity::Stopping;
        let running: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.may_run()).map(|(id, _)| id.clone()).collect();
        for id in running {
            self.kill_now(&id);
        }
        let dying = self.containers.values().map(Container::dying).collect();
        let (node, spec, monitor) = (self.node.clone(), self.spec.clone(), self.reach_monitor());
        let failed = Finished::Down(Err(SandboxError::Panicked("tear-down")));
        self.work(
            failed,
            async move { Finished::Down(bring_up::tear_down(node, spec, monitor, dying).await) },
        );
    }

    pub(super) fn down(&mut self, result: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        let why = match &self.state {
            SandboxState::NotReady { why, .. } => why.clone(),
            SandboxState::Preparing | SandboxState::Ready { .. } => NotReadyCause::Stopped,
        };
        let resources = if result.is_ok() { Holdings::Released } else { Holdings::Held };
        if result.is_ok() {
            (self.monitor, self.process, self.seeking) = (None, None, false);
        }
        let outcome = result.map_err(Arc::new);
        if let Err(error) = &outcome {
            // Log: Steps of StopPodSandbox failed; `error` has all of them.
            // Do: The kubelet repeats the call. Mostly a CNI plugin fails: see its message.
            tracing::error!(sandbox = %self.spec.id, %error, "tear-down is not complete");
            // A caller waiting to remove it must learn why that fails.
            for command in std::mem::take(&mut self.deferred) {
                match command {
                    Command::RemovePod { reply } => send(reply, Err(error.clone())),
                    other => self.deferred.push(other),
                }
            }
        }
        let answers = self.waiters.drain(..).map(|waiter| (waiter, outcome.clone())).collect();
        self.set_state_and_answer(SandboxState::NotReady { why, resources }, answers);
    }

    pub(super) fn remove_pod(&mut self, reply: Reply<()>) {
        if self.containers.values().any(|c| c.activity == Activity::Creating) {
            // Its mounts are being made at this moment; they are removed afterwards.
            return self.deferred.push(Command::RemovePod { reply });
        }
        match admit_sandbox(&self.state, self.activity, SandboxRequest::Remove) {
            Admission::Do => {
                self.activity = SandboxActivity::Removing;
                self.waiters.push(reply);
                let (node, spec) = (self.node.clone(), self.spec.clone());
                let containers: Vec<_> = self.containers.values().map(Container::dying).collect();
                let mut records: Vec<_> = self.containers.values().map(|c| c.records.clone()).collect();
                records.push(self.records.clone());
                let failed = Finished::PodRemoved(Err(SandboxError::Panicked("removal")));
                self.work(failed, async move {
                    let mut errors = Vec::new();
                    let deadline = Instant::now() + clean::CLEAN_WAIT;
                    for mut dying in containers {
                        // The clean-up after its end runs by itself, and would be cut off when the pod is gone.
                        match dying.gone_by(deadline).await {
                            Ok(()) => errors.extend(bundle::remove(&node, &dying.spec).await.err()),
                            Err(why) => errors.push(clean::unclean(&dying.spec.id, why)),
                        }
                    }
                    if let Some(error) = SandboxError::all(errors) {
                        return Finished::PodRemoved(Err(error));
                    }
                    // No write is under way below it, nor begins.
                    let mut turns: Vec<_> = records.iter().map(Queue::turn).collect();
                    for turn in &mut turns {
                        turn.comes().await;
                    }
                    Finished::PodRemoved(bring_up::erase(&node, &spec).await)
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

    pub(super) fn pod_removed(&mut self, result: Result<(), SandboxError>) {
        self.activity = SandboxActivity::Idle;
        let outcome = result.map_err(Arc::new);
        if outcome.is_ok() {
            self.index.remove_pod(&self.spec);
            self.gone = true;
            let last = self.snapshots.borrow().clone();
            self.announcer.removed(&self.node.clock, &last);
        }
        answer_all(&mut self.waiters, &outcome);
    }

    /// Notes what the pod's cgroup is limited to. The kubelet has changed it already, and owns it.
    pub(super) fn update_limits(&mut self, limits: PodLimits, reply: Reply<()>) {
        if self.state == SandboxState::Preparing {
            return self.deferred.push(Command::UpdatePod { limits: Box::new(limits), reply });
        }
        // In memory at once, so that a later record does not take it back.
        let before = self.limits.replace(limits);
        let (node, spec, state) = (self.node.clone(), self.spec.clone(), self.record());
        let mut turn = self.records.turn();
        let failed =
            Finished::Limited { before: None, result: Err(SandboxError::Panicked("a record")), reply: None };
        self.work(failed, async move {
            turn.comes().await;
            let result = bring_up::write_state(&node, &spec, state).await;
            Finished::Limited { before, result, reply: Some(reply) }
        });
    }

    pub(super) fn limited(
        &mut self,
        before: Option<PodLimits>,
        result: Result<(), SandboxError>,
        reply: Option<Reply<()>>,
    ) {
        if result.is_err() {
            self.limits = before;
        }
        self.publish();
        if let Some(reply) = reply {
            send(reply, result.map_err(Arc::new));
        }
    }
}
