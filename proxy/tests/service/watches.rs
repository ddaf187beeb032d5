//! Watch as far as the proxy alone answers: what is created, refused and cancelled, in whose words, with which header.

use braid_proto::etcd::etcdserverpb::watch_client::WatchClient;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use tonic::{Code, Streaming};

use crate::cluster::{CLUSTER, Cluster, MEMBER};

fn create(start_revision: i64, range_end: &'static str) -> WatchRequest {
    let create =
        WatchCreateRequest { key: "k".into(), range_end: range_end.into(), start_revision, ..Default::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn cancel(watch_id: i64) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) }
}

/// Opens a stream that says `requests` and then stays.
async fn open(cluster: &Cluster, requests: Vec<WatchRequest>) -> Streaming<WatchResponse> {
    use tokio_stream::StreamExt;
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    WatchClient::new(cluster.channel().await).watch(requests).await.expect("a stream").into_inner()
}

async fn next(responses: &mut Streaming<WatchResponse>) -> WatchResponse {
    responses.message().await.expect("no error").expect("a response")
}

#[tokio::test]
async fn creates_and_cancels_are_answered_in_order() {
    let cluster = Cluster::local(&["m"]).await;
    for value in ["1", "2", "3"] {
        cluster.world.put("k", value);
    }
    let (revision, _) = cluster.world.bound();
    let requests = vec![create(0, ""), create(-1, ""), create(0, "a"), create(2, "z"), cancel(0), cancel(9), cancel(1)];
    let mut responses = open(&cluster, requests).await;
    let created = next(&mut responses).await;
    let header = created.header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id, header.revision), (CLUSTER.0, MEMBER, revision));
    assert!(header.raft_term > 0 && created.created && created.watch_id == 0);
    let negative = next(&mut responses).await;
    assert!(negative.created && negative.canceled && negative.watch_id == -1);
    assert_eq!(negative.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(next(&mut responses).await.cancel_reason, "mvcc: watcher range is empty");
    let past = next(&mut responses).await;
    assert!(past.created && past.watch_id == 1);
    assert_eq!(past.header.expect("a header").revision, 1);
    for id in [0, 1] {
        let canceled = next(&mut responses).await;
        assert!(canceled.canceled && !canceled.created && canceled.watch_id == id);
        assert_eq!(canceled.header.expect("a header").revision, revision);
    }
}

#[tokio::test]
async fn a_compacted_start_is_told_from_where_to_begin() {
    let cluster = Cluster::local(&[]).await;
    for value in ["1", "2", "3"] {
        cluster.world.put("k", value);
    }
    cluster.world.set_compacted(3);
    let mut responses = open(&cluster, vec![create(2, ""), create(3, "")]).await;
    assert!(next(&mut responses).await.created);
    let canceled = next(&mut responses).await;
    assert!(canceled.canceled && canceled.cancel_reason.is_empty());
    assert_eq!((canceled.compact_revision, canceled.header.expect("a header").revision), (3, 0));
    let legal = next(&mut responses).await;
    assert!(legal.created && !legal.canceled);
}

#[tokio::test]
async fn stopping_the_proxy_ends_streams_at_once() {
    let mut cluster = Cluster::local(&[]).await;
    let mut responses = open(&cluster, vec![create(0, "")]).await;
    assert!(next(&mut responses).await.created);
    assert_eq!(cluster.proxy.in_flight(), 1);
    cluster.proxy.stop();
    let status = responses.message().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    (&mut cluster.serving).await.expect("serving ends");
}
