//! Everything on the client port but KV: members, status, what is missing, HTTP, overload, stopping.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::auth_client::AuthClient;
use braid_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use braid_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use braid_proto::etcd::etcdserverpb::*;
use braid_proto::pb;
use braid_proto::pb::admin_client::AdminClient;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{fails, fails_as};
use crate::cluster::{CLUSTER, Cluster, MEMBER};
use crate::world::{Script, World};

#[tokio::test]
async fn the_members_are_the_proxies() {
    let mut cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut client = ClusterClient::new(cluster.channel().await);
    let list = client.member_list(MemberListRequest { linearizable: true }).await.expect("served").into_inner();
    let header = list.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (CLUSTER.0, MEMBER, 0, 9));
    let names: Vec<_> = list.members.iter().map(|member| (member.id, member.name.as_str())).collect();
    assert_eq!(names, [(MEMBER, "p1"), (6, "p2")]);
    assert_eq!(list.members[0].client_ur_ls, ["http://127.0.0.1:2379"]);
    assert_eq!(list.members[0].peer_ur_ls, ["http://127.0.0.1:2380"]);
    let again = client.member_list(MemberListRequest { linearizable: false }).await.expect("served").into_inner();
    assert_eq!(again.members, list.members);

    cluster.kill_placement();
    let cached = client.member_list(MemberListRequest { linearizable: false }).await.expect("needs no placement");
    assert_eq!(cached.into_inner().members, list.members);
    fails_as(client.member_list(MemberListRequest { linearizable: true }).await, error::TIMEOUT);
}

#[tokio::test]
async fn status_speaks_of_this_endpoint_and_of_placements_leader() {
    let world = World::new(&[]);
    world.put("a", "v");
    let cluster = Cluster::start(world, &[1, 2, 3], Default::default(), |config| {
        config.db_bytes = Arc::new(|| 4096);
    })
    .await;
    let mut members = ClusterClient::new(cluster.channel().await);
    members.member_list(MemberListRequest { linearizable: true }).await.expect("a heartbeat has happened");
    let mut client = MaintenanceClient::new(cluster.channel().await);
    let status = client.status(StatusRequest {}).await.expect("served").into_inner();
    assert_eq!(status.version, braid_proxy::ETCD_VERSION);
    assert_eq!(status.header.expect("a header").revision, 2);
    assert_eq!((status.leader, status.raft_term, status.raft_index, status.raft_applied_index), (6, 9, 1234, 1234));
    assert_eq!((status.db_size, status.db_size_in_use, status.db_size_quota), (4096, 4096, 2 << 30));
    assert_eq!((status.errors, status.is_learner), (Vec::new(), false));
    client.defragment(DefragmentRequest {}).await.expect("nothing to do is no failure");
    let alarms = client.alarm(AlarmRequest::default()).await.expect("served").into_inner();
    assert_eq!((alarms.alarms, alarms.header.expect("a header").revision), (Vec::new(), 2));
}

#[tokio::test]
async fn status_without_placement_names_the_trouble() {
    let world = World::new(&[]);
    let mut cluster = Cluster::start(world, &[1], Default::default(), |_| {}).await;
    cluster.kill_placement();
    let mut client = MaintenanceClient::new(cluster.channel().await);
    let status = client.status(StatusRequest {}).await.expect("answers without anybody's help").into_inner();
    if status.leader == 0 {
        assert_eq!(status.errors, [error::NO_LEADER.message]);
    } else {
        assert_eq!(status.errors, [""; 0], "the first heartbeat was faster than the test");
    }
    assert_ne!(status.raft_term, 0);
}

