//! Transactions over several regions that put keys with leases: what is attached, what locks hold, what is asked again.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};
use braid_proto::pb::{AttachLeaseResponse, LockResponse, region_response};

use crate::client::{fails_as, mod_is, put_op, range, range_op, revision};
use crate::cluster::Cluster;
use crate::world::Script;

fn put_with(key: &str, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), lease, ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..Default::default() }
}

fn sorted(mut calls: Vec<String>) -> Vec<String> {
    calls.sort();
    calls
}

#[tokio::test]
async fn leases_are_attached_before_the_first_lock_and_only_where_they_are_put() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    cluster.world.grant(7, 60);
    cluster.world.grant(8, 60);
    let answer = client.txn(txn(vec![put_with("a", 7), put_with("b", 8), put_op("i", "1"), put_with("x", 7)])).await;
    assert_eq!(revision(&answer.expect("served").header), 2);
    let calls = cluster.world.take_calls();
    let attached = sorted(calls[..3].to_vec());
    assert_eq!(attached, ["s1 r1 attach", "s1 r1 attach", "s3 r3 attach"]);
    assert_eq!(calls[3..], ["s1 r1 lock", "s2 r2 lock", "s3 r3 lock", "s1 r1 decide"]);
    for (key, lease) in [("a", 7), ("b", 8), ("i", 0), ("x", 7)] {
        assert_eq!(client.get(key).await.expect("served").kvs[0].lease, lease);
    }
    cluster.world.expire(7);
    assert_eq!(client.range(range("a", "z")).await.expect("served").count, 2, "the keys went with the lease");
}

#[tokio::test]
async fn a_missing_lease_fails_the_transaction_once_it_is_missed_under_the_locks() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    cluster.world.grant(7, 60);
    fails_as(client.txn(txn(vec![put_with("a", 7), put_with("x", 9)])).await, error::LEASE_NOT_FOUND);
    let calls = cluster.world.take_calls();
    assert_eq!(sorted(calls[..2].to_vec()), ["s1 r1 attach", "s2 r2 attach"]);
    assert_eq!(calls[2..], ["s1 r1 lock", "s2 r2 lock", "s1 r1 state", "s1 r1 release", "s2 r2 release"]);
    assert_eq!(cluster.world.bound().0, 1, "nothing happened");
    client.put("a", "free").await.expect("nothing is locked");
}

#[tokio::test]
async fn a_missing_lease_of_the_branch_not_taken_is_nobodys_business() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    let guarded = |revision| TxnRequest {
        compare: vec![mod_is("a", revision)],
        success: vec![put_with("a", 9), put_with("x", 9)],
        failure: vec![put_op("x", "1")],
    };
    let answer = client.txn(guarded(77)).await.expect("served");
    assert_eq!((answer.succeeded, revision(&answer.header)), (false, 2));
    fails_as(client.txn(guarded(0)).await, error::LEASE_NOT_FOUND);
}

#[tokio::test]
async fn what_changes_nothing_attaches_nothing() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    let guarded = TxnRequest {
        compare: vec![mod_is("a", 77)],
        success: vec![put_with("a", 9), put_with("x", 9)],
        failure: vec![range_op(range("x", ""))],
    };
    assert!(!client.txn(guarded).await.expect("served").succeeded);
    let calls = cluster.world.take_calls();
    assert!(calls.iter().all(|call| !call.contains("lock") && !call.contains("attach")), "{calls:?}");
}

#[tokio::test]
async fn a_lease_that_was_granted_meanwhile_begins_the_transaction_again() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    cluster.world.grant(7, 60);
    // The second region has asked a moment too early.
    let not_found = region_response::Result::AttachLease(AttachLeaseResponse { found: false });
    cluster.world.script(2, Script::Answer(not_found));
    let answer = client.txn(txn(vec![put_with("a", 7), put_with("x", 7)])).await.expect("served");
    assert_eq!(revision(&answer.header), 2);
    let calls = cluster.world.take_calls();
    let count = |what: &str| calls.iter().filter(|call| call.ends_with(what)).count();
    assert_eq!((count("attach"), count("lock"), count("state"), count("release"), count("decide")), (4, 4, 1, 2, 1));
}

#[tokio::test]
async fn a_region_that_has_forgotten_is_asked_to_attach_again() {
    let cluster = Cluster::local(&["h"]).await;
    let mut client = cluster.client().await;
    cluster.world.grant(7, 60);
    let both = || txn(vec![put_with("a", 7), put_with("x", 7)]);
    client.txn(both()).await.expect("served");
    cluster.world.take_calls();
    // Between attach and lock the second region gets another leader.
    let unattached = LockResponse { unattached: vec![7], ..LockResponse::default() };
    cluster.world.script_after(2, 1, Script::Answer(region_response::Result::Lock(unattached)));
    let answer = client.txn(both()).await.expect("served");
    assert_eq!(revision(&answer.header), 3);
    let calls = cluster.world.take_calls();
    let count = |what: &str| calls.iter().filter(|call| call.ends_with(what)).count();
    assert_eq!((count("attach"), count("lock"), count("release"), count("decide")), (4, 4, 2, 1));
    // One that has forgotten before is asked anyhow.
    cluster.world.forget_attached();
    assert_eq!(revision(&client.txn(both()).await.expect("served").header), 4);
}
