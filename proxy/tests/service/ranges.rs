//! Ranges over many regions answer what one region would.

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use braid_proto::pb::region_response;
use tonic::Code;

use crate::client::{Client, fails, fails_as, keys, range, revision};
use crate::cluster::Cluster;
use crate::world::Script;

/// Twelve keys over four regions, with versions, creations and values in other orders than the keys.
async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::local(&["d", "g", "t"]).await;
    for key in ["x", "b", "k", "a", "y", "h", "c", "i", "e", "w", "j", "f"] {
        cluster.world.put(key, &format!("{}", 9 - key.as_bytes()[0] % 7));
    }
    for key in ["a", "x", "x", "h"] {
        cluster.world.put(key, "again");
    }
    let client = cluster.client().await;
    (cluster, client)
}

#[tokio::test]
async fn a_serializable_range_over_regions_is_one_snapshot_of_the_replicas() {
    let mut cluster = Cluster::local(&["h", "p"]).await;
    let mut client = cluster.client().await;
    for key in ["a", "i", "x"] {
        cluster.world.put(key, "v");
    }
    client.range(range("a", "\0")).await.expect("routes are known from now on");
    cluster.kill_placement();
    (1..=3).for_each(|region| cluster.world.lead(region, 0));
    cluster.world.take_calls();
    let stale = RangeRequest { serializable: true, ..range("a", "\0") };
    let answer = client.range(stale.clone()).await.expect("served without leaders");
    assert_eq!((keys(&answer).as_str(), revision(&answer.header)), ("a i x", 4));
    let calls = cluster.world.take_calls();
    assert_eq!(calls.iter().filter(|call| call.ends_with("frontier")).count(), 3);
    let limited = client.range(RangeRequest { limit: 2, ..stale.clone() }).await.expect("served");
    assert_eq!((keys(&limited).as_str(), limited.count, limited.more), ("a i", 3, true));
    let old = client.range(RangeRequest { revision: 2, ..stale }).await.expect("served");
    assert_eq!((keys(&old).as_str(), revision(&old.header)), ("a", 4));
}

