//! What a pod's task writes down, and what becomes of it when the disk refuses. Writing is slow work like any other: the
//! task never waits for a disk. The writes of one record keep their order ([`Queue`]).
//!
//! A state that promises something to a caller is written by the work that brings it about, before its effect and before the
//! answer: `acts::creation`, the start, the bring-up. What has happened by itself cannot be refused, and is written again until
//! it is on disk; that is here.

use super::{Finished, Pod};
use crate::model::ContainerId;
use crate::sandbox::acts::{bring_up, creation};
use crate::sandbox::life::mailbox::{Outcome, Reply, send};
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::record::PodState;
use crate::sandbox::words::state::{ContainerState, SandboxState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// First pause before a record that could not be written is tried again; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a disk that has room again is noticed within it, and a write costs little.
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// The order in which one record is written. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue(Arc<Mutex<Option<oneshot::Receiver<()>>>>);

/// One write's place in it. When it is dropped, the next one may go.
#[derive(Debug)]
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _done: oneshot::Sender<()>,
}

impl Queue {
    /// The place behind all that are taken.
    pub(super) fn turn(&self) -> Turn {
        let (done, after) = oneshot::channel();
        // A panic leaves it whole.
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(after);
        Turn { before, _done: done }
    }
}

impl Turn {
    /// Returns when nobody is before it any more.
    pub(super) async fn comes(&mut self) {
        if let Some(before) = self.before.take() {
            // It is never sent: the end of its sender is what counts.
            let _ = before.await;
        }
    }
}

/// A record of the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Pod,
    Container(ContainerId),
}

/// A write that ended.
#[derive(Debug)]
pub(super) struct Recorded {
    which: Which,
    number: u64,
    result: Result<(), SandboxError>,
    /// To be given when it was tried.
    answers: Answers,
}

/// Callers, and what they get.
pub(super) type Answers = Vec<(Reply<()>, Outcome<()>)>;

/// Records that are older on disk than in memory.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// With the number of the write that failed.
    failed: BTreeMap<Which, u64>,
    writes: u64,
    /// The pause that runs now.
    pause: Option<Duration>,
    last_pause: Option<Duration>,
}

impl Pod {
    pub(in crate::sandbox) fn record(&self) -> PodState {
        let process = self.monitor.as_ref().map(|monitor| monitor.info().process).or(self.process);
        PodState { sandbox: self.state.clone(), limits: self.limits.clone(), monitor: process }
    }

    /// Changes the sandbox's state, and sees to it that the record follows.
    pub(super) fn set_state(&mut self, state: SandboxState) {
        self.set_state_and_answer(state, Vec::new());
    }

    /// As [`Self::set_state`]; callers are answered when that was tried.
    pub(super) fn set_state_and_answer(&mut self, state: SandboxState, answers: Answers) {
        self.state = state;
        self.publish();
        self.write(Which::Pod, answers);
    }

    /// Changes a container's state, and sees to it that the record follows.
    pub(super) fn set_container_state(&mut self, id: &ContainerId, state: ContainerState) {
        self.set_container_state_and_answer(id, state, Vec::new());
    }

