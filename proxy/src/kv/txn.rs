//! Txn: inside one region the region does it all.
//!
//! Over several regions the simplest kind, without compares and with nothing but ranges in the branch that runs, is a set
//! of reads of one snapshot. Everything else is `transact`'s.
//! A transaction that touches no key at all is a question for the current revision, which any region answers.

use std::ops::ControlFlow;
use std::sync::Arc;

use braid_proto::check;
use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use braid_proto::key::{KeyRange, TAG_USER};
use braid_proto::pb::{region_request, region_response};
use braid_proto::span::{txn_spans, txn_within};
use braid_store_core::eval::Request;
use bytes::Bytes;
use tonic::Status;

use super::range::{overtaken, snapshot};
use super::{fits, unexpected};
use crate::shared::Shared;
use crate::transact;
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::{self, Kind};

/// Serves a Txn.
///
/// # Errors
/// What etcd would answer.
pub async fn txn(shared: &Arc<Shared>, request: TxnRequest, patience: Patience) -> Result<TxnResponse, Status> {
    check::txn(&request, shared.config.max_txn_ops)?;
    fits(&request, shared.config.max_request_bytes)?;
    let anchor = first_key(&request).unwrap_or(Bytes::from_static(&[TAG_USER]));
    let kind = if writes(&request) { Kind::Write } else { Kind::Read };
    let op = region_request::Op::Txn(request);
    let region_request::Op::Txn(request) = &op else { unreachable!("built above") };
    let within = |range: &KeyRange| txn_within(request, range);
    match shared.regions.ask(Ask { anchor: &anchor, within, op: &op, kind, any_replica: false }, patience).await {
        Ok(region_response::Result::Txn(answer)) => Ok(answer),
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => match reads(request) {
            Some(reads) => at_a_bound(shared, &reads, patience).await,
            None => {
                let region_request::Op::Txn(request) = op else { unreachable!("built above") };
                match transact::run(shared, Request::Txn(request), patience).await? {
                    region_response::Result::Txn(answer) => Ok(answer),
                    other => Err(unexpected(other)),
                }
            }
        },
    }
}

/// An internal key that the transaction touches.
fn first_key(txn: &TxnRequest) -> Option<Bytes> {
    let mut first = None;
    let found = txn_spans(txn, &mut |span| match span.is_empty() {
        true => ControlFlow::Continue(()),
        false => {
            first = Some(span.start);
            ControlFlow::Break(())
        }
    });
    found.is_break().then_some(first).flatten()
}

/// Whether some branch, however nested, holds a put or a delete.
fn writes(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(request_op::Request::RequestPut(_) | request_op::Request::RequestDeleteRange(_)) => true,
        Some(request_op::Request::RequestTxn(nested)) => writes(nested),
        Some(request_op::Request::RequestRange(_)) | None => false,
    })
}

/// The ranges of a transaction that always runs nothing but ranges.
fn reads(txn: &TxnRequest) -> Option<Vec<&RangeRequest>> {
    let range = |op: &request_op::Request| matches!(op, request_op::Request::RequestRange(_));
    let only_ranges = txn.success.iter().all(|op| op.request.as_ref().is_some_and(range));
    let ranges = txn.success.iter().filter_map(|op| match &op.request {
        Some(request_op::Request::RequestRange(range)) => Some(range),
        _ => None,
    });
    (txn.compare.is_empty() && only_ranges).then(|| ranges.collect())
}

/// All ranges at one bound.
async fn at_a_bound(shared: &Shared, ranges: &[&RangeRequest], patience: Patience) -> Result<TxnResponse, Status> {
    let mut attempt = 0;
    loop {
        let bound = bound::take(&shared.numbers, patience).await?;
        match read_all(shared, ranges, bound, patience).await {
            Err((status, asked)) if overtaken(&status, asked) && !patience.is_over() => {
                tokio::time::sleep(retry::pause(attempt)).await;
                attempt += 1;
            }
            Err((status, _)) => return Err(status),
            Ok(responses) => {
                let header = header(bound);
                return Ok(TxnResponse { header, succeeded: true, responses });
            }
        }
    }
}

/// The answers of all ranges. A failure comes with the revision that its range named.
async fn read_all(
    shared: &Shared,
    ranges: &[&RangeRequest],
    bound: Bound,
    patience: Patience,
) -> Result<Vec<ResponseOp>, (Status, i64)> {
    // All revisions are judged before anything is read. A negative revision means the current one, and yet it is below
    // the compaction boundary, which is -1 before any compaction: so etcd judges it.
    let boundary = if bound.compacted == 0 { -1 } else { bound.compacted };
    for range in ranges {
        bound.read_at(range.revision).map_err(|status| (status.into(), 1))?;
        if range.revision < 0 && range.revision < boundary {
            return Err((error::COMPACTED.into(), 1));
        }
    }
    let mut responses = Vec::with_capacity(ranges.len());
    for range in ranges {
        let span = KeyRange::user(&range.key, &range.range_end);
        let answer =
            snapshot(shared, range, &span, bound, patience).await.map_err(|status| (status, range.revision))?;
        let answer = RangeResponse { header: header(bound), ..answer };
        responses.push(ResponseOp { response: Some(response_op::Response::ResponseRange(answer)) });
    }
    Ok(responses)
}

fn header(bound: Bound) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: bound.revision, ..Default::default() })
}
