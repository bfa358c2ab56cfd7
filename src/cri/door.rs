//! What every call goes through, whichever it is: its name, its deadline, its span in the log, its metrics, and the memory that
//! its answer holds until it is sent. The services know of none of these.
//!
//! Calls of other services on the same socket pass, with their deadline only: labels are names of CRI's, never a client's.

use super::{deadline, holding};
use crate::metrics::Rpcs;
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

/// The package of CRI v1 and its services; the path of a call is `<service>/<method>`.
const SERVICES: [&str; 2] = ["/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"];

/// CRI's calls, sorted.
const METHODS: [&str; 43] = [
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "PullImage",
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RestorePod",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];

/// Puts a [`Door`] before a service.
#[derive(Debug, Clone)]
pub(super) struct DoorLayer(pub(super) Rpcs);

/// A service behind the door.
#[derive(Debug, Clone)]
pub(super) struct Door<S> {
    inner: S,
    rpcs: Rpcs,
}

impl<S> Layer<S> for DoorLayer {
    type Service = Door<S>;

    fn layer(&self, inner: S) -> Door<S> {
        Door { inner, rpcs: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for Door<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = deadline::limit(request.headers());
        // Created before tonic's own timer, which is polled later, so this one fires first.
        let timer = limit.map(tokio::time::sleep);
        let Some(method) = method(request.uri().path()) else {
            return Box::pin(within(timer, self.inner.call(request)));
        };
        let span = tracing::info_span!("rpc", method);
        // Within the deadline: a call that ends at its client's is one that the client left.
        let watched = watched(self.rpcs.clone(), method, span.in_scope(|| self.inner.call(request)));
        Box::pin(within(timer, watched).instrument(span))
    }
}

/// The name of CRI's call with that path.
fn method(path: &str) -> Option<&'static str> {
    let name = SERVICES.iter().find_map(|service| path.strip_prefix(service))?;
    METHODS.binary_search(&name).ok().map(|at| METHODS[at])
}

/// Answers when the client's deadline has passed. What was begun goes on: dropping a call never undoes work.
async fn within<E>(
    timer: Option<tokio::time::Sleep>,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    match timer {
        None => call.await,
        Some(timer) => tokio::select! {
            answer = call => answer,
            () = timer => Ok(Status::deadline_exceeded("the client's deadline has passed").into_http()),
        },
    }
}

/// Measures and counts a call, and has its answer keep the memory that it holds.
async fn watched<E>(
    rpcs: Rpcs,
    method: &'static str,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    let begun = rpcs.begin(method);
    let answer = holding::keep(call.await?);
    // The status of a call that failed before its first message; without one it has begun to answer well.
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => begun.failed(&status),
        _ => begun.answered(),
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::time::Duration;

    const VERSION: &str = "/runtime.v1.RuntimeService/Version";

    #[test]
    fn all_calls_of_the_contract_have_a_name() {
        let contract = include_str!("../../proto/api.proto");
        let mut calls: Vec<&str> = contract
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc "))
            .filter_map(|rest| rest.split('(').next())
            .map(str::trim)
            .collect();
        calls.sort_unstable();
        assert_eq!(calls, METHODS);
        assert_eq!(method(VERSION), Some("Version"));
        for other in [
            "/",
            "/runtime.v1.RuntimeService/",
            "/runtime.v1.RuntimeService/version",
            "/podwright.Admin/List",
        ] {
            assert_eq!(method(other), None, "{other}");
        }
    }

    fn rpcs() -> Rpcs {
        Rpcs::register(&prometheus::Registry::new()).unwrap()
    }

    /// What became of a call to `path` that is answered with `answer`, or never.
    async fn call(
        rpcs: &Rpcs,
        path: &str,
        timeout: Option<&str>,
        answer: Option<Response<Body>>,
    ) -> Response<Body> {
        let answer = std::sync::Mutex::new(answer);
        let service = tower::service_fn(move |_: Request<()>| {
            let answer = answer.lock().unwrap().take();
            async move {
                match answer {
                    Some(answer) => Ok::<_, Infallible>(answer),
                    None => std::future::pending().await,
                }
            }
        });
        let mut request = Request::builder().uri(path);
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        DoorLayer(rpcs.clone()).layer(service).call(request.body(()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn calls_are_counted_by_name_and_code() {
        let rpcs = rpcs();
        call(&rpcs, VERSION, None, Some(Response::new(Body::empty()))).await;
        // As tonic answers what it cannot decode, or what is too large.
        let refused = Status::out_of_range("100 % too \u{201c}large\u{201d}").into_http();
        call(&rpcs, VERSION, None, Some(refused)).await;
        let timer = tokio::time::timeout(Duration::from_secs(60), call(&rpcs, VERSION, Some("1m"), None));
        let late = timer.await.unwrap();
        assert_eq!(Status::from_header_map(late.headers()).unwrap().code(), Code::DeadlineExceeded);
        let counts: Vec<_> = ["OK", "OutOfRange", "Canceled"].map(|code| rpcs.count("Version", code)).into();
        assert_eq!((counts, rpcs.in_flight()), (vec![1, 1, 1], 0));
    }

    #[tokio::test]
    async fn what_is_no_call_of_cri_is_no_label() {
        let rpcs = rpcs();
        for n in 0..3 {
            let path = format!("/runtime.v1.RuntimeService/Evil{n}");
            call(&rpcs, &path, None, Some(Status::unimplemented("").into_http())).await;
        }
        call(&rpcs, "/podwright.Admin/List", Some("1m"), None).await;
        assert_eq!(rpcs.series(), 0);
    }
}
