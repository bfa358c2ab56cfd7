//! Container events: differences between two snapshots of a pod, sent to all subscribers.
//!
//! Owns the subscribers and their queues. A pod's task never waits here: a subscriber that lags behind is closed and
//! must subscribe again and list everything, as the kubelet does. Never keeps an event for later subscribers.

use crate::model::{Clock, Timestamp};
use crate::sandbox::words::snapshot::{ContainerSnapshot, PodSnapshot};
use crate::sandbox::words::state::{ContainerState, SandboxState};
use prometheus::{IntCounter, IntGauge, Registry};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Subscribers at once: a kubelet has one, people with crictl some more. Each may hold [`QUEUE`] snapshots of pods.
pub const MAX_SUBSCRIBERS: usize = 16;
/// Events that may wait for one subscriber (CRI-O's number): some hundred pods starting or ending at once.
const QUEUE: usize = 1000;

/// The event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// The container is created, or the sandbox ready.
    Created,
    /// The container runs, or the sandbox is ready.
    Started,
    /// The container has ended, or the sandbox is no longer ready.
    Stopped,
    /// It is removed.
    Deleted,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The container's id, or the sandbox's.
    pub id: String,
    /// The change.
    pub happening: Happening,
    /// Later than every earlier event, and than the snapshot.
    pub at: Timestamp,
    /// The pod after it.
    pub pod: Arc<PodSnapshot>,
}

/// The subscribers. Locked briefly and never over an await.
#[derive(Debug)]
pub struct Announcer {
    subscribers: Mutex<Vec<Subscriber>>,
    dropped: IntCounter,
    listening: IntGauge,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Announcement>,
    overrun: Arc<AtomicBool>,
}

/// One subscriber's end.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<Announcement>,
    overrun: Arc<AtomicBool>,
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl Subscription {
    /// The next event. `None` never comes while the daemon lives, except after an `Err`.
    ///
    /// # Errors
    /// Once, when this subscriber did not keep up and everything that was queued before has been taken.
    pub async fn next(&mut self) -> Option<Result<Announcement, Overrun>> {
        match self.queue.recv().await {
            Some(event) => Some(Ok(event)),
            None => self.overrun.swap(false, Ordering::Relaxed).then_some(Err(Overrun)),
        }
    }
}

impl Announcer {
    /// Makes it with its metrics.
    ///
    /// # Errors
    /// When a name is registered twice.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let dropped = IntCounter::new(
            "podwright_container_events_dropped_total",
            "Container events that a subscriber did not get, as it was too slow and is closed.",
        )?;
        let listening = IntGauge::new(
            "podwright_container_event_subscribers",
            "Clients that listen to container events.",
        )?;
        registry.register(Box::new(dropped.clone()))?;
        registry.register(Box::new(listening.clone()))?;
        Ok(Self { subscribers: Mutex::default(), dropped, listening })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        // Every section leaves the list whole.
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes from now on; None: there are [`MAX_SUBSCRIBERS`] already.
    #[must_use]
    pub fn subscribe(&self) -> Option<Subscription> {
        let mut subscribers = self.lock();
        self.forget_gone(&mut subscribers);
        if subscribers.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let overrun = Arc::new(AtomicBool::new(false));
        subscribers.push(Subscriber { queue: sender, overrun: overrun.clone() });
        self.forget_gone(&mut subscribers);
        Some(Subscription { queue, overrun })
    }

    fn forget_gone(&self, subscribers: &mut Vec<Subscriber>) {
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        self.listening.set(i64::try_from(subscribers.len()).unwrap_or(i64::MAX));
    }

    /// Announces the differences between two snapshots. Takes the time under the lock, so that times are in the order
    /// of the queues.
    pub(in crate::sandbox) fn compare(&self, clock: &Clock, before: &PodSnapshot, after: &Arc<PodSnapshot>) {
        let mut subscribers = self.lock();
        if subscribers.is_empty() {
            return;
        }
        for (id, happening) in changes(before, after) {
            self.send(&mut subscribers, Announcement { id, happening, at: clock.next(), pod: after.clone() });
        }
    }

    /// Announces that a pod is gone, its containers first.
    pub(in crate::sandbox) fn removed(&self, clock: &Clock, last: &PodSnapshot) {
        let mut subscribers = self.lock();
        if subscribers.is_empty() || !last.listed() {
            return;
        }
        let empty = Arc::new(PodSnapshot { containers: Vec::new(), ..last.clone() });
        let containers = last.containers.iter().map(|c| c.spec.id.to_string());
        for id in containers.chain([last.spec.id.to_string()]) {
            let happening = Happening::Deleted;
            self.send(&mut subscribers, Announcement { id, happening, at: clock.next(), pod: empty.clone() });
        }
    }

    fn send(&self, subscribers: &mut Vec<Subscriber>, event: Announcement) {
        subscribers.retain(|subscriber| match subscriber.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped.inc();
                subscriber.overrun.store(true, Ordering::Relaxed);
                // Log: A client of GetContainerEvents had 1000 events waiting.
                // Do: Nothing: a kubelet lists everything and subscribes again.
                tracing::warn!("a subscriber of container events does not keep up and is closed");
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        self.listening.set(i64::try_from(subscribers.len()).unwrap_or(i64::MAX));
    }
}

