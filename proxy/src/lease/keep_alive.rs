//! LeaseKeepAlive: one answer for each request of a stream, in their order.
//!
//! There is no task for it: the connection polls the stream when it can send. Requests go to their regions as they come, up
//! to [`AHEAD_MAX`] before the first of them is answered, so that a client which renews many leases waits for its regions
//! and not for itself. Beyond that, or where the proxy has too much in flight, the client's further requests are left in
//! its connection.
//!
//! What a region cannot answer ends the stream, after what was asked before has been answered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use braid_proto::pb::{KeepLeaseRequest, region_request, region_response};
use braid_store_client::deadline::Patience;
use braid_store_client::retry::Kind;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::watch;
use tonic::Status;

use super::ask;
use crate::in_flight::{InFlight, Ticket};
use crate::kv::unexpected;
use crate::shared::Shared;

/// Requests of one stream that may be under way. A client that renews more leases at once loses nothing: the next go out
/// as these are answered.
pub const AHEAD_MAX: usize = 256;

/// The answers of one stream.
pub type KeepAlives = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

/// Answers `requests`. The stream counts as one request in flight as long as it lives, and what it asks ahead of that as
/// one more each.
pub fn open(
    shared: &Arc<Shared>,
    requests: impl Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Send + Unpin + 'static,
    require_leader: bool,
    stopped: watch::Receiver<bool>,
    ticket: Ticket,
) -> KeepAlives {
    let over = over(Arc::clone(shared), require_leader, stopped).boxed();
    let in_flight = Arc::clone(&shared.in_flight);
    let shared = Arc::clone(shared);
    let keep = move |id, ticket| keep(Arc::clone(&shared), id, require_leader, ticket);
    let answers = FuturesOrdered::new();
    Box::pin(Pipeline { requests: Some(requests), keep, answers, in_flight, over, ended: false, _ticket: ticket })
}

/// Renews one lease.
async fn keep(
    shared: Arc<Shared>,
    id: i64,
    require_leader: bool,
    _ticket: Option<Ticket>,
) -> Result<LeaseKeepAliveResponse, Status> {
    let patience = Patience { require_leader, ..Patience::within(shared.config.request_timeout) };
    let op = region_request::Op::KeepLease(KeepLeaseRequest { id });
    match ask(&shared, id, &op, Kind::Read, patience).await? {
        region_response::Result::KeepLease(kept) => {
            Ok(LeaseKeepAliveResponse { header: shared.header(kept.revision), id, ttl: kept.ttl })
        }
        other => Err(unexpected(other)),
    }
}

/// Waits for a reason to end a stream: the proxy stops, or there is no leader where the client wants one.
async fn over(shared: Arc<Shared>, require_leader: bool, mut stopped: watch::Receiver<bool>) -> Status {
    let leaderless = async {
        match require_leader {
            true => shared.presence.leaderless().await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        // An error means that the proxy is gone altogether.
        _ = stopped.wait_for(|stopped| *stopped) => error::STOPPED.into(),
        () = leaderless => error::NO_LEADER.into(),
    }
}

/// A stream under way: `keep` answers one request.
struct Pipeline<R, K, F: Future> {
    /// `None`: the client says no more.
    requests: Option<R>,
    keep: K,
    answers: FuturesOrdered<F>,
    in_flight: Arc<InFlight>,
    over: BoxFuture<'static, Status>,
    ended: bool,
    _ticket: Ticket,
}

impl<R, K, F> Pipeline<R, K, F>
where
    R: Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Unpin,
    K: Fn(i64, Option<Ticket>) -> F,
    F: Future<Output = Result<LeaseKeepAliveResponse, Status>>,
{
    /// Takes what the client has said, as far as there is room.
    fn poll_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while let Some(requests) = &mut self.requests
            && self.answers.len() < AHEAD_MAX
        {
            // The first is the stream's own.
            let ticket = match self.answers.is_empty() {
                true => None,
                false => match self.in_flight.begin() {
                    Some(ticket) => Some(ticket),
                    None => break,
                },
            };
            match requests.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(request))) => self.answers.push_back((self.keep)(request.id, ticket)),
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) => self.requests = None,
            }
        }
        Ok(())
    }
}

impl<R, K, F> Stream for Pipeline<R, K, F>
where
    R: Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Unpin,
    K: Fn(i64, Option<Ticket>) -> F + Unpin,
    F: Future<Output = Result<LeaseKeepAliveResponse, Status>>,
{
    type Item = Result<LeaseKeepAliveResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let taken = match self.over.poll_unpin(context) {
            Poll::Ready(why) => Err(why),
            Poll::Pending => self.poll_requests(context),
        };
        let answer = match taken {
            Ok(()) => self.answers.poll_next_unpin(context),
            Err(why) => Poll::Ready(Some(Err(why))),
        };
        match &answer {
            Poll::Ready(Some(Err(_))) => {
                self.ended = true;
                self.answers = FuturesOrdered::new();
            }
            // All that was asked is answered; more may come.
            Poll::Ready(None) if self.requests.is_some() => return Poll::Pending,
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        answer
    }
}
