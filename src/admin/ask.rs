//! Which call of the admin service carries which request, and what all answers have in common.

use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::*;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A request to the admin service.
pub trait Ask: Sized {
    /// What comes back.
    type Answer;

    /// Makes the call.
    fn send(
        client: &mut AdminClient<Channel>,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>>;

    /// Whether placement's leader answered.
    fn header(answer: &Self::Answer) -> Option<&PlacementHeader>;
}

/// A request that may be refused for a reason that people can read.
pub trait Order: Ask {
    /// The reason; empty: it is done.
    fn failed(answer: &Self::Answer) -> &str;
}

macro_rules! asks {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {
        $(impl Ask for $request {
            type Answer = $answer;

            async fn send(
                client: &mut AdminClient<Channel>,
                request: Request<Self>,
            ) -> Result<Response<Self::Answer>, Status> {
                client.$method(request).await
            }

            fn header(answer: &Self::Answer) -> Option<&PlacementHeader> {
                answer.header.as_ref()
            }
        })*
    };
}

macro_rules! orders {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {
        asks! { $($method($request) -> $answer;)* }
        $(impl Order for $request {
            fn failed(answer: &Self::Answer) -> &str {
                &answer.failed
            }
        })*
    };
}

asks! {
    store_list(StoreListRequest) -> StoreListResponse;
    region_list(RegionListRequest) -> RegionListResponse;
    scheduler_list(SchedulerListRequest) -> SchedulerListResponse;
    operator_list(OperatorListRequest) -> OperatorListResponse;
    balance(BalanceRequest) -> BalanceResponse;
    health(HealthRequest) -> HealthResponse;
    status(StatusRequest) -> StatusResponse;
}

orders! {
    store_set(StoreSetRequest) -> StoreSetResponse;
    store_remove(StoreRemoveRequest) -> StoreRemoveResponse;
    region_split(AdminSplitRequest) -> AdminSplitResponse;
    region_transfer_leader(AdminTransferLeaderRequest) -> AdminTransferLeaderResponse;
    region_plan(RegionPlanRequest) -> RegionPlanResponse;
    scatter(ScatterRequest) -> ScatterResponse;
    scheduler_set(SchedulerSetRequest) -> SchedulerSetResponse;
    operator_cancel(OperatorCancelRequest) -> OperatorCancelResponse;
}