/// Events that lead from `before` to `after`.
fn changes(before: &PodSnapshot, after: &PodSnapshot) -> Vec<(String, Happening)> {
    use Happening::{Created, Deleted, Started, Stopped};
    let mut changes = Vec::new();
    let ready = |pod: &PodSnapshot| matches!(pod.state, SandboxState::Ready { .. });
    let sandbox = || after.spec.id.to_string();
    match (before.listed(), ready(before), after.listed(), ready(after)) {
        (false, _, _, true) => changes.extend([(sandbox(), Created), (sandbox(), Started)]),
        // A bring-up that could not be undone.
        (false, _, true, false) => changes.extend([(sandbox(), Created), (sandbox(), Stopped)]),
        (true, true, _, false) => changes.push((sandbox(), Stopped)),
        _ => {}
    }
    for container in &after.containers {
        let id = container.spec.id.to_string();
        let earlier = before.container(&container.spec.id).map(|c| &c.state);
        if earlier.is_none() {
            changes.push((id.clone(), Created));
        }
        let (was, is) = (earlier.map_or(Step::Created, step), step(&container.state));
        if was < Step::Started && (is == Step::Started || ran(container)) {
            changes.push((id.clone(), Started));
        }
        if was < Step::Stopped && is == Step::Stopped {
            changes.push((id, Stopped));
        }
    }
    let gone = before.containers.iter().filter(|c| after.container(&c.spec.id).is_none());
    changes.extend(gone.map(|c| (c.spec.id.to_string(), Deleted)));
    changes
}

/// A container's progress, in terms of events.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Created,
    Started,
    Stopped,
}

fn step(state: &ContainerState) -> Step {
    match state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => Step::Created,
        ContainerState::Running { .. } => Step::Started,
        ContainerState::Exited { .. } => Step::Stopped,
    }
}

