//! etcd's Watch service: one [`Session`](super::session::Session) for each stream, run by [`stream`].
//!
//! The gRPC side is written by hand instead of generated, because its responses hold events that are encoded already.

pub mod stream;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{ResponseHeader, WatchRequest};
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Status, Streaming};
use tower::Service;

use super::Source;
use super::session::Limits;
use super::wire::{Frame, WatchCodec};
use crate::config::ProxyConfig;
use crate::in_flight::InFlight;
use crate::shared::Shared;
use stream::{Gauges, WatchStream};

/// The only method.
const PATH: &str = "/etcdserverpb.Watch/Watch";
/// Responses with events that wait for one client at most, as in etcd.
const RESPONSES_MAX: usize = 128;
/// Bytes of events that wait for one client, before nothing more is taken.
const BYTES_MAX: usize = 4 << 20;
/// How long a new stream that wants a leader looks for one.
const LEADER_PATIENCE: Duration = Duration::from_millis(500);

/// What streams have to know of the cluster.
pub trait Outside: Send + Sync + 'static {
    /// A bound, asked for now; tries until it has one.
    fn bound(&self) -> BoxFuture<'static, Bound>;

    /// The newest revision this process has heard of.
    fn heard(&self) -> i64;

    /// The header of a response of `revision`.
    fn header(&self, revision: i64) -> Option<ResponseHeader>;

    /// Whether the cluster has a leader, as far as is known.
    fn has_leader(&self) -> bool;

    /// The same, asked now if there seems to be none.
    fn find_leader(&self) -> BoxFuture<'static, bool>;
}

/// How streams are set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much waits for one client.
    pub limits: Limits,
    /// Bytes of a client's message at most.
    pub receive_bytes_max: usize,
    /// Between two notices to an idle watch; up to a tenth is added at random.
    pub progress_interval: Duration,
}

impl Settings {
    /// What `config` says.
    pub fn of(config: &ProxyConfig) -> Self {
        let fragment_bytes = config.receive_bytes_max();
        Self {
            limits: Limits { responses_max: RESPONSES_MAX, bytes_max: BYTES_MAX, fragment_bytes },
            receive_bytes_max: config.receive_bytes_max(),
            progress_interval: config.watch_progress_interval,
        }
    }
}

/// The Watch service. Cheap to clone.
#[derive(Clone)]
pub struct WatchService(Arc<Parts>);

/// What all streams of a service share.
struct Parts {
    source: Arc<dyn Source>,
    outside: Arc<dyn Outside>,
    settings: Settings,
    in_flight: Arc<InFlight>,
    stopped: watch::Receiver<bool>,
    names: Arc<AtomicU64>,
    gauges: Gauges,
}

impl WatchService {
    /// A service on `source`. Each stream counts in `in_flight` as long as it lives, and ends when `stopped` says so.
    pub fn new(
        source: Arc<dyn Source>,
        outside: Arc<dyn Outside>,
        settings: Settings,
        in_flight: Arc<InFlight>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let names = Arc::new(AtomicU64::new(1));
        let gauges = Gauges::default();
        Self(Arc::new(Parts { source, outside, settings, in_flight, stopped, names, gauges }))
    }

    /// A service of the proxy that `shared` belongs to.
    pub fn of(shared: &Arc<Shared>, source: Arc<dyn Source>, stopped: watch::Receiver<bool>) -> Self {
        let outside = Arc::new(Proxy(Arc::clone(shared)));
        Self::new(source, outside, Settings::of(&shared.config), Arc::clone(&shared.in_flight), stopped)
    }

    async fn open(self, request: tonic::Request<Streaming<WatchRequest>>) -> Result<WatchStream, Status> {
        let parts = &self.0;
        let require_leader = wants_leader(request.metadata().as_ref());
        if require_leader && !parts.outside.find_leader().await {
            return Err(error::NO_LEADER.into());
        }
        let ticket = parts.in_flight.begin().ok_or(error::TOO_MANY_REQUESTS)?;
        let requests = request.into_inner().boxed();
        Ok(WatchStream::new(parts, requests, require_leader, ticket))
    }
}

fn wants_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value == "true")
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> Service<Request<B>> for WatchService
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("").into_http());
            }
            let receive_bytes_max = service.0.settings.receive_bytes_max;
            let mut grpc = Grpc::new(WatchCodec).apply_max_message_size_config(Some(receive_bytes_max), None);
            Ok(grpc.streaming(Method(service), request).await)
        })
    }
}

/// The method as tonic calls it.
struct Method(WatchService);

impl StreamingService<WatchRequest> for Method {
    type Response = Frame;
    type ResponseStream = WatchStream;
    type Future = BoxFuture<'static, Result<tonic::Response<WatchStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<WatchRequest>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.open(request).await.map(tonic::Response::new) })
    }
}

/// The cluster as a proxy knows it.
struct Proxy(Arc<Shared>);

impl Outside for Proxy {
    fn bound(&self) -> BoxFuture<'static, Bound> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            loop {
                // Each try pauses between its attempts until its patience ends.
                match bound::take(&shared.numbers, Patience::within(shared.config.request_timeout)).await {
                    Ok(bound) => return bound,
                    Err(error) => tracing::warn!(error = error.message, "watches wait for the sequencer"),
                }
            }
        })
    }

    fn heard(&self) -> i64 {
        self.0.numbers.heard().1
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        self.0.header(revision)
    }

    fn has_leader(&self) -> bool {
        self.0.presence.word().leader() != 0
    }

    fn find_leader(&self) -> BoxFuture<'static, bool> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            if shared.presence.word().leader() != 0 {
                return true;
            }
            match shared.presence.ask(Instant::now() + LEADER_PATIENCE).await {
                Ok(word) => word.leader() != 0,
                Err(_) => false,
            }
        })
    }
}
