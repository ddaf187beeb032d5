//! Compact: placement decides, for the whole cluster.
//!
//! The answer means that every read below the revision is refused from now on. `physical` waits until the stores that
//! are up have dropped what lies below; like etcd it sets no time for that, the client does.

use std::time::Duration;

use braid_placement_client::ClientError;
use braid_proto::etcd::etcdserverpb::{CompactionRequest, CompactionResponse};
use braid_proto::pb::{AwaitDroppedRequest, CompactRequest};
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::shared::Shared;

/// How long a client without a timeout of its own waits for the disks: for ever, as far as anybody can tell.
const PHYSICAL_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Serves a Compact.
///
/// # Errors
/// What etcd would answer.
pub async fn compact(
    shared: &Shared,
    request: CompactionRequest,
    metadata: &MetadataMap,
) -> Result<CompactionResponse, Status> {
    let patience = shared.patience(metadata);
    let CompactionRequest { revision, physical } = request;
    let answer = shared.placement.compact(CompactRequest { revision }, patience.deadline).await;
    let answer = answer.map_err(|error| failed(error, patience))?;
    if let Some(error) = answer.error {
        return Err(error.into());
    }
    if physical {
        let patience = Patience::of(metadata, PHYSICAL_MAX);
        let wait = shared.placement.await_dropped(AwaitDroppedRequest { revision }, patience.deadline);
        wait.await.map_err(|error| failed(error, patience))?;
    }
    Ok(CompactionResponse { header: shared.header(answer.revision) })
}

fn failed(error: ClientError, patience: Patience) -> Status {
    tracing::debug!(%error, "placement did not compact");
    match error {
        ClientError::Refused(status) if status.code() == Code::ResourceExhausted => status,
        ClientError::Refused(_) | ClientError::Unreachable { .. } => bound::no_leader(patience).into(),
    }
}
