//! Puts, deletes and transactions, and the errors of requests that cannot be served.

use std::time::Duration;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{
    CompactionRequest, PutRequest, RangeRequest, ResponseHeader, TxnRequest, TxnResponse, response_op,
};
use braid_proto::pb::region_response;
use bytes::Bytes;
use tonic::Code;

use crate::client::{fails, fails_as, keys, mod_is, put_op, range, range_op, revision};
use crate::cluster::{CLUSTER, Cluster, MEMBER};
use crate::world::Script;

#[tokio::test]
async fn headers_are_complete_and_carry_the_stores_revision() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = cluster.client().await;
    let channel = cluster.channel().await;
    // The term comes with placement's first heartbeat.
    let mut members = braid_proto::etcd::etcdserverpb::cluster_client::ClusterClient::new(channel);
    let linearizable = braid_proto::etcd::etcdserverpb::MemberListRequest { linearizable: true };
    members.member_list(linearizable).await.expect("placement answers");

    let header = |revision| Some(ResponseHeader { cluster_id: CLUSTER.0, member_id: MEMBER, revision, raft_term: 9 });
    assert_eq!(client.get("a").await.expect("served").header, header(1));
    assert_eq!(client.put("a", "1").await.expect("served").header, header(2));
    assert_eq!(client.put("z", "2").await.expect("served").header, header(3));
    let answer = client.get("a").await.expect("served");
    assert_eq!(answer.header, header(3), "another region's write counts");
    assert_eq!((answer.count, answer.more, keys(&answer).as_str()), (1, false, "a"));
    let deleted = client.delete("a", "").await.expect("served");
    assert_eq!((deleted.header, deleted.deleted, deleted.prev_kvs.len()), (header(4), 1, 1));
    assert_eq!(client.delete("a", "").await.expect("served").header, header(4));
}

#[tokio::test]
async fn malformed_requests_get_etcds_errors() {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    fails_as(client.get("").await, error::EMPTY_KEY);
    fails_as(client.put("", "v").await, error::EMPTY_KEY);
    fails_as(client.delete("", "z").await, error::EMPTY_KEY);
    fails_as(client.range(RangeRequest { sort_order: 7, ..range("a", "z") }).await, error::INVALID_SORT_OPTION);
    let keep = PutRequest { key: "a".into(), value: "v".into(), ignore_value: true, ..Default::default() };
    fails_as(client.put_as(keep).await, error::VALUE_PROVIDED);
    let many = TxnRequest { success: vec![range_op(range("a", "")); 129], ..Default::default() };
    fails_as(client.txn(many).await, error::TOO_MANY_OPS);
    let twice = TxnRequest { success: vec![put_op("a", "1"), put_op("a", "2")], ..Default::default() };
    fails_as(client.txn(twice).await, error::DUPLICATE_KEY);
    assert_eq!(cluster.world.take_calls(), [""; 0], "no store was bothered");
}

#[tokio::test]
async fn oversized_requests_are_refused_twice_over() {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    let put = |bytes: usize| PutRequest { key: "a".into(), value: Bytes::from(vec![0; bytes]), ..Default::default() };
    let overhead = 7;
    client.put_as(put((1536 << 10) - overhead)).await.expect("exactly at the limit");
    fails_as(client.put_as(put((1536 << 10) - overhead + 1)).await, error::REQUEST_TOO_LARGE);
    let length = (3 << 20) + overhead + 1;
    let text = format!("grpc: received message larger than max ({length} vs. {})", 2 << 20);
    fails(client.put_as(put(3 << 20)).await, Code::ResourceExhausted, &text);
    client.put("a", "still served").await.expect("served");
}

#[tokio::test]
async fn large_answers_are_not_cut() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = cluster.client().await;
    let value = "x".repeat(1 << 20);
    for key in ["a", "b", "c", "x", "y", "z"] {
        cluster.world.put(key, &value);
    }
    let answer = client.range(range("a", "\0")).await.expect("served");
    assert_eq!(keys(&answer), "a b c x y z");
    assert!(answer.kvs.iter().all(|kv| kv.value.len() == 1 << 20));
}

#[tokio::test]
async fn a_transaction_inside_one_region_goes_there_whole() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = cluster.client().await;
    let create = TxnRequest {
        compare: vec![mod_is("x", 0)],
        success: vec![put_op("x", "1"), put_op("y", "2"), range_op(range("x", "z"))],
        failure: vec![range_op(range("x", ""))],
    };
    let first = client.txn(create.clone()).await.expect("served");
    assert_eq!((first.succeeded, revision(&first.header)), (true, 2));
    assert_eq!(cluster.world.take_calls(), ["s2 r2 txn"]);
    let second = client.txn(create).await.expect("served");
    assert_eq!((second.succeeded, revision(&second.header)), (false, 2));
    let Some(response_op::Response::ResponseRange(failed)) = &second.responses[0].response else { panic!() };
    assert_eq!((keys(failed).as_str(), revision(&failed.header)), ("x", 2));
}

