//! Connections for the process that speaks HTTP: it names a client, and gets a connected socket to where that client may
//! lead, or none. Names are resolved and addresses checked here, by us; not a byte is sent or received.

use crate::images::registry::reach::{Reach, Refused};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::Service;
use url::Url;

/// A connection on which nothing moves is asked after this long whether the other side lives, and again.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Questions without an answer until it is given up.
const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent is acknowledged in this time, or the connection is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where a client's connections lead: one origin, or the proxy for it.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) url: Url,
    pub(super) reach: Reach,
    pub(super) timeout: Duration,
    /// Why there was no connection the last time.
    failure: Mutex<Option<NoWay>>,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoWay {
    #[error(transparent)]
    Refused(Refused),
    #[error("{0}")]
    Failed(String),
}

impl Destination {
    pub(super) fn new(url: Url, reach: Reach, timeout: Duration) -> Self {
        Self { url, reach, timeout, failure: Mutex::default() }
    }

    /// A connection.
    pub(super) async fn connect(&self) -> Option<OwnedFd> {
        match self.attempt().await {
            Ok(socket) => Some(socket),
            Err(error) => {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        }
    }

    /// Why the last attempt has failed.
    pub(super) fn failure(&self) -> NoWay {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure.unwrap_or_else(|| NoWay::Failed("no connection".into()))
    }

    async fn attempt(&self) -> Result<OwnedFd, NoWay> {
        self.reach.check(&self.url).map_err(NoWay::Refused)?;
        let failed = |text: &dyn std::fmt::Display| NoWay::Failed(text.to_string());
        let uri = self.url.as_str().parse().map_err(|e: http::uri::InvalidUri| failed(&e))?;
        let mut http = HttpConnector::new_with_resolver(Resolver(self.reach));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        http.set_tcp_user_timeout(Some(USER_TIMEOUT));
        http.set_connect_timeout(Some(self.timeout));
        let connected = tokio::time::timeout(self.timeout, http.call(uri));
        let stream = match connected.await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(error)) => return Err(why(&error)),
            Err(_) => {
                return Err(NoWay::Failed(format!("no connection in {} s", self.timeout.as_secs_f32())));
            }
        };
        Ok(stream.into_std().map_err(|e| failed(&e))?.into())
    }
}

fn why(error: &(dyn std::error::Error + 'static)) -> NoWay {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return NoWay::Refused(*refused);
        }
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    NoWay::Failed(text)
}

/// Resolves names as the system does, to what may be connected to.
#[derive(Debug, Clone)]
struct Resolver(Reach);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.0;
        Box::pin(async move { Ok(reach.lookup(name.as_str()).await?.into_iter()) })
    }
}
