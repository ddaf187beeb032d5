//! RangeStream: the answer of Range in chunks, all of one snapshot.
//!
//! 1. Take a bound, judge the revision, count the range at it.
//! 2. Walk the regions in key order, some keys at a time; the number adapts to the size of what comes.
//! 3. The last message carries the header, `more` and `count`. All messages merged are the answer of Range.
//!
//! The client's reading sets the pace: the next chunk is fetched when the last one has been taken. Each chunk has the
//! patience of a request of its own; a client that has given up closes the stream.

use std::sync::Arc;

use braid_proto::check;
use braid_proto::error;
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};
use braid_proto::key::KeyRange;
use braid_proto::range::has_filters;
use futures::stream::BoxStream;
use prost::Message;
use tonic::Status;

use super::range::{next_keys, snapshot};
use crate::in_flight::Ticket;
use crate::shared::Shared;
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;

/// Keys of the first chunk.
const FIRST_CHUNK: i64 = 10;
/// Keys of a chunk at most.
const CHUNK_MAX: i64 = 100_000;

/// Serves a RangeStream.
///
/// # Errors
/// What etcd would answer before the first chunk.
pub async fn range_stream(
    shared: Arc<Shared>,
    request: RangeRequest,
    patience: Patience,
) -> Result<BoxStream<'static, Result<RangeStreamResponse, Status>>, Status> {
    check::range(&request)?;
    // An unnamed order with another target than the key is sorted by Range, so chunks of it would not merge to its answer.
    if request.sort_order() == SortOrder::Descend || request.sort_target() != SortTarget::Key {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    if has_filters(&request) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    let ticket = shared.in_flight.begin().ok_or(error::TOO_MANY_REQUESTS)?;
    let span = KeyRange::user(&request.key, &request.range_end);
    let bound = bound::take(&shared.numbers, patience).await?;
    let read_at = bound.read_at(request.revision)?;
    let request = RangeRequest { revision: read_at, ..request };
    let count = RangeRequest { count_only: true, ..request.clone() };
    let count = snapshot(&shared, &count, &span, bound, patience).await?.count;
    let left = match request.limit {
        _ if request.count_only => 0,
        ..=0 => count,
        limit => limit.min(count),
    };
    let walk = Walk { shared, request, span, bound, count, left, chunk: FIRST_CHUNK, ended: false, _ticket: ticket };
    Ok(Box::pin(futures::stream::try_unfold(walk, Walk::next)))
}

/// A stream on its way.
struct Walk {
    shared: Arc<Shared>,
    /// Names its revision.
    request: RangeRequest,
    /// What has not been sent.
    span: KeyRange,
    bound: Bound,
    /// Keys of the whole range.
    count: i64,
    /// Keys still to be sent.
    left: i64,
    /// Keys of the next chunk.
    chunk: i64,
    ended: bool,
    _ticket: Ticket,
}

impl Walk {
    async fn next(mut self) -> Result<Option<(RangeStreamResponse, Self)>, Status> {
        if self.ended {
            return Ok(None);
        }
        let mut answer = if self.left > 0 { self.fetch().await? } else { RangeResponse::default() };
        if self.left <= 0 {
            self.ended = true;
            answer.header = self.shared.header(self.bound.revision);
            answer.more = !self.request.count_only && self.request.limit > 0 && self.count > self.request.limit;
            answer.count = self.count;
        }
        Ok(Some((RangeStreamResponse { range_response: Some(answer) }, self)))
    }

    /// The next keys, without header, `more` and `count`.
    async fn fetch(&mut self) -> Result<RangeResponse, Status> {
        let request = RangeRequest { limit: self.chunk.min(self.left), ..self.request.clone() };
        let patience = Patience::within(self.shared.config.request_timeout);
        let kvs = next_keys(&self.shared, request, &mut self.span, patience).await?;
        if kvs.is_empty() {
            tracing::error!(
                left = self.left,
                revision = self.request.revision,
                "a snapshot has fewer keys than it had"
            );
            return Err(error::CORRUPT.into());
        }
        let answer = RangeResponse { kvs, ..Default::default() };
        self.left -= answer.kvs.len() as i64;
        self.adapt(answer.encoded_len());
        Ok(answer)
    }

    /// Grows or shrinks chunks towards the size that a request may have.
    fn adapt(&mut self, bytes: usize) {
        let target = self.shared.config.max_request_bytes;
        if bytes > target {
            self.chunk = (self.chunk / 2).max(1);
        } else if bytes < target / 2 {
            self.chunk = (self.chunk * 2).min(CHUNK_MAX);
        }
    }
}
