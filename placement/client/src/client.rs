//! Calls to placement's leader, wherever it is.

use std::collections::HashMap;
use std::time::Duration;

use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::placement_client::PlacementClient as Grpc;
use braid_proto::pb::{
    AdminSplitRequest, AdminSplitResponse, AdminTransferLeaderRequest, AdminTransferLeaderResponse, PlacementHeader,
    ProxyHeartbeatRequest, ProxyHeartbeatResponse, RegionListRequest, RegionListResponse, RegisterStoreRequest,
    RegisterStoreResponse, RouteRequest, RouteResponse, StatusRequest, StatusResponse, StoreHeartbeatRequest,
    StoreHeartbeatResponse, StoreListRequest, StoreListResponse,
};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// How long one member may take before another is tried.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after all members were tried; doubles up to ten times as much.
const PAUSE: Duration = Duration::from_millis(50);

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
    /// The leader refused the call itself.
    #[error("placement answers: {}", .0.message())]
    Refused(Status),
}

/// A client of placement. Cheap to share; connects when it is first used.
pub struct PlacementClient {
    endpoints: Vec<String>,
    state: Mutex<State>,
}

struct State {
    channels: HashMap<String, Channel>,
    /// Whom to ask next.
    target: String,
    /// Position in `endpoints` of the last one tried without a hint.
    position: usize,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($client:ident, $request:ty) -> $response:ty;)*) => {
        $($(#[$doc])* pub async fn $name(&self, request: $request, deadline: Instant) -> Result<$response, ClientError> {
            self.call(deadline, move |channel| {
                let request = request.clone();
                async move { $client::new(channel).max_decoding_message_size(MESSAGE_MAX).$name(request).await }
            }, |response: &$response| response.header.as_ref()).await
        })*
    };
}

/// Route and region lists of large clusters pass gRPC's default of 4 MiB.
const MESSAGE_MAX: usize = 64 << 20;

impl PlacementClient {
    /// A client of the members at `endpoints` (`host:port`, at least one).
    ///
    /// # Panics
    /// Without endpoints.
    pub fn new(endpoints: Vec<String>) -> Self {
        let target = endpoints.first().expect("at least one placement endpoint").clone();
        Self { endpoints, state: Mutex::new(State { channels: HashMap::new(), target, position: 0 }) }
    }

    /// The members' addresses.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    calls! {
        /// Makes a store known.
        register_store(Grpc, RegisterStoreRequest) -> RegisterStoreResponse;
        /// A store's report.
        store_heartbeat(Grpc, StoreHeartbeatRequest) -> StoreHeartbeatResponse;
        /// A proxy's report.
        proxy_heartbeat(Grpc, ProxyHeartbeatRequest) -> ProxyHeartbeatResponse;
        /// Regions from a key on.
        get_routes(Grpc, RouteRequest) -> RouteResponse;
        /// State of placement.
        get_status(Grpc, StatusRequest) -> StatusResponse;
        /// All stores.
        store_list(AdminClient, StoreListRequest) -> StoreListResponse;
        /// All regions.
        region_list(AdminClient, RegionListRequest) -> RegionListResponse;
        /// Splits a region.
        region_split(AdminClient, AdminSplitRequest) -> AdminSplitResponse;
        /// Hands over a region's leadership.
        region_transfer_leader(AdminClient, AdminTransferLeaderRequest) -> AdminTransferLeaderResponse;
        /// State of placement, for operators.
        status(AdminClient, StatusRequest) -> StatusResponse;
    }

    /// A channel to the member to ask next.
    ///
    /// # Errors
    /// Its address is no address.
    pub fn channel(&self) -> Result<Channel, String> {
        let mut state = self.state.lock();
        let target = state.target.clone();
        if let Some(channel) = state.channels.get(&target) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{target}")).map_err(|e| format!("{target}: {e}"))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect_lazy();
        state.channels.insert(target, channel.clone());
        Ok(channel)
    }

    /// A member said who leads; empty: it does not know.
    pub fn learn_leader(&self, leader: &str) {
        if leader.is_empty() {
            return self.try_another();
        }
        leader.clone_into(&mut self.state.lock().target);
    }

    /// The member asked last is of no use now.
    pub fn try_another(&self) {
        let mut state = self.state.lock();
        state.position = (state.position + 1) % self.endpoints.len();
        state.target = self.endpoints[state.position].clone();
    }

    async fn call<R, F>(
        &self,
        deadline: Instant,
        send: impl Fn(Channel) -> F,
        header: impl Fn(&R) -> Option<&PlacementHeader>,
    ) -> Result<R, ClientError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut last = String::from("not asked");
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            match self.attempt(deadline, &send).await {
                Ok(response) => match header(&response).filter(|header| header.refused) {
                    None => return Ok(response),
                    Some(refused) => {
                        "the member asked does not lead".clone_into(&mut last);
                        self.learn_leader(&refused.not_leader);
                    }
                },
                Err(status) if may_retry(status.code()) => {
                    status.message().clone_into(&mut last);
                    self.try_another();
                }
                Err(status) => return Err(ClientError::Refused(status)),
            }
            tries += 1;
            if Instant::now() + pause >= deadline {
                return Err(ClientError::Unreachable { endpoints: self.endpoints.join(", "), last });
            }
            if tries % (self.endpoints.len() + 1) == 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE * 10);
            }
        }
    }

    async fn attempt<R, F>(&self, deadline: Instant, send: &impl Fn(Channel) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let channel = self.channel().map_err(Status::unavailable)?;
        let until = deadline.min(Instant::now() + ATTEMPT.max(deadline.duration_since(Instant::now()) / 2));
        match tokio::time::timeout_at(until, send(channel)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::unavailable("the member asked does not answer")),
        }
    }
}

/// Whether the call may be made again: nobody took it, or taking it twice changes nothing.
fn may_retry(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded)
}
