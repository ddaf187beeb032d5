//! Runs a proxy in front of a [`World`]: a placement server on loopback with routes, numbers and heartbeats, the stores
//! in the proxy's process or behind connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::admin_server::{Admin, AdminServer};
use braid_proto::pb::placement_server::{Placement, PlacementServer};
use braid_proto::pb::sequencer_server::{Sequencer, SequencerServer};
use braid_proto::pb::*;
use braid_proxy::{Proxy, ProxyConfig};
use braid_store_client::Regions;
use futures::stream::{BoxStream, StreamExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::client::Client;
use crate::feeds;
use crate::process::Process;
use crate::world::World;

pub const CLUSTER: ClusterId = ClusterId(77);
pub const MEMBER: u64 = 5;
pub const GRACE: Duration = Duration::from_secs(5);

/// A running proxy and its surroundings.
pub struct Cluster {
    pub world: Arc<World>,
    pub placement: Arc<FakePlacement>,
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub serving: JoinHandle<()>,
    placement_process: Process,
    _feeds: Option<Process>,
    numbers: Arc<Numbers>,
}

impl Cluster {
    /// All stores in the proxy's process.
    pub async fn local(cuts: &[&str]) -> Self {
        Self::start(World::new(cuts), &[1, 2, 3], HashMap::new(), |_| {}).await
    }

    /// All stores in the proxy's process, and watches hear from them.
    pub async fn watched(cuts: &[&str]) -> Self {
        let world = World::new(cuts);
        let feeds = feeds::serve(&world);
        // Stores of the proxy's process are not called there, but followed.
        let addresses = (1..=3).map(|store| (store, feeds.address.to_string())).collect();
        let mut cluster = Self::start(world, &[1, 2, 3], addresses, |_| {}).await;
        cluster._feeds = Some(feeds);
        cluster
    }

    /// All stores in the proxy's process; requests are tried only for `patience`.
    pub async fn impatient(patience: Duration) -> Self {
        let configure = |config: &mut ProxyConfig| config.request_timeout = patience;
        Self::start(World::new(&[]), &[1, 2, 3], HashMap::new(), configure).await
    }

    /// `local` stores in the proxy's process, the others at their addresses.
    pub async fn start(
        world: Arc<World>,
        local: &[u64],
        remote: HashMap<u64, String>,
        configure: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let placement = Arc::new(FakePlacement { world: Arc::clone(&world), remote, routes_asked: AtomicU64::new(0) });
        let placement_process = serve_placement(Arc::clone(&placement));
        let client = Arc::new(PlacementClient::new(vec![placement_process.address.to_string()]));
        let numbers = Numbers::start(NumbersConfig::new(1, CLUSTER.0), Arc::clone(&client), None);
        let mut config = ProxyConfig::new(CLUSTER, MEMBER, "p1");
        config.client_urls = vec!["http://127.0.0.1:2379".to_owned()];
        config.peer_urls = vec!["http://127.0.0.1:2380".to_owned()];
        configure(&mut config);
        let regions = Regions::connect(CLUSTER, Arc::clone(&client));
        local.iter().for_each(|id| regions.add_local(StoreId(*id), world.store(*id)));
        let proxy = Proxy::start(config, client, Arc::clone(&numbers), regions);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let serving = tokio::spawn(proxy.serve(listener, GRACE));
        Self { world, placement, proxy, address, serving, placement_process, _feeds: None, numbers }
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("the proxy listens")
    }

    pub async fn client(&self) -> Client {
        Client::new(self.channel().await)
    }

    /// Ends placement; what was learned from it stays.
    pub fn kill_placement(&mut self) {
        self.placement_process.kill();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.proxy.stop();
        self.numbers.stop();
    }
}

fn serve_placement(placement: Arc<FakePlacement>) -> Process {
    let router = Server::builder()
        .add_service(PlacementServer::from_arc(Arc::clone(&placement)))
        .add_service(SequencerServer::from_arc(Arc::clone(&placement)))
        .add_service(AdminServer::from_arc(placement));
    Process::start("127.0.0.1:0", router)
}

/// Placement, sequencer and admin of a [`World`].
pub struct FakePlacement {
    world: Arc<World>,
    remote: HashMap<u64, String>,
    routes_asked: AtomicU64,
}

impl FakePlacement {
    /// How often routes were asked for.
    pub fn routes_asked(&self) -> u64 {
        self.routes_asked.load(Ordering::Relaxed)
    }

    fn header(&self) -> Option<PlacementHeader> {
        Some(PlacementHeader { cluster_id: CLUSTER.0, ..Default::default() })
    }
}

#[tonic::async_trait]
impl Placement for FakePlacement {
    async fn get_routes(&self, request: Request<RouteRequest>) -> Result<Response<RouteResponse>, Status> {
        self.routes_asked.fetch_add(1, Ordering::Relaxed);
        let request = request.into_inner();
        let not_ready = self.world.not_ready();
        if !not_ready.is_empty() {
            return Ok(Response::new(RouteResponse { header: self.header(), not_ready, ..Default::default() }));
        }
        let after = |region: &Region| region.end.is_empty() || region.end > request.key;
        let routes = self.world.routes().into_iter().filter(|(region, _)| after(region)).take(request.limit as usize);
        let routes = routes.map(|(region, leader)| Route { region: Some(region), leader_store: leader.0 }).collect();
        let store =
            |(id, peer_addr): (&u64, &String)| Store { id: *id, peer_addr: peer_addr.clone(), ..Default::default() };
        let stores = self.remote.iter().map(store).collect();
        Ok(Response::new(RouteResponse { header: self.header(), routes, stores, not_ready }))
    }

    async fn proxy_heartbeat(
        &self,
        request: Request<ProxyHeartbeatRequest>,
    ) -> Result<Response<ProxyHeartbeatResponse>, Status> {
        let request = request.into_inner();
        let myself = ProxyMember {
            member_id: request.member_id,
            name: request.name,
            client_urls: request.client_urls,
            peer_urls: request.peer_urls,
        };
        let other = ProxyMember {
            member_id: 6,
            name: "p2".into(),
            client_urls: vec!["http://other:2379".into()],
            peer_urls: vec![],
        };
        Ok(Response::new(ProxyHeartbeatResponse {
            header: self.header(),
            members: vec![myself, other],
            leader_member: 6,
            raft_term: 9,
            raft_index: 1234,
        }))
    }

    async fn register_store(
        &self,
        _: Request<RegisterStoreRequest>,
    ) -> Result<Response<RegisterStoreResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn store_heartbeat(
        &self,
        _: Request<StoreHeartbeatRequest>,
    ) -> Result<Response<StoreHeartbeatResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn compact(&self, request: Request<CompactRequest>) -> Result<Response<CompactResponse>, Status> {
        let error = self.world.compact(request.into_inner().revision).err().map(Into::into);
        let (revision, _) = self.world.bound();
        Ok(Response::new(CompactResponse { header: self.header(), revision, error }))
    }

    async fn await_dropped(
        &self,
        request: Request<AwaitDroppedRequest>,
    ) -> Result<Response<AwaitDroppedResponse>, Status> {
        self.world.dropped(request.into_inner().revision).await;
        Ok(Response::new(AwaitDroppedResponse { header: self.header() }))
    }

    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }
}

