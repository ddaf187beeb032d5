//! Writes over several regions: what the proxy asks of whom, and what it makes of the answers.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{TxnRequest, response_op};
use braid_proto::pb::refusal::Reason;
use braid_proto::pb::{Busy, LockResponse, Unknown, region_response};
use tonic::Code;

use crate::client::{fails, fails_as, keys, mod_is, put_op, range, range_op, revision};
use crate::cluster::Cluster;
use crate::world::Script;

fn conflict() -> Script {
    Script::Answer(region_response::Result::Lock(LockResponse { conflict: true, ..LockResponse::default() }))
}

#[tokio::test]
async fn a_transaction_locks_the_lowest_key_first_and_decides_there() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    let spread = TxnRequest {
        success: vec![put_op("x", "1"), put_op("a", "1"), range_op(range("a", "z"))],
        ..Default::default()
    };
    let answer = client.txn(spread).await.expect("served");
    assert_eq!((answer.succeeded, revision(&answer.header)), (true, 2));
    assert_eq!(cluster.world.take_calls(), ["s1 r1 lock", "s2 r2 lock", "s3 r3 lock", "s1 r1 decide"]);
    let Some(response_op::Response::ResponseRange(seen)) = &answer.responses[2].response else { panic!() };
    assert_eq!((keys(seen).as_str(), revision(&seen.header)), ("a x", 2), "it sees what it has written");
    assert_eq!(seen.kvs[0].create_revision, 2);
}

#[tokio::test]
async fn what_changes_nothing_takes_no_lock() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    cluster.world.put("a", "v");
    let guarded = TxnRequest {
        compare: vec![mod_is("a", 77), mod_is("x", 0)],
        success: vec![put_op("x", "1")],
        failure: vec![range_op(range("a", ""))],
    };
    let answer = client.txn(guarded).await.expect("served");
    assert_eq!((answer.succeeded, revision(&answer.header)), (false, 2));
    assert_eq!(client.delete("b", "\0").await.expect("served").deleted, 0);
    assert!(cluster.world.take_calls().iter().all(|call| !call.contains("lock")));
    assert_eq!(cluster.world.bound().0, 2, "nothing happened");
}

#[tokio::test]
async fn a_conflict_gives_everything_up_and_waits_in_key_order() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    cluster.world.script(2, conflict());
    let spread = TxnRequest { success: ["a", "i", "x"].map(|key| put_op(key, "1")).to_vec(), ..Default::default() };
    client.txn(spread).await.expect("served");
    let calls = cluster.world.take_calls();
    assert_eq!(calls[..3], ["s1 r1 lock", "s2 r2 lock", "s3 r3 lock"]);
    assert_eq!(calls[3..6], ["s1 r1 release", "s2 r2 release", "s3 r3 release"]);
    assert_eq!(calls[6..], ["s1 r1 lock", "s2 r2 lock", "s3 r3 lock", "s1 r1 decide"]);
}

#[tokio::test]
async fn a_transaction_that_was_given_up_meanwhile_begins_again() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    cluster.world.script(1, Script::DoAndRefuse(Reason::Busy(Busy { what: "full".to_owned(), retry_after_ms: 1 })));
    let spread = || TxnRequest { success: vec![put_op("a", "1"), put_op("x", "1")], ..Default::default() };
    // The refused lock was taken all the same, and its copy finds it in the way: the attempt is given up and made again.
    let answer = client.txn(spread()).await.expect("served");
    assert_eq!(revision(&answer.header), 2);
    cluster.world.take_calls();

    cluster.world.script_after(1, 1, Script::Over);
    let answer = client.txn(spread()).await.expect("served");
    assert_eq!(revision(&answer.header), 3);
    let decides = cluster.world.take_calls().iter().filter(|call| call.ends_with("decide")).count();
    assert_eq!(decides, 2);
}

#[tokio::test]
async fn an_unknown_decision_is_told_and_never_made_again() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    cluster.world.script_after(1, 1, Script::DoAndRefuse(Reason::Unknown(Unknown { why: "gone".to_owned() })));
    let spread = TxnRequest { success: vec![put_op("a", "1"), put_op("x", "1")], ..Default::default() };
    fails_as(client.txn(spread).await, error::TIMEOUT_LEADER_FAIL);
    assert_eq!(cluster.world.take_calls(), ["s1 r1 lock", "s2 r2 lock", "s1 r1 decide"]);
    assert_eq!(cluster.world.bound().0, 2, "it has happened once");
}

#[tokio::test]
async fn a_large_delete_counts_instead_of_listing() {
    let cluster = Cluster::local(&["k2", "k4"]).await;
    let mut client = cluster.client().await;
    for n in 0..5_000 {
        cluster.world.put(&format!("k{n:04}"), "v");
    }
    let before = cluster.world.bound().0;
    let answer = client.delete("k", "l").await.expect("served");
    assert_eq!((answer.deleted, revision(&answer.header)), (5_000, before + 1));
    let calls = cluster.world.take_calls();
    let locks: Vec<_> = calls.iter().filter(|call| !call.ends_with("count") && !call.ends_with("read")).collect();
    assert_eq!(locks, ["s1 r1 lock", "s2 r2 lock", "s3 r3 lock", "s1 r1 decide"]);
    assert_eq!(answer.prev_kvs.len(), 5_000, "what was there is read under the locks");
    assert_eq!(client.range(range("k", "l")).await.expect("served").count, 0);
}

#[tokio::test]
async fn faults_under_the_locks_give_them_up() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    let future = braid_proto::etcd::etcdserverpb::RangeRequest { revision: 1_000, ..range("a", "") };
    let spread =
        TxnRequest { success: vec![put_op("a", "1"), put_op("x", "1"), range_op(future)], ..Default::default() };
    fails(client.txn(spread).await, Code::OutOfRange, error::FUTURE_REVISION.message);
    let calls = cluster.world.take_calls();
    assert_eq!(calls.iter().filter(|call| call.ends_with("release")).count(), 2);
    client.put("a", "free").await.expect("nothing is locked");
}
