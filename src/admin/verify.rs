//! A verification as a stream of events, then its summary. The stream owns the work: it ends when the client goes away.

use super::encode;
use super::proto as pb;
use super::status::status;
use crate::images::{ImageError, Images, Repair, VerifyEvent, VerifySummary};
use futures_util::stream::{self, Stream};
use pb::verify_event::Event;
use std::pin::Pin;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tonic::Status;

/// The events.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<pb::VerifyEvent, Status>> + Send>>;

type Outcome = Result<VerifySummary, ImageError>;

struct Work {
    run: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    /// At most three for each layer and config: no bound is needed, and the work never waits for the client.
    told: UnboundedReceiver<VerifyEvent>,
    next: Next,
}

enum Next {
    Run,
    /// The work has ended; its reports come first.
    Drain(Outcome),
    End,
}

pub(super) fn events(images: Images, names: Vec<String>, repair: Repair) -> Events {
    let (tell, told) = unbounded_channel();
    let run = Box::pin(async move {
        // The receiver is gone only when the stream is, and this with it.
        images.verify(&names, repair, |event| drop(tell.send(event))).await
    });
    Box::pin(stream::unfold(Work { run, told, next: Next::Run }, Work::step))
}

impl Work {
    async fn step(mut self) -> Option<(Result<pb::VerifyEvent, Status>, Self)> {
        loop {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::End => return None,
                Next::Run => tokio::select! {
                    biased;
                    Some(event) = self.told.recv() => {
                        self.next = Next::Run;
                        return Some((Ok(checked(&event)), self));
                    }
                    outcome = &mut self.run => self.next = Next::Drain(outcome),
                },
                Next::Drain(outcome) => {
                    if let Ok(event) = self.told.try_recv() {
                        self.next = Next::Drain(outcome);
                        return Some((Ok(checked(&event)), self));
                    }
                    let summary = |summary| {
                        let event = Some(Event::Summary(encode::verified(&summary)));
                        pb::VerifyEvent { event }
                    };
                    return Some((outcome.map(summary).map_err(|e| status(&e)), self));
                }
            }
        }
    }
}

fn checked(event: &VerifyEvent) -> pb::VerifyEvent {
    pb::VerifyEvent { event: Some(Event::Checked(encode::checked(event))) }
}
