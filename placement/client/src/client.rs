//! Calls to placement's leader, wherever it is.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::placement_client::PlacementClient as Grpc;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, AdminTransferLeaderResponse,
    AwaitDroppedRequest, AwaitDroppedResponse, BalanceRequest, BalanceResponse, CompactRequest, CompactResponse,
    HealthRequest, HealthResponse, OperatorCancelRequest, OperatorCancelResponse, OperatorListRequest,
    OperatorListResponse, PlacementHeader, ProxyHeartbeatRequest, ProxyHeartbeatResponse, RegionListRequest,
    RegionListResponse, RegionPlanRequest, RegionPlanResponse, RegisterStoreRequest, RegisterStoreResponse,
    RouteRequest, RouteResponse, ScatterRequest, ScatterResponse, SchedulerListRequest, SchedulerListResponse,
    SchedulerSetRequest, SchedulerSetResponse, StatusRequest, StatusResponse, StoreHeartbeatRequest,
    StoreHeartbeatResponse, StoreListRequest, StoreListResponse, StoreRemoveRequest, StoreRemoveResponse,
    StoreSetRequest, StoreSetResponse,
};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::members::Members;

/// How long one member may take before another is tried; half of what is left if that is more.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after all members were tried; doubles up to ten times as much.
const PAUSE: Duration = Duration::from_millis(50);
/// Route and region lists of large clusters pass gRPC's default of 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why placement was not reached, or what it answered.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No member led, or none answered, until the deadline.
    #[error("no placement leader among {endpoints} answered in time ({last})")]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// What the last one said.
        last: String,
    },
    /// The leader refused the call itself, or it is unknown whether a call that must not be repeated was done.
    #[error("placement answers: {}", .0.message())]
    Refused(Status),
}

/// Whether a call whose outcome is unknown may be made again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Done twice it is as if done once.
    Freely,
    /// Only if it certainly was not done: a second split fails, and hides that the first one succeeded.
    IfNotDone,
}

/// A client of placement. Cheap to share; connects when it is first used.
pub struct PlacementClient {
    state: Mutex<State>,
}

struct State {
    members: Members,
    /// By address: the endpoints, and what members named as leader.
    channels: HashMap<String, Channel>,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($client:ident, $request:ty, $repeat:ident) -> $response:ty;)*) => {
        $($(#[$doc])* pub async fn $name(&self, request: $request, deadline: Instant) -> Result<$response, ClientError> {
            self.call(Repeat::$repeat, deadline, move |channel| {
                let request = request.clone();
                async move { $client::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).$name(request).await }
            }, |response: &$response| response.header.as_ref()).await
        })*
    };
}

