//! Transactions over several regions: the coordinator's side. The protocol, step by step with its crash points, is in
//! `docs/decisions/0004-transactions.md`; the regions' side is the pipeline's.
//!
//! ```text
//!   1. look    guess from the nearest replicas; unless it  what changes nothing ends here (rule M1)
//!              writes, evaluate at a bound, without locks
//!   2. attach  leases of puts, to the regions of the keys  before the locks, which hold them there
//!   3. lock    the primary first, the others at once;     in key order where somebody is in the way
//!              each lock answers what lies under it
//!   4. decide  evaluate again, on what is locked;         the primary takes the number: the commit point (rule M4)
//!              hand everything to the primary
//! ```
//!
//! From then on it is the primary's: a coordinator may die at any step. One that lives on after an error says so to the
//! regions, so that nobody waits for a lock to be given up by itself. The work runs on a task of its own: a client that
//! goes away does not leave locks behind.

mod attempt;
mod fetched;
mod leases;
mod locks;
mod plan;
mod wipe;

use std::sync::Arc;
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::DeleteRangeResponse;
use braid_proto::pb::{EtcdError, region_response};
use braid_store_client::deadline::Patience;
use braid_store_client::retry;
use braid_store_core::eval::Request;
use tonic::Status;

use crate::kv::unexpected;
use crate::shared::Shared;

/// Bytes that a transaction over several regions may read, and change.
const BYTES_MAX: usize = 32 << 20;
/// Keys that it may change one by one. A DeleteRange has no such limit.
const CHANGES_MAX: usize = 65_536;

/// How an attempt failed.
enum Failed {
    /// The client is told this.
    With(Status),
    /// Something has moved meanwhile: begin again.
    Again(&'static str),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}

impl From<error::EtcdStatus> for Failed {
    fn from(error: error::EtcdStatus) -> Self {
        Self::With(error.into())
    }
}

impl From<EtcdError> for Failed {
    fn from(error: EtcdError) -> Self {
        Self::With(error.into())
    }
}

/// Runs `request` over all the regions it touches.
///
/// # Errors
/// What etcd would answer.
pub async fn run(
    shared: &Arc<Shared>,
    request: Request,
    patience: Patience,
) -> Result<region_response::Result, Status> {
    let shared = Arc::clone(shared);
    let work = tokio::spawn(async move { attempts(&shared, &request, patience).await });
    work.await.unwrap_or_else(|error| Err(Status::internal(format!("braid: the transaction was given up: {error}"))))
}

/// [`run`] for a DeleteRange.
///
/// # Errors
/// What etcd would answer.
pub async fn delete(shared: &Arc<Shared>, request: Request, patience: Patience) -> Result<DeleteRangeResponse, Status> {
    match run(shared, request, patience).await? {
        region_response::Result::DeleteRange(answer) => Ok(answer),
        other => Err(unexpected(other)),
    }
}

async fn attempts(
    shared: &Arc<Shared>,
    request: &Request,
    patience: Patience,
) -> Result<region_response::Result, Status> {
    metrics::counter!("braid_proxy_spread_txns_total").increment(1);
    let mut attempt = 0;
    loop {
        let result = match request {
            Request::DeleteRange(delete) => wipe::delete(shared, delete, patience).await,
            other => attempt::run(shared, other, patience).await,
        };
        match result {
            Ok(answer) => return Ok(answer),
            Err(Failed::With(status)) => return Err(status),
            Err(Failed::Again(_)) if patience.is_over() => return Err(error::TIMEOUT.into()),
            Err(Failed::Again(reason)) => {
                metrics::counter!("braid_proxy_spread_retries_total", "reason" => reason).increment(1);
                let pause: Duration = retry::pause(attempt);
                tokio::time::sleep(pause).await;
                attempt += 1;
            }
        }
    }
}

/// The transaction reads or changes too much. ResourceExhausted, as gRPC answers for messages that are too large: trying
/// again does not help, asking for less does.
fn too_large() -> Status {
    Status::resource_exhausted(format!(
        "braid: the transaction reads or changes more than {CHANGES_MAX} keys or {BYTES_MAX} bytes; make it smaller, or \
         use a DeleteRange of its own, which has no such limit"
    ))
}
