//! A gRPC service that comes later.
//!
//! A process must serve its peers before its own parts are complete: placement's members have to talk to each other
//! before a store can register. The peer port therefore serves [`Late`] services from the start; until one is set, its
//! callers are told that it is starting, which they treat like a process that is not there yet.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// A service of type `S`, once it is set.
#[derive(Clone)]
pub struct Late<S> {
    service: Arc<OnceLock<S>>,
}

impl<S> Default for Late<S> {
    fn default() -> Self {
        Self { service: Arc::default() }
    }
}

impl<S> Late<S> {
    /// Lets the service answer from now on. The first one set stays.
    pub fn set(&self, service: S) {
        let first = self.service.set(service).is_ok();
        assert!(first, "a late service is set once");
    }
}

impl<S: NamedService> NamedService for Late<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Late<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The services behind are always ready: generated servers have no queue of their own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.service.get() {
            Some(service) => Box::pin(service.clone().call(request)),
            None => Box::pin(async { Ok(Status::unavailable("braid: this process is still starting").into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Echo;

    impl Service<Request<Body>> for Echo {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            std::future::ready(Ok(Response::new(request.into_body())))
        }
    }

    #[tokio::test]
    async fn callers_are_told_to_wait_until_the_service_is_set() {
        let late = Late::default();
        let code = async |late: &Late<Echo>| {
            let answer = late.clone().call(Request::new(Body::empty())).await.unwrap();
            answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned())
        };
        assert_eq!(code(&late).await, Some((tonic::Code::Unavailable as i32).to_string()));
        late.set(Echo);
        assert_eq!(code(&late).await, None);
    }
}
