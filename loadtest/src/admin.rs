//! Orders to braid's admin service and what it says about stores, regions, operators and balance.

use std::time::Duration;

use anyhow::{Context, bail};
use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::region_plan_request::Plan;
use braid_proto::pb::{
    AdminSplitRequest, AdminTransferLeaderRequest, BalanceRequest, BalanceResponse, OperatorListRequest, OperatorState,
    Region, RegionListRequest, RegionPlanRequest, RegionState, SchedulerSetRequest, StoreListRequest, StoreState,
};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::client::Address;

/// How long one order may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// From one look at an operator to the next.
const LOOK: Duration = Duration::from_millis(20);

/// The admin service at one endpoint.
#[derive(Debug, Clone)]
pub struct Admin(AdminClient<Channel>);

/// What became of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All its steps are done.
    Done,
    /// It ended otherwise: how and why.
    Otherwise(String),
    /// It has not ended in time: how far it is.
    Open(String),
}

impl Admin {
    /// Connects.
    pub async fn connect(endpoint: &Address) -> anyhow::Result<Self> {
        Ok(Self(AdminClient::new(endpoint.channel().await?).max_decoding_message_size(usize::MAX)))
    }

    /// All stores.
    pub async fn stores(&mut self) -> anyhow::Result<Vec<StoreState>> {
        Ok(answer(self.0.store_list(StoreListRequest {})).await?.stores)
    }

    /// The ids of stores that are up.
    pub async fn stores_up(&mut self) -> anyhow::Result<Vec<u64>> {
        let stores = self.stores().await?;
        let up = stores.iter().filter(|state| state.state == "up").filter_map(|state| state.store.as_ref());
        Ok(up.map(|store| store.id).collect())
    }

    /// All regions that placement was told of.
    pub async fn regions(&mut self) -> anyhow::Result<Vec<RegionState>> {
        Ok(answer(self.0.region_list(RegionListRequest::default())).await?.regions)
    }

    /// One region.
    pub async fn region(&mut self, region_id: u64) -> anyhow::Result<RegionState> {
        let request = RegionListRequest { region_id, ..RegionListRequest::default() };
        let regions = answer(self.0.region_list(request)).await?.regions;
        regions.into_iter().next().with_context(|| format!("there is no region r{region_id}"))
    }

    /// Cuts the region that holds an internal key there; gives both halves.
    pub async fn split(&mut self, key: Bytes) -> anyhow::Result<(Region, Region)> {
        let request = AdminSplitRequest { key, ..AdminSplitRequest::default() };
        let answer = answer(self.0.region_split(request)).await?;
        refused(&answer.failed)?;
        Ok((answer.left.unwrap_or_default(), answer.right.unwrap_or_default()))
    }

    /// Makes the peer on a store the leader.
    pub async fn transfer_leader(&mut self, region_id: u64, to_store: u64) -> anyhow::Result<()> {
        let request = AdminTransferLeaderRequest { region_id, to_store };
        refused(&answer(self.0.region_transfer_leader(request)).await?.failed)
    }

    /// Begins an operator.
    pub async fn plan(&mut self, plan: Plan) -> anyhow::Result<OperatorState> {
        let answer = answer(self.0.region_plan(RegionPlanRequest { plan: Some(plan) })).await?;
        refused(&answer.failed)?;
        answer.operator.context("the order was taken, but no operator was named")
    }

    /// Waits until an operator has ended.
    pub async fn follow(&mut self, operator: &OperatorState, within: Duration) -> anyhow::Result<Ending> {
        let deadline = Instant::now() + within;
        let request = OperatorListRequest { ended: true, region_id: operator.region_id };
        loop {
            let listed = answer(self.0.operator_list(request)).await?.operators;
            let Some(found) = listed.into_iter().find(|listed| listed.id == operator.id) else {
                return Ok(Ending::Otherwise("placement no longer knows of it".to_owned()));
            };
            if let Some(ending) = ending(&found) {
                return Ok(ending);
            }
            if Instant::now() >= deadline {
                return Ok(Ending::Open(progress(&found)));
            }
            sleep(LOOK).await;
        }
    }

    /// What is under way on regions, and how far it is, a line each.
    pub async fn under_way(&mut self) -> anyhow::Result<Vec<String>> {
        let operators = answer(self.0.operator_list(OperatorListRequest::default())).await?.operators;
        let line = |operator: &OperatorState| {
            let OperatorState { region_id, why, seconds, .. } = operator;
            format!("r{region_id}, for {seconds} s ({why}): {}", progress(operator))
        };
        Ok(operators.iter().map(line).collect())
    }

    /// How far the cluster is from balance.
    pub async fn balance(&mut self) -> anyhow::Result<BalanceResponse> {
        answer(self.0.balance(BalanceRequest {})).await
    }

    /// Stops all schedulers, or lets all of them go on.
    pub async fn pause_schedulers(&mut self, paused: bool) -> anyhow::Result<()> {
        let all = vec!["all".to_owned()];
        let request = match paused {
            true => SchedulerSetRequest { pause: all, ..SchedulerSetRequest::default() },
            false => SchedulerSetRequest { resume: all, ..SchedulerSetRequest::default() },
        };
        refused(&answer(self.0.scheduler_set(request)).await?.failed)
    }
}

/// How an operator ended; none while it runs.
fn ending(operator: &OperatorState) -> Option<Ending> {
    match operator.state.as_str() {
        "running" => None,
        "done" => Some(Ending::Done),
        other => Some(Ending::Otherwise(format!("{other}: {}", operator.said))),
    }
}

/// How far an operator is.
fn progress(operator: &OperatorState) -> String {
    let step = operator.steps.get(operator.at as usize).map_or("no step left", String::as_str);
    let said = if operator.said.is_empty() { String::new() } else { format!(", {}", operator.said) };
    format!("step {} of {} ({step}){said}", operator.at + 1, operator.steps.len())
}

/// Waits for an answer.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
    let answer = timeout(PATIENCE, call).await.with_context(|| format!("no answer within {PATIENCE:?}"))?;
    answer.map(Response::into_inner).map_err(said)
}

/// An answer that says why not.
fn refused(failed: &str) -> anyhow::Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{failed}")
}

/// An error of the call. A server without the service is no braid, or an older one.
fn said(status: Status) -> anyhow::Error {
    match status.code() {
        Code::Unimplemented => anyhow::anyhow!("this server does not offer it"),
        code => anyhow::anyhow!("{} ({code:?})", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_an_operator_is_said() {
        let operator = |state: &str, at| OperatorState {
            state: state.into(),
            said: "snapshot sent".into(),
            steps: vec!["add learner p4 on s4".into(), "remove p1 from s1".into()],
            at,
            ..OperatorState::default()
        };
        assert_eq!(ending(&operator("running", 0)), None);
        assert_eq!(ending(&operator("done", 2)), Some(Ending::Done));
        assert_eq!(ending(&operator("failed", 1)), Some(Ending::Otherwise("failed: snapshot sent".into())));
        assert_eq!(progress(&operator("running", 1)), "step 2 of 2 (remove p1 from s1), snapshot sent");
        assert!(progress(&operator("running", 2)).contains("no step left"));
    }

    #[test]
    fn an_order_that_is_refused_is_an_error() {
        assert!(refused("").is_ok());
        assert_eq!(refused("no such region").unwrap_err().to_string(), "no such region");
        assert!(said(Status::unimplemented("")).to_string().contains("does not offer"));
    }
}