#[tokio::test]
async fn what_is_missing_says_so() {
    let cluster = Cluster::local(&[]).await;
    let channel = cluster.channel().await;
    let text = |what: &str| format!("braid: {what} not available in this version");
    let mut auth = AuthClient::new(channel.clone());
    fails(auth.auth_enable(AuthEnableRequest {}).await, Code::Unimplemented, &text("authentication is"));
    fails_as(auth.authenticate(AuthenticateRequest::default()).await, error::AUTH_NOT_ENABLED);
    assert!(!auth.auth_status(AuthStatusRequest {}).await.expect("served").into_inner().enabled);
    let snapshot = MaintenanceClient::new(channel.clone()).snapshot(SnapshotRequest {}).await;
    fails(snapshot.map(|_| ()), Code::Unimplemented, &text("the backup by snapshot is"));
    let added = ClusterClient::new(channel.clone()).member_add(MemberAddRequest::default()).await;
    fails(added, Code::Unimplemented, "braid: members are proxies; start or stop one to add or remove it");
    let routes = pb::placement_client::PlacementClient::new(channel).get_routes(pb::RouteRequest::default()).await;
    fails(routes, Code::Unimplemented, "braid: no such service");
}

#[tokio::test]
async fn admin_calls_go_to_placement() {
    let mut cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut client = AdminClient::new(cluster.channel().await);
    let stores = client.store_list(pb::StoreListRequest {}).await.expect("served").into_inner().stores;
    assert_eq!(stores[0].state, "up");
    let split = client
        .region_split(pb::AdminSplitRequest { key: "k".into(), ..Default::default() })
        .await
        .expect("served")
        .into_inner();
    assert_eq!(split.failed, "cannot split at b\"k\"");
    let regions =
        client.region_list(pb::RegionListRequest { start: "b".into(), end: "a".into(), ..Default::default() }).await;
    fails(regions, Code::InvalidArgument, "no such range");
    cluster.kill_placement();
    let status = client.store_list(pb::StoreListRequest {}).await.expect_err("nobody answers");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("braid: no placement leader among 127.0.0.1:"), "{}", status.message());
}

