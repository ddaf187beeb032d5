//! Leases as clients see them: what is granted, renewed, told and revoked, and in whose words it is refused.

use std::collections::HashSet;
use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use braid_proto::etcd::etcdserverpb::*;
use braid_proto::key::{lease_key, user_key};
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{DiskFull, EtcdError, NotLeader, Unknown, region_response};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::client::{fails_as, revision};
use crate::cluster::{CLUSTER, Cluster, MEMBER};
use crate::world::{Script, World};

/// Requests of one stream that are under way at most.
const AHEAD_MAX: usize = braid_proxy::lease::keep_alive::AHEAD_MAX;

async fn client(cluster: &Cluster) -> LeaseClient<Channel> {
    LeaseClient::new(cluster.channel().await)
}

async fn grant(client: &mut LeaseClient<Channel>, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Status> {
    Ok(client.lease_grant(LeaseGrantRequest { ttl, id }).await?.into_inner())
}

async fn revoke(client: &mut LeaseClient<Channel>, id: i64) -> Result<LeaseRevokeResponse, Status> {
    Ok(client.lease_revoke(LeaseRevokeRequest { id }).await?.into_inner())
}

async fn time_to_live(client: &mut LeaseClient<Channel>, id: i64, keys: bool) -> LeaseTimeToLiveResponse {
    client.lease_time_to_live(LeaseTimeToLiveRequest { id, keys }).await.expect("served").into_inner()
}

fn unknown() -> Reason {
    Reason::Unknown(Unknown { why: "gone".to_owned() })
}

/// The next requests of store 1 are held until the returned is sent to.
fn hold(cluster: &Cluster, count: usize) -> Vec<oneshot::Sender<()>> {
    let held = (0..count).map(|_| {
        let (release, held) = oneshot::channel();
        cluster.world.script(1, Script::Hold(held));
        release
    });
    held.collect()
}

fn release(held: Vec<oneshot::Sender<()>>) {
    held.into_iter().for_each(|held| held.send(()).expect("still waited for"));
}

/// A stream of keep-alives.
struct KeepAlive {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    async fn open(cluster: &Cluster) -> Self {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let answers = client(cluster).await.lease_keep_alive(outgoing).await.expect("a stream").into_inner();
        Self { requests, answers }
    }

    fn ask(&self, id: i64) {
        self.requests.send(LeaseKeepAliveRequest { id }).expect("the stream stands");
    }

    async fn answer(&mut self) -> Result<Option<LeaseKeepAliveResponse>, Status> {
        tokio::time::timeout(Duration::from_secs(20), self.answers.message()).await.expect("in time")
    }

    async fn kept(&mut self) -> (i64, i64) {
        let answer = self.answer().await.expect("no error").expect("an answer");
        (answer.id, answer.ttl)
    }
}

#[tokio::test]
async fn a_grant_says_id_and_seconds_as_granted() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = client(&cluster).await;
    cluster.world.put("k", "v");
    let mut drawn = HashSet::new();
    for (asked, granted) in [(60, 60), (1, 2), (0, 2), (-7, 2), (9_000_000_000, 9_000_000_000)] {
        let answer = grant(&mut client, 0, asked).await.expect("granted");
        assert_eq!((answer.ttl, answer.error.as_str()), (granted, ""));
        assert!(answer.id > 0 && drawn.insert(answer.id));
        let header = answer.header.expect("a header");
        assert_eq!((header.cluster_id, header.member_id, header.revision), (CLUSTER.0, MEMBER, 2));
        assert_ne!(header.raft_term, 0);
    }
    for id in [7, -7, i64::MIN] {
        assert_eq!(grant(&mut client, id, 5).await.expect("granted").id, id);
    }
    assert_eq!(cluster.world.leases().len(), 8);
    fails_as(grant(&mut client, -7, 5).await, error::LEASE_EXISTS);
    // The seconds are judged first, and before any region is asked.
    cluster.world.take_calls();
    fails_as(grant(&mut client, -7, 9_000_000_001).await, error::LEASE_TTL_TOO_LARGE);
    assert_eq!(cluster.world.take_calls(), [""; 0]);
    cluster.world.script(1, Script::Refuse(Reason::DiskFull(DiskFull {})));
    fails_as(grant(&mut client, 9, 5).await, error::NO_SPACE);
    assert_eq!(cluster.world.bound().0, 2, "leases take no revision");
}

