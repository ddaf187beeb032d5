//! Put: one key, one region.

use braid_proto::check;
use braid_proto::etcd::etcdserverpb::{PutRequest, PutResponse};
use braid_proto::key::user_key;
use braid_proto::pb::{region_request, region_response};
use tonic::Status;

use super::{fits, unexpected};
use crate::shared::Shared;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;

/// Serves a Put.
///
/// # Errors
/// What etcd would answer.
pub async fn put(shared: &Shared, request: PutRequest, patience: Patience) -> Result<PutResponse, Status> {
    check::put(&request)?;
    fits(&request, shared.config.max_request_bytes)?;
    let anchor = user_key(&request.key);
    let op = region_request::Op::Put(request);
    let ask = Ask { anchor: &anchor, within: |_: &_| true, op: &op, kind: Kind::Write, any_replica: false };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::Put(answer)) => Ok(answer),
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => Err(Status::internal("braid: one key cannot lie in two regions")),
    }
}