#[tokio::test]
async fn the_health_service_serves() {
    let cluster = Cluster::local(&[]).await;
    let mut client = HealthClient::new(cluster.channel().await);
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.expect("served").into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

/// Status line and body of a GET over HTTP/1.
async fn get(cluster: &Cluster, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(cluster.address).await.expect("the proxy listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.lines().next().expect("a status").to_owned(), body.to_owned())
}

async fn expect(cluster: &Cluster, path: &str, status: &str, body: &str) {
    assert_eq!(get(cluster, path).await, (format!("HTTP/1.1 {status}"), body.to_owned()), "{path}");
}

#[tokio::test]
async fn http_endpoints_answer_on_the_same_port() {
    let world = World::new(&[]);
    let cluster = Cluster::start(world, &[1, 2, 3], Default::default(), |config| {
        config.metrics = Arc::new(|| "braid_up 1\n".to_owned());
    })
    .await;
    let mut members = ClusterClient::new(cluster.channel().await);
    members.member_list(MemberListRequest { linearizable: true }).await.expect("a heartbeat has happened");
    expect(&cluster, "/version", "200 OK", r#"{"etcdcluster":"3.5.0","etcdserver":"3.5.21"}"#).await;
    expect(&cluster, "/health", "200 OK", r#"{"health":"true","reason":""}"#).await;
    expect(&cluster, "/health?serializable=true", "200 OK", r#"{"health":"true","reason":""}"#).await;
    expect(&cluster, "/livez", "200 OK", "ok\n").await;
    expect(&cluster, "/readyz", "200 OK", "ok\n").await;
    expect(&cluster, "/readyz?verbose", "200 OK", "[+]serializable_read ok\n[+]linearizable_read ok\nok\n").await;
    expect(&cluster, "/readyz/linearizable_read", "200 OK", "ok\n").await;
    expect(&cluster, "/readyz/nonsense", "404 Not Found", "404 page not found\n").await;
    expect(&cluster, "/metrics", "200 OK", "braid_up 1\n").await;
    expect(&cluster, "/v2/keys", "404 Not Found", "404 page not found\n").await;
}

#[tokio::test]
async fn health_tells_a_cluster_without_leaders() {
    let cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut members = ClusterClient::new(cluster.channel().await);
    members.member_list(MemberListRequest { linearizable: true }).await.expect("a heartbeat has happened");
    for path in ["/health", "/health?serializable=true"] {
        assert!(get(&cluster, path).await.0.contains("200"));
    }
    cluster.world.lead(1, 0);
    let reason = r#"{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}"#;
    expect(&cluster, "/health", "503 Service Unavailable", reason).await;
    expect(&cluster, "/health?serializable=true", "200 OK", r#"{"health":"true","reason":""}"#).await;
    let failed = "[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n";
    expect(&cluster, "/readyz", "503 Service Unavailable", failed).await;
    expect(&cluster, "/readyz?exclude=linearizable_read", "200 OK", "ok\n").await;
    expect(&cluster, "/livez", "200 OK", "ok\n").await;
}

#[tokio::test]
async fn calls_and_retries_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    // The runtime of this test has one thread, so the proxy counts here.
    let _recording = metrics::set_default_local_recorder(&recorder);
    let world = World::new(&[]);
    let render = rendered.clone();
    let cluster = Cluster::start(world, &[1, 2, 3], Default::default(), |config| {
        config.metrics = Arc::new(move || render.render());
    })
    .await;
    let mut client = cluster.client().await;
    client.put("k", "1").await.expect("served");
    cluster.world.lead(1, 2);
    client.put("k", "2").await.expect("served");
    fails_as(client.put("", "3").await, error::EMPTY_KEY);
    let (_, text) = get(&cluster, "/metrics").await;
    let labels = r#"grpc_service="etcdserverpb.KV",grpc_method="Put",grpc_type="unary""#;
    for line in [
        format!("grpc_server_started_total{{{labels}}} 3"),
        format!(r#"grpc_server_handled_total{{{labels},grpc_code="Ok"}} 2"#),
        format!(r#"grpc_server_handled_total{{{labels},grpc_code="InvalidArgument"}} 1"#),
        r#"braid_proxy_retries_total{reason="not_leader"} 1"#.to_owned(),
        "braid_proxy_in_flight 0".to_owned(),
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn too_many_requests_are_refused_and_the_bound_frees_itself() {
    let world = World::new(&[]);
    let cluster = Cluster::start(world, &[1, 2, 3], Default::default(), |config| config.max_in_flight = 2).await;
    let mut client = cluster.client().await;
    client.put("k", "0").await.expect("served");
    for _ in 0..2 {
        cluster.world.script(1, Script::Hang);
    }
    let before = cluster.world.reached_so_far();
    let hanging: Vec<_> = (0..2)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.put("k", "1").await })
        })
        .collect();
    cluster.world.reached(before, 2).await;
    fails_as(client.put("k", "2").await, error::TOO_MANY_REQUESTS);
    assert!(get(&cluster, "/livez").await.0.contains("200"), "plain HTTP is not counted");
    // A client that goes away takes its requests with it.
    hanging.iter().for_each(|task| task.abort());
    while cluster.proxy.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    client.put("k", "3").await.expect("served");
}

#[tokio::test]
async fn stopping_lets_requests_finish() {
    let mut cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut client = cluster.client().await;
    client.put("k", "0").await.expect("served");
    cluster.world.script(1, Script::Hang);
    let before = cluster.world.reached_so_far();
    let under_way = {
        let mut client = client.clone();
        tokio::spawn(async move { client.put("k", "1").await })
    };
    cluster.world.reached(before, 1).await;
    cluster.proxy.stop();
    fails_as(under_way.await.expect("no panic"), error::TIMEOUT);
    (&mut cluster.serving).await.expect("serving ends");
    assert!(TcpStream::connect(cluster.address).await.is_err(), "nobody listens any more");
}
