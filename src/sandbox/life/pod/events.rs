//! Events without a request: containers end; the monitor reports, falls silent or dies.

use super::{Container, Finished, Pod};
use crate::host::monitor::{Events, MonitorEvent};
use crate::model::{ContainerId, Timestamp};
use crate::sandbox::acts::adopt::{self, Late};
use crate::sandbox::acts::clean;
use crate::sandbox::acts::sweep;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::machine::{Activity, SandboxActivity};
use crate::sandbox::words::phase::Phase;
use crate::sandbox::words::state::{ContainerState, Exit, ExitSource, Holdings, NotReadyCause, SandboxState};
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord};
use std::time::{Duration, Instant};

/// First pause before what could not be cleaned up is tried again; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a process that hangs in the kernel may do so for days, and each try starts the OCI runtime.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// How long a container of which no process, cgroup or mount is left is kept for the OCI runtime's notes on it. The runtime is
/// asked to drop them for as long as the pod is there.
const NOTES_PATIENCE: Duration = Duration::from_secs(10);

impl Pod {
    pub(super) fn monitor_event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::ContainerExited { container_id, exit } => {
                self.container_exited(&container_id, &exit)
            }
            MonitorEvent::LogLost { container_id, bytes, reason } => {
                self.node.metrics.log_lost(bytes);
                // Log: A container's output could not be written to its log; the log says so where it is missing. At most every
                // 10 s for one container.
                // Do: Free the disk of the pods' logs (`reason`).
                tracing::warn!(container = %container_id, pod = %self.spec.name, bytes, reason, "output of a container was lost");
            }
            MonitorEvent::Gone => self.adopt_again(),
        }
    }

    pub(super) fn container_exited(&mut self, id: &str, record: &ExitRecord) {
        let Ok(id) = ContainerId::parse(id) else { return };
        self.ended(&id, Exit::from_record(record));
    }

    pub(super) fn ended(&mut self, id: &ContainerId, exit: Exit) {
        let Some(container) = self.containers.get(id) else { return };
        let started_at = match &container.state {
            // The runtime reports a start a moment after it; the end is reported exactly.
            ContainerState::Running { since, .. } => Some((*since).min(exit.finished_at)),
            // The runtime has not reported yet, but a process that ended did start.
            ContainerState::Starting => Some(exit.finished_at),
            ContainerState::Creating | ContainerState::Created | ContainerState::Exited { .. } => return,
        };
        self.node.metrics.exited(exit.reason.as_str());
        self.set_container_state(id, ContainerState::Exited { started_at, exit });
        self.clean(id);
    }

    /// Removes what the runtime and the kernel keep of an ended container, in the background.
    pub(super) fn clean(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        container.phase.send_replace(Phase::Exited);
        let (node, pod, spec, runtime) =
            (self.node.clone(), self.spec.clone(), container.spec.clone(), self.runtime.clone());
        // Whose end nobody saw may not have ended.
        let all = matches!(&container.state, ContainerState::Exited { exit, .. } if exit.source == ExitSource::Assumed);
        let (id, trouble, phase) = (id.clone(), container.trouble.clone(), container.phase.clone());
        self.work(Finished::Cleaned(id.clone()), async move {
            let (begun, mut pause, mut counted) = (Instant::now(), FIRST_PAUSE, None);
            while let Err(error) = clean::clean(&node, &pod, &spec, &runtime, all).await {
                // Log: Processes, runtime state, cgroup or mount of an ended container remain; tried again until they are gone.
                // Do: If it lasts: look for processes in state D.
                tracing::warn!(container = %spec.id, %error, "cannot clean up after a container yet");
                counted.get_or_insert_with(|| node.metrics.unclean());
                trouble.send_replace(Some(error.to_string()));
                // Only the runtime's own notes are left, which it may never be able to read again.
                if matches!(error, SandboxError::Oci(_)) && begun.elapsed() > NOTES_PATIENCE {
                    phase.send_replace(Phase::Cleaned);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
            Finished::Cleaned(id)
        });
    }

    /// The connection ended. A dead monitor is only one possible cause, and the one that costs the pod.
    pub(super) fn adopt_again(&mut self) {
        let Some(monitor) = &self.monitor else { return };
        let known = Some(monitor.info().process);
        let dir = self.node.places.pod_dir(&self.spec.id);
        self.work(
            Finished::Adopted(None),
            async move { Finished::Adopted(adopt::seek(dir, known, None).await) },
        );
    }

    /// Applies the monitor's current report, including what was missed.
    pub(super) fn adopted(&mut self, adopted: Option<adopt::Adopted>) -> Option<Events> {
        let Some((monitor, events, reports)) = adopted else {
            self.monitor_lost();
            return None;
        };
        // None: the tear-down was through first.
        self.monitor.as_ref()?;
        // Log: Nothing was lost.
        // Do: Nothing.
        tracing::warn!(sandbox = %self.spec.id, "the connection to the pod's monitor broke and was restored");
        self.monitor = Some(monitor);
        let now = Timestamp::now();
        let running: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, c)| matches!(c.state, ContainerState::Running { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            match reports.get(id.as_str()) {
                Some(MonitorContainer::Running { .. } | MonitorContainer::Starting) => {}
                Some(MonitorContainer::Exited(record)) => self.ended(&id, Exit::from_record(record)),
                None => self.ended(&id, Exit::unknown("its monitor does not know it any more", now)),
            }
        }
        self.publish();
        Some(events)
    }

    /// Takes up what a monitor says that could not be asked when the daemon started.
    pub(super) fn answered(&mut self, adopted: Option<adopt::Adopted>) -> Option<Events> {
        // Not: the tear-down was through first.
        if !std::mem::take(&mut self.seeking) {
            return None;
        }
        let Some((monitor, events, reports)) = adopted else {
            self.monitor_lost_now();
            return None;
        };
        self.monitor = Some(monitor.clone());
        // Log: It could not be reached when the daemon started.
        tracing::info!(sandbox = %self.spec.id, "the pod's monitor answers");
        let stranger = |id: &&String| !self.containers.contains_key(id.as_str());
        for id in reports.keys().filter(stranger) {
            let id = id.clone();
            let (node, pod, runtime) = (self.node.clone(), self.spec.clone(), self.runtime.clone());
            let monitor = monitor.clone();
            self.jobs.spawn(async move {
                sweep::end_stranger(&node, &pod, &runtime, Some(&monitor), &id).await;
                Finished::StrangerEnded
            });
        }
        // Not those with running work, which learns of their end itself.
        let due = |c: &Container| match c.state {
            ContainerState::Running { .. } => true,
            ContainerState::Creating | ContainerState::Created => c.activity == Activity::Idle,
            ContainerState::Starting | ContainerState::Exited { .. } => false,
        };
        let changed: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, c)| due(c))
            .filter_map(|(id, c)| Some((id.clone(), adopt::late((id, &c.state), &reports)?)))
            .collect();
        for (id, late) in changed {
            let state = match late {
                Late::Is(state) => state,
                Late::Undone => {
                    self.remove_unasked(&id);
                    continue;
                }
            };
            let ended = matches!(state, ContainerState::Exited { .. });
            if let (Some(container), false) = (self.containers.get(&id), ended) {
                container.phase.send_replace(Phase::Alive);
            }
            if let ContainerState::Exited { exit, .. } = &state {
                self.node.metrics.exited(exit.reason.as_str());
            }
            self.set_container_state(&id, state);
            if ended {
                self.clean(&id);
            }
        }
        self.await_starts();
        self.publish();
        Some(events)
    }

    pub(super) fn monitor_lost(&mut self) {
        if self.monitor.take().is_some() {
            self.monitor_lost_now();
        }
    }

    fn monitor_lost_now(&mut self) {
        (self.monitor, self.process) = (None, None);
        // A tear-down ends the monitor itself, and tells the state when it is through; but containers that are left
        // at that moment have nobody else who would tell their end.
        if matches!(self.state, SandboxState::Ready { .. }) && self.activity != SandboxActivity::Stopping {
            // Log: The monitor was killed, by the OOM killer or by hand. Its containers are killed, since
            // their end would go unnoticed.
            // Do: The kubelet replaces the pod. `dmesg` shows whether the kernel killed the monitor.
            tracing::error!(sandbox = %self.spec.id, pod = %self.spec.name, "the pod's monitor is gone, ending its containers");
            self.set_state(SandboxState::NotReady {
                why: NotReadyCause::MonitorLost,
                resources: Holdings::Held,
            });
        }
        let now = Timestamp::now();
        let running: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.may_run()).map(|(id, _)| id.clone()).collect();
        for id in running {
            self.ended(&id, Exit::unknown("the pod's monitor was lost", now));
        }
    }
}