#[tokio::test]
async fn a_batch_of_reads_over_regions_is_one_snapshot() {
    let cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    for key in ["a", "i", "x"] {
        cluster.world.put(key, "v");
    }
    let old = RangeRequest { revision: 3, ..range("a", "\0") };
    let reads = TxnRequest {
        success: vec![
            range_op(range("a", "")),
            range_op(range("a", "\0")),
            range_op(old.clone()),
            range_op(range("b", "a")),
        ],
        ..Default::default()
    };
    let answer = client.txn(reads).await.expect("served");
    assert_eq!((answer.succeeded, revision(&answer.header)), (true, 4));
    assert_eq!(
        reads_of(&answer),
        [("a".into(), 1, 4), ("a i x".into(), 3, 4), ("a i".into(), 2, 4), ("".into(), 0, 4)]
    );

    let future = RangeRequest { revision: 5, ..old.clone() };
    let reads = TxnRequest { success: vec![range_op(range("a", "\0")), range_op(future)], ..Default::default() };
    fails_as(client.txn(reads).await, error::FUTURE_REVISION);
    cluster.world.set_compacted(4);
    let reads = TxnRequest { success: vec![range_op(range("a", "\0")), range_op(old)], ..Default::default() };
    fails_as(client.txn(reads).await, error::COMPACTED);
}

/// Keys, count and header revision of every answer.
fn reads_of(answer: &TxnResponse) -> Vec<(String, i64, i64)> {
    let reads = answer.responses.iter().map(|op| match &op.response {
        Some(response_op::Response::ResponseRange(range)) => (keys(range), range.count, revision(&range.header)),
        other => panic!("not a range: {other:?}"),
    });
    reads.collect()
}

#[tokio::test]
async fn requests_for_nothing_answer_the_current_revision() {
    let cluster = Cluster::local(&["m"]).await;
    let mut client = cluster.client().await;
    let latest = cluster.world.put("a", "v");
    let answer = client.txn(TxnRequest::default()).await.expect("served");
    assert_eq!((answer.succeeded, revision(&answer.header)), (true, latest));
    cluster.world.take_calls();

    let answer = client.range(range("z", "b")).await.expect("served");
    assert_eq!((answer.count, revision(&answer.header)), (0, latest));
    let answer = client.delete("z", "b").await.expect("served");
    assert_eq!((answer.deleted, revision(&answer.header)), (0, latest));
    fails_as(client.range(RangeRequest { revision: latest + 1, ..range("z", "b") }).await, error::FUTURE_REVISION);
    cluster.world.set_compacted(latest);
    fails_as(client.range(RangeRequest { revision: latest - 1, ..range("z", "b") }).await, error::COMPACTED);
    assert_eq!(cluster.world.take_calls(), [""; 0], "no region is asked for nothing");
}

#[tokio::test]
async fn a_stores_own_errors_pass_unchanged() {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    for expect in [error::LEASE_NOT_FOUND, error::KEY_NOT_FOUND, error::NO_SPACE, error::CORRUPT] {
        cluster.world.script(1, Script::Answer(region_response::Result::Error(expect.into())));
        fails_as(client.put("a", "v").await, expect);
    }
}

#[tokio::test]
async fn compactions_are_placements_to_judge() {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    client.put("a", "1").await.expect("served");
    client.put("a", "2").await.expect("served");
    let logical = |revision| CompactionRequest { revision, physical: false };
    fails_as(client.kv.compact(logical(4)).await, error::FUTURE_REVISION);
    let header = client.kv.compact(logical(2)).await.expect("compacted").into_inner().header.expect("a header");
    assert_eq!((header.revision, header.cluster_id, header.member_id), (3, CLUSTER.0, MEMBER));
    fails_as(client.kv.compact(logical(2)).await, error::COMPACTED);
}

#[tokio::test]
async fn a_physical_compaction_waits_for_the_disks_as_long_as_its_client() {
    let cluster = Cluster::impatient(Duration::from_millis(300)).await;
    let mut client = cluster.client().await;
    client.put("a", "1").await.expect("served");
    let physical = || CompactionRequest { revision: 2, physical: true };
    let mut compacting = tokio::spawn({
        let mut client = cluster.client().await;
        async move { client.kv.compact(physical()).await }
    });
    // Longer than the proxy's own timeout: that is for deciding, not for the disks.
    cluster.world.drop_asked(2).await;
    assert!(tokio::time::timeout(Duration::from_millis(600), &mut compacting).await.is_err());
    cluster.world.drop_below(2);
    let answer = compacting.await.expect("no panic").expect("compacted").into_inner();
    assert_eq!(answer.header.expect("a header").revision, 2);
    client.put("b", "1").await.expect("served");
    let mut timed = tonic::Request::new(CompactionRequest { revision: 3, physical: true });
    timed.set_timeout(Duration::from_millis(500));
    fails_as(client.kv.compact(timed).await, error::TIMEOUT);
    fails_as(client.kv.compact(CompactionRequest { revision: 3, physical: false }).await, error::COMPACTED);
}
