//! The client against placement members that a script answers for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_proto::pb::admin_server::{Admin, AdminServer};
use braid_proto::pb::placement_server::{Placement, PlacementServer};
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;

/// What a member answers to any call: its header, or a status. None: nothing, ever.
type Script = Arc<dyn Fn() -> Option<Result<PlacementHeader, Status>> + Send + Sync>;

#[derive(Clone)]
struct Member {
    script: Script,
    calls: Arc<AtomicUsize>,
}

impl Member {
    /// Starts a member and returns its address.
    async fn start(
        script: impl Fn() -> Option<Result<PlacementHeader, Status>> + Send + Sync + 'static,
    ) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let member = Member { script: Arc::new(script), calls: Arc::default() };
        let serving = Server::builder()
            .add_service(PlacementServer::new(member.clone()))
            .add_service(AdminServer::new(member.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(async move { serving.await.unwrap() });
        (member, address)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn header(&self) -> Result<Option<PlacementHeader>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match (self.script)() {
            Some(answer) => answer.map(Some),
            None => std::future::pending().await,
        }
    }
}

macro_rules! methods {
    ($service:ident: $($name:ident($request:ty) -> $response:ident;)*) => {
        #[tonic::async_trait]
        #[allow(clippy::needless_update, reason = "some answers are nothing but a header")]
        impl $service for Member {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Ok(Response::new($response { header: self.header().await?, ..Default::default() }))
            })*
        }
    };
}

methods! { Placement:
    register_store(RegisterStoreRequest) -> RegisterStoreResponse;
    store_heartbeat(StoreHeartbeatRequest) -> StoreHeartbeatResponse;
    proxy_heartbeat(ProxyHeartbeatRequest) -> ProxyHeartbeatResponse;
    get_routes(RouteRequest) -> RouteResponse;
    compact(CompactRequest) -> CompactResponse;
    await_dropped(AwaitDroppedRequest) -> AwaitDroppedResponse;
    get_status(StatusRequest) -> StatusResponse;
}