/// Whether it ended after it had run: one whose end was reported before its start.
fn ran(container: &ContainerSnapshot) -> bool {
    matches!(container.state, ContainerState::Exited { started_at: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::oci::Runtime;
    use crate::model::ContainerId;
    use crate::sandbox::spec::fixture::fixture;
    use crate::sandbox::words::snapshot::Encoded;
    use crate::sandbox::words::state::{Exit, Holdings, Init, NotReadyCause};
    use std::path::Path;
    use std::time::Duration;

    fn pod(state: SandboxState, containers: &[(char, ContainerState)]) -> Arc<PodSnapshot> {
        let fixture = fixture();
        let container = |(id, state): &(char, ContainerState)| {
            let mut spec = fixture.container.clone();
            spec.id = ContainerId::parse(&id.to_string().repeat(64)).unwrap();
            let resources = spec.resources.clone();
            Arc::new(ContainerSnapshot {
                spec: Arc::new(spec),
                state: state.clone(),
                resources,
                user: None,
                unread: false,
                list_entry: Encoded::default(),
            })
        };
        Arc::new(PodSnapshot {
            spec: Arc::new(fixture.sandbox.clone()),
            state,
            monitor: None,
            runtime: Arc::new(Runtime::new("r", "/r".into(), Path::new("/r"), &[], Duration::ZERO)),
            containers: containers.iter().map(container).collect(),
            limits: None,
            list_entry: Encoded::default(),
        })
    }

    fn ready(containers: &[(char, ContainerState)]) -> Arc<PodSnapshot> {
        pod(SandboxState::Ready { network: None }, containers)
    }

    fn not_ready() -> SandboxState {
        SandboxState::NotReady { why: NotReadyCause::Stopped, resources: Holdings::Released }
    }

    fn running() -> ContainerState {
        ContainerState::Running { init: Init { pid: 1, start_time: 1 }, since: Timestamp(1) }
    }

    fn exited(started_at: Option<i64>) -> ContainerState {
        let exit = Exit::unknown("", Timestamp(2));
        ContainerState::Exited { started_at: started_at.map(Timestamp), exit }
    }

    /// Initial of the id and of the event.
    fn told(before: &PodSnapshot, after: &PodSnapshot) -> String {
        let words = changes(before, after).into_iter().map(|(id, happening)| {
            let sandbox = id == after.spec.id.as_str();
            let who = if sandbox { "pod".to_owned() } else { id[..1].to_owned() };
            format!("{who}:{happening:?}")
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_change_is_told_once_and_in_order() {
        let created = ContainerState::Created;
        let nothing = pod(SandboxState::Preparing, &[]);
        for (before, after, expected) in [
            (nothing.clone(), ready(&[]), "pod:Created pod:Started"),
            (nothing.clone(), pod(not_ready(), &[]), "pod:Created pod:Stopped"),
            (ready(&[]), ready(&[]), ""),
            (ready(&[]), ready(&[('b', created.clone())]), "b:Created"),
            (ready(&[('b', created.clone())]), ready(&[('b', ContainerState::Starting)]), ""),
            (ready(&[('b', ContainerState::Starting)]), ready(&[('b', running())]), "b:Started"),
            (ready(&[('b', running())]), ready(&[('b', exited(Some(1)))]), "b:Stopped"),
            // The end was reported before the start.
            (
                ready(&[('b', ContainerState::Starting)]),
                ready(&[('b', exited(Some(1)))]),
                "b:Started b:Stopped",
            ),
            (ready(&[('b', ContainerState::Starting)]), ready(&[('b', exited(None))]), "b:Stopped"),
            (ready(&[('b', exited(None)), ('c', running())]), ready(&[('c', running())]), "b:Deleted"),
            (
                ready(&[('b', running())]),
                pod(not_ready(), &[('b', exited(Some(1)))]),
                "pod:Stopped b:Stopped",
            ),
            (pod(not_ready(), &[]), pod(not_ready(), &[]), ""),
        ] {
            assert_eq!(told(&before, &after), expected);
        }
    }

    #[tokio::test]
    async fn times_rise_and_a_removed_pod_is_told_last() {
        let (announcer, clock) = (Announcer::register(&Registry::new()).unwrap(), Clock::default());
        let mut subscription = announcer.subscribe().unwrap();
        let (before, after) = (ready(&[]), ready(&[('b', ContainerState::Created), ('c', running())]));
        announcer.compare(&clock, &before, &after);
        announcer.removed(&clock, &after);
        // A sandbox that was never ready was never announced.
        announcer.removed(&clock, &pod(SandboxState::Preparing, &[]));
        let mut events = Vec::new();
        while let Ok(event) = subscription.queue.try_recv() {
            events.push(event);
        }
        assert!(events.is_sorted_by(|a, b| a.at < b.at));
        let told: Vec<_> = events.iter().map(|e| (&e.id[..1], e.happening)).collect();
        use Happening::{Created, Deleted, Started};
        let (b, c, pod) = ("b", "c", "a");
        let expected = [(b, Created), (c, Created), (c, Started), (b, Deleted), (c, Deleted), (pod, Deleted)];
        assert_eq!(told, expected);
        assert!(events.last().unwrap().pod.containers.is_empty());
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_closed_and_the_others_are_not() {
        let (announcer, clock) = (Announcer::register(&Registry::new()).unwrap(), Clock::default());
        let (mut slow, mut quick) = (announcer.subscribe().unwrap(), announcer.subscribe().unwrap());
        let (off, on) = (ready(&[]), ready(&[('b', ContainerState::Created)]));
        for _ in 0..=QUEUE {
            announcer.compare(&clock, &off, &on);
            assert!(matches!(quick.next().await, Some(Ok(_))));
        }
        assert_eq!((announcer.dropped.get(), announcer.listening.get()), (1, 1));
        for _ in 0..QUEUE {
            assert!(matches!(slow.next().await, Some(Ok(_))));
        }
        assert!(matches!(slow.next().await, Some(Err(Overrun))));
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn there_are_only_so_many_and_those_who_left_make_room() {
        let announcer = Announcer::register(&Registry::new()).unwrap();
        let mut all: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| announcer.subscribe().unwrap()).collect();
        assert!(announcer.subscribe().is_none());
        all.pop();
        assert!(announcer.subscribe().is_some());
    }
}
