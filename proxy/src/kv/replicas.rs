//! Serializable ranges: any replica answers, at its frontier, without a quorum (rule Q4).
//!
//! Inside one region a replica answers at its own frontier. Over many regions the replicas are asked for their frontiers
//! first, and the least of them is the revision that all of them read: one snapshot, if maybe an old one. A replica that
//! lags behind its region asks its leader how far that is; where there is no leader it says what it has.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use braid_proto::key::KeyRange;
use braid_proto::pb::{FrontierRequest, FrontierResponse, region_request, region_response};
use braid_proto::range::{for_each_region, merge};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use futures::stream::{StreamExt, TryStreamExt};
use tonic::Status;

use super::range::{ask_one, spread_out};
use super::unexpected;
use crate::shared::Shared;

/// Replicas that are asked for their frontiers at the same time.
const FANOUT: usize = 64;

/// Serves a serializable Range.
///
/// # Errors
/// What etcd would answer; "future" also for a revision that the replicas have not come to yet.
pub async fn range(shared: &Shared, request: &RangeRequest, patience: Patience) -> Result<RangeResponse, Status> {
    let span = KeyRange::user(&request.key, &request.range_end);
    if span.is_empty() {
        let revision = shared.numbers.heard().1.max(1);
        if request.revision > revision {
            return Err(error::FUTURE_REVISION.into());
        }
        return Ok(RangeResponse { header: header(revision), ..RangeResponse::default() });
    }
    match ask_one(shared, &span, request.clone(), 0, patience).await {
        Ok(answer) => Ok(answer),
        Err((NoAnswer::Failed(status), _)) => Err(status),
        Err((NoAnswer::Spread, _)) => snapshot(shared, request, &span, patience).await,
    }
}

async fn snapshot(
    shared: &Shared,
    request: &RangeRequest,
    span: &KeyRange,
    patience: Patience,
) -> Result<RangeResponse, Status> {
    let frontier = least(shared, span, patience).await?;
    if request.revision > frontier {
        return Err(error::FUTURE_REVISION.into());
    }
    let revision = if request.revision > 0 { request.revision } else { frontier };
    let part = RangeRequest { revision, ..for_each_region(request) };
    let answer = spread_out(shared, part, span.clone(), patience).await?;
    Ok(RangeResponse { header: header(frontier), ..merge(request, [answer]) })
}

/// The least frontier over the regions of `span`.
async fn least(shared: &Shared, span: &KeyRange, patience: Patience) -> Result<i64, Status> {
    let pieces = shared.regions.pieces(span, patience).await?;
    let asked: Vec<_> = pieces.iter().map(|(_, piece)| frontier(shared, piece, patience)).collect();
    let frontiers: Vec<i64> = futures::stream::iter(asked).buffered(FANOUT).try_collect().await?;
    frontiers.into_iter().min().ok_or_else(|| Status::internal("braid: a range lies in no region"))
}

/// The frontier of a replica of each region of `piece`: it was one region when it was looked up.
async fn frontier(shared: &Shared, piece: &KeyRange, patience: Patience) -> Result<i64, Status> {
    let op = region_request::Op::Frontier(FrontierRequest { leader: false, at_least: 0 });
    let within = |range: &KeyRange| range.contains_range(piece);
    let ask = Ask { anchor: &piece.start, within, op: &op, kind: Kind::Read, any_replica: true };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::Frontier(FrontierResponse { revision, .. })) => Ok(revision),
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => Box::pin(least(shared, piece, patience)).await,
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}