methods! { Admin:
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

fn leads() -> Option<Result<PlacementHeader, Status>> {
    Some(Ok(PlacementHeader { cluster_id: 7, ..Default::default() }))
}

fn refuses(leader: &str) -> Option<Result<PlacementHeader, Status>> {
    Some(Ok(PlacementHeader { cluster_id: 7, refused: true, not_leader: leader.to_owned() }))
}

fn within(duration: Duration) -> Instant {
    Instant::now() + duration
}

const LONG: Duration = Duration::from_secs(20);

/// An address where nobody listens.
async fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn every_call_reaches_the_leader() {
    let (leader, address) = Member::start(leads).await;
    let client = PlacementClient::new(vec![address]);
    let until = within(LONG);
    assert_eq!(client.register_store(Default::default(), until).await.unwrap().header.unwrap().cluster_id, 7);
    client.store_heartbeat(Default::default(), until).await.unwrap();
    client.proxy_heartbeat(Default::default(), until).await.unwrap();
    client.get_routes(Default::default(), until).await.unwrap();
    client.compact(Default::default(), until).await.unwrap();
    client.await_dropped(Default::default(), until).await.unwrap();
    client.get_status(Default::default(), until).await.unwrap();
    client.store_list(Default::default(), until).await.unwrap();
    client.region_list(Default::default(), until).await.unwrap();
    client.region_split(Default::default(), until).await.unwrap();
    client.region_transfer_leader(Default::default(), until).await.unwrap();
    client.store_set(Default::default(), until).await.unwrap();
    client.store_remove(Default::default(), until).await.unwrap();
    client.region_plan(Default::default(), until).await.unwrap();
    client.scatter(Default::default(), until).await.unwrap();
    client.scheduler_list(Default::default(), until).await.unwrap();
    client.scheduler_set(Default::default(), until).await.unwrap();
    client.operator_list(Default::default(), until).await.unwrap();
    client.operator_cancel(Default::default(), until).await.unwrap();
    client.balance(Default::default(), until).await.unwrap();
    client.health(Default::default(), until).await.unwrap();
    client.status(Default::default(), until).await.unwrap();
    assert_eq!(leader.calls(), 22);
}

#[tokio::test]
async fn a_refusal_names_the_leader_and_it_is_remembered() {
    let (leader, leader_address) = Member::start(leads).await;
    let hint = leader_address.clone();
    let (follower, follower_address) = Member::start(move || refuses(&hint)).await;
    // The leader is not among the endpoints.
    let client = PlacementClient::new(vec![follower_address]);
    for _ in 0..3 {
        client.get_status(Default::default(), within(LONG)).await.unwrap();
    }
    assert_eq!((follower.calls(), leader.calls()), (1, 3));
}

#[tokio::test]
async fn members_that_are_dead_or_know_nothing_are_passed_over() {
    let (_, clueless) = Member::start(|| refuses("")).await;
    let (starting, starting_address) = Member::start(|| Some(Err(Status::unavailable("starting")))).await;
    let (leader, address) = Member::start(leads).await;
    let client = PlacementClient::new(vec![nowhere().await, clueless, starting_address, address]);
    client.get_status(Default::default(), within(LONG)).await.unwrap();
    assert_eq!((starting.calls(), leader.calls()), (1, 1));
}

#[tokio::test]
async fn an_election_is_waited_for() {
    let asked = AtomicUsize::new(0);
    let script = move || if asked.fetch_add(1, Ordering::Relaxed) < 5 { refuses("") } else { leads() };
    let (member, address) = Member::start(script).await;
    let client = PlacementClient::new(vec![address]);
    client.get_status(Default::default(), within(LONG)).await.unwrap();
    assert_eq!(member.calls(), 6);
}

#[tokio::test]
async fn a_member_that_hangs_is_left_for_another() {
    let (_, hanging) = Member::start(|| None).await;
    let (_, address) = Member::start(leads).await;
    let client = PlacementClient::new(vec![hanging, address]);
    client.get_status(Default::default(), within(Duration::from_secs(5))).await.unwrap();
}

#[tokio::test]
async fn at_the_deadline_the_error_says_who_was_asked_and_what_was_wrong() {
    let address = nowhere().await;
    let client = PlacementClient::new(vec![address.clone()]);
    let error = client.get_status(Default::default(), within(Duration::from_millis(300))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("no placement leader among {address} answered in time")), "{text}");
    assert!(text.contains("refused"), "{text}");

    let client = PlacementClient::new(vec!["not an address".into()]);
    let error = client.get_status(Default::default(), within(Duration::from_millis(100))).await.unwrap_err();
    assert!(error.to_string().contains("not an address: "), "{error}");
}

#[tokio::test]
async fn what_the_leader_refuses_itself_is_not_repeated() {
    let (member, address) = Member::start(|| Some(Err(Status::permission_denied("no")))).await;
    let client = PlacementClient::new(vec![address]);
    match client.get_status(Default::default(), within(LONG)).await {
        Err(ClientError::Refused(status)) => assert_eq!(status.code(), Code::PermissionDenied),
        other => panic!("{other:?}"),
    }
    assert_eq!(member.calls(), 1);
}

#[tokio::test]
async fn a_split_that_may_have_been_done_is_not_repeated() {
    let (hanging, address) = Member::start(|| None).await;
    let (other, other_address) = Member::start(leads).await;
    let client = PlacementClient::new(vec![address, other_address]);
    match client.region_split(Default::default(), within(Duration::from_millis(300))).await {
        Err(ClientError::Refused(status)) => assert_eq!(status.code(), Code::DeadlineExceeded),
        other => panic!("{other:?}"),
    }
    assert_eq!((hanging.calls(), other.calls()), (1, 0));
}