#[tokio::test]
async fn only_a_drawn_id_is_granted_again_when_nobody_knows() {
    let cluster = Cluster::local(&[]).await;
    let mut client = client(&cluster).await;
    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    fails_as(grant(&mut client, 7, 5).await, error::TIMEOUT_LEADER_FAIL);
    assert_eq!(cluster.world.take_calls(), ["s1 r1 grant"]);
    assert_eq!(cluster.world.leases(), [(7, 5)]);

    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    cluster.world.script(1, Script::Answer(region_response::Result::Error(error::LEASE_EXISTS.into())));
    let answer = grant(&mut client, 0, 6).await.expect("granted");
    assert_eq!(cluster.world.take_calls(), ["s1 r1 grant"; 3]);
    let sixes: Vec<i64> = cluster.world.leases().iter().filter(|(_, ttl)| *ttl == 6).map(|(id, _)| *id).collect();
    assert!(sixes.len() == 2 && sixes.contains(&answer.id), "{sixes:?}: the first one ends by itself");
}

#[tokio::test]
async fn a_revocation_takes_the_keys_with_it_and_is_asked_for_once() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = client(&cluster).await;
    let mut kv = cluster.client().await;
    grant(&mut client, 7, 60).await.expect("granted");
    for key in ["a", "z"] {
        let put = PutRequest { key: key.into(), lease: 7, ..Default::default() };
        kv.put_as(put).await.expect("put");
    }
    let answer = revoke(&mut client, 7).await.expect("revoked");
    assert_eq!(revision(&answer.header), 4);
    assert_eq!(kv.range(crate::client::range("a", "zz")).await.expect("served").count, 0);
    fails_as(revoke(&mut client, 7).await, error::LEASE_NOT_FOUND);
    fails_as(revoke(&mut client, 0).await, error::LEASE_NOT_FOUND);

    grant(&mut client, 8, 60).await.expect("granted");
    cluster.world.take_calls();
    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    fails_as(revoke(&mut client, 8).await, error::TIMEOUT_LEADER_FAIL);
    assert_eq!(cluster.world.take_calls(), ["s1 r1 revoke"]);
}

#[tokio::test]
async fn a_put_with_a_lease_that_is_not_there_fails() {
    let cluster = Cluster::local(&[]).await;
    let mut kv = cluster.client().await;
    let put = PutRequest { key: "k".into(), lease: 7, ..Default::default() };
    fails_as(kv.put_as(put.clone()).await, error::LEASE_NOT_FOUND);
    cluster.world.grant(7, 60);
    kv.put_as(put).await.expect("put");
    assert_eq!(kv.get("k").await.expect("served").kvs[0].lease, 7);
}

#[tokio::test]
async fn keep_alives_are_asked_side_by_side_and_answered_in_order() {
    let cluster = Cluster::local(&[]).await;
    cluster.world.grant(1, 10);
    cluster.world.grant(3, 30);
    let mut stream = KeepAlive::open(&cluster).await;
    assert_eq!(cluster.proxy.in_flight(), 1, "the stream itself");
    let held = hold(&cluster, 1);
    let before = cluster.world.reached_so_far();
    for id in [1, 2, 3] {
        stream.ask(id);
    }
    cluster.world.reached(before, 3).await;
    release(held);
    assert_eq!([stream.kept().await, stream.kept().await, stream.kept().await], [(1, 10), (2, 0), (3, 30)]);
    // A lease that is not there is no error, and the stream goes on.
    stream.ask(0);
    stream.ask(1);
    assert_eq!([stream.kept().await, stream.kept().await], [(0, 0), (1, 10)]);
    cluster.world.put("k", "v");
    stream.ask(1);
    let answer = stream.answer().await.expect("no error").expect("an answer");
    let header = answer.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.revision), (CLUSTER.0, MEMBER, 2));
    // The client says no more: what it has asked is answered, and that is the end.
    stream.ask(3);
    drop(stream.requests);
    assert_eq!(stream.answers.message().await.expect("no error").expect("an answer").ttl, 30);
    assert!(stream.answers.message().await.expect("a good end").is_none());
}

