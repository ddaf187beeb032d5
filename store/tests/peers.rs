//! A region moves from store to store, and is split where its leader finds the key, while clients go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use braid_proto::key::{KeyRange, lease_key, user_key};
use braid_proto::pb::change_peers_request::Change;
use braid_proto::pb::region_store_server::RegionStore;
use braid_proto::pb::split_region_request::By;
use braid_proto::pb::{
    ChangePeersRequest, ChangeVoters, GrantLeaseRequest, KeepLeaseRequest, ListLeasesRequest, Peer, Refusal,
    RegionEpoch, SplitRegionRequest, SplitRegionResponse, refusal, region_request, region_response,
};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

#[path = "peers/cluster.rs"]
mod cluster;
#[path = "watch/listener.rs"]
mod listener;

use cluster::{Cluster, DEADLINE, EPOCH, LOOK, read, text};
use listener::Listener;

/// What clients have been told: key, value and revision of every write.
type Acknowledged = BTreeMap<i64, (String, String)>;

/// Clients that go on until they are stopped.
struct Clients {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Acknowledged>>,
}

impl Clients {
    fn start(cluster: &Arc<Cluster>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for client in 0..4 {
            let (cluster, stopped) = (Arc::clone(cluster), Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let mut told = Acknowledged::new();
                while !stopped.load(Ordering::Relaxed) {
                    let (key, value) = (format!("k{client}{:02}", told.len() % 20), told.len().to_string());
                    let revision = cluster.put(&key, &value).await;
                    // A read that begins after an answer sees it: nobody else writes the key.
                    let seen = cluster.get(&key).await;
                    assert_eq!((seen.kvs[0].mod_revision, &seen.kvs[0].value), (revision, &text(&value)));
                    assert_eq!(told.insert(revision, (key, value)), None);
                }
                told
            }));
        }
        for _ in 0..3 {
            let (cluster, stopped) = (Arc::clone(cluster), Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let mut told = Acknowledged::new();
                while !stopped.load(Ordering::Relaxed) {
                    let seen = cluster.get("counter").await;
                    let kv = &seen.kvs[0];
                    let count: i64 = std::str::from_utf8(&kv.value).expect("text").parse().expect("a number");
                    if let Some(revision) = cluster.raise("counter", (count, kv.mod_revision)).await {
                        told.insert(revision, ("counter".to_owned(), (count + 1).to_string()));
                    }
                }
                told
            }));
        }
        Self { stop, writers }
    }

    /// Stops them; returns all that they were told.
    async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::new();
        for writer in self.writers {
            for (revision, write) in writer.await.expect("no client fails") {
                assert_eq!(all.insert(revision, write), None, "@{revision} was given twice");
            }
        }
        all
    }
}

fn voters(promote: &[u64], demote: &[u64]) -> Change {
    Change::Voters(ChangeVoters { promote: promote.to_vec(), demote: demote.to_vec() })
}

/// Everything there is, as the region's range for a follow.
fn everything() -> (Bytes, Bytes) {
    let KeyRange { start, end } = KeyRange::user(b"\0", b"\0");
    (start, end)
}

