//! What administrators ask for: lists, orders, settings, and how the cluster is. `failed` of an answer says for people
//! why something is not done and what to do.

use std::sync::Arc;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::admin_server::Admin;
use braid_proto::pb::*;
use tonic::{Request, Response, Status};

use crate::leader::{CommitError, Shared};
use crate::scheduling::{balance, health};
use crate::{split, transfer};

mod regions;
mod schedulers;
mod stores;

/// Why something is not done, for the operator.
type Failed = String;

/// See the module's page.
pub struct AdminService {
    shared: Arc<Shared>,
}

impl AdminService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn not_committed(error: CommitError) -> Failed {
    match error {
        CommitError::Refused(why) => why,
        CommitError::Propose(error) => format!("{error}; look what is there now, and try again"),
    }
}

/// Answers with what the leader makes of a request; another member only says who leads.
macro_rules! answer {
    ($self:ident, $response:ident, |$shared:ident, $term:ident, $answer:ident| $do:expr) => {{
        let (header, term) = $self.shared.header();
        let mut $answer = $response { header: Some(header), ..Default::default() };
        if let Some($term) = term {
            let $shared = &*$self.shared;
            $do;
        }
        Ok(Response::new($answer))
    }};
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn store_list(&self, _: Request<StoreListRequest>) -> Result<Response<StoreListResponse>, Status> {
        answer!(self, StoreListResponse, |shared, term, answer| answer.stores = stores::list(shared, term))
    }

    async fn store_set(&self, request: Request<StoreSetRequest>) -> Result<Response<StoreSetResponse>, Status> {
        answer!(self, StoreSetResponse, |shared, term, answer| {
            answer.failed = stores::set(shared, term, request.into_inner()).await.err().unwrap_or_default();
        })
    }

    async fn store_remove(
        &self,
        request: Request<StoreRemoveRequest>,
    ) -> Result<Response<StoreRemoveResponse>, Status> {
        answer!(self, StoreRemoveResponse, |shared, term, answer| {
            answer.failed = stores::remove(shared, term, request.into_inner()).await.err().unwrap_or_default();
        })
    }

    async fn region_list(&self, request: Request<RegionListRequest>) -> Result<Response<RegionListResponse>, Status> {
        answer!(self, RegionListResponse, |shared, term, answer| {
            answer.regions = regions::list(shared, term, &request.into_inner());
        })
    }

    async fn region_split(&self, request: Request<AdminSplitRequest>) -> Result<Response<AdminSplitResponse>, Status> {
        answer!(self, AdminSplitResponse, |shared, term, answer| {
            let request = request.into_inner();
            let halves = match request.key.is_empty() && request.region_id != 0 {
                true => regions::split(shared, term, request).await,
                false => split::split(shared, term, &request.key).await,
            };
            match halves {
                Ok((left, right)) => (answer.left, answer.right) = (Some(left), Some(right)),
                Err(failed) => answer.failed = failed,
            }
        })
    }

    async fn region_transfer_leader(
        &self,
        request: Request<AdminTransferLeaderRequest>,
    ) -> Result<Response<AdminTransferLeaderResponse>, Status> {
        answer!(self, AdminTransferLeaderResponse, |shared, term, answer| {
            let AdminTransferLeaderRequest { region_id, to_store } = request.into_inner();
            let moved = transfer::transfer_leader(shared, term, RegionId(region_id), StoreId(to_store)).await;
            answer.failed = moved.err().unwrap_or_default();
        })
    }

    async fn region_plan(&self, request: Request<RegionPlanRequest>) -> Result<Response<RegionPlanResponse>, Status> {
        answer!(self, RegionPlanResponse, |shared, term, answer| {
            match regions::plan(shared, term, request.into_inner()).await {
                Ok(operator) => answer.operator = Some(operator),
                Err(failed) => answer.failed = failed,
            }
        })
    }

    async fn scatter(&self, request: Request<ScatterRequest>) -> Result<Response<ScatterResponse>, Status> {
        answer!(self, ScatterResponse, |shared, term, answer| {
            match regions::scatter(shared, term, &request.into_inner()) {
                Ok(scattered) => (answer.regions, answer.said) = (scattered.moving as u32, scattered.said),
                Err(failed) => answer.failed = failed,
            }
        })
    }

    async fn scheduler_list(
        &self,
        _: Request<SchedulerListRequest>,
    ) -> Result<Response<SchedulerListResponse>, Status> {
        answer!(self, SchedulerListResponse, |shared, term, answer| {
            (answer.schedulers, answer.settings) = schedulers::list(shared, term);
        })
    }

    async fn scheduler_set(
        &self,
        request: Request<SchedulerSetRequest>,
    ) -> Result<Response<SchedulerSetResponse>, Status> {
        answer!(self, SchedulerSetResponse, |shared, term, answer| {
            answer.failed = schedulers::set(shared, term, request.into_inner()).await.err().unwrap_or_default();
        })
    }

    async fn operator_list(
        &self,
        request: Request<OperatorListRequest>,
    ) -> Result<Response<OperatorListResponse>, Status> {
        answer!(self, OperatorListResponse, |shared, term, answer| {
            answer.operators = schedulers::operators(shared, term, &request.into_inner());
        })
    }

    async fn operator_cancel(
        &self,
        request: Request<OperatorCancelRequest>,
    ) -> Result<Response<OperatorCancelResponse>, Status> {
        answer!(self, OperatorCancelResponse, |shared, term, answer| {
            match schedulers::cancel(shared, term, RegionId(request.into_inner().region_id)) {
                Ok(cancelled) => answer.cancelled = cancelled as u32,
                Err(failed) => answer.failed = failed,
            }
        })
    }

    async fn balance(&self, _: Request<BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        answer!(self, BalanceResponse, |shared, term, answer| {
            shared.resync(term);
            let found = balance::balance(&shared.memory(term).scheduling, &shared.setup.paused);
            answer = BalanceResponse { header: answer.header, ..found };
        })
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        answer!(self, HealthResponse, |shared, term, answer| {
            shared.resync(term);
            answer.findings = health::findings(shared, term);
        })
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(super::placement::status(&self.shared)))
    }
}