#[tonic::async_trait]
impl Sequencer for FakePlacement {
    type NumberStream = BoxStream<'static, Result<NumberAnswer, Status>>;

    async fn number(&self, request: Request<Streaming<NumberRequest>>) -> Result<Response<Self::NumberStream>, Status> {
        let world = Arc::clone(&self.world);
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            assert_eq!(request.count, 0, "a proxy only asks for bounds");
            let (base, compacted) = world.bound();
            Ok(NumberAnswer { seq: request.seq, epoch: 1, base, count: 0, compacted, ..Default::default() })
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl Admin for FakePlacement {
    async fn store_list(&self, _: Request<StoreListRequest>) -> Result<Response<StoreListResponse>, Status> {
        let state = StoreState { state: "up".into(), ..Default::default() };
        Ok(Response::new(StoreListResponse { header: self.header(), stores: vec![state] }))
    }

    async fn region_list(&self, request: Request<RegionListRequest>) -> Result<Response<RegionListResponse>, Status> {
        if request.get_ref().end < request.get_ref().start {
            return Err(Status::invalid_argument("no such range"));
        }
        let state = |(region, leader): (Region, StoreId)| RegionState {
            report: Some(RegionReport { region: Some(region), ..Default::default() }),
            leader_store: leader.0,
            operator: None,
        };
        let regions = self.world.routes().into_iter().map(state).collect();
        Ok(Response::new(RegionListResponse { header: self.header(), regions }))
    }

    async fn region_split(&self, request: Request<AdminSplitRequest>) -> Result<Response<AdminSplitResponse>, Status> {
        let failed = format!("cannot split at {:?}", request.into_inner().key);
        Ok(Response::new(AdminSplitResponse { header: self.header(), failed, ..Default::default() }))
    }

    async fn region_transfer_leader(
        &self,
        request: Request<AdminTransferLeaderRequest>,
    ) -> Result<Response<AdminTransferLeaderResponse>, Status> {
        let request = request.into_inner();
        self.world.lead(request.region_id, request.to_store);
        Ok(Response::new(AdminTransferLeaderResponse { header: self.header(), failed: String::new() }))
    }

    async fn store_set(&self, _: Request<StoreSetRequest>) -> Result<Response<StoreSetResponse>, Status> {
        Ok(Response::new(StoreSetResponse { header: self.header(), ..Default::default() }))
    }

    async fn store_remove(&self, _: Request<StoreRemoveRequest>) -> Result<Response<StoreRemoveResponse>, Status> {
        Ok(Response::new(StoreRemoveResponse { header: self.header(), ..Default::default() }))
    }

    async fn region_plan(&self, _: Request<RegionPlanRequest>) -> Result<Response<RegionPlanResponse>, Status> {
        Ok(Response::new(RegionPlanResponse { header: self.header(), ..Default::default() }))
    }

    async fn scatter(&self, _: Request<ScatterRequest>) -> Result<Response<ScatterResponse>, Status> {
        Ok(Response::new(ScatterResponse { header: self.header(), ..Default::default() }))
    }

    async fn scheduler_list(
        &self,
        _: Request<SchedulerListRequest>,
    ) -> Result<Response<SchedulerListResponse>, Status> {
        Ok(Response::new(SchedulerListResponse { header: self.header(), ..Default::default() }))
    }

    async fn scheduler_set(&self, _: Request<SchedulerSetRequest>) -> Result<Response<SchedulerSetResponse>, Status> {
        Ok(Response::new(SchedulerSetResponse { header: self.header(), ..Default::default() }))
    }

    async fn operator_list(&self, _: Request<OperatorListRequest>) -> Result<Response<OperatorListResponse>, Status> {
        Ok(Response::new(OperatorListResponse { header: self.header(), ..Default::default() }))
    }

    async fn operator_cancel(
        &self,
        _: Request<OperatorCancelRequest>,
    ) -> Result<Response<OperatorCancelResponse>, Status> {
        Ok(Response::new(OperatorCancelResponse { header: self.header(), ..Default::default() }))
    }

    async fn balance(&self, _: Request<BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        Ok(Response::new(BalanceResponse { header: self.header(), ..Default::default() }))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        Ok(Response::new(HealthResponse { header: self.header(), ..Default::default() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { header: self.header(), bootstrapped: true, ..Default::default() }))
    }
}
