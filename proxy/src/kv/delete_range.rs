//! DeleteRange: inside one region the region does it all, otherwise it is a transaction. An empty range deletes nothing, at the current revision, and asks no region.

use std::sync::Arc;

use braid_proto::check;
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, ResponseHeader};
use braid_proto::key::KeyRange;
use braid_proto::pb::{region_request, region_response};
use braid_store_core::eval::Request;
use tonic::Status;

use super::{fits, unexpected};
use crate::shared::Shared;
use crate::transact;
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;

/// Serves a DeleteRange.
///
/// # Errors
/// What etcd would answer.
pub async fn delete_range(
    shared: &Arc<Shared>,
    request: DeleteRangeRequest,
    patience: Patience,
) -> Result<DeleteRangeResponse, Status> {
    check::delete_range(&request)?;
    fits(&request, shared.config.max_request_bytes)?;
    let span = KeyRange::user(&request.key, &request.range_end);
    if span.is_empty() {
        let revision = bound::take(&shared.numbers, patience).await?.revision;
        let header = Some(ResponseHeader { revision, ..Default::default() });
        return Ok(DeleteRangeResponse { header, ..Default::default() });
    }
    let op = region_request::Op::DeleteRange(request);
    let within = |range: &KeyRange| range.contains_range(&span);
    let ask = Ask { anchor: &span.start, within, op: &op, kind: Kind::Write, any_replica: false };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::DeleteRange(answer)) => Ok(answer),
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => {
            let region_request::Op::DeleteRange(request) = op else { unreachable!("built above") };
            transact::delete(shared, Request::DeleteRange(request), patience).await
        }
    }
}
