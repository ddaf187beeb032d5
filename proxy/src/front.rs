//! What every request on the client port passes first and last: the overload bound, the way to its service, the
//! counters.
//!
//! KV and Lease calls, nearly all there are, go straight to their service; everything else through one router. A message that is
//! too large to be received is refused with gRPC's usual code and text, which differ from tonic's.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use braid_proto::error;
use braid_proto::etcd::etcdserverpb::kv_server::KvServer;
use braid_proto::etcd::etcdserverpb::lease_server::LeaseServer;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::handled::{Handled, MethodId};
use crate::in_flight::{InFlight, Ticket};
use crate::kv::KvService;
use crate::lease::LeaseService;

/// Paths of the service that goes straight through.
const KV: &str = "/etcdserverpb.KV/";
/// The same.
const LEASE: &str = "/etcdserverpb.Lease/";

/// The client port's service. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    rest: Router,
    in_flight: Arc<InFlight>,
    handled: Arc<Handled>,
}

/// A response under way.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Front {
    /// Sends KV calls to `kv`, Lease calls to `lease` and everything else to `rest`, as long as not too much is in flight.
    pub fn new(
        kv: KvServer<KvService>,
        lease: LeaseServer<LeaseService>,
        rest: Router,
        in_flight: Arc<InFlight>,
    ) -> Self {
        Self { kv, lease, rest, in_flight, handled: Arc::default() }
    }

    fn dispatch(&self, request: Request<Incoming>) -> Answering {
        if request.uri().path().starts_with(KV) {
            return self.kv.clone().call(request);
        }
        if request.uri().path().starts_with(LEASE) {
            return self.lease.clone().call(request);
        }
        let answer = self.rest.clone().call(request.map(axum::body::Body::new));
        Box::pin(async move { answer.await.map(|response| response.map(Body::new)) })
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = FrontFuture;

    fn call(&self, request: Request<Incoming>) -> FrontFuture {
        if !is_grpc(request.headers()) {
            return FrontFuture { call: None, answer: self.dispatch(request) };
        }
        let method = self.handled.start(request.uri().path());
        let (ticket, answer) = match self.in_flight.begin() {
            Some(ticket) => (Some(ticket), self.dispatch(request)),
            None => (None, refused()),
        };
        FrontFuture { call: Some(Call { method, handled: Arc::clone(&self.handled), _ticket: ticket }), answer }
    }
}

/// A response of the client port.
pub struct FrontFuture {
    /// `None` for plain HTTP.
    call: Option<Call>,
    answer: Answering,
}

struct Call {
    method: MethodId,
    handled: Arc<Handled>,
    /// Taken back when the answer begins. Streams hold one of their own.
    _ticket: Option<Ticket>,
}

impl Future for FrontFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = ready!(self.answer.as_mut().poll(context))?;
        if let Some(call) = self.call.take() {
            let code = end(answer.headers_mut());
            call.handled.end(call.method, code);
        }
        Poll::Ready(Ok(answer))
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn refused() -> Answering {
    let response = Status::from(error::TOO_MANY_REQUESTS).into_http();
    Box::pin(std::future::ready(Ok(response)))
}

/// The code that a call ends with. A call without one in its headers begins a message, and that is success for all calls
/// with a single answer. Puts an error about too large a message into gRPC's words.
fn end(headers: &mut HeaderMap) -> Code {
    let Some(code) = headers.get(Status::GRPC_STATUS) else { return Code::Ok };
    let code = Code::from_bytes(code.as_bytes());
    if code != Code::OutOfRange {
        return code;
    }
    let Some(status) = Status::from_header_map(headers) else { return code };
    let Some((found, limit)) = too_large(status.message()) else { return code };
    let status = Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"));
    headers.remove(Status::GRPC_MESSAGE);
    let written = status.add_header(headers);
    debug_assert!(written.is_ok(), "a text of plain characters");
    headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("8"));
    Code::ResourceExhausted
}

/// Size and limit out of tonic's words for a message that is too large.
fn too_large(message: &str) -> Option<(&str, &str)> {
    let numbers = message.strip_prefix("Error, decoded message length too large: found ")?.strip_suffix(" bytes")?;
    numbers.split_once(" bytes, the limit is: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_too_large_is_told_in_grpcs_words() {
        let text = "Error, decoded message length too large: found 300 bytes, the limit is: 200 bytes";
        let mut response = Status::out_of_range(text).into_http::<Body>();
        assert_eq!(end(response.headers_mut()), Code::ResourceExhausted);
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (300 vs. 200)");
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        let mut response = Status::from(error::COMPACTED).into_http::<Body>();
        assert_eq!(end(response.headers_mut()), Code::OutOfRange);
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.message(), error::COMPACTED.message);
        assert_eq!(end(&mut HeaderMap::new()), Code::Ok);
    }
}
