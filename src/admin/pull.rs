//! A pull as a stream of events: progress, then the result. The stream owns its wait for the pull, so a client that
//! goes away is one waiter less.

use super::encode;
use super::proto as pb;
use super::proto::pull_event::Event;
use super::status::status;
use crate::images::{Credentials, ImageError, Images, PullProgress};
use crate::model::ImageId;
use futures_util::stream::{self, Stream};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

/// Interval of progress events: smooth to the eye, cheap for the daemon.
const TICK: Duration = Duration::from_millis(200);

/// The events.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<pb::PullEvent, Status>> + Send>>;

type Outcome = Result<ImageId, ImageError>;

struct Watch {
    pull: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    tick: Interval,
    find: Box<dyn Fn() -> Option<Arc<PullProgress>> + Send>,
    progress: Option<Arc<PullProgress>>,
    next: Next,
}

enum Next {
    Wait,
    /// The pull has ended and its last progress was sent.
    Tell(Outcome),
    End,
}

pub(super) fn events(images: Images, reference: String, auth: Option<Credentials>) -> Events {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let find = {
        let (images, reference, auth) = (images.clone(), reference.clone(), auth.clone());
        Box::new(move || images.progress(&reference, auth.as_ref()))
    };
    let pull = Box::pin(async move { images.pull(&reference, auth).await });
    Box::pin(stream::unfold(Watch { pull, tick, find, progress: None, next: Next::Wait }, Watch::step))
}

impl Watch {
    async fn step(mut self) -> Option<(Result<pb::PullEvent, Status>, Self)> {
        let event = match std::mem::replace(&mut self.next, Next::End) {
            Next::End => return None,
            Next::Tell(Ok(id)) => Ok(Event::Result(pb::PullResult { id: id.to_string() })),
            Next::Tell(Err(error)) => Err(status(&error)),
            Next::Wait => {
                // In this order: only the first poll of the pull creates its progress.
                let ended = tokio::select! {
                    biased;
                    outcome = &mut self.pull => Some(outcome),
                    _ = self.tick.tick() => None,
                };
                self.next = ended.map_or(Next::Wait, Next::Tell);
                if self.progress.is_none() {
                    self.progress = (self.find)();
                }
                let progress = self.progress.as_deref().map(encode::progress).unwrap_or_default();
                Ok(Event::Progress(progress))
            }
        };
        Some((event.map(|event| pb::PullEvent { event: Some(event) }), self))
    }
}
