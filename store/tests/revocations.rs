//! Leases whose keys lie in several regions of three real stores: revoked, all their keys go at one revision, and nobody
//! else's.

#[path = "transactions/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod cluster;
#[path = "transactions/faults.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod faults;
#[path = "transactions/sequencer.rs"]
#[allow(dead_code, reason = "shared with the tests of transactions")]
mod sequencer;

use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use braid_proto::key::{lease_key, user_key};
use braid_proto::pb::{
    GrantLeaseRequest, LeaseStateRequest, ReadRequest, RevokeLeaseRequest, region_request, region_response,
};
use bytes::Bytes;
use cluster::{Cluster, LETTERS, World};
use faults::Carrying;
use tokio::time::timeout;

const LEASE: i64 = 7;
const PATIENCE: Duration = Duration::from_secs(30);
/// Puts of one seeding transaction.
const SEED_PUTS: usize = 1_000;

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn grant(world: &World) {
    let op = region_request::Op::GrantLease(GrantLeaseRequest { id: LEASE, ttl: 3_600 });
    let answer = world.ask_once(&lease_key(LEASE), op, PATIENCE).await;
    assert!(matches!(answer, region_response::Result::GrantLease(_)), "{answer:?}");
}

/// Puts keys of one region with a lease, or without one (0).
async fn put(world: &World, keys: &[&str], lease: i64) -> i64 {
    let put = |key: &&str| PutRequest { key: text(key), value: text("there"), lease, ..Default::default() };
    let puts = keys.iter().map(|key| RequestOp { request: Some(request_op::Request::RequestPut(put(key))) });
    let txn = TxnRequest { success: puts.collect(), ..Default::default() };
    match world.ask_once(&user_key(keys[0].as_bytes()), region_request::Op::Txn(txn), PATIENCE).await {
        region_response::Result::Txn(txn) => txn.header.expect("a header").revision,
        other => panic!("{keys:?}: {other:?}"),
    }
}

async fn revoke(world: &World) -> i64 {
    let op = region_request::Op::RevokeLease(RevokeLeaseRequest { id: LEASE });
    match world.ask_once(&lease_key(LEASE), op, PATIENCE).await {
        region_response::Result::RevokeLease(revoked) => revoked.revision,
        other => panic!("{other:?}"),
    }
}

/// All keys of all regions at a revision.
async fn keys(world: &World, revision: i64) -> Vec<String> {
    let mut keys = Vec::new();
    for letter in LETTERS {
        keys.extend(keys_of(world, &letter.to_string(), revision).await);
    }
    keys
}

/// The keys of one region that begin with a letter.
async fn keys_of(world: &World, letter: &str, revision: i64) -> Vec<String> {
    let after = format!("{letter}\u{7f}");
    keys_between(world, letter, &after, revision).await
}

async fn keys_between(world: &World, from: &str, to: &str, revision: i64) -> Vec<String> {
    let range = RangeRequest { key: text(from), range_end: text(to), keys_only: true, ..Default::default() };
    let op = region_request::Op::Read(ReadRequest { range: Some(range), read_at: revision });
    match world.ask(&user_key(from.as_bytes()), op, PATIENCE).await {
        region_response::Result::Range(range) => {
            range.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
        }
        other => panic!("{from} to {to} at {revision}: {other:?}"),
    }
}