impl PlacementClient {
    /// A client of the members at `endpoints` (`host:port`, at least one).
    ///
    /// # Panics
    /// Without endpoints.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { state: Mutex::new(State { members: Members::new(endpoints), channels: HashMap::new() }) }
    }

    /// The members' addresses.
    pub fn endpoints(&self) -> Vec<String> {
        self.state.lock().members.endpoints().to_vec()
    }

    calls! {
        /// Makes a store known.
        register_store(Grpc, RegisterStoreRequest, Freely) -> RegisterStoreResponse;
        /// A store's report.
        store_heartbeat(Grpc, StoreHeartbeatRequest, Freely) -> StoreHeartbeatResponse;
        /// A proxy's report.
        proxy_heartbeat(Grpc, ProxyHeartbeatRequest, Freely) -> ProxyHeartbeatResponse;
        /// Regions from a key on.
        get_routes(Grpc, RouteRequest, Freely) -> RouteResponse;
        /// Raises the compacted revision. Not repeated once it may have been done: the second time it is an error.
        compact(Grpc, CompactRequest, IfNotDone) -> CompactResponse;
        /// Waits until every live store has dropped what a compaction gave up.
        await_dropped(Grpc, AwaitDroppedRequest, Freely) -> AwaitDroppedResponse;
        /// State of placement.
        get_status(Grpc, StatusRequest, Freely) -> StatusResponse;
        /// All stores.
        store_list(AdminClient, StoreListRequest, Freely) -> StoreListResponse;
        /// All regions.
        region_list(AdminClient, RegionListRequest, Freely) -> RegionListResponse;
        /// Splits a region. Not repeated once it may have been done.
        region_split(AdminClient, AdminSplitRequest, IfNotDone) -> AdminSplitResponse;
        /// Hands over a region's leadership.
        region_transfer_leader(AdminClient, AdminTransferLeaderRequest, Freely) -> AdminTransferLeaderResponse;
        /// Changes what is kept of a store.
        store_set(AdminClient, StoreSetRequest, Freely) -> StoreSetResponse;
        /// Removes a store for good. Not repeated once it may have been done: then it is removed already, an error.
        store_remove(AdminClient, StoreRemoveRequest, IfNotDone) -> StoreRemoveResponse;
        /// Begins an operator on a region. Not repeated once it may have begun.
        region_plan(AdminClient, RegionPlanRequest, IfNotDone) -> RegionPlanResponse;
        /// Spreads regions over stores anew.
        scatter(AdminClient, ScatterRequest, Freely) -> ScatterResponse;
        /// Schedulers and their settings.
        scheduler_list(AdminClient, SchedulerListRequest, Freely) -> SchedulerListResponse;
        /// Pauses, resumes and sets.
        scheduler_set(AdminClient, SchedulerSetRequest, Freely) -> SchedulerSetResponse;
        /// Operators under way and ended.
        operator_list(AdminClient, OperatorListRequest, Freely) -> OperatorListResponse;
        /// Ends operators. Not repeated once it may have been done: then there are none, an error.
        operator_cancel(AdminClient, OperatorCancelRequest, IfNotDone) -> OperatorCancelResponse;
        /// How far the cluster is from balance.
        balance(AdminClient, BalanceRequest, Freely) -> BalanceResponse;
        /// What is wrong with the cluster.
        health(AdminClient, HealthRequest, Freely) -> HealthResponse;
        /// State of placement, for operators.
        status(AdminClient, StatusRequest, Freely) -> StatusResponse;
    }

    /// The member to ask next and a channel to it, connected when it is first used.
    ///
    /// # Errors
    /// Its address is no address; then another member is next.
    pub(crate) fn channel(&self) -> Result<(String, Channel), String> {
        let mut state = self.state.lock();
        let target = state.members.target().to_owned();
        if let Some(channel) = state.channels.get(&target) {
            return Ok((target, channel.clone()));
        }
        let endpoint = match Endpoint::from_shared(format!("http://{target}")) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                state.members.failed(&target);
                return Err(format!("{target}: {error}"));
            }
        };
        let channel = endpoint
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect_lazy();
        state.channels.insert(target.clone(), channel.clone());
        Ok((target, channel))
    }

    /// The member of this process knows that `leader` leads.
    pub(crate) fn learn_leader(&self, leader: &str) {
        self.state.lock().members.learn(leader);
    }

    /// `member` does not lead; it names `leader`, or nobody.
    pub(crate) fn refused(&self, member: &str, leader: &str) {
        self.state.lock().members.refused(member, leader);
    }

    /// `member` is of no use now.
    pub(crate) fn failed(&self, member: &str) {
        self.state.lock().members.failed(member);
    }

    async fn call<R, F>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        send: impl Fn(Channel) -> F,
        header: impl Fn(&R) -> Option<&PlacementHeader>,
    ) -> Result<R, ClientError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            let last = match self.channel() {
                Ok((member, channel)) => match attempt(repeat, deadline, send(channel)).await {
                    Ok(response) => match header(&response).filter(|header| header.refused) {
                        None => return Ok(response),
                        Some(refused) => {
                            self.refused(&member, &refused.not_leader);
                            format!("{member} does not lead")
                        }
                    },
                    Err(status) if may_try_again(repeat, status.code()) => {
                        self.failed(&member);
                        format!("{member}: {}", explain(&status))
                    }
                    Err(status) => return Err(ClientError::Refused(status)),
                },
                Err(why) => why,
            };
            tries += 1;
            let endpoints = self.endpoints();
            if Instant::now() + pause >= deadline {
                return Err(ClientError::Unreachable { endpoints: endpoints.join(", "), last });
            }
            if tries % (endpoints.len() + 1) == 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE * 10);
            }
        }
    }
}

async fn attempt<R>(
    repeat: Repeat,
    deadline: Instant,
    call: impl Future<Output = Result<Response<R>, Status>>,
) -> Result<R, Status> {
    let until = match repeat {
        Repeat::Freely => {
            let left = deadline.saturating_duration_since(Instant::now());
            deadline.min(Instant::now() + ATTEMPT.max(left / 2))
        }
        Repeat::IfNotDone => deadline,
    };
    match tokio::time::timeout_at(until, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time; it may have been done all the same")),
    }
}

fn may_try_again(repeat: Repeat, code: Code) -> bool {
    match code {
        // Nobody took it: not connected, or not ready.
        Code::Unavailable => true,
        Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => repeat == Repeat::Freely,
        _ => false,
    }
}

/// What a status says, with the causes below it: tonic's own text for a lost connection says only that there is one.
pub(crate) fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
