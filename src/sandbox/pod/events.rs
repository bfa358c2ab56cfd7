//! Events without a request: containers end; the monitor reports, falls silent or dies.

use super::{Container, Finished, Phase, Pod};
use crate::host::monitor::{Events, MonitorEvent};
use crate::model::ContainerId;
use crate::sandbox::container;
use crate::sandbox::machine::{Activity, SandboxActivity};
use crate::sandbox::recover;
use crate::sandbox::state::{ContainerState, Exit, Holdings, NotReadyCause, SandboxState};
use podwright_monitor_proto::{ContainerState as MonitorContainer, ExitRecord};

impl Pod {
    pub(super) fn monitor_event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::ContainerExited { container_id, exit } => {
                self.container_exited(&container_id, &exit)
            }
            MonitorEvent::ExecExited { exec_id, exit_code, .. } => self.node.execs.ended(&exec_id, exit_code),
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
        let id = id.clone();
        // Removal tries again.
        self.work(Finished::Cleaned(id.clone()), async move {
            if let Err(error) = container::clean(&node, &pod, &spec, &runtime).await {
                // Removal tries again and reports.
                // Log: Runtime state, cgroup or mount of an ended container remain; tried again.
                // Do: If it lasts: look for processes in state D.
                tracing::warn!(container = %spec.id, %error, "cannot clean up after a container yet");
            }
            Finished::Cleaned(id)
        });
    }

    /// The connection ended. A dead monitor is only one possible cause, and the one that costs the pod.
    pub(super) fn adopt_again(&mut self) {
        if self.monitor.is_none() {
            return;
        }
        let dir = self.node.pod_dir(&self.spec.id);
        self.work(Finished::Adopted(None), async move { Finished::Adopted(recover::adopt(&dir).await) });
    }

    /// Applies the monitor's current report, including what was missed.
    pub(super) fn adopted(&mut self, adopted: Option<recover::Adopted>) -> Option<Events> {
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

    /// Applies the report of a monitor that was silent when the daemon started.
    pub(super) fn answered(&mut self, reports: Option<recover::Reports>) {
        let Some(reports) = reports else { return self.monitor_lost() };
        // None: the tear-down finished first, or its connection broke and it is adopted again.
        let Some(monitor) = self.monitor.clone() else { return };
        // Log: It was silent at start.
        tracing::info!(sandbox = %self.spec.id, "the pod's monitor answers");
        for id in reports.keys().filter(|id| !self.containers.contains_key(id.as_str())) {
            let id = id.clone();
            let (node, pod, runtime) = (self.node.clone(), self.spec.clone(), self.runtime.clone());
            let monitor = monitor.clone();
            self.jobs.spawn(async move {
                recover::end_stranger(&node, &pod, &runtime, Some(&monitor), &id).await;
                Finished::StrangerEnded
            });
        }
        // Not those with running work, which learns of their end itself.
        let due = |c: &Container| match c.state {
            ContainerState::Running { .. } => true,
            ContainerState::Created => c.activity == Activity::Idle,
            ContainerState::Creating | ContainerState::Starting | ContainerState::Exited { .. } => false,
        };
        let changed: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, c)| due(c))
            .filter_map(|(id, c)| Some((id.clone(), recover::late(&self.node, &self.spec.id, c, &reports)?)))
            .collect();
        for (id, state) in changed {
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
    }

    pub(super) fn monitor_lost(&mut self) {
        if self.monitor.take().is_none() {
            return;
        }
        // A tear-down ends the monitor itself and reports the state when it finishes; but only this reports the end of
        // containers left at that moment.
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
        let now = self.node.clock.now();
        let running: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.may_run()).map(|(id, _)| id.clone()).collect();
        for id in running {
            self.ended(&id, Exit::unknown("the pod's monitor was lost", now));
        }
    }
}