/// Whether there is such a lease.
async fn is_there(world: &World) -> bool {
    let op = region_request::Op::LeaseState(LeaseStateRequest { id: LEASE, at_once: true });
    match world.ask(&lease_key(LEASE), op, PATIENCE).await {
        region_response::Result::LeaseState(state) => state.granted_ttl > 0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_three_regions_go_at_one_revision() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    grant(world).await;
    put(world, &["a/1", "a/2"], LEASE).await;
    put(world, &["n/1", "n/2"], LEASE).await;
    put(world, &["u/1"], LEASE).await;
    put(world, &["n/2"], 0).await;
    let before = put(world, &["u/2"], 0).await;
    let revision = revoke(world).await;
    assert_eq!(revision, before + 1);
    assert_eq!(keys(world, before).await, ["a/1", "a/2", "n/1", "n/2", "u/1", "u/2"]);
    assert_eq!(keys(world, revision).await, ["n/2", "u/2"]);
    assert!(!is_there(world).await);
    cluster.forgets_all_locks(PATIENCE).await;
    // The id is free again, and what its last bearer has closed is no hindrance.
    grant(world).await;
    put(world, &["a/1"], LEASE).await;
    let before = put(world, &["n/1"], LEASE).await;
    let revision = revoke(world).await;
    assert_eq!(revision, before + 1);
    assert_eq!(keys(world, revision).await, ["n/2", "u/2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_other_region_does_it_alone() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    grant(world).await;
    put(world, &["n/1", "n/2"], LEASE).await;
    let before = put(world, &["n/3"], 0).await;
    let revision = revoke(world).await;
    assert_eq!(revision, before + 1);
    assert_eq!(keys(world, before).await, ["n/1", "n/2", "n/3"]);
    assert_eq!(keys(world, revision).await, ["n/3"]);
    assert!(!is_there(world).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_very_many_keys_only_those_of_the_lease_go() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    grant(world).await;
    let named = |kind: &str, count: usize| -> Vec<String> { (0..count).map(|n| format!("n/{n:05}/{kind}")).collect() };
    let (attached, others) = (named("attached", 5_000), named("other", 1_000));
    for (keys, lease) in [(&attached, LEASE), (&others, 0)] {
        for keys in keys.chunks(SEED_PUTS) {
            put(world, &keys.iter().map(String::as_str).collect::<Vec<_>>(), lease).await;
        }
    }
    let before = put(world, &["u/1"], LEASE).await;
    let revision = revoke(world).await;
    assert_eq!(revision, before + 1);
    assert_eq!(keys_of(world, "n", before).await.len(), 6_000);
    assert_eq!(keys_of(world, "n", revision).await, others);
    assert_eq!(keys_of(world, "u", revision).await, [""; 0]);
    cluster.forgets_all_locks(PATIENCE).await;
    assert_eq!(keys(world, revision + 1).await, others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_of_a_region_that_was_split_are_asked() {
    let cluster = Cluster::start().await;
    let world = &cluster.world;
    grant(world).await;
    put(world, &["a/1"], LEASE).await;
    let before = put(world, &["n/1", "n/9"], LEASE).await;
    let split = cluster.split("n/5", 12).await;
    assert!(split.right.is_some(), "{split:?}");
    let revision = revoke(world).await;
    assert_eq!(revision, before + 1);
    for (from, to) in [("a", "b"), ("n", "n/5"), ("n/5", "o")] {
        let there = keys_between(world, from, to, before).await;
        assert_eq!(there.len(), 1, "{there:?}");
        assert_eq!(keys_between(world, from, to, revision).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_leader_is_dead_is_waited_for() {
    let mut cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    grant(&world).await;
    put(&world, &["a/1"], LEASE).await;
    put(&world, &["n/1"], LEASE).await;
    let before = put(&world, &["u/1"], LEASE).await;
    cluster.kill(2).await;
    let revision = revoke(&world).await;
    assert!(revision > before);
    assert_eq!(keys(&world, revision - 1).await, ["a/1", "n/1", "u/1"]);
    assert_eq!(keys(&world, revision).await, [""; 0]);
    cluster.heal().await;
}

/// How far a revocation has come when the leader of the record's region dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The lease is marked; nothing can be decided, because nobody gives numbers.
    Marked,
    /// It is decided; the other regions have not done their shares.
    Decided,
}

async fn outlives_whoever_has_begun_it(stage: Stage) {
    let mut cluster = Cluster::start().await;
    let world = Arc::clone(&cluster.world);
    grant(&world).await;
    put(&world, &["a/1"], LEASE).await;
    put(&world, &["n/1"], LEASE).await;
    let before = put(&world, &["u/1"], LEASE).await;
    match stage {
        Stage::Marked => world.sequencer.stop(),
        Stage::Decided => world.faults.carry(Carrying::Fails),
    }
    let revocation = region_request::Op::RevokeLease(RevokeLeaseRequest { id: LEASE });
    // It is answered when the lease is gone, and not before.
    let answer = timeout(Duration::from_secs(2), world.send(&lease_key(LEASE), revocation, PATIENCE)).await;
    let is_decided = matches!(answer, Ok(region_response::Result::RevokeLease(_)));
    assert_eq!(is_decided, stage == Stage::Decided, "{answer:?}");
    cluster.kill(1).await;
    match stage {
        Stage::Marked => world.sequencer.restart(),
        Stage::Decided => world.faults.carry(Carrying::Works),
    }
    // Somebody leads again, and goes on by himself; whoever asks waits until the lease is gone.
    let state = region_request::Op::LeaseState(LeaseStateRequest { id: LEASE, at_once: false });
    match world.ask(&lease_key(LEASE), state, PATIENCE).await {
        region_response::Result::LeaseState(state) => assert_eq!(state.granted_ttl, 0),
        other => panic!("{other:?}"),
    }
    let after = put(&world, &["z/after"], 0).await;
    let (mut there, mut gone) = (before, after);
    while there + 1 < gone {
        let middle = there + (gone - there) / 2;
        match &keys(&world, middle).await[..] {
            [] => gone = middle,
            all => {
                assert_eq!(all, ["a/1", "n/1", "u/1"], "{stage:?}: half of it at {middle}");
                there = middle;
            }
        }
    }
    assert!(gone < after, "{stage:?}: the keys are there at {there}, and the lease was gone before {after}");
    cluster.heal().await;
    cluster.forgets_all_locks(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_outlives_a_leader_that_has_marked_it() {
    outlives_whoever_has_begun_it(Stage::Marked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_outlives_a_leader_that_has_decided_it() {
    outlives_whoever_has_begun_it(Stage::Decided).await;
}