/// What a follow was told, as writes.
fn events(listener: &Listener, id: u64) -> Acknowledged {
    let told = listener.follows[&id].events.iter();
    let write = |event: &braid_proto::etcd::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("a key");
        let string = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("text");
        (string(&kv.key), string(&kv.value))
    };
    told.map(|((revision, _), event)| (*revision, write(event))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_moves_to_another_store_under_clients_and_a_watch_that_notice_nothing() {
    let cluster = Arc::new(Cluster::start().await);
    let first = cluster.put("counter", "0").await;
    let leader = cluster.leader().await;
    let leaves = (1..=3).find(|store| *store != leader).expect("another one");
    let mut listener = Listener::new(cluster.store(leader).watch());
    let follow = listener.join((1, EPOCH), everything(), first, false).await;
    let clients = Clients::start(&cluster);

    let wrong = ChangePeersRequest { region_id: 1, epoch: Some(RegionEpoch { conf_ver: 9, version: 1 }), change: None };
    assert_ne!(cluster.change_once(leader, wrong.clone()).await.failed, "", "a change of nothing");
    let stale = ChangePeersRequest { change: Some(Change::RemoveStore(leaves)), ..wrong };
    let refused = cluster.change_once(leader, stale).await.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(refused, Some(refusal::Reason::EpochMismatch(_))), "orders name the peers: {refused:?}");

    let region = cluster.change(Change::AddLearner(Peer::learner(14, 4))).await;
    assert_eq!(region.peers.iter().filter(|peer| peer.learner).map(|peer| peer.store_id).collect::<Vec<_>>(), [4]);
    let region = cluster.change(voters(&[4], &[leaves])).await;
    assert_eq!(region.peers.iter().filter(|peer| peer.learner).map(|peer| peer.store_id).collect::<Vec<_>>(), [leaves]);
    let region = cluster.change(Change::RemoveStore(leaves)).await;
    assert_eq!(region.peers.len(), 3);
    assert!(region.peers.iter().all(|peer| peer.store_id != leaves && !peer.learner), "{region:?}");
    assert_eq!(cluster.leader().await, leader, "it has led all the while");

    // The removed peer's store has nothing of the region any more.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = cluster.ask_store(leaves, read("counter", "")).await;
        let region_response::Result::Refusal(Refusal { reason: Some(reason) }) = answer else { panic!("{answer:?}") };
        match reason {
            refusal::Reason::RegionNotFound(_) => break,
            refusal::Reason::NotLeader(_) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "the removed peer is not destroyed");
        sleep(LOOK).await;
    }
    let mut late = Listener::new(cluster.store(leaves).watch());
    let refused = late.follow((1, EPOCH), everything(), first, false);
    let left = late.left(refused).await.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(left, Some(refusal::Reason::RegionNotFound(_))), "{left:?}");
    assert_eq!(cluster.store(leaves).lock_rows(), 0);

    // The newcomer takes over; the watch goes on there from where it was.
    cluster.lead(4).await;
    let left = listener.left(follow).await.refusal.and_then(|refusal| refusal.reason);
    assert!(matches!(left, Some(refusal::Reason::NotLeader(_))), "{left:?}");
    let seen = listener.follows[&follow].frontier;
    let mut next = Listener::new(cluster.store(4).watch());
    let again = next.join((1, EPOCH), everything(), seen, false).await;
    let before = cluster.get("counter").await.header.expect("a header").revision;
    loop {
        let now = cluster.get("counter").await.header.expect("a header").revision;
        if now > before + 20 {
            break;
        }
        assert!(Instant::now() < deadline, "clients do not go on");
        sleep(LOOK).await;
    }
    let acknowledged = clients.stop().await;
    let last = *acknowledged.keys().last().expect("writes");
    next.reach(again, last).await;

    let revisions: Vec<i64> = acknowledged.keys().copied().collect();
    assert_eq!(revisions, (first + 1..=last).collect::<Vec<_>>(), "each revision has its write");
    let mut told = events(&listener, follow);
    told.retain(|revision, _| *revision <= seen);
    for (revision, write) in events(&next, again) {
        assert_eq!(told.insert(revision, write), None, "@{revision} is told twice");
    }
    assert_eq!(told, acknowledged, "the watch has seen every write once");
    let raised = acknowledged.values().filter(|(key, _)| key == "counter").count();
    let counter = cluster.get("counter").await;
    assert_eq!(counter.kvs[0].value, text(&raised.to_string()), "nothing lost or doubled");
    for (revision, (key, value)) in &acknowledged {
        let newest = acknowledged.iter().rev().find(|(_, (other, _))| other == key).map(|(revision, _)| revision);
        if newest == Some(revision) {
            assert_eq!(cluster.get(key).await.kvs[0].value, text(value), "{key}");
        }
    }
}

