//! LeaseGrant: an id that the client has chosen, or one that is drawn here.
//!
//! A grant whose outcome is unknown is not repeated under a chosen id: the second one might say "exists" of what the first
//! has done. A drawn id is nobody's, so another one is drawn; what the first may have left ends by itself.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse};
use braid_proto::pb::{GrantLeaseRequest, region_request, region_response};
use braid_store_client::deadline::Patience;
use braid_store_client::retry::{self, Kind};
use tonic::Status;

use super::ask;
use crate::kv::range::is;
use crate::kv::unexpected;
use crate::shared::Shared;

/// Seconds that a lease lives at least: one and a half of etcd's election timeouts, rounded up.
pub const TTL_MIN: i64 = 2;
/// Seconds that may be asked for at most: etcd's bound.
pub const TTL_MAX: i64 = 9_000_000_000;

/// Serves a LeaseGrant.
///
/// # Errors
/// What etcd would answer.
pub async fn grant(
    shared: &Shared,
    request: LeaseGrantRequest,
    patience: Patience,
) -> Result<LeaseGrantResponse, Status> {
    if request.ttl > TTL_MAX {
        return Err(error::LEASE_TTL_TOO_LARGE.into());
    }
    let ttl = request.ttl.max(TTL_MIN);
    let mut attempt = 0;
    loop {
        let id = if request.id == 0 { draw() } else { request.id };
        let op = region_request::Op::GrantLease(GrantLeaseRequest { id, ttl });
        let status = match ask(shared, id, &op, Kind::Write, patience).await {
            Ok(region_response::Result::GrantLease(answer)) => {
                let header = shared.header(answer.revision);
                return Ok(LeaseGrantResponse { header, id, ttl, error: String::new() });
            }
            Ok(other) => unexpected(other),
            Err(status) => status,
        };
        if request.id != 0 || patience.is_over() || !another_may_do(&status) {
            return Err(status);
        }
        tracing::debug!(why = status.message(), "another id is drawn for a lease");
        tokio::time::sleep_until(patience.deadline.min(tokio::time::Instant::now() + retry::pause(attempt))).await;
        attempt += 1;
    }
}

/// A positive id.
fn draw() -> i64 {
    rand::random_range(1..=i64::MAX)
}

/// Whether a grant under another id may do what this one did not: the id was in use, or nobody knows what became of it.
fn another_may_do(status: &Status) -> bool {
    let errors = [error::LEASE_EXISTS, error::TIMEOUT_LEADER_FAIL, error::TIMEOUT_CONNECTION_LOST];
    errors.into_iter().any(|error| is(status, error))
}
