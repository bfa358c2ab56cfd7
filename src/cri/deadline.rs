//! Answers an expired client deadline (`grpc-timeout`) with DeadlineExceeded. tonic's own middleware answers Cancelled,
//! which clients attribute to themselves. Dropping a call's future never undoes work: the pod's task continues it.

use http::{HeaderMap, Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tower::{Layer, Service};

/// The header of gRPC over HTTP/2.
const HEADER: &str = "grpc-timeout";

/// Puts [`Deadline`] around a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeadlineLayer;

/// A service whose calls end at their client's deadline.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S>(S);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = limit(request.headers());
        let call = self.0.call(request);
        match limit {
            None => Box::pin(call),
            Some(limit) => {
                // Created before tonic's own timer, which is polled later, so this one fires first.
                let timer = tokio::time::sleep(limit);
                Box::pin(async move {
                    tokio::select! {
                        answer = call => answer,
                        () = timer => Ok(Status::deadline_exceeded("the client's deadline has passed").into_http()),
                    }
                })
            }
        }
    }
}

/// The deadline that the client sent.
pub(super) fn of(metadata: &MetadataMap) -> Option<Duration> {
    read(metadata.get(HEADER)?.to_str().ok()?)
}

fn limit(headers: &HeaderMap) -> Option<Duration> {
    read(headers.get(HEADER)?.to_str().ok()?)
}

/// Up to eight digits and a unit, as the gRPC protocol has it; anything else is no deadline.
fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_grpcs() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, text.parse().unwrap());
            limit(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("15S"), Some(Duration::from_secs(15)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999u"), Some(Duration::from_micros(99_999_999)));
        for wrong in ["", "S", "1", "999999999S", "-1S", "1x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