#[tokio::test]
async fn a_stream_asks_only_so_far_ahead() {
    let cluster = Cluster::local(&[]).await;
    let count = AHEAD_MAX + 50;
    (1..=count as i64).for_each(|id| cluster.world.grant(id, 10));
    let mut stream = KeepAlive::open(&cluster).await;
    let held = hold(&cluster, AHEAD_MAX);
    let before = cluster.world.reached_so_far();
    (1..=count as i64).for_each(|id| stream.ask(id));
    cluster.world.reached(before, AHEAD_MAX).await;
    // A request that came on another connection after all these finds none of the rest in front of it.
    let mut kv = cluster.client().await;
    kv.get("k").await.expect("served");
    assert_eq!(cluster.world.reached_so_far(), before + AHEAD_MAX + 1);
    assert_eq!(cluster.proxy.in_flight(), AHEAD_MAX, "each request ahead of the first counts");
    release(held);
    for id in 1..=count as i64 {
        assert_eq!(stream.kept().await, (id, 10));
    }
    assert_eq!(cluster.proxy.in_flight(), 1);
}

#[tokio::test]
async fn a_stream_in_a_busy_proxy_waits_instead_of_failing() {
    let configure = |config: &mut braid_proxy::ProxyConfig| config.max_in_flight = 2;
    let cluster = Cluster::start(World::new(&[]), &[1, 2, 3], Default::default(), configure).await;
    (1..=10).for_each(|id| cluster.world.grant(id, 10));
    let mut stream = KeepAlive::open(&cluster).await;
    let held = hold(&cluster, 2);
    let before = cluster.world.reached_so_far();
    (1..=10).for_each(|id| stream.ask(id));
    cluster.world.reached(before, 2).await;
    fails_as(cluster.client().await.get("k").await, error::TOO_MANY_REQUESTS);
    assert_eq!(cluster.world.reached_so_far(), before + 2);
    release(held);
    for id in 1..=10 {
        assert_eq!(stream.kept().await, (id, 10));
    }
}

#[tokio::test]
async fn an_error_ends_the_stream_after_what_was_asked_before() {
    let cluster = Cluster::local(&[]).await;
    cluster.world.grant(1, 10);
    let mut stream = KeepAlive::open(&cluster).await;
    let held = hold(&cluster, 1);
    let failure = EtcdError { code: Code::Unavailable as i32, message: error::LEADER_CHANGED.message.to_owned() };
    cluster.world.script(1, Script::Answer(region_response::Result::Error(failure)));
    let before = cluster.world.reached_so_far();
    (0..3).for_each(|_| stream.ask(1));
    cluster.world.reached(before, 3).await;
    release(held);
    assert_eq!(stream.kept().await, (1, 10));
    fails_as(stream.answer().await, error::LEADER_CHANGED);
}

#[tokio::test]
async fn keep_alives_follow_their_region() {
    let cluster = Cluster::local(&[]).await;
    cluster.world.grant(1, 10);
    let mut stream = KeepAlive::open(&cluster).await;
    cluster.world.lead(1, 3);
    stream.ask(1);
    assert_eq!(stream.kept().await, (1, 10));
    // Renewing twice does no harm, so an unknown outcome is not the end.
    cluster.world.script(3, Script::DoAndRefuse(unknown()));
    cluster.world.script(1, Script::Refuse(Reason::NotLeader(NotLeader { leader: None })));
    stream.ask(1);
    assert_eq!(stream.kept().await, (1, 10));
    assert!(cluster.world.take_calls().len() > 2);
}

#[tokio::test]
async fn a_region_without_a_leader_ends_a_stream_in_its_time() {
    let cluster = Cluster::impatient(Duration::from_millis(200)).await;
    cluster.world.grant(1, 10);
    let mut stream = KeepAlive::open(&cluster).await;
    cluster.world.script(1, Script::Hang);
    stream.ask(1);
    fails_as(stream.answer().await, error::TIMEOUT);
}