#[tokio::test]
async fn every_order_limit_and_filter_is_as_in_one_region() {
    let (cluster, mut client) = cluster().await;
    let latest = cluster.world.bound().0;
    let plain = RangeRequest::default();
    let kinds = [
        plain.clone(),
        RangeRequest { keys_only: true, ..plain.clone() },
        RangeRequest { count_only: true, ..plain.clone() },
        RangeRequest { min_mod_revision: 8, ..plain.clone() },
        RangeRequest { max_create_revision: 6, keys_only: true, ..plain.clone() },
        RangeRequest { revision: 9, ..plain },
    ];
    let mut checked = 0;
    for kind in kinds {
        for (key, range_end) in [("a", "\0"), ("b", "x"), ("e", "h"), ("h", "j")] {
            for (sort_order, sort_target) in (0..3).flat_map(|order| (0..5).map(move |target| (order, target))) {
                for limit in [0, 1, 6, 12] {
                    let request = RangeRequest {
                        key: key.into(),
                        range_end: range_end.into(),
                        sort_order,
                        sort_target,
                        limit,
                        ..kind.clone()
                    };
                    let answer = client.range(request.clone()).await.expect("served");
                    assert_eq!(revision(&answer.header), latest);
                    let answer = RangeResponse { header: None, ..answer };
                    assert_eq!(answer, cluster.world.oracle(&request), "{request:?}");
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 6 * 4 * 15 * 4);
}

#[tokio::test]
async fn a_page_asks_only_where_it_must() {
    let (cluster, mut client) = cluster().await;
    client.range(range("a", "\0")).await.expect("served");
    cluster.world.take_calls();
    let sorted = |mut calls: Vec<String>| {
        calls.sort();
        calls
    };

    let page = client.range(RangeRequest { limit: 2, ..range("a", "\0") }).await.expect("served");
    assert_eq!((keys(&page).as_str(), page.more, page.count), ("a b", true, 12));
    let calls = sorted(cluster.world.take_calls());
    assert_eq!(calls, ["s1 r1 read", "s1 r4 count", "s2 r2 count", "s3 r3 count"]);

    // The first region has three keys, the second too: one more round, and only there.
    let page = client.range(RangeRequest { limit: 5, ..range("a", "\0") }).await.expect("served");
    assert_eq!((keys(&page).as_str(), page.more, page.count), ("a b c e f", true, 12));
    let calls = sorted(cluster.world.take_calls());
    assert_eq!(calls, ["s1 r1 read", "s1 r4 count", "s2 r2 count", "s2 r2 read", "s3 r3 count"]);
}

#[tokio::test]
async fn paging_sees_one_snapshot() {
    let (cluster, mut client) = cluster().await;
    let mut request = RangeRequest { limit: 5, ..range("a", "\0") };
    let mut pages = Vec::new();
    loop {
        let page = client.range(request.clone()).await.expect("served");
        if request.revision == 0 {
            request.revision = revision(&page.header);
        }
        pages.push((keys(&page), page.count, page.more));
        cluster.world.put("b", "changed");
        cluster.world.put("zz", "new");
        let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
        request.key = [&last.key[..], &[0]].concat().into();
    }
    let expect = [("a b c e f", 12, true), ("h i j k w", 7, true), ("x y", 2, false)];
    assert_eq!(pages, expect.map(|(keys, count, more)| (keys.to_owned(), count, more)));
}

#[tokio::test]
async fn explicit_revisions_are_judged() {
    let (cluster, mut client) = cluster().await;
    let latest = cluster.world.bound().0;
    let at = |revision| RangeRequest { revision, ..range("a", "\0") };
    assert_eq!(revision(&client.range(at(latest)).await.expect("served").header), latest);
    fails_as(client.range(at(latest + 1)).await, error::FUTURE_REVISION);
    cluster.world.set_compacted(9);
    fails_as(client.range(at(8)).await, error::COMPACTED);
    let oldest = client.range(at(9)).await.expect("the boundary itself is there");
    assert_eq!((oldest.count, revision(&oldest.header)), (8, latest));
}

#[tokio::test]
async fn a_compaction_that_overtakes_a_read_starts_it_again() {
    let (cluster, mut client) = cluster().await;
    cluster.world.script(2, Script::Answer(region_response::Result::Error(error::COMPACTED.into())));
    assert_eq!(client.range(range("a", "\0")).await.expect("started again").count, 12);
    cluster.world.script(2, Script::Answer(region_response::Result::Error(error::COMPACTED.into())));
    fails_as(client.range(RangeRequest { revision: 9, ..range("a", "\0") }).await, error::COMPACTED);
}

#[tokio::test]
async fn regions_that_split_under_way_are_still_one_range() {
    let (cluster, mut client) = cluster().await;
    client.range(range("a", "\0")).await.expect("routes are known now");
    cluster.world.freeze_routes();
    for key in ["b", "i", "j", "x"] {
        cluster.world.split(key);
    }
    for limit in [0, 4, 8] {
        let request = RangeRequest { limit, ..range("a", "\0") };
        let answer = client.range(request.clone()).await.expect("served");
        assert_eq!(RangeResponse { header: None, ..answer }, cluster.world.oracle(&request));
    }
    assert_eq!(cluster.placement.routes_asked(), 1, "the refusals said it all");
}

#[tokio::test]
async fn the_chunks_of_a_stream_merge_to_the_answer_of_range() {
    let cluster = Cluster::local(&["k020", "k021", "k100"]).await;
    for number in 0..150 {
        cluster.world.put(&format!("k{number:03}"), "value");
    }
    let mut client = cluster.client().await;
    let requests = [
        range("k", "l"),
        RangeRequest { limit: 57, ..range("k", "l") },
        RangeRequest { limit: 150, ..range("k", "l") },
        RangeRequest { revision: 40, keys_only: true, ..range("k", "l") },
        RangeRequest { count_only: true, limit: 3, ..range("k", "l") },
        range("k050", ""),
        range("none", ""),
        range("z", "a"),
    ];
    for request in requests {
        let messages = client.stream(request.clone()).await.expect("served");
        let (last, others) = messages.split_last().expect("there always is a last message");
        assert!(others.iter().all(|chunk| chunk.header.is_none() && !chunk.more && chunk.count == 0));
        assert!(others.iter().all(|chunk| !chunk.kvs.is_empty()));
        let merged = RangeResponse {
            header: last.header,
            kvs: messages.iter().flat_map(|chunk| chunk.kvs.clone()).collect(),
            more: last.more,
            count: last.count,
        };
        assert_eq!(merged, client.range(request.clone()).await.expect("served"), "{request:?}");
    }
    let chunks = client.stream(range("k", "l")).await.expect("served");
    assert_eq!(chunks[0].kvs.len(), 10, "the first chunk is small");
    assert!(chunks.len() < 10, "and they grow: {}", chunks.len());
}

#[tokio::test]
async fn a_stream_keeps_its_snapshot_while_keys_change_and_regions_split() {
    let cluster = Cluster::local(&["k050"]).await;
    for number in 0..100 {
        cluster.world.put(&format!("k{number:03}"), "value");
    }
    let mut client = cluster.client().await;
    let latest = cluster.world.bound().0;
    let mut stream = client.kv.range_stream(range("k", "l")).await.expect("served").into_inner();
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await.expect("served") {
        let chunk = message.range_response.expect("an answer");
        assert!(chunk.kvs.iter().all(|kv| kv.mod_revision <= latest && kv.version == 1));
        seen.extend(chunk.kvs.iter().map(|kv| kv.key.clone()));
        if let Some(header) = chunk.header {
            assert_eq!((header.revision, chunk.count, chunk.more), (latest, 100, false));
        }
        let number = seen.len() + 5;
        cluster.world.put(&format!("k{number:03}"), "changed");
        cluster.world.put(&format!("k{number:03}b"), "new");
        if number < 90 {
            cluster.world.split(&format!("k{number:03}"));
        }
    }
    assert_eq!(seen.len(), 100);
    assert!(seen.is_sorted());
}

#[tokio::test]
async fn a_stream_refuses_what_it_cannot_do_in_order() {
    let cluster = Cluster::local(&[]).await;
    let mut client = cluster.client().await;
    let custom = "RangeStream does not support custom sort orders";
    let descending = RangeRequest { sort_order: 2, ..range("a", "z") };
    fails(client.stream(descending).await, Code::Unimplemented, custom);
    let by_value = RangeRequest { sort_order: 1, sort_target: 4, ..range("a", "z") };
    fails(client.stream(by_value).await, Code::Unimplemented, custom);
    let filtered = RangeRequest { min_mod_revision: 1, ..range("a", "z") };
    fails(client.stream(filtered).await, Code::Unimplemented, "RangeStream does not support revision filters");
    let ascending = RangeRequest { sort_order: 1, ..range("a", "z") };
    assert_eq!(client.stream(ascending).await.expect("the default order").len(), 1);
    fails_as(client.stream(range("", "z")).await, error::EMPTY_KEY);
    fails_as(client.stream(RangeRequest { revision: 99, ..range("a", "z") }).await, error::FUTURE_REVISION);
}