    /// As [`Self::set_container_state`]; callers are answered when that was tried.
    pub(super) fn set_container_state_and_answer(
        &mut self,
        id: &ContainerId,
        state: ContainerState,
        answers: Answers,
    ) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.state = state;
        self.publish();
        self.write(Which::Container(id.clone()), answers);
    }

    /// Writes a record as it is now, behind earlier writes of it.
    pub(super) fn write(&mut self, which: Which, answers: Answers) {
        self.unwritten.writes += 1;
        let number = self.unwritten.writes;
        let (node, spec) = (self.node.clone(), self.spec.clone());
        let panicked = Err(SandboxError::Panicked("writing a record"));
        let failed = Recorded { which: which.clone(), number, result: panicked, answers: Vec::new() };
        match &which {
            Which::Pod => {
                let (mut turn, state) = (self.records.turn(), self.record());
                self.work(Finished::Recorded(failed), async move {
                    turn.comes().await;
                    let result = bring_up::write_state(&node, &spec, state).await;
                    Finished::Recorded(Recorded { which, number, result, answers })
                });
            }
            Which::Container(id) => {
                let Some(container) = self.containers.get(id) else { return };
                if container.unread {
                    // The record of a newer daemon, or what somebody may repair, stays.
                    answers.into_iter().for_each(|(reply, outcome)| send(reply, outcome));
                    return;
                }
                let (mut turn, record, id) = (container.records.turn(), container.record(), id.clone());
                self.work(Finished::Recorded(failed), async move {
                    turn.comes().await;
                    let result = creation::write(&node, &spec.id, &id, record).await;
                    Finished::Recorded(Recorded { which, number, result, answers })
                });
            }
        }
    }

    pub(super) fn recorded(&mut self, recorded: Recorded) {
        let Recorded { which, number, result, answers } = recorded;
        match result {
            Ok(()) => {
                let is_older = |failed: &u64| *failed < number;
                if self.unwritten.failed.get(&which).is_some_and(is_older) {
                    self.unwritten.failed.remove(&which);
                    if self.unwritten.failed.is_empty() {
                        self.unwritten.last_pause = None;
                        // Log: The disk takes writes again.
                        tracing::info!(sandbox = %self.spec.id, "records that could not be written are written");
                    }
                }
            }
            Err(error) => self.not_recorded(which, number, &error),
        }
        for (reply, outcome) in answers {
            send(reply, outcome);
        }
    }

    fn not_recorded(&mut self, which: Which, number: u64, error: &SandboxError) {
        match &which {
            Which::Pod => {
                // Log: Writing below `root` failed. The state in memory is right, and is written as soon as the disk lets it.
                // Do: Free the disk, or mount it writable.
                tracing::error!(sandbox = %self.spec.id, %error, "cannot record a sandbox's state yet");
            }
            // Its record went with it.
            Which::Container(id) if !self.containers.contains_key(id) => return,
            Which::Container(id) => {
                // Log: Writing below `root` failed. The state in memory is right, and is written as soon as the disk lets it.
                // Do: Free the disk, or mount it writable.
                tracing::error!(container = %id, %error, "cannot record a container's state yet");
            }
        }
        self.unwritten.failed.insert(which, number);
        if self.unwritten.pause.is_some() {
            return;
        }
        let pause = self.unwritten.last_pause.map_or(FIRST_PAUSE, |last| (last * 2).min(LAST_PAUSE));
        (self.unwritten.pause, self.unwritten.last_pause) = (Some(pause), Some(pause));
        self.work(Finished::RecordDue, async move {
            tokio::time::sleep(pause).await;
            Finished::RecordDue
        });
    }

    pub(super) fn record_again(&mut self) {
        self.unwritten.pause = None;
        let containers = &self.containers;
        self.unwritten.failed.retain(|which, _| match which {
            Which::Pod => true,
            Which::Container(id) => containers.contains_key(id),
        });
        for which in self.unwritten.failed.keys().cloned().collect::<Vec<_>>() {
            self.write(which, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writes_of_a_record_keep_the_order_in_which_they_were_asked() {
        let (queue, written) = (Queue::default(), Arc::new(Mutex::new(Vec::new())));
        let mut turns: Vec<_> = (0..20).map(|number| (number, queue.turn())).collect();
        // The last to ask runs first.
        turns.reverse();
        let writes = turns.into_iter().map(|(number, mut turn)| {
            let written = written.clone();
            tokio::spawn(async move {
                turn.comes().await;
                written.lock().unwrap().push(number);
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
        assert_eq!(*written.lock().unwrap(), (0..20).collect::<Vec<_>>());
        // One that panicked or was given up lets the next one go.
        let given_up = queue.turn();
        let mut next = queue.turn();
        drop(given_up);
        next.comes().await;
    }
}
