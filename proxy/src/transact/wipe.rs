//! A DeleteRange over several regions, or of more keys than one entry takes (rule M8).
//!
//! Few keys are a transaction like any other. Many are neither read nor listed: each region locks its part of the range
//! and counts it, the decision says "all of it" and with which sub-revision each part begins, and the regions write their
//! part in chunks. Nothing of it is seen before a region's part is done.

use std::sync::Arc;

use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, RangeRequest, ResponseHeader};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Share, Wipe, region_response};
use braid_store_client::bound::{self, Bound};
use braid_store_client::deadline::Patience;
use braid_store_client::locks::Taken;
use tonic::Status;

use super::Failed;
use super::attempt::{self, at_bound, decide, parts};
use super::locks::{self, Wanted};
use super::plan::Plan;
use crate::kv::range::{overtaken, snapshot, user_range};
use crate::shared::Shared;

/// Keys up to which a delete lists what it deletes.
const LISTED_KEYS_MAX: i64 = 4_096;

/// Runs a DeleteRange.
pub async fn delete(
    shared: &Arc<Shared>,
    request: &DeleteRangeRequest,
    patience: Patience,
) -> Result<region_response::Result, Failed> {
    let span = KeyRange::user(&request.key, &request.range_end);
    let bound = bound::take(&shared.numbers, patience).await?;
    match count(shared, &span, bound, patience).await? {
        0 => Ok(answer(0, bound.revision, Vec::new())),
        1..=LISTED_KEYS_MAX => attempt::delete(shared, request, patience).await,
        _ => wipe(shared, request, &span, patience).await,
    }
}

async fn wipe(
    shared: &Arc<Shared>,
    request: &DeleteRangeRequest,
    span: &KeyRange,
    patience: Patience,
) -> Result<region_response::Result, Failed> {
    let plan = Plan { locks: vec![(span.clone(), true)], past: Vec::new() };
    let parts = parts(shared, &plan, patience).await?;
    let wanted = Wanted { count_only: true, puts: false };
    let (locks, taken) = locks::take(shared, &parts, wanted, patience).await?;
    let counts: Vec<i64> = taken.iter().map(|lock| lock.data.iter().map(|data| data.count).sum()).collect();
    let deleted: i64 = counts.iter().sum();
    if deleted == 0 || request.prev_kv {
        let bound = bound::take(&shared.numbers, patience).await?;
        if deleted == 0 {
            locks.release(patience).await;
            return Ok(answer(0, bound.revision, Vec::new()));
        }
        // The range is locked: what is there at the bound is what will be deleted.
        let prev_kvs = at_bound(shared, span, bound, patience).await?;
        let revision = decide(shared, locks, shares(&taken, &counts)?, patience).await?;
        return Ok(answer(deleted, revision, prev_kvs));
    }
    let revision = decide(shared, locks, shares(&taken, &counts)?, patience).await?;
    Ok(answer(deleted, revision, Vec::new()))
}

/// What each region wipes: deletes are numbered in key order.
fn shares(taken: &[Taken], counts: &[i64]) -> Result<Vec<Share>, Failed> {
    let mut first = 0_u32;
    let mut shares = Vec::with_capacity(taken.len());
    for (lock, count) in taken.iter().zip(counts) {
        let mut share = Share { key: lock.key.clone(), token: Some(lock.token), ..Share::default() };
        if *count > 0 {
            let wipe = |range: &KeyRange| Wipe {
                start: range.start.clone(),
                end: range.end.clone(),
                first_sub: first,
                lease: 0,
            };
            share.wipes = lock.ranges.iter().map(wipe).collect();
        }
        shares.push(share);
        first = u32::try_from(*count)
            .ok()
            .and_then(|count| first.checked_add(count))
            .ok_or_else(|| Status::resource_exhausted("braid: one request deletes at most 2^32 keys"))?;
    }
    Ok(shares)
}

async fn count(shared: &Shared, span: &KeyRange, bound: Bound, patience: Patience) -> Result<i64, Failed> {
    let (key, range_end) = user_range(span);
    let count = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    match snapshot(shared, &count, span, bound, patience).await {
        Ok(answer) => Ok(answer.count),
        Err(status) if overtaken(&status, 0) => Err(Failed::Again("compacted")),
        Err(status) => Err(status.into()),
    }
}

fn answer(deleted: i64, revision: i64, prev_kvs: Vec<braid_proto::etcd::mvccpb::KeyValue>) -> region_response::Result {
    let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
    region_response::Result::DeleteRange(DeleteRangeResponse { header, deleted, prev_kvs })
}
