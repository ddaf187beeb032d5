//! Refusals, silence and deadlines.

use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{RangeRequest, TxnRequest};
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{Busy, DiskFull, EpochMismatch, NotLeader, Peer, TimedOut, Unknown};
use tokio::time::Instant;
use tonic::Status;

use crate::client::{Client, fails_as, mod_is, put_op, range, range_op};
use crate::cluster::Cluster;
use crate::world::Script;

/// One region on stores 1 to 3, led by 1, and a client that has been there.
async fn warm() -> (Cluster, Client) {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    client.put("k", "0").await.expect("served");
    cluster.world.take_calls();
    (cluster, client)
}

fn unknown() -> Reason {
    Reason::Unknown(Unknown { why: "the peer is gone".into() })
}

#[tokio::test]
async fn a_hint_is_followed_and_remembered() {
    let (cluster, mut client) = warm().await;
    cluster.world.lead(1, 3);
    client.put("k", "1").await.expect("served");
    client.put("k", "2").await.expect("served");
    client.get("k").await.expect("served");
    assert_eq!(cluster.world.take_calls(), ["s1 r1 put", "s3 r1 put", "s3 r1 put", "s3 r1 read"]);
    assert_eq!(cluster.placement.routes_asked(), 1);
}

#[tokio::test]
async fn a_dead_leader_is_found_out_by_asking_the_others() {
    let (cluster, mut client) = warm().await;
    cluster.world.kill(1);
    cluster.world.lead(1, 3);
    client.put("k", "1").await.expect("served");
    let calls = cluster.world.take_calls();
    assert_eq!(calls.first().map(String::as_str), Some("s1 r1 put"));
    assert_eq!(calls.last().map(String::as_str), Some("s3 r1 put"));
    client.put("k", "2").await.expect("served");
    assert_eq!(cluster.world.take_calls(), ["s3 r1 put"]);
}

#[tokio::test]
async fn two_replicas_that_point_at_each_other_do_not_hold_a_request_for_ever() {
    let (cluster, mut client) = warm().await;
    let points_at = |store_id| {
        let leader = Some(Peer::voter(10 + store_id, store_id));
        Script::Refuse(Reason::NotLeader(NotLeader { leader }))
    };
    for _ in 0..3 {
        cluster.world.script(1, points_at(2));
        cluster.world.script(2, points_at(1));
    }
    client.put("k", "1").await.expect("served in the end");
    assert_eq!(cluster.world.take_calls().len(), 7);
}

#[tokio::test]
async fn a_split_is_learned_from_the_refusal() {
    let (cluster, mut client) = warm().await;
    cluster.world.freeze_routes();
    cluster.world.split("m");
    client.put("x", "1").await.expect("served");
    client.put("k", "1").await.expect("served");
    assert_eq!(cluster.world.take_calls(), ["s1 r1 put", "s1 r2 put", "s1 r1 put"]);
    assert_eq!(cluster.placement.routes_asked(), 1);
}

#[tokio::test]
async fn a_replica_that_lags_behind_a_split_is_not_asked_for_ever() {
    let (cluster, mut client) = warm().await;
    let parent = cluster.world.routes()[0].0.clone();
    cluster.world.split("m");
    client.put("x", "1").await.expect("the split is known now");
    cluster.world.lead(1, 3);
    for _ in 0..20 {
        let old = EpochMismatch { current: vec![parent.clone()] };
        cluster.world.script(1, Script::Refuse(Reason::EpochMismatch(old)));
    }
    client.put("k", "1").await.expect("served by another replica");
    let calls = cluster.world.take_calls();
    assert!(calls.iter().filter(|call| *call == "s1 r1 put").count() <= 3, "{calls:?}");
}

#[tokio::test]
async fn a_region_that_moved_away_is_found_through_placement() {
    let (cluster, mut client) = warm().await;
    cluster.world.move_region(1, &[3]);
    client.put("k", "1").await.expect("served");
    let calls = cluster.world.take_calls();
    assert_eq!((calls[0].as_str(), calls[1].as_str()), ("s1 r1 put", "s3 r1 put"));
    assert_eq!(cluster.placement.routes_asked(), 2);
}

#[tokio::test]
async fn busy_and_timed_out_are_asked_again_at_the_same_store() {
    let (cluster, mut client) = warm().await;
    let busy = || Script::Refuse(Reason::Busy(Busy { what: "split".into(), retry_after_ms: 1 }));
    for _ in 0..3 {
        cluster.world.script(1, busy());
    }
    cluster.world.script(1, Script::Refuse(Reason::TimedOut(TimedOut { what: "no number".into() })));
    client.put("k", "1").await.expect("served");
    assert_eq!(cluster.world.take_calls(), ["s1 r1 put"; 5]);
}

#[tokio::test]
async fn a_write_with_an_unknown_outcome_is_never_repeated() {
    let (cluster, mut client) = warm().await;
    let before = cluster.world.bound().0;
    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    fails_as(client.put("k", "1").await, error::TIMEOUT_LEADER_FAIL);
    let lost = Reason::Unknown(Unknown { why: braid_store_client::retry::CONNECTION_LOST.into() });
    cluster.world.script(1, Script::DoAndRefuse(lost));
    fails_as(client.put("k", "2").await, error::TIMEOUT_CONNECTION_LOST);
    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    fails_as(client.delete("k", "").await, error::TIMEOUT_LEADER_FAIL);
    cluster.world.script(1, Script::DoAndRefuse(unknown()));
    let txn = TxnRequest { compare: vec![mod_is("k", 0)], success: vec![put_op("k", "3")], ..Default::default() };
    fails_as(client.txn(txn).await, error::TIMEOUT_LEADER_FAIL);
    let calls = ["s1 r1 put", "s1 r1 put", "s1 r1 delete", "s1 r1 txn"];
    assert_eq!(cluster.world.take_calls(), calls);
    assert_eq!(cluster.world.bound().0, before + 4, "each happened once");
}

