//! braid's Inspect service on the client port: what a proxy finds out by asking stores.

use std::sync::Arc;

use braid_proto::pb::inspect_server::Inspect;
use braid_proto::pb::{RegionCheckRequest, RegionCheckResponse};
use braid_store_client::deadline::Patience;
use tonic::{Request, Response, Status};

use crate::hash_kv::HASHING_MAX;
use crate::region_check;
use crate::shared::Shared;

/// The Inspect service of one proxy.
pub struct InspectService {
    shared: Arc<Shared>,
}

impl InspectService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Inspect for InspectService {
    async fn region_check(
        &self,
        request: Request<RegionCheckRequest>,
    ) -> Result<Response<RegionCheckResponse>, Status> {
        let patience = Patience::of(request.metadata(), HASHING_MAX);
        region_check::check(&self.shared, request.into_inner(), patience).await.map(Response::new)
    }
}
