//! What operators ask for: lists, a split, a transfer of leadership.

use std::sync::Arc;
use std::time::Instant;

use braid_proto::id::{RegionId, StoreId, Term};
use braid_proto::pb::admin_server::Admin;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, AdminTransferLeaderResponse, RegionListRequest,
    RegionListResponse, StatusRequest, StatusResponse, StoreListRequest, StoreListResponse, StoreState,
};
use tonic::{Request, Response, Status};

use crate::leader::Shared;
use crate::{split, transfer};

/// See the module's page.
pub struct AdminService {
    shared: Arc<Shared>,
}

impl AdminService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn store_states(&self, term: Term) -> Vec<StoreState> {
        let (stores, now) = (self.shared.stores(), Instant::now());
        let memory = self.shared.memory(term);
        let states = stores.into_iter().map(|store| {
            let id = StoreId(store.id);
            StoreState {
                store: Some(store),
                stats: memory.presence.stats(id),
                state: memory.presence.state(id, now).to_owned(),
                seconds_since_heartbeat: memory.presence.silence(id, now).as_secs(),
                ..StoreState::default()
            }
        });
        states.collect()
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn store_list(&self, _: Request<StoreListRequest>) -> Result<Response<StoreListResponse>, Status> {
        let (header, term) = self.shared.header();
        let stores = term.map(|term| self.store_states(term)).unwrap_or_default();
        Ok(Response::new(StoreListResponse { header: Some(header), stores }))
    }

    async fn region_list(&self, request: Request<RegionListRequest>) -> Result<Response<RegionListResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let regions = term.map(|term| self.shared.memory(term).regions.list(&request.start, &request.end));
        Ok(Response::new(RegionListResponse { header: Some(header), regions: regions.unwrap_or_default() }))
    }

    async fn region_split(&self, request: Request<AdminSplitRequest>) -> Result<Response<AdminSplitResponse>, Status> {
        let (header, term) = self.shared.header();
        let mut answer = AdminSplitResponse { header: Some(header), ..Default::default() };
        if let Some(term) = term {
            match split::split(&self.shared, term, &request.into_inner().key).await {
                Ok((left, right)) => (answer.left, answer.right) = (Some(left), Some(right)),
                Err(failed) => answer.failed = failed,
            }
        }
        Ok(Response::new(answer))
    }

    async fn region_transfer_leader(
        &self,
        request: Request<AdminTransferLeaderRequest>,
    ) -> Result<Response<AdminTransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let (header, term) = self.shared.header();
        let mut answer = AdminTransferLeaderResponse { header: Some(header), ..Default::default() };
        if let Some(term) = term {
            let (region, to) = (RegionId(request.region_id), StoreId(request.to_store));
            answer.failed = transfer::transfer_leader(&self.shared, term, region, to).await.err().unwrap_or_default();
        }
        Ok(Response::new(answer))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(super::placement::status(&self.shared)))
    }
}