#[tokio::test]
async fn a_read_with_an_unknown_outcome_is_repeated() {
    let (cluster, mut client) = warm().await;
    cluster.world.script(1, Script::Refuse(unknown()));
    assert_eq!(client.get("k").await.expect("served").count, 1);
    cluster.world.script(1, Script::Refuse(unknown()));
    let reads =
        TxnRequest { compare: vec![mod_is("k", 0)], failure: vec![range_op(range("k", ""))], ..Default::default() };
    assert!(!client.txn(reads).await.expect("a transaction that only reads is a read").succeeded);
}

#[tokio::test]
async fn a_full_disk_is_no_space() {
    let (cluster, mut client) = warm().await;
    cluster.world.script(1, Script::Refuse(Reason::DiskFull(DiskFull {})));
    fails_as(client.put("k", "1").await, error::NO_SPACE);
    assert_eq!(cluster.world.take_calls(), ["s1 r1 put"]);
}

/// A timeout of the client that leaves the proxy 100 ms to answer before it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a request of a client with [`TIMEOUT`] and returns how it failed; asserts that this was in time, but not early.
async fn in_time<T: std::fmt::Debug>(
    mut client: Client,
    request: impl AsyncFnOnce(&mut Client) -> Result<T, Status>,
) -> Result<T, Status> {
    client.timeout = TIMEOUT;
    let begin = Instant::now();
    let result = request(&mut client).await;
    let took = begin.elapsed();
    assert!(took < TIMEOUT, "{took:?}");
    assert!(took > TIMEOUT / 2, "{took:?}: given up early");
    result
}

#[tokio::test]
async fn without_a_leader_the_answer_comes_before_the_clients_deadline() {
    let (cluster, client) = warm().await;
    for store in 1..=3 {
        cluster.world.kill(store);
    }
    let strict = Client { require_leader: true, ..client.clone() };
    let (write, read, strict) = tokio::join!(
        in_time(client.clone(), async |client| client.put("k", "1").await),
        in_time(client.clone(), async |client| client.get("k").await),
        in_time(strict, async |client| client.put("k", "1").await),
    );
    fails_as(write, error::TIMEOUT);
    fails_as(read, error::TIMEOUT);
    fails_as(strict, error::NO_LEADER);
    let calls = cluster.world.take_calls().len();
    assert!(calls < 60, "{calls} attempts: the pauses must grow");
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (cluster, client) = warm().await;
    for _ in 0..3 {
        cluster.world.script(1, Script::Hang);
    }
    let txn = TxnRequest { success: vec![put_op("k", "1")], ..Default::default() };
    let (write, read, txn) = tokio::join!(
        in_time(client.clone(), async |client| client.put("k", "1").await),
        in_time(client.clone(), async |client| client.get("k").await),
        in_time(client.clone(), async |client| client.txn(txn).await),
    );
    fails_as(write, error::TIMEOUT);
    fails_as(read, error::TIMEOUT);
    fails_as(txn, error::TIMEOUT);
    let mut calls = cluster.world.take_calls();
    calls.sort();
    assert_eq!(calls, ["s1 r1 put", "s1 r1 read", "s1 r1 txn"]);
}

#[tokio::test]
async fn without_a_timeout_of_the_client_the_proxys_own_ends_a_request() {
    let cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut client = cluster.client().await;
    cluster.world.script(1, Script::Hang);
    let begin = Instant::now();
    fails_as(client.put("k", "1").await, error::TIMEOUT);
    assert!(begin.elapsed() >= Duration::from_millis(300) && begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_cluster_that_is_not_ready_times_out_and_then_serves() {
    let cluster = Cluster::local(&[]).await;
    cluster.world.set_not_ready("2 of 3 stores have joined");
    let client = cluster.client().await;
    fails_as(in_time(client, async |client| client.put("k", "1").await).await, error::TIMEOUT);
    let waiting = {
        let mut client = cluster.client().await;
        tokio::spawn(async move { client.put("k", "1").await })
    };
    cluster.world.set_not_ready("");
    waiting.await.expect("no panic").expect("served as soon as the cluster is ready");
}

#[tokio::test]
async fn a_stale_read_needs_neither_leader_nor_placement() {
    let (mut cluster, mut client) = warm().await;
    cluster.kill_placement();
    cluster.world.kill(1);
    cluster.world.lead(1, 0);
    let stale = |key: &str, range_end: &str| RangeRequest { serializable: true, ..range(key, range_end) };
    assert_eq!(client.range(stale("k", "")).await.expect("served by a follower").count, 1);
    assert_eq!(client.range(stale("a", "z")).await.expect("served by a follower").count, 1);
    fails_as(in_time(client, async |client| client.get("k").await).await, error::TIMEOUT);
}

#[tokio::test]
async fn many_requests_for_an_unknown_key_ask_placement_once() {
    let cluster = Cluster::local(&["m"]).await;
    let client = cluster.client().await;
    let requests = (0..50).map(|number| {
        let mut client = client.clone();
        async move { client.put(&format!("k{number}"), "v").await }
    });
    let answers = futures::future::join_all(requests).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(cluster.placement.routes_asked(), 1);
}