async fn split(cluster: &Cluster, by: By, child_id: u64) -> SplitRegionResponse {
    let leader = cluster.leader().await;
    let request = SplitRegionRequest {
        region_id: 1,
        epoch: cluster.region(leader).await.expect("the region").epoch,
        by: by.into(),
        child_id,
        child_peer_ids: (1..=3).map(|peer| child_id * 10 + peer).collect(),
        ..SplitRegionRequest::default()
    };
    cluster.service(leader).split_region(tonic::Request::new(request)).await.expect("an answer").into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_is_split_at_half_its_size() {
    let cluster = Cluster::start().await;
    let nothing = split(&cluster, By::Size, 2).await;
    assert!(nothing.invalid.contains("too small"), "{nothing:?}");
    let value = "v".repeat(1 << 10);
    for key in 0..300 {
        cluster.put(&format!("k{key:03}"), &value).await;
    }
    // Keys came in order: that is no load that can be spread.
    let moving = split(&cluster, By::Load, 2).await;
    assert!(moving.invalid.contains("moves on"), "{moving:?}");

    let by_size = split(&cluster, By::Size, 2).await;
    let (left, right) = (by_size.left.expect("a left half"), by_size.right.expect("a right half"));
    assert!(user_key(b"k130") < right.start && right.start < user_key(b"k170"), "{right:?}");
    assert_eq!((left.end, right.end.len()), (right.start, 0));
    let cut = |version| Some(RegionEpoch { conf_ver: 1, version });
    assert_eq!((left.epoch, right.epoch), (cut(2), cut(2)));

    // What the other half holds counts no more.
    let again = split(&cluster, By::Size, 3).await;
    let (left, right) = (again.left.expect("a left half"), again.right.expect("a right half"));
    assert!(user_key(b"k050") < right.start && right.start < user_key(b"k100"), "{right:?}");
    assert_eq!(left.end, right.start);
    assert_eq!((left.epoch, right.epoch), (cut(3), cut(3)));
}

// Loads in clusters of their own: how much of one still counts after another depends on how fast each was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_is_split_at_half_its_load() {
    let cluster = Cluster::start().await;
    let nothing = split(&cluster, By::Load, 2).await;
    assert!(nothing.invalid.contains("too little load"), "{nothing:?}");
    let spread = || (0..100).map(|turn| format!("k{:03}", 200 + turn * 37 % 100));
    for key in spread() {
        cluster.put(&key, "v").await;
    }
    for key in spread().chain(spread()) {
        cluster.get(&key).await;
    }
    let by_load = split(&cluster, By::Load, 2).await;
    let (left, right) = (by_load.left.expect("a left half"), by_load.right.expect("a right half"));
    assert!(user_key(b"k230") < right.start && right.start < user_key(b"k270"), "{right:?}");
    assert_eq!((left.end, right.end.len()), (right.start, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_of_one_key_splits_no_region() {
    let cluster = Cluster::start().await;
    cluster.put("k123", "v").await;
    for _ in 0..200 {
        cluster.get("k123").await;
    }
    let one = split(&cluster, By::Load, 2).await;
    assert_eq!(one.invalid, "all load is on one key: a split would not spread it");
}

/// Records of leases are cut like keys: each half's leader keeps its own alive, and lets its own end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_of_leases_is_split_between_two_of_them() {
    let cluster = Cluster::start().await;
    for id in 1..=20 {
        let ttl = if id % 10 == 0 { 1 } else { 600 };
        let granted = cluster.ask(region_request::Op::GrantLease(GrantLeaseRequest { id, ttl })).await;
        assert!(matches!(granted, region_response::Result::GrantLease(_)), "{granted:?}");
    }
    let leader = cluster.leader().await;
    let request = SplitRegionRequest {
        region_id: 1,
        epoch: Some(EPOCH),
        split_key: lease_key(11),
        child_id: 2,
        child_peer_ids: vec![21, 22, 23],
        ..SplitRegionRequest::default()
    };
    let answer = cluster.service(leader).split_region(tonic::Request::new(request)).await;
    let answer = answer.expect("an answer").into_inner();
    assert_eq!((answer.invalid.as_str(), answer.refusal), ("", None));
    // A lease that ends looks for its keys in both halves.
    cluster.tell(&[answer.left.expect("a left half"), answer.right.expect("a right half")]);
    let halves = RegionEpoch { version: 2, ..EPOCH };
    let deadline = Instant::now() + DEADLINE;
    for (region, ids) in [(1, 1..=10), (2, 11..=20)] {
        let left: Vec<i64> = ids.clone().filter(|id| id % 10 != 0).collect();
        loop {
            let mut listed = Vec::new();
            for store in 1..=3 {
                let list = region_request::Op::ListLeases(ListLeasesRequest {});
                let answer = cluster.ask_region(store, region, halves, list).await;
                if let region_response::Result::ListLeases(list) = answer {
                    listed = list.leases.iter().map(|lease| lease.id).collect();
                    for id in &left {
                        let keep = region_request::Op::KeepLease(KeepLeaseRequest { id: *id });
                        let kept = cluster.ask_region(store, region, halves, keep).await;
                        let region_response::Result::KeepLease(kept) = kept else { panic!("{id}: {kept:?}") };
                        assert_eq!(kept.ttl, 600, "{id}");
                    }
                }
            }
            listed.sort_unstable();
            if listed == left {
                break;
            }
            assert!(Instant::now() < deadline, "r{region} has {listed:?}");
            sleep(LOOK).await;
        }
    }
}
