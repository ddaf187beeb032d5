//! Waiting for placement, as long as it takes: a cluster's processes start in any order.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use braid_placement_client::PlacementClient;
use braid_proto::id::ClusterId;
use braid_proto::pb::{RegisterStoreRequest, StatusRequest};
use braid_store::{OpenError, Registered, register};
use tokio::time::Instant;
use tracing::warn;

use crate::args::types::Url;

/// How long one try lasts. After each the operator reads why it goes on waiting.
const TRY: Duration = Duration::from_secs(5);

/// A client of the placement members at `endpoints`.
pub fn placement_client(endpoints: &[Url]) -> Result<PlacementClient> {
    if endpoints.is_empty() {
        bail!("--placement-endpoints is missing; give the peer URLs of the placement members");
    }
    Ok(PlacementClient::new(endpoints.iter().map(|url| url.addr.clone()).collect()))
}

/// An id that no other process and no other start has: 64 bits of the system's randomness, never 0.
pub fn drawn_id() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

/// Makes a store known to placement.
pub async fn registered(placement: &PlacementClient, request: RegisterStoreRequest) -> Result<Registered> {
    loop {
        match register(placement, request.clone(), Instant::now() + TRY).await {
            Ok(registered) => return Ok(registered),
            Err(OpenError::Placement(error)) => warn!(%error, "waiting for placement"),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells placement where a store is that it has admitted before, while the store opens already. Resolves only if placement
/// does not want it any more, or knows it as another one.
pub async fn refused(placement: &PlacementClient, request: RegisterStoreRequest, known: Registered) -> anyhow::Error {
    match registered(placement, request).await {
        Ok(now) if now == known => std::future::pending().await,
        Ok(now) => anyhow!("placement calls this store {}, its folder says {}", now.store_id, known.store_id),
        Err(error) => error,
    }
}

/// The cluster that placement belongs to.
pub async fn cluster_of(placement: &PlacementClient) -> Result<ClusterId> {
    loop {
        match placement.get_status(StatusRequest {}, Instant::now() + TRY).await {
            Ok(status) => {
                let cluster_id = ClusterId(status.header.map_or(0, |header| header.cluster_id));
                return if cluster_id.is_valid() { Ok(cluster_id) } else { bail!("placement names no cluster") };
            }
            Err(error) => warn!(%error, "waiting for placement"),
        }
    }
}
