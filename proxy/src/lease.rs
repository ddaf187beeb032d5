//! etcd's Lease service. What a lease is lies in the region that holds its record, and in the memory of that region's
//! leader (`docs/decisions/0006-leases.md`); here every operation becomes one question to that leader.
//!
//! | Call | Asked |
//! |------|-------|
//! | LeaseGrant | the lease's region, once; a drawn id that may be in use is drawn anew |
//! | LeaseRevoke | the lease's region, once |
//! | LeaseKeepAlive | the lease's region, until it answers ([`keep_alive`]) |
//! | LeaseTimeToLive | the lease's region, and for the keys all regions that may have some ([`attached`]) |
//! | LeaseLeases | all regions that hold records |

pub mod attached;
pub mod grant;
pub mod keep_alive;
pub mod list;

use std::sync::Arc;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::lease_server::Lease;
use braid_proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use braid_proto::key::{KeyRange, TAG_LEASE};
use braid_proto::pb::{LeaseStateRequest, LeaseStateResponse, RevokeLeaseRequest, region_request, region_response};
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::kv::unexpected;
use crate::shared::Shared;
use keep_alive::KeepAlives;

/// The Lease service of one proxy.
pub struct LeaseService {
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
}

impl LeaseService {
    /// A service on `shared`; its streams end when `stopped` says so.
    pub fn new(shared: Arc<Shared>, stopped: watch::Receiver<bool>) -> Self {
        Self { shared, stopped }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        grant::grant(&self.shared, request.into_inner(), patience).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let revision = revoke(&self.shared, request.get_ref().id, patience).await?;
        Ok(Response::new(LeaseRevokeResponse { header: self.shared.header(revision) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let require_leader = self.shared.patience(request.metadata()).require_leader;
        if require_leader && !self.shared.presence.has_leader().await {
            return Err(error::NO_LEADER.into());
        }
        let ticket = self.shared.in_flight.begin().ok_or(error::TOO_MANY_REQUESTS)?;
        let requests = request.into_inner();
        Ok(Response::new(keep_alive::open(&self.shared, requests, require_leader, self.stopped.clone(), ticket)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let state = state(&self.shared, id, false, patience).await?;
        // The lease's region has heard of what it took part in; others may have answered more (rule R5).
        let header = self.shared.header(bound::take(&self.shared.numbers, patience).await?.revision);
        if state.granted_ttl == 0 {
            return Ok(Response::new(LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                granted_ttl: 0,
                keys: Vec::new(),
            }));
        }
        let LeaseStateResponse { granted_ttl, ttl, ranges, .. } = state;
        let keys = match keys {
            true => attached::keys(&self.shared, id, ranges, patience).await?,
            false => Vec::new(),
        };
        Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys }))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let patience = self.shared.patience(request.metadata());
        list::list(&self.shared, patience).await.map(Response::new)
    }
}

/// Revokes a lease: with the answer it and all its keys are gone, at the revision that is returned if it had any.
///
/// A revocation whose outcome is unknown is not repeated: a late first one might meet a lease that was granted anew under
/// the same id.
async fn revoke(shared: &Shared, id: i64, patience: Patience) -> Result<i64, Status> {
    let op = region_request::Op::RevokeLease(RevokeLeaseRequest { id });
    match ask(shared, id, &op, Kind::Write, patience).await? {
        region_response::Result::RevokeLease(answer) => Ok(answer.revision),
        other => Err(unexpected(other)),
    }
}

/// What the region of lease `id` says of it. `at_once`: also while it is being revoked, instead of waiting for the end.
///
/// # Errors
/// The region does not answer in time.
pub async fn state(shared: &Shared, id: i64, at_once: bool, patience: Patience) -> Result<LeaseStateResponse, Status> {
    let op = region_request::Op::LeaseState(LeaseStateRequest { id, at_once });
    match ask(shared, id, &op, Kind::Read, patience).await? {
        region_response::Result::LeaseState(state) => Ok(state),
        other => Err(unexpected(other)),
    }
}

/// Asks the region that holds the record of lease `id`.
async fn ask(
    shared: &Shared,
    id: i64,
    op: &region_request::Op,
    kind: Kind,
    patience: Patience,
) -> Result<region_response::Result, Status> {
    let anchor = anchor(id);
    let ask = Ask { anchor: &anchor, within: |_: &KeyRange| true, op, kind, any_replica: false };
    shared.regions.ask(ask, patience).await.map_err(|failed| match failed {
        NoAnswer::Failed(status) => status,
        NoAnswer::Spread => Status::internal("braid: one lease cannot lie in two regions"),
    })
}

/// [`braid_proto::key::lease_key`] without memory of its own.
fn anchor(id: i64) -> [u8; 9] {
    let mut key = [TAG_LEASE; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use braid_proto::key::lease_key;

    use super::*;

    #[test]
    fn a_lease_is_asked_for_where_its_record_lies() {
        for id in [1, -1, i64::MAX, i64::MIN] {
            assert_eq!(anchor(id)[..], lease_key(id)[..]);
        }
    }
}
