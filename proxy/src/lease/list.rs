//! LeaseLeases: what every region that holds records says, the lease that ends first in front.

use braid_proto::etcd::etcdserverpb::{LeaseLeasesResponse, LeaseStatus};
use braid_proto::key::{KeyRange, all_leases};
use braid_proto::pb::{ListLeasesRequest, ListLeasesResponse, ListedLease, region_request, region_response};
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use tonic::Status;

use super::anchor;
use crate::kv::unexpected;
use crate::shared::Shared;

/// Regions that are asked at the same time.
const FANOUT: usize = 16;

/// Serves a LeaseLeases.
///
/// # Errors
/// A region does not answer in time.
pub async fn list(shared: &Shared, patience: Patience) -> Result<LeaseLeasesResponse, Status> {
    let answers = list_in(shared, all_leases(), patience).await?;
    let mut leases: Vec<ListedLease> = answers.into_iter().flat_map(|answer| answer.leases).collect();
    leases.sort_unstable_by_key(|lease| (lease.left_ms, lease.id));
    let leases = leases.into_iter().map(|lease| LeaseStatus { id: lease.id }).collect();
    let bound = bound::take(&shared.numbers, patience).await?;
    Ok(LeaseLeasesResponse { header: shared.header(bound.revision), leases })
}

/// The answers of all regions that hold a part of `span`.
fn list_in(
    shared: &Shared,
    span: KeyRange,
    patience: Patience,
) -> BoxFuture<'_, Result<Vec<ListLeasesResponse>, Status>> {
    Box::pin(async move {
        let pieces = shared.regions.pieces(&span, patience).await?;
        let asked: Vec<_> = pieces.into_iter().map(|(_, piece)| list_piece(shared, piece, patience)).collect();
        let answers = futures::stream::iter(asked).buffer_unordered(FANOUT);
        answers
            .try_fold(Vec::new(), |mut all, next| async move {
                all.extend(next);
                Ok(all)
            })
            .await
    })
}

/// The leases of `piece`, which was one region's when it was looked up.
async fn list_piece(shared: &Shared, piece: KeyRange, patience: Patience) -> Result<Vec<ListLeasesResponse>, Status> {
    let op = region_request::Op::ListLeases(ListLeasesRequest {});
    let within = |range: &KeyRange| range.contains_range(&piece);
    let ask = Ask { anchor: &piece.start, within, op: &op, kind: Kind::Read, any_replica: false };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::ListLeases(mut answer)) => {
            // A region that has grown since says what others say too.
            answer.leases.retain(|lease| piece.contains(&anchor(lease.id)));
            Ok(vec![answer])
        }
        Ok(other) => Err(unexpected(other)),
        Err(NoAnswer::Failed(status)) => Err(status),
        Err(NoAnswer::Spread) => list_in(shared, piece, patience).await,
    }
}