#[tokio::test]
async fn stopping_the_proxy_ends_keep_alives() {
    let mut cluster = Cluster::local(&[]).await;
    let mut stream = KeepAlive::open(&cluster).await;
    stream.ask(1);
    assert_eq!(stream.kept().await, (1, 0));
    cluster.proxy.stop();
    fails_as(stream.answer().await, error::STOPPED);
    (&mut cluster.serving).await.expect("serving ends");
}

#[tokio::test]
async fn what_is_left_of_a_lease_is_told() {
    let cluster = Cluster::local(&[]).await;
    let mut client = client(&cluster).await;
    let missing = time_to_live(&mut client, 7, true).await;
    assert_eq!((missing.id, missing.ttl, missing.granted_ttl, missing.keys.len()), (7, -1, 0, 0));
    assert_eq!(revision(&missing.header), 1);
    cluster.world.grant(7, 60);
    for (left_ms, left) in [(60_000, 60), (59_999, 59), (1, 0), (-2_500, -2)] {
        cluster.world.set_left(7, left_ms);
        let told = time_to_live(&mut client, 7, false).await;
        assert_eq!((told.ttl, told.granted_ttl), (left, 60));
    }
}

#[tokio::test]
async fn the_keys_of_a_lease_are_gathered_in_order_from_all_its_regions() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = client(&cluster).await;
    let mut kv = cluster.client().await;
    grant(&mut client, 7, 60).await.expect("granted");
    grant(&mut client, 8, 60).await.expect("granted");
    let mut put = async |key: String, lease| {
        kv.put_as(PutRequest { key: key.into(), lease, ..Default::default() }).await.expect("put");
    };
    for key in ["z", "a", "q"] {
        put(key.to_owned(), 7).await;
    }
    put("b".to_owned(), 8).await;
    put("a2".to_owned(), 0).await;
    cluster.world.take_calls();
    assert_eq!(time_to_live(&mut client, 7, true).await.keys, ["a", "q", "z"]);
    // The second region was never asked to attach it.
    assert_eq!(cluster.world.take_calls(), ["s1 r1 state", "s1 r1 keys", "s3 r3 keys"]);
    assert_eq!(time_to_live(&mut client, 7, false).await.keys.len(), 0);
    // The range of a record outlives the regions it was written for.
    cluster.world.split("q");
    assert_eq!(time_to_live(&mut client, 7, true).await.keys, ["a", "q", "z"]);
    // More than one answer holds.
    let many: Vec<String> = (0..150).map(|n| format!("r{n:03}")).collect();
    for key in &many {
        put(key.clone(), 7).await;
    }
    put("r000x".to_owned(), 8).await;
    put("r1".to_owned(), 0).await;
    let keys = time_to_live(&mut client, 7, true).await.keys;
    let expected: Vec<&str> = ["a", "q"].into_iter().chain(many.iter().map(String::as_str)).chain(["z"]).collect();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn all_leases_are_listed_by_what_is_left() {
    let cuts = [lease_key(1_000), lease_key(2_000), user_key(b"m")];
    let cluster = Cluster::start(World::cut(cuts), &[1, 2, 3], Default::default(), |_| {}).await;
    let mut client = client(&cluster).await;
    let mut list = async || {
        let answer = client.lease_leases(LeaseLeasesRequest {}).await.expect("served").into_inner();
        (answer.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), revision(&answer.header))
    };
    assert_eq!(list().await, (vec![], 1));
    for (id, left_ms) in [(5, 30_000), (1_500, 10_000), (-3, -1_000), (2_500, 20_000), (6, 10_000)] {
        cluster.world.grant(id, 60);
        cluster.world.set_left(id, left_ms);
    }
    cluster.world.put("k", "v");
    assert_eq!(list().await, (vec![-3, 6, 1_500, 2_500, 5], 2));
    assert_eq!(cluster.world.take_calls().len(), 6, "each region that holds leases, twice");
}
