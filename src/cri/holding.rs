//! Answers that count against a budget until they are sent: the reservation moves from the call into the body of its
//! answer and ends with it.

use crate::sandbox::OutputHold;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// The answer, which keeps its reservation until it is sent.
pub(super) fn until_sent<T>(answer: tonic::Response<(T, OutputHold)>) -> tonic::Response<T> {
    let (metadata, (message, hold), mut extensions) = answer.into_parts();
    extensions.insert(hold);
    tonic::Response::from_parts(metadata, message, extensions)
}

/// Puts [`Holding`] around a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct HoldingLayer;

/// A service whose answers keep their reservations.
#[derive(Debug, Clone)]
pub(super) struct Holding<S>(S);

impl<S> Layer<S> for HoldingLayer {
    type Service = Holding<S>;

    fn layer(&self, inner: S) -> Holding<S> {
        Holding(inner)
    }
}

impl<S, B> Service<Request<B>> for Holding<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.0.call(request);
        Box::pin(async move {
            let mut answer = call.await?;
            Ok(match answer.extensions_mut().remove::<OutputHold>() {
                Some(hold) => answer.map(|body| Body::new(Held { body, _hold: hold })),
                None => answer,
            })
        })
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
