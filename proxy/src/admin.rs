//! braid's Admin service on the client port: hands every call to placement's leader.

use std::sync::Arc;

use braid_placement_client::{ClientError, PlacementClient};
use braid_proto::pb::admin_server::Admin;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, AdminTransferLeaderResponse, BalanceRequest,
    BalanceResponse, HealthRequest, HealthResponse, OperatorCancelRequest, OperatorCancelResponse, OperatorListRequest,
    OperatorListResponse, RegionListRequest, RegionListResponse, RegionPlanRequest, RegionPlanResponse, ScatterRequest,
    ScatterResponse, SchedulerListRequest, SchedulerListResponse, SchedulerSetRequest, SchedulerSetResponse,
    StatusRequest, StatusResponse, StoreListRequest, StoreListResponse, StoreRemoveRequest, StoreRemoveResponse,
    StoreSetRequest, StoreSetResponse,
};
use tonic::{Request, Response, Status};

use crate::shared::Shared;

/// The Admin service of one proxy.
pub struct AdminService {
    shared: Arc<Shared>,
    placement: Arc<PlacementClient>,
}

impl AdminService {
    /// Hands calls to `placement`.
    pub fn new(shared: Arc<Shared>, placement: Arc<PlacementClient>) -> Self {
        Self { shared, placement }
    }
}

macro_rules! forward {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Admin for AdminService {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let patience = self.shared.patience(request.metadata());
                let answer = self.placement.$method(request.into_inner(), patience.deadline).await;
                answer.map(Response::new).map_err(refusal)
            })*
        }
    };
}

forward! {
    store_list(StoreListRequest) -> StoreListResponse;
    region_list(RegionListRequest) -> RegionListResponse;
    region_split(AdminSplitRequest) -> AdminSplitResponse;
    region_transfer_leader(AdminTransferLeaderRequest) -> AdminTransferLeaderResponse;
    store_set(StoreSetRequest) -> StoreSetResponse;
    store_remove(StoreRemoveRequest) -> StoreRemoveResponse;
    region_plan(RegionPlanRequest) -> RegionPlanResponse;
    scatter(ScatterRequest) -> ScatterResponse;
    scheduler_list(SchedulerListRequest) -> SchedulerListResponse;
    scheduler_set(SchedulerSetRequest) -> SchedulerSetResponse;
    operator_list(OperatorListRequest) -> OperatorListResponse;
    operator_cancel(OperatorCancelRequest) -> OperatorCancelResponse;
    balance(BalanceRequest) -> BalanceResponse;
    health(HealthRequest) -> HealthResponse;
    status(StatusRequest) -> StatusResponse;
}

fn refusal(error: ClientError) -> Status {
    match error {
        ClientError::Refused(status) => status,
        unreachable @ ClientError::Unreachable { .. } => Status::unavailable(format!("braid: {unreachable}")),
    }
}
