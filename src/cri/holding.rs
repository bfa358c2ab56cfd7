//! Answers that count against a budget until they are sent: the reservation moves from the call into the body of its
//! answer and ends with it.

use crate::sandbox::OutputHold;
use http::Response;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;

/// The answer, which keeps its reservation until it is sent.
pub(super) fn until_sent<T>((message, hold): (T, OutputHold)) -> tonic::Response<T> {
    let mut answer = tonic::Response::new(message);
    answer.extensions_mut().insert(hold);
    answer
}

/// Has the body of an answer keep what its call has reserved.
pub(super) fn keep(mut answer: Response<Body>) -> Response<Body> {
    match answer.extensions_mut().remove::<OutputHold>() {
        Some(hold) => answer.map(|body| Body::new(Held { body, _hold: hold })),
        None => answer,
    }
}

struct Held {
    body: Body,
    _hold: OutputHold,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
